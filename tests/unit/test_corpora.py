"""Rows, pages and digests of texts, wherever they come from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pytest_pplguard.corpora import Corpus, open_corpus
from pytest_pplguard.corpora.corpus import rows_digest
from pytest_pplguard.errors import CorpusError
from pytest_pplguard.values import Recipe

WIKITEXT = (
    " \n = One = \n \n Some text @-@ here . \n = = Part = = \n \n More . \n"
    " \n = Two = \n \n = = = Deep = = = \n End . \n \n"
)
ROWS = [
    "",
    " = One = \n",
    "",
    " Some text @-@ here . \n",
    " = = Part = = \n",
    "",
    " More . \n",
    "",
    " = Two = \n",
    "",
    " = = = Deep = = = \n",
    " End . \n",
    "",
]


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    path = tmp_path / "wiki.raw"
    path.write_text(WIKITEXT, encoding="utf-8")
    return path


def test_a_raw_file_has_the_rows_of_the_dataset(raw: Path) -> None:
    corpus = open_corpus("mine", {"mine": str(raw)})
    assert list(corpus.rows) == ROWS
    assert corpus.official is None


def test_pages_are_cut_at_level_one_headings_only(raw: Path) -> None:
    pages = open_corpus("mine", {"mine": str(raw)}).pages
    assert list(pages) == [
        " = One = \n \n Some text @-@ here . \n = = Part = = \n \n More . \n ",
        " = Two = \n \n = = = Deep = = = \n End . \n \n",
    ]


def test_one_text_has_one_digest_in_every_form(raw: Path, tmp_path: Path) -> None:
    import datasets
    import pyarrow as pa
    import pyarrow.parquet as pq

    parquet, saved = tmp_path / "rows.parquet", tmp_path / "saved"
    pq.write_table(pa.table({"text": ROWS}), parquet)
    dataset = datasets.Dataset.from_dict({"text": ROWS})
    dataset.save_to_disk(str(saved))
    splits = tmp_path / "splits"
    datasets.DatasetDict({"train": dataset, "test": dataset}).save_to_disk(str(splits))
    found = [
        open_corpus("mine", {"mine": str(path)})
        for path in (raw, parquet, saved, splits)
    ]
    assert {corpus.digest for corpus in found} == {rows_digest(ROWS)}
    assert {corpus.pages for corpus in found} == {found[0].pages}


def test_one_character_or_one_row_changes_the_digest() -> None:
    assert rows_digest(["ab", "c"]) != rows_digest(["a", "bc"])
    assert rows_digest(["ab"]) != rows_digest(["ab", ""])
    assert rows_digest(["ab"]) != rows_digest(["aB"])


def test_plain_text_is_one_document(tmp_path: Path) -> None:
    path = tmp_path / "plain.txt"
    path.write_text("Call me Ishmael.\n\nSome years ago.\n", encoding="utf-8")
    corpus = open_corpus("moby", {"moby": str(path)})
    assert corpus.rows == corpus.pages == ("Call me Ishmael.\n\nSome years ago.\n",)


def test_jsonl_is_a_document_a_line(tmp_path: Path) -> None:
    path = tmp_path / "docs.jsonl"
    lines = ['{"text": "one\\ntwo", "id": 3}', '"three"', ""]
    path.write_text("\n".join(lines), encoding="utf-8")
    assert open_corpus("docs", {"docs": str(path)}).pages == ("one\ntwo", "three")


def test_another_text_named_wikitext2_is_not_official(raw: Path) -> None:
    assert open_corpus("wikitext2", {"wikitext2": str(raw)}).official is False


def test_the_first_pages_are_a_text_of_their_own(raw: Path) -> None:
    text = open_corpus("wikitext2", {"wikitext2": str(raw)})
    first = text.first_pages(1)
    # The blank line before a heading ends the page before it.
    assert first.rows == tuple(ROWS[:8])
    assert first.pages == text.pages[:1]
    assert first.digest == rows_digest(ROWS[:8])
    assert (first.name, first.official) == ("wikitext2", None)
    assert text.first_pages(2) == text
    with pytest.raises(CorpusError) as caught:
        text.first_pages(3)
    assert str(caught.value) == (
        "the text wikitext2 has 2 pages, fewer than the 3 asked for"
    )


def test_the_first_pages_are_those_of_the_whole_text() -> None:
    demo = open_corpus("demo", {})
    for count in range(1, len(demo.pages) + 1):
        first = demo.first_pages(count)
        assert first.pages == demo.pages[:count]
        # A text of these rows has the same pages, but for the line end of its last.
        again = Corpus.from_wikitext_rows("demo", first.rows).pages
        assert [page.rstrip() for page in again] == [p.rstrip() for p in first.pages]


def test_the_first_pages_of_documents_and_of_sentences() -> None:
    recipe = Recipe("documents joined by a space", " ", 256)
    text = Corpus.from_documents("mine", ["one", "two", "three"], recipe).first_pages(2)
    assert (text.rows, text.pages, text.recipe) == (("one", "two"),) * 2 + (recipe,)
    sentences = Corpus.from_sentences("ptb", ["one", "two"], recipe)
    assert sentences.first_pages(1) == sentences


def test_the_demo_ships_with_the_package() -> None:
    corpus = open_corpus("demo", {})
    assert len(corpus.pages) > 1


def _parquet_without_text(path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"page": ["x"], "n": [1]}), path)


@pytest.mark.parametrize(
    ("name", "make", "message"),
    [
        ("no.txt", None, "{path} does not exist (looked at {path})"),
        ("empty.txt", b" \n", "{path} holds no text"),
        (
            "latin.txt",
            "Müll".encode("latin-1"),
            "{path} is not UTF-8 text (byte 1); save it as UTF-8, or give .jsonl, "
            ".parquet or a save_to_disk folder",
        ),
        (
            "bad.jsonl",
            b'"x"\n{"text": 3}\n',
            '{path}:2 holds no document: expected a JSON string or {{"text": "..."}}',
        ),
        (
            "broken.jsonl",
            b"{\n",
            "{path}:1 is not JSON: Expecting property name enclosed in double quotes: "
            "line 1 column 2 (char 1)",
        ),
        (
            "columns.parquet",
            _parquet_without_text,
            "{path} has no column 'text' (it has page, n)",
        ),
    ],
)
def test_bad_files_are_named(
    tmp_path: Path, name: str, make: Any, message: str
) -> None:
    path = tmp_path / name
    if callable(make):
        make(path)
    elif make is not None:
        path.write_bytes(make)
    with pytest.raises(CorpusError) as caught:
        open_corpus("mine", {"mine": str(path)})
    assert str(caught.value) == "corpus mine: " + message.format(path=path)


def test_a_folder_that_save_to_disk_did_not_write(tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match="is no folder written by save_to_disk"):
        open_corpus("mine", {"mine": str(tmp_path)})


def test_a_saved_dictionary_without_a_test_split(tmp_path: Path) -> None:
    import datasets

    only = datasets.Dataset.from_dict({"text": ["x"]})
    datasets.DatasetDict({"train": only}).save_to_disk(str(tmp_path / "d"))
    with pytest.raises(CorpusError) as caught:
        open_corpus("mine", {"mine": str(tmp_path / "d")})
    assert str(caught.value) == (
        f"corpus mine: {tmp_path / 'd'} has the splits train but no split 'test'; "
        "save the split that you mean on its own"
    )


def test_an_unknown_corpus_says_what_there_is() -> None:
    with pytest.raises(CorpusError) as caught:
        open_corpus("wikitext", {})
    assert str(caught.value) == (
        "unknown corpus 'wikitext' (did you mean 'wikitext2'?): built in are "
        "wikitext2, demo, c4, ptb; give your own text with --ppl-corpus wikitext=PATH "
        "(pplguard: --corpus wikitext=PATH)"
    )


def test_an_unreachable_hub_names_the_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    def unreachable(*_: object, **__: object) -> None:
        raise ConnectionError("Couldn't reach the Hub\nand a long tail")

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    with pytest.raises(CorpusError) as caught:
        open_corpus("wikitext2", {})
    assert str(caught.value) == (
        "WikiText-2 could not be read from the Hub (Salesforce/wikitext, "
        "wikitext-2-raw-v1, test): Couldn't reach the Hub. Give the raw test file "
        "instead: --ppl-corpus wikitext2=PATH (pplguard: --corpus wikitext2=PATH)"
    )


def test_the_hubs_rows_become_the_same_corpus(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    def hub(path: str, config: str, *, split: str) -> Any:
        assert (path, config, split) == (
            "Salesforce/wikitext",
            "wikitext-2-raw-v1",
            "test",
        )
        return datasets.Dataset.from_dict({"text": ROWS})

    monkeypatch.setattr(datasets, "load_dataset", hub)
    corpus = open_corpus("wikitext2", {})
    assert corpus == Corpus.from_wikitext_rows("wikitext2", ROWS)


def test_a_blank_row_and_json_stay_apart(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text(json.dumps({"text": " = T = \n"}) + "\n", encoding="utf-8")
    assert open_corpus("x", {"x": str(path)}).rows == (" = T = \n",)
