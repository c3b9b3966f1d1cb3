"""Rows and columns in which two tensors differ, found in chunks."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy
import pytest

from pytest_pplguard.checkpoints import Stream, changed_places

from .diffing import Array


def stream(values: Array, dtype: str, rows: int) -> Stream:
    """A tensor that is read some rows at a time."""
    width = values.size // values.shape[0]

    def read(unit: int = 1) -> Iterator[Any]:
        assert unit == width
        flat = values.reshape(-1).view(f"<u{values.itemsize}")
        for begin in range(0, flat.size, rows * width):
            yield flat[begin : begin + rows * width]

    return Stream("w", dtype, values.shape, read)


@pytest.mark.parametrize("shape", [(10,), (10, 6), (10, 2, 3)])
@pytest.mark.parametrize("rows", [1, 3, 10])
def test_places(shape: tuple[int, ...], rows: int) -> None:
    before = numpy.arange(1, 1 + numpy.prod(shape), dtype="f4").reshape(shape)
    before.reshape(10, -1)[0, 0] = numpy.nan
    before.reshape(10, -1)[1, 0] = -0.0
    now = before.astype("f8")
    now.reshape(10, -1)[1, 0] = 0.0
    for place in (4, 9):
        now.reshape(10, -1)[place, -1] += 1
    found = changed_places(stream(before, "F32", rows), stream(now, "F64", rows))
    assert found == ((4, 9), (before.size // 10 - 1,))


def test_equal_and_packed_tensors() -> None:
    one = numpy.arange(12, dtype="u1").reshape(3, 4)
    other = one.copy()
    assert changed_places(stream(one, "U8", 1), stream(other, "U8", 1)) == ((), ())
    other[2, 1] = 99
    assert changed_places(stream(one, "U8", 1), stream(other, "U8", 1)) == ((2,), (1,))
