"""From a tolerance and a baseline to the two doubles that decide."""

from __future__ import annotations

from msgspec import Struct

from ..values import Tolerance


class Bounds(Struct, frozen=True):
    """The allowed range; None is an open end. Printed and tested as the same doubles.

    Where the better side is open (``no-worse``), what lies beyond ``usual`` on that
    side is called better.
    """

    low: float | None
    high: float | None
    usual: float | None = None

    def below(self, value: float) -> bool:
        """Whether ``value`` lies under the range."""
        return self.low is not None and not value >= self.low

    def above(self, value: float) -> bool:
        """Whether ``value`` lies over the range; a NaN does."""
        return self.high is not None and not value <= self.high


def bounds(
    baseline: float,
    tolerance: Tolerance,
    *,
    higher_is_better: bool = False,
    error: float | None = None,
) -> Bounds:
    """``[baseline/(1+rel), baseline*(1+rel)]``, cut by ``abs``, ``max`` and ``min``.

    Or, of a tolerance in standard errors, ``baseline -+ sigma * error``, where
    ``error`` is that of the difference from the baseline. Every bound that is written
    holds, so the narrowest decides. Nothing is rounded. ``no-worse`` opens the side
    that is better.
    """
    return _bounds(baseline, baseline, tolerance, higher_is_better, error)


def published_bounds(
    baseline: float,
    digits: int,
    tolerance: Tolerance,
    *,
    higher_is_better: bool = False,
) -> Bounds:
    """As :func:`bounds`, around all values that print as ``baseline``."""
    half = 0.5 * 10.0**-digits
    return _bounds(baseline - half, baseline + half, tolerance, higher_is_better, None)


def _bounds(
    least: float,
    most: float,
    tolerance: Tolerance,
    higher_is_better: bool,
    error: float | None,
) -> Bounds:
    lows: list[float] = []
    highs: list[float] = []
    if tolerance.rel is not None:
        lows.append(least / (1 + tolerance.rel))
        highs.append(most * (1 + tolerance.rel))
    if tolerance.abs is not None:
        lows.append(least - tolerance.abs)
        highs.append(most + tolerance.abs)
    if tolerance.sigma is not None and error is not None:
        lows.append(least - tolerance.sigma * error)
        highs.append(most + tolerance.sigma * error)
    usual = None
    if tolerance.direction == "no-worse" and higher_is_better:
        usual, highs = min(highs, default=None), []
    elif tolerance.direction == "no-worse":
        usual, lows = max(lows, default=None), []
    if tolerance.max is not None:
        highs.append(tolerance.max)
    if tolerance.min is not None:
        lows.append(tolerance.min)
    return Bounds(max(lows, default=None), min(highs, default=None), usual)
