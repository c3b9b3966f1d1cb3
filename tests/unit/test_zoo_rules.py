"""The zoo's arithmetic: others' rules, counts, cells; no model."""

from __future__ import annotations

import math

import pytest

from benchmarks.zoo.others import Numbers, perplexity, verdicts
from benchmarks.zoo.table import (
    Row,
    changes_table,
    damage_text,
    markdown,
    sensitivity,
    summary,
    table,
)
from benchmarks.zoo.verdicts import Moved

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


def moved(perplexity: float, kl: float) -> dict[str, Moved]:
    """Units of their tolerances."""
    return {
        "token_perplexity": Moved(10.0, 0.005 * perplexity, perplexity),
        "kl_divergence": Moved(0.05, 0.02 * kl, kl),
    }


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
        "red": {**dict.fromkeys(("any", "mask", "kl"), not harmless), "same": True},
        "named": False,
        "others": dict.fromkeys(ALL, True),
        "moved": moved(0.5, 3.0),
        "drift": 0.0123,
    }
    if harmless:
        values["red"] = dict.fromkeys(("any", "mask", "same", "kl"), False)
    return Row(**(values | fields))  # type: ignore[arg-type]


ONLY_SAME = {"any": False, "mask": False, "kl": False, "same": True}


def test_counts() -> None:
    rows = [
        row(),
        row("other", named=True, others=dict.fromkeys(ALL, False)),
        row("slight", damaging=False, red=ONLY_SAME),
        row("change", harmless=True),
    ]
    assert summary(rows) == (
        "3 defects and 1 harmless changes over 1 checkpoints, each where it applies: "
        "2 damaging, 1 below the threshold, 1 harmless.\n"
        "\n"
        "| rule | damaging, red | red and named | slight, red | harmless, red |\n"
        "| --- | --- | --- | --- | --- |\n"
        "| `any` | 2 of 2 | 1 of 2 | 0 of 1 | 0 of 1 |\n"
        "| `mask` | 2 of 2 |  | 0 of 1 | 0 of 1 |\n"
        "| `same` | 2 of 2 |  | 1 of 1 | 0 of 1 |\n"
        "| `kl` | 2 of 2 |  | 0 of 1 | 0 of 1 |\n"
        "| vLLM ppl | 1 of 2 |  | 0 of 1 | 0 of 1 |\n"
        "| vLLM lm-eval | 1 of 2 |  | 0 of 1 | 0 of 1 |\n"
        "| llm-compressor | 1 of 2 |  | 0 of 1 | 0 of 1 |\n"
        "| llama.cpp | 1 of 2 |  | 0 of 1 | 0 of 1 |\n"
        "| NNCF | 1 of 2 |  | 0 of 1 | 0 of 1 |\n"
    )


def test_rows() -> None:
    others = {**dict.fromkeys(ALL, True), "NNCF": False, "llama.cpp": None}
    rows = [row(), row("b", named=True, others=others), row("c", red=ONLY_SAME)]
    assert table(rows).splitlines() == [
        "### llama/dense",
        "",
        "| defect | damage | perplexity | KL | drift | red | named | others |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
        "| a-case | **0.25** | +0.5 | +3 | 0.012 | any | no |  |",
        "| b | **0.25** | +0.5 | +3 | 0.012 | any | yes | n |",
        "| c | **0.25** | +0.5 | +3 | 0.012 | same |  |  |",
    ]


def test_harmless_changes_over_all_bases() -> None:
    rows = [
        row(harmless=True, moved=moved(0.01, -0.2), drift=1e-4),
        row(harmless=True, base="b", moved=moved(-0.02, 0.1), drift=None),
        row("other", harmless=True, moved={}, drift=1e-9, red=ONLY_SAME),
    ]
    assert changes_table(rows).splitlines()[2:] == [
        "| a-case | Something | 2 | 0.02 | 0.2 | 0.0001 | - |",
        "| other | Something | 1 | - | - | 0 | llama/dense |",
    ]


def test_what_each_measure_sees() -> None:
    rows = [
        row(base="b/wanda-50", kl=0.05),
        row(base="b/wanda-50", kl=0.02, moved=moved(-2.0, 4.0)),
        row(kl=0.005, moved=moved(0.5, 0.5)),
        row(kl=None, moved={}),
    ]
    assert sensitivity(rows).splitlines()[4:6] == [
        "| pruned, 0.01 to 0.1 | 2 | 1 | 2 | 4 |",
        "| dense, 0.001 to 0.01 | 1 | 0 | 0 | 1 |",
    ]


def test_what_is_missed_is_listed() -> None:
    text = markdown(
        [
            row("missed", red=ONLY_SAME),
            row("nameless"),
            row("refused", harmless=True, red=ONLY_SAME),
        ],
        "A head.\n",
    )
    assert (
        "- missed (Something) on llama/dense: KL **0.25**, perplexity +0.5 and "
        "`kl_divergence` +3 tolerances, drift 0.012; red under same\n"
    ) in text
    assert "but not named\n\n- nameless (Something): llama/dense\n" in text
    assert "- under `same`: refused on llama/dense\n" in text


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
    assert damage_text(row(**fields)) == text  # type: ignore[arg-type]
