"""What differs is named, by the facts of two fingerprints alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from pytest_pplguard.diff import Exact, compare, explain, lines
from pytest_pplguard.values import Fingerprint

from .diffing import (
    CONFIG,
    EMBEDDING,
    HIDDEN,
    KINDS,
    LAYERS,
    NORM,
    TOKENIZER,
    WIDE,
    Weights,
    at,
    decoder,
    linear,
    taken,
)

PRUNED, DENSE = decoder(pruned=True), decoder()
Q, UP = "self_attn.q_proj", "mlp.up_proj"
REST = ", the config and the tokenizer are the same"


def damaged(damage: Callable[[Weights], Any], base: Weights = PRUNED) -> list[str]:
    """The lines for a copy of ``base`` that was damaged in place."""
    return lines(compare(taken(base), taken(changed(damage, base))))


def changed(damage: Callable[[Weights], Any], base: Weights) -> Weights:
    """A copy of ``base`` that was damaged in place."""
    weights = {name: values.copy() for name, values in base.items()}
    damage(weights)
    return weights


def rng(seed: int = 1) -> numpy.random.Generator:
    return numpy.random.default_rng(seed)


# ------------------------------------------------------------------------------ masks


def test_a_mask_lost_in_some_layers() -> None:
    def damage(weights: Weights) -> None:
        for layer in (2, 3, 4):
            for kind in KINDS:
                weights[at(layer, kind)] = DENSE[at(layer, kind)].copy()

    assert damaged(damage) == [
        "layers 2-4, all projections: mask lost, 50.0 % -> 0.0 %",
        f"all other weights (20 tensors){REST}",
    ]


def test_the_dense_checkpoint() -> None:
    text = lines(compare(taken(PRUNED), taken(DENSE)))
    assert text == [
        "all 24 linear weights: mask lost, 50.0 % -> 0.0 % "
        "(the dense checkpoint, or mixed with it?)",
        f"all other weights (8 tensors){REST}",
    ]
    assert lines(compare(taken(DENSE), taken(PRUNED))) == [
        "all 24 linear weights: more zeros, 0.0 % -> 50.0 % (pruned?)",
        f"all other weights (8 tensors){REST}",
    ]


def test_a_pruned_checkpoint_is_pruned_once_more() -> None:
    def prune(weights: Weights) -> None:
        for name in linear(weights):
            weights[name].reshape(-1)[::2] = 0

    every = linear(PRUNED)
    now = changed(prune, PRUNED)
    zeros = sum(int((now[name] == 0).sum()) for name in every)
    share = 100 * zeros / sum(now[name].size for name in every)
    assert damaged(prune)[0] == (
        f"all 24 linear weights: more zeros, 50.0 % -> {share:.1f} % "
        "(pruned once more?)"
    )


def test_weights_rounded_to_zero_are_not_pruned() -> None:
    def round_to_four_bits(weights: Weights) -> None:
        for name in linear(weights):
            groups = DENSE[name].reshape(-1, 8)
            step = abs(groups).max(axis=1, keepdims=True) / 7
            weights[name] = ((groups / step).round() * step).reshape(DENSE[name].shape)

    now = dict(DENSE)
    round_to_four_bits(now)
    zeros = [(now[name] == 0).mean() for name in linear(now)]
    share = 100 * float(numpy.mean(zeros))
    assert lines(compare(taken(DENSE), taken(now)))[0] == (
        f"all 24 linear weights: more zeros, 0.0 % -> {share:.1f} % "
        "(rounded to few bits?)"
    )


def test_a_merged_adapter_is_not_the_dense_checkpoint() -> None:
    def merge(weights: Weights) -> None:
        for name in linear(weights):
            rows, columns = weights[name].shape
            low = rng().normal(0, 0.01, (rows, 1)) @ rng(2).normal(0, 0.1, (1, columns))
            weights[name] += low.astype("f4")

    assert damaged(merge) == [
        "all 24 linear weights: mask lost, 50.0 % -> 0.0 % "
        "(an adapter merged, or trained without the mask?)",
        f"all other weights (8 tensors){REST}",
    ]


def test_an_average_of_two_pruned_models_is_no_merged_adapter() -> None:
    other = decoder(7, pruned=True)

    def average(names: tuple[str, ...]) -> Callable[[Weights], None]:
        def damage(weights: Weights) -> None:
            for name in names:
                weights[name] = (weights[name] + other[name]) / 2

        return damage

    def left(names: tuple[str, ...]) -> str:
        both = [((PRUNED[name] == 0) & (other[name] == 0)).sum() for name in names]
        return f"{100 * sum(both) / sum(PRUNED[name].size for name in names):.1f}"

    every = linear(PRUNED)
    some = tuple(name for name in every if Q in name)
    assert damaged(average(every)) == [
        f"all 24 linear weights: zeros lost, 50.0 % -> {left(every)} % "
        "(averaged with another model, or pruned by less?)",
        f"all other weights (8 tensors){REST}",
    ]
    assert damaged(average(some)) == [
        f"all 6 layers, self_attn.q_proj: zeros lost, 50.0 % -> {left(some)} %",
        f"all other weights (26 tensors){REST}",
    ]


def test_zeros_lost_in_part_and_gained() -> None:
    def damage(weights: Weights) -> None:
        weights[at(1, UP)][: WIDE // 4] = DENSE[at(1, UP)][: WIDE // 4]
        weights[at(3, Q)][:6] = 0

    before, now = (
        100 * float((each == 0).mean())
        for each in (
            PRUNED[at(3, Q)],
            numpy.r_[numpy.zeros((6, 24)), PRUNED[at(3, Q)][6:]],
        )
    )
    lost = 100 * float((PRUNED[at(1, UP)][WIDE // 4 :] == 0).sum()) / (WIDE * HIDDEN)
    assert damaged(damage) == [
        f"layer 1, mlp.up_proj: zeros lost, 50.0 % -> {lost:.1f} %",
        f"layer 3, self_attn.q_proj: more zeros, {before:.1f} % -> {now:.1f} %",
        f"all other weights (30 tensors){REST}",
    ]


def test_as_many_zeros_elsewhere() -> None:
    def prune_anew(weights: Weights) -> None:
        for name in linear(weights):
            keep = rng().permutation(weights[name].size) < weights[name].size // 2
            weights[name] = DENSE[name] * keep.reshape(weights[name].shape)

    assert damaged(prune_anew) == [
        "all 24 linear weights: zeros elsewhere, 50.0 % as before (pruned anew?)",
        f"all other weights (8 tensors){REST}",
    ]


# ----------------------------------------------------------------------------- values


def multiply(name: str, factor: float) -> Callable[[Weights], None]:
    def damage(weights: Weights) -> None:
        weights[name] *= numpy.float32(factor)

    return damage


@pytest.mark.parametrize("factor", [1.05, 0.5, -1.0, 3.0, 100.0])
@pytest.mark.parametrize("base", [PRUNED, DENSE])
def test_a_scaled_tensor(base: Weights, factor: float) -> None:
    assert damaged(multiply(at(3, Q), factor), base) == [
        f"layer 3, self_attn.q_proj: values moved, norm x{abs(factor):.4g} "
        f"(scaled by {factor:.4g}?)",
        f"all other weights (31 tensors){REST}",
    ]


def test_a_tensor_scaled_in_half_precision() -> None:
    half = {name: values.astype("f2") for name, values in PRUNED.items()}

    def damage(weights: Weights) -> None:
        weights[at(3, Q)] *= numpy.float16(1.05)

    line = damaged(damage, half)[0]
    assert line == (
        "layer 3, self_attn.q_proj: values moved, norm x1.05 (scaled by 1.05?)"
    )


def test_a_larger_norm_alone_is_not_scaled() -> None:
    def some_rows(weights: Weights) -> None:
        weights[at(3, Q)][:12] *= numpy.float32(1.1)

    def noise(weights: Weights) -> None:
        values = weights[at(3, Q)]
        values += (rng().normal(0, 0.03, values.shape) * (values != 0)).astype("f4")

    for damage in (some_rows, noise):
        first = damaged(damage)[0]
        assert first.startswith("layer 3, self_attn.q_proj: values moved, norm x1.0")
        assert "scaled" not in first


def test_one_change_of_all_layers_is_not_cut_in_pieces() -> None:
    def noise(weights: Weights) -> None:
        for name in linear(weights):
            shaken = rng(len(name)).normal(1, 0.05, weights[name].shape)
            weights[name] = (weights[name] * shaken).astype("f4")

    def with_one_more(weights: Weights) -> None:
        noise(weights)
        weights[at(3, Q)][::2] *= numpy.float32(1.2)

    found = compare(taken(PRUNED), taken(changed(noise, PRUNED))).changes
    assert {change.looks for change in found} == {"", "little"}
    [line, rest] = damaged(noise)
    assert line.startswith("all 24 linear weights: values moved, norm x")
    assert rest == f"all other weights (8 tensors){REST}"
    # What moved by much more has a line of its own, and it is the first.
    first, *_ = more = damaged(with_one_more)
    assert first.startswith("layer 3, self_attn.q_proj: values moved, norm x1.096")
    assert len(more) > 2


def test_one_huge_weight() -> None:
    def damage(weights: Weights) -> None:
        weights[at(4, UP)][3, 5] = 3e38

    assert PRUNED[at(4, UP)][3, 5]
    largest = float(numpy.abs(PRUNED[at(4, UP)]).max())
    assert damaged(damage) == [
        "layer 4, mlp.up_proj: one weight is 3e+38 in magnitude, "
        f"the largest was {largest:.2g}",
        f"all other weights (31 tensors){REST}",
    ]


def test_many_large_weights_are_not_one() -> None:
    def damage(weights: Weights) -> None:
        weights[at(4, UP)][::2] *= numpy.float32(8)

    assert damaged(damage)[0].startswith("layer 4, mlp.up_proj: values moved, norm x")


def test_nan_and_infinity_come_first() -> None:
    def damage(weights: Weights) -> None:
        weights[at(0, Q)] *= 2
        weights[at(5, UP)][0, :2] = [numpy.nan, -numpy.inf]
        weights[at(2, Q)][1, 1] = numpy.inf
        del weights[NORM]

    assert damaged(damage) == [
        "layer 2, self_attn.q_proj: 1 weight is NaN or infinite",
        "layer 5, mlp.up_proj: 2 weights are NaN or infinite",
        "model.norm.weight: gone",
        "layer 0, self_attn.q_proj: values moved, norm x2 (scaled by 2?)",
        f"all other weights (28 tensors){REST}",
    ]


def test_a_tensor_of_zeros_and_one_that_was() -> None:
    zeroed = {**PRUNED, at(1, UP): numpy.zeros((WIDE, HIDDEN), "f4")}
    assert lines(compare(taken(PRUNED), taken(zeroed)))[0] == (
        "layer 1, mlp.up_proj: all zeros now"
    )
    assert lines(compare(taken(zeroed), taken(PRUNED)))[0] == (
        "layer 1, mlp.up_proj: zeros lost, 100.0 % -> 50.0 %"
    )


@pytest.mark.parametrize("base", [PRUNED, DENSE])
def test_another_order(base: Weights) -> None:
    def rows(weights: Weights) -> None:
        weights[at(2, UP)] = weights[at(2, UP)][::-1].copy()

    def square(weights: Weights) -> None:
        weights[at(2, Q)] = weights[at(2, Q)].T.copy()

    assert damaged(rows, base)[0] == (
        "layer 2, mlp.up_proj: the same values in another order"
    )
    assert damaged(square, base)[0] == (
        "layer 2, self_attn.q_proj: the same values in another order"
    )


def test_one_bit_is_not_another_order() -> None:
    def flip(weights: Weights) -> None:
        weights[at(2, UP)].view("u4")[0, 3] ^= 1 << 18

    first = damaged(flip, DENSE)[0]
    assert first.startswith("layer 2, mlp.up_proj: values moved a little, norm x1")


def test_transposed_and_reshaped() -> None:
    def transpose(weights: Weights) -> None:
        weights[at(2, UP)] = weights[at(2, UP)].T.copy()

    def other(weights: Weights) -> None:
        weights[at(2, UP)] = rng().normal(0, 0.1, (HIDDEN, WIDE)).astype("f4")

    assert damaged(transpose)[0] == (
        "layer 2, mlp.up_proj: shape [40, 24] -> [24, 40] (transposed)"
    )
    assert damaged(other)[0] == "layer 2, mlp.up_proj: shape [40, 24] -> [24, 40]"


# ----------------------------------------------------------------------------- copies


def move(sources: dict[int, int], kinds: tuple[str, ...] = tuple(KINDS)) -> Any:
    def damage(weights: Weights) -> None:
        for layer, source in sources.items():
            for kind in kinds:
                weights[at(layer, kind)] = PRUNED[at(source, kind)]

    return damage


@pytest.mark.parametrize(
    ("damage", "line"),
    [
        (move({3: 4, 4: 3}), "layers 3 and 4 are swapped"),
        (move({5: 4}), "layer 5 holds what layer 4 held (duplicated?)"),
        (
            move({1: 0, 2: 0, 5: 0}),
            "layers 1-2, 5 hold what layer 0 held (duplicated?)",
        ),
        (
            move({1: 2, 2: 3, 3: 1}),
            "layers 1-3 are in another order: they hold 2, 3, 1",
        ),
        (move({3: 4, 4: 3}, (Q,)), "layers 3 and 4 are swapped: self_attn.q_proj only"),
        (
            move({5: 4}, (Q, UP)),
            "layer 5 holds what layer 4 held (duplicated?): "
            "mlp.up_proj, self_attn.q_proj only",
        ),
        (
            move({2: 3, 3: 4, 4: 5}),
            "layers 2-4 hold what layers 3-5 held (one left out?)",
        ),
    ],
)
def test_layers_that_hold_what_others_held(damage: Any, line: str) -> None:
    text = damaged(damage)
    assert text[0] == line
    assert len(text) == 2


def test_a_layer_left_out() -> None:
    def damage(weights: Weights) -> None:
        move({layer: layer + 1 for layer in range(2, LAYERS - 1)})(weights)
        for kind in KINDS:
            del weights[at(LAYERS - 1, kind)]

    assert damaged(damage) == [
        "layer 5, all tensors: gone",
        "layers 2-4 hold what layers 3-5 held (one left out?)",
        f"all other weights (12 tensors){REST}",
    ]


def test_two_projections_swapped() -> None:
    def damage(weights: Weights) -> None:
        for layer in (1, 2):
            q, k = at(layer, Q), at(layer, "self_attn.k_proj")
            weights[q], weights[k] = weights[k], weights[q]

    assert damaged(damage) == [
        "layers 1-2: self_attn.k_proj and self_attn.q_proj are swapped",
        f"all other weights (28 tensors){REST}",
    ]


def mixture(*sources: int, layers: tuple[int, ...] = (0, 1)) -> Fingerprint:
    """Two layers of four experts that hold what the experts ``sources`` held."""
    drawn = {
        f"model.layers.{layer}.mlp.experts.{expert}.{kind}.weight": rng(
            100 * layer + 10 * expert + place
        ).normal(0, 0.1, (8, 6))
        for layer in (0, 1)
        for expert in range(4)
        for place, kind in enumerate(("w1", "w2"))
    }
    held = {
        name: drawn[name.replace(f"experts.{number}.", f"experts.{source}.")]
        for number, source in enumerate(sources)
        for name in drawn
        if f"experts.{number}." in name and int(name.split(".")[2]) in layers
    }
    return taken({NORM: PRUNED[NORM]} | drawn | held)


@pytest.mark.parametrize(
    ("now", "line"),
    [
        (
            mixture(1, 2, 3, 0),
            "all 2 layers: experts 0-3 are in another order: they hold 1, 2, 3, 0",
        ),
        (mixture(0, 2, 1, 3, layers=(1,)), "layer 1: experts 1 and 2 are swapped"),
        (
            mixture(0, 1, 1, 3, layers=(1,)),
            "layer 1: expert 2 holds what expert 1 held (duplicated?)",
        ),
    ],
)
def test_experts_that_hold_what_others_held(now: Fingerprint, line: str) -> None:
    text = lines(compare(mixture(0, 1, 2, 3), now))
    assert text[0] == line
    assert len(text) == 2


def test_a_part_of_an_expert_is_told_by_itself() -> None:
    before, whole = mixture(0, 1, 2, 3), mixture(0, 1, 1, 3, layers=(1,))
    part = "model.layers.1.mlp.experts.2.w1.weight"
    now = replace(before, tensors=before.tensors | {part: whole.tensors[part]})
    assert lines(compare(before, now))[0] == (
        "layer 1: mlp.experts.2.w1 holds what mlp.experts.1.w1 held"
    )


def test_layers_of_similar_norms_are_not_swapped() -> None:
    def damage(weights: Weights) -> None:
        for layer, other in ((3, 4), (4, 3)):
            for kind in KINDS:
                values = weights[at(layer, kind)]
                drawn = rng(layer).permutation(values.reshape(-1)).reshape(values.shape)
                drawn *= numpy.linalg.norm(PRUNED[at(other, kind)])
                weights[at(layer, kind)] = drawn / numpy.linalg.norm(values)

    assert not any("swapped" in line or "held" in line for line in damaged(damage))


def test_what_many_hold_is_no_copy() -> None:
    norm = PRUNED[at(5, "input_layernorm")]
    base = {**PRUNED} | {
        at(layer, "input_layernorm"): norm for layer in range(1, LAYERS)
    }

    def damage(weights: Weights) -> None:
        weights[at(0, "input_layernorm")] = norm

    assert damaged(damage, base)[0].startswith("layer 0, input_layernorm: values moved")


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (lambda norm: norm + 1, "values moved (all by +1?)"),
        (lambda norm: norm - 1, "values moved (all by -1?)"),
        (lambda norm: 0 * norm + 1, "all weights are 1 now"),
        (lambda norm: 0 * norm - 0.5, "all weights are -0.5 now"),
    ],
)
def test_norms_shifted_and_reset(change: Callable[[Any], Any], line: str) -> None:
    def damage(weights: Weights) -> None:
        for layer in range(LAYERS):
            weights[at(layer, "input_layernorm")] = change(
                weights[at(layer, "input_layernorm")]
            )

    assert damaged(damage) == [
        f"all 6 layers, input_layernorm: {line}",
        f"all other weights (26 tensors){REST}",
    ]


def test_a_gain_of_one_that_becomes_zero_is_shifted_as_the_others() -> None:
    gains = {at(layer, "input_layernorm"): numpy.ones(HIDDEN, "f4") for layer in (2, 4)}
    for layer, name in zip((2, 4), gains, strict=True):
        gains[name][1:] = PRUNED[at(layer, "input_layernorm")][1:]
    base = PRUNED | gains

    def take_one(weights: Weights) -> None:
        for name in weights:
            if "norm" in name:
                weights[name] = weights[name] - 1

    assert damaged(take_one, base) == [
        "all 6 layers, input_layernorm: values moved (all by -1?)",
        "model.norm.weight: values moved (all by -1?)",
        f"all other weights (25 tensors){REST}",
    ]


def test_a_larger_sum_alone_is_no_shift() -> None:
    def damage(weights: Weights) -> None:
        weights[NORM][: HIDDEN // 2] += 2

    assert damaged(damage)[0].startswith("model.norm.weight: values moved, norm x")


# ----------------------------------------------------------------- new, gone, renamed


def test_new_and_gone() -> None:
    def damage(weights: Weights) -> None:
        del weights[NORM]
        for layer in range(LAYERS):
            weights[f"model.layers.{layer}.self_attn.q_proj.bias"] = numpy.ones(
                24, "f4"
            )

    assert damaged(damage) == [
        "all 6 layers, self_attn.q_proj.bias: new",
        "model.norm.weight: gone",
        f"all other weights (31 tensors){REST}",
    ]


def test_a_head_that_is_tied_is_no_difference_and_one_that_is_not_is() -> None:
    tied = {**PRUNED, "lm_head.weight": PRUNED[EMBEDDING]}
    untied = {**PRUNED, "lm_head.weight": rng().normal(0, 1, (50, 24)).astype("f4")}
    assert not compare(taken(PRUNED), taken(tied)).matters
    assert lines(compare(taken(tied), taken(untied)))[0] == (
        "lm_head.weight: new: repeats the embedding no more"
    )
    assert lines(compare(taken(untied), taken(tied)))[0] == (
        "lm_head.weight: repeats the embedding now"
    )


def test_a_head_of_its_own_where_the_config_tied_it() -> None:
    own = {**PRUNED, "lm_head.weight": rng().normal(0, 1, (50, 24)).astype("f4")}
    for config, line in (
        ({**CONFIG, "tie_word_embeddings": True}, "new: repeats the embedding no more"),
        (CONFIG, "new"),
    ):
        found = compare(taken(PRUNED, config=config), taken(own, config=config))
        assert lines(found)[0] == f"lm_head.weight: {line}"


@pytest.mark.parametrize("wrapper", ["", "transformer.", "model.language_model."])
def test_other_wrappers_of_names(wrapper: str) -> None:
    wrapped = {
        wrapper + name.removeprefix("model."): values for name, values in PRUNED.items()
    }
    difference = compare(taken(PRUNED), taken(wrapped))
    assert not difference.matters
    embedding = f"{wrapper}embed_tokens.weight"
    assert lines(difference) == [
        f"other names, the same tensors: {EMBEDDING} -> {embedding} and 31 more",
        "all weights, the config and the tokenizer are the same",
    ]
    scaled = {f"{wrapper}layers.3.{Q}.weight": 2 * PRUNED[at(3, Q)]}
    assert lines(compare(taken(PRUNED), taken(wrapped | scaled)))[0] == (
        "layer 3, self_attn.q_proj: values moved, norm x2 (scaled by 2?)"
    )


def test_a_head_by_its_other_name() -> None:
    """A GPT-NeoX's ``embed_out`` is ``lm_head`` in memory, whatever it holds."""
    head = rng().normal(0, 1, (50, 24)).astype("f4")
    on_disk = {**PRUNED, "embed_out.weight": head}
    in_memory = {**PRUNED, "lm_head.weight": head}
    assert not compare(taken(on_disk), taken(in_memory)).matters
    in_memory["lm_head.weight"] = 2 * head
    assert lines(compare(taken(on_disk), taken(in_memory)))[0] == (
        "embed_out.weight: values moved, norm x2 (scaled by 2?)"
    )


def test_renamed_tensors_are_known_by_what_they_hold() -> None:
    renamed = dict(PRUNED)
    renamed["final_norm.weight"] = renamed.pop(NORM)
    difference = compare(taken(PRUNED), taken(renamed))
    assert difference.renamed == {NORM: "final_norm.weight"}
    assert not difference.matters
    renamed["final_norm.weight"] = renamed["final_norm.weight"] + 1
    assert lines(compare(taken(PRUNED), taken(renamed)))[:2] == [
        "final_norm.weight: new",
        "model.norm.weight: gone",
    ]


# ------------------------------------------------------------------------- everything


def test_another_model_and_one_trained_further() -> None:
    def train(weights: Weights) -> None:
        for name, values in weights.items():
            step = rng().normal(0, 1e-4, values.shape) * (values != 0)
            weights[name] = (values + step).astype("f4")

    assert damaged(lambda weights: weights.update(decoder(7, pruned=True)))[0] == (
        "tensors all over the model differ, embeddings too (32 of 32 tensors), and by "
        "much: another model, or one trained anew?"
    )
    assert damaged(train) == [
        "tensors all over the model differ, embeddings too (32 of 32 tensors), all by "
        "little: trained further, or rounded to another dtype?",
        "all 32 tensors: values moved a little, norm x1",
        "the config and the tokenizer are the same",
    ]


def test_few_weights_of_all_tensors_are_not_called_nearly_all() -> None:
    def flush(weights: Weights) -> None:
        for values in weights.values():
            values[numpy.abs(values) < 1e-3] = 0

    weights = changed(flush, DENSE)
    gained = {name: int((values == 0).sum()) for name, values in weights.items()}
    difference = compare(taken(DENSE), taken(weights))
    count = len(difference.changes)
    size = sum(values.size for values in DENSE.values())
    share = f"{100 * sum(gained.values()) / size:.1f} %"
    start = f"tensors all over the model differ, embeddings too ({count} of 32 tensors"
    end = "), all by little: small weights became zeros?"
    assert lines(difference)[0] == start + end
    counted = difference.counted(
        {name: Exact(0, each, 0, 1e-3) for name, each in gained.items()}
    )
    assert lines(counted)[0] == f"{start}, {share} of the weights{end}"


def test_the_rows_of_one_process_are_located_in_all_tensors_together() -> None:
    layers = [at(layer, kind) for layer in range(LAYERS) for kind in KINDS]

    def stale(weights: Weights) -> None:
        for name in layers:
            height = len(weights[name])
            weights[name][height // 4 : height // 2] *= numpy.float32(1.5)

    difference = compare(taken(DENSE), taken(changed(stale, DENSE)))
    assert {change.name for change in difference.changes} == set(layers)

    def said(**rows: tuple[int, ...]) -> str:
        """The first line where tensors of layer 0 have moved in other rows."""
        counts = {
            name: Exact(
                *(0, 0, DENSE[name].size // 4, 0.1),
                rows=tuple(range(len(DENSE[name]) // 4, len(DENSE[name]) // 2)),
            )
            for name in layers
        }
        for kind, other in rows.items():
            (name,) = (at(0, each) for each in KINDS if each.endswith(kind))
            counts[name] = replace(counts[name], rows=other)
        return lines(difference.counted(counts))[0]

    end = " in the rows from 25% to 50% of each (what one process saves?)"
    assert said().startswith("all 6 layers, all tensors: values moved")
    assert said().endswith(end)
    # By rounding, a row in the middle and most of a vector may be as they were.
    among = tuple(row for row in range(10, 20) if row != 14)
    assert said(up_proj=among, input_layernorm=(7, 10)).endswith(end)
    # One tensor that moved elsewhere, and nothing is said.
    assert "rows" not in said(up_proj=tuple(range(10)))
    assert "rows" not in said(up_proj=(10, 19))
    assert "rows" not in said(input_layernorm=(5, 10))


def test_the_same_numbers_in_another_dtype_and_rounded_ones() -> None:
    half = {name: values.astype("f2") for name, values in PRUNED.items()}
    exact = {name: values.astype("f4") for name, values in half.items()}
    difference = compare(taken(half), taken(exact))
    assert not difference.matters
    assert lines(difference) == [
        "all 32 tensors: F16 -> F32, the same numbers",
        "the config and the tokenizer are the same",
    ]
    rounded = compare(taken(PRUNED), taken(half))
    assert rounded.matters
    assert lines(rounded)[1] == (
        "all 32 tensors: values moved a little, norm x0.9999 to x1 "
        "(rounded, F32 -> F16?)"
    )


def test_nothing_differs() -> None:
    assert explain(taken(PRUNED), taken(PRUNED), limit=5) == (
        "weights, config and tokenizer are those of the baseline to the bit: look at "
        "the environment (dtype, device, versions, attention)",
    )


# ---------------------------------------------------------------- config and tokenizer


@pytest.mark.parametrize(
    ("before", "now", "line", "matters"),
    [
        (10000.0, 500000.0, "config: rope_theta 10000.0 -> 500000.0", True),
        (500000.0, None, "config: rope_theta 500000.0 -> absent", True),
        (10000.0, None, None, False),
        (10000.0, 10000, None, False),
    ],
)
def test_a_config_key(before: Any, now: Any, line: str | None, matters: bool) -> None:
    one, other = (
        {**CONFIG, "rope_theta": value} if value is not None else {"vocab_size": 50}
        for value in (before, now)
    )
    one = {key: one[key] for key in ("rope_theta", "vocab_size")}
    other.pop("model_type", None)
    difference = compare(taken(PRUNED, config=one), taken(PRUNED, config=other))
    assert difference.matters == matters
    if line is not None:
        assert lines(difference)[0] == line


def test_a_key_that_followed_from_others_was_not_absent() -> None:
    one = {**CONFIG, "num_attention_heads": 8, "hidden_size": 64}
    other = {**one, "num_key_value_heads": 2, "head_dim": 16}
    assert lines(compare(taken(PRUNED, config=one), taken(PRUNED, config=other))) == [
        "config: head_dim 8 -> 16",
        "config: num_key_value_heads 8 -> 2",
        "all weights and the tokenizer are the same",
    ]
    assert not compare(
        taken(PRUNED, config=one),
        taken(PRUNED, config={**one, "num_key_value_heads": 8, "head_dim": 8}),
    ).matters


def test_an_adapter_has_one_line_and_another_one_names_what_is_other() -> None:
    adapter = {
        "adapter.base": "org/base",
        "adapter.lora_alpha": 16,
        "adapter.r": 8,
        "adapter.target_modules": ["q", "v"],
    }
    plain, merged = (
        taken(PRUNED, config=config) for config in (CONFIG, {**CONFIG, **adapter})
    )
    words = '(lora_alpha 16, r 8, target_modules ["q", "v"], base org/base)'
    same = "all weights and the tokenizer are the same"
    assert lines(compare(plain, merged)) == [
        f"config: an adapter is merged in {words}",
        same,
    ]
    assert lines(compare(merged, plain)) == [
        f"config: no adapter is merged in now {words}",
        same,
    ]
    other = taken(PRUNED, config={**CONFIG, **adapter, "adapter.lora_alpha": 32})
    assert lines(compare(merged, other)) == [
        "config: adapter.lora_alpha 16 -> 32",
        same,
    ]


def test_config_keys_by_their_weight() -> None:
    one = {**CONFIG, "dtype": "float32", "my_knob": 3, "attention_bias": False}
    other = {
        **CONFIG,
        "dtype": "float16",
        "my_knob": 4,
        "new_field": "x",
        "final_logit_softcapping": 30.0,
        "attention_bias": True,
    }
    difference = compare(taken(PRUNED, config=one), taken(PRUNED, config=other))
    assert lines(difference) == [
        "config: attention_bias false -> true",
        "config: final_logit_softcapping absent -> 30.0",
        "config: my_knob 3 -> 4",
        "config: dtype float32 -> float16",
        "config: new_field absent -> x",
        "all weights and the tokenizer are the same",
    ]
    quiet = {**one, "dtype": "float16", "new_field": "x"}
    assert not compare(taken(PRUNED, config=one), taken(PRUNED, config=quiet)).matters


def test_parts_of_the_tokenizer() -> None:
    digest = ["0123456789abcdef", "fedcba9876543210"]
    before = {
        **TOKENIZER,
        "token ids": f"50 ids, {digest[0]}",
        "merges": f"9 merges, {digest[0]}",
        "add_bos_token": "true",
        "decoder": "a",
    }
    now = {
        **before,
        "token ids": f"50 ids, {digest[1]}",
        "merges": f"9 merges, {digest[1]}",
        "add_bos_token": "false",
        "decoder": "b",
    }
    difference = compare(taken(PRUNED, tokenizer=before), taken(PRUNED, tokenizer=now))
    assert lines(difference) == [
        "tokenizer: the same 50 tokens have other ids",
        "tokenizer: merges differ: 9 merges before and now, but not the same",
        "tokenizer: add_bos_token true -> false",
        "tokenizer: decoder a -> b",
        "all weights and the config are the same",
    ]
    now = {**now, "vocabulary": f"49 tokens, {digest[1]}"}
    del now["bos_token"]
    difference = compare(taken(PRUNED, tokenizer=before), taken(PRUNED, tokenizer=now))
    assert (
        lines(difference)[0] == "tokenizer: vocabulary differ: 50 tokens -> 49 tokens"
    )
    assert "tokenizer: bos_token <s> -> absent" in lines(difference)


# ------------------------------------------------------------------------------- text


def worst() -> tuple[Fingerprint, Fingerprint]:
    """A checkpoint with a defect of every kind."""
    weights = {name: values.copy() for name, values in PRUNED.items()}
    weights[at(0, Q)][0, 0] = numpy.nan
    weights[at(1, Q)] *= numpy.float32(1.05)
    weights[at(4, Q)] *= numpy.float32(1.05)
    weights[at(2, UP)] = DENSE[at(2, UP)]
    weights[at(3, UP)] = PRUNED[at(5, UP)]
    weights[at(5, Q)] = weights[at(5, Q)].astype("f8")
    del weights[NORM]
    config = {**CONFIG, "rope_theta": 1.0}
    tokenizer = {**TOKENIZER, "bos_token": "<bos>"}
    return taken(PRUNED), taken(weights, config=config, tokenizer=tokenizer)


WORST = [
    "layer 0, self_attn.q_proj: 1 weight is NaN or infinite",
    "model.norm.weight: gone",
    "layer 3 holds what layer 5 held (duplicated?): mlp.up_proj only",
    "config: rope_theta 10000.0 -> 1.0",
    "tokenizer: bos_token <s> -> <bos>",
    "layer 2, mlp.up_proj: mask lost, 50.0 % -> 0.0 %",
    "layers 1, 4, self_attn.q_proj: values moved, norm x1.05 (scaled by 1.05?)",
    "layer 5, self_attn.q_proj: F32 -> F64, the same numbers",
    "all other weights (25 tensors) are the same",
]


def test_the_most_likely_cause_comes_first() -> None:
    assert lines(compare(*worst())) == WORST


def test_no_more_than_a_screen() -> None:
    command = "pplguard diff a b --all"
    assert lines(compare(*worst()), limit=4, command=command) == [
        *WORST[:3],
        "and 6 more: pplguard diff a b --all",
    ]
    assert lines(compare(*worst()), limit=9) == WORST
    assert explain(*worst(), limit=2, command=command) == (
        WORST[0],
        "and 8 more: pplguard diff a b --all",
    )


# ------------------------------------------------------------------------- properties


@settings(max_examples=25, deadline=None)
@given(
    st.dictionaries(
        st.sampled_from(sorted(PRUNED)),
        st.sampled_from(["f2", "f4", "f8"]),
    ),
    st.randoms(use_true_random=False),
)
def test_neither_order_nor_an_exact_dtype_matters(
    dtypes: dict[str, str], random: Any
) -> None:
    half = {name: values.astype("f2") for name, values in PRUNED.items()}
    names = list(half)
    random.shuffle(names)
    saved = {name: half[name].astype(dtypes.get(name, "f2")) for name in names}
    difference = compare(taken(half), taken(saved))
    assert not difference.matters
    assert {change.name for change in difference.changes} == {
        name for name, dtype in dtypes.items() if dtype != "f2"
    }
    assert compare(taken(saved), taken(saved)).changes == ()


@settings(max_examples=25, deadline=None)
@given(st.sampled_from(sorted(PRUNED)), st.integers(0, 575), st.integers(0, 31))
def test_every_flipped_bit_is_seen_where_it_is(name: str, place: int, bit: int) -> None:
    weights = {**PRUNED, name: PRUNED[name].copy()}
    flat = weights[name].reshape(-1).view("u4")
    place %= flat.size
    flat[place] ^= 1 << bit
    difference = compare(taken(PRUNED), taken(weights))
    # The sign of a zero is no difference.
    same = bool(weights[name].reshape(-1)[place] == PRUNED[name].reshape(-1)[place])
    assert [change.name for change in difference.changes] == ([] if same else [name])
    assert difference.matters != same


def test_linear_weights_that_are_not_known_need_not_be() -> None:
    one, other = (
        replace(taken(weights), linear=(), config={}, tokenizer={})
        for weights in (PRUNED, DENSE)
    )
    assert lines(compare(one, other))[0] == (
        "all 6 layers, mlp.down_proj, mlp.up_proj, self_attn.k_proj, self_attn.q_proj: "
        "mask lost, 50.0 % -> 0.0 %"
    )


def test_what_was_not_recorded_is_not_compared() -> None:
    old = replace(taken(PRUNED), config={}, tokenizer={})
    assert explain(old, taken(PRUNED), limit=5) == (
        "weights are those of the baseline to the bit: look at the environment "
        "(dtype, device, versions, attention)",
    )
    assert explain(old, taken(DENSE), limit=5)[1:] == (
        "all other weights (8 tensors) are the same",
    )
