"""Makes this folder's checkpoints with releases that still wrote these formats.

llm-compressor 0.8 and compressed-tensors 0.12 need transformers 4, so they get an
environment of their own, in which torch may be any version:

    python -m venv old
    old/bin/pip install torch transformers==4.57.3 tokenizers==0.22.1 \\
        huggingface-hub==0.36.0 datasets==4.1.1 accelerate==1.10.1 numpy==2.3.3 \\
        nvidia-ml-py pillow loguru
    old/bin/pip install --no-deps llmcompressor==0.8.1 compressed-tensors==0.12.2
    old/bin/python tests/model/third_party/make.py
    old/bin/pip install --no-deps compressed-tensors==0.5.0
    old/bin/python tests/model/third_party/make.py first

Each folder holds what the library saved, and ``dense.safetensors``: the weights as
they were in memory just before.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import LlamaConfig, LlamaForCausalLM

HERE = Path(__file__).resolve().parent


def build() -> Any:
    """A random Llama of 23 thousand weights in bfloat16; no row is a whole byte."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=320,
        hidden_size=20,
        intermediate_size=36,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=10,
        initializer_range=0.4,
        max_position_embeddings=512,
        bos_token_id=0,
        eos_token_id=1,
    )
    return LlamaForCausalLM(config).to(torch.bfloat16).eval()


def prune(model: Any, *, structured: bool) -> None:
    """Magnitude: half of every row of the decoder's linear weights, or 2 of each 4."""
    for name, module in model.model.layers.named_modules():
        if not isinstance(module, torch.nn.Linear):
            continue
        weight = module.weight.data
        groups = weight.view(-1, 4) if structured else weight
        drop = groups.abs().argsort(dim=1)[:, : groups.shape[1] // 2]
        groups.scatter_(1, drop, 0)
        assert (weight == 0).float().mean() == 0.5, name


def start(name: str, *, structured: bool) -> tuple[Path, Any]:
    """An empty folder, and a pruned model that was loaded from a folder."""
    folder = HERE / name
    shutil.rmtree(folder, ignore_errors=True)
    model = build()
    prune(model, structured=structured)
    with tempfile.TemporaryDirectory() as saved:
        model.save_pretrained(saved)
        model = LlamaForCausalLM.from_pretrained(saved, dtype="auto")
        state = {name: value.clone() for name, value in model.state_dict().items()}
    model.config._name_or_path = model.name_or_path = str(HERE)  # no Hub, please
    folder.mkdir()
    save_file(state, folder / "dense.safetensors")
    return folder, model


def finish(folder: Path) -> None:
    """Only what loading needs stays."""
    for file in folder.iterdir():
        if file.name not in ("config.json", "model.safetensors", "dense.safetensors"):
            file.unlink()
    config = json.loads((folder / "config.json").read_text())
    packing = config.get("quantization_config", config.get("compression_config"))
    print(folder.name, json.dumps(packing)[:200])


def llm_compressor(name: str, *, structured: bool) -> None:
    """Saved by llm-compressor, which chooses the format."""
    from llmcompressor.transformers.compression.compressed_tensors_utils import (
        modify_save_pretrained,
    )

    folder, model = start(name, structured=structured)
    modify_save_pretrained(model)
    model.save_pretrained(folder, skip_sparsity_compression_stats=False)
    finish(folder)


def llm_compressor_fp8(name: str) -> None:
    """2:4 and FP8 weights, as in RedHat's Sparse-Llama; dequantised is the dense."""
    from llmcompressor import oneshot
    from llmcompressor.modifiers.quantization import QuantizationModifier

    folder, model = start(name, structured=True)
    recipe = QuantizationModifier(
        targets="Linear", scheme="FP8_DYNAMIC", ignore=["lm_head"]
    )
    oneshot(model=model, recipe=recipe)
    model.save_pretrained(folder, skip_sparsity_compression_stats=False)
    finish(folder)


def compressor(name: str) -> None:
    """``sparse-bitmask``, which llm-compressor stopped choosing first."""
    from compressed_tensors import BitmaskConfig, ModelCompressor

    folder, model = start(name, structured=False)
    model_compressor = ModelCompressor(
        sparsity_config=BitmaskConfig(targets=["Linear"], ignore=["lm_head"])
    )
    model.save_pretrained(folder, state_dict=model_compressor.compress(model))
    model_compressor.update_config(folder)
    finish(folder)


if __name__ == "__main__":
    if "first" in sys.argv:
        compressor("sparse-bitmask-first")
    else:
        llm_compressor("dense-unstructured", structured=False)
        llm_compressor("sparse-24-bitmask", structured=True)
        llm_compressor_fp8("sparse-24-bitmask-fp8")
        compressor("sparse-bitmask")
