"""Checkpoints that llm-compressor and compressed-tensors saved load bit for bit."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from pytest_pplguard.checkpoints import load, locate, measure_sparsity
from pytest_pplguard.checkpoints.compressed import decode, split_compressed
from pytest_pplguard.checkpoints.files import tensor_index
from pytest_pplguard.errors import CheckpointError

from .tiny import build_tokenizer, save_tokenizer

THIRD_PARTY = Path(__file__).parent / "third_party"
AVAILABLE = "transformers.utils.quantization_config.is_compressed_tensors_available"
LINEAR = ("proj.weight",)
SPARSE = ("sparse-bitmask", "sparse-bitmask-first", "sparse-24-bitmask")


def checkpoint(name: str, folder: Path) -> Path:
    """A copy of a committed checkpoint, with a tokenizer."""
    shutil.copytree(THIRD_PARTY / name, folder)
    (folder / "dense.safetensors").unlink()
    save_tokenizer(build_tokenizer(), folder)
    return folder


def dense(name: str) -> dict[str, torch.Tensor]:
    weights: dict[str, torch.Tensor] = load_file(
        THIRD_PARTY / name / "dense.safetensors"
    )
    return weights


def bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.view(torch.uint8)


def zeros_of(weights: dict[str, torch.Tensor]) -> tuple[int, int]:
    linear = [w for name, w in weights.items() if name.endswith("proj.weight")]
    assert len(linear) == 2 * 7
    zeros, total = (
        sum(int(n) for n in ns)
        for ns in zip(*(((w == 0).sum(), w.numel()) for w in linear), strict=True)
    )
    return zeros, total


@pytest.mark.parametrize("name", [*SPARSE, "dense-unstructured"])
def test_bit_for_bit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    # Nothing of it is needed, not even for a quantization_config that says "dense".
    monkeypatch.setattr(AVAILABLE, lambda: False)
    located = locate(str(checkpoint(name, tmp_path / "m")))
    model: Any = load(located, device="cpu", dtype="bfloat16").model
    expected = dense(name)
    assert model.state_dict().keys() == expected.keys()
    for key, weight in model.state_dict().items():
        assert weight.dtype == torch.bfloat16
        assert torch.equal(bits(weight), bits(expected[key])), key
    measured = measure_sparsity(located)
    zeros, total = zeros_of(expected)
    assert (measured.zeros, measured.total) == (zeros, total)
    assert zeros / total == 0.5


def test_same_logits_as_the_dense_folder(tmp_path: Path) -> None:
    folder = checkpoint("sparse-24-bitmask", tmp_path / "m")
    sparse = load(locate(str(folder)), device="cpu", dtype="float32").model
    plain = checkpoint("dense-unstructured", tmp_path / "dense")
    save_file(
        dense("sparse-24-bitmask"),
        plain / "model.safetensors",
        metadata={"format": "pt"},
    )
    original = load(locate(str(plain)), device="cpu", dtype="float32").model
    ids = torch.arange(3, 60)[None]
    with torch.inference_mode():
        assert torch.equal(sparse(ids).logits, original(ids).logits)
    assert sparse.config.max_position_embeddings == 512


def test_sparse_and_quantised(tmp_path: Path) -> None:
    """2:4 in FP8: decoded here, dequantised by compressed-tensors."""
    folder = checkpoint("sparse-24-bitmask-fp8", tmp_path / "m")
    stored = load_file(folder / "model.safetensors")
    located = locate(str(folder))
    model: Any = load(located, device="cpu", dtype="float32").model
    for name in (n for n in dense("sparse-24-bitmask-fp8") if n.endswith(LINEAR)):
        module = name.removesuffix(".weight")
        expected = decoded_by_hand(stored, module) * stored[f"{module}.weight_scale"]
        assert torch.equal(model.get_parameter(name), expected.float())
    assert measure_sparsity(located).fraction == 0.5


def decoded_by_hand(stored: dict[str, torch.Tensor], module: str) -> torch.Tensor:
    rows, columns = stored[f"{module}.shape"].flatten().tolist()
    values = iter(stored[f"{module}.compressed"].float().flatten().tolist())
    bitmask = stored[f"{module}.bitmask"].tolist()
    return torch.tensor(
        [
            [
                next(values) if bitmask[row][column // 8] >> column % 8 & 1 else 0.0
                for column in range(columns)
            ]
            for row in range(rows)
        ]
    )


def test_infinities_and_negative_zero_survive(tmp_path: Path) -> None:
    """The bits are moved, no value is computed with."""
    special = torch.tensor([float("nan"), -0.0, float("-inf"), 1e-41])
    tensors = {
        "a.compressed": special,
        "a.bitmask": torch.tensor([[0b01010101, 0b0]], dtype=torch.uint8),
        "a.shape": torch.tensor([1, 9]),
    }
    save_file(tensors, tmp_path / "model.safetensors")
    weights, _ = split_compressed(tensor_index(tmp_path), "m", quantised=False)
    decoded = decode(weights["a.weight"])
    assert decoded.shape == (1, 9)
    assert torch.equal(bits(decoded[0, 0:8:2].clone()), bits(special))
    assert not bits(decoded[0, 1::2].clone()).any()


def test_a_missing_weight_is_no_random_one(tmp_path: Path) -> None:
    folder = checkpoint("sparse-24-bitmask", tmp_path / "m")
    stored = load_file(folder / "model.safetensors")
    for part in ("compressed", "bitmask", "shape"):
        del stored[f"model.layers.1.mlp.up_proj.{part}"]
    save_file(stored, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError) as caught:
        load(locate(str(folder)), device="cpu", dtype="float32")
    assert str(caught.value) == (
        f"{folder} does not fit its architecture LlamaForCausalLM: 1 weight "
        "(model.layers.1.mlp.up_proj.weight) missing from the files (transformers "
        "would have filled in random numbers)"
    )


def test_config_that_says_sparse_over_dense_weights(tmp_path: Path) -> None:
    """As compressed-tensors writes it when no layer was a target."""
    folder = checkpoint("sparse-bitmask", tmp_path / "m")
    save_file(
        dense("sparse-bitmask"),
        folder / "model.safetensors",
        metadata={"format": "pt"},
    )
    model: Any = load(locate(str(folder)), device="cpu", dtype="bfloat16").model
    for key, weight in model.state_dict().items():
        assert torch.equal(bits(weight), bits(dense("sparse-bitmask")[key]))


def test_parts_of_a_weight_in_several_shards(tmp_path: Path) -> None:
    folder = checkpoint("sparse-bitmask", tmp_path / "m")
    stored = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(stored)
    weight_map: dict[str, str] = {}
    for i in range(2):
        shard = f"model-0000{i + 1}-of-00002.safetensors"
        part = {name: stored[name] for name in names[i::2]}
        save_file(part, folder / shard, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(part, shard)
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    model: Any = load(locate(str(folder)), device="cpu", dtype="bfloat16").model
    for key, weight in model.state_dict().items():
        assert torch.equal(bits(weight), bits(dense("sparse-bitmask")[key]))


@pytest.mark.parametrize("packing", [None, {}])
def test_quantization_config_that_says_nothing(
    tmp_path: Path, packing: dict[str, Any] | None
) -> None:
    folder = checkpoint("dense-unstructured", tmp_path / "m")
    path = folder / "config.json"
    config = json.loads(path.read_text()) | {"quantization_config": packing}
    path.write_text(json.dumps(config))
    model = load(locate(str(folder)), device="cpu", dtype="float32").model
    assert getattr(model.config, "quantization_config", None) is None
