"""Places of windows, against character offsets in the text itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from pytest_pplguard.corpora import Corpus, open_corpus
from pytest_pplguard.errors import MeasurementError
from pytest_pplguard.measure.places import cut_windows, shorten, window_places
from pytest_pplguard.protocols import windows_digest
from pytest_pplguard.values import Key
from tests.model.tiny import save_tiny

DEMO = Path(__file__).parents[2] / "pytest_pplguard" / "demo"
CORPUS = open_corpus("demo", {})


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(DEMO / "dense")


def places(tokenizer: Any, key: str, *indices: int, corpus: Corpus = CORPUS) -> Any:
    return window_places(indices, tokenizer, corpus, Key.parse(key))


def squeezed(text: str) -> str:
    return "".join(text.split())


def test_windows_across_pages_name_the_page_in_which_they_begin(
    tokenizer: Any,
) -> None:
    text = "\n\n".join(CORPUS.rows)
    headings = [
        row for row in CORPUS.rows if row.startswith(" = ") and "= =" not in row
    ]
    starts = [text.index(heading) for heading in headings]
    offsets = tokenizer(text, return_offsets_mapping=True).offset_mapping
    found = places(tokenizer, "wanda/demo:256", *range(64))
    for index, place in found.items():
        # Tokens of no character, such as BOS, are at 0.
        begin = next(first for first, end in offsets[index * 256 :] if end > first)
        page = max(sum(start < begin for start in starts) - 1, 0)
        assert (place.page, place.title) == (page, headings[page].strip()), index
        scored = text[offsets[index * 256 + 1][0] :]
        shown = squeezed(place.words.removeprefix("...").removesuffix("..."))
        assert squeezed(scored).startswith(shown)
        assert len(shown) > 30
        assert place.words.startswith("...") is (index > 0)
        assert place.windows == 64
        assert len(place.words) <= 60
    assert len({place.page for place in found.values()}) > 10


@pytest.mark.parametrize("key", ["strided/demo:256:stride64", "llama-cpp/demo:256"])
def test_windows_that_score_a_part_are_placed_where_it_begins(
    tokenizer: Any, key: str
) -> None:
    """Windows overlap, or a BOS is read in the place of a token."""
    text = "\n\n".join(CORPUS.rows)
    if key.startswith("llama-cpp"):
        text = "".join(row or " \n" for row in CORPUS.rows).removesuffix("\n")
    offsets = tokenizer(text, return_offsets_mapping=True).offset_mapping
    headings = [
        row for row in CORPUS.rows if row.startswith(" = ") and "= =" not in row
    ]
    ends = [text.index(heading) + len(heading) for heading in headings]
    found = places(tokenizer, key, *range(1, 60))
    for index, place in found.items():
        first = index * 64 + 192 if key.startswith("strided") else index * 256 + 129
        begin = offsets[first][0]
        page = max(sum(end <= begin for end in ends) - 1, 0)
        assert (place.page, place.title) == (page, headings[page].strip()), index
        shown = squeezed(place.words.removeprefix("...").removesuffix("..."))
        assert squeezed(text[begin:]).startswith(shown)
        assert place.words.startswith("...")
    assert len({place.page for place in found.values()}) > 3


def test_a_first_window_that_scores_its_second_half_does_not_open_the_text(
    tokenizer: Any,
) -> None:
    (place,) = places(tokenizer, "llama-cpp/demo:64", 0).values()
    assert place.words.startswith("...")


def test_windows_of_pages(tokenizer: Any) -> None:
    key = "lm-eval/wikitext+demo:256:first3"
    windows = cut_windows(tokenizer, CORPUS, Key.parse(key))
    found = places(tokenizer, key, *range(len(windows)))
    assert {place.page for place in found.values()} == {0, 1, 2}
    for index, window in enumerate(windows):
        assert window.page is not None
        place = found[index]
        title = CORPUS.pages[window.page].splitlines()[0].strip()
        assert (place.page, place.title) == (window.page, title)
        opens = index == 0 or windows[index - 1].page != window.page
        assert place.words.startswith(title if opens else "...")


def test_a_text_without_pages_has_words_alone(tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(save_tiny(tmp_path / "m"))
    corpus = Corpus.from_documents("mine", ["one \x1b[31m two\n" * 20, "three " * 20])
    first, last = places(
        tokenizer, "wanda/mine:64", 0, 4, corpus=corpus
    ).values()  # fmt: skip
    assert (first.page, first.title, last.page, last.title) == (None, "", None, "")
    assert first.words.startswith(r"one \x1b[31m two one \x1b[31m two")
    assert last.words.startswith("...")


def test_headings_that_the_tokenizer_gives_back_otherwise_name_no_page(
    tokenizer: Any,
) -> None:
    class Upper:
        bos_token_id = eos_token_id = 1

        def __call__(self, text: str, **options: Any) -> Any:
            return tokenizer(text, **options)

        def encode(self, text: str, **options: Any) -> list[int]:
            return list(tokenizer.encode(text, **options))

        def decode(self, ids: Any, **options: Any) -> Any:
            return tokenizer.decode(ids, **options).upper()

    (place,) = places(Upper(), "wanda/demo:256", 30).values()
    assert (place.page, place.title) == (None, "")
    assert place.words == place.words.upper() != ""


def test_other_windows_than_were_measured_have_no_place(tokenizer: Any) -> None:
    key = Key.parse("wanda/demo:256")
    digest = windows_digest(cut_windows(tokenizer, CORPUS, key))
    assert window_places([0], tokenizer, CORPUS, key, digest=digest)
    with pytest.raises(MeasurementError) as caught:
        window_places([0], tokenizer, CORPUS, key, digest="sha256:" + "0" * 64)
    assert str(caught.value) == (
        "cut again, the text has other token windows than were measured"
    )


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("  a\n\tb ", "a b"),
        ("a\x00b\u200b", r"a\x00b\u200b"),
        ("x" * 60, "x" * 60),
        ("x" * 61, "x" * 57 + "..."),
        ("é" * 70, "é" * 57 + "..."),
    ],
)
def test_a_snippet_is_one_short_printable_line(text: str, shown: str) -> None:
    assert shorten(text) == shown
