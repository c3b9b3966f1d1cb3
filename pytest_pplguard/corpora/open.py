"""Opens a corpus by name: from the Hub, from the package, or from a local file."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import islice
from pathlib import Path

from ..errors import CorpusError
from ..values import near_matches
from . import wikitext
from .corpus import Corpus
from .files import (
    JSON_LINES,
    check_exists,
    decode,
    first_line,
    json_lines,
    parquet,
    saved_dataset,
)
from .named import NAMED, Named

CORPUS_NAMES = ("wikitext2", "demo", *NAMED)
"""Corpora that need no file of the user's."""

_DEMO_FILE = Path(__file__).parents[1] / "demo" / "demo.txt"
WIKITEXT2 = ("Salesforce/wikitext", "wikitext-2-raw-v1", "test")
"""Data set, configuration and split on the Hub."""


def open_corpus(name: str, files: Mapping[str, str]) -> Corpus:
    """The corpus called ``name``; ``files`` maps names to local paths and wins.

    A local path is a text file, a ``.jsonl`` file (one document a line, may be
    gzipped), a ``.parquet`` file or a folder written by
    ``datasets.Dataset.save_to_disk``. A text that opens with a level-1 WikiText heading
    is read as WikiText rows and pages, any other text is one document; ``c4`` and
    ``ptb`` are read as :mod:`.named` says.

    Raises:
        CorpusError: unknown name, unreachable Hub, unreadable, empty or short file.
    """
    if name in NAMED:
        path = Path(files[name]) if name in files else _fetch(name, NAMED[name])
        return _read_named(name, NAMED[name], path)
    if name in files:
        return _read_file(name, Path(files[name]))
    if name == "demo":
        return _read_file(name, _DEMO_FILE)
    if name == "wikitext2":
        return Corpus.from_wikitext_rows(name, _hub_rows())
    known = [*CORPUS_NAMES, *files]
    raise CorpusError(
        f"unknown corpus {name!r}{near_matches(name, known)}: built in are "
        f"{', '.join(CORPUS_NAMES)}; give your own text with "
        f"--ppl-corpus {name}=PATH (pplguard: --corpus {name}=PATH)"
    )


def _hub_rows() -> list[str]:
    import datasets

    path, config, split = WIKITEXT2
    try:
        return list(datasets.load_dataset(path, config, split=split)["text"])
    # datasets raises whatever its HTTP client and file systems raise.
    except Exception as error:
        raise CorpusError(
            f"WikiText-2 could not be read from the Hub ({path}, {config}, {split}): "
            f"{first_line(error)}. Give the raw test file instead: "
            "--ppl-corpus wikitext2=PATH (pplguard: --corpus wikitext2=PATH)"
        ) from error


def _fetch(name: str, named: Named) -> Path:
    """The file of a named text in the Hub's cache; fetched if it is not there."""
    import huggingface_hub

    try:
        return Path(
            huggingface_hub.hf_hub_download(
                named.repository,
                named.file,
                repo_type="dataset",
                revision=named.revision,
            )
        )
    # Whatever the Hub's client and its HTTP client raise.
    except Exception as error:
        raise CorpusError(
            f"{named.title} could not be fetched from the Hub ({named.repository}, "
            f"{named.file}): {first_line(error)}. Give a copy of the file instead: "
            f"--ppl-corpus {name}=PATH (pplguard: --corpus {name}=PATH)"
        ) from error


def _read_named(name: str, named: Named, path: Path) -> Corpus:
    check_exists(name, path)
    try:
        rows = _named_rows(name, named, path)
    except OSError as error:
        raise CorpusError(f"corpus {name}: {path} cannot be read: {error}") from error
    if named.count is not None:
        if len(rows) < named.count:
            raise CorpusError(
                f"corpus {name}: {path} holds {len(rows)} documents, and {name} is the "
                f"first {named.count} of {named.file} ({named.repository}): give that "
                f"file, or call your text by another name than {name}"
            )
        rows = rows[: named.count]
    make = Corpus.from_sentences if named.sentences else Corpus.from_documents
    return _not_empty(make(name, rows, named.recipe), path)


def _named_rows(name: str, named: Named, path: Path) -> list[str]:
    if path.is_dir():
        rows = saved_dataset(name, path, named.columns, named.split)
    elif path.suffix == ".parquet":
        rows = parquet(name, path, named.columns)
    elif path.name.endswith((*JSON_LINES, ".json")):
        rows = list(islice(json_lines(name, path, named.columns), named.count))
    elif named.sentences:
        rows = decode(name, path).removesuffix("\n").split("\n")
    else:
        raise CorpusError(
            f"corpus {name}: {path} has no documents; expected .json or .jsonl, one a "
            "line (also .gz), .parquet or a save_to_disk folder"
        )
    return [row.strip() for row in rows] if named.sentences else rows


def _read_file(name: str, path: Path) -> Corpus:
    check_exists(name, path)
    try:
        if path.is_dir():
            return _from_rows(name, saved_dataset(name, path))
        if path.suffix == ".parquet":
            return _from_rows(name, parquet(name, path))
        if path.name.endswith(JSON_LINES):
            documents = Corpus.from_documents(name, json_lines(name, path))
            return _not_empty(documents, path)
        text = decode(name, path)
    except OSError as error:
        raise CorpusError(f"corpus {name}: {path} cannot be read: {error}") from error
    rows = wikitext.rows(text)
    if _is_wikitext(rows):
        return Corpus.from_wikitext_rows(name, rows)
    return _not_empty(Corpus.from_documents(name, (text,)), path)


def _from_rows(name: str, rows: list[str]) -> Corpus:
    if _is_wikitext(rows):
        return Corpus.from_wikitext_rows(name, rows)
    return Corpus.from_documents(name, rows)


def _is_wikitext(rows: list[str] | tuple[str, ...]) -> bool:
    first = next((row for row in rows if row.strip()), "")
    return wikitext.is_heading(first.removesuffix("\n"))


def _not_empty(corpus: Corpus, path: Path) -> Corpus:
    if not any(page.strip() for page in corpus.pages):
        raise CorpusError(f"corpus {corpus.name}: {path} holds no text")
    return corpus
