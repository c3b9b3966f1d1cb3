"""lm-eval's rolling log-likelihood: how its ``hf`` model cuts a page into windows.

Follows ``loglikelihood_rolling``, ``tok_encode`` and ``prefix_token_id`` of
``lm_eval/models/huggingface.py`` (0.4.9.2 to 0.4.13) and calls lm-eval's own
``get_rolling_token_windows``. Pages, their detokenised text, word counts and metrics
are the task's, not ours.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from ..errors import UsageError
from ..values import (
    WIKITEXT_RECIPE,
    Key,
    MetricName,
    Recipe,
    Scalar,
    Window,
    WindowScore,
    near_matches,
)
from .base import Protocol, Tokenizer, perplexity

_CORPUS_OF_TASK = {"wikitext": "wikitext2"}


class LmEval(Protocol):
    """Word and byte perplexity by lm-eval's task ``wikitext``."""

    name = "lm-eval"
    metrics = ("word_perplexity", "byte_perplexity", "bits_per_byte")
    default_text = "wikitext"

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

    def windows(
        self,
        texts: Sequence[str],
        tokenizer: Tokenizer,
        key: Key,
        *,
        recipe: Recipe = WIKITEXT_RECIPE,
    ) -> list[Window]:
        """Windows of at most ``key.window`` tokens; ``page`` counts the texts."""
        from lm_eval.utils import get_rolling_token_windows

        prefix = prefix_token(tokenizer)
        windows = []
        for page, text in enumerate(texts):
            for ids, targets in get_rolling_token_windows(
                token_list=self._encode(text, tokenizer, prefix),
                prefix_token=prefix,
                max_seq_len=key.window,
                context_len=1,
            ):
                windows.append(
                    Window(
                        ids=tuple(ids),
                        targets=tuple(targets),
                        start=len(ids) - len(targets),
                        page=page,
                    )
                )
        return windows

    def properties(
        self, tokenizer: Tokenizer, key: Key, *, recipe: Recipe = WIKITEXT_RECIPE
    ) -> dict[str, Scalar]:
        prefix = prefix_token(tokenizer)
        adds_bos = self._encode("a", tokenizer, prefix)[:1] == [prefix]
        return {
            "window": key.window,
            "text": "detokenised pages",
            "first token": f"prefix {prefix}" + (" and BOS" if adds_bos else ""),
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

    @staticmethod
    def _encode(text: str, tokenizer: Tokenizer, prefix: int) -> list[int]:
        if text.startswith(tokenizer.decode(prefix)):
            return tokenizer.encode(text, add_special_tokens=False, verbose=False)
        return tokenizer.encode(text, verbose=False)


def prefix_token(tokenizer: Tokenizer) -> int:
    """The token that opens every page: BOS, or EOS where there is no BOS.

    Raises:
        UsageError: the tokenizer has neither.
    """
    if tokenizer.bos_token_id is not None:
        return tokenizer.bos_token_id
    if tokenizer.eos_token_id is not None:
        return tokenizer.eos_token_id
    raise UsageError(
        "the method lm-eval needs a prefix token, and this tokenizer has neither a BOS "
        "nor an EOS token; set bos_token in its tokenizer_config.json"
    )
