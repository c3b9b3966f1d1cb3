"""Zeros are counted in the linear weights of the decoder layers, bit by bit."""

from __future__ import annotations

import json
from pathlib import Path

import numpy
import pytest

from pytest_pplguard.checkpoints import (
    Located,
    fingerprint,
    measure_sparsity,
    sparsity_of,
)
from pytest_pplguard.errors import CheckpointError

UP = "model.layers.0.mlp.up_proj.weight"


def save(
    folder: Path,
    tensors: dict[str, tuple[str, list[int], bytes]],
    config: dict[str, object] | None = None,
) -> Located:
    """Write ``name: (dtype, shape, bytes)`` as model.safetensors."""
    header, data = {}, b""
    for name, (dtype, shape, raw) in tensors.items():
        span = [len(data), len(data) + len(raw)]
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": span}
        data += raw
    text = json.dumps(header).encode()
    file = folder / "model.safetensors"
    file.write_bytes(len(text).to_bytes(8, "little") + text + data)
    (folder / "config.json").write_text(json.dumps(config or {}))
    return Located("m", folder)


def counts(located: Located) -> tuple[int, int]:
    measured = measure_sparsity(located)
    assert measured.fraction == measured.zeros / measured.total
    return measured.zeros, measured.total


@pytest.mark.parametrize(
    ("dtype", "words", "zeros"),
    [
        ("F64", numpy.array([0.0, -0.0, 1.0, 5e-324], "<f8").view("<u8"), 2),
        ("F32", numpy.array([0.0, -0.0, 1.0, 1e-45], "<f4").view("<u4"), 2),
        ("F16", numpy.array([0.0, -0.0, 1.0, 6e-8], "<f2").view("<u2"), 2),
        ("BF16", numpy.array([0x0000, 0x8000, 0x3F80, 0x0001], "<u2"), 2),
        ("F8_E4M3", numpy.array([0x00, 0x80, 0x38, 0x01], "u1"), 2),
        ("F8_E5M2", numpy.array([0x00, 0x80, 0x3C, 0x01], "u1"), 2),
        ("F8_E4M3FNUZ", numpy.array([0x00, 0x80, 0x38, 0x01], "u1"), 1),
    ],
)
def test_both_zeros_but_no_subnormal(
    tmp_path: Path,
    dtype: str,
    words: numpy.ndarray[tuple[int], numpy.dtype[numpy.generic]],
    zeros: int,
) -> None:
    located = save(tmp_path, {UP: (dtype, [2, 2], words.tobytes())})
    assert counts(located) == (zeros, 4)


def test_tensor_longer_than_a_chunk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pytest_pplguard.checkpoints.streams.CHUNK", 4)
    words = numpy.arange(30, dtype="<f4")
    words[[3, 4, 17]] = 0
    located = save(tmp_path, {UP: ("F32", [5, 6], words.tobytes())})
    assert counts(located) == (4, 30)


@pytest.mark.parametrize(
    "name",
    [
        "layers.0.self_attn.q_proj.weight",
        "model.decoder.layers.11.fc1.weight",
        "transformer.h.0.attn.c_attn.weight",
        "h.0.mlp.c_fc.weight",
        "transformer.blocks.3.ffn.up_proj.weight",
        "gpt_neox.layers.0.attention.query_key_value.weight",
        "model.language_model.layers.0.mlp.up_proj.weight",
        "model.layers.0.block_sparse_moe.experts.3.w1.weight",
        "model.layers.0.block_sparse_moe.gate.weight",
        "model.layers.0.mlp.experts.gate_up_proj",
        "model.layers.0.conv.in_proj.weight",
    ],
)
def test_counted(tmp_path: Path, name: str) -> None:
    located = save(tmp_path, {name: ("U8", [1, 2], b"01")})
    with pytest.raises(CheckpointError, match="is packed"):
        measure_sparsity(located)
    located = save(tmp_path, {name: ("F8_E4M3", [1, 2], b"\x001")})
    assert counts(located) == (1, 2)


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("model.embed_tokens.weight", [2, 2]),
        ("lm_head.weight", [2, 2]),
        ("model.layers.0.input_layernorm.weight", [4]),
        ("model.layers.0.self_attn.q_norm.weight", [2, 2]),
        ("model.layers.0.self_attn.q_proj.bias", [4]),
        ("model.layers.0.mlp.experts.gate_up_proj_bias", [2, 2]),
        ("model.layers.0.mixer.conv1d.weight", [2, 1, 2]),
        ("model.layers.0.mlp.up_proj.weight_scale_inv", [2, 2]),
        ("vision_tower.encoder.layers.0.mlp.fc1.weight", [2, 2]),
        ("model.visual.blocks.0.mlp.fc1.weight", [2, 2]),
        ("model.layers.7.mlp.up_proj.weight", [2, 2]),
    ],
)
def test_not_counted(tmp_path: Path, name: str, shape: list[int]) -> None:
    tensors = {
        name: ("F8_E4M3", shape, bytes(4)),
        UP: ("F8_E4M3", [1, 2], b"\x001"),
    }
    located = save(tmp_path, tensors, {"num_hidden_layers": 7})
    assert counts(located) == (1, 2)


def test_buffers_are_not_packed_weights(tmp_path: Path) -> None:
    tensors = {
        "gpt_neox.layers.0.attention.bias": ("BOOL", [1, 1, 2, 2], bytes(4)),
        "gpt_neox.layers.0.attention.dense.weight": ("F8_E4M3", [1, 2], b"\x001"),
    }
    assert measure_sparsity(save(tmp_path, tensors)).total == 2


@pytest.mark.parametrize(
    ("name", "dtype", "size"),
    [
        ("model.layers.0.mlp.up_proj.qweight", "I32", 4),
        ("model.layers.0.mlp.up_proj.weight_packed", "I32", 4),
        ("model.layers.0.mlp.experts.gate_up_proj_blocks", "U8", 1),
        ("model.layers.0.mlp.up_proj.weight", "I8", 1),
    ],
)
def test_packed(tmp_path: Path, name: str, dtype: str, size: int) -> None:
    located = save(tmp_path, {name: (dtype, [1, 1], bytes(size))})
    with pytest.raises(CheckpointError) as caught:
        measure_sparsity(located)
    assert str(caught.value) == (
        f"m: {name} is packed ({dtype}): its sparsity can only be counted in the "
        "loaded model"
    )


def test_no_decoder_layers(tmp_path: Path) -> None:
    located = save(tmp_path, {"fc.weight": ("F32", [1, 1], bytes(4))})
    with pytest.raises(CheckpointError) as caught:
        measure_sparsity(located)
    assert str(caught.value) == (
        "m has no linear weights of decoder layers (tensors named like "
        "model.layers.0.mlp.up_proj.weight): its sparsity cannot be counted"
    )


def test_gguf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import gguf

    monkeypatch.setattr("pytest_pplguard.checkpoints.streams.CHUNK", 64)
    generator = numpy.random.default_rng(0)
    dense = generator.normal(size=(6, 64)).astype("f4")
    dense[:, ::2] = 0
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "llama")
    writer.add_tensor("blk.0.ffn_up.weight", dense)
    packed = gguf.quants.quantize(dense, gguf.GGMLQuantizationType.Q8_0)
    writer.add_tensor(
        "blk.0.ffn_down.weight", packed, raw_dtype=gguf.GGMLQuantizationType.Q8_0
    )
    writer.add_tensor("blk.0.ffn_norm.weight", numpy.zeros(64, "f4"))
    writer.add_tensor("token_embd.weight", numpy.zeros((6, 64), "f4"))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    located = Located("m.gguf", tmp_path, gguf="m.gguf")
    unpacked = gguf.quants.dequantize(packed, gguf.GGMLQuantizationType.Q8_0)
    zeros = int((dense == 0).sum() + (unpacked == 0).sum())
    assert counts(located) == (zeros, 768)

    file = tmp_path / "m.gguf"
    file.write_bytes(file.read_bytes()[:200])
    with pytest.raises(CheckpointError, match=r"m\.gguf is truncated or no valid GGUF"):
        measure_sparsity(located)


def test_shares(tmp_path: Path) -> None:
    """All zeros, none, two names for one weight, and a tensor without elements."""
    words = {
        UP: [0.0, -0.0, 0.0, 0.0],
        "model.layers.0.mlp.down_proj.weight": [1.0, 2.0, 3.0, 4.0],
        "model.layers.1.mlp.up_proj.weight": [0.0, 0.0, 0.0, 1.0],
        "model.layers.2.mlp.up_proj.weight": [0.0, 0.0, 0.0, 1.0],
    }
    tensors = {
        name: ("F32", [2, 2], numpy.array(numbers, "<f4").tobytes())
        for name, numbers in words.items()
    }
    tensors["model.layers.2.mlp.down_proj.weight"] = ("F32", [0, 2], b"")
    located = save(tmp_path, tensors)
    measured = measure_sparsity(located)
    assert (measured.zeros, measured.total) == (10, 16)
    assert measured.shares("tensor") == {
        UP: 1.0,
        "model.layers.0.mlp.down_proj.weight": 0.0,
        "model.layers.1.mlp.up_proj.weight": 0.75,
        "model.layers.2.mlp.up_proj.weight": 0.75,
    }
    assert measured.shares("layer") == {
        "model.layers.0": 0.5,
        "model.layers.1": 0.75,
        "model.layers.2": 0.75,
    }
    assert sparsity_of(fingerprint(located)).shares("tensor") == (
        measured.shares("tensor")
    )
