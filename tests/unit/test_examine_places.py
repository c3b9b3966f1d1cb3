"""Many tensors are named in a few words."""

from __future__ import annotations

import pytest

from pytest_pplguard.checkpoints.examine.places import (
    Place,
    in_order,
    layers_text,
    named,
    place_of,
    short_roles,
    spans,
)


@pytest.mark.parametrize(
    ("name", "place"),
    [
        (
            "model.layers.12.self_attn.q_proj.weight",
            Place("model.layers", 12, "self_attn.q_proj"),
        ),
        ("h.0.attn.c_attn.bias", Place("h", 0, "attn.c_attn.bias")),
        (
            "model.layers.3.block_sparse_moe.experts.7.w1.weight",
            Place("model.layers", 3, "block_sparse_moe.experts.*.w1"),
        ),
        ("blk.4.ffn_up.weight", Place("blk", 4, "ffn_up")),
        ("lm_head.weight", None),
    ],
)
def test_places(name: str, place: Place | None) -> None:
    assert place_of(name) == place


def test_numbers() -> None:
    assert spans([5, 2, 1, 0, 7, 8]) == "0-2, 5, 7-8"
    assert layers_text([3, 3]) == "layer 3"
    assert layers_text([4, 3]) == "layers 3-4"


def test_names_of_many_tensors() -> None:
    names = [
        f"model.layers.{layer}.{role}.weight"
        for layer in (4, 3)
        for role in ("mlp.up_proj", "self_attn.k_proj", "self_attn.q_proj")
    ]
    assert named([*names, "model.layers.9.mlp.down_proj.weight", "lm_head.weight"]) == (
        "layers 3-4: self_attn.q_proj, self_attn.k_proj, mlp.up_proj; "
        "layer 9: mlp.down_proj; lm_head.weight"
    )
    many = [f"model.layers.{2 * i}.role{i}.weight" for i in range(6)]
    assert named(many) == (
        "layer 0: role0; layer 2: role1; layer 4: role2; layer 6: role3; 2 more places"
    )
    assert named(f"x{i}" for i in range(6)) == "x0, x1, x2, x3 and 2 more"


def test_roles_in_the_order_of_a_layer() -> None:
    llama = ["q_proj", "k_proj", "v_proj", "o_proj"]
    roles = [f"self_attn.{name}" for name in llama]
    roles += [f"mlp.{name}" for name in ("gate_proj", "up_proj", "down_proj")]
    assert in_order(sorted(roles)) == roles
    gpt2 = ["attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"]
    assert in_order(sorted(gpt2, reverse=True)) == gpt2
    neox = [
        "attention.query_key_value",
        "attention.dense",
        "mlp.dense_h_to_4h",
        "mlp.dense_4h_to_h",
    ]
    assert in_order(sorted(neox)) == neox


def test_short_roles() -> None:
    assert short_roles(["attn.c_proj", "mlp.c_proj", "mlp.c_fc", "gate"]) == {
        "attn.c_proj": "attn.c_proj",
        "mlp.c_proj": "mlp.c_proj",
        "mlp.c_fc": "c_fc",
        "gate": "gate",
    }
