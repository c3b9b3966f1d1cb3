"""Checkpoints whose perplexity is known exactly, for projects that tests make up.

``SPEC`` of ``--ppl-model NAME=SPEC`` is ``ppl:7.5`` for a token perplexity of 7.5 on
any text (at least 4), ``ppl:7.5,nan:3`` for a model whose third window is NaN, or
``broken`` for a checkpoint that cannot be loaded. Each load adds a line to
``loads.txt`` where pytest was started: the name, and how many models were in memory.
"""

from __future__ import annotations

import gc
import math
import weakref
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from pytest_pplguard.errors import CheckpointError
from pytest_pplguard.options import Target

LOADS = "loads.txt"
SYMBOLS = 4
_BOS, _OTHER = SYMBOLS, SYMBOLS + 1

_alive: dict[Path, weakref.WeakSet[torch.nn.Module]] = {}


class StubTokenizer:
    """One token a byte, of which only the last two bits count. Adds no BOS."""

    bos_token_id = _BOS
    eos_token_id = _BOS

    def __call__(self, text: str, **_: Any) -> SimpleNamespace:
        return SimpleNamespace(input_ids=self.encode(text))

    def encode(self, text: str, **_: Any) -> list[int]:
        return [byte % SYMBOLS for byte in text.encode()]

    def decode(self, ids: Any, **_: Any) -> str:
        return "<s>" if ids == _BOS else "?"


class StubModel(torch.nn.Module):
    """Gives every token of a text the probability ``1 / perplexity``."""

    def __init__(self, perplexity: float, nan_at: int | None = None) -> None:
        super().__init__()
        log = torch.tensor(-math.log(perplexity), dtype=torch.float64)
        self.weight = torch.nn.Parameter(log)
        self.nan_at = nan_at
        self.calls = 0

    def forward(self, input_ids: torch.Tensor) -> SimpleNamespace:
        self.calls += 1
        logits = self.weight.expand(*input_ids.shape, SYMBOLS + 2).clone()
        logits[..., _BOS] = -1e9
        logits[..., _OTHER] = torch.log1p(-SYMBOLS * torch.exp(self.weight))
        if self.calls == self.nan_at:
            logits.fill_(math.nan)
        return SimpleNamespace(logits=logits)


def make(spec: str) -> tuple[StubModel, StubTokenizer]:
    """The model and tokenizer that ``spec`` stands for."""
    options = dict(part.split(":") for part in spec.split(","))
    nan_at = int(options["nan"]) if "nan" in options else None
    return StubModel(float(options["ppl"]), nan_at), StubTokenizer()


def pytest_pplguard_load_model(
    checkpoint: Target,
) -> tuple[StubModel, StubTokenizer] | None:
    """Load stub checkpoints; anything else is left to the plugin."""
    if not checkpoint.spec.startswith(("ppl:", "broken")):
        return None
    alive = _alive.setdefault(Path.cwd(), weakref.WeakSet())
    gc.collect()
    with Path(LOADS).open("a", encoding="utf-8") as stream:
        stream.write(f"{checkpoint.name} after {len(alive)}\n")
    if checkpoint.spec == "broken":
        raise CheckpointError(f"{checkpoint.name} is broken on purpose")
    model, tokenizer = make(checkpoint.spec)
    alive.add(model)
    return model, tokenizer
