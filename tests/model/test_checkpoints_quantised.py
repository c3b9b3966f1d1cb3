"""Pruned and quantised checkpoints run as their library says, and count their zeros."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from pytest_pplguard.checkpoints import Loaded, load, locate, measure_sparsity
from pytest_pplguard.checkpoints.state import state_digest
from pytest_pplguard.errors import CheckpointError

from .originals import wanda_perplexity, wanda_window_losses
from .test_checkpoints_sparsity import wanda_counts
from .tiny import TRANSFORMERS_4, build_model, build_tokenizer, save, save_tokenizer

ROWS = ["It was released in January 2011 in Japan .", "", " = Perplexity = "] * 40
AVAILABLE = "transformers.utils.quantization_config.is_compressed_tensors_available"
Weights = dict[str, torch.Tensor]


def scheme(
    kind: str, bits: int, strategy: str, group: int | None = None, *, inputs: bool
) -> dict[str, Any]:
    """A ``quantization_config`` for all linear layers but the head."""
    weights: dict[str, Any] = {
        "num_bits": bits,
        "type": kind,
        "symmetric": True,
        "strategy": strategy,
        "group_size": group,
    }
    activations = weights | {"strategy": "token", "group_size": None, "dynamic": True}
    return {
        "targets": ["Linear"],
        "weights": weights,
        "input_activations": activations if inputs else None,
    }


SCHEMES = {
    "pack-quantized": scheme("int", 4, "group", 16, inputs=False),
    "int-quantized": scheme("int", 8, "channel", inputs=True),
    "float-quantized": scheme("float", 8, "channel", inputs=True),
    "naive-quantized": scheme("float", 8, "tensor", inputs=False),
}
LARGEST = {"pack-quantized": 7.5, "int-quantized": 127.5}
"""Of a symmetric type, half a step beyond the ends; 448 for FP8 E4M3."""


@torch.no_grad()
def pruned(arch: str = "llama") -> Any:
    """Half of every linear row of the decoder is zero, by magnitude."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model: Any = build_model(arch)
    for module in model.model.layers.modules():
        if isinstance(module, torch.nn.Linear):
            weight = module.weight
            smallest = weight.abs().argsort(dim=1)[:, : weight.shape[1] // 2]
            weight.scatter_(1, smallest, 0)
    return model


@torch.no_grad()
def quantised(form: str, folder: Path) -> Path:
    """Scales set by each block's largest weight; compressed, saved by the library."""
    from compressed_tensors.compressors import ModelCompressor
    from compressed_tensors.quantization import (
        QuantizationConfig,
        QuantizationStatus,
        apply_quantization_config,
    )

    model = pruned()
    config = QuantizationConfig(
        config_groups={"group_0": SCHEMES[form]},
        format=form,
        ignore=["lm_head"],
        quantization_status=QuantizationStatus.COMPRESSED,
    )
    apply_quantization_config(model, config)
    for module in model.modules():
        if hasattr(module, "weight_scale"):
            shape = module.weight_scale.shape
            blocks = module.weight.reshape(-1, module.weight.numel() // shape.numel())
            largest = blocks.abs().amax(1).reshape(shape)
            module.weight_scale.data = largest / LARGEST.get(form, 448.0)
    compressor = ModelCompressor.from_pretrained_model(model, quantization_format=form)
    compressor.compress_model(model)
    save(model, folder)
    compressor.update_config(str(folder))
    save_tokenizer(build_tokenizer(), folder)
    return folder


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    made: dict[str, Path] = {}

    def make(form: str) -> Path:
        if form not in made:
            made[form] = quantised(form, tmp_path_factory.mktemp("q") / form)
        return made[form]

    return make


def dequantised(folder: Path) -> Weights:
    """Every weight from the file, in float32: integer (or FP8) times scale."""
    stored = load_file(folder / "model.safetensors")
    weights: Weights = {}
    for name, tensor in stored.items():
        module, _, leaf = name.rpartition(".")
        scale = stored.get(f"{module}.weight_scale")
        if leaf == "weight_packed":
            assert scale is not None
            rows, columns = stored[f"{module}.weight_shape"].tolist()
            # Eight nibbles an int32, lowest first, each 8 more than its value.
            nibbles = torch.stack([tensor >> 4 * i & 15 for i in range(8)], dim=-1)
            values = nibbles.reshape(rows, -1)[:, :columns].float() - 8
            blocks = values.reshape(rows, scale.shape[1], -1) * scale[..., None].float()
            weights[f"{module}.weight"] = blocks.reshape(rows, columns)
        elif leaf == "weight" and scale is not None:
            weights[name] = tensor.float() * scale.float()
        elif not leaf.startswith("weight_"):
            weights[name] = tensor.float()
    return weights


def expected_model(weights: Weights, form: str) -> Any:
    """A plain model; inputs rounded per token where the scheme says so."""
    model = build_model("llama")
    model.load_state_dict(weights)
    if SCHEMES[form]["input_activations"] is None:
        return model

    def rounded(_: object, args: tuple[torch.Tensor]) -> tuple[torch.Tensor]:
        x = args[0]
        if form == "float-quantized":
            scale = x.abs().amax(-1, keepdim=True) / 448.0
            return (
                (x / scale).clamp(-448, 448).to(torch.float8_e4m3fn).float() * scale,
            )
        scale = x.abs().amax(-1, keepdim=True) / 127.5
        return ((x / scale).round().clamp(-128, 127) * scale,)

    for module in model.model.layers.modules():
        if isinstance(module, torch.nn.Linear):
            module.register_forward_pre_hook(rounded)
    return model


def load_cpu(folder: Path, **options: Any) -> Loaded:
    return load(locate(str(folder)), device="cpu", dtype="float32", **options)


@pytest.mark.parametrize("form", SCHEMES)
def test_runs_as_quantised(saved: Callable[[str], Path], form: str) -> None:
    folder = saved(form)
    loaded = load_cpu(folder)
    model: Any = loaded.model
    weights = dequantised(folder)
    parameters = dict(model.named_parameters())
    for name, weight in weights.items():
        torch.testing.assert_close(parameters[name], weight, rtol=1e-6, atol=0)

    dense, original = pruned(), expected_model(weights, form)
    perplexities = [
        wanda_perplexity(wanda_window_losses(m, loaded.tokenizer, ROWS, 64), 64)
        for m in (model, original, dense)
    ]
    assert perplexities[0] == pytest.approx(perplexities[1], rel=1e-5)
    assert perplexities[0] != pytest.approx(perplexities[2], rel=1e-5)


@pytest.mark.parametrize("form", SCHEMES)
def test_sparsity_of_the_dequantised_weights(
    saved: Callable[[str], Path], form: str
) -> None:
    folder = saved(form)
    model = build_model("llama")
    model.load_state_dict(dequantised(folder))
    zeros, total = wanda_counts(model)
    measured = measure_sparsity(
        locate(str(folder)), model=lambda: load_cpu(folder).model
    )
    assert (measured.zeros, measured.total) == (zeros, total)
    assert measured.fraction >= 0.5


@pytest.mark.parametrize("form", ["int-quantized", "float-quantized"])
def test_sparse_compressed_as_well(
    saved: Callable[[str], Path], tmp_path: Path, form: str
) -> None:
    """As llm-compressor saved 2:4 models: the quantised weights in a bitmask."""
    folder = shutil.copytree(saved(form), tmp_path / "m")
    weights = load_file(folder / "model.safetensors")
    for name in [name for name in weights if name.endswith("proj.weight")]:
        module, dense = name.removesuffix(".weight"), weights.pop(name)
        mask = dense.float() != 0
        places = 2 ** torch.arange(8)
        bits = (mask.reshape(len(mask), -1, 8) * places).sum(2).to(torch.uint8)
        weights[f"{module}.compressed"] = dense.view(torch.int8)[mask].view(dense.dtype)
        weights[f"{module}.bitmask"] = bits
        weights[f"{module}.shape"] = torch.tensor(dense.shape)[:, None]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    path = folder / "config.json"
    config = json.loads(path.read_text())
    config["quantization_config"]["sparsity_config"] = {"format": "sparse-24-bitmask"}
    path.write_text(json.dumps(config))

    located = locate(str(folder))
    model, original = load_cpu(folder).model, load_cpu(saved(form)).model
    for name, parameter in original.named_parameters():
        assert torch.equal(model.get_parameter(name), parameter)
    ids = torch.arange(3, 60)[None]
    with torch.no_grad():
        assert torch.equal(model(ids).logits, original(ids).logits)
    assert measure_sparsity(located, model=lambda: model) == measure_sparsity(
        locate(str(saved(form))), model=lambda: original
    )


def test_loading_says_nothing_and_leaves_nothing_to_the_first_pass(
    saved: Callable[[str], Path], capfd: pytest.CaptureFixture[str]
) -> None:
    folder = saved("pack-quantized")
    capfd.readouterr()
    model = load_cpu(folder).model
    before = state_digest(model)
    with torch.no_grad():
        model(torch.arange(3, 20)[None])
    assert state_digest(model) == before
    assert capfd.readouterr() == ("", "")
    assert not any(p.is_inference() for p in model.parameters())


@pytest.mark.parametrize("lost", ["weight_scale", "weight_packed"])
def test_missing_part(saved: Callable[[str], Path], tmp_path: Path, lost: str) -> None:
    folder = shutil.copytree(saved("pack-quantized"), tmp_path / "m")
    weights = load_file(folder / "model.safetensors")
    del weights[f"model.layers.1.mlp.up_proj.{lost}"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError) as caught:
        load_cpu(folder)
    assert str(caught.value).startswith(f"{folder} ")
    assert f"model.layers.1.mlp.up_proj.{lost}" in str(caught.value)


def test_without_compressed_tensors(
    saved: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = saved("int-quantized")
    monkeypatch.setattr(AVAILABLE, lambda: False)
    with pytest.raises(CheckpointError) as caught:
        load_cpu(folder)
    message = str(caught.value)
    assert message.startswith(f"{folder} needs a package that is not installed: ")
    assert "pip install compressed-tensors" in message


def test_weights_that_stay_packed_are_not_counted(
    saved: Callable[[str], Path],
) -> None:
    """As GPTQ's, whose modules keep integers and no ``weight``."""
    located = locate(str(saved("pack-quantized")))
    model = pruned()
    layer = model.model.layers[0].mlp
    layer.up_proj.weight = torch.nn.Parameter(
        torch.ones(64, 4, dtype=torch.int32), requires_grad=False
    )
    with pytest.raises(CheckpointError) as caught:
        measure_sparsity(located, model=lambda: model)
    assert str(caught.value) == (
        f"{located.spec}: model.layers.0.mlp.up_proj.weight is packed (I32) "
        "also in memory: the sparsity of such weights is not counted; count the zeros "
        "of the checkpoint as it was before packing"
    )


def test_method_that_is_unknown(tmp_path: Path) -> None:
    model = pruned()
    save(model, tmp_path / "m")
    save_tokenizer(build_tokenizer(), tmp_path / "m")
    path = tmp_path / "m" / "config.json"
    config = json.loads(path.read_text())
    config["quantization_config"] = {"quant_method": "squeeze"}
    path.write_text(json.dumps(config))
    with pytest.raises(CheckpointError) as caught:
        load_cpu(tmp_path / "m")
    assert str(caught.value) == (
        f"{tmp_path / 'm'} is quantised by 'squeeze', which transformers "
        f"{transformers.__version__} does not know: measure the checkpoint as it was "
        "before quantising"
    )


@pytest.mark.skipif(TRANSFORMERS_4, reason="transformers 4 wants a GPU for it")
def test_fp8_in_blocks_without_a_gpu(tmp_path: Path) -> None:
    """As DeepSeek saves it; transformers dequantises to bfloat16 and only warns."""
    folder = tmp_path / "m"
    save(pruned().to(torch.bfloat16), folder)
    save_tokenizer(build_tokenizer(), folder)
    weights = load_file(folder / "model.safetensors")
    expected = dict(weights)
    for name in [name for name in weights if name.endswith("proj.weight")]:
        weight, b = weights[name].float(), 16
        blocks = weight.reshape(weight.shape[0] // b, b, weight.shape[1] // b, b)
        scale = blocks.abs().amax((1, 3)) / 448.0
        wide = scale.repeat_interleave(b, 0).repeat_interleave(b, 1)
        weights[name] = (weight / wide).to(torch.float8_e4m3fn)
        weights[f"{name}_scale_inv"] = scale
        expected[name] = weights[name].float() * wide
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    path = folder / "config.json"
    packing = {"quant_method": "fp8", "weight_block_size": [16, 16]}
    config = json.loads(path.read_text()) | {"quantization_config": packing}
    path.write_text(json.dumps(config))

    located = locate(str(folder))
    loaded = load(located, device="cpu", dtype="bfloat16")
    for name, parameter in loaded.model.named_parameters():
        assert torch.equal(parameter, expected[name].bfloat16())
    assert len(loaded.notices) == 1
    assert loaded.notices[0].startswith(f"{folder}: ")
    assert "dequantizing" in loaded.notices[0]
    assert measure_sparsity(located).fraction == 0.5
    with pytest.raises(CheckpointError) as caught:
        load_cpu(folder)
    message = str(caught.value)
    assert message.startswith(f"{folder} is quantised and does not run on cpu in ")
    assert message.endswith("Way out: --ppl-dtype bfloat16, or another --ppl-device")
