"""Texts on the page: nothing invisible, nothing that bursts it, every digit."""

from __future__ import annotations

import math

import pytest

from pytest_pplguard.report.html.words import (
    clip,
    exact,
    percent,
    rounded,
    shown,
    signed,
    typeset,
    visible,
)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("plain\ttext\nof lines, é and 日本", "plain\ttext\nof lines, é and 日本"),
        ("\x1b[31mred\x1b[0m", r"\x1b[31mred\x1b[0m"),
        ("a\x00b\rc\x7f", r"a\x00b\x0dc\x7f"),
        ("\x9b31m", r"\x9b31m"),
        ("\u202egnp.exe", r"\u202egnp.exe"),
        ("zero\u200bwidth\ufeff", r"zero\u200bwidth\ufeff"),
        ("caf\udce9", r"caf\udce9"),
    ],
)
def test_what_is_not_seen_is_made_visible(text: str, expected: str) -> None:
    assert visible(text) == expected


def test_facts_are_typeset_but_not_what_they_quote() -> None:
    assert typeset("layer 2: mask lost, 50.0 % -> 0.0 %") == (
        "layer 2: mask lost, 50.0 % \u2192 0.0 %"
    )
    assert typeset("by 0.04 +- 0.003 nats") == "by 0.04 \u00b1 0.003 nats"
    assert typeset('by 1 +- 2, at "a -> b +- 3 +- 4"') == (
        'by 1 \u00b1 2, at "a -> b +- 3 +- 4"'
    )
    assert typeset("a->b, x +- y") == "a->b, x +- y"


def test_a_long_name_keeps_both_ends() -> None:
    assert clip("x" * 120) == "x" * 120
    assert clip("abcdefghij", 5) == "ab…ij"
    assert clip("abcdefghij", 6) == "ab…hij"
    assert len(clip("w" * 4096)) == 120


def test_a_long_word_is_cut_in_a_sentence() -> None:
    found = shown(f"the file {'w' * 4096} is\x00 gone")
    assert found == f"the file {clip('w' * 4096)} is\\x00 gone"
    short = " ".join(["w" * 199] * 50)
    assert shown(short) == short


def test_numbers() -> None:
    value = 3.260205607227695
    assert exact(value) == "3.260205607227695"
    assert rounded(value) == "3.26021"
    for nothing in (None, math.nan, math.inf):
        assert exact(nothing) == ""
        assert rounded(nothing) == "–"
        assert signed(nothing) == "–"
    assert signed(0.0399123) == "+0.0399"
    assert signed(-0.0399123) == "\N{MINUS SIGN}0.0399"
    assert percent(0.375) == "37.5 %"
    assert percent(None) == "–"
