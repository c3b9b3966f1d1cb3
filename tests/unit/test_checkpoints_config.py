"""Configs that transformers would read in another way than they mean are refused."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pytest_pplguard.checkpoints import Located
from pytest_pplguard.checkpoints.config import check_config, is_quantised
from pytest_pplguard.errors import CheckpointError

VERSION = "pytest_pplguard.checkpoints.config._version"
DENSE = {
    "quant_method": "compressed-tensors",
    "sparsity_config": {"format": "dense", "sparsity_structure": "unstructured"},
    "transform_config": {},
    "version": "0.12.2",
}
GROUP = {"format": "pack-quantized", "targets": ["Linear"], "weights": {"num_bits": 4}}
LINEAR = {"rope_type": "linear", "factor": 2.0}


def check(folder: Path, config: dict[str, Any]) -> None:
    (folder / "config.json").write_text(json.dumps(config))
    check_config(Located("m", folder), trust_remote_code=False)


def refused(folder: Path, config: dict[str, Any]) -> str:
    with pytest.raises(CheckpointError) as caught:
        check(folder, config)
    return str(caught.value)


# ----------------------------------------------------------------------------- packing


@pytest.mark.parametrize(
    ("packing", "quantised"),
    [
        (None, False),
        ({}, False),
        (DENSE, False),
        ({"sparsity_config": {"format": "sparse-bitmask"}}, False),
        ({"quant_method": "compressed-tensors", "format": "dense"}, False),
        (DENSE | {"config_groups": {"group_0": GROUP}}, True),
        (DENSE | {"kv_cache_scheme": {"num_bits": 8}}, True),
        ({"quant_method": "gptq", "bits": 4}, True),
        ({"load_in_8bit": True}, True),
    ],
)
def test_what_is_quantised(
    tmp_path: Path, packing: dict[str, Any] | None, quantised: bool
) -> None:
    config = {"quantization_config": packing}
    check(tmp_path, config)
    assert is_quantised(config) == quantised


@pytest.mark.parametrize("outer", ["quantization_config", "compression_config"])
def test_sparse_format_that_is_not_decoded(tmp_path: Path, outer: str) -> None:
    packing = DENSE | {"sparsity_config": {"format": "sparse-blocks"}}
    assert refused(tmp_path, {outer: packing}) == (
        "m is stored in the compressed format sparse-blocks, which nothing here "
        "unpacks: decompress it with the llm-compressor that wrote it "
        "(save_pretrained(..., save_compressed=False)) and give that folder"
    )


@pytest.mark.parametrize(
    "packing",
    [
        {"quant_method": "compressed-tensors", "format": "marlin-24"},
        DENSE | {"config_groups": {"group_0": GROUP | {"format": "marlin-24"}}},
    ],
)
def test_sparse_and_quantised_in_one(tmp_path: Path, packing: dict[str, Any]) -> None:
    assert refused(tmp_path, {"quantization_config": packing}) == (
        "m is stored in the format marlin-24, which only vLLM's kernel reads: "
        "decompress it with the llm-compressor that wrote it (save_pretrained(..., "
        "save_compressed=False)) and give that folder"
    )


def test_transform(tmp_path: Path) -> None:
    transform = {"config_groups": {"R4": {"type": "hadamard"}}}
    packing = DENSE | {"transform_config": transform}
    assert refused(tmp_path, {"quantization_config": packing}) == (
        "m rotates its activations (transform_config in config.json), which "
        "transformers would silently leave out: measure the checkpoint as it was "
        "before the transform"
    )


# -------------------------------------------------------------------------------- RoPE


@pytest.mark.parametrize("version", ["4.57.3", "5.23.0"])
@pytest.mark.parametrize(
    "config",
    [
        {"rope_theta": 500000.0, "rope_scaling": None},
        {"rope_theta": 500000.0, "rope_scaling": LINEAR},
        {"rope_theta": 5e5, "rope_parameters": None},
        {"rope_theta": 5e5, "rope_parameters": {"rope_theta": 5e5}},
        {
            "rope_theta": 500000,
            "rope_scaling": None,
            "rope_parameters": {"rope_theta": 5e5, "rope_type": "default"},
        },
        {
            "rope_theta": 5e5,
            "rope_scaling": {"type": "linear", "factor": 2.0},
            "rope_parameters": LINEAR | {"rope_theta": 5e5},
        },
        {  # as Gemma 3 has it: one for each type of layer
            "rope_theta": 1e6,
            "rope_local_base_freq": 1e4,
            "rope_scaling": LINEAR,
            "rope_parameters": {
                "sliding_attention": {"rope_theta": 1e4, "rope_type": "default"},
                "full_attention": LINEAR | {"rope_theta": 1e6},
            },
        },
    ],
)
def test_positions_that_agree(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    config: dict[str, Any],
    version: str,
) -> None:
    monkeypatch.setattr(VERSION, lambda: version)
    check(tmp_path, config)
    check(tmp_path, {"text_config": config})


@pytest.mark.parametrize(
    ("config", "old", "new"),
    [
        (
            {
                "rope_theta": 10000.0,
                "rope_parameters": {"rope_theta": 500000.0, "rope_type": "default"},
            },
            "rope_theta is 10000.0",
            "500000.0",
        ),
        (
            {
                "partial_rotary_factor": 0.5,
                "rope_parameters": {"rope_theta": 1e4, "partial_rotary_factor": 0.25},
                "rope_theta": 1e4,
            },
            "partial_rotary_factor is 0.5",
            "0.25",
        ),
        (
            {
                "rope_theta": 1e6,
                "rope_scaling": None,
                "rope_parameters": LINEAR | {"rope_theta": 1e6},
            },
            "rope_scaling is null",
            '{"rope_type": "linear", "factor": 2.0, "rope_theta": 1000000.0}',
        ),
        (
            {
                "rope_theta": 1e6,
                "rope_scaling": {"type": "linear", "factor": 4.0},
                "rope_parameters": LINEAR | {"rope_theta": 1e6},
            },
            'rope_scaling is {"type": "linear", "factor": 4.0}',
            '{"rope_type": "linear", "factor": 2.0, "rope_theta": 1000000.0}',
        ),
        (
            {
                "rope_theta": 7.0,
                "rope_parameters": {"a": {"rope_theta": 5.0}, "b": {"rope_theta": 6.0}},
            },
            "rope_theta is 7.0",
            "5.0",
        ),
    ],
)
def test_positions_that_disagree(
    tmp_path: Path, config: dict[str, Any], old: str, new: str
) -> None:
    message = (
        f"m: config.json contradicts itself: {old}, but rope_parameters (of "
        f"transformers 5) says {new}; a transformers 4 that saves a checkpoint of "
        "version 5 leaves this behind, and pruned with the former. Keep the right one "
        "in config.json (the base model's config has it) and delete the other"
    )
    assert refused(tmp_path, config) == message
    assert refused(tmp_path, {"text_config": config}) == message


def test_version_5_config_under_version_4(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = {"rope_parameters": {"rope_theta": 500000.0, "rope_type": "default"}}
    monkeypatch.setattr(VERSION, lambda: "5.23.0")
    check(tmp_path, config)
    monkeypatch.setattr(VERSION, lambda: "4.57.3")
    assert refused(tmp_path, config) == (
        "m was saved by transformers 5 (rope_parameters in config.json), and "
        "transformers 4.57.3, which is installed, would take its default rope_theta "
        "instead: install transformers 5"
    )


@pytest.mark.parametrize(
    ("changes", "is_read_alike"),
    [
        ({}, True),
        ({"rope_type": None}, True),
        ({"rope_theta": 500000.0}, False),
        ({"rope_type": "linear", "factor": 2.0}, False),
        ({"partial_rotary_factor": 0.5}, False),
    ],
)
def test_what_version_4_takes_by_default(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    changes: dict[str, Any],
    is_read_alike: bool,
) -> None:
    """As the demo is: a config of version 5 that says what version 4 does anyway."""
    known = {"llama": lambda: SimpleNamespace(rope_theta=10000.0)}
    module = "transformers.models.auto.configuration_auto"
    monkeypatch.setitem(sys.modules, module, SimpleNamespace(CONFIG_MAPPING=known))
    monkeypatch.setattr(VERSION, lambda: "4.57.3")
    rope = {"rope_theta": 10000.0, "rope_type": "default"} | changes
    rope = {name: value for name, value in rope.items() if value is not None}
    config = {"model_type": "llama", "rope_parameters": rope}
    if is_read_alike:
        check(tmp_path, config)
    else:
        assert "transformers 4.57.3, which is installed, would" in refused(
            tmp_path, config
        )
    unknown = config | {"model_type": "own"}
    assert "install transformers 5" in refused(tmp_path, unknown)
