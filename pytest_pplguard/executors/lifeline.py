"""Notices that Ray is gone on this machine or at the head, while it can be said why.

Ray ends a process that goes on without them: a minute after the head was lost, or at
once where the node's own daemon is asked for something and has died. A run would be red
without a word.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Callable

from msgspec import Struct

Place = tuple[str, int]
"""Host and port."""

HEAD_SECONDS = 50.0
"""A head may be away for so long: one that tolerates faults is started again."""

_EVERY = 2.0
_ANSWER = 1.0


class Ends(Struct, frozen=True):
    """What a process needs of its cluster; None where it cannot be watched."""

    node: Place | None
    head: Place | None


class Lifeline:
    """Watches both ends, by their ports.

    Args:
        ends: where they are; those that do not answer now are not watched.
        clock: in seconds.
        answers: whether somebody listens at a place.
    """

    def __init__(
        self,
        ends: Ends,
        *,
        clock: Callable[[], float] = time.monotonic,
        answers: Callable[[Place], bool] | None = None,
    ) -> None:
        self._clock = clock
        self._answers = answers or listens
        self._node = self._watched(ends.node)
        self._head = self._watched(ends.head)
        self._looked = self._heard = clock()

    def _watched(self, place: Place | None) -> Place | None:
        return place if place is not None and self._answers(place) else None

    def broken(self, *, now: bool = False) -> str | None:
        """Why nothing can go on, None where all is well or may yet be.

        Args:
            now: look also if it was looked at a moment ago.
        """
        at = self._clock()
        if not now and at - self._looked < _EVERY:
            return None
        self._looked = at
        if self._node is not None and not self._answers(self._node):
            return f"Ray's own process on this machine, at {_text(self._node)}, is gone"
        if self._head is None or self._answers(self._head):
            self._heard = at
        elif at - self._heard >= HEAD_SECONDS:
            return (
                f"the head of the cluster, at {_text(self._head)}, has not answered "
                f"for {HEAD_SECONDS:.0f} s"
            )
        return None


def listens(place: Place) -> bool:
    """Whether somebody takes a connection there."""
    try:
        socket.create_connection(place, _ANSWER).close()
    except OSError:
        return False
    return True


def _text(place: Place) -> str:
    return f"{place[0]}:{place[1]}"
