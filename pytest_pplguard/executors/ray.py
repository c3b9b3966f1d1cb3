"""Replicas of a checkpoint on a Ray cluster."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ..measure import Executor, Subject
from ..options import Options, Target


class RayExecutor(Executor):
    """Replicas of a checkpoint on a Ray cluster."""

    def __init__(self, options: Options, *, tell: Callable[..., None]) -> None:
        self._options = options
        self._tell = tell

    def open(self, target: Target, allow_keys: Sequence[str] = ()) -> Subject:
        raise NotImplementedError

    def close(self) -> None:
        raise NotImplementedError
