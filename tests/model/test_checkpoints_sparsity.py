"""Sparsity of saved files equals what the Wanda code counts in the loaded model."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from pytest_pplguard.checkpoints import Located, load, locate, measure_sparsity

from .tiny import ARCHITECTURES, build_model, build_tokenizer, save, save_tokenizer


def decoder_layers(model: nn.Module) -> nn.ModuleList:
    lists = [m for m in model.modules() if isinstance(m, nn.ModuleList) and len(m) == 2]
    return lists[0]


def wanda_counts(model: nn.Module) -> tuple[int, int]:
    """``check_sparsity`` of Wanda's lib/prune.py: zeros and weights.

    Transformers 5 fuses a mixture's experts, and its router is no ``nn.Linear`` any
    more; where Wanda was written all of them were, so they are added here.
    """
    count = total_params = 0
    for layer in decoder_layers(model):
        for name, module in layer.named_modules():
            weights = [module.weight] if type(module) is nn.Linear else []
            if name.endswith("experts"):
                weights = [p for _, p in module.named_parameters(recurse=False)]
            if name.endswith("mlp.gate"):
                weights = [module.weight]
            for weight in weights:
                count += int((weight.data == 0).sum().item())
                total_params += weight.numel()
    return count, total_params


@torch.no_grad()
def prune(model: nn.Module) -> None:
    """Zeros everywhere (also where they do not count), half of them negative."""
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        draw = torch.rand(parameter.shape, generator=generator)
        parameter[draw < 0.4] = 0.0
        parameter[draw < 0.2] = -0.0


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_equals_wanda(tmp_path: Path, arch: str, dtype: str) -> None:
    model = build_model(arch).to(getattr(torch, dtype))
    prune(model)
    save(model, tmp_path / "whole")
    save(model, tmp_path / "shards", "20KB")
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 1
    for name in ("whole", "shards"):
        save_tokenizer(build_tokenizer(), tmp_path / name)
    located = locate(str(tmp_path / "whole"))
    loaded = load(located, device="cpu", dtype=dtype).model
    zeros, total = wanda_counts(loaded)
    measured = measure_sparsity(located)
    assert (measured.zeros, measured.total) == (zeros, total)
    assert measured.fraction == zeros / total
    assert 0.35 < measured.fraction < 0.45
    assert measure_sparsity(Located("m", tmp_path / "shards")) == measured
