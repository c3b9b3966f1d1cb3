"""Recognises what was done to a tensor by the facts before and after."""

from __future__ import annotations

import math

from ..values import TensorFacts

_STEP = {
    "F64": 2.0**-23,
    "F32": 2.0**-23,
    "F16": 2.0**-10,
    "BF16": 2.0**-7,
    "F8_E4M3": 2.0**-3,
    "F8_E4M3FNUZ": 2.0**-3,
    "F8_E5M2": 2.0**-2,
    "F8_E5M2FNUZ": 2.0**-2,
}
"""Relative distance of neighbouring numbers in each dtype."""

_NOISE = 1e-5
"""Relative error of a norm: facts are summed up in float32."""
_CHUNK = 1 << 18
"""Elements that are summed up in float32 at once."""
_MANY_TIMES = 4.0
"""A weight this much larger than the largest one was stands out."""
_FEW = 8.5
_INCIDENTAL = 1e-3
"""A share of zeros that no pruning makes."""
_BY_CHANCE = 0.05
"""A larger share of zeros in a norm is no chance: 1 is a usual gain, and 1 - 1 is 0."""


def scaled_by(before: TensorFacts, now: TensorFacts) -> float | None:
    """The factor, where all weights look multiplied by one; None elsewhere.

    Then norm, sum and peak are all multiplied by it, and the zeros are where they were.
    """
    if before.mask != now.mask or not before.norm or not now.norm or now.bad:
        return None
    step = max(_STEP[before.dtype], _STEP[now.dtype])
    ratio = now.norm / before.norm
    factor = math.copysign(ratio, now.sum * before.sum)
    if factor > 0 and abs(ratio - 1) <= max(2 * step, 10 * _NOISE):
        return None
    # Rounding each weight moves the sum by a part of the norm, as it does not add up.
    slack = (step + _sum_noise(now)) * now.norm
    same_sum = abs(now.sum - factor * before.sum) <= slack
    same_peak = abs(now.peak - ratio * before.peak) <= (step + _NOISE) * now.peak
    # A sum near zero says nothing about the sign.
    if factor < 0 and abs(now.sum) <= slack:
        factor = ratio
    return factor if same_sum and same_peak else None


def shifted_by(before: TensorFacts, now: TensorFacts) -> float | None:
    """What looks added to all weights, as to norms that count from 0 or from 1."""
    if now.bad or not before.size > 1 or max(before.share, now.share) > _BY_CHANCE:
        return None
    shift = (now.sum - before.sum) / now.size
    step = max(_STEP[before.dtype], _STEP[now.dtype])
    if abs(shift) <= max(4 * step, 0.01) * before.peak:
        return None
    squares = before.norm**2, now.norm**2
    expected = squares[0] + 2 * shift * before.sum + now.size * shift**2
    same_norm = abs(expected - squares[1]) <= (step / 8 + _NOISE) * sum(squares)
    # Where signs differ or turn, the smallest weight may become the largest.
    peaks = abs(before.peak + shift), abs(before.peak - shift)
    slack = (step + _NOISE) * max(before.peak, now.peak)
    same_peak = now.peak < before.peak or any(
        abs(now.peak - peak) <= slack for peak in peaks
    )
    return shift if same_norm and same_peak else None


def constant(facts: TensorFacts) -> float | None:
    """The value of all weights, where all are one other than zero."""
    if facts.bad or facts.zeros or facts.size < 2:
        return None
    mean = facts.sum / facts.size
    same = math.isclose(abs(mean), facts.peak, rel_tol=1e-6)
    return math.copysign(facts.peak, mean) if same else None


def reordered(before: TensorFacts, now: TensorFacts) -> bool:
    """Whether it holds the same numbers in another order, or as another shape."""
    return (
        before.size == now.size
        and before.parity == now.parity
        and (before.zeros, before.bad) == (now.zeros, now.bad)
        and before.peak == now.peak
        and math.isclose(before.norm, now.norm, rel_tol=_NOISE)
        and abs(before.sum - now.sum) <= _sum_noise(now) * now.norm
    )


def huge_weights(before: TensorFacts, now: TensorFacts) -> int:
    """How many weights are far beyond all others, if these explain the new norm."""
    if not before.norm or now.peak <= _MANY_TIMES * before.peak:
        return 0
    count = (now.norm**2 - before.norm**2) / now.peak**2
    return max(1, round(count)) if 0.5 < count <= min(_FEW, now.size / 4) else 0


def little(before: TensorFacts, now: TensorFacts, *, times: float = 1) -> bool:
    """Whether norm, sum and peak hardly moved, or ``times`` as much as hardly."""
    return (
        math.isclose(before.norm, now.norm, rel_tol=5e-3 * times)
        and math.isclose(before.peak, now.peak, rel_tol=0.05 * times)
        and abs(before.sum - now.sum) <= 0.05 * times * now.norm
    )


def is_incidental(before: TensorFacts, now: TensorFacts) -> bool:
    """Whether both have so few zeros that they are no mask."""
    return max(before.share, now.share) < _INCIDENTAL


def _sum_noise(facts: TensorFacts) -> float:
    """Error of a sum in float32, as a part of the norm.

    At most ``sqrt(n) * norm`` is summed up, in a tree: a few roundings of it.
    """
    return 4 * _STEP["F32"] * math.sqrt(min(facts.size, _CHUNK)) + 1e-9
