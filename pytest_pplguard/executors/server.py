"""A checkpoint behind an OpenAI-compatible completions endpoint."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ..measure import Executor, Subject
from ..options import Options, Target


class ServerExecutor(Executor):
    """A checkpoint behind an OpenAI-compatible completions endpoint."""

    def __init__(self, options: Options, *, tell: Callable[..., None]) -> None:
        self._options = options
        self._tell = tell

    def open(self, target: Target, allow_keys: Sequence[str] = ()) -> Subject:
        raise NotImplementedError

    def close(self) -> None:
        raise NotImplementedError
