"""Under pytest-xdist: one worker per checkpoint, and no more workers than that."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from pathlib import PurePosixPath
from typing import Any

import pytest

from ..options import Options

_GATE = re.compile(r"(?P<file>.+\.ya?ml)::(?P<checkpoint>[^:]+)::(?P<rest>.+)")
_RELATIVE = "relative::"
_KL = "kl/"


def gated_checkpoint(nodeid: str) -> str | None:
    """``FILE/NAME`` of a gate of a baseline file, None for any other test."""
    match = _GATE.fullmatch(nodeid)
    return (
        f"{PurePosixPath(match['file']).stem}/{match['checkpoint']}" if match else None
    )


def scopes(
    nodeids: Iterable[str], references: Mapping[str, str] | None = None
) -> dict[str, str]:
    """What each test is scheduled with: its checkpoint, else itself alone.

    Checkpoints that a ``relative`` gate divides by each other go together: both are
    measured by the worker that judges the ratio, and so only there. So do those that
    ``kl`` compares; ``references`` has the entry compared with, by ``FILE/NAME``.
    """
    together: dict[str, str] = {}

    def root(scope: str) -> str:
        while scope in together:
            scope = together[scope]
        return scope

    gates = {nodeid: match for nodeid in nodeids if (match := _GATE.fullmatch(nodeid))}
    for nodeid, match in gates.items():
        base = None
        if match["rest"].startswith(_RELATIVE):
            base = match["rest"].removeprefix(_RELATIVE)
        elif match["rest"].startswith(_KL):
            base = (references or {}).get(gated_checkpoint(nodeid) or "")
        if base is not None:
            one = root(f"{match['file']}::{match['checkpoint']}")
            other = root(f"{match['file']}::{base}")
            if one != other:
                together[one] = other
    return {
        nodeid: root(f"{match['file']}::{match['checkpoint']}")
        for nodeid, match in gates.items()
    }


def is_worker(config: pytest.Config) -> bool:
    """Whether this process is an xdist worker, and another one the controller."""
    return hasattr(config, "workerinput")


def worker_index(config: pytest.Config) -> int | None:
    """Number of the xdist worker that this process shares the GPUs as.

    None if it is none, or the only one: then all GPUs are its own.
    """
    worker: Mapping[str, Any] | None = getattr(config, "workerinput", None)
    if worker is None or int(worker["workercount"]) == 1:
        return None
    return int(str(worker["workerid"]).removeprefix("gw"))


def share_threads(config: pytest.Config) -> None:
    """Under xdist, leave the other workers their share of the cores."""
    threads = threads_share(config)
    if threads is None:
        return
    import torch

    torch.set_num_threads(threads)


def threads_share(config: pytest.Config) -> int | None:
    """Threads that an xdist worker may use, None outside one."""
    worker: Mapping[str, Any] | None = getattr(config, "workerinput", None)
    if worker is None:
        return None
    return max(1, (os.cpu_count() or 1) // int(worker["workercount"]))


def make_scheduler(
    config: pytest.Config, log: Any, references: Mapping[str, str]
) -> Any:
    """Xdist's own scheduler by scope, with a checkpoint as the scope of its gates."""
    from xdist.scheduler import LoadScopeScheduling

    class CheckpointScheduling(LoadScopeScheduling):  # type: ignore[misc]
        _scopes: dict[str, str] | None = None

        def _split_scope(self, nodeid: str) -> str:
            if self._scopes is None:
                self._scopes = scopes(self.collection, references)
            return self._scopes.get(nodeid, nodeid)

        def remove_node(self, node: Any) -> str | None:
            """What the node was running, the rest given to others.

            Xdist 3.8 gives out the crashed test again, and units that are done
            already, for which it then waits forever.
            """
            work = self.assigned_work.pop(node)
            units = {
                scope: unit for scope, unit in work.items() if not all(unit.values())
            }
            if not units:
                return None
            unit = next(iter(units.values()))
            crashed: str = next(test for test, done in unit.items() if not done)
            unit[crashed] = True
            self.workqueue.update(
                (scope, unit) for scope, unit in units.items() if not all(unit.values())
            )
            for other in self.assigned_work:
                self._reschedule(other)
            return crashed

    return CheckpointScheduling(config, log)


def count_workers(answer: int, checkpoints: int, options: Options) -> int:
    """For ``-n auto``: one a GPU, else ``answer``; no more than there are checkpoints.

    A single one where all of them would load to the same devices: several checkpoints
    at once are more than they were given for.
    """
    if options.max_memory or ":" in options.device:
        return 1
    if options.device != "cpu" and options.execution.where == "local":
        from ..checkpoints import probe

        answer = probe().count or answer
    return min(answer, checkpoints)
