"""lm-eval's rolling log-likelihood: how its ``hf`` model cuts a page into windows.

Follows ``loglikelihood_rolling``, ``tok_encode`` and ``prefix_token_id`` of
``lm_eval/models/huggingface.py`` (0.4.9.2 to 0.4.13) and calls lm-eval's own
``get_rolling_token_windows``. Pages, their detokenised text, word counts and metrics
are the task's, not ours.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import ClassVar

from ..errors import CorpusError, UsageError
from ..values import Key, MetricName, Scalar, Window, WindowScore, near_matches
from .base import Protocol, Text, Tokenizer, perplexity
from .cut import Cut, detokenised, encode_page, prefix_token

_CORPUS_OF_TASK = {"wikitext": "wikitext2"}


class LmEval(Protocol):
    """Word and byte perplexity by lm-eval's task ``wikitext``."""

    name = "lm-eval"
    metrics = ("word_perplexity", "byte_perplexity", "bits_per_byte")
    default_text = "wikitext"
    cut: ClassVar[Cut] = Cut(
        text="detokenised pages",
        per_page=True,
        tail="filled backwards",
        first="prefix",
        divisor="words",
    )

    def corpus(self, key: Key) -> str:
        return key.corpus or _CORPUS_OF_TASK[key.text]

    def key_for(self, corpus: str | None, window: int, first: int | None) -> Key:
        if corpus == _CORPUS_OF_TASK[self.default_text]:
            corpus = None
        return Key(self.name, self.default_text, window, corpus=corpus, first=first)

    def check(self, key: Key) -> None:
        self.refuse_stride(key)
        if key.text not in _CORPUS_OF_TASK:
            raise UsageError(
                f"key {key}: this version runs lm-eval's task wikitext, not "
                f"{key.text!r}{near_matches(key.text, _CORPUS_OF_TASK)}; a text of "
                f"your own goes behind a plus sign: lm-eval/wikitext+{key.text}:"
                f"{key.window}"
            )

    def pages(self, text: Text, key: Key) -> tuple[str, ...]:
        """The raw pages that ``key`` reads.

        Raises:
            CorpusError: there are fewer than the key asks for.
        """
        if key.first is not None and key.first > len(text.pages):
            raise CorpusError(
                f"key {key}: the text has {len(text.pages)} pages, "
                f"fewer than the {key.first} asked for"
            )
        return tuple(text.pages[: key.first])

    def windows(self, text: Text, tokenizer: Tokenizer, key: Key) -> list[Window]:
        """Windows of at most ``key.window`` tokens; ``page`` counts the pages.

        Raises:
            CorpusError: there are fewer pages than the key asks for.
        """
        return self.rolling(detokenised(self.pages(text, key)), tokenizer, key)

    def rolling(
        self, texts: Sequence[str], tokenizer: Tokenizer, key: Key
    ) -> list[Window]:
        """The windows of texts as lm-eval hands them over."""
        prefix = prefix_token(tokenizer)
        return [
            piece
            for page, text in enumerate(texts)
            for piece in self.cut.pieces(
                encode_page(text, tokenizer, prefix), page, tokenizer, key.window
            )
        ]

    def properties(
        self, text: Text, tokenizer: Tokenizer, key: Key
    ) -> dict[str, Scalar]:
        return self.cut.properties(text, tokenizer, key.window) | {
            "tail": "kept, filled backwards",
            "divisor": "words and bytes of the raw page",
        }

    def recompute(
        self, scores: Sequence[WindowScore], units: Mapping[str, int]
    ) -> dict[MetricName, float]:
        """``weighted_perplexity`` and ``bits_per_byte`` of ``lm_eval/api/metrics``."""
        nll = math.fsum(score.nll_sum for score in scores)
        return {
            "word_perplexity": perplexity(nll / units["words"], "word"),
            "byte_perplexity": perplexity(nll / units["bytes"], "byte"),
            "bits_per_byte": nll / units["bytes"] / math.log(2),
        }
