"""What survived pruning is held to the dense checkpoint, number by number."""

from __future__ import annotations

from pathlib import Path

import numpy
import pytest

from pytest_pplguard.checkpoints import Located, Survivors, compare_with_dense
from pytest_pplguard.errors import CheckpointError

from .test_checkpoints_sparsity import UP, save

DOWN = "model.layers.0.mlp.down_proj.weight"
NORM = "model.norm.weight"
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
ONES = [1.0, 2.0, 3.0, 4.0]

Values = dict[str, list[float]]


def write(folder: Path, values: Values, dtype: str = "F32") -> Located:
    """A checkpoint of 2 x 2 tensors; a norm has one dimension."""
    folder.mkdir()
    words = {"F32": "<f4", "F16": "<f2", "F64": "<f8"}[dtype]
    located = save(
        folder,
        {
            name: (
                dtype,
                [4] if name == NORM else [2, 2],
                numpy.array(numbers, words).tobytes(),
            )
            for name, numbers in values.items()
        },
    )
    return Located(folder.name, located.folder)


def compare(
    tmp_path: Path, pruned: Values, dense: Values, dtype: str = "F32"
) -> Survivors:
    return compare_with_dense(
        write(tmp_path / "pruned", pruned),
        write(tmp_path / "dense", dense, dtype),
    )


DENSE: Values = {UP: ONES, DOWN: ONES, NORM: ONES, EMBEDDING: ONES}


def test_zeros_may_be_anywhere_in_linear_weights(tmp_path: Path) -> None:
    pruned = DENSE | {UP: [0.0, 2.0, -0.0, 4.0], DOWN: [0.0] * 4}
    found = compare(tmp_path, pruned, DENSE, "F16")
    assert found == Survivors(
        moved={}, strange={}, known=(UP, DOWN, NORM, EMBEDDING), linear=(UP, DOWN)
    )


def test_survivors_that_moved(tmp_path: Path) -> None:
    # 0.1 in float32 is not 0.1 in float64; a zero that came back survived nothing.
    dense = DENSE | {DOWN: [0.1, 0.0, 3.0, 4.0]}
    pruned = DENSE | {UP: [0.0, 2.5, 0.0, 4.0], DOWN: [0.1, 2.0, 0.0, 4.0]}
    found = compare(tmp_path, pruned, dense, "F64")
    assert found.moved == {UP: (1, 2), DOWN: (2, 3)}
    assert not found.strange


def test_a_zero_elsewhere_is_no_pruning(tmp_path: Path) -> None:
    pruned = DENSE | {NORM: [0.0, 2.0, 3.0, 4.0], EMBEDDING: [1.0, 2.0, 3.0, 5.0]}
    found = compare(tmp_path, pruned, DENSE)
    assert found.moved == {NORM: (1, 4), EMBEDDING: (1, 4)}


def test_gone_and_new(tmp_path: Path) -> None:
    other = "model.layers.0.mlp.gate_proj.weight"
    pruned = {UP: ONES, other: ONES, NORM: ONES, EMBEDDING: ONES[:2] * 2}
    found = compare(tmp_path, pruned, DENSE)
    assert found.strange == {"gone": (DOWN,), "new, not in dense": (other,)}
    assert found.moved == {EMBEDDING: (2, 4)}


def test_another_shape(tmp_path: Path) -> None:
    dense = write(tmp_path / "dense", DENSE)
    (tmp_path / "wide").mkdir()
    raw = numpy.array([*ONES, *ONES], "<f4").tobytes()
    wide = save(tmp_path / "wide", {UP: ("F32", [2, 4], raw)})
    found = compare_with_dense(wide, dense)
    assert found.strange == {
        "gone": (DOWN, NORM, EMBEDDING),
        "not comparable, other shape or format than in dense": (UP,),
    }
    assert not found.moved


def test_a_tied_head_and_buffers_need_no_partner(tmp_path: Path) -> None:
    dense = DENSE | {HEAD: ONES, "model.rotary_emb.inv_freq": ONES}
    assert not compare(tmp_path, DENSE, dense).strange
    (tmp_path / "other").mkdir()
    found = compare(tmp_path / "other", DENSE | {HEAD: [1.0, 2.0, 3.0, 5.0]}, DENSE)
    assert found.strange == {"new, not in dense": (HEAD,)}


def test_nothing_in_common(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError) as caught:
        compare(tmp_path, {UP: ONES}, {"blk.0.ffn_up.weight": ONES})
    assert str(caught.value) == (
        f"pruned and dense have no tensor of the same name ({UP} here, "
        "blk.0.ffn_up.weight there): they are not checkpoints of one model in one "
        "format"
    )
