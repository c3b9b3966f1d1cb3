"""Small decoders of numpy arrays, and their fingerprints."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy

from pytest_pplguard.checkpoints import Stream, tensor_facts
from pytest_pplguard.values import Fingerprint

Array = numpy.ndarray[Any, Any]
Weights = dict[str, Array]

LAYERS, HIDDEN, WIDE = 6, 24, 40
KINDS = {
    "input_layernorm": (HIDDEN,),
    "self_attn.q_proj": (HIDDEN, HIDDEN),
    "self_attn.k_proj": (HIDDEN, HIDDEN),
    "mlp.up_proj": (WIDE, HIDDEN),
    "mlp.down_proj": (HIDDEN, WIDE),
}
NORM, EMBEDDING = "model.norm.weight", "model.embed_tokens.weight"
CONFIG = {"model_type": "llama", "rope_theta": 10000.0, "vocab_size": 50}
TOKENIZER = {"bos_token": "<s>", "vocabulary": "50 tokens, 0123456789abcdef"}


def at(layer: int, kind: str) -> str:
    return f"model.layers.{layer}.{kind}.weight"


def decoder(seed: int = 0, *, pruned: bool = False) -> Weights:
    """Random weights of a decoder; half of the linear ones zero if ``pruned``."""
    rng = numpy.random.default_rng(seed)
    weights = {EMBEDDING: rng.normal(0, 0.1, (50, HIDDEN)).astype("f4")}
    for layer in range(LAYERS):
        for kind, shape in KINDS.items():
            drawn = rng.normal(0, 0.1, shape).astype("f4")
            if kind == "input_layernorm":
                drawn = 1 + drawn
            elif pruned:
                drawn[numpy.abs(drawn) < numpy.median(numpy.abs(drawn))] = 0
            weights[at(layer, kind)] = drawn
    weights[NORM] = (1 + rng.normal(0, 0.1, HIDDEN)).astype("f4")
    return weights


def stream(name: str, values: Array) -> Stream:
    dtype = {"f2": "F16", "f4": "F32", "f8": "F64"}[values.dtype.str[1:]]
    flat = numpy.ascontiguousarray(values).reshape(-1)

    def read(unit: int = 1) -> Iterator[Any]:
        yield flat.view(f"<u{flat.itemsize}")

    return Stream(name, dtype, values.shape, read)


def linear(weights: Mapping[str, Array]) -> tuple[str, ...]:
    return tuple(sorted(name for name in weights if "_proj." in name))


def taken(
    weights: Mapping[str, Array],
    *,
    config: Mapping[str, Any] = CONFIG,
    tokenizer: Mapping[str, str] = TOKENIZER,
) -> Fingerprint:
    """The fingerprint of weights."""
    facts = tensor_facts([stream(name, values) for name, values in weights.items()])
    return Fingerprint(
        tensors=facts,
        linear=linear(weights),
        config=dict(config),
        tokenizer=dict(tokenizer),
    )
