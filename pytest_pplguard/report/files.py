"""Report files: which kinds there are, and how one is written."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from ..errors import UsageError
from ..values import Details, Results
from .csv import csv_report
from .html import html_report
from .json import results_document
from .markdown import markdown

_NO_DETAILS = Details()


def check_report_path(path: str, *, option: str) -> None:
    """Refuse a report that could not be written when the run is over.

    Raises:
        UsageError: a suffix that no report has, or no such folder.
    """
    file = Path(path)
    if file.suffix not in _KINDS:
        raise UsageError(f"{option}: {path} must end in .html, .json, .md or .csv")
    if not file.absolute().parent.is_dir():
        raise UsageError(f"{option}: the folder of {path} does not exist")


def write_report(path: str, results: Results, details: Details = _NO_DETAILS) -> None:
    """Write the report that the suffix of ``path`` names; .html shows ``details``.

    Raises:
        OSError: it cannot be written.
    """
    text = _KINDS[Path(path).suffix](results, details)
    # The same bytes everywhere; names of files need not be text.
    Path(path).write_text(
        text, encoding="utf-8", errors="backslashreplace", newline="\n"
    )


def _json(results: Results, _: Details) -> str:
    return json.dumps(results_document(results), indent=2, allow_nan=False) + "\n"


_KINDS: dict[str, Callable[[Results, Details], str]] = {
    ".html": html_report,
    ".json": _json,
    ".md": lambda results, _: markdown(results),
    ".csv": lambda results, _: csv_report(results.verdicts),
}
