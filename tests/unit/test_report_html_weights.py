"""Weights on the page: zeros beside the recorded ones, and what changed."""

from __future__ import annotations

import pytest

from pytest_pplguard.report.html.weights import (
    MOST_CHANGES,
    Cell,
    kind_words,
    weights_of,
)
from pytest_pplguard.values import TensorChange, WeightsDetail


def named(layer: int, projection: str) -> str:
    return f"model.layers.{layer}.{projection}.weight"


Q, DOWN = "self_attn.q_proj", "mlp.down_proj"
RECORDED = {named(layer, name): (50, 100) for layer in (0, 1, 10) for name in (Q, DOWN)}


def test_both_tables_have_the_same_frame() -> None:
    now = dict(RECORDED)
    now[named(1, Q)] = (10, 100)
    del now[named(10, DOWN)]
    found = weights_of(
        WeightsDetail(
            checkpoint="m/w50", spec="out", zeros=now, recorded_zeros=RECORDED
        ),
        "weights-1",
    )
    assert found.heat is not None
    assert found.heat.projections == ("q_proj", "down_proj")
    half, lost = Cell(50, 100, False), Cell(10, 100, True)
    assert found.heat.rows == (
        ("0", (half, half), (half, half)),
        ("1", (half, half), (lost, half)),
        ("10", (half, half), (half, None)),
    )
    assert (lost.share, lost.level) == (0.1, 10)
    assert found.recorded == 0.5
    assert found.sparsity == pytest.approx(210 / 500)
    assert not found.same


def test_one_side_only_and_none() -> None:
    fresh = weights_of(
        WeightsDetail(checkpoint="m/w50", spec="out", zeros=RECORDED), ""
    )
    assert fresh.heat is not None
    assert [row[1] for row in fresh.heat.rows] == [(), (), ()]
    assert fresh.recorded is None
    gone = weights_of(
        WeightsDetail(checkpoint="m/w50", spec="out", recorded_zeros=RECORDED), ""
    )
    assert gone.heat is not None
    assert [row[2] for row in gone.heat.rows] == [(), (), ()]
    assert gone.sparsity is None
    none = weights_of(WeightsDetail(checkpoint="m/w50", spec="out", problem="?"), "")
    assert none.heat is None


def test_experts_of_a_layer_are_one_cell() -> None:
    zeros = {f"model.layers.0.mlp.experts.{n}.w1.weight": (n, 10) for n in range(4)}
    found = weights_of(WeightsDetail(checkpoint="m", spec="m", zeros=zeros), "")
    assert found.heat is not None
    assert found.heat.rows == (("0", (), (Cell(6, 40, False),)),)


def test_what_is_worst_comes_first_and_the_list_ends() -> None:
    changes = [
        TensorChange(name=named(layer, Q), kind="values") for layer in range(600)
    ]
    changes += [TensorChange(name="lm_head.weight", kind="bad")]
    found = weights_of(
        WeightsDetail(checkpoint="m", spec="m", changes=tuple(changes)), ""
    )
    assert [change.name for change in found.changes[:4]] == [
        "lm_head.weight",
        named(0, Q),
        named(1, Q),
        named(2, Q),
    ]
    assert len(found.changes) == MOST_CHANGES
    assert found.more == 601 - MOST_CHANGES


def test_the_recorded_weights() -> None:
    same = WeightsDetail(checkpoint="m", spec="m", digest="a", recorded_digest="a")
    assert weights_of(same, "").same
    unknown = WeightsDetail(checkpoint="m", spec="m")
    assert not weights_of(unknown, "").same


def mask(before: float, now: float) -> TensorChange:
    return TensorChange(name="a", kind="mask", before_zeros=before, zeros=now)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (TensorChange(name="a", kind="bad"), "NaN or infinity"),
        (TensorChange(name="a", kind="values", looks="scaled"), "other values, scaled"),
        (TensorChange(name="a", kind="mask"), "zeros elsewhere"),
        (mask(0.5, 0.1), "fewer zeros"),
        (mask(0.5, 0.7), "more zeros"),
        (mask(0.5, 0.5), "zeros elsewhere"),
        (TensorChange(name="a", kind="a kind to come"), "a kind to come"),
    ],
)  # fmt: skip
def test_words_for_a_change(change: TensorChange, words: str) -> None:
    assert kind_words(change) == words
