"""Where things stand in the small pictures; templates draw them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

from msgspec import Struct

from ...values import Verdict
from ..text import change_text, number, range_text

WIDTH = 160.0
"""Units across a picture of a gate."""

_PAD = 0.14
"""Room left of the leftmost mark, and right of the rightmost, in parts of the range."""

_FAR = 4.0
"""A value that is so many ranges outside is drawn as an arrow at the edge."""

_FEWEST_BINS, _MOST_BINS = 5, 40


class Strip(Struct, frozen=True):
    """A gate as a picture: the allowed band, the baseline, the measured value.

    Places are in units from the left, 0 to :data:`WIDTH`; the band is open on a side
    where it reaches the edge. ``beyond`` says on which side the value is too far away
    to be drawn to scale.
    """

    low: float
    high: float
    baseline: float | None
    measured: float
    beyond: Literal["", "left", "right"]
    words: str


def strip(verdict: Verdict) -> Strip | None:
    """The picture of a verdict; None where there is no value or nothing to hold to."""
    value = verdict.measured
    low, high = verdict.allowed
    if value is None or not math.isfinite(value) or (low is None and high is None):
        return None
    known = [one for one in (low, high, verdict.baseline) if one is not None]
    least, most = min(known), max(known)
    # A single bound, or one value that is allowed, has no width to measure by.
    scale = (most - least) or abs(value - least) / _FAR or abs(least) * 0.01 or 1.0
    drawn = min(max(value, least - _FAR * scale), most + _FAR * scale)
    left, right = min(least, drawn), max(most, drawn)
    pad = _PAD * ((right - left) or scale)
    left, right = left - pad, right + pad

    def place(one: float) -> float:
        return round((one - left) / (right - left) * WIDTH, 2)

    beyond: Literal["", "left", "right"] = ""
    if drawn != value:
        beyond = "left" if value < drawn else "right"
    return Strip(
        low=0.0 if low is None else place(low),
        high=WIDTH if high is None else place(high),
        baseline=None if verdict.baseline is None else place(verdict.baseline),
        measured=place(drawn) if not beyond else (4.0 if beyond == "left" else 156.0),
        beyond=beyond,
        words=_words(verdict),
    )


def _words(verdict: Verdict) -> str:
    facts = [f"measured {number(verdict.measured)}"]
    if verdict.baseline is not None:
        facts.append(f"baseline {number(verdict.baseline)}")
    if verdict.change is not None:
        facts.append(f"change {change_text(verdict.change)}")
    return ", ".join([*facts, f"allowed {range_text(*verdict.allowed, number)}"])


class Bins(Struct, frozen=True):
    """A histogram: ``counts[i]`` values from ``start + i * width`` on."""

    start: float
    width: float
    counts: tuple[int, ...]


def bins(values: Sequence[float]) -> Bins:
    """A histogram of one or more values; no bin has zero inside of it.

    As wide as Freedman and Diaconis (1981) say: twice the range of the middle half over
    the cube root of how many there are. So worse and better are never in one bin.
    """
    ordered = sorted(values)
    least, most = ordered[0], ordered[-1]
    spread = (most - least) or abs(most) or 1.0
    middle = ordered[len(ordered) * 3 // 4] - ordered[len(ordered) // 4]
    width = 2 * middle / len(ordered) ** (1 / 3) or spread / _FEWEST_BINS
    width = min(max(width, spread / _MOST_BINS), spread / _FEWEST_BINS)
    first = math.floor(least / width)
    counts = [0] * (math.floor(most / width) - first + 1)
    for value in ordered:
        counts[math.floor(value / width) - first] += 1
    return Bins(first * width, width, tuple(counts))


_CIVIDIS = (
    *((0, 34, 78), (18, 53, 112), (59, 73, 108), (87, 93, 109), (112, 113, 115)),
    *((138, 134, 120), (165, 156, 116), (195, 179, 105), (225, 204, 85)),
    (254, 232, 56),
)
"""Evenly spaced points of cividis (Nuñez, Anderton and Renslow, 2018), which reads the
same with and without colour vision, and in grey."""


def cividis(share: float) -> str:
    """The colour of a share from 0 to 1, as CSS writes it."""
    place = share * (len(_CIVIDIS) - 1)
    index = min(int(place), len(_CIVIDIS) - 2)
    part = place - index
    pairs = zip(_CIVIDIS[index], _CIVIDIS[index + 1], strict=True)
    return "#" + "".join(f"{round(a + (b - a) * part):02x}" for a, b in pairs)
