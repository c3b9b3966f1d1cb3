"""Replicas of a cluster that go wrong as a test says, by files in a folder.

The folder's path is in the environment of the cluster's workers. A file of the name of
a fault is taken by the one replica that comes first; ``all-`` before it: by all.
"""

from __future__ import annotations

import os
import resource
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from msgspec.structs import replace

from pytest_pplguard.errors import CheckpointError
from pytest_pplguard.executors.replica import Answer, Failure, Hello, Ready, Replica
from pytest_pplguard.options import Target

FOLDER = "PPLGUARD_TEST_FAULTS"


def _taken(name: str) -> str | None:
    """What a fault's file holds, None where it is not for this replica."""
    folder = Path(os.environ[FOLDER])
    everybody = folder / f"all-{name}"
    if everybody.exists():
        return everybody.read_text()
    file, mine = folder / name, folder / f"{name}.{os.getpid()}"
    try:
        file.rename(mine)
    except FileNotFoundError:
        return None
    return mine.read_text()


def _allow_no_more_memory(left: int = 2**26) -> None:
    """What asks the system for more than ``left`` bytes is told that there are none."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + left
    resource.setrlimit(resource.RLIMIT_AS, (limit, resource.RLIM_INFINITY))


def _take_memory(*_: object) -> None:
    import torch

    torch.empty(2**30)


class Faulty(Replica):
    """A replica that goes wrong at the edge."""

    def hello(self) -> Hello:
        hello = super().hello()
        version = _taken("version")
        if version is not None:
            package, _, found = version.partition("=")
            hello = replace(hello, versions=hello.versions | {package: found})
        return replace(hello, code=_taken("code") or hello.code)

    def load(self, target: Target, allow_keys: Sequence[str]) -> Ready | Failure:
        fault = _taken("load")
        if fault is not None:
            return Failure.of(CheckpointError(fault))
        if _taken("memory-load") is not None:
            _allow_no_more_memory(2**20)
        ready = super().load(target, allow_keys)
        name = _taken("hardware")
        if name is not None and isinstance(ready, Ready):
            return replace(ready, facts=replace(ready.facts, device_name=name))
        digest = _taken("digest")
        if digest is not None and isinstance(ready, Ready):
            return replace(ready, digest=digest)
        return ready

    def look(self, what: str, *given: Any) -> Any:
        if _taken("kill-looking") is not None:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().look(what, *given)

    def begin(self, number: int, job: bytes) -> Failure | None:
        if _taken("windows") is not None:
            from pytest_pplguard.executors import replica

            other: Any = replica
            before = other.windows_digest
            other.windows_digest = lambda windows: "sha256:other"
            try:
                return super().begin(number, job)
            finally:
                other.windows_digest = before
        return super().begin(number, job)

    def score(self, number: int, batches: Sequence[int]) -> Answer:
        if _taken("kill") is not None:
            os.kill(os.getpid(), signal.SIGKILL)
        if _taken("hang") is not None:
            time.sleep(3600)
        if _taken("memory") is not None:
            _allow_no_more_memory()
            # The demo needs none that it does not have yet; this layer needs more.
            self._loaded.model.base_model.register_forward_pre_hook(_take_memory)
        if _taken("nan") is not None:
            import torch

            with torch.no_grad():
                next(self._loaded.model.parameters()).fill_(float("nan"))
        slow = float(_taken("slow") or 0) * len(batches)
        time.sleep(slow)
        answer = super().score(number, batches)
        return replace(answer, seconds=answer.seconds + slow)
