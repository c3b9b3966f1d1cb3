"""Compares two tensors weight by weight, in chunks."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from msgspec import Struct

from ..errors import CheckpointError
from .numbers import as_floats
from .streams import Stream

if TYPE_CHECKING:
    import numpy

    Array = numpy.ndarray[Any, Any]


class Comparison(Struct, frozen=True):
    """What became of the weights of one tensor, from one checkpoint to another.

    ``lost`` were zero and are not any more, ``gained`` are zero now, ``moved`` are not
    zero in either and differ. ``largest`` is the largest change of a weight that is
    finite in both. Of packed tensors the bytes are compared: those that differ have
    ``moved``.
    """

    total: int
    lost: int = 0
    gained: int = 0
    moved: int = 0
    largest: float = 0.0

    @property
    def equal(self) -> bool:
        """Whether all weights are the same numbers."""
        return not (self.lost or self.gained or self.moved)


def compare_streams(one: Stream, other: Stream) -> Comparison:
    """Compare two tensors of one shape; their dtypes may differ, numbers count.

    -0.0 equals 0.0, and NaN equals NaN.

    Raises:
        CheckpointError: their shapes differ, one is packed and the other is not, or a
            file cannot be read.
    """
    if one.shape != other.shape or (
        one.dtype != other.dtype and not (one.is_float and other.is_float)
    ):
        raise CheckpointError(
            f"{one.name} cannot be compared: {one.dtype} {list(one.shape)} and "
            f"{other.dtype} {list(other.shape)}"
        )
    total = math.prod(one.shape)
    lost = gained = moved = 0
    largest = 0.0
    for left, right in zip(one.read(), other.read(), strict=True):
        if not one.is_float:
            moved += int((left != right).sum())
            continue
        found = _compare(as_floats(left, one.dtype), as_floats(right, other.dtype))
        lost += found.lost
        gained += found.gained
        moved += found.moved
        largest = max(largest, found.largest)
    return Comparison(total, lost, gained, moved, largest)


def _compare(left: Array, right: Array) -> Comparison:
    import numpy

    with numpy.errstate(invalid="ignore", over="ignore"):
        differ = (left != right) & ~(numpy.isnan(left) & numpy.isnan(right))
        if not differ.any():
            return Comparison(left.size)
        before, now = left[differ], right[differ]
        lost = int(numpy.count_nonzero(before == 0))
        gained = int(numpy.count_nonzero(now == 0))
        change = numpy.abs(now.astype("f8") - before.astype("f8"))
    finite = change[numpy.isfinite(change)]
    return Comparison(
        total=left.size,
        lost=lost,
        gained=gained,
        moved=before.size - lost - gained,
        largest=float(finite.max(initial=0.0)),
    )
