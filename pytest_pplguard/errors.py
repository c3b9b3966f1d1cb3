"""Everything that can go wrong, as one family of exceptions with messages for people.

Each message is what the user reads: it names the thing, the place and the way out.
The edges (pytest hooks, the command line) decide how an error is shown; no other room
knows about pytest.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from .safetext import printable

_LONGEST = 8000
"""Characters of a message."""


class PplguardError(Exception):
    """Root of all errors that this package raises on purpose."""

    def __init__(self, message: str) -> None:
        if len(message) > _LONGEST:  # somebody else's megabyte in the middle of it
            half = _LONGEST // 2
            message = f"{message[:half]} [...] {message[-half:]}"
        super().__init__(printable(message))


class UsageError(PplguardError):
    """An option, ini value, marker argument or command-line argument is wrong."""


class KeySyntaxError(UsageError):
    """A measurement key does not follow ``METHOD/TEXT[+CORPUS]:WINDOW[...]``."""


class BaselineError(PplguardError):
    """A baseline file or its evidence cannot be used as it stands."""


class CheckpointError(PplguardError):
    """A checkpoint cannot be found, read or loaded."""

    def __init__(self, message: str) -> None:
        # One line, whatever the names in it are.
        super().__init__(message.replace("\n", "\\n"))


class NoDenseError(CheckpointError):
    """The dense checkpoint is not where a baseline file says that it is."""


class DeviceError(PplguardError):
    """The device that was asked for is not there, or ran out of memory."""


class ExecutorError(PplguardError):
    """A cluster or a server cannot be reached, or none of its replicas is left."""


class ServerChangedError(ExecutorError):
    """A server is not any more what it was when it was asked first."""


class CorpusError(PplguardError):
    """A text cannot be found, read or cut into windows."""


class MeasurementError(PplguardError):
    """A measurement could not be made."""


class InvalidLossError(MeasurementError):
    """A window's loss is NaN, infinite or empty: the number would mean nothing.

    ``window`` is its index, None where the losses are finite and their sum says too
    much. Where the scorer found it: ``scored`` counts the window's tokens, ``finished``
    holds the loss and the tokens of the windows before it, by their index, and
    ``windows`` and ``windows_digest`` are those of the whole text.
    """

    window: int | None = None
    scored: int = 0
    finished: Mapping[int, tuple[float, int]] = MappingProxyType({})
    windows: int = 0
    windows_digest: str = ""

    @classmethod
    def at(cls, window: int, message: str) -> InvalidLossError:
        """The error of one window."""
        error = cls(message)
        error.window = window
        return error
