"""Rows and conclusion of ``pplguard compare``: what is computed, and how it is told."""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from pytest_pplguard.comparison import Against, Comparison, Number, Row
from pytest_pplguard.report import (
    comparison_document,
    comparison_lines,
    conclusion,
)
from pytest_pplguard.values import Measurement, Recorded, Scalar, Source

TOKEN, WORD = "wanda/wikitext2:4096", "lm-eval/wikitext:4096"

INTRODUCTION = (
    "The Wanda code gives a perplexity per token, lm-eval one per word; both are "
    "right. A word is longer than a token, so the number per word is higher, and the "
    "higher both are, the wider is the gap in percent. Two models with the same "
    "exponent, ln(per word) / ln(per token), have gaps that are the methods' own; it "
    "counts as the same if it leaves less than a tenth of a gap (in logarithms) "
    "unexplained."
)


def row(
    name: str,
    token: float | None,
    word: float | None,
    *,
    byte: float | None = None,
    windows: str | None = "sha256:w",
    pages: str | None = "sha256:p",
    text: str | None = "sha256:t",
    first_token: str = "BOS 1",
    prefix: str = "prefix 1",
    sparsity: float | None = None,
    failures: tuple[str, ...] = (),
) -> Row:
    """A row of numbers that were measured in one way, unless it is said."""

    def number(key: str, metrics: dict[str, float], digest: str | None) -> Number:
        token = key == TOKEN
        protocol: dict[str, Scalar] = {"first token": first_token if token else prefix}
        return Number(
            key=key,
            metrics=metrics,
            source="measured",
            units={"tokens": 700} if token else {"words": 500, "bytes": 2500},
            windows=3,
            windows_digest=digest,
            corpus_digest=text,
            protocol=protocol,
        )

    words = {} if word is None else {"word_perplexity": word}
    if byte is not None:
        words |= {"byte_perplexity": byte, "bits_per_byte": math.log2(byte)}
    return Row(
        name=name,
        token=None
        if token is None
        else number(TOKEN, {"token_perplexity": token}, windows),
        word=None if word is None else number(WORD, words, pages),
        sparsity=sparsity,
        sparsity_source="counted now" if sparsity is not None else "",
        failures=failures,
    )


def published(name: str, token: float, word: float | None = None) -> Row:
    """A row of published values, as ``baselines/llama-2-7b.yaml`` holds them."""

    def number(key: str, metric: str, value: float) -> Number:
        source = Source(kind="published", reference="a paper", digits=2)
        return Number.recorded(key, Recorded({metric: value}, source), {})

    return Row(
        name=name,
        token=number(TOKEN, "token_perplexity", token),
        word=None if word is None else number(WORD, "word_perplexity", word),
    )


ASSUMED = (
    "Published numbers come without their windows; that these were cut alike is "
    "assumed."
)


def told(*rows: Row) -> list[str]:
    """The paragraphs behind the introduction."""
    return conclusion(Comparison.of(rows))[1:]


# ----------------------------------------------------------------------------- numbers


def test_the_run_that_the_question_came_from() -> None:
    """Llama-2-7B: 5.12 and 8.71 dense, 6.306 and 11.22 pruned."""
    comparison = Comparison.of([row("dense", 5.12, 8.71), row("w50", 6.306, 11.22)])
    dense, pruned = comparison.rows
    (against,) = comparison.against
    # By hand: ln 8.71 = 2.16447, ln 5.12 = 1.63315, ln 6.306 = 1.84150,
    # ln 11.22 = 2.41770; 2.16447 / 1.63315 = 1.32533; 1.84150 * 1.32533 = 2.44060.
    assert dense.exponent == pytest.approx(1.32533, abs=1e-5)
    assert pruned.exponent == pytest.approx(2.41770 / 1.84150, abs=1e-5)
    assert pruned.gap == pytest.approx(0.77926, abs=1e-5)
    assert against.predicted == pytest.approx(math.exp(2.44060), rel=1e-4)
    assert against.off == pytest.approx(11.22 / math.exp(2.44060) - 1, abs=1e-4)
    # Of ln 11.22 - ln 6.306 = 0.57620, 0.32533 * 1.84150 = 0.59910 are the methods'.
    assert against.methods_share == pytest.approx(0.59910 / 0.57620, abs=1e-4)
    assert against.token_change == pytest.approx(6.306 / 5.12 - 1)
    assert against.word_change == pytest.approx(11.22 / 8.71 - 1)
    assert against.exponent == "same"


perplexities = st.floats(1.1, 1e4)
exponents = st.floats(0.5, 3.0)


@given(perplexities, perplexities, exponents)
def test_one_exponent_predicts_what_is_measured(
    dense: float, pruned: float, exponent: float
) -> None:
    (against,) = Comparison.of(
        [row("d", dense, dense**exponent), row("p", pruned, pruned**exponent)]
    ).against
    assert against.exponent == "same"
    assert against.predicted == pytest.approx(pruned**exponent, rel=1e-9)
    assert against.off == pytest.approx(0, abs=1e-9)
    if against.methods_share is not None:
        assert against.methods_share == pytest.approx(1, abs=1e-6)


@given(perplexities, perplexities, st.floats(1.05, 2.0), st.floats(-0.5, 0.5))
def test_the_methods_part_and_the_rest_make_the_gap(
    dense: float, pruned: float, exponent: float, more: float
) -> None:
    """gap = the methods' share of it + what the prediction is off, in logarithms."""
    word = pruned ** (exponent + more)
    rows = [row("d", dense, dense**exponent), row("p", pruned, word)]
    (against,) = Comparison.of(rows).against
    assert against.off is not None
    left = math.log1p(against.off)
    gap = math.log(word / pruned)
    if against.methods_share is not None:
        assert against.methods_share * gap + left == pytest.approx(gap, abs=1e-9)
    largest = max(abs(gap), abs(gap - left))
    if abs(left) < 0.0999 * largest:
        assert against.exponent == "same"
    elif abs(left) > max(0.1001 * largest, 0.0011):
        assert against.exponent == ("larger" if left > 0 else "smaller")


@given(perplexities, perplexities)
def test_a_model_beside_itself(token: float, word: float) -> None:
    (against,) = Comparison.of([row("a", token, word), row("b", token, word)]).against
    assert (against.token_change, against.word_change) == (0, 0)
    assert against.exponent == "same"


@pytest.mark.parametrize("token", [1.0, 1.005])
def test_near_one_there_is_no_exponent(token: float) -> None:
    assert row("d", token, 1.01).exponent is None
    (against,) = Comparison.of([row("d", 5.0, 8.0), row("p", token, 1.01)]).against
    assert (against.exponent, against.predicted) == (None, None)
    (against,) = Comparison.of([row("d", token, 1.01), row("p", 5.0, 8.0)]).against
    assert (against.exponent, against.predicted) == (None, None)


def test_a_prediction_beyond_any_float() -> None:
    rows = [row("d", 2.0, 8.0), row("p", 1e200, 1e205)]
    (against,) = Comparison.of(rows).against
    assert against.predicted is None
    assert against.exponent == "smaller"
    assert against.off == pytest.approx(-1)


def test_bits_are_a_difference() -> None:
    rows = [row("d", 5.0, 8.0, byte=2.0), row("p", 6.0, 9.0, byte=4.0)]
    (against,) = Comparison.of(rows).against
    assert against.bits_change == pytest.approx(1.0)


def test_tokens_a_word_are_known_of_whole_texts_only() -> None:
    whole = row("d", 5.0, 8.0)
    assert Comparison.of([whole, whole]).tokens_per_word == pytest.approx(1.4)
    assert whole.token is not None
    part = Number(
        key=f"{TOKEN}:first2", metrics={}, source="measured", units=whole.token.units
    )
    part_row = Row(name="d", token=part, word=whole.word)
    assert Comparison.of([part_row, whole]).tokens_per_word is None
    assert Comparison.of([published("d", 5, 8), whole]).tokens_per_word is None


def test_a_number_says_where_it_comes_from() -> None:
    measurement = Measurement(
        key=TOKEN,
        metrics={"token_perplexity": 2.0},
        units={"tokens": 4},
        windows=1,
        windows_digest="sha256:w",
        corpus_digest="sha256:c",
        protocol={"window": 4096},
        evidence=(),
        environment={"dtype": "float32"},
        seconds=1.0,
    )
    measured = Number.measured(measurement)
    assert (measured.source, measured.windows_digest) == ("measured", "sha256:w")
    recorded = Recorded(
        {"token_perplexity": 2.0},
        Source(kind="measured"),
        first={"token_perplexity": 2.0, "date": "2026-11-23"},
    )
    number = Number.recorded(TOKEN, recorded, {"window": 4096})
    assert (number.source, number.reference) == ("recorded", "2026-11-23")
    number = Number.recorded(
        TOKEN, Recorded({}, Source(kind="published", reference="R", digits=2)), {}
    )
    assert (number.source, number.reference, number.digits) == ("published", "R", 2)


# ------------------------------------------------------------------------------- words


def test_the_same_exponent() -> None:
    rows = [row("dense", 5.12, 8.71), row("w50", 6.306, 11.22)]
    assert conclusion(Comparison.of(rows)) == [
        INTRODUCTION.replace("longer than a token", "about 1.4 tokens here"),
        "w50 has nearly the exponent of dense (1.313, 1.325): its gap of 78 % is the "
        "methods', not the pruning's. With the exponent of dense it would read 11.48 "
        "per word; "
        "it reads 11.22, 2.3 % less. Against dense it costs +23.2 % per token and "
        "+28.8 % per word.",
    ]


def test_a_larger_exponent() -> None:
    assert told(row("dense", 5, 8, byte=1.5), row("p", 8, 20, byte=2.0)) == [
        "p has a larger exponent than dense (1.441, 1.292). With the exponent of "
        "dense it "
        "would read 14.68 per word; it reads 20, 36.2 % more. So most of its gap of "
        "150 % is the methods' (66 % of its logarithm); the rest came with the "
        "pruning. Against dense it costs +60.0 % per token, +150.0 % per word and "
        "+0.4150 bits "
        "per byte."
    ]


def test_most_of_the_gap_is_the_prunings() -> None:
    assert told(row("dense", 5, 6), row("p", 8, 20)) == [
        "p has a larger exponent than dense (1.441, 1.113). With the exponent of "
        "dense it "
        "would read 10.12 per word; it reads 20, 97.5 % more. So less than half of its "
        "gap of 150 % is the methods' (26 % of its logarithm); most of it came with "
        "the pruning. Against dense it costs +60.0 % per token and +233.3 % per word."
    ]


def test_a_gap_that_dense_has_the_other_way_round() -> None:
    intro, *rest = conclusion(Comparison.of([row("dense", 5, 4), row("p", 8, 20)]))
    assert "A word is about 1.4 tokens here, so the two numbers are not the" in intro
    assert rest == [
        "p has a larger exponent than dense (1.441, 0.861). With the exponent of "
        "dense it "
        "would read 5.996 per word; it reads 20, 233.5 % more. So the pruning has "
        "moved the two numbers apart. Against dense it costs +60.0 % per token and "
        "+400.0 % per word."
    ]


def test_a_smaller_exponent() -> None:
    assert told(row("dense", 5, 8), row("p", 8, 11)) == [
        "p has a smaller exponent than dense (1.153, 1.292). With the exponent of "
        "dense it "
        "would read 14.68 per word; it reads 11, 25.1 % less. So the pruning has "
        "narrowed the gap that the methods make. Against dense it costs +60.0 % per "
        "token and +37.5 % per word."
    ]


def test_better_than_dense() -> None:
    assert told(row("dense", 5, 8, sparsity=0.0), row("p", 4.5, 7, sparsity=0.0)) == [
        "p has nearly the exponent of dense (1.294, 1.292): its gap of 56 % is the "
        "methods', not the change's. With the exponent of dense it would read 6.982 "
        "per word; "
        "it reads "
        "7, 0.3 % more. It is better than dense, -10.0 % per token and -12.5 % per "
        "word."
    ]


def test_the_methods_do_not_agree() -> None:
    assert told(row("dense", 5, 8), row("p", 4.9, 8.1)) == [
        "p has nearly the exponent of dense (1.316, 1.292): its gap of 65 % is the "
        "methods', not the pruning's. With the exponent of dense it would read 7.794 "
        "per word; "
        "it reads "
        "8.1, 3.9 % more. Against dense it costs -2.0 % per token and +1.2 % per word. "
        "The methods do not agree on which of the two is better."
    ]


def test_equal_numbers() -> None:
    assert told(row("dense", 5, 8), row("copy", 5, 8)) == [
        "copy has the numbers of dense, by both methods: nothing was lost, and the gap "
        "is the methods'."
    ]


def test_near_one() -> None:
    near = "has a perplexity so near 1 that its exponent would be a ratio of nothings."
    assert told(row("dense", 5, 8), row("p", 1.001, 1.002)) == [
        f"p {near} It is better than dense, -80.0 % per token and -87.5 % per word."
    ]
    assert told(row("dense", 1.001, 1.002), row("p", 5, 8)) == [
        f"dense {near} Whose the gap of p is cannot be said.",
        "Against dense, per token: p +399.5 %.",
        "Against dense, per word: p +698.4 %.",
    ]


def test_another_tokenizer() -> None:
    other = row("p", 6, 9, byte=2.0, windows="sha256:x", pages="sha256:y")
    assert told(row("dense", 5, 8, byte=1.5), other) == [
        "p has another tokenizer than dense: what a token is differs, so their "
        "perplexities per token are not comparable, and their exponents need not "
        "agree. Words and bytes are the same: against dense it costs +12.5 % per word "
        "and +0.4150 bits per byte."
    ]
    (against,) = Comparison.of([row("dense", 5, 8), other]).against
    assert (against.token_change, against.predicted) == (None, None)


def test_lm_eval_that_cuts_otherwise() -> None:
    """The same tokens by Wanda, other windows by lm-eval: its rule has changed."""
    other = row("p", 6, 9, pages="sha256:y", prefix="prefix 1 and BOS")
    assert told(row("dense", 5, 8), other) == [
        "p and dense are not comparable per word: first token prefix 1 and BOS, dense "
        "prefix 1; token windows y, dense p. Against dense it costs +20.0 % per token."
    ]


def test_another_text() -> None:
    other = row("p", 6, 9, text="sha256:u", windows="sha256:x", pages="sha256:y")
    assert told(row("dense", 5, 8), other) == [
        "p and dense are not comparable per token: text u, dense t; token windows x, "
        "dense w / per word: text u, dense t; token windows y, dense p."
    ]


def test_a_published_dense_model_without_a_number_by_lm_eval() -> None:
    rows = [published("f/dense", 5.12), published("f/a", 6.42)]
    assert conclusion(Comparison.of(rows)) == [
        "Against dense, per token: a +25.4 %.",
        ASSUMED,
    ]


def test_a_model_beside_published_values() -> None:
    """What nobody knows of published windows is said; another text is not compared."""
    text, last = told(published("f/dense", 5.12, 8.71), row("p", 6.306, 11.22))
    assert text.endswith(
        "it reads 11.22, 2.3 % less. Against f/dense it costs +23.2 % per token and "
        "+28.8 % per word."
    )
    assert last == ASSUMED
    mine = row("p", 6.306, 11.22)
    assert mine.token is not None
    protocol: dict[str, Scalar] = {"official text": False}
    mine = replace(mine, token=replace(mine.token, protocol=protocol))
    text, _ = told(published("f/dense", 5.12, 8.71), mine)
    assert text.startswith(
        "p and f/dense are not comparable per token: text is not the official test "
        "split, which the value was published for. Against f/dense it costs +28.8 % "
        "per word."
    )


def test_dtypes_that_differ() -> None:
    def in_dtype(whole: Row, dtype: str) -> Row:
        assert whole.token is not None
        return replace(whole, token=replace(whole.token, environment={"dtype": dtype}))

    dense, pruned = row("dense", 5, 8), row("p", 6, 10)
    same = in_dtype(dense, "float32"), in_dtype(pruned, "float32")
    assert told(*same) == told(dense, pruned)
    *rest, last = told(in_dtype(dense, "float16"), in_dtype(pruned, "float32"))
    assert rest == told(dense, pruned)
    assert last == "p is in float32 and dense in float16: that alone moves numbers."


def test_a_model_that_was_not_measured() -> None:
    failed = row("p", 4, None, failures=(f"{WORD}: window 3: its loss is NaN",))
    comparison = Comparison.of([row("dense", 5, 8), failed, row("q", 6, 10)])
    assert not comparison.complete
    lines = comparison_lines(comparison)
    assert f"p: not measured: {WORD}: window 3: its loss is NaN" in lines
    paragraphs = conclusion(comparison)
    assert paragraphs[1:] == [
        "p could not be measured by both methods, so whose its gap is cannot be said. "
        "It is better than dense, -20.0 % per token.",
        "q has nearly the exponent of dense (1.285, 1.292): its gap of 67 % is the "
        "methods', not the pruning's. With the exponent of dense it would read 10.12 "
        "per word; "
        "it reads "
        "10, 1.2 % less. Against dense it costs +20.0 % per token and +25.0 % per "
        "word.",
    ]


def test_the_first_windows_only() -> None:
    def part(whole: Row) -> Row:
        assert whole.token is not None
        assert whole.word is not None
        return Row(
            name=whole.name,
            token=Number(
                key=f"{TOKEN}:first2", metrics=whole.token.metrics, source="measured"
            ),
            word=Number(
                key=f"{WORD}:first2", metrics=whole.word.metrics, source="measured"
            ),
        )

    rows = [part(row("dense", 5, 8)), part(row("p", 6, 10))]
    assert conclusion(Comparison.of(rows))[0] == (
        f"{INTRODUCTION} Only the first windows and pages were read, which are not the "
        "same text: the exponents are rough."
    )


# ---------------------------------------------------------------------- table and JSON


def test_the_table_and_where_its_numbers_come_from() -> None:
    rows = [
        published("llama/dense", 5.12),
        published("llama/w50", 6.306, 11.22),
        row("out/mine", 6.4, 11.4, byte=1.6, sparsity=0.5),
    ]
    assert comparison_lines(Comparison.of(rows))[:12] == [
        "model        per token  per word per byte bits/byte      gap exponent   zeros",
        "llama/dense       5.12         -        -         -        -        -       -",
        "llama/w50        6.306     11.22        -         -  +77.9 %    1.313       -",
        "out/mine           6.4      11.4      1.6  0.678072  +78.1 %    1.311 50.00 %",
        "",
        f"per token: the Wanda code, {TOKEN}",
        "  published (a paper): llama/dense, llama/w50",
        "  measured now: out/mine",
        f"per word and byte: lm-eval, {WORD}",
        "  published (a paper): llama/w50",
        "  measured now: out/mine",
        "zeros, in the linear weights of the decoder layers",
    ]


def test_the_document_has_unrounded_numbers_and_is_strict() -> None:
    comparison = Comparison.of([row("a/dense", 5.1, 8.7), row("a/p", 6.3, 11.2)])
    document = comparison_document(comparison)
    assert list(document) == [
        "schema", "models", "dense", "against", "tokens_per_word", "conclusion",
    ]  # fmt: skip
    dense, pruned = document["models"]
    assert dense["name"] == document["dense"] == "a/dense"
    assert dense["exponent"] == math.log(8.7) / math.log(5.1)
    assert pruned["gap"] == 11.2 / 6.3 - 1
    assert pruned["token"]["source"] == "measured"
    assert pruned["token"]["metrics"] == {"token_perplexity": 6.3}
    (against,) = document["against"]
    assert set(against) == set(Against.__struct_fields__)
    assert against["name"] == "a/p"
    assert against["predicted"] == comparison.against[0].predicted
    json.dumps(document, allow_nan=False)


def test_models_of_two_bases() -> None:
    """Of published values nothing but the baseline files tells."""
    one = replace(published("llama/dense", 5.47), base="org/llama")
    other = replace(published("opt/dense", 27.66), base="org/opt")
    assert conclusion(Comparison.of([one, other]))[0] == (
        "opt/dense and llama/dense are not comparable per token: one is of org/opt, "
        "the "
        "other of org/llama."
    )
    assert Comparison.of([one, other]).against[0].token_change is None


def test_a_model_without_a_number_by_one_method() -> None:
    rows = [published("f/dense", 5.12, 8.71), published("f/a", 6.42)]
    assert conclusion(Comparison.of(rows))[1:] == [
        "Against dense, per token: a +25.4 %.",
        "a has no number by lm-eval, so nothing can be said of its gap.",
        ASSUMED,
    ]
    many = [published(f"f/{name}", 6.42) for name in "abcd"]
    assert (
        "These have no number by lm-eval, so nothing can be said of their gaps."
        in conclusion(Comparison.of([rows[0], *many]))
    )
