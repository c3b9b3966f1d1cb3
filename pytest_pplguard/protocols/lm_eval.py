"""lm-eval's tasks: how its ``hf`` model cuts pages and answers into windows.

Follows ``loglikelihood_rolling``, ``tok_encode`` and ``prefix_token_id`` of
``lm_eval/models/huggingface.py`` (0.4.10 to 0.4.13) and calls lm-eval's own
``get_rolling_token_windows``. Pages, their detokenised text, word counts and metrics
are the task's, not ours.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

from ..errors import CorpusError, UsageError
from ..values import (
    AGGREGATION,
    ALIKE,
    DocumentResult,
    Key,
    MetricName,
    Scalar,
    Window,
    WindowScore,
)
from .base import Protocol, Text, Tokenizer, perplexity
from .cut import Cut, detokenised, encode_page, prefix_token

_CORPUS_OF_TASK = {"wikitext": "wikitext2"}


class LmEval(Protocol):
    """Word and byte perplexity by lm-eval's task ``wikitext``; any other task.

    The task ``wikitext`` reads our corpora. Of other tasks lm-eval brings documents,
    answers and metrics, see :mod:`pytest_pplguard.lm_eval_bridge`; ``metrics`` are not
    theirs.
    """

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
        return key.corpus or _CORPUS_OF_TASK.get(key.text, key.text)

    def runs_task(self, key: Key) -> bool:
        return key.text not in _CORPUS_OF_TASK

    def key_for(self, corpus: str | None, window: int, first: int | None) -> Key:
        if corpus == _CORPUS_OF_TASK[self.default_text]:
            corpus = None
        return Key(self.name, self.default_text, window, corpus=corpus, first=first)

    def check(self, key: Key) -> None:
        self.refuse_stride(key)
        if self.runs_task(key) and key.corpus is not None:
            raise UsageError(
                f"key {key}: the task {key.text} of lm-eval has documents of its own; "
                f"write {str(key).replace(f'+{key.corpus}', '')}, or a YAML that reads "
                "yours (docs/tasks.md)"
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


_WEIGHTED = "tasks by size"


def aggregation(function: str, weight_by_size: bool | None) -> str:
    """How a metric of a task, or of a group of tasks, follows from its documents.

    ``function`` is lm-eval's name, ``weight_by_size`` None for a single task.
    """
    if weight_by_size is None:
        return function
    return f"{function}, {_WEIGHTED if weight_by_size else ALIKE}"


def recompute_task(
    documents: Sequence[DocumentResult], protocol: Mapping[str, Scalar]
) -> dict[MetricName, float]:
    """The metrics of a task from what came of its documents.

    ``protocol`` says how, see :func:`aggregation`. Left out are metrics whose
    aggregation is code of the task's own.
    """
    metrics = {}
    for name, how in protocol.items():
        metric = name.removeprefix(AGGREGATION)
        if metric == name or not isinstance(how, str):
            continue
        function, _, weights = how.partition(", ")
        values: dict[str, list[Any]] = {}
        for result in documents:
            if metric in result.values:
                values.setdefault(result.task, []).append(result.values[metric])
        aggregate = _aggregation_function(function)
        if aggregate is None or not values:
            continue
        sizes = [
            len({r.document for r in documents if r.task == task}) for task in values
        ]
        if weights == ALIKE:
            sizes = [1] * len(values)
        totals = [
            aggregate(items) * size
            for items, size in zip(values.values(), sizes, strict=True)
        ]
        metrics[metric] = float(sum(totals) / sum(sizes))
    return metrics


def _aggregation_function(name: str) -> Callable[[list[Any]], float] | None:
    if name == "mean":
        return lambda items: sum(items) / len(items)
    from lm_eval.api import metrics, registry

    assert metrics  # its import fills the registry

    known = registry.AGGREGATION_REGISTRY
    found: Callable[[list[Any]], float] | None = known.get(name, None)
    return found
