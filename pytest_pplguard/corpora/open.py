"""Opens a corpus by name: from the Hub, from the package, or from a local file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import CorpusError
from ..values import near_matches
from . import wikitext
from .corpus import Corpus

CORPUS_NAMES = ("wikitext2", "demo")
"""Corpora that need no file of the user's."""

_TEXT_COLUMN = "text"
_DEMO_FILE = Path(__file__).parents[1] / "demo" / "demo.txt"
_HUB = ("Salesforce/wikitext", "wikitext-2-raw-v1", "test")


def open_corpus(name: str, files: Mapping[str, str]) -> Corpus:
    """The corpus called ``name``; ``files`` maps names to local paths and wins.

    A local path is a text file, a ``.jsonl`` file (one document a line), a ``.parquet``
    file or a folder written by ``datasets.Dataset.save_to_disk``. A text that opens
    with a level-1 WikiText heading is read as WikiText rows and pages, any other text
    is one document.

    Raises:
        CorpusError: unknown name, unreachable Hub, unreadable or empty file.
    """
    if name in files:
        return _read_file(name, Path(files[name]))
    if name == "demo":
        return _read_file(name, _DEMO_FILE)
    if name == "wikitext2":
        return Corpus.from_wikitext_rows(name, _hub_rows())
    known = [*CORPUS_NAMES, *files]
    raise CorpusError(
        f"unknown corpus {name!r}{near_matches(name, known)}: built in are "
        f"{' and '.join(CORPUS_NAMES)}; give your own text with "
        f"--ppl-corpus {name}=PATH (pplguard: --corpus {name}=PATH)"
    )


def _hub_rows() -> list[str]:
    import datasets

    path, config, split = _HUB
    try:
        return list(datasets.load_dataset(path, config, split=split)[_TEXT_COLUMN])
    # datasets raises whatever its HTTP client and file systems raise.
    except Exception as error:
        raise CorpusError(
            f"WikiText-2 could not be read from the Hub ({path}, {config}, {split}): "
            f"{_first_line(error)}. Give the raw test file instead: "
            "--ppl-corpus wikitext2=PATH (pplguard: --corpus wikitext2=PATH)"
        ) from error


def _read_file(name: str, path: Path) -> Corpus:
    if not path.exists():
        raise CorpusError(
            f"corpus {name}: {path} does not exist (looked at {path.absolute()})"
        )
    try:
        if path.is_dir():
            return _from_rows(name, _saved_dataset(name, path))
        if path.suffix == ".parquet":
            return _from_rows(name, _parquet(name, path))
        text = _decode(name, path)
    except OSError as error:
        raise CorpusError(f"corpus {name}: {path} cannot be read: {error}") from error
    if path.suffix == ".jsonl":
        return _not_empty(Corpus.from_documents(name, _jsonl(name, path, text)), path)
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


def _decode(name: str, path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8")
    except UnicodeDecodeError as error:
        raise CorpusError(
            f"corpus {name}: {path} is not UTF-8 text (byte {error.start}); "
            "save it as UTF-8, or give .jsonl, .parquet or a save_to_disk folder"
        ) from error


def _jsonl(name: str, path: Path, text: str) -> list[str]:
    documents = []
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except ValueError as error:
            raise CorpusError(
                f"corpus {name}: {path}:{number} is not JSON: {error}"
            ) from error
        document = value.get(_TEXT_COLUMN) if isinstance(value, dict) else value
        if not isinstance(document, str):
            raise CorpusError(
                f"corpus {name}: {path}:{number} holds no document: expected a JSON "
                f'string or {{"{_TEXT_COLUMN}": "..."}}'
            )
        documents.append(document)
    return documents


def _parquet(name: str, path: Path) -> list[str]:
    import pyarrow
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.read_table(path)
    except pyarrow.ArrowException as error:
        raise CorpusError(
            f"corpus {name}: {path} is not a parquet file: {_first_line(error)}"
        ) from error
    return _text_column(name, path, table.column_names, table.to_pydict)


def _saved_dataset(name: str, path: Path) -> list[str]:
    import datasets

    try:
        loaded = datasets.load_from_disk(str(path))
    except (FileNotFoundError, ValueError) as error:
        raise CorpusError(
            f"corpus {name}: {path} is no folder written by save_to_disk: "
            f"{_first_line(error)}"
        ) from error
    if isinstance(loaded, datasets.DatasetDict):
        if "test" not in loaded:
            raise CorpusError(
                f"corpus {name}: {path} has the splits {', '.join(loaded)} but no "
                "split 'test'; save the split that you mean on its own"
            )
        loaded = loaded["test"]
    return _text_column(name, path, loaded.column_names, loaded.to_dict)


def _text_column(name: str, path: Path, columns: list[str], read: Any) -> list[str]:
    if _TEXT_COLUMN not in columns:
        raise CorpusError(
            f"corpus {name}: {path} has no column {_TEXT_COLUMN!r} "
            f"(it has {', '.join(columns)})"
        )
    rows = read()[_TEXT_COLUMN]
    if not any(isinstance(row, str) and row.strip() for row in rows):
        raise CorpusError(f"corpus {name}: {path} holds no text")
    return list(rows)


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)
