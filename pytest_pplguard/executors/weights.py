"""What replicas say of the weights that they have loaded."""

from __future__ import annotations

import time
from itertools import count
from typing import Any, cast

from msgspec.structs import replace

from ..checkpoints import Sparsity, Survivors
from ..errors import ExecutorError
from ..measure import Dense, WeightsReader
from ..values import Fingerprint
from .connection import in_reach
from .pool import LOADING, Pool, cause, on_nodes
from .replica import Failure
from .schedule import MOST_LOSSES

_LOOK_EVERY = 0.5
"""Seconds between looks at the clock while nobody answers."""

_numbers = count(1)


class RayWeights(WeightsReader):
    """Asks one replica; all have loaded the same, which :class:`.pool.Pool` holds.

    Another one is asked where the first is lost.

    Args:
        pool: the replicas.
        timeout: seconds that a portion may take; this may take as long as loading.
    """

    def __init__(self, pool: Pool, timeout: float) -> None:
        self._pool = pool
        self._seconds = LOADING * timeout

    def fingerprint(self) -> Fingerprint:
        return cast("Fingerprint", self._ask("fingerprint"))

    def sparsity(self, pattern: tuple[int, int] | None = None) -> Sparsity:
        return cast("Sparsity", self._ask("sparsity", pattern))

    def survivors(self, dense: Dense) -> Survivors:
        there = replace(dense, target=on_nodes(dense.target))
        return cast("Survivors", self._ask("survivors", there))

    def _ask(self, what: str, *given: Any) -> Any:
        """What a replica says.

        Raises:
            PplguardError: what is wrong with the weights, with the node.
            ExecutorError: no replica is left, or too many were lost with it.
        """
        with in_reach(self._pool.address), self._pool.interrupts:
            found, node = self._answer(what, given)
        if isinstance(found, Failure):
            raise found.error(f"{found.message} (on {node})")
        return found

    def _answer(self, what: str, given: tuple[Any, ...]) -> tuple[Any, str]:
        """The answer, and whose it is."""
        pool = self._pool
        mine = ("weights", next(_numbers))
        lost = 0
        while True:
            members = pool.members
            if not members:
                raise pool.exhausted()
            if lost == MOST_LOSSES:
                raise ExecutorError(
                    f"{pool.name}: {MOST_LOSSES} replicas were lost while they looked "
                    f"at its weights ({pool.last_cause})"
                )
            calls = [one.call for one in members if one.call is not None]
            free = [one for one in members if one.state == "ready" and not one.call]
            if free and not any(call.what == mine for call in calls):
                pool.ask(free[0], free[0].actor.look.remote(what, *given), mine)
            for member, call, answer in pool.look(_LOOK_EVERY):
                if isinstance(answer, Exception):
                    pool.lose(member, cause(answer))
                    lost += call.what == mine
                elif call.what == mine:
                    return answer, member.node
                # Else it belongs to a measurement before: its replica is free now.
            lost += self._give_up_late(mine)

    def _give_up_late(self, mine: object) -> int:
        """Those that do not answer; returns how many were asked by us."""
        now = time.monotonic()
        lost = 0
        for member in self._pool.members:
            call = member.call
            late = call is not None and now - call.since > self._seconds
            if member.state == "ready" and call is not None and late:
                self._pool.lose(member, f"an answer took more than {self._seconds:g} s")
                lost += call.what == mine
        return lost
