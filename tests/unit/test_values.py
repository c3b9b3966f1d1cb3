"""Keys round-trip, and what is no key says what one looks like."""

from __future__ import annotations

import json

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_pplguard.errors import KeySyntaxError
from pytest_pplguard.values import Key, Outcome, Verdict, is_entry_name, near_matches

NAMES = st.from_regex(r"[A-Za-z][A-Za-z0-9_.-]{0,12}", fullmatch=True)
NUMBERS = st.integers(1, 10**7)


@given(
    method=NAMES,
    text=NAMES,
    window=NUMBERS,
    corpus=st.none() | NAMES,
    stride=st.none() | NUMBERS,
    first=st.none() | NUMBERS,
)
def test_every_key_survives_its_text(
    method: str,
    text: str,
    window: int,
    corpus: str | None,
    stride: int | None,
    first: int | None,
) -> None:
    key = Key(method, text, window, corpus, stride, first)
    assert Key.parse(str(key)) == key


@pytest.mark.parametrize(
    "text",
    [
        "wanda/wikitext2:4096",
        "lm-eval/wikitext:4096",
        "lm-eval/wikitext+demo:256",
        "strided/wikitext2:2048:stride512",
        "wanda/wikitext2:512:first40",
    ],
)
def test_the_designs_examples_are_keys(text: str) -> None:
    assert str(Key.parse(text)) == text


@pytest.mark.parametrize(
    "text",
    [
        "",
        "wanda",
        "wanda/wikitext2",
        "wanda/wikitext2:",
        "wanda/wikitext2:0",
        "wanda/wikitext2:04096",
        "wanda/wikitext2:4k",
        "wanda/wikitext2@4096",
        "wanda/wikitext2:4096:first",
        "wanda/wikitext2:4096:first4:stride2",
        "wanda/wiki text:4096",
        "wanda/wikitext2:4096\n",
        "wanda/wikitext2:４０９６",
    ],
)
def test_what_is_no_key_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(KeySyntaxError) as caught:
        Key.parse(text)
    assert str(caught.value) == (
        f"{text!r} is not a measurement key: expected "
        "METHOD/TEXT[+CORPUS]:WINDOW[:strideS][:shotsK][:firstN], "
        "for example wanda/wikitext2:4096 or lm-eval/wikitext+demo:256"
    )


def test_entry_names() -> None:
    assert all(map(is_entry_name, ("wanda-50", "2of4", "llama-2-7b", "a.b_c+d")))
    assert not any(map(is_entry_name, ("", "a/b", "a b", "-x", "a:b", "../x")))


def test_near_matches() -> None:
    assert near_matches("wnada", ["wanda", "lm-eval"]) == " (did you mean 'wanda'?)"
    assert near_matches("zzz", ["wanda"]) == ""


def test_a_verdict_travels_as_plain_json() -> None:
    verdict = Verdict(
        "f/n", "k", "m", Outcome.NOT_COMPARABLE, False, allowed=(1.0, None)
    )
    wire = json.loads(json.dumps(msgspec.to_builtins(verdict)))
    assert wire["outcome"] == "not comparable"
    assert msgspec.convert(wire, Verdict) == verdict
