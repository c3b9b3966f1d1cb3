"""How much to hand out at once: portions of batches, by what replicas have shown. Pure.

A portion takes a replica about :data:`PORTION_SECONDS`: long beside the way there and
back, short beside the run. Towards the end portions are smaller, so that all replicas
end at about the same time.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from ..values import Window

PORTION_SECONDS = 1.5
"""What a portion should take."""

_SHARE_OF_REST = 0.5
"""Of what is left for a replica, a portion takes no more than this."""

_WEIGHT_OF_LAST = 0.5
"""Of the last portion in the speed of a replica; the rest is what was known before."""


def costs(cut: Sequence[Sequence[int]], windows: Sequence[Window]) -> list[int]:
    """Of each batch of ``cut``, the tokens that the model reads, padding included."""
    return [
        len(batch) * max(len(windows[index].ids) for index in batch) for batch in cut
    ]


class Pace:
    """What is known of the replicas' speeds, in tokens a second."""

    def __init__(self) -> None:
        self._speeds: dict[int, float] = {}
        self._usual = 0.0

    def saw(self, replica: int, tokens: float, seconds: float) -> None:
        """A replica has taken so long for so many tokens."""
        speed = tokens / max(seconds, 1e-9)
        known = self._speeds.get(replica)
        if known is not None:
            speed = known + _WEIGHT_OF_LAST * (speed - known)
        self._speeds[replica] = speed
        self._note_usual()

    def _note_usual(self) -> None:
        self._usual = sum(self._speeds.values()) / max(1, len(self._speeds))

    def forget(self, replica: int) -> None:
        """The replica is not there any more."""
        self._speeds.pop(replica, None)
        self._note_usual()

    def speed(self, replica: int) -> float | None:
        """Of a replica; one that has done nothing yet is taken for a usual one."""
        if replica in self._speeds:
            return self._speeds[replica]
        if not self._speeds:
            return None
        return self._usual

    def seconds(self, replica: int, tokens: float) -> float | None:
        """What so many tokens would take; None where nothing is known."""
        speed = self.speed(replica)
        return None if speed is None else tokens / speed

    def together(self, replicas: Collection[int]) -> float:
        """The speed of several replicas; 0 where nothing is known."""
        return sum(self.speed(replica) or 0.0 for replica in replicas)

    def budget(self, replica: int, rest: float, replicas: Collection[int]) -> float:
        """Tokens of the next portion of one of ``replicas``.

        ``rest`` are those of all that wait. 0 where nothing is known of its own speed:
        one batch shows it.
        """
        if replica not in self._speeds:
            return 0.0
        end = rest / self.together(replicas)
        return self._speeds[replica] * min(PORTION_SECONDS, _SHARE_OF_REST * end)


def run_of(
    waiting: Sequence[int], first: int, budget: float, costs: Mapping[int, float]
) -> tuple[int, ...]:
    """Batches from ``waiting[first]`` on that follow each other and fit a budget.

    At least one.
    """
    run = [waiting[first]]
    spent = costs[run[0]]
    for number in waiting[first + 1 :]:
        spent += costs[number]
        if number != run[-1] + 1 or spent > budget:
            break
        run.append(number)
    return tuple(run)
