"""Which replica scores what next, and what is done again when one fails. Pure.

The same code decides for the replicas of a cluster and for those of a simulation: it
knows neither Ray nor torch, and is told the time by a clock.

Batches are numbered in reading order. A batch is decided by the first answer that can
be trusted: losses, or an error that a second replica has confirmed.
"""

from __future__ import annotations

import bisect
from collections.abc import Callable, Collection, Mapping, Sequence

from msgspec import Struct

from .portions import Pace, run_of

MOST_LOSSES = 3
"""A batch with which so many replicas were lost is not tried again."""

_LATE = 3.0
"""A portion that takes so many times what was expected is given to another one, too."""

_LATE_FROM = 5.0
"""Seconds; what is faster is not late."""


class Portion(Struct, frozen=True):
    """Batches, by their numbers, that were given to a replica at ``started``."""

    number: int
    replica: int
    batches: tuple[int, ...]
    started: float


class Refusal(Struct, frozen=True):
    """What a replica says of a batch that it cannot score.

    ``anew``: even where there is no other replica this has to be confirmed, by one that
    was started anew.
    """

    replica: int
    anew: bool


class Schedule:
    """What is to be scored, who is scoring it, and what was decided.

    Args:
        costs: of each batch, in tokens; by its number.
        clock: seconds of any beginning.
        timeout: seconds after which a portion is given up.
        pace: what is known of replicas; it may be of a measurement before.
    """

    def __init__(
        self,
        costs: Mapping[int, float],
        *,
        clock: Callable[[], float],
        timeout: float,
        pace: Pace | None = None,
    ) -> None:
        self.pace = pace or Pace()
        self.distrusted: list[int] = []
        """Replicas that have refused what another one could score; each once."""
        self.hopeless: int | None = None
        """A batch with which too many replicas were lost."""
        self._costs = dict(costs)
        self._clock = clock
        self._timeout = timeout
        self._waiting = sorted(costs)
        self._rest = float(sum(costs.values()))
        self._undecided = set(costs)
        self._live: set[int] = set()
        self._coming: set[int] = set()
        self._running: dict[int, Portion] = {}
        self._doubled: set[int] = set()
        self._refusals: dict[int, Refusal] = {}
        self._losses: dict[int, int] = {}
        self._given = 0

    # ------------------------------------------------------------------------ asking

    @property
    def done(self) -> bool:
        """Whether every batch is decided."""
        return not self._undecided

    @property
    def live(self) -> Collection[int]:
        """Replicas that may be given something."""
        return self._live

    def running(self, replica: int) -> Portion | None:
        """What a replica is at."""
        return self._running.get(replica)

    def overdue(self) -> list[Portion]:
        """Portions that have taken too long: their replicas are to be given up."""
        now = self._clock()
        return [
            portion
            for portion in self._running.values()
            if now - portion.started > self._timeout
        ]

    def take(self, replica: int) -> Portion | None:
        """What a replica is to do next; None where it had better wait."""
        if replica not in self._live or replica in self._running or self.done:
            return None
        batches = self._next(replica) or self._late(replica)
        if not batches:
            return None
        self._given += 1
        portion = Portion(self._given, replica, batches, self._clock())
        self._running[replica] = portion
        return portion

    def _next(self, replica: int) -> tuple[int, ...]:
        may = (
            n for n, number in enumerate(self._waiting) if self._may(replica, number)
        )
        place = next(may, None)
        if place is None:
            return ()
        number = self._waiting[place]
        if self._is_faster_without(replica, self._costs[number]):
            return ()
        # What others failed with goes alone, so that the one at fault is found.
        alone = number in self._losses or number in self._refusals
        budget = self.pace.budget(replica, self._rest, self._live)
        run = run_of(self._waiting, place, 0.0 if alone else budget, self._costs)
        run = tuple(
            each
            for each in run
            if each == number or not (each in self._losses or each in self._refusals)
        )
        for each in run:
            self._waiting.remove(each)
            self._rest -= self._costs[each]
        return run

    def _may(self, replica: int, number: int) -> bool:
        """Whether somebody else should be asked about a batch that was refused."""
        refusal = self._refusals.get(number)
        return refusal is None or refusal.replica != replica or self._is_alone(replica)

    def _is_alone(self, replica: int) -> bool:
        return self._live | self._coming == {replica}

    def _is_faster_without(self, replica: int, cost: float) -> bool:
        """Whether the others end sooner if a slow replica takes nothing more."""
        others = [
            each for each in self._live if each != replica and each in self._running
        ]
        here = self.pace.seconds(replica, cost)
        speed = self.pace.together(others)
        if here is None or speed == 0.0:
            return False
        now = self._clock()
        left = sum(self._left(self._running[each], now) for each in others)
        fastest = max(self.pace.speed(each) or 0.0 for each in others)
        return here > (left + self._rest) / speed + cost / fastest

    def _left(self, portion: Portion, now: float) -> float:
        """Tokens of a portion that are not read yet, by what is expected."""
        tokens = sum(self._costs[number] for number in portion.batches)
        speed = self.pace.speed(portion.replica) or 0.0
        return max(0.0, tokens - speed * (now - portion.started))

    def _late(self, replica: int) -> tuple[int, ...]:
        """What somebody else is at, and takes much longer for than expected."""
        now = self._clock()
        old = [
            portion
            for portion in self._running.values()
            if now - portion.started >= _LATE_FROM
            and portion.number not in self._doubled
        ]
        for portion in sorted(old, key=lambda one: one.started):
            tokens = sum(self._costs[number] for number in portion.batches)
            theirs = self.pace.seconds(portion.replica, tokens)
            ours = self.pace.seconds(replica, tokens)
            if theirs is None or ours is None:
                continue
            if now - portion.started < _LATE * max(theirs, ours):
                continue
            self._doubled.add(portion.number)
            return tuple(each for each in portion.batches if each in self._undecided)
        return ()

    # ----------------------------------------------------------------------- telling

    def expect(self, replica: int) -> None:
        """A replica is about to be ready: it may be asked for a second opinion."""
        self._coming.add(replica)

    def add(self, replica: int) -> None:
        """A replica is ready; one that was lost comes back under another number."""
        self._coming.discard(replica)
        self._live.add(replica)

    def answered(
        self,
        replica: int,
        scored: Collection[int],
        seconds: float,
        refused: int | None = None,
        *,
        anew: bool = False,
    ) -> list[int]:
        """A replica has scored these batches of its portion in so many seconds.

        ``refused`` is the batch that it failed at, having left those behind it;
        ``anew`` as in :class:`Refusal`.

        Returns:
            The batches that are decided by this answer.
        """
        portion = self._running.pop(replica)
        if scored and seconds > 0:
            self.pace.saw(replica, sum(self._costs[n] for n in scored), seconds)
        decided = []
        for number in scored:
            if number in self._undecided:
                refusal = self._refusals.get(number)
                if refusal is not None and refusal.replica != replica:
                    self._distrust(refusal.replica)
                decided.append(number)
                self._decide(number)
        if refused is not None and refused in self._undecided:
            if self._is_confirmed(refused, replica, anew=anew):
                decided.append(refused)
                self._decide(refused)
            else:
                self._refusals.setdefault(refused, Refusal(replica, anew))
        self._put_back(portion)
        return decided

    def _is_confirmed(self, number: int, replica: int, *, anew: bool) -> bool:
        before = self._refusals.get(number)
        if before is not None and before.replica != replica:
            return True
        return not anew and self._is_alone(replica)

    def wants_anew(self, replica: int) -> bool:
        """Whether a replica is to be started anew to confirm what it said itself."""
        return self._is_alone(replica) and any(
            refusal.replica == replica and refusal.anew
            for number, refusal in self._refusals.items()
            if number in self._undecided
        )

    def _distrust(self, replica: int) -> None:
        if replica not in self.distrusted:
            self.distrusted.append(replica)

    def lost(self, replica: int, *, blame: bool = True) -> None:
        """A replica is gone, and what it was at is done again.

        ``blame``: that may be because of what it was at.
        """
        self._live.discard(replica)
        self._coming.discard(replica)
        self.pace.forget(replica)
        portion = self._running.pop(replica, None)
        if portion is None:
            return
        for number in portion.batches if blame else ():
            if number in self._undecided:
                self._losses[number] = self._losses.get(number, 0) + 1
                # Of a portion of several one is at fault, and each goes alone next.
                if self._losses[number] >= MOST_LOSSES:
                    self.hopeless = number
        self._put_back(portion)

    def only_before(self, number: int) -> None:
        """Nothing behind this batch is needed any more."""
        for other in [each for each in self._undecided if each > number]:
            self._decide(other)

    def _decide(self, number: int) -> None:
        self._undecided.discard(number)
        if number in self._waiting:
            self._waiting.remove(number)
            self._rest -= self._costs[number]

    def _put_back(self, portion: Portion) -> None:
        """What a portion has left undecided waits again, unless others are at it."""
        busy = {n for other in self._running.values() for n in other.batches}
        for number in portion.batches:
            if number in self._undecided - busy and number not in self._waiting:
                bisect.insort(self._waiting, number)
                self._rest += self._costs[number]


def labelled(batches: Sequence[int], cut: Sequence[Sequence[int]]) -> str:
    """``windows 3 to 9``, of batches by their numbers, for messages."""
    indices = [index for number in batches for index in cut[number]]
    low, high = min(indices) + 1, max(indices) + 1
    return f"window {low}" if low == high else f"windows {low} to {high}"
