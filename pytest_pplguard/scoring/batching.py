"""Which windows the model reads together.

In batches of a fixed size, or of one that is found while it scores; or answers that
share a context.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Literal

from ..values import Window

BatchSize = int | Literal["auto"]

Packing = Literal["padded", "equal", "neighbours"]
"""What may be read together: windows of nearly one length, the shorter ones padded; of
one length; or of one length, and following each other in the order."""

_WASTE = 1 / 8
"""Of what a padded batch reads, no more than this is padding."""

_LOOKAHEAD = 4
"""Windows that are looked at for each that a batch may have: an order is kept but for
so many."""

_GAIN = 0.05
"""A larger batch has to take less time a token by this share."""

_NEARLY_FULL = 3 / 4

_TRIES = 2
"""Batches of a size before it is judged; the fastest counts, as the first warms up."""


def batches(
    windows: Sequence[Window],
    size: int,
    order: Sequence[int] | None = None,
    packing: Packing = "equal",
) -> Iterator[list[int]]:
    """Indices of windows, at most ``size`` together, and such as ``packing`` allows.

    Each batch has the earliest window of ``order`` that is left, and others that come
    soon after it. Without an order, windows are taken one by one in the text's, or the
    longest first.
    """
    if size == 1:
        indices = range(len(windows)) if order is None else order
        yield from ([index] for index in indices)
        return
    lengths = [len(window.ids) for window in windows]
    pending = reading_order(lengths, order, packing)
    while pending:
        yield take(pending, lengths, lambda count, _: count <= size, size, packing)


def reading_order(
    lengths: Sequence[int], order: Sequence[int] | None, packing: Packing
) -> list[int]:
    """``order``, or that in which those that go together follow each other."""
    if order is not None:
        return list(order)
    if packing == "neighbours":
        return list(range(len(lengths)))
    return sorted(range(len(lengths)), key=lambda index: -lengths[index])


def take(
    pending: list[int],
    lengths: Sequence[int],
    fits: Callable[[int, int], bool],
    size: int,
    packing: Packing,
) -> list[int]:
    """Cut the next batch off ``pending``: its first, and those that go with it.

    ``fits`` is told how many windows of how many tokens are to be read at once;
    ``size`` is about how many will be.
    """
    reach = pending[: _LOOKAHEAD * size]
    if packing == "neighbours":
        length = lengths[pending[0]]
        reach = list(itertools.takewhile(lambda i: lengths[i] == length, reach))
    waste = _WASTE if packing == "padded" else 0.0
    first, *others = reach
    batch, longest, tokens = {first}, lengths[first], lengths[first]
    for index in sorted(others, key=lambda i: abs(lengths[i] - lengths[first])):
        count, longer = len(batch) + 1, max(longest, lengths[index])
        padding = count * longer - tokens - lengths[index]
        if not fits(count, longer) or padding > waste * count * longer:
            break
        batch.add(index)
        longest, tokens = longer, tokens + lengths[index]
    pending[: len(reach)] = [index for index in reach if index not in batch]
    return [index for index in reach if index in batch]


class Growth:
    """Finds out how much to read at once: doubles it while that pays.

    ``tokens`` are those of a batch, padding included: at first one window of the
    longest length, or as many shorter ones as have no more together.
    """

    def __init__(self, longest: int) -> None:
        self.tokens = longest
        self.settled = False
        self._tries: dict[int, list[float]] = {}

    def fits(self, count: int, longest: int) -> bool:
        """Whether as many windows of so many tokens may be read at once."""
        return count == 1 or count * longest <= self.tokens

    def about(self, length: int) -> int:
        """How many windows of a length may be read at once."""
        return max(1, self.tokens // length)

    def scored(self, tokens: int, seconds: float, *, room: bool = True) -> None:
        """A batch of so many tokens took so long; ``room``: is there for a double one.

        A batch that is not nearly full says nothing of its size.
        """
        if self.settled or tokens < _NEARLY_FULL * self.tokens:
            return
        tries = self._tries.setdefault(self.tokens, [])
        tries.append(seconds / tokens)
        if len(tries) < _TRIES:
            return
        before = min(self._tries.get(self.tokens // 2, [math.inf]))
        if min(tries) > (1 - _GAIN) * before:
            self.tokens //= 2
            self.settled = True
        elif room:
            self.tokens *= 2
        else:
            self.settled = True

    def failed(self, count: int, longest: int) -> None:
        """Memory was not enough for so many windows of so many tokens.

        None of the batches that follow will be as large, and they grow no more.
        """
        self.tokens = min(self.tokens, count * longest) // 2
        self.settled = True


def groups(windows: Sequence[Window]) -> Iterator[list[int]]:
    """Indices of neighbours of one page that share at least half of their contexts."""
    group: list[int] = []
    for index, window in enumerate(windows):
        if group:
            members = [*(windows[i] for i in group), window]
            longest = max(member.start for member in members)
            shared = shared_context(members)
            # Windows of a whole text share nothing, and there are as many as it wants.
            if (
                windows[group[0]].page != window.page
                or not shared
                or 2 * shared < longest
            ):
                yield group
                group = []
        group.append(index)
    if group:
        yield group


def shared_context(windows: Sequence[Window]) -> int:
    """How many of their first ids windows share, up to the first scored position."""
    shared = min(window.start for window in windows)
    first = windows[0].ids
    for window in windows[1:]:
        if window.ids[:shared] != first[:shared]:
            pairs = zip(first, window.ids, strict=False)
            shared = next(i for i, (a, b) in enumerate(pairs) if a != b)
    return shared


def proving(
    cut: Sequence[Sequence[int]], windows: Sequence[Window], *, answers: bool = False
) -> list[int]:
    """Which batches of ``cut`` a scorer proves something on, by their numbers.

    If it scores those before a batch first, it has proven for that batch all that it
    would have proven if it had scored every batch in order. They are few: the first
    batch, the first with windows of one length, and padded ones that are much shorter
    or longer than all padded ones before.
    """
    found = [0] if cut else []
    if answers:
        # The first group that shares a context; one whose windows are all the same
        # proves nothing.
        for number, batch in enumerate(cut):
            chosen = [windows[index] for index in batch]
            if len({each.ids for each in chosen}) > 1 and shared_context(chosen):
                return sorted({*found, number})
        return found
    together = False
    shortest, longest = math.inf, 0
    for number, batch in enumerate(cut):
        lengths = [len(windows[index].ids) for index in batch]
        if not together and len(set(lengths)) < len(batch):
            together = True
            found.append(number)
        if len(set(lengths)) == 1:
            continue
        if 2 * min(lengths) <= shortest or max(lengths) >= 2 * longest:
            found.append(number)
            shortest = min(shortest, *lengths)
            longest = max(longest, *lengths)
    return sorted(set(found))
