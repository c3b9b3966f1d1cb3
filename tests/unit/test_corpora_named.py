"""C4 and Penn Treebank: rows, windows and errors, held to the original recipes."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from lm_eval.tasks.wikitext.preprocess_wikitext import wikitext_detokenizer

from pytest_pplguard.corpora import CORPUS_NAMES, open_corpus
from pytest_pplguard.corpora.corpus import rows_digest
from pytest_pplguard.errors import CorpusError
from pytest_pplguard.protocols import PROTOCOLS, check_key
from pytest_pplguard.values import Key
from tests.official import official_ptb
from tests.unit.test_protocols import ByteTokenizer

DOCUMENTS = [f"Document {n}.\nIts second line, {n * n}." for n in range(1200)]
SENTENCES = ["no it was n't black monday", "but <unk> fell N points", "", "the end"]
PLAIN = "".join(f" {sentence} \n" for sentence in SENTENCES)


def json_lines(rows: Sequence[str], column: str = "text") -> bytes:
    """As the Hub has C4: a line a document, with fields that nobody reads."""
    lines = [json.dumps({column: row, "url": "https://x", "n": 1}) for row in rows]
    return "".join(line + "\n" for line in lines).encode()


def write_json(path: Path, rows: Sequence[str], column: str) -> None:
    content = json_lines(rows, column)
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)


def write_parquet(path: Path, rows: Sequence[str], column: str) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"n": [0] * len(rows), column: list(rows)}), path)


def write_folder(path: Path, rows: Sequence[str], column: str) -> None:
    import datasets

    datasets.Dataset.from_dict({column: list(rows)}).save_to_disk(str(path))


def write_splits(path: Path, rows: Sequence[str], column: str) -> None:
    import datasets

    split = "validation" if column == "text" else "test"
    other = datasets.Dataset.from_dict({column: ["another split"]})
    wanted = datasets.Dataset.from_dict({column: list(rows)})
    splits = datasets.DatasetDict({"train": other, split: wanted})
    splits.save_to_disk(str(path))


Write = Callable[[Path, Sequence[str], str], None]
FORMS: list[tuple[str, Write]] = [
    ("c4-validation.00000-of-00008.json.gz", write_json),
    ("x.json", write_json),
    ("x.jsonl", write_json),
    ("x.jsonl.gz", write_json),
    ("x.parquet", write_parquet),
    ("folder", write_folder),
    ("splits", write_splits),
]


@pytest.fixture
def c4(tmp_path: Path) -> Path:
    path = tmp_path / "c4-validation.00000-of-00008.json.gz"
    write_json(path, DOCUMENTS, "text")
    return path


@pytest.fixture
def ptb(tmp_path: Path) -> Path:
    path = tmp_path / "ptb.test.txt"
    path.write_text(PLAIN, encoding="utf-8")
    return path


# -------------------------------------------------------------------------------- rows


@pytest.mark.parametrize(("file", "write"), FORMS, ids=[name for name, _ in FORMS])
def test_c4_is_its_first_1100_documents(
    tmp_path: Path, file: str, write: Write
) -> None:
    write(tmp_path / file, DOCUMENTS, "text")
    corpus = open_corpus("c4", {"c4": str(tmp_path / file)})
    assert list(corpus.rows) == list(corpus.pages) == DOCUMENTS[:1100]
    assert corpus.digest == rows_digest(DOCUMENTS[:1100])
    assert corpus.official is None


@pytest.mark.parametrize(
    ("file", "write"),
    [("ptb.test.txt", None), *((f"ptb.{name}", write) for name, write in FORMS)],
    ids=["test.txt", *(name for name, _ in FORMS)],
)
def test_ptb_is_a_sentence_a_row_and_one_page(
    tmp_path: Path, file: str, write: Write | None
) -> None:
    if write is None:
        (tmp_path / file).write_text(PLAIN, encoding="utf-8")
    else:
        write(tmp_path / file, SENTENCES, "sentence")
    corpus = open_corpus("ptb", {"ptb": str(tmp_path / file)})
    assert list(corpus.rows) == SENTENCES
    assert corpus.pages == (
        "no it was n't black monday but <unk> fell N points  the end",
    )
    assert corpus.digest == rows_digest(SENTENCES)
    assert corpus.official is False


def test_ptb_with_the_column_that_other_texts_have(tmp_path: Path) -> None:
    write_json(tmp_path / "ptb.jsonl", SENTENCES, "text")
    corpus = open_corpus("ptb", {"ptb": str(tmp_path / "ptb.jsonl")})
    assert list(corpus.rows) == SENTENCES


def test_the_official_ptb_is_recognised() -> None:
    corpus = open_corpus("ptb", {"ptb": str(official_ptb())})
    assert len(corpus.rows) == 3761
    assert corpus.official is True


def test_a_shard_is_read_only_as_far_as_it_is_needed(tmp_path: Path) -> None:
    path = tmp_path / "shard.json"
    path.write_bytes(json_lines(DOCUMENTS[:1100]) + b"{cut short")
    assert len(open_corpus("c4", {"c4": str(path)}).rows) == 1100


def test_a_text_by_another_name_has_no_recipe(tmp_path: Path) -> None:
    write_json(tmp_path / "x.json.gz", DOCUMENTS[:3], "text")
    corpus = open_corpus("mine", {"mine": str(tmp_path / "x.json.gz")})
    assert list(corpus.rows) == DOCUMENTS[:3]
    properties = PROTOCOLS["wanda"].properties(
        corpus, ByteTokenizer(), Key("wanda", "mine", 8)
    )
    assert properties["text"] == "all rows joined by a blank line"
    assert properties["tail"] == "dropped"


# ----------------------------------------------------------------------------- windows


@pytest.mark.parametrize("bos", [True, False])
@pytest.mark.parametrize(("window", "full"), [(8, True), (166, True), (167, False)])
def test_c4_is_cut_as_get_c4_and_eval_ppl_do(
    c4: Path, window: int, full: bool, bos: bool
) -> None:
    tokenizer = ByteTokenizer(bos=bos)
    corpus = open_corpus("c4", {"c4": str(c4)})
    key = Key("wanda", "c4", window)
    windows = PROTOCOLS["wanda"].windows(corpus, tokenizer, key)
    valenc = tokenizer(" ".join(DOCUMENTS[:1100])).input_ids
    valenc = valenc[: 256 * window]
    nsamples = len(valenc) // window
    assert [list(cut.ids) for cut in windows] == [
        valenc[i * window : (i + 1) * window] for i in range(nsamples)
    ]
    assert all(cut.targets == cut.ids[1:] for cut in windows)
    assert (len(windows) == 256) is full


def test_c4_with_a_limit(c4: Path) -> None:
    corpus = open_corpus("c4", {"c4": str(c4)})

    def windows(first: int) -> int:
        key = Key("wanda", "c4", 8, first=first)
        tokenizer = ByteTokenizer()
        return len(PROTOCOLS["wanda"].windows(corpus, tokenizer, key))

    assert windows(3) == 3
    with pytest.raises(CorpusError) as caught:
        windows(257)
    assert str(caught.value) == (
        "key wanda/c4:8:first257: the text has 256 windows of 8 tokens, fewer than the "
        "257 asked for"
    )


def test_ptb_is_cut_as_get_ptb_and_opt_eval_do(ptb: Path) -> None:
    tokenizer = ByteTokenizer()
    corpus = open_corpus("ptb", {"ptb": str(ptb)})
    windows = PROTOCOLS["wanda"].windows(corpus, tokenizer, Key("wanda", "ptb", 7))
    testenc = tokenizer(" ".join(SENTENCES)).input_ids
    assert [list(cut.ids) for cut in windows] == [
        testenc[i * 7 : (i + 1) * 7] for i in range(len(testenc) // 7)
    ]
    assert len(windows) == 8


def test_what_is_compared_says_how_rows_were_joined(c4: Path, ptb: Path) -> None:
    def of(name: str, path: Path) -> dict[str, Any]:
        corpus = open_corpus(name, {name: str(path)})
        key = Key("wanda", name, 2048)
        return PROTOCOLS["wanda"].properties(corpus, ByteTokenizer(), key)

    assert of("c4", c4) == {
        "window": 2048,
        "text": "first 1,100 documents joined by a space",
        "first token": "BOS 1",
        "tail": "dropped after 256 windows",
        "divisor": "scored tokens",
    }
    assert of("ptb", ptb) == {
        "window": 2048,
        "text": "all sentences joined by a space",
        "first token": "BOS 1",
        "tail": "dropped",
        "divisor": "scored tokens",
    }


def test_lm_eval_reads_documents_as_pages(c4: Path, ptb: Path) -> None:
    for name, path, pages in (("c4", c4, 1100), ("ptb", ptb, 1)):
        corpus = open_corpus(name, {name: str(path)})
        key = Key("lm-eval", "wikitext", 64, corpus=name)
        windows = PROTOCOLS["lm-eval"].windows(corpus, ByteTokenizer(), key)
        assert {cut.page for cut in windows} == set(range(pages))
        scored = [token for cut in windows for token in cut.targets]
        texts = [wikitext_detokenizer({"page": page}) for page in corpus.pages]
        encode = ByteTokenizer().encode
        assert scored == [token for text in texts for token in encode(text)]


@pytest.mark.parametrize("name", ["c4", "ptb"])
def test_keys_of_a_named_text(name: str) -> None:
    assert name in CORPUS_NAMES
    for method, text in (
        ("wanda", f"wanda/{name}:2048"),
        ("lm-eval", f"lm-eval/wikitext+{name}:2048"),
    ):
        protocol = PROTOCOLS[method]
        key = Key.parse(text)
        assert str(key) == text
        assert protocol.key_for(name, 2048, None) == key
        assert protocol.corpus(key) == name
        check_key(key)


# --------------------------------------------------------------------------------- Hub


@pytest.mark.parametrize(
    ("name", "asked", "rows"),
    [
        (
            "c4",
            {
                "repo_id": "allenai/c4",
                "filename": "en/c4-validation.00000-of-00008.json.gz",
                "repo_type": "dataset",
                "revision": None,
            },
            DOCUMENTS[:1100],
        ),
        (
            "ptb",
            {
                "repo_id": "ptb-text-only/ptb_text_only",
                "filename": "penn_treebank/test/0000.parquet",
                "repo_type": "dataset",
                "revision": "refs/convert/parquet",
            },
            SENTENCES,
        ),
    ],
)
def test_without_a_file_it_comes_from_the_hub(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    name: str,
    asked: dict[str, str | None],
    rows: list[str],
) -> None:
    import huggingface_hub

    def hub(
        repo_id: str, filename: str, *, repo_type: str, revision: str | None
    ) -> str:
        assert asked == {
            "repo_id": repo_id,
            "filename": filename,
            "repo_type": repo_type,
            "revision": revision,
        }
        path = tmp_path / Path(filename).name
        if path.suffix == ".parquet":
            write_parquet(path, SENTENCES, "sentence")
        else:
            write_json(path, DOCUMENTS, "text")
        return str(path)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", hub)
    assert list(open_corpus(name, {}).rows) == rows


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "c4",
            "C4 could not be fetched from the Hub (allenai/c4, "
            "en/c4-validation.00000-of-00008.json.gz): no route to host. Give a copy "
            "of the file instead: --ppl-corpus c4=PATH (pplguard: --corpus c4=PATH)",
        ),
        (
            "ptb",
            "Penn Treebank could not be fetched from the Hub "
            "(ptb-text-only/ptb_text_only, penn_treebank/test/0000.parquet): no route "
            "to host. Give a copy of the file instead: --ppl-corpus ptb=PATH "
            "(pplguard: --corpus ptb=PATH)",
        ),
    ],
)
def test_an_unreachable_hub_names_the_way_out(
    monkeypatch: pytest.MonkeyPatch, name: str, message: str
) -> None:
    import huggingface_hub

    def unreachable(*_: object, **__: object) -> None:
        raise ConnectionError("no route to host.\nand a long tail")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", unreachable)
    with pytest.raises(CorpusError) as caught:
        open_corpus(name, {})
    assert str(caught.value) == message


def test_a_local_file_keeps_the_hub_out(
    monkeypatch: pytest.MonkeyPatch, c4: Path
) -> None:
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", None)
    assert len(open_corpus("c4", {"c4": str(c4)}).rows) == 1100


# --------------------------------------------------------------------------- bad files


def _other_columns(path: Path) -> None:
    write_parquet(path, ["x"], "page")


def _a_row_of_nothing(path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"text": ["x", None]}), path)


def _wrong_splits(path: Path) -> None:
    write_splits(path, SENTENCES, "sentence")


@pytest.mark.parametrize(
    ("name", "file", "make", "message"),
    [
        ("c4", "no.json.gz", None, "{path} does not exist (looked at {path})"),
        (
            "c4",
            "short.json",
            json_lines(DOCUMENTS[:1099]),
            "{path} holds 1099 documents, and c4 is the first 1100 of "
            "en/c4-validation.00000-of-00008.json.gz (allenai/c4): give that file, or "
            "call your text by another name than c4",
        ),
        (
            "c4",
            "c4.txt",
            b"One document?",
            "{path} has no documents; expected .json or .jsonl, one a line (also .gz), "
            ".parquet or a save_to_disk folder",
        ),
        (
            "c4",
            "plain.json.gz",
            json_lines(["x"]),
            "{path} is no whole gzip file: Not a gzipped file (b'{{\"'); fetch it "
            "again",
        ),
        (
            "c4",
            "cut.json.gz",
            gzip.compress(json_lines(DOCUMENTS))[:2000],
            "{path} is no whole gzip file: Compressed file ended before the "
            "end-of-stream marker was reached; fetch it again",
        ),
        (
            "c4",
            "fields.json",
            b'{"text": "x"}\n{"page": "y"}\n',
            '{path}:2 holds no document: expected a JSON string or {{"text": "..."}}',
        ),
        (
            "c4",
            "latin.json",
            '"Müll"\n'.encode("latin-1"),
            "{path}:1 is not JSON: 'utf-8' codec can't decode byte 0xfc in position 2: "
            "invalid start byte",
        ),
        (
            "c4",
            "other.parquet",
            _other_columns,
            "{path} has no column 'text' (it has n, page)",
        ),
        (
            "c4",
            "hole.parquet",
            _a_row_of_nothing,
            "{path}: row 1 of the column 'text' is no text, but None",
        ),
        (
            "c4",
            "splits",
            _wrong_splits,
            "{path} has the splits train, test but no split 'validation'; save the "
            "split that you mean on its own",
        ),
        (
            "ptb",
            "other.parquet",
            _other_columns,
            "{path} has no column 'sentence' or 'text' (it has n, page)",
        ),
        (
            "ptb",
            "fields.jsonl",
            b'{"page": "y"}\n',
            "{path}:1 holds no document: expected a JSON string or "
            '{{"sentence": "..."}}',
        ),
        ("ptb", "empty.txt", b" \n \n", "{path} holds no text"),
        (
            "ptb",
            "latin.txt",
            "Müll".encode("latin-1"),
            "{path} is not UTF-8 text (byte 1); save it as UTF-8, or give .jsonl, "
            ".parquet or a save_to_disk folder",
        ),
    ],
)
def test_bad_files_are_named(
    tmp_path: Path, name: str, file: str, make: Any, message: str
) -> None:
    path = tmp_path / file
    if callable(make):
        make(path)
    elif make is not None:
        path.write_bytes(make)
    with pytest.raises(CorpusError) as caught:
        open_corpus(name, {name: str(path)})
    assert str(caught.value) == f"corpus {name}: " + message.format(path=path)
