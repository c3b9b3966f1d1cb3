"""A cluster that does not exist, driven by the schedule that drives the real one.

Time is counted in events. Replicas have speeds, and faults at given moments; what a
replica does is known, so a thousand of them cost a second.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import count
from typing import Literal

from msgspec import Struct

from pytest_pplguard.executors.pool import RESTARTS
from pytest_pplguard.executors.portions import Pace
from pytest_pplguard.executors.schedule import Portion, Schedule

_LOOK_EVERY = 0.5


class Fault(Struct, frozen=True):
    """What goes wrong with a slot's replica at a moment.

    ``kill``: it is gone. ``hang``: it answers nothing any more. ``nan``: it refuses
    whatever it is given.
    """

    slot: int
    at: float
    kind: Literal["kill", "hang", "nan"]


class Outcome(Struct):
    """What came of it.

    ``seconds`` until all was decided, None where no replica was left or a batch was
    given up. ``work`` are tokens that were read, ``needed`` those that had to be;
    ``decided`` counts the answers by which each batch was decided, ``refused`` are the
    batches that were decided to be bad.
    """

    seconds: float | None
    portions: int
    work: float
    needed: float
    decided: Counter[int]
    refused: set[int]
    losses: int
    hopeless: bool = False

    @property
    def waste(self) -> float:
        """The share of what was read that was not needed."""
        return 1 - self.needed / self.work if self.work else 0.0


class _Replica(Struct):
    slot: int
    speed: float
    restarts: int
    proven: bool = False
    hung: bool = False
    sick: bool = False


class SimulatedCluster:
    """Replicas by slots, and the moments at which something happens.

    Args:
        costs: of each batch in tokens.
        speeds: of each slot in tokens a second.
        ready: when each slot's replica is ready; 0 where nothing is said.
        overhead: seconds of a portion's way there and back.
        proof: tokens that a replica reads before its first batch.
        timeout: of a portion.
        restart: seconds until a replica that was lost is ready again.
        faults: what goes wrong.
        bad: batches that are bad, whoever scores them.
        jitter: by which factor a replica's portion takes longer, by its number.
    """

    def __init__(
        self,
        costs: Sequence[float],
        speeds: Sequence[float],
        *,
        ready: Sequence[float] = (),
        overhead: float = 0.003,
        proof: float = 0.0,
        timeout: float = 600.0,
        restart: float = 30.0,
        faults: Sequence[Fault] = (),
        bad: frozenset[int] = frozenset(),
        jitter: Callable[[int], float] = lambda portion: 1.0,
        pace: Pace | None = None,
    ) -> None:
        self._costs: Mapping[int, float] = dict(enumerate(costs))
        self._speeds = list(speeds)
        self._overhead, self._proof = overhead, proof
        self._restart, self._bad, self._jitter = restart, bad, jitter
        self._now = 0.0
        self._order = count()
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._replicas: dict[int, _Replica] = {}
        self._numbers = count(1)
        self._coming = 0
        self.schedule = Schedule(
            self._costs, clock=lambda: self._now, timeout=timeout, pace=pace
        )
        self.outcome = Outcome(
            None, 0, 0.0, float(sum(costs)), Counter(), set(), losses=0
        )
        times = [*ready, *[0.0] * (len(self._speeds) - len(ready))]
        for slot, time in enumerate(times):
            self._bring_up(slot, time, 0)
        for fault in faults:
            self._at(fault.at, partial(self._fault, fault))

    def run(self) -> Outcome:
        """Until all is decided, or nobody is left."""
        schedule = self.schedule
        while not schedule.done:
            if schedule.hopeless is not None:
                self.outcome.hopeless = True
                return self.outcome
            for number in list(self._replicas):
                self._give(number)
            for portion in schedule.overdue():
                self._lose(portion.replica)
            if not self._replicas and not self._coming:
                return self.outcome
            # The real loop looks at the clock now and then, too.
            soon = self._now + _LOOK_EVERY
            if not self._events or self._events[0][0] > soon:
                self._now = soon
                continue
            self._now, _, happen = heapq.heappop(self._events)
            happen()
        self.outcome.seconds = self._now
        return self.outcome

    def _at(self, time: float, happen: Callable[[], None]) -> None:
        heapq.heappush(self._events, (time, next(self._order), happen))

    def _bring_up(self, slot: int, time: float, restarts: int) -> None:
        self._coming += 1

        def come() -> None:
            self._coming -= 1
            number = next(self._numbers)
            self._replicas[number] = _Replica(slot, self._speeds[slot], restarts)
            self.schedule.add(number)

        self._at(time, come)

    def _give(self, number: int) -> None:
        portion = self.schedule.take(number)
        if portion is None:
            return
        replica = self._replicas[number]
        tokens = sum(self._costs[batch] for batch in portion.batches)
        proof = 0.0 if replica.proven else self._proof
        replica.proven = True
        self.outcome.portions += 1
        self.outcome.work += tokens + proof
        seconds = tokens / replica.speed * self._jitter(portion.number)
        end = self._now + self._overhead + proof / replica.speed + seconds
        self._at(end, lambda: self._answer(portion, seconds))

    def _answer(self, portion: Portion, seconds: float) -> None:
        number = portion.replica
        replica = self._replicas.get(number)
        if replica is None or replica.hung:
            return
        good = list(portion.batches)
        refused = None
        for place, batch in enumerate(portion.batches):
            if replica.sick or batch in self._bad:
                good, refused = good[:place], batch
                break
        before = len(self.schedule.distrusted)
        decided = self.schedule.answered(number, good, seconds, refused, anew=True)
        self.outcome.decided.update(decided)
        if refused in decided:
            assert refused is not None
            self.outcome.refused.add(refused)
        for other in self.schedule.distrusted[before:]:
            if other in self._replicas:
                self._lose(other)
        if refused is not None and self.schedule.wants_anew(number):
            self._lose(number)

    def _fault(self, fault: Fault) -> None:
        for number, replica in list(self._replicas.items()):
            if replica.slot != fault.slot:
                continue
            if fault.kind == "kill":
                self._lose(number)
            elif fault.kind == "hang":
                replica.hung = True
            else:
                replica.sick = True

    def _lose(self, number: int) -> None:
        replica = self._replicas.pop(number)
        self.outcome.losses += 1
        self.schedule.lost(number)
        if replica.restarts < RESTARTS:
            self._bring_up(
                replica.slot, self._now + self._restart, replica.restarts + 1
            )
