"""Report files: which kinds there are, and how one is written."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from ..errors import UsageError
from ..values import Results
from .csv import csv_report
from .json import results_document
from .markdown import markdown


def check_report_path(path: str, *, option: str) -> None:
    """Refuse a report that could not be written when the run is over.

    Raises:
        UsageError: a suffix that no report has, or no such folder.
    """
    file = Path(path)
    if file.suffix not in _KINDS:
        raise UsageError(f"{option}: {path} must end in .json, .md or .csv")
    if not file.absolute().parent.is_dir():
        raise UsageError(f"{option}: the folder of {path} does not exist")


def write_report(path: str, results: Results) -> None:
    """Write the report that the suffix of ``path`` names.

    Raises:
        OSError: it cannot be written.
    """
    text = _KINDS[Path(path).suffix](results)
    # The same bytes everywhere; names of files need not be text.
    Path(path).write_text(
        text, encoding="utf-8", errors="backslashreplace", newline="\n"
    )


def _json(results: Results) -> str:
    return json.dumps(results_document(results), indent=2, allow_nan=False) + "\n"


_KINDS: dict[str, Callable[[Results], str]] = {
    ".json": _json,
    ".md": markdown,
    ".csv": lambda results: csv_report(results.verdicts),
}
