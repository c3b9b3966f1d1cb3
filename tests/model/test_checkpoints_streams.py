"""Fingerprints of files, of models in memory and of torch's own numbers are one."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy
import pytest
import torch
from safetensors.torch import save_file

from pytest_pplguard.checkpoints import Located, fingerprint, tensor_facts
from pytest_pplguard.checkpoints.numbers import as_float32
from pytest_pplguard.checkpoints.streams import model_streams, stored_streams
from pytest_pplguard.values import TensorFacts
from tests.unit.test_checkpoints_streams import facts_of

from .tiny import ARCHITECTURES, build_model, save

UP = "model.layers.0.mlp.up_proj.weight"
TIED = ("gemma2", "cohere", "opt")
EIGHT_BITS = {
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E4M3FNUZ": torch.float8_e4m3fnuz,
    "F8_E5M2FNUZ": torch.float8_e5m2fnuz,
}


@pytest.mark.parametrize("name", EIGHT_BITS)
def test_all_numbers_of_eight_bits_are_torchs(name: str) -> None:
    words = numpy.arange(256, dtype="u1")
    theirs = torch.from_numpy(words).view(EIGHT_BITS[name]).float().numpy()
    ours = as_float32(words, name)
    assert numpy.array_equal(ours, theirs, equal_nan=True)
    # The sign of a zero, too; NaN has none.
    known = ~numpy.isnan(theirs)
    assert numpy.array_equal(numpy.signbit(ours[known]), numpy.signbit(theirs[known]))


@pytest.mark.parametrize("name", EIGHT_BITS)
def test_eight_bits_and_their_upcasts_are_one(tmp_path: Path, name: str) -> None:
    torch.manual_seed(0)
    small = torch.randn(6, 40).to(EIGHT_BITS[name])
    small[0] = 0
    facts = []
    for dtype in (small.dtype, torch.bfloat16, torch.float32, torch.float64):
        folder = tmp_path / str(dtype)
        folder.mkdir()
        save_file({UP: small.to(dtype)}, folder / "model.safetensors")
        (folder / "config.json").write_text("{}")
        facts.append(fingerprint(Located("m", folder)).tensors[UP])
    first = facts[0]
    assert first.dtype == name
    values = small.float().numpy()
    assert first.zeros == int((values == 0).sum()) >= 40
    assert first.norm == pytest.approx(float(numpy.linalg.norm(values)))
    assert first.peak == float(abs(values).max())
    for other in facts[1:]:
        assert (other.values, other.mask, other.zeros) == (
            *(first.values, first.mask, first.zeros),
        )


def facts_in_memory(model: torch.nn.Module) -> dict[str, TensorFacts]:
    return tensor_facts(model_streams(model))


def shared_names(model: torch.nn.Module) -> dict[str, str]:
    """Further names of tensors that a model has under several, and the first one."""
    first: dict[int, str] = {}
    named = model.named_parameters(remove_duplicate=False)
    return {
        name: first[id(tensor)]
        for name, tensor in named
        if first.setdefault(id(tensor), name) != name
    }


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_model_in_memory_and_its_files(tmp_path: Path, arch: str, dtype: str) -> None:
    """Other names only where transformers saves as it once did, or once for two."""
    model = build_model(arch).to(getattr(torch, dtype))
    save(model, tmp_path)
    stored = fingerprint(Located("m", tmp_path)).tensors
    memory = facts_in_memory(model)
    shared = shared_names(model)
    assert bool(shared) is (arch in TIED)
    for name, first in shared.items():
        assert memory.pop(name) == memory[first]
    if arch == "gpt_neox" and "embed_out.weight" in stored:
        memory["embed_out.weight"] = memory.pop("lm_head.weight")
    if arch == "mixtral":
        fused = {name for name in memory if ".experts." in name or "gate" in name}
        single = {name for name in stored if "block_sparse_moe" in name}
        assert fused
        assert single
        memory = {name: memory[name] for name in memory.keys() - fused}
        stored = {name: stored[name] for name in stored.keys() - single}
    assert memory == stored


def test_however_a_tensor_lies_in_memory() -> None:
    torch.manual_seed(0)
    dense = torch.randn(30, 50)
    for dtype in (torch.float32, torch.bfloat16, torch.float8_e5m2, torch.float64):
        plain = dense.to(dtype)
        module = torch.nn.Module()
        module.register_buffer("plain", plain)
        module.register_buffer("turned", plain.t().contiguous().t())
        wide = torch.zeros(30, 100, dtype=torch.float32).to(dtype)
        wide.view(torch.uint8).view(30, -1)[:, : 50 * plain.itemsize] = plain.view(
            torch.uint8
        ).view(30, -1)
        module.register_buffer("cut", wide[:, :50])
        assert not module.get_buffer("turned").is_contiguous()
        assert not module.get_buffer("cut").is_contiguous()
        facts = facts_in_memory(module)
        assert facts["plain"] == facts["turned"] == facts["cut"]
        words = plain.float().numpy().view("<u4")
        high = hashlib.sha256((words >> 16).astype("<u2").tobytes())
        low = (words & 0xFFFF).astype("<u2")
        expected = high.hexdigest()
        if low.any():
            both = high.digest() + hashlib.sha256(low.tobytes()).digest()
            expected = hashlib.sha256(both).hexdigest()
        assert facts["plain"].values == expected[:32]


def test_a_model_has_the_names_that_its_files_may_have(tmp_path: Path) -> None:
    """A shared tensor counts under each name, what is not saved under none."""
    tensors = {
        "halves": torch.zeros(3, dtype=torch.float16),
        "whole": torch.arange(6).reshape(2, 3),
        "octets": torch.arange(5, dtype=torch.uint8),
        "flags": torch.tensor([True, False]),
        "shorts": torch.arange(4, dtype=torch.int16),
        "number": torch.tensor(2.5),
        "nothing": torch.zeros(0, 4),
    }
    module = torch.nn.Module()
    for name, tensor in tensors.items():
        module.register_buffer(name, tensor)
    module.register_buffer("derived", torch.ones(3), persistent=False)
    module.weight = torch.nn.Parameter(torch.ones(2, 2))
    module.tied = module.weight
    twice = {"weight": module.weight.data, "tied": module.weight.data.clone()}
    save_file(tensors | twice, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text("{}")
    stored = tensor_facts(stored_streams(Located("m", tmp_path)))
    assert facts_in_memory(module) == stored


def test_subnormals_count_in_a_process_that_flushes_them(tmp_path: Path) -> None:
    """As it is after ``torch.set_flush_denormal(True)``."""
    values = numpy.array([1e-45, 0.0, 1e-40, 1.0], "<f4")
    upper = numpy.array([0x0001, 0x0000, 0x8001, 0x3F80], "<u2")
    before = facts_of(tmp_path, "F32", values), facts_of(tmp_path, "BF16", upper)
    assert [facts.zeros for facts in before] == [1, 1]
    if not torch.set_flush_denormal(True):
        pytest.skip("this processor cannot take subnormals for zero")
    try:
        assert float(numpy.float32(1e-45) * numpy.float32(1)) == 0.0
        after = facts_of(tmp_path, "F32", values), facts_of(tmp_path, "BF16", upper)
    finally:
        torch.set_flush_denormal(False)
    for one, other in zip(before, after, strict=True):
        assert (one.values, one.mask, one.zeros) == (
            *(other.values, other.mask, other.zeros),
        )
