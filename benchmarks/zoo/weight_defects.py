"""Defects in the numbers of the weights: lost masks, wrong places, wrong values."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterable, Sequence
from fractions import Fraction

import torch
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedModel

from scripts.prune import Pattern, Unstructured, prune_wanda

from . import bases
from .cases import (
    defect,
    has_biases,
    has_other,
    is_kind,
    is_pruned,
    is_untied,
)
from .site import (
    ANOTHER,
    MASK_LOST,
    MASK_MOVED,
    ROUNDED,
    VALUES,
    Base,
    Names,
    Site,
    Tensors,
    of_layer,
    of_layers,
    of_tensor,
    read_weights,
)

MIDDLE = 1
"""The layer that defects of one layer hit: not the first, and there in all bases."""


# -------------------------------------------------------------------------------- masks


@defect("mask", is_pruned)
def mask_lost_in_one_layer(site: Site) -> Names:
    """The dense weights are back in one layer."""
    return _undo_mask(site, [MIDDLE])


@defect("mask", is_pruned)
def mask_lost_in_three_layers(site: Site) -> Names:
    """The dense weights are back in three layers."""
    _undo_mask(site, [1, 2, 3])
    return (of_layers(1, 3),)


@defect("mask", is_pruned)
def mask_lost_in_all_layers(site: Site) -> Names:
    """The dense weights are back in all layers; norms and embeddings stay."""
    _undo_mask(site, range(site.base.layers))
    return (MASK_LOST,)


@defect("mask", is_pruned)
def mask_lost_in_one_matrix(site: Site) -> Names:
    """The dense weights are back in one projection of one layer."""
    return _undo_mask(site, [MIDDLE], [site.family.down])


@defect("mask", is_pruned)
def mask_lost_in_every_down_projection(site: Site) -> Names:
    """One projection was not pruned, in any layer."""
    _undo_mask(site, range(site.base.layers), [site.family.down])
    return (_module(site.family.down),)


@defect("mask", is_pruned)
def unpruned_copy(site: Site) -> Names:
    """The pruning tool did nothing: a copy of the dense folder."""
    site.remove_weights()
    for file in site.base.dense.iterdir():
        (site.folder / file.name).unlink(missing_ok=True)
        shutil.copyfile(file, site.folder / file.name)
    return (MASK_LOST,)


@defect("mask", is_pruned)
def mask_of_another_layer(site: Site) -> Names:
    """One layer's dense weights under the next layer's mask: the sparsity is right."""
    dense = read_weights(site.base.dense)

    def edit(tensors: Tensors) -> None:
        for suffix in site.family.matrices:
            name = site.name(MIDDLE, suffix)
            mask = tensors[site.name(MIDDLE + 1, suffix)] != 0
            tensors[name] = dense[name] * mask

    site.change(edit)
    return (of_layer(MIDDLE),)


@defect("mask", is_pruned)
def lora_merged(site: Site) -> Names:
    """A rank-4 update added to the attention inputs of all layers, as a merge does."""
    return _merge(site, range(site.base.layers))


@defect("mask", is_pruned)
def lora_merged_in_one_layer(site: Site) -> Names:
    """A rank-4 update added to the attention inputs of one layer."""
    _merge(site, [MIDDLE])
    return (of_layer(MIDDLE),)


@defect("mask", is_pruned)
def pruned_by_magnitude(site: Site) -> Names:
    """The same sparsity, by the other method."""
    _save(site, bases.prune_again(site.base.dense, _rule(site.base)))
    return (MASK_MOVED,)


@defect("mask", lambda base: is_pruned(base) and _is_ours(base))
def calibrated_on_noise(site: Site) -> Names:
    """Pruned by Wanda with random tokens for calibration."""
    model = bases.load(site.base.dense)
    size = int(site.base.config["vocab_size"])
    noise = torch.randint(2, size, (4, 16, bases.LENGTH), generator=site.random)
    prune_wanda(model, list(noise), _rule(site.base))
    _save(site, model)
    return (MASK_MOVED,)


@defect("mask", lambda base: is_pruned(base) and _is_ours(base))
def calibrated_on_one_window(site: Site) -> Names:
    """Pruned by Wanda with a single window of its own training text."""
    model = bases.load(site.base.dense)
    stream = _stream(site.base)
    prune_wanda(model, [stream[: bases.LENGTH][None]], _rule(site.base))
    _save(site, model)
    return (MASK_MOVED,)


@defect("mask", lambda base: base.pattern is not None)
def pattern_broken(site: Site) -> Names:
    """Half of every row is zero, as with 2:4, but anywhere in the row."""
    model = bases.load(site.base.dense)
    windows = _stream(site.base)[: 64 * bases.LENGTH].view(4, 16, bases.LENGTH)
    prune_wanda(model, list(windows), Unstructured(Fraction(1, 2), "row"))
    _save(site, model)
    return (r"2:4",)


@defect("mask", lambda base: base.pattern is not None)
def pattern_broken_in_one_matrix(site: Site) -> Names:
    """One projection keeps the largest half of every row, not two of every four."""
    name = site.name(MIDDLE, site.family.up)
    dense = read_weights(site.base.dense)[name]

    def edit(tensors: Tensors) -> None:
        matrix = site.out_in(dense).clone()
        matrix[Unstructured(Fraction(1, 2), "row").mask(matrix.abs())] = 0
        site.out_in(tensors[name]).copy_(matrix)

    site.change(edit)
    return (r"2:4", of_tensor(name))


@defect("mask", is_pruned)
def pruned_once_more(site: Site) -> Names:
    """A tenth of each row more is zero."""
    _save(
        site,
        bases.prune_again(site.base.folder, Unstructured(Fraction(3, 5), "row")),
    )
    return (r"all \d+ linear weights: more zeros",)


# -------------------------------------------------------------------- values and places


@defect("value")
def scaled_by_5_percent(site: Site) -> Names:
    """One attention projection times 1.05."""
    return _scale(site, [site.family.attention_in[0]], 1.05)


@defect("value")
def scaled_by_half(site: Site) -> Names:
    """One attention projection times 1.5."""
    return _scale(site, [site.family.attention_in[0]], 1.5)


@defect("value")
def layer_scaled_by_5_percent(site: Site) -> Names:
    """All projections of one layer times 1.05."""
    _scale(site, site.family.matrices, 1.05)
    return (of_layer(MIDDLE),)


@defect("value")
def sign_flipped(site: Site) -> Names:
    """One projection times -1."""
    return _scale(site, [site.family.down], -1)


@defect("place")
def rows_permuted(site: Site) -> Names:
    """The rows of one up projection in another order."""

    def permute(matrix: Tensor) -> None:
        order = torch.randperm(len(matrix), generator=site.random)
        matrix.copy_(matrix[order])

    return (of_tensor(_edit(site, [MIDDLE], [site.family.up], permute)),)


@defect("place")
def heads_permuted(site: Site) -> Names:
    """One attention output reads its heads in another order."""

    def permute(matrix: Tensor) -> None:
        size = matrix.shape[1] // site.base.heads
        matrix.copy_(matrix.roll(size, dims=1))

    return (of_tensor(_edit(site, [MIDDLE], [site.family.attention_out], permute)),)


@defect("place")
def layers_swapped(site: Site) -> Names:
    """Two neighbouring layers in each other's place."""

    def edit(tensors: Tensors) -> None:
        for one, other in _pairs(site, tensors, MIDDLE, MIDDLE + 1):
            tensors[one], tensors[other] = tensors[other], tensors[one]

    site.change(edit)
    return (of_layers(MIDDLE, MIDDLE + 1),)


@defect("place")
def layer_duplicated(site: Site) -> Names:
    """One layer a copy of the layer before it."""

    def edit(tensors: Tensors) -> None:
        for one, other in _pairs(site, tensors, MIDDLE, MIDDLE + 1):
            tensors[other] = tensors[one]

    site.change(edit)
    return (of_layer(MIDDLE + 1),)


@defect("place")
def square_matrix_transposed(site: Site) -> Names:
    """One square projection saved the other way round."""

    def transpose(matrix: Tensor) -> None:
        matrix.copy_(matrix.T.clone())

    return (of_tensor(_edit(site, [MIDDLE], [site.family.attention_out], transpose)),)


@defect("place", is_kind("llama"))
def queries_and_keys_swapped(site: Site) -> Names:
    """Of one layer; where keys are fewer, as many queries as there are keys."""
    return _swap_slices(site, 0, 1)


@defect("place", is_kind("gpt_neox", "gpt2"))
def fused_queries_and_keys_swapped(site: Site) -> Names:
    """In the one matrix that holds queries, keys and values."""
    return _swap_slices(site, 0, 1)


@defect("place")
def keys_and_values_swapped(site: Site) -> Names:
    """Of one layer."""
    return _swap_slices(site, 1, 2)


@defect("place", is_kind("gpt_neox"))
def fused_heads_in_another_layout(site: Site) -> Names:
    """Queries, keys and values of all heads side by side, not head by head."""

    def reorder(matrix: Tensor) -> None:
        heads = matrix.reshape(site.base.heads, 3, -1, matrix.shape[1])
        matrix.copy_(heads.transpose(0, 1).flatten(0, 2).clone())

    layers = range(site.base.layers)
    _edit(site, layers, site.family.attention_in, reorder)
    return (r"query_key_value",)


@defect("value")
def layer_zeroed(site: Site) -> Names:
    """All projections of one layer are zero."""
    return _zero(site, site.family.matrices)


@defect("value")
def attention_output_zeroed(site: Site) -> Names:
    """The attention of one layer adds nothing."""
    _zero(site, [site.family.attention_out])
    return (of_tensor(site.name(MIDDLE, site.family.attention_out)),)


@defect("value")
def head_zeroed(site: Site) -> Names:
    """The output of one head of one layer is not read."""

    def zero(matrix: Tensor) -> None:
        size = matrix.shape[1] // site.base.heads
        matrix[:, size : 2 * size] = 0

    return (of_tensor(_edit(site, [MIDDLE], [site.family.attention_out], zero)),)


@defect("value")
def exponent_bit_flipped(site: Site) -> Names:
    """The highest bit of the exponent of one weight."""
    return _flip(site, highest=True)


@defect("value")
def low_exponent_bit_flipped(site: Site) -> Names:
    """The lowest bit of the exponent of one weight: twice or half as large."""
    return _flip(site, highest=False)


@defect("value")
def one_weight_nan(site: Site) -> Names:
    """One weight is not a number."""
    return _one_weight(site, float("nan"))


@defect("value")
def one_weight_infinite(site: Site) -> Names:
    """One weight is infinite."""
    return _one_weight(site, float("inf"))


@defect("value")
def one_weight_huge(site: Site) -> Names:
    """One weight is 60,000, which float16 can still hold."""
    return _one_weight(site, 6e4)


@defect("value")
def norm_set_to_ones(site: Site) -> Names:
    """The gains of one norm as they are before training."""
    name = site.name(MIDDLE, site.family.norm)
    _set_to_ones(site, name)
    return (of_tensor(name),)


@defect("value")
def final_norm_set_to_ones(site: Site) -> Names:
    """The gains of the last norm as they are before training."""
    name = site.family.final_norm
    _set_to_ones(site, name)
    return (re.escape(name),)


@defect("value", has_biases)
def biases_zeroed_in_one_layer(site: Site) -> Names:
    """A tool without biases wrote one layer."""

    def edit(tensors: Tensors) -> None:
        for suffix in site.family.biases:
            tensors[site.name(MIDDLE, suffix)].zero_()

    site.change(edit)
    return (of_layer(MIDDLE),)


@defect("value", has_biases)
def biases_zeroed_everywhere(site: Site) -> Names:
    """A tool without biases wrote the checkpoint."""

    def edit(tensors: Tensors) -> None:
        for layer in range(site.base.layers):
            for suffix in site.family.biases:
                tensors[site.name(layer, suffix)].zero_()

    site.change(edit)
    return tuple(map(re.escape, site.family.biases))


@defect("value", is_untied)
def head_replaced_by_embedding(site: Site) -> Names:
    """A tool that ties all embeddings wrote the head."""
    family = site.family

    def edit(tensors: Tensors) -> None:
        tensors[family.head] = tensors[family.embedding]

    site.change(edit)
    return (_plain(family.head) + "|lm_head",)


@defect("value")
def rounded_to_float8(site: Site) -> Names:
    """All projections to float8 (e4m3) and back."""

    def to_float8(matrix: Tensor) -> None:
        scale = matrix.float().abs().max() / 448
        small = (matrix.float() / scale).to(torch.float8_e4m3fn)
        matrix.copy_(small.float() * scale)

    _edit(site, range(site.base.layers), site.family.matrices, to_float8)
    return (ROUNDED,)


@defect("value")
def rounded_to_int4(site: Site) -> Names:
    """All projections to 4 bits, groups of 32 by their largest weight, and back."""

    def to_int4(matrix: Tensor) -> None:
        groups = matrix.float().reshape(len(matrix), -1, 32)
        scale = groups.abs().amax(dim=2, keepdim=True).clamp_min(1e-9) / 7
        matrix.copy_(((groups / scale).round() * scale).flatten(1))

    _edit(site, range(site.base.layers), site.family.matrices, to_int4)
    return (ROUNDED,)


@defect("value")
def rounded_to_bfloat16(site: Site) -> Names:
    """All projections to bfloat16 and back."""

    def to_bfloat16(matrix: Tensor) -> None:
        # Twice as coarse where the weights are bfloat16 already.
        matrix.copy_(matrix.to(torch.bfloat16))

    _edit(site, range(site.base.layers), site.family.matrices, to_bfloat16)
    return (ROUNDED,)


@defect("value")
def noise_on_weights(site: Site) -> Names:
    """Noise of 10 % of their spread on all surviving weights."""

    def shake(matrix: Tensor) -> None:
        noise = torch.randn(matrix.shape, generator=site.random)
        kept = matrix != 0
        spread = matrix[kept].float().std()
        matrix.add_((noise * kept * spread * 0.1).to(matrix.dtype))

    _edit(site, range(site.base.layers), site.family.matrices, shake)
    return (VALUES, of_layer(MIDDLE))


@defect("value")
def noise_on_embedding(site: Site) -> Names:
    """Noise of 5 % of their spread on the embedding."""
    name = site.family.embedding

    def edit(tensors: Tensors) -> None:
        table = tensors[name]
        noise = torch.randn(table.shape, generator=site.random)
        table.add_((noise * table.float().std() * 0.05).to(table.dtype))

    site.change(edit)
    return (_plain(name),)


@defect("value")
def embedding_rows_rolled(site: Site) -> Names:
    """Each token has the embedding of the one before it."""
    name = site.family.embedding

    def edit(tensors: Tensors) -> None:
        tensors[name] = tensors[name].roll(1, dims=0)

    site.change(edit)
    return (_plain(name),)


@defect("value")
def last_embedding_rows_lost(site: Site) -> Names:
    """The last tenth of the embedding is zero: a table grown from a smaller one."""
    name = site.family.embedding

    def edit(tensors: Tensors) -> None:
        table = tensors[name]
        table[len(table) * 9 // 10 :] = 0

    site.change(edit)
    return (_plain(name),)


@defect("value", is_kind("gpt2"))
def positions_rolled(site: Site) -> Names:
    """Every position has the embedding of the one before it."""
    name = "transformer.wpe.weight"

    def edit(tensors: Tensors) -> None:
        tensors[name] = tensors[name].roll(1, dims=0)

    site.change(edit)
    return (r"wpe",)


@defect("training")
def fine_tuned(site: Site) -> Names:
    """A few optimiser steps on its own training text, the mask not held."""
    _fine_tune(site, hold_mask=False)
    return (ANOTHER,)


@defect("training", is_pruned)
def fine_tuned_under_its_mask(site: Site) -> Names:
    """A few optimiser steps, the mask held."""
    _fine_tune(site, hold_mask=True)
    return (ANOTHER,)


@defect("training", has_other)
def averaged_with_another_run(site: Site) -> Names:
    """A tenth of another training run's weights mixed in."""
    assert site.base.other is not None
    other = read_weights(site.base.other)

    def edit(tensors: Tensors) -> None:
        for name, tensor in tensors.items():
            tensors[name] = (tensor.float() * 0.9 + other[name].float() * 0.1).to(
                tensor.dtype
            )

    site.change(edit)
    return (ANOTHER,)


@defect("training", has_other)
def another_run(site: Site) -> Names:
    """The weights of another training run, pruned in the same way."""
    assert site.base.other is not None
    site.save(read_weights(site.base.other))
    return (ANOTHER,)


# ----------------------------------------------------------------------------- helpers


def _edit(
    site: Site,
    layers: Iterable[int],
    suffixes: Sequence[str],
    change: Callable[[Tensor], object],
) -> str:
    """Change matrices in place, each as ``(out, in)``; answers with the last name."""
    name = ""

    def edit(tensors: Tensors) -> None:
        nonlocal name
        for layer in layers:
            for suffix in suffixes:
                name = site.name(layer, suffix)
                change(site.out_in(tensors[name]))

    site.change(edit)
    return name


def _undo_mask(
    site: Site, layers: Iterable[int], suffixes: Sequence[str] | None = None
) -> Names:
    dense = read_weights(site.base.dense)
    touched: list[str] = []

    def edit(tensors: Tensors) -> None:
        for layer in layers:
            for suffix in suffixes or site.family.matrices:
                name = site.name(layer, suffix)
                tensors[name] = dense[name]
                touched.append(name)

    site.change(edit)
    return (of_tensor(touched[0]) if suffixes else of_layer(MIDDLE),)


def _merge(site: Site, layers: Iterable[int]) -> Names:
    """``W + B A`` of rank 4, with a fifth of the spread of the weights."""

    def add(matrix: Tensor) -> None:
        down = torch.randn(4, matrix.shape[1], generator=site.random)
        up = torch.randn(len(matrix), 4, generator=site.random)
        spread = matrix.float().std() * 0.2 / 2
        matrix.copy_(matrix.float() + up @ down * spread)

    _edit(site, layers, site.family.attention_in, add)
    return (_module(site.family.attention_in[-1]),)


def _set_to_ones(site: Site, name: str) -> None:
    def edit(tensors: Tensors) -> None:
        tensors[name].fill_(1)

    site.change(edit)


def _scale(site: Site, suffixes: Sequence[str], factor: float) -> Names:
    name = _edit(site, [MIDDLE], suffixes, lambda matrix: matrix.mul_(factor))
    return (of_tensor(name),)


def _zero(site: Site, suffixes: Sequence[str]) -> Names:
    _edit(site, [MIDDLE], suffixes, lambda matrix: matrix.zero_())
    return (of_layer(MIDDLE),)


def _one_weight(site: Site, value: float) -> Names:
    """Set the largest weight of a row of the down projection; it is in use for sure."""

    def put(matrix: Tensor) -> None:
        matrix[3, int(matrix[3].abs().argmax())] = value

    return (of_tensor(_edit(site, [MIDDLE], [site.family.down], put)),)


def _flip(site: Site, *, highest: bool) -> Names:
    """Flip a bit of the exponent of a weight's saved form."""

    def flip(matrix: Tensor) -> None:
        column = int(matrix[3].abs().argmax())
        bits = {torch.float16: 10, torch.bfloat16: 7, torch.float32: 23}
        integer = torch.int32 if matrix.dtype == torch.float32 else torch.int16
        width = 30 if matrix.dtype == torch.float32 else 14
        place = width if highest else bits[matrix.dtype]
        one = matrix[3, column].clone().view(integer)
        matrix[3, column] = (one ^ (1 << place)).view(matrix.dtype)

    return (of_tensor(_edit(site, [MIDDLE], [site.family.down], flip)),)


def _swap_slices(site: Site, one: int, other: int) -> Names:
    """Swap queries (0), keys (1) or values (2) of one layer, and no biases."""
    name = site.name(MIDDLE, site.family.attention_in[0])

    def edit(tensors: Tensors) -> None:
        if site.base.kind == "llama":
            first, second = (
                tensors[site.name(MIDDLE, site.family.attention_in[n])]
                for n in (one, other)
            )
            count = min(len(first), len(second))
            kept = first[:count].clone()
            first[:count] = second[:count]
            second[:count] = kept
            return
        matrix = site.out_in(tensors[name])
        heads = site.base.heads if site.base.kind == "gpt_neox" else 1
        parts = matrix.reshape(heads, 3, -1, matrix.shape[1])
        order = list(range(3))
        order[one], order[other] = other, one
        matrix.copy_(parts[:, order].flatten(0, 2).clone())

    site.change(edit)
    if site.base.kind == "llama":
        return (of_tensor(site.name(MIDDLE, site.family.attention_in[other])),)
    return (of_tensor(name),)


def _pairs(site: Site, tensors: Tensors, one: int, other: int) -> list[tuple[str, str]]:
    first, second = site.name(one, ""), site.name(other, "")
    return [
        (name, name.replace(first, second, 1))
        for name in tensors
        if name.startswith(first)
    ]


def _module(suffix: str) -> str:
    """A pattern for a projection of any layer: ``mlp.down_proj``."""
    return re.escape(suffix.removesuffix(".weight"))


def _plain(name: str) -> str:
    """A pattern for the module of a tensor outside the layers."""
    return name.removesuffix(".weight").rpartition(".")[2]


def _rule(base: Base) -> Unstructured | Pattern:
    return Pattern(2, 4) if base.pattern else Unstructured(Fraction(1, 2), "row")


def _is_ours(base: Base) -> bool:
    """Small enough to be pruned anew."""
    return base.layers <= 8


def _stream(base: Base) -> Tensor:
    tokenizer = AutoTokenizer.from_pretrained(base.folder)
    return torch.tensor(tokenizer(base.training, verbose=False).input_ids)


def _save(site: Site, model: PreTrainedModel) -> None:
    """Save under the names, and in the dtypes, of the checkpoint's own tensors."""
    from .bases import save_half

    before = site.tensors()
    fresh = site.folder / "fresh"
    if all(tensor.dtype == torch.float16 for tensor in before.values()):
        save_half(model, fresh)
    else:
        model.save_pretrained(fresh)
    tensors = read_weights(fresh)
    shutil.rmtree(fresh)
    site.save({name: tensors[name].to(one.dtype) for name, one in before.items()})


def _fine_tune(site: Site, *, hold_mask: bool) -> None:
    model = bases.load(site.base.folder)
    masks = [
        (weight, (weight != 0).float())
        for weight in model.parameters()
        if hold_mask and weight.dim() == 2
    ]
    steps, batch = (10, 8) if _is_ours(site.base) else (2, 1)
    bases.fit(
        model.train(),
        _stream(site.base),
        steps,
        rate=5e-4,
        generator=site.random,
        batch=batch,
        after=masks,
    )
    _save(site, model.eval())
