"""Cuts a text into windows by a set of properties, each of which can change alone.

Most methods of measuring a perplexity differ in a handful of decisions. A method that
says how it decides (:class:`Cut`) is cut here, compared by its properties, and can be
one end of ``pplguard explain``, which walks from one method to another.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import ClassVar, Literal, get_args, get_type_hints

from msgspec import Struct
from msgspec.structs import replace

from ..errors import CorpusError, UsageError
from ..values import Key, MetricName, Scalar, Window, WindowScore, near_matches
from .base import Protocol, Text, Tokenizer, perplexity


class Cut(Struct, frozen=True, kw_only=True):
    """How a text becomes windows, which of their tokens count, and what divides.

    text:
        ``rows`` are joined as the text's recipe says; ``file`` is the raw file that
        they come from; ``detokenised pages`` are lm-eval's.
    per_page:
        Whether windows end with the page, and each page is tokenised by itself.
    tail:
        Of tokens too few for a window: ``dropped``; ``kept``, a shorter window; or
        ``filled backwards`` to a whole one with tokens that are not scored again.
    first:
        ``as it is``: a window's first token is read and never scored. ``BOS in its
        place``: the same, but a BOS is read if the tokenizer adds one. ``prefix``:
        every token is scored; a BOS (else EOS) stands before the first, and before each
        further window the token that comes before it.
    scored:
        ``all`` that are not scored yet, or the ``second half`` of each window.
    mean:
        Over ``tokens``; over ``windows``' means; or over windows' means ``weighted`` by
        the tokens that each adds to those before it, less one. Where windows overlap,
        all but the first score every token that they add, so that this is no mean of
        tokens.
    divisor:
        Scored ``tokens``, or ``words`` of the raw pages as lm-eval counts them.
    """

    text: Literal["rows", "file", "detokenised pages"] = "rows"
    per_page: bool = False
    tail: Literal["dropped", "kept", "filled backwards"] = "dropped"
    first: Literal["as it is", "BOS in its place", "prefix"] = "as it is"
    scored: Literal["all", "second half"] = "all"
    mean: Literal["tokens", "windows", "weighted"] = "tokens"
    divisor: Literal["tokens", "words"] = "tokens"

    def __post_init__(self) -> None:
        """Refuse a word that means nothing.

        Raises:
            UsageError: one is not among those above.
        """
        for name, words in _words().items():
            word = getattr(self, name)
            if word not in words:
                raise UsageError(
                    f"Cut({name}={word!r}): expected one of "
                    f"{', '.join(map(repr, words))}{near_matches(str(word), words)}"
                )

    def windows(
        self,
        text: Text,
        tokenizer: Tokenizer,
        window: int,
        *,
        stride: int | None = None,
    ) -> list[Window]:
        """The windows of a text; those without a token to score are left out.

        Args:
            text: the corpus.
            tokenizer: of the model.
            window: tokens that the model reads at once, at least 2; 1 with a prefix.
            stride: tokens from one window's start to the next, None for ``window``.

        Raises:
            UsageError: the tokenizer has no token that could be the prefix.
            CorpusError: the last window scores nothing, and has a mean to contribute.
        """
        return list(self.iterate(text, tokenizer, window, stride=stride))

    def iterate(
        self,
        text: Text,
        tokenizer: Tokenizer,
        window: int,
        *,
        stride: int | None = None,
    ) -> Iterator[Window]:
        """As :meth:`windows`, one after the other."""
        limit = text.recipe.max_windows if self._follows_recipe else None
        for page, ids in self.streams(text, tokenizer):
            read = ids if limit is None else ids[: limit * window]
            yield from self.pieces(read, page, tokenizer, window, stride=stride)

    @property
    def _follows_recipe(self) -> bool:
        """Whether a text ends where its recipe says."""
        return self.text == "rows" and not self.per_page

    def tokens(
        self, scores: Sequence[WindowScore], window: int, stride: int | None = None
    ) -> int:
        """The tokens that a mean loss divides by, which :meth:`value` is to be given.

        Scored ones; where overlapping windows are weighted, less one a window but for
        the first.
        """
        scored = sum(score.scored for score in scores)
        if self.mean == "weighted" and stride is not None and stride < window:
            return scored - max(0, len(scores) - 1)
        return scored

    def value(self, scores: Sequence[WindowScore], units: Mapping[str, int]) -> float:
        """The perplexity, per token or per word.

        Args:
            scores: of the windows, in their order.
            units: ``words`` if they divide; ``tokens`` if windows are weighted, as
                :meth:`tokens` counts them.

        Raises:
            InvalidLossError: the losses are beyond any finite perplexity.
        """
        # Of equal windows both means are one number: the originals take this one, and
        # what was recorded by it must follow to the last digit.
        equal = len({score.scored for score in scores}) == 1
        if self.mean == "windows" or (
            self.mean == "tokens" and self.divisor == "tokens" and equal
        ):
            means = [score.nll_sum / score.scored for score in scores]
            nll, tokens = math.fsum(means), len(means)
        elif self.mean == "weighted":
            tokens = units["tokens"]
            less = int(tokens < sum(score.scored for score in scores))
            nll = math.fsum(
                score.nll_sum / score.scored * (score.scored - (less if i else 0))
                for i, score in enumerate(scores)
            )
        else:
            nll = math.fsum(score.nll_sum for score in scores)
            tokens = sum(score.scored for score in scores)
        if self.divisor == "words":
            return perplexity(nll / units["words"], "word")
        return perplexity(nll / tokens, "token")

    def properties(
        self, text: Text, tokenizer: Tokenizer, window: int, stride: int | None = None
    ) -> dict[str, Scalar]:
        """The decisions in words; what is usual is left out."""
        limit = text.recipe.max_windows
        capped = limit is not None and self._follows_recipe
        found: dict[str, Scalar] = {
            "window": window,
            "text": text.recipe.text if self.text == "rows" else self.text,
            "first token": self._first_token(tokenizer),
            "tail": f"{self.tail} after {limit} windows" if capped else self.tail,
            "divisor": "scored tokens" if self.divisor == "tokens" else "words",
        }
        if stride is not None:
            found["stride"] = stride
        if self.scored != "all":
            found["scored"] = self.scored
        if self.mean != "tokens":
            found["mean"] = _MEANS[self.mean]
        return found

    def _first_token(self, tokenizer: Tokenizer) -> str:
        bos = added_bos(tokenizer)
        if self.first == "prefix":
            prefix = prefix_token(tokenizer)
            twice = encode_page("a", tokenizer, prefix)[:1] == [prefix]
            return f"prefix {prefix}" + (" and BOS" if twice else "")
        if bos is None:
            return "none"
        return f"BOS {bos}" + (" in each window" if self.first != "as it is" else "")

    def streams(
        self, text: Text, tokenizer: Tokenizer
    ) -> Iterator[tuple[int | None, Sequence[int]]]:
        """Token ids to be cut, with the page that they are if they are one."""
        if self.per_page:
            whole = self.text == "detokenised pages"
            pages = detokenised(text.pages) if whole else text.pages
            yield from (
                (i, self._encode(page, tokenizer)) for i, page in enumerate(pages)
            )
            return
        if self.text == "detokenised pages":
            joined = "\n".join(detokenised(text.pages))
        else:
            joined = joined_rows(text) if self.text == "rows" else raw_file(text)
        yield None, self._encode(joined, tokenizer)

    def _encode(self, text: str, tokenizer: Tokenizer) -> Sequence[int]:
        if self.first == "prefix":
            return encode_page(text, tokenizer, prefix_token(tokenizer))
        ids: list[int] = tokenizer(text, verbose=False).input_ids
        return ids

    def pieces(
        self,
        ids: Sequence[int],
        page: int | None,
        tokenizer: Tokenizer,
        window: int,
        *,
        stride: int | None = None,
    ) -> Iterator[Window]:
        """The windows of token ids: those of ``page``, or of the whole text (None).

        Raises:
            CorpusError: as :meth:`windows`.
        """
        if self.first == "prefix":
            yield from self._prefixed(ids, page, prefix_token(tokenizer), window)
            return
        bos = added_bos(tokenizer) if self.first == "BOS in its place" else None
        done = 0
        for start in range(0, len(ids), stride or window):
            end = min(start + window, len(ids))
            begin = start
            if end - start < window:
                if self.tail == "dropped":
                    return
                if self.tail == "filled backwards":
                    begin = max(0, end - window)
            after = begin + (window // 2 if self.scored == "second half" else 0)
            scored = max(done, after + 1)
            read = tuple(ids[begin:end])
            if bos is not None:
                read = (bos, *read[1:])
            if scored < end:
                yield Window(read, tuple(ids[scored:end]), scored - begin - 1, page)
            elif start and self.mean != "tokens":
                before = start // (stride or window)
                raise CorpusError(
                    f"window {before + 1}, the text's last, has one token and scores "
                    "none, so the mean over windows would be NaN, as it is in the "
                    "original code; take another window, or leave it out with "
                    f":first{before}"
                )
            done = end
            if end == len(ids):
                return

    def _prefixed(
        self, ids: Sequence[int], page: int | None, prefix: int, window: int
    ) -> Iterator[Window]:
        """lm-eval's rolling windows; the others differ from them in the tail only."""
        from lm_eval.utils import get_rolling_token_windows

        for read, targets in get_rolling_token_windows(
            token_list=list(ids), prefix_token=prefix, max_seq_len=window, context_len=1
        ):
            if len(targets) < window and self.tail == "dropped":
                return
            # Of the tokens that fill the window, kept is the one before the first.
            start = 0 if self.tail == "kept" else len(read) - len(targets)
            kept = tuple(read[-len(targets) - start :])
            yield Window(kept, tuple(targets), start, page)


_MEANS = {
    "windows": "of windows, each counting as much",
    "weighted": "of windows, weighted by the tokens that each adds less one",
}


@functools.cache
def _words() -> dict[str, tuple[str, ...]]:
    """What may stand for each property that is a word."""
    hints = get_type_hints(Cut)
    return {name: words for name in hints if (words := get_args(hints[name]))}


class CutProtocol(Protocol):
    """A method that is a :class:`Cut` of a text, and yields a token perplexity.

    A text with fewer than ``fewest`` windows is too short for it.
    """

    metrics: ClassVar[tuple[str, ...]] = ("token_perplexity",)
    default_text = "wikitext2"
    cut: ClassVar[Cut]
    fewest: ClassVar[int] = 1

    def corpus(self, key: Key) -> str:
        return key.text

    def key_for(self, corpus: str | None, window: int, first: int | None) -> Key:
        return Key(self.name, corpus or self.default_text, window, first=first)

    def check(self, key: Key) -> None:
        self.check_stride(key)
        if key.corpus is not None:
            raise UsageError(
                f"key {key}: the method {self.name} names its corpus directly; "
                f"write {replace(key, text=key.corpus, corpus=None)}"
            )
        if key.window < 2:
            raise UsageError(f"key {key}: a window of one token scores nothing")

    def check_stride(self, key: Key) -> None:
        """Raise :class:`UsageError` if the key's stride is none for this method."""
        self.refuse_stride(key)

    def windows(self, text: Text, tokenizer: Tokenizer, key: Key) -> list[Window]:
        """The first windows of the text, or all.

        Raises:
            CorpusError: the text is shorter than a window, or than ``:firstN`` asks;
                or its last window has no mean, see :meth:`Cut.windows`.
        """
        wanted = None if key.first is None else max(key.first, self.fewest)
        every = self.cut.iterate(text, tokenizer, key.window, stride=key.stride)
        try:
            cut = list(itertools.islice(every, wanted))
        except CorpusError as error:
            raise CorpusError(f"key {key}: {error}") from error
        if len(cut) < self.fewest:
            count = sum(len(ids) for _, ids in self.cut.streams(text, tokenizer))
            needed = "one window" if self.fewest == 1 else f"{self.fewest} windows"
            raise CorpusError(
                f"key {key}: the text has {count} tokens, fewer than {needed} of "
                f"{key.window}; choose a shorter window or a longer text"
            )
        if key.first is not None and key.first > len(cut):
            raise CorpusError(
                f"key {key}: the text has {len(cut)} windows of {key.window} tokens, "
                f"fewer than the {key.first} asked for"
            )
        return cut[: key.first]

    def properties(
        self, text: Text, tokenizer: Tokenizer, key: Key
    ) -> dict[str, Scalar]:
        return self.cut.properties(text, tokenizer, key.window, key.stride)

    def units(self, scores: Sequence[WindowScore], key: Key) -> dict[str, int]:
        return {"tokens": self.cut.tokens(scores, key.window, key.stride)}

    def recompute(
        self, scores: Sequence[WindowScore], units: Mapping[str, int]
    ) -> dict[MetricName, float]:
        return {self.metrics[0]: self.cut.value(scores, units)}


def joined_rows(text: Text) -> str:
    """All rows as one text, as the corpus's recipe joins them."""
    return text.recipe.joiner.join(text.rows)


def raw_file(text: Text) -> str:
    """The file that the rows of a text were read from, without its last line end.

    WikiText's rows are lines with their ends, ``""`` for its blank line of one space;
    rows of any other text are documents, which no file holds: they are joined.
    """
    if not all(row == "" or row.endswith("\n") for row in text.rows):
        return joined_rows(text)
    return "".join(row or " \n" for row in text.rows).removesuffix("\n")


def detokenised(pages: Sequence[str]) -> list[str]:
    """The pages as lm-eval's task ``wikitext`` reads them, by its own detokeniser."""
    from lm_eval.tasks.wikitext.preprocess_wikitext import wikitext_detokenizer

    return [wikitext_detokenizer({"page": page}) for page in pages]


def count_words(pages: Sequence[str]) -> int:
    """Words of raw pages as lm-eval's task ``wikitext`` counts them."""
    from lm_eval.tasks.wikitext.preprocess_wikitext import process_results

    counts = (process_results({"page": page}, (0.0,)) for page in pages)
    return sum(count["word_perplexity"][1] for count in counts)


def added_bos(tokenizer: Tokenizer) -> int | None:
    """The BOS token if the tokenizer puts it before a text."""
    bos = tokenizer.bos_token_id
    first = list(tokenizer("a", verbose=False).input_ids[:1])
    return bos if bos is not None and first == [bos] else None


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


def encode_page(text: str, tokenizer: Tokenizer, prefix: int) -> list[int]:
    """Token ids as ``tok_encode`` of lm-eval's ``hf`` model gives them."""
    if text.startswith(tokenizer.decode(prefix)):
        return tokenizer.encode(text, add_special_tokens=False, verbose=False)
    return tokenizer.encode(text, verbose=False)
