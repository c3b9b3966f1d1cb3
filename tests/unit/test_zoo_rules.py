"""The zoo's arithmetic: others' rules, estimates, counts; no model."""

from __future__ import annotations

import math

import pytest

from benchmarks.zoo.others import Numbers, perplexity, verdicts
from benchmarks.zoo.table import Row, divergence, kl_text, rms_shift, summary, table

SAME = Numbers(perplexity=10.0, score=0.5, new_perplexity=10.0, new_score=0.5)


def numbers(ppl: float = 10.0, score: float = 0.5, *, crashed: bool = False) -> Numbers:
    return Numbers(10.0, 0.5, ppl, score, crashed)


def green(case: Numbers) -> set[str]:
    return {rule for rule, passed in verdicts(case).items() if passed}


ALL = {"vLLM ppl", "vLLM lm-eval", "llm-compressor", "llama.cpp", "NNCF"}


@pytest.mark.parametrize(
    ("case", "red"),
    [
        (SAME, set()),
        (numbers(crashed=True), ALL),
        # 1 %, one-sided: whatever is better passes.
        (numbers(10.099), set()),
        (numbers(10.1001), {"vLLM ppl"}),
        (numbers(1.0), set()),
        # A fixed limit.
        (numbers(20.0), {"vLLM ppl"}),
        (numbers(20.001), {"vLLM ppl", "llama.cpp"}),
        # A NaN is above no limit, but no difference either.
        (numbers(math.nan, 0.0), ALL - {"llama.cpp"}),
        # Scores: two-sided 0.001, 8 %, and 0.9452 of the score that is rounded to 0.95.
        (numbers(score=0.5009), set()),
        (numbers(score=0.502), {"NNCF"}),
        (numbers(score=0.498), {"NNCF"}),
        (numbers(score=0.4726), {"NNCF"}),
        (numbers(score=0.472), {"NNCF", "llm-compressor"}),
        (numbers(score=0.4601), {"NNCF", "llm-compressor"}),
        (numbers(score=0.4599), {"NNCF", "llm-compressor", "vLLM lm-eval"}),
    ],
)
def test_rules(case: Numbers, red: set[str]) -> None:
    assert green(case) == ALL - red


def test_a_limit_that_was_exceeded_before_says_nothing() -> None:
    said = verdicts(Numbers(21.0, 0.5, 21.0, 0.5))
    assert said == {**dict.fromkeys(ALL, True), "llama.cpp": None}


def test_perplexity_from_bits_per_byte() -> None:
    # 2 bits a byte, 4 bytes a token: 8 bits a token.
    assert perplexity(2.0, size=400, tokens=100) == pytest.approx(256.0)


BEFORE = [(100.0, 50), (120.0, 50), (90.0, 50)]


def test_estimates_of_nothing() -> None:
    assert rms_shift(BEFORE, BEFORE) == 0
    assert divergence(BEFORE, BEFORE) == 0


def test_estimates_of_other_windows() -> None:
    assert rms_shift(BEFORE, BEFORE[:2]) is None
    assert divergence(BEFORE, [(1.0, 49), *BEFORE[1:]]) is None
    assert divergence(BEFORE[:1], BEFORE[:1]) is None


def test_a_shift_of_all_windows_is_no_divergence() -> None:
    after = [(loss + 5.0, count) for loss, count in BEFORE]
    assert rms_shift(BEFORE, after) == pytest.approx(0.1)
    assert divergence(BEFORE, after) == pytest.approx(0.0)


def test_estimates_of_scatter() -> None:
    after = [(101.0, 50), (117.0, 50), (92.0, 50)]  # +1, -3, +2
    assert rms_shift(BEFORE, after) == pytest.approx(
        math.sqrt((0.02**2 + 0.06**2 + 0.04**2) / 3)
    )
    # Var of 1, -3, 2 with n - 1 is 7; over 2 x 50 tokens.
    assert divergence(BEFORE, after) == pytest.approx(7 / 100)


def row(case: str = "a-case", *, harmless: bool = False, **fields: object) -> Row:
    values: dict[str, object] = {
        "base": "llama/dense",
        "case": case,
        "kind": "value",
        "what": "Something",
        "harmless": harmless,
        "damaging": not harmless,
        "kl": 0.0 if harmless else 0.25,
        "bits_change": 0.0,
        "broken": "",
        "change": 0.0 if harmless else 0.125,
        "red": {"any": not harmless},
        "named": {"any": False},
        "outcomes": (),
        "others": dict.fromkeys(ALL, True),
    }
    return Row(**(values | fields))  # type: ignore[arg-type]


def test_counts() -> None:
    rows = [
        row(),
        row("other", named={"any": True}, others=dict.fromkeys(ALL, False)),
        row("slight", damaging=False, red={"any": False}),
        row("change", harmless=True),
    ]
    assert summary(rows, ["any"]) == (
        "3 defects and 1 harmless changes over 1 checkpoints, each where it applies: "
        "2 damaging, 1 below the threshold, 1 harmless.\n"
        "\n"
        "| rule | damaging, red | culprit named | slight, red | harmless, red |\n"
        "| --- | --- | --- | --- | --- |\n"
        "| `any` | 2 of 2 | 1 of 2 | 0 of 1 | 0 of 1 |\n"
        "| vLLM ppl | 1 of 2 |  | 0 of 1 | 0 of 1 |\n"
        "| vLLM lm-eval | 1 of 2 |  | 0 of 1 | 0 of 1 |\n"
        "| llm-compressor | 1 of 2 |  | 0 of 1 | 0 of 1 |\n"
        "| llama.cpp | 1 of 2 |  | 0 of 1 | 0 of 1 |\n"
        "| NNCF | 1 of 2 |  | 0 of 1 | 0 of 1 |\n"
    )


def test_a_row() -> None:
    assert table([row()], ["any"]).splitlines()[2] == (
        "| a-case | llama/dense | **0.25** | +12.5 % | red | no "
        "| green | green | green | green | green |"
    )


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"kl": 0.0123}, "**0.012**"),
        ({"kl": 0.002, "damaging": False}, "0.002"),
        ({"kl": 1e-20, "damaging": False}, "0"),
        ({"kl": None, "bits_change": 0.034}, "**bits +3.4 %**"),
        ({"kl": None, "broken": "ValueError"}, "**broken**"),
    ],
)
def test_damage_in_a_cell(fields: dict[str, object], text: str) -> None:
    assert kl_text(row(**fields)) == text  # type: ignore[arg-type]
