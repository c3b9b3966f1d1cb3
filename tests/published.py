"""Configs of published models, as far as they decide what a model is.

Public facts, written down here: no weights, no licence's text. ``PARAMETERS`` are what
their authors say, in billions.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

_LLAMA: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_act": "silu",
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
}
_LLAMA_2 = _LLAMA | {
    "vocab_size": 32_000,
    "max_position_embeddings": 4096,
    "rope_theta": 10_000.0,
    "torch_dtype": "float16",
}

CONFIGS: dict[str, dict[str, Any]] = {
    "llama-2-7b": _LLAMA_2
    | {
        "hidden_size": 4096,
        "intermediate_size": 11_008,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 32,
    },
    "llama-2-70b": _LLAMA_2
    | {
        "hidden_size": 8192,
        "intermediate_size": 28_672,
        "num_hidden_layers": 80,
        "num_attention_heads": 64,
        "num_key_value_heads": 8,
    },
    "llama-3.1-405b": _LLAMA
    | {
        "vocab_size": 128_256,
        "hidden_size": 16_384,
        "intermediate_size": 53_248,
        "num_hidden_layers": 126,
        "num_attention_heads": 128,
        "num_key_value_heads": 8,
        "max_position_embeddings": 131_072,
        "rope_theta": 500_000.0,
        "rope_scaling": {
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        },
        "torch_dtype": "bfloat16",
    },
    "mixtral-8x7b": {
        "architectures": ["MixtralForCausalLM"],
        "model_type": "mixtral",
        "vocab_size": 32_000,
        "hidden_size": 4096,
        "intermediate_size": 14_336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "num_local_experts": 8,
        "num_experts_per_tok": 2,
        "sliding_window": None,
        "max_position_embeddings": 32_768,
        "rope_theta": 1_000_000.0,
        "torch_dtype": "bfloat16",
    },
    "gpt2": {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        "vocab_size": 50_257,
        "n_embd": 768,
        "n_layer": 12,
        "n_head": 12,
        "n_positions": 1024,
    },
}

PARAMETERS = {
    "llama-2-7b": 6.74,
    "llama-2-70b": 68.98,
    "llama-3.1-405b": 405.85,
    "mixtral-8x7b": 46.70,
    "gpt2": 0.124,
}


def save_config(folder: Path, name: str, **changes: Any) -> Path:
    """A folder with the ``config.json`` of a published model, and nothing else."""
    folder.mkdir(parents=True, exist_ok=True)
    config = {k: v for k, v in (CONFIGS[name] | changes).items() if v is not ...}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder
