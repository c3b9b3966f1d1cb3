"""Many tensors are named in few words, and none of them is lost."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_pplguard.tensornames import group, layer_of, ranges

KINDS = (
    "input_layernorm",
    "self_attn.q_proj",
    "self_attn.k_proj",
    "self_attn.v_proj",
    "self_attn.o_proj",
    "mlp.up_proj",
    "mlp.down_proj",
)
LINEAR = KINDS[1:]


def names(
    layers: list[int] | range, kinds: tuple[str, ...], stack: str = "model."
) -> list[str]:
    return [f"{stack}layers.{n}.{kind}.weight" for n in layers for kind in kinds]


ALL = [
    "model.embed_tokens.weight",
    *names(range(30), KINDS),
    "model.norm.weight",
]
ALL_LINEAR = names(range(30), LINEAR)


@pytest.mark.parametrize(
    ("chosen", "texts"),
    [
        (names(range(12, 15), LINEAR), ["layers 12-14, all projections"]),
        (names(range(12, 15), KINDS), ["layers 12-14, all tensors"]),
        (names([7, 3], ("self_attn.q_proj",)), ["layers 3, 7, self_attn.q_proj"]),
        (names([2, 10], ("mlp.up_proj",)), ["layers 2, 10, mlp.up_proj"]),
        (names(range(30), ("mlp.up_proj",)), ["all 30 layers, mlp.up_proj"]),
        (ALL_LINEAR, ["all 180 linear weights"]),
        (ALL, ["all 212 tensors"]),
        (["model.norm.weight"], ["model.norm.weight"]),
        ([], []),
        (
            names([4], LINEAR[:5]),
            ["layer 4, mlp.up_proj, self_attn.k_proj, self_attn.o_proj and 2 more"],
        ),
        (
            [
                "model.norm.weight",
                *names([1], ("self_attn.q_proj", "mlp.up_proj")),
                *names([0], ("self_attn.q_proj",)),
                *names([5], LINEAR),
            ],
            [
                "layer 0, self_attn.q_proj",
                "layer 1, mlp.up_proj, self_attn.q_proj",
                "layer 5, all projections",
                "model.norm.weight",
            ],
        ),
        # One kind in many layers and all kinds in one are two groups, not three.
        (
            [*names(range(8), ("mlp.up_proj",)), *names([3], ("mlp.down_proj",))],
            ["layers 0-7, mlp.up_proj", "layer 3, mlp.down_proj"],
        ),
    ],
)
def test_names_in_few_words(chosen: list[str], texts: list[str]) -> None:
    groups = group(chosen, known=ALL, linear=ALL_LINEAR)
    assert [found.text for found in groups] == texts


def test_all_is_not_said_of_a_checkpoint_that_is_not_known() -> None:
    assert [found.text for found in group(names([0, 1], KINDS[:2]))] == [
        "layers 0-1, input_layernorm, self_attn.q_proj"
    ]


def test_other_stacks_and_experts() -> None:
    experts = [f"mlp.experts.{n}.{w}" for n in (0, 1, 2, 5) for w in ("w1", "w2")]
    vision = names([3], ("self_attn.q_proj",), "vision.")
    chosen = names([3], tuple(experts))
    texts = [g.text for g in group([*vision, *chosen], known=[*ALL, *vision])]
    assert texts == [
        "model layer 3, mlp.experts.[0-2, 5].w1, mlp.experts.[0-2, 5].w2",
        "vision layer 3, self_attn.q_proj",
    ]


def test_names_of_other_families() -> None:
    assert layer_of("transformer.h.3.attn.c_attn.weight") == "transformer.h.3"
    assert layer_of("blk.11.attn_q.weight") == "blk.11"
    assert layer_of("model.norm.weight") is None
    chosen = ["blk.0.attn_q.weight", "blk.1.attn_q.weight", "output.weight"]
    texts = [found.text for found in group(chosen)]
    assert texts == ["layers 0-1, attn_q", "output.weight"]


def test_ranges() -> None:
    assert ranges([14, 3, 12, 13, 7, 7]) == "3, 7, 12-14"
    assert ranges([]) == ""


TENSORS = st.builds(
    "{}{}.{}.{}{}".format,
    st.sampled_from(["model.", "", "vision.", "a.b."]),
    st.sampled_from(["layers", "h", "other"]),
    st.integers(0, 12),
    st.sampled_from([*KINDS, "experts.0.w1", "experts.11.w1", "x"]),
    st.sampled_from([".weight", ".bias", ""]),
)


@given(st.lists(TENSORS), st.lists(TENSORS), st.lists(TENSORS))
def test_every_tensor_is_in_one_group(
    chosen: list[str], more: list[str], linear: list[str]
) -> None:
    groups = group(chosen, known={*chosen, *more}, linear=linear)
    members = [name for found in groups for name in found.names]
    assert sorted(members) == sorted(set(chosen))
    assert groups == group(reversed(chosen), known={*chosen, *more}, linear=linear)
    texts = [found.text for found in groups]
    assert len(set(texts)) == len(texts)
