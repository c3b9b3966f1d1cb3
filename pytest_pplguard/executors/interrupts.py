"""Ctrl-C ends a wait even if the exception that it raises is lost."""

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
