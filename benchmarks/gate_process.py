"""Run pytest in this process and account where its time went."""

from __future__ import annotations

import importlib
import json
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

KINDS = ("imports", "loading", "forward")
_LOADING_MODULE = "pytest_pplguard.measure.loading"


class Clocks:
    """Seconds by kind of work; a moment counts for the innermost kind only.

    What transformers imports while it loads a checkpoint is imports, not loading, and
    the body's forward pass inside the model's is counted once.
    """

    def __init__(self, now: Callable[[], float] = time.perf_counter) -> None:
        self.seconds = dict.fromkeys(KINDS, 0.0)
        self._now = now
        self._running: list[str] = []
        self._since = 0.0

    def enter(self, kind: str) -> None:
        """Work of this kind begins."""
        self._settle()
        self._running.append(kind)

    def leave(self) -> None:
        """The innermost work is done."""
        self._settle()
        self._running.pop()

    def _settle(self) -> None:
        now = self._now()
        if self._running:
            self.seconds[self._running[-1]] += now - self._since
        self._since = now


def time_imports(clocks: Clocks) -> None:
    """Clock what the interpreter calls for every module that is not in memory yet.

    ``-X importtime`` reports the same call. Other threads' imports are not counted.
    """
    bootstrap: Any = importlib.import_module("importlib._bootstrap")
    original = bootstrap._find_and_load
    main = threading.get_ident()

    def find_and_load(name: str, import_: Any) -> Any:
        if threading.get_ident() != main:
            return original(name, import_)
        clocks.enter("imports")
        try:
            module = original(name, import_)
        finally:
            clocks.leave()
        if name == _LOADING_MODULE and not hasattr(module.load, "__wrapped__"):
            module.load = timed_load(clocks, module.load)
        return module

    bootstrap._find_and_load = find_and_load


def timed_load(clocks: Clocks, load: Callable[..., Any]) -> Callable[..., Any]:
    """``pytest_pplguard.checkpoints.load`` as ``measure.loading`` calls it, clocked."""

    def timed(*args: Any, **options: Any) -> Any:
        clocks.enter("loading")
        try:
            loaded = load(*args, **options)
        finally:
            clocks.leave()
        time_forward(clocks, loaded.model)
        return loaded

    vars(timed)["__wrapped__"] = load
    return timed


def time_forward(clocks: Clocks, model: Any) -> None:
    """Clock calls of the model, its body and its output head by forward hooks."""
    for module in (model, model.base_model, model.get_output_embeddings()):
        module.register_forward_pre_hook(lambda *_: clocks.enter("forward"))
        module.register_forward_hook(lambda *_: clocks.leave(), always_call=True)


def main() -> int:
    """``gate_process.py OUT.json ARGUMENT...``: pytest, and its seconds to OUT.json."""
    out, *arguments = sys.argv[1:]
    clocks = Clocks()
    time_imports(clocks)
    import pytest

    code = pytest.main(arguments)
    Path(out).write_text(json.dumps(clocks.seconds), encoding="utf-8")
    return int(code)


if __name__ == "__main__":
    sys.exit(main())
