"""Ctrl-C and SIGTERM end a wait, even if the exception that they raise is lost."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any


class Interrupts:
    """Notes Ctrl-C inside the block, so that a loop can look.

    The exception that Python raises for it is printed and forgotten where it comes up
    in a finaliser or in a callback of a library, of which Ray has many: a run would go
    on for minutes. Whatever handles the signal still does.
    """

    def __init__(self) -> None:
        self._seen = False
        self._before: Any = None

    def __enter__(self) -> Interrupts:
        before = signal.getsignal(signal.SIGINT)
        # Elsewhere nobody may set handlers, and an ignored Ctrl-C is to stay ignored.
        if threading.current_thread() is threading.main_thread() and callable(before):
            self._before = before
            signal.signal(signal.SIGINT, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        if self._before is not None:
            signal.signal(signal.SIGINT, self._before)
            self._before = None

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._seen = True
        self._before(number, frame)

    def check(self) -> None:
        """Raise what was lost.

        Raises:
            KeyboardInterrupt: Ctrl-C was pressed.
        """
        if self._seen:
            raise KeyboardInterrupt


class Termination:
    """SIGTERM, by which a scheduler ends a job, ends a run on Ray as Ctrl-C does.

    Ray takes the signal for itself: it prints a stack and has the process abort. To be
    made before Ray is imported.
    """

    def __init__(self) -> None:
        self._before: Any = signal.getsignal(signal.SIGTERM)
        self._is_taken = False

    def take(self) -> None:
        """Handle it from now on; whoever handled it before Ray still does."""
        if threading.current_thread() is not threading.main_thread():
            return
        handler = self._before
        if _is_of_ray(handler) or handler in (None, signal.SIG_DFL, _interrupt):
            interrupts = callable(signal.getsignal(signal.SIGINT))
            handler = _interrupt if interrupts else signal.SIG_DFL
        signal.signal(signal.SIGTERM, handler)
        self._is_taken = True

    def give_back(self) -> None:
        """Leave it to whom it was left before."""
        if self._is_taken:
            before = signal.SIG_DFL if self._before is None else self._before
            signal.signal(signal.SIGTERM, before)
            self._is_taken = False


def _interrupt(number: int, frame: FrameType | None) -> None:
    signal.raise_signal(signal.SIGINT)


def _is_of_ray(handler: object) -> bool:
    return str(getattr(handler, "__module__", "")).partition(".")[0] == "ray"
