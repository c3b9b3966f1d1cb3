"""Decides when a server that gave no answer is asked again, and when it is given up."""

from __future__ import annotations

import itertools
import random
import threading
import time
from collections import Counter
from collections.abc import Callable
from typing import TypeVar

from ...errors import ExecutorError
from .client import Client, Kind, NoAnswer

T = TypeVar("T")

TRIES, LATE_TRIES = 5, 2
"""How often one request is sent; and where the server lets its time pass."""

FIRST_WAIT, LONGEST_WAIT = 0.5, 30.0
"""Seconds before a request is sent again: the first time, doubled each time, and the
most, whatever a server asks for."""

_LONGEST_POLL = 5.0
_SAID = 10.0
"""Seconds between two lines for whoever waits."""


class Patience:
    """Of one scoring, for all requests that are under way at once.

    A server that is away is waited for by one of them, and must prove itself once,
    before any of them is sent again. What it has answered stays answered.

    Args:
        client: the server; its ``timeout`` is also how long it may be away.
        prove: asks the server whether it is back, and is what it was.
        leave: set when nobody waits any more.
        say: gets a line every ten seconds while the server is away.
        clock: seconds, from any start.
    """

    def __init__(
        self,
        client: Client,
        *,
        prove: Callable[[], None],
        leave: threading.Event,
        say: Callable[[str], None] = lambda line: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.notices: list[str] = []
        self._client = client
        self._prove = prove
        self._leave = leave
        self._say = say
        self._clock = clock
        self._answered = clock()
        self._lock = threading.Lock()
        self._outages = 0
        self._lost: ExecutorError | None = None

    def ask(self, request: Callable[[], T]) -> T:
        """What a request gives, sent again where that may help.

        Raises:
            ExecutorError: it does not help, the request is to blame, or nobody waits
                any more.
        """
        tries = Counter[Kind]()
        while not self._leave.is_set():
            if self._lost is not None:
                raise self._lost
            outages = self._outages
            try:
                found = request()
            except NoAnswer as error:
                failure = error
            else:
                self._answered = self._clock()
                return found
            tries[failure.kind] += 1
            # Whoever is busy answers others: how often it said so counts for nothing.
            failed = tries.total() - tries[Kind.BUSY]
            if failure.kind is Kind.BUSY:
                busy = self._clock() - self._answered
                if busy >= self._client.timeout:
                    raise self._given_up(failure, f" for {busy:.0f} s")
            elif failed >= TRIES or tries[Kind.LATE] >= LATE_TRIES:
                raise self._given_up(failure, f" ({failed} times)")
            if failure.kind is Kind.AWAY:
                self._outlast(failure, failed, outages)
            else:
                self._pause(tries.total(), failure, LONGEST_WAIT)
        raise ExecutorError(f"nobody waits for the server at {self._client.url}")

    def _outlast(self, failure: NoAnswer, failed: int, outages: int) -> None:
        """Wait until the server is back, or another request has seen it back.

        Raises:
            ExecutorError: it does not come back, or comes back as another.
        """
        with self._lock:
            if self._lost is not None:
                raise self._lost
            if self._outages != outages:
                return
            try:
                self._wait(failure, failed)
            except ExecutorError as error:
                self._lost = error
                raise
            self._outages += 1

    def _wait(self, failure: NoAnswer, failed: int) -> None:
        began = due = self._clock()
        end = began + self._client.timeout
        is_away = False
        for number in itertools.count(failed):
            longest = LONGEST_WAIT if failure.wait else _LONGEST_POLL
            self._pause(number, failure, min(longest, max(0.0, end - self._clock())))
            try:
                self._prove()
            except NoAnswer as error:
                failure, is_away = error, True
            else:
                break
            now = self._clock()
            if now >= end:
                raise self._given_up(failure, f" for {now - began:.0f} s")
            if now >= due:
                due = now + _SAID
                self._say(
                    f"the server at {self._client.url} does not answer "
                    f"({failure.why}); trying again for {end - now:.0f} s"
                )
        if is_away:
            self.notices.append(
                f"the server at {self._client.url} was away for "
                f"{self._clock() - began:.0f} s ({failure.why}), and came back as it "
                "was"
            )
        self._answered = self._clock()

    def _pause(self, number: int, failure: NoAnswer, longest: float) -> None:
        """Wait after try ``number``; not all who were refused come back at once.

        Raises:
            ExecutorError: nobody waits any more.
        """
        usual = FIRST_WAIT * 2.0 ** min(number - 1, 9) * random.uniform(0.8, 1.2)
        if self._leave.wait(min(max(usual, failure.wait), longest)):
            raise failure

    def _given_up(self, failure: NoAnswer, how_long: str) -> ExecutorError:
        why, way_out = failure.why, self._client.way_out(failure.kind, failure.why)
        return ExecutorError(
            f"the server at {self._client.url}: {why}{how_long}{way_out}"
        )
