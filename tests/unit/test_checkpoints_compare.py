"""Two tensors are compared number by number, whatever their dtypes."""

from __future__ import annotations

from pathlib import Path

import numpy
import pytest

from pytest_pplguard.checkpoints import stored_streams
from pytest_pplguard.checkpoints.compare import Comparison, compare_streams
from pytest_pplguard.checkpoints.streams import Stream
from pytest_pplguard.errors import CheckpointError

from .test_checkpoints_sparsity import UP, save

NAN, INF = float("nan"), float("inf")


def stream(folder: Path, dtype: str, shape: list[int], raw: bytes) -> Stream:
    folder.mkdir()
    return stored_streams(save(folder, {UP: (dtype, shape, raw)}))[0]


def test_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pytest_pplguard.checkpoints.streams.CHUNK", 8)
    old = [0.0, 0.0, 1.0, 2.0, 3.0, NAN, NAN, INF, -0.0, 1.0, 1.0, 0.0]
    new = [0.0, 0.5, 0.0, 2.5, 3.0, NAN, 1.0, 2.0, 0.0, 1.0, -1.0, NAN]
    one = stream(tmp_path / "a", "F32", [12], numpy.array(old, "<f4").tobytes())
    other = stream(tmp_path / "b", "F16", [12], numpy.array(new, "<f2").tobytes())
    assert compare_streams(one, other) == Comparison(
        total=12, lost=2, gained=1, moved=4, largest=2.0
    )
    assert compare_streams(one, one) == Comparison(12)
    assert compare_streams(one, one).equal


def test_packed_tensors_by_their_bytes(tmp_path: Path) -> None:
    one = stream(tmp_path / "a", "I32", [2], bytes(8))
    other = stream(tmp_path / "b", "I32", [2], bytes([0, 1, 0, 0, 2, 0, 0, 0]))
    assert compare_streams(one, other) == Comparison(2, moved=2)


def test_other_shapes_and_kinds(tmp_path: Path) -> None:
    one = stream(tmp_path / "a", "F32", [2, 1], bytes(8))
    other = stream(tmp_path / "b", "F32", [1, 2], bytes(8))
    packed = stream(tmp_path / "c", "I32", [2, 1], bytes(8))
    with pytest.raises(CheckpointError) as caught:
        compare_streams(one, other)
    assert str(caught.value) == (f"{UP} cannot be compared: F32 [2, 1] and F32 [1, 2]")
    with pytest.raises(CheckpointError, match=r"F32 \[2, 1\] and I32 \[2, 1\]"):
        compare_streams(one, packed)
