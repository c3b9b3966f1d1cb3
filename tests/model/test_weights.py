"""Patterns and survivors of real models, against masks that torch computes here."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel

from pytest_pplguard.checkpoints import (
    Located,
    Zeros,
    compare_with_dense,
    fingerprint,
    load,
    locate,
    measure_sparsity,
)
from pytest_pplguard.errors import CheckpointError

from .tiny import (
    HIDDEN,
    LAYERS,
    build_model,
    build_tokenizer,
    save,
    save_tiny,
    save_tokenizer,
)

KEEP, SIZE = 2, 4


def prune_groups(weight: Tensor, score: Tensor, keep: int, size: int) -> Tensor:
    """Zero all but the ``keep`` highest of each ``size`` weights of a row of inputs."""
    groups = score.reshape(*score.shape[:-1], -1, size)
    rank = groups.argsort(-1).argsort(-1)
    mask = (rank >= size - keep).reshape(weight.shape)
    return weight * mask


def wanda(model: Any, keep: int, size: int) -> None:
    """Wanda (Sun et al. 2023): |W| times the norm of its input feature, row by row.

    Each layer's input norms are drawn: any norms give a mask of the pattern.
    """
    generator = torch.Generator().manual_seed(3)
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and ".layers." in f".{name}":
            norms = torch.rand(module.in_features, generator=generator) + 0.1
            score = module.weight.data.abs() * norms
            module.weight.data = prune_groups(module.weight.data, score, keep, size)


def broken_in(weight: Tensor, keep: int, size: int) -> int:
    """Groups along the last dimension with more than ``keep`` weights."""
    return int(((weight.reshape(-1, size) != 0).sum(-1) > keep).sum())


def sums(tensors: dict[str, Zeros]) -> Zeros:
    return Zeros(*map(sum, zip(*tensors.values(), strict=True)))


@pytest.mark.parametrize(("keep", "size"), [(2, 4), (1, 4), (4, 8), (1, 2)])
def test_wanda_patterns_and_survivors(tmp_path: Path, keep: int, size: int) -> None:
    dense = save_tiny(tmp_path / "dense", "llama", dtype="bfloat16")
    model = load(locate(str(dense)), device="cpu", dtype="bfloat16").model
    wanda(model, keep, size)
    save(model, tmp_path / "pruned", "30KB")
    save_tokenizer(build_tokenizer(), tmp_path / "pruned")
    assert len(list((tmp_path / "pruned").glob("*.safetensors"))) > 1
    pruned = locate(str(tmp_path / "pruned"))
    measured = sums(measure_sparsity(pruned, pattern=(keep, size)).tensors)
    assert measured.groups == measured.total // size
    assert measured.broken == 0
    assert measured.share >= 1 - keep / size
    found = compare_with_dense(pruned, locate(str(dense)))
    assert (found.moved, found.strange) == ({}, {})
    assert len(found.linear) == 7 * LAYERS
    # Stricter than it was pruned: what torch counts.
    strict = measure_sparsity(pruned, pattern=(keep, 2 * size)).tensors
    state = model.state_dict()
    assert {name: zeros.broken for name, zeros in strict.items()} == {
        name: broken_in(state[name], keep, 2 * size) for name in found.linear
    }


def test_survivors_that_were_tuned(tmp_path: Path) -> None:
    dense = save_tiny(tmp_path / "dense", "qwen3")
    model = load(locate(str(dense)), device="cpu", dtype="float32").model
    wanda(model, KEEP, SIZE)
    weight = model.model.layers[1].mlp.up_proj.weight.data
    places = weight.nonzero()[:5]
    weight[places[:, 0], places[:, 1]] *= 1.25
    model.model.norm.weight.data[3] += 1
    save(model, tmp_path / "pruned")
    found = compare_with_dense(Located("p", tmp_path / "pruned"), locate(str(dense)))
    assert found.moved == {
        "model.layers.1.mlp.up_proj.weight": (5, int((weight != 0).sum())),
        "model.norm.weight": (1, HIDDEN),
    }


def test_input_dimension_of_gpt2(tmp_path: Path) -> None:
    """``Conv1D`` holds [input x output]: a group runs down a column."""
    torch.manual_seed(0)
    config = GPT2Config(n_embd=16, n_layer=2, n_head=2, n_positions=32, vocab_size=64)
    model = GPT2LMHeadModel(config)
    names = ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")
    for block in model.transformer.h:
        for name in names:
            weight = block.get_submodule(name).weight.data
            columns = weight.T.contiguous()
            weight[:] = prune_groups(columns, columns.abs(), KEEP, SIZE).T
    save(model, tmp_path / "gpt2")
    located = Located("gpt2", tmp_path / "gpt2")
    tensors = measure_sparsity(located, pattern=(KEEP, SIZE)).tensors
    assert len(tensors) == 2 * len(names)
    assert sums(tensors).broken == 0
    # Along the rows, which is the output, most groups would be broken.
    state = load_file(tmp_path / "gpt2" / "model.safetensors")
    assert sum(broken_in(state[name], KEEP, SIZE) for name in tensors) > 100


@pytest.mark.parametrize("order", ["output first", "input first"])
def test_experts_in_one_tensor(tmp_path: Path, order: str) -> None:
    """Models differ in the order; the sizes tell which dimension is the input."""
    wide = 3 * HIDDEN
    generator = torch.Generator().manual_seed(1)
    up = torch.randn(4, 2 * wide, HIDDEN, generator=generator)
    down = torch.randn(4, HIDDEN, wide, generator=generator)
    tensors = {
        f"model.layers.0.mlp.experts.{name}": prune_groups(
            weight, weight.abs(), KEEP, SIZE
        )
        for name, weight in (("gate_up_proj", up), ("down_proj", down))
    }
    if order == "input first":
        tensors = {n: w.transpose(1, 2).contiguous() for n, w in tensors.items()}
    config = {"num_hidden_layers": 1, "hidden_size": HIDDEN}
    (tmp_path / "config.json").write_text(json.dumps(config))
    save_file(tensors, tmp_path / "model.safetensors")
    located = Located("moe", tmp_path)
    found = measure_sparsity(located, pattern=(KEEP, SIZE)).tensors
    assert {name: (zeros.groups, zeros.broken) for name, zeros in found.items()} == {
        name: (weight.numel() // SIZE, 0) for name, weight in tensors.items()
    }


def test_experts_of_mixtral(tmp_path: Path) -> None:
    model = build_model("mixtral")
    for layer in model.model.layers:
        for weight in (layer.mlp.experts.gate_up_proj, layer.mlp.experts.down_proj):
            weight.data = prune_groups(weight.data, weight.data.abs(), KEEP, SIZE)
        layer.mlp.gate.weight.data = prune_groups(
            layer.mlp.gate.weight.data, layer.mlp.gate.weight.data.abs(), KEEP, SIZE
        )
    wanda(model, KEEP, SIZE)
    save(model, tmp_path)
    zeros = sums(measure_sparsity(Located("m", tmp_path), pattern=(KEEP, SIZE)).tensors)
    assert (zeros.broken, zeros.share) == (0, 0.5)


def test_a_width_that_does_not_divide(tmp_path: Path) -> None:
    save_tiny(tmp_path / "m", "llama", intermediate_size=66)
    with pytest.raises(CheckpointError) as caught:
        measure_sparsity(Located("m", tmp_path / "m"), pattern=(KEEP, SIZE))
    assert str(caught.value) == (
        "m: model.layers.0.mlp.down_proj.weight is [32, 66]: 4 does not divide its "
        "input dimension of 66, so it has no pattern 2:4; gate the fraction instead"
    )


def test_a_weight_that_two_layers_share_counts_as_the_model_uses_it(
    tmp_path: Path,
) -> None:
    """Once in memory, and in two layers of every forward pass; as Wanda counts it."""
    model = build_model("llama", tie_word_embeddings=True)
    first, second = model.model.layers
    second.mlp.up_proj.weight = first.mlp.up_proj.weight
    first.mlp.up_proj.weight.data[:, ::2] = 0.0
    (tmp_path / "config.json").write_text(json.dumps({"num_hidden_layers": LAYERS}))
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    located = Located("m", tmp_path)
    measured = measure_sparsity(located, model=lambda: model, allow_pickle=True)
    linear = [
        module.weight
        for layer in model.model.layers
        for module in layer.modules()
        if isinstance(module, nn.Linear)
    ]
    assert measured.zeros == sum(int((weight == 0).sum()) for weight in linear)
    assert measured.zeros == 2 * HIDDEN * HIDDEN
    assert measured.total == sum(weight.numel() for weight in linear)
    # The tied head is the embedding, and no linear weight of a decoder layer.
    taken = fingerprint(located, model=lambda: model, allow_pickle=True)
    assert "lm_head.weight" not in taken.weights
    assert set(taken.linear) == set(measured.tensors)
