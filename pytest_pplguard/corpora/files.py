"""Reads the rows of a local file or folder, whatever their format."""

from __future__ import annotations

import gzip
import json
import os
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ..errors import CorpusError

JSON_LINES = (".jsonl", ".jsonl.gz", ".json.gz")
"""How the names of files with a document a line end."""

TEXT = ("text",)
TEST = "test"


def check_exists(name: str, path: Path) -> None:
    """Refuse a path with nothing there.

    Raises:
        CorpusError: there is nothing.
    """
    if not os.path.exists(path):
        raise CorpusError(
            f"corpus {name}: {path} does not exist (looked at {path.absolute()})"
        )


def decode(name: str, path: Path) -> str:
    """The text of a file.

    Raises:
        CorpusError: it is not UTF-8.
    """
    try:
        return path.read_bytes().decode("utf-8")
    except UnicodeDecodeError as error:
        raise CorpusError(
            f"corpus {name}: {path} is not UTF-8 text (byte {error.start}); "
            "save it as UTF-8, or give .jsonl, .parquet or a save_to_disk folder"
        ) from error


def json_lines(name: str, path: Path, columns: Sequence[str] = TEXT) -> Iterator[str]:
    """The documents of a file that has one a line, read only as far as they are asked.

    Raises:
        CorpusError: a line is no document, or the file is gzipped and broken.
    """
    with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as lines:
        try:
            for number, line in enumerate(lines, start=1):
                if line.strip():
                    yield _json_document(name, f"{path}:{number}", line, columns)
        except (gzip.BadGzipFile, EOFError, zlib.error) as error:
            raise CorpusError(
                f"corpus {name}: {path} is no whole gzip file: {first_line(error)}; "
                "fetch it again"
            ) from error


def _json_document(name: str, place: str, line: bytes, columns: Sequence[str]) -> str:
    try:
        value = json.loads(line.decode("utf-8").removesuffix("\n"))
    except (ValueError, RecursionError) as error:
        raise CorpusError(f"corpus {name}: {place} is not JSON: {error}") from error
    if isinstance(value, dict):
        value = next((value[key] for key in columns if key in value), None)
    if not isinstance(value, str):
        raise CorpusError(
            f"corpus {name}: {place} holds no document: expected a JSON string or "
            f'{{"{columns[0]}": "..."}}'
        )
    return value


def parquet(name: str, path: Path, columns: Sequence[str] = TEXT) -> list[str]:
    """The text column of a parquet file.

    Raises:
        CorpusError: it is none, or has no such column.
    """
    import pyarrow
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.read_table(path)
    except pyarrow.ArrowException as error:
        raise CorpusError(
            f"corpus {name}: {path} is not a parquet file: {first_line(error)}"
        ) from error
    return _text_column(name, path, table.column_names, table.to_pydict, columns)


def saved_dataset(
    name: str,
    path: Path,
    columns: Sequence[str] = TEXT,
    split: str = TEST,
) -> list[str]:
    """The text column of a data set; of ``split``, if the folder holds several.

    Raises:
        CorpusError: the folder is none, or has no such split or column.
    """
    import datasets

    try:
        loaded = datasets.load_from_disk(str(path))
    except (FileNotFoundError, ValueError) as error:
        raise CorpusError(
            f"corpus {name}: {path} is no folder written by save_to_disk: "
            f"{first_line(error)}"
        ) from error
    if isinstance(loaded, datasets.DatasetDict):
        if split not in loaded:
            raise CorpusError(
                f"corpus {name}: {path} has the splits {', '.join(loaded)} but no "
                f"split {split!r}; save the split that you mean on its own"
            )
        loaded = loaded[split]
    return _text_column(name, path, loaded.column_names, loaded.to_dict, columns)


def _text_column(
    name: str, path: Path, present: list[str], read: Any, wanted: Sequence[str]
) -> list[str]:
    column = next((column for column in wanted if column in present), None)
    if column is None:
        raise CorpusError(
            f"corpus {name}: {path} has no column {' or '.join(map(repr, wanted))} "
            f"(it has {', '.join(present)})"
        )
    rows = read()[column]
    if not any(isinstance(row, str) and row.strip() for row in rows):
        raise CorpusError(f"corpus {name}: {path} holds no text")
    for index, row in enumerate(rows):
        if not isinstance(row, str):
            raise CorpusError(
                f"corpus {name}: {path}: row {index} of the column {column!r} is no "
                f"text, but {row!r}"
            )
    return list(rows)


def first_line(error: BaseException) -> str:
    """What an error says, as far as one line of ours has room for it."""
    return next(iter(str(error).splitlines()), type(error).__name__).rstrip(".")
