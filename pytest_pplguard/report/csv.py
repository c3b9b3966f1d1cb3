"""Verdicts as a table for spreadsheets and data frames: one row a verdict."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence

from ..safetext import printable
from ..values import Verdict
from .json import plain

_FORMULA = ("=", "+", "-", "@", "\t")
"""What makes a spreadsheet take a cell for a formula."""


def figures(verdict: Verdict) -> dict[str, float | int]:
    """Every number of a verdict that there is, by the name of its column."""
    low, high = verdict.allowed
    values = {
        "baseline": verdict.baseline,
        "measured": verdict.measured,
        "change": verdict.change,
        "allowed_low": low,
        "allowed_high": high,
        "first": verdict.first,
        "published": verdict.published,
    }
    numbers = {
        # A count of tensors is spelled like any other value, here and in JSON.
        **{name: None if one is None else float(one) for name, one in values.items()},
        "windows": verdict.windows,
        "seconds": verdict.seconds,
    }
    return {name: value for name, value in plain(numbers).items() if value is not None}


def csv_report(verdicts: Sequence[Verdict]) -> str:
    """A header and a row for each verdict; what is not known is an empty cell."""
    stream = io.StringIO()
    writer = csv.DictWriter(stream, COLUMNS, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(_row(verdict) for verdict in verdicts)
    return stream.getvalue()


COLUMNS = (
    "checkpoint", "key", "metric", "outcome", "passed",
    "baseline", "measured", "change", "allowed_low", "allowed_high",
    "first", "published",
    "windows", "seconds",
    "source", "reference", "gate", "file", "line", "recorded_in",
    "reasons", "notes", "command", "path", "cached", "early",
)  # fmt: skip
"""In this order; a later version only adds columns, at the end."""


def _row(verdict: Verdict) -> dict[str, str]:
    texts = {
        "checkpoint": verdict.checkpoint,
        "key": verdict.key,
        "metric": verdict.metric,
        "outcome": verdict.outcome.value,
        "passed": "true" if verdict.passed else "false",
        "source": verdict.source,
        "reference": verdict.reference,
        "gate": verdict.gate,
        "file": verdict.file,
        "line": "" if verdict.line is None else str(verdict.line),
        "recorded_in": verdict.recorded_in,
        "reasons": "; ".join(verdict.reasons),
        "notes": "; ".join(verdict.notes),
        "command": verdict.command,
        "path": verdict.path,
        "cached": verdict.cached,
        "early": verdict.early,
    }
    # Numbers are spelled out in full, and a negative one is no formula.
    numbers = {name: repr(value) for name, value in figures(verdict).items()}
    return {name: _harmless(text) for name, text in texts.items()} | numbers


def _harmless(text: str) -> str:
    """``text`` on one line, quoted by an apostrophe where it would be a formula.

    What cannot be seen is written out: JSON has the texts as they are.
    """
    line = printable(" ".join(text.splitlines()))
    return f"'{line}" if line.startswith(_FORMULA) else line
