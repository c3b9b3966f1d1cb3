"""The Wanda code's perplexity: ``lib/data.py`` and ``lib/eval.py`` of locuslab/wanda.

All rows of the text are joined (WikiText-2's by a blank line, others by their recipe)
and tokenised once (one BOS at the start if the tokenizer adds it), cut into windows
without overlap, the tail dropped. Tokens 2..seqlen of each window are scored; the
perplexity is the exponential of the mean of the windows' mean losses.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import ClassVar

from ..errors import CorpusError, UsageError
from ..values import (
    WIKITEXT_RECIPE,
    Key,
    MetricName,
    Recipe,
    Scalar,
    Window,
    WindowScore,
)
from .base import Protocol, Tokenizer, perplexity


class Wanda(Protocol):
    """Token perplexity over all rows of a text."""

    name = "wanda"
    metrics: ClassVar[tuple[str, ...]] = ("token_perplexity",)
    default_text = "wikitext2"

    def corpus(self, key: Key) -> str:
        return key.text

    def key_for(self, corpus: str | None, window: int, first: int | None) -> Key:
        return Key(self.name, corpus or self.default_text, window, first=first)

    def check(self, key: Key) -> None:
        self.refuse_stride(key)
        if key.corpus is not None:
            raise UsageError(
                f"key {key}: the method {self.name} names its corpus directly; "
                f"write {self.key_for(key.corpus, key.window, key.first)}"
            )
        if key.window < 2:
            raise UsageError(f"key {key}: a window of one token scores nothing")

    def windows(
        self,
        texts: Sequence[str],
        tokenizer: Tokenizer,
        key: Key,
        *,
        recipe: Recipe = WIKITEXT_RECIPE,
    ) -> list[Window]:
        """Windows of exactly ``key.window`` tokens over the joined rows.

        Raises:
            CorpusError: the text is shorter than a window, or than ``:firstN`` asks.
        """
        ids = tuple(tokenizer(recipe.joiner.join(texts), verbose=False).input_ids)
        count = len(ids) // key.window
        if recipe.max_windows is not None:
            count = min(count, recipe.max_windows)
        if count == 0:
            raise CorpusError(
                f"key {key}: the text has {len(ids)} tokens, fewer than one window of "
                f"{key.window}; choose a shorter window or a longer text"
            )
        if key.first is not None:
            if key.first > count:
                raise CorpusError(
                    f"key {key}: the text has {count} windows of {key.window} tokens, "
                    f"fewer than the {key.first} asked for"
                )
            count = key.first
        starts = range(0, count * key.window, key.window)
        cut = (ids[start : start + key.window] for start in starts)
        return [Window(ids=window, targets=window[1:]) for window in cut]

    def properties(
        self, tokenizer: Tokenizer, key: Key, *, recipe: Recipe = WIKITEXT_RECIPE
    ) -> dict[str, Scalar]:
        first = tokenizer("a", verbose=False).input_ids[:1]
        adds_bos = tokenizer.bos_token_id is not None and list(first) == [
            tokenizer.bos_token_id
        ]
        limit = recipe.max_windows
        return {
            "window": key.window,
            "text": recipe.text,
            "first token": f"BOS {first[0]}" if adds_bos else "none",
            "tail": "dropped" if limit is None else f"dropped after {limit} windows",
            "divisor": "scored tokens",
        }

    def recompute(
        self, scores: Sequence[WindowScore], units: Mapping[str, int]
    ) -> dict[MetricName, float]:
        """``exp`` of the mean of the windows' mean losses (``lib/eval.py``)."""
        means = [score.nll_sum / score.scored for score in scores]
        return {"token_perplexity": perplexity(math.fsum(means) / len(means), "token")}
