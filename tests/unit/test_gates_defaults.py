"""Tests of the sparsity gate that a recorded checkpoint gets by default."""

from __future__ import annotations

import pytest

from pytest_pplguard.gates import default_sparsity
from pytest_pplguard.values import SparsityGate


@pytest.mark.parametrize(
    ("total", "layers", "tensors", "gate"),
    [
        # One share everywhere, up to what rounds of odd widths leave.
        (
            0.5,
            [0.5, 0.5],
            [0.5, 0.499, 0.501],
            SparsityGate(0.5, 0.001, scope="tensor"),
        ),
        # One share a layer: projections differ.
        (0.5, [0.5, 0.5004], [0.4, 0.6], SparsityGate(0.5, 0.001, scope="layer")),
        # Every tensor has its own (OWL).
        (0.5, [0.4, 0.6], [0.4, 0.6], SparsityGate(None, 0.001, scope="tensor")),
        # Six decimals are written; what is written must hold.
        (
            2 / 3,
            [2 / 3],
            [2 / 3],
            SparsityGate(0.666667, 0.001, scope="tensor"),
        ),
    ],
)
def test_the_strictest_that_holds(
    total: float, layers: list[float], tensors: list[float], gate: SparsityGate
) -> None:
    assert default_sparsity(total, layers=layers, tensors=tensors) == gate


@pytest.mark.parametrize("total", [0.0, 0.005, 0.01])
def test_what_is_not_pruned_gets_none(total: float) -> None:
    assert default_sparsity(total, layers=[total], tensors=[total]) is None


def test_without_recorded_shares_only_the_total_can_be_held() -> None:
    gate = default_sparsity(0.5, layers=[0.4, 0.6], tensors=[0.4, 0.6], recorded=False)
    assert gate == SparsityGate(0.5, 0.001)


@pytest.mark.parametrize(
    ("tensors", "fraction"), [([0.5, 0.5], 0.5), ([0.5, 0.52], None)]
)
def test_a_pattern_is_kept_whatever_the_scope(
    tensors: list[float], fraction: float | None
) -> None:
    total = sum(tensors) / 2
    gate = default_sparsity(total, layers=tensors, tensors=tensors, pattern="2:4")
    assert gate == SparsityGate(fraction, 0.001, "2:4", "tensor")
