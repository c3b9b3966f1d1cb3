"""Two methods, several models: the gap between the methods, and what pruning did to it.

Pure: numbers in, numbers out. Where perplexities are divided by other units (tokens,
words), ln of one is about a constant times ln of the other. So the gap in percent grows
with the perplexity, and the constant, the exponent, tells whose the gap is.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

from msgspec import Struct
from msgspec.structs import replace

from .gates import differences
from .values import Key, Measurement, MetricName, Recorded, Scalar, Source

TENTH = 0.1
"""Two exponents are the same where what the one leaves open of the other model's gap
(in logarithms) is at most this share of it. A share means the same at any perplexity;
for the gap of 77 % that this project began with it is 6 % of the word perplexity, twice
of what pruning that model again moves it."""

_NOISE = 1e-3
"""In logarithms. What no gap is too small to differ by: measuring again moves more."""
_NO_GAP = 0.01
"""In logarithms. Below it a share of the gap would say nothing."""
_LEAST_LOG = 0.01
"""Of a token perplexity, about 1.01: below it the exponent is a ratio of nothings."""


class Number(Struct, frozen=True, kw_only=True):
    """What one method says of one model, and where that comes from.

    ``source``: ``measured`` in this run, or ``recorded`` in a baseline file, which may
    hold what others have ``published``. ``reference`` is where it was published, or the
    day on which it was recorded first. What is not known is None or empty.
    """

    key: str
    metrics: dict[MetricName, float]
    source: Literal["measured", "recorded", "published"]
    reference: str = ""
    digits: int | None = None
    units: dict[str, int] = {}
    windows: int | None = None
    windows_digest: str | None = None
    corpus_digest: str | None = None
    protocol: dict[str, Scalar] = {}
    environment: dict[str, Scalar] = {}

    @classmethod
    def measured(cls, measurement: Measurement) -> Number:
        """Of a measurement."""
        return cls(
            key=measurement.key,
            metrics=measurement.metrics,
            source="measured",
            units=measurement.units,
            windows=measurement.windows,
            windows_digest=measurement.windows_digest,
            corpus_digest=measurement.corpus_digest,
            protocol=measurement.protocol,
            environment=measurement.environment,
        )

    @classmethod
    def recorded(
        cls, key: str, recorded: Recorded, protocol: dict[str, Scalar]
    ) -> Number:
        """Of a baseline; ``protocol`` is that of its evidence."""
        published = recorded.source.kind == "published"
        date = recorded.first.get("date")
        return cls(
            key=key,
            metrics=recorded.metrics,
            source="published" if published else "recorded",
            reference=(recorded.source.reference or "")
            if published
            else str(date or ""),
            digits=recorded.source.digits,
            units=recorded.units,
            windows=recorded.windows,
            windows_digest=recorded.windows_digest,
            corpus_digest=recorded.corpus_digest,
            protocol=protocol,
            environment=recorded.environment,
        )


class Row(Struct, frozen=True):
    """One model by both methods.

    ``token`` is the Wanda code's number, ``word`` lm-eval's; None for one that there is
    not. ``sparsity`` is the share of zeros in the linear weights of the decoder layers,
    ``sparsity_source`` where it was counted. ``failures`` say what could not be
    measured, and why; ``notes`` what else is not known. ``base`` is the model that a
    baseline is recorded of, None where that is not known.
    """

    name: str
    token: Number | None = None
    word: Number | None = None
    sparsity: float | None = None
    sparsity_source: str = ""
    failures: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    base: str | None = None

    @property
    def token_perplexity(self) -> float | None:
        """By the Wanda code."""
        return _metric(self.token, "token_perplexity")

    @property
    def word_perplexity(self) -> float | None:
        """By lm-eval."""
        return _metric(self.word, "word_perplexity")

    @property
    def byte_perplexity(self) -> float | None:
        """By lm-eval."""
        return _metric(self.word, "byte_perplexity")

    @property
    def bits_per_byte(self) -> float | None:
        """By lm-eval."""
        return _metric(self.word, "bits_per_byte")

    @property
    def gap(self) -> float | None:
        """How far the word perplexity is above the token perplexity, relative."""
        return _change(self.token_perplexity, self.word_perplexity)

    @property
    def exponent(self) -> float | None:
        """``ln(word perplexity) / ln(token perplexity)``; None near a perplexity of 1.

        Near 1 both logarithms are near 0, and their ratio says nothing.
        """
        token, word = self.token_perplexity, self.word_perplexity
        if token is None or word is None or math.log(token) < _LEAST_LOG:
            return None
        return math.log(word) / math.log(token)


class Against(Struct, frozen=True, kw_only=True):
    """A model beside the dense one; None is what cannot be said.

    ``token_differences`` and ``word_differences`` are why two numbers of one method are
    not comparable; ``other_tokenizer`` says that all of them come from another
    tokenizer, which word and byte perplexities outlive and token perplexities do not.
    ``token_change`` and ``word_change`` are relative (0.05 is +5 %), ``bits_change`` is
    in bits per byte. ``predicted`` is the word perplexity that the dense model's
    exponent gives for this model's token perplexity, ``off`` how far the measured one
    is from it, relative. ``methods_share`` is the share of this model's gap (in
    logarithms) that the dense model's exponent gives; above 1 it gives more than there
    is. ``dtypes`` are this model's and the dense one's, where they differ.
    """

    name: str
    dtypes: tuple[str, ...] = ()
    token_differences: tuple[str, ...] = ()
    word_differences: tuple[str, ...] = ()
    other_tokenizer: bool = False
    token_change: float | None = None
    word_change: float | None = None
    bits_change: float | None = None
    predicted: float | None = None
    off: float | None = None
    methods_share: float | None = None
    exponent: Literal["same", "larger", "smaller"] | None = None


class Comparison(Struct, frozen=True):
    """Rows, the first of them the dense model's, and each other one beside it.

    ``tokens_per_word`` is of the dense model's tokenizer, roughly: the Wanda code's
    scored tokens over lm-eval's words. None where that is not known, or where the two
    methods read different parts of the text (``:firstN``).
    """

    rows: tuple[Row, ...]
    against: tuple[Against, ...]
    tokens_per_word: float | None = None

    @classmethod
    def of(cls, rows: Sequence[Row]) -> Comparison:
        """Compare every row with the first one."""
        dense, *others = rows
        return cls(
            rows=tuple(rows),
            against=tuple(_against(dense, other) for other in others),
            tokens_per_word=_tokens_per_word(dense),
        )

    @property
    def complete(self) -> bool:
        """Whether everything that was asked for was measured."""
        return not any(row.failures for row in self.rows)


def _against(dense: Row, other: Row) -> Against:
    tokens = _differences(dense, dense.token, other.token) or _bases(dense, other)
    words = _differences(dense, dense.word, other.word)
    other_tokenizer = bool(tokens) and _same_words(dense, other)
    found = Against(
        name=other.name,
        dtypes=_dtypes(dense, other),
        token_differences=tokens,
        word_differences=() if other_tokenizer else words,
        other_tokenizer=other_tokenizer,
        token_change=None
        if tokens
        else _change(dense.token_perplexity, other.token_perplexity),
    )
    if not found.word_differences:
        found = replace(
            found,
            word_change=_change(dense.word_perplexity, other.word_perplexity),
            bits_change=_minus(other.bits_per_byte, dense.bits_per_byte),
        )
    if tokens or words:
        return found
    return _with_prediction(found, dense.exponent, other)


def _with_prediction(found: Against, exponent: float | None, other: Row) -> Against:
    """With what the dense model's ``exponent`` says of the other model's gap."""
    token, word = other.token_perplexity, other.word_perplexity
    if exponent is None or other.exponent is None or token is None or word is None:
        return found
    log_token, gap = math.log(token), math.log(word) - math.log(token)
    methods = (exponent - 1) * log_token
    left = gap - methods
    bound = max(TENTH * max(abs(gap), abs(methods)), _NOISE)
    return replace(
        found,
        predicted=_exp(exponent * log_token),
        off=_off(left),
        methods_share=methods / gap
        if abs(gap) >= _NO_GAP and methods * gap > 0
        else None,
        exponent="same" if abs(left) <= bound else "larger" if left > 0 else "smaller",
    )


def _differences(
    dense: Row, one: Number | None, other: Number | None
) -> tuple[str, ...]:
    """Why two numbers of one method are not comparable, as far as it is known."""
    if one is None or other is None:
        return ()
    if other.windows_digest is None:  # published: it can only be what is compared with
        one, other, name = other, one, "published"
    else:
        name = dense.name
    if other.windows_digest is None:
        return ()
    return tuple(
        line.replace(", baseline ", f", {name} ")
        for line in differences(_measurement(other), _recorded(one), one.protocol)
        # A published value has seldom all metrics, and those it has are compared.
        if not line.startswith("metric ")
    )


def _bases(dense: Row, other: Row) -> tuple[str, ...]:
    """That two baselines are of two models; of published ones nothing else tells."""
    if None in (dense.token, other.token) or dense.base == other.base:
        return ()
    if dense.base is None or other.base is None:
        return ()
    return (f"one is of {other.base}, the other of {dense.base}",)


def _same_words(dense: Row, other: Row) -> bool:
    """Whether lm-eval read one text and counted the same words, tokens aside.

    Both methods then cut one text into other tokens, which is another tokenizer. A
    rule of lm-eval that changed would leave the Wanda code's windows as they were.
    """
    here, there = dense.word, other.word
    return (
        here is not None
        and there is not None
        and here.corpus_digest is not None
        and here.corpus_digest == there.corpus_digest
        and here.units == there.units
        and here.key == there.key
        and here.windows_digest != there.windows_digest
    )


def _dtypes(dense: Row, other: Row) -> tuple[str, ...]:
    """The dtypes of two models, if both are known and differ: it moves a number."""
    here, there = (
        {
            str(number.environment["dtype"])
            for number in (row.token, row.word)
            if number is not None and "dtype" in number.environment
        }
        for row in (other, dense)
    )
    if not here or not there or here == there:
        return ()
    return ", ".join(sorted(here)), ", ".join(sorted(there))


def _measurement(number: Number) -> Measurement:
    return Measurement(
        key=number.key,
        metrics=number.metrics,
        units=number.units,
        windows=number.windows or 0,
        windows_digest=number.windows_digest or "",
        corpus_digest=number.corpus_digest or "",
        protocol=number.protocol,
        evidence=(),
        environment=number.environment,
        seconds=0.0,
    )


def _recorded(number: Number) -> Recorded:
    published = number.source == "published"
    return Recorded(
        metrics=number.metrics,
        source=Source(
            kind="published" if published else "measured",
            reference=number.reference or None,
        ),
        windows=number.windows,
        units=number.units,
        windows_digest=number.windows_digest,
        corpus_digest=number.corpus_digest,
        environment=number.environment,
    )


def _tokens_per_word(dense: Row) -> float | None:
    if dense.token is None or dense.word is None:
        return None
    tokens, words = dense.token.units.get("tokens"), dense.word.units.get("words")
    parts = any(
        Key.parse(number.key).first is not None for number in (dense.token, dense.word)
    )
    return None if parts or not tokens or not words else tokens / words


def _metric(number: Number | None, name: MetricName) -> float | None:
    return None if number is None else number.metrics.get(name)


def _change(before: float | None, now: float | None) -> float | None:
    return None if before is None or now is None else now / before - 1


def _minus(now: float | None, before: float | None) -> float | None:
    return None if before is None or now is None else now - before


def _exp(log: float) -> float | None:
    """None where it is too large for a float."""
    try:
        return math.exp(log)
    except OverflowError:
        return None


def _off(log: float) -> float | None:
    try:
        return math.expm1(log)
    except OverflowError:
        return None
