"""Bitmask-compressed weights are told from their parts, and counted without torch."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy
import pytest
from safetensors.numpy import save_file

from pytest_pplguard.checkpoints import (
    Located,
    measure_sparsity,
    tensor_index,
)
from pytest_pplguard.checkpoints.compressed import split_compressed
from pytest_pplguard.errors import CheckpointError

UP = "model.layers.0.mlp.up_proj"
Array = numpy.ndarray[Any, Any]


def parts(dense: Array, module: str = UP) -> dict[str, Array]:
    """One weight in the layout of ``sparse-bitmask``, written out bit by bit."""
    rows = dense.reshape(-1, dense.shape[-1])
    bitmask = numpy.zeros((len(rows), math.ceil(rows.shape[1] / 8)), numpy.uint8)
    values: list[Any] = []
    offsets: list[int] = []
    for i, row in enumerate(rows):
        offsets.append(len(values))
        for j, value in enumerate(row):
            if value != 0:
                bitmask[i, j // 8] |= 1 << j % 8
                values.append(value)
    return {
        f"{module}.compressed": numpy.array(values, dense.dtype),
        f"{module}.bitmask": bitmask,
        f"{module}.shape": numpy.array(dense.shape, numpy.int64),
        f"{module}.row_offsets": numpy.array(offsets, numpy.int64),
    }


def located(folder: Path, tensors: dict[str, Array]) -> Located:
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"num_hidden_layers": 2}))
    return Located("m", folder)


def random(*shape: int, seed: int = 0) -> Array:
    generator = numpy.random.default_rng(seed)
    dense = generator.normal(size=shape).astype(numpy.float32)
    dense[generator.random(shape) < 0.6] = 0
    return dense


def refused(folder: Path, tensors: dict[str, Array]) -> str:
    index = tensor_index(located(folder, tensors).folder)
    with pytest.raises(CheckpointError) as caught:
        split_compressed(index, "m", quantised=False)
    return str(caught.value)


@pytest.mark.parametrize("shape", [(3, 20), (5, 8), (2, 3, 17)])
@pytest.mark.parametrize("at_once", [1, 40, 1 << 24])
def test_sparsity_of_the_decoded_weight(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    shape: tuple[int, ...],
    at_once: int,
) -> None:
    monkeypatch.setattr("pytest_pplguard.checkpoints.compressed._AT_ONCE", at_once)
    packed, plain = random(*shape), random(4, 6, seed=1)
    tensors = parts(packed)
    tensors |= parts(random(7, 9, seed=2), "model.embed_tokens")
    tensors["model.layers.1.mlp.up_proj.weight"] = plain
    where = located(tmp_path, tensors)
    zeros = int((packed == 0).sum() + (plain == 0).sum())
    total = packed.size + plain.size
    measured = measure_sparsity(where)
    assert (measured.zeros, measured.total) == (zeros, total)


def test_zeros_among_the_stored_values_are_zeros(tmp_path: Path) -> None:
    """2:4 keeps two of each four, zero or not; its shape is a column."""
    tensors: dict[str, Array] = {
        f"{UP}.compressed": numpy.array([[1, 0], [2, -0.0]], numpy.float32),
        f"{UP}.bitmask": numpy.array([[0b0011], [0b1001]], numpy.uint8),
        f"{UP}.shape": numpy.array([[2], [4]], numpy.int64),
    }
    measured = measure_sparsity(located(tmp_path, tensors))
    assert (measured.zeros, measured.total) == (6, 8)


@pytest.mark.parametrize(
    ("module", "name"),
    [
        (UP, f"{UP}.weight"),
        (f"{UP}.weight", f"{UP}.weight"),
        (f"{UP}.bias", f"{UP}.bias"),
    ],
)
def test_names(tmp_path: Path, module: str, name: str) -> None:
    tensors = parts(random(2, 9), module) | {"model.norm.weight": random(4)}
    index = tensor_index(located(tmp_path, tensors).folder)
    weights, others = split_compressed(index, "m", quantised=False)
    assert list(weights) == [name]
    assert weights[name].values.shape == (2, 9)
    assert list(others) == ["model.norm.weight"]


@pytest.mark.parametrize("part", ["bitmask", "compressed", "shape"])
def test_missing_part(tmp_path: Path, part: str) -> None:
    tensors = parts(random(2, 9))
    del tensors[f"{UP}.{part}"]
    assert refused(tmp_path, tensors) == (
        f"m: the sparse-compressed {UP}.weight lacks its tensor '{part}'"
    )


def test_bitmask_of_another_checkpoint(tmp_path: Path) -> None:
    tensors = parts(random(3, 9))
    stored = len(tensors[f"{UP}.compressed"])
    tensors[f"{UP}.bitmask"] = parts(random(3, 9, seed=3))[f"{UP}.bitmask"]
    marked = int(numpy.unpackbits(tensors[f"{UP}.bitmask"]).sum())
    assert marked != stored
    assert refused(tmp_path, tensors) == (
        f"m: the sparse-compressed {UP}.weight is malformed: its bitmask marks "
        f"{marked} weights, but {stored} are stored"
    )


@pytest.mark.parametrize(
    ("part", "value", "said"),
    [
        (
            "shape",
            numpy.array([2, 17], numpy.int64),
            "bitmask is U8 [2, 2], its values are F32, its shape is [2, 17]",
        ),
        (
            "shape",
            numpy.array([2, 9], numpy.int32),
            "bitmask is U8 [2, 2], its values are F32, its shape is []",
        ),
        (
            "bitmask",
            numpy.zeros((2, 1), numpy.uint16),
            "bitmask is U16 [2, 1], its values are F32, its shape is [2, 9]",
        ),
        (
            "compressed",
            numpy.zeros(3, numpy.uint8),
            "bitmask is U8 [2, 2], its values are U8, its shape is [2, 9]",
        ),
    ],
)
def test_malformed_part(tmp_path: Path, part: str, value: Array, said: str) -> None:
    tensors = parts(random(2, 9))
    tensors[f"{UP}.{part}"] = value
    if said.endswith("17]"):
        tensors[f"{UP}.bitmask"] = numpy.zeros((2, 2), numpy.uint8)
    assert refused(tmp_path, tensors) == (
        f"m: the sparse-compressed {UP}.weight is malformed: its {said}"
    )


def test_dense_and_compressed(tmp_path: Path) -> None:
    tensors = parts(random(2, 9)) | {f"{UP}.weight": random(2, 9)}
    assert refused(tmp_path, tensors) == (
        f"m holds {UP}.weight twice, dense and compressed"
    )


@pytest.mark.parametrize("dtype", ["I8", "F8_E4M3", "F8_E5M2"])
@pytest.mark.parametrize(
    ("quantised", "scale"), [(False, False), (False, True), (True, False)]
)
def test_quantised_values_without_scale_or_scheme(
    tmp_path: Path, dtype: str, quantised: bool, scale: bool
) -> None:
    """As they are they would be weights of 40 instead of 0.4."""
    dense = (random(2, 9) * 100).astype(numpy.int8)
    tensors = parts(dense)
    if scale:
        tensors[f"{UP}.weight_scale"] = numpy.ones((2, 1), numpy.float32)
    where = located(tmp_path, tensors)
    relabel(where.folder / "model.safetensors", f"{UP}.compressed", dtype)
    index = tensor_index(where.folder)
    with pytest.raises(CheckpointError) as caught:
        split_compressed(index, "m", quantised=quantised)
    said = (
        f"m: the sparse-compressed {UP}.weight is stored as {dtype} without a scale: "
        f"bring back its {UP}.weight_scale and the quantization_config of "
        "config.json, or save the checkpoint again as it was before quantising"
    )
    assert str(caught.value) == said
    if not quantised:
        with pytest.raises(CheckpointError) as caught:
            measure_sparsity(where)
        assert str(caught.value) == said
    index |= {f"{UP}.weight_scale": index[f"{UP}.bitmask"]}
    weights, _ = split_compressed(index, "m", quantised=True)
    assert weights[f"{UP}.weight"].values.dtype == dtype


def relabel(file: Path, name: str, dtype: str) -> None:
    """Give a tensor another dtype of the same width; numpy has no FP8."""
    data = file.read_bytes()
    end = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:end])
    header[name]["dtype"] = dtype
    text = json.dumps(header).encode()
    file.write_bytes(len(text).to_bytes(8, "little") + text + data[end:])
