"""Baseline files with evidence that fits, for tests of what reads them."""

from __future__ import annotations

import datetime
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pytest_pplguard.baselines import record
from pytest_pplguard.values import (
    Fingerprint,
    Measurement,
    Recording,
    TensorFacts,
    WindowScore,
)

DAY = datetime.date(2026, 11, 23)
WINDOWS = "sha256:" + "1" * 64
TEXT = "sha256:" + "2" * 64
KEY = "wanda/wikitext2:16"
UP = "model.layers.0.mlp.up_proj.weight"


def measured(losses: Sequence[float], key: str = KEY, **changes: Any) -> Measurement:
    """What a model measures that loses ``losses`` in windows of 4 tokens."""
    fields: dict[str, Any] = {
        "key": key,
        "metrics": {"token_perplexity": perplexity(losses)},
        "units": {"tokens": 4 * len(losses)},
        "windows": len(losses),
        "windows_digest": WINDOWS,
        "corpus_digest": TEXT,
        "protocol": {"window": 16, "first token": "BOS 0", "official text": None},
        "evidence": tuple(WindowScore(loss, 4) for loss in losses),
        "environment": {"dtype": "float32", "torch": "2.13.0"},
        "seconds": 1.0,
    }
    return Measurement(**fields | changes)


def perplexity(losses: Sequence[float]) -> float:
    """Per token, of windows of 4 tokens."""
    return math.exp(min(700.0, math.fsum(losses) / (4 * len(losses))))


def weights(number: int = 0, zeros: int = 8) -> Fingerprint:
    """A fingerprint of weights that ``number`` tells from others."""
    facts = TensorFacts("F32", (4, 4), f"{number:032x}", zeros, "cd" * 16)
    return Fingerprint({UP: facts}, linear=(UP,))


def write(
    path: Path,
    losses: Sequence[float] = (4.0, 5.0),
    *,
    entry: str = "dense",
    base: str = "org/m",
    day: datetime.date = DAY,
    fingerprint: Fingerprint | None = None,
    key: str = KEY,
    **changes: Any,
) -> None:
    """Record a measurement of ``losses`` in the file at ``path``."""
    recording = Recording(
        file=str(path),
        checkpoint=entry,
        measurement=measured(losses, key, **changes),
        base=base,
        fingerprint=fingerprint,
    )
    record([recording], today=day)


def edit(path: Path, *changes: tuple[str, str]) -> None:
    """Replace texts that are there in a file, as somebody with an editor does."""
    text = path.read_text(encoding="utf-8")
    for old, new in changes:
        assert old in text, old
        text = text.replace(old, new)
    path.write_text(text, encoding="utf-8")
