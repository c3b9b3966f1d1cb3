"""What the windows say of a change: measured and recorded losses, paired by window."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

from msgspec import Struct

from ..errors import BaselineError
from ..values import FEWEST_WINDOWS, WindowScore

EQUAL = 1e-6
"""Nats a token. Less is rounding: threads and batches move a window by so much."""

WHOLE = 0.9
"""At least this share of the windows moved the same way: the whole text did."""

FEW = 0.05
"""No more than this share of the windows (one, of less than 40) are a few."""

MOST_NAMED = 3

Summed = Literal["nll_sum", "kl_sum"]
"""What a :class:`WindowScore` sums over a window, and more of is worse."""


class WindowChange(Struct, frozen=True):
    """How far one window moved: in nats a token, and in all; more is worse."""

    index: int
    page: int | None
    change: float
    total: float


class Paired(Struct, frozen=True):
    """Two models' losses over the same windows; differences are measured - recorded.

    ``mean`` is in nats a token, ``error`` its standard error over windows (None for one
    window). ``worse``, ``better`` and ``equal`` count windows. ``moved_most`` are those
    that add most to the change, the largest first. ``half`` is how many of them make up
    more than half of the total absolute change. ``extent`` says where it is, see
    :func:`paired`. ``divergence`` estimates in nats a token how far the two models'
    predictions are apart (None with few windows). ``of`` is what was paired.
    """

    windows: int
    mean: float
    error: float | None
    worse: int
    better: int
    equal: int
    moved_most: tuple[WindowChange, ...]
    half: int
    extent: Literal["nothing", "whole", "few", "mixed"]
    divergence: float | None
    of: Summed = "nll_sum"


def paired(
    measured: Sequence[WindowScore],
    recorded: Sequence[WindowScore],
    *,
    of: Summed = "nll_sum",
) -> Paired:
    """Compare two measurements of the same token windows, window by window.

    Their losses, or ``of`` their divergences from a reference, of which no divergence
    is estimated.

    With ``D_w`` the difference of window w's summed losses, ``n_w`` its scored tokens,
    ``W`` windows and ``N`` tokens in all:

    **Mean** ``m = sum D_w / N``: every token counts the same, whatever its window. For
    a token perplexity that is the logarithm of measured / recorded.

    **Standard error** ``sqrt(W / (W - 1) * sum (D_w - m n_w)^2) / N``: that of a ratio
    estimate over clusters of unequal size (Cochran, *Sampling Techniques*, 3rd ed.,
    1977, chapter 6; the clustered standard error of Miller, *Adding Error Bars to
    Evals*, 2024). Tokens of one window may depend on each other, windows may not. For
    equal windows it is the usual ``s / sqrt(W)`` of the windows' means.

    **Extent**: ``nothing`` if every window is within :data:`EQUAL`; ``few`` if at most
    :data:`FEW` of the windows carry more than half of ``sum |D_w|``; ``whole`` if at
    least :data:`WHOLE` of them moved the same way; else ``mixed``. The order matters:
    one spoilt window and a trace of the same sign everywhere is ``few``. Below
    :data:`~pytest_pplguard.values.FEWEST_WINDOWS` nothing is called ``few``.

    **Divergence** ``sum (D_w - m n_w)^2 / n_w / (2 (W - 1))``. Let ``r`` be the
    logarithm of recorded / measured probability of a token, so that ``D_w`` sums r.
    Under the recorded model ``E[exp(-r)] = 1``, the measured probabilities' sum; to the
    second order in r that gives ``E[r] = E[r^2] / 2``, and ``E[r]`` is the KL
    divergence. Its square is of the fourth order, so ``KL = Var(r) / 2``. The variance
    of a sum of n independent r is ``n Var(r)``, and the weighted sum of squares above
    is its unbiased estimate (m costs one degree of freedom). The mean falls out, so it
    sees predictions that moved though the perplexity stayed.

    It assumes small differences, tokens drawn from what the recorded model predicts,
    and differences that are independent from token to token. A text has more surprises
    than a model expects, and a defect that hits some words or passages more than others
    adds to the scatter: both make the estimate too large. Against the KL divergence
    from full logits it was 0.9 to 2.5 times as large for changes of whole matrices
    (noise, scaling, pruning, permuted rows; 0.001 to 4 nats), and 15 times for four
    lost rows of an embedding; against the divergence on other text, 0.35 to 1.3 times
    for eight in ten defects (benchmarks/zoo/README.md). It is an order of magnitude.

    Raises:
        BaselineError: the windows are not the same ones.
    """
    if [score.scored for score in measured] != [score.scored for score in recorded]:
        raise BaselineError(
            f"the recorded evidence is of other windows ({len(recorded)}) than were "
            f"measured ({len(measured)})"
        )
    changes = [
        _change(index, new, old, of)
        for index, (new, old) in enumerate(zip(measured, recorded, strict=True))
    ]
    sizes = [score.scored for score in measured]
    mean = math.fsum(change.total for change in changes) / sum(sizes)
    apart = [
        change.total - mean * size for change, size in zip(changes, sizes, strict=True)
    ]
    count = len(changes)
    worse = sum(change.change > EQUAL for change in changes)
    better = sum(change.change < -EQUAL for change in changes)
    # Windows that are the same but for rounding stand in the text's order.
    largest = sorted(changes, key=lambda change: -round(abs(change.total), 6))
    half = _half(largest)
    return Paired(
        windows=count,
        mean=mean,
        error=_standard_error(apart, sum(sizes)),
        worse=worse,
        better=better,
        equal=count - worse - better,
        moved_most=tuple(largest[:MOST_NAMED]),
        half=half,
        extent=_extent(count, worse=worse, better=better, half=half),
        divergence=_divergence(apart, sizes) if of == "nll_sum" else None,
        of=of,
    )


def _change(index: int, new: WindowScore, old: WindowScore, of: Summed) -> WindowChange:
    total: float = getattr(new, of) - getattr(old, of)
    return WindowChange(index, new.page, total / new.scored, total)


def _half(largest: Sequence[WindowChange]) -> int:
    """How many windows, the largest change first, make up more than half of all."""
    total = math.fsum(abs(change.total) for change in largest)
    reached = 0.0
    for count, change in enumerate(largest, start=1):
        reached += abs(change.total)
        if reached > total / 2:
            return count
    return len(largest)


def _extent(
    count: int, *, worse: int, better: int, half: int
) -> Literal["nothing", "whole", "few", "mixed"]:
    if not worse and not better:
        return "nothing"
    if count >= FEWEST_WINDOWS and half <= max(1, FEW * count):
        return "few"
    return "whole" if max(worse, better) >= WHOLE * count else "mixed"


def _standard_error(apart: Sequence[float], tokens: int) -> float | None:
    count = len(apart)
    if count < 2:
        return None
    squares = math.fsum(value**2 for value in apart)
    return math.sqrt(count / (count - 1) * squares) / tokens


def _divergence(apart: Sequence[float], sizes: Sequence[int]) -> float | None:
    count = len(apart)
    if count < FEWEST_WINDOWS:
        return None
    squares = (value**2 / size for value, size in zip(apart, sizes, strict=True))
    return math.fsum(squares) / (2 * (count - 1))
