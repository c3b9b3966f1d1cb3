"""Headings in front of places, told from line to line, against whole decodes."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_pplguard.measure.headings import headings_before

TEXT = "Preamble\n = One = \n\n words é words \n = = Deeper = = \n = Two = \nmore\n" * 9
Ids = Sequence[int]


def of_bytes(ids: Ids) -> str:
    """As a byte-level tokenizer: half a letter is a replacement character."""
    return bytes(ids).decode("utf-8", errors="replace")


def stripping(ids: Ids) -> str:
    """As SentencePiece: no space before the first token."""
    return of_bytes(ids).removeprefix(" ")


def looking_back(ids: Ids) -> str:
    """Every text ends otherwise than it goes on."""
    return of_bytes(ids).upper() if len(ids) % 2 else of_bytes(ids)


def counting(ids: Ids) -> str:
    """What comes first depends on how much there is."""
    return f"{len(ids)}\n{of_bytes(ids)}"


def by_hand(text: str) -> tuple[int, str]:
    titles = ("= One =", "= Two =")
    found = [line for line in text.split("\n") if line.strip().title() in titles]
    return len(found), found[-1] if found else ""


@pytest.mark.parametrize("decode", [of_bytes, stripping, looking_back, counting])
def test_as_from_whole_texts(decode: Callable[[Ids], str]) -> None:
    ids = list(TEXT.encode())
    found = headings_before(ids, range(len(ids) + 1), decode)
    assert found == {stop: by_hand(decode(ids[:stop])) for stop in found}
    assert found[len(ids)][0] == 18


def test_each_token_is_decoded_a_few_times_only() -> None:
    ids = list(TEXT.encode())
    decoded = 0

    def decode(some: Ids) -> str:
        nonlocal decoded
        decoded += len(some)
        return of_bytes(some)

    headings_before(ids, range(0, len(ids), 8), decode)
    slowly = sum(range(0, len(ids), 8))
    assert decoded < slowly / 4


@given(
    st.lists(st.sampled_from(["\n", " = A = ", "\n = B = \n", "x", "é", " "])),
    st.lists(st.integers(0, 40), max_size=5),
)
def test_any_text_and_places(parts: list[str], stops: list[int]) -> None:
    ids = list("".join(parts).encode())
    inside = [min(stop, len(ids)) for stop in stops]
    for stop, (count, last) in headings_before(ids, inside, of_bytes).items():
        lines = [line.strip() for line in of_bytes(ids[:stop]).split("\n")]
        known = [x for x in lines if x.startswith("= ") and x.endswith(" =")]
        assert count == len(known)
        assert last.strip() == (known[-1] if known else "")


def test_nothing_asked() -> None:
    assert headings_before([1, 2], [], of_bytes) == {}
