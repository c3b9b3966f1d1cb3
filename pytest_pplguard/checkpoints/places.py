"""Finds in which rows and columns of two tensors weights differ, in chunks."""

from __future__ import annotations

import math
from typing import NamedTuple

from .numbers import as_floats
from .streams import Stream


class Places(NamedTuple):
    """Rows and columns in which something differs.

    A row is a place in the first dimension, a column one in all others together.
    """

    rows: tuple[int, ...]
    columns: tuple[int, ...]


def changed_places(one: Stream, other: Stream) -> Places:
    """Where the weights of two tensors of one shape differ.

    Raises:
        CheckpointError: a file cannot be read.
    """
    import numpy

    width = math.prod(one.shape[1:])
    columns = numpy.zeros(width, bool)
    rows = []
    begin = 0
    for words, others in zip(one.read(width), other.read(width), strict=True):
        if one.is_float:
            left, right = as_floats(words, one.dtype), as_floats(others, other.dtype)
            differ = (left != right) & ~(numpy.isnan(left) & numpy.isnan(right))
        else:
            differ = words != others
        table = differ.reshape(-1, width)
        columns |= table.any(axis=0)
        rows += (numpy.flatnonzero(table.any(axis=1)) + begin).tolist()
        begin += len(table)
    return Places(tuple(rows), tuple(numpy.flatnonzero(columns).tolist()))
