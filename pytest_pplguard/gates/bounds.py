"""From a tolerance and a baseline to the two doubles that decide."""

from __future__ import annotations

from msgspec import Struct

from ..values import Tolerance


class Bounds(Struct, frozen=True):
    """The allowed range; None is an open end. Printed and tested as the same doubles.

    ``lower_passes`` is true where a value below ``low`` is better and allowed.
    """

    low: float | None
    high: float | None
    lower_passes: bool = False

    def below(self, value: float) -> bool:
        """Whether ``value`` lies under the range."""
        return self.low is not None and not value >= self.low

    def above(self, value: float) -> bool:
        """Whether ``value`` lies over the range; a NaN does."""
        return self.high is not None and not value <= self.high


def bounds(baseline: float, tolerance: Tolerance) -> Bounds:
    """``[baseline/(1+rel), baseline*(1+rel)]``, cut by ``abs`` and ``max``.

    Every bound that is written holds, so the narrowest decides. Nothing is rounded.
    """
    return _bounds(baseline, baseline, tolerance)


def published_bounds(baseline: float, digits: int, tolerance: Tolerance) -> Bounds:
    """As :func:`bounds`, around all values that print as ``baseline``."""
    half = 0.5 * 10.0**-digits
    return _bounds(baseline - half, baseline + half, tolerance)


def _bounds(least: float, most: float, tolerance: Tolerance) -> Bounds:
    lows: list[float] = []
    highs: list[float] = []
    if tolerance.rel is not None:
        lows.append(least / (1 + tolerance.rel))
        highs.append(most * (1 + tolerance.rel))
    if tolerance.abs is not None:
        lows.append(least - tolerance.abs)
        highs.append(most + tolerance.abs)
    if tolerance.max is not None:
        highs.append(tolerance.max)
    return Bounds(
        low=max(lows, default=None),
        high=min(highs, default=None),
        lower_passes=tolerance.direction == "no-worse",
    )
