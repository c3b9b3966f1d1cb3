"""Draws calibration samples from a text, as the Wanda code draws them."""

from __future__ import annotations

import hashlib
import random
from pathlib import Path
from typing import Any

import torch
from msgspec import Struct
from torch import Tensor

from pytest_pplguard.errors import CorpusError

PYDOC_TOPICS = "pydoc-topics"


class Text(Struct, frozen=True):
    """A calibration text, and the name under which it is recorded."""

    name: str
    content: str

    @property
    def digest(self) -> str:
        """``sha256:`` over the text in UTF-8."""
        return f"sha256:{hashlib.sha256(self.content.encode()).hexdigest()}"


def open_text(source: str) -> Text:
    """A UTF-8 file, or the topics of Python's ``help()`` for ``pydoc-topics``.

    The topics are sorted by name and joined by blank lines. They need no download, and
    differ between Python versions: the digest tells.

    Raises:
        CorpusError: there is no such file, or it is no text.
    """
    if source == PYDOC_TOPICS:
        from pydoc_data.topics import topics

        return Text(PYDOC_TOPICS, "\n\n".join(topics[name] for name in sorted(topics)))
    path = Path(source)
    try:
        return Text(path.name, path.read_bytes().decode())
    except OSError as error:
        raise CorpusError(
            f"the calibration text {source} cannot be read: {error.strerror}. Give a "
            f"text file, or {PYDOC_TOPICS}"
        ) from error
    except UnicodeDecodeError as error:
        raise CorpusError(
            f"the calibration text {source} is not UTF-8: {error.reason} at byte "
            f"{error.start}"
        ) from error


def draw_samples(
    text: Text, tokenizer: Any, *, samples: int, length: int, seed: int
) -> list[Tensor]:
    """Token ids, ``samples`` times ``(1, length)``, from random places of the text.

    Encodes the whole text once and draws starts like ``get_wikitext2`` in
    ``lib/data.py`` of the Wanda code; samples may overlap.

    Raises:
        CorpusError: the text has no more than ``length`` tokens.
    """
    ids = torch.tensor(tokenizer(text.content, verbose=False).input_ids)
    if len(ids) <= length:
        raise CorpusError(
            f"the calibration text {text.name} has {len(ids)} tokens, and samples of "
            f"{length} need at least {length + 1}: give a longer text or a smaller "
            "--length"
        )
    draw = random.Random(seed)
    starts = [draw.randint(0, len(ids) - length - 1) for _ in range(samples)]
    return [ids[start : start + length].unsqueeze(0) for start in starts]
