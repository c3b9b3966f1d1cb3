"""A fingerprint's digests are those of the numbers, written out here."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy

from pytest_pplguard.checkpoints import fingerprint

from .test_checkpoints_sparsity import UP, save


def digest_of(values: numpy.ndarray[tuple[int], numpy.dtype[numpy.float32]]) -> str:
    """SHA-256 of the upper halves; with the lower ones, SHA-256 of both SHA-256s."""
    words = (values + numpy.float32(0)).view("<u4")
    high = hashlib.sha256((words >> 16).astype("<u2").tobytes())
    low = (words & 0xFFFF).astype("<u2")
    if not low.any():
        return high.hexdigest()[:32]
    both = high.digest() + hashlib.sha256(low.tobytes()).digest()
    return hashlib.sha256(both).hexdigest()[:32]


def test_one_digest_for_equal_numbers_in_any_dtype(tmp_path: Path) -> None:
    values = numpy.array([0.0, -0.0, 1.5, -2.0, 0.25, 96.0], "<f4")
    forms = {
        "F64": values.astype("<f8").tobytes(),
        "F32": values.tobytes(),
        "F16": values.astype("<f2").tobytes(),
        "BF16": (values.view("<u4") >> 16).astype("<u2").tobytes(),
    }
    for dtype, raw in forms.items():
        facts = fingerprint(save(tmp_path, {UP: (dtype, [2, 3], raw)})).tensors[UP]
        assert facts.values == digest_of(values)
        assert (facts.dtype, facts.shape, facts.zeros) == (dtype, (2, 3), 2)
        assert facts.peak == 96.0
