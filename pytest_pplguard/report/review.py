"""What a commit did to baselines: for a terminal, a pull request and programs."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from typing import Any

from ..review import Fact, GateChange, Review, Row
from ..safetext import printable
from ..values import SCHEMA
from .json import plain
from .markdown import code_span, fenced
from .text import change_text, counted, number

_WIDTH = 80
_NAME = 28
"""Columns of a checkpoint's name that stands beside others."""
_WARNING = "\N{WARNING SIGN}\N{VARIATION SELECTOR-16}"
_FACTS = (
    ("suspect", "Not what recording does"),
    ("incomparable", "Not comparable with what was recorded before"),
)
_MORE_FACTS = (
    ("entries", "New and gone"),
    ("environment", "Measured with"),
)
_UNREAD = "Cannot be read, and was left out"


def review_document(review: Review, title: str) -> dict[str, Any]:
    """``{"schema": 1, "title": ..., "loosened": [...], ...}``."""
    return {"schema": SCHEMA, "title": title, **plain(review)}


def review_headline(review: Review) -> str:
    """``1 gate loosened, 2 values changed``: only what there is."""
    moved = [row for row in review.rows if row.old is not None and row.new is not None]
    new = [row for row in review.rows if row.old is None]
    gone = [row for row in review.rows if row.new is None]
    parts = [
        (len(review.loosened), "gates", "loosened"),
        (len(review.suspect), "records", "to look at"),
        (len(review.incomparable), "records", "not comparable"),
        (len(moved), "values", "changed"),
        (len(new), "values", "new"),
        (len(gone), "values", "removed"),
        (len(review.tightened), "gates", "tightened"),
        (len(review.unread), "files", "not read"),
    ]
    told = [f"{counted(count, what)} {how}" for count, what, how in parts if count]
    if not told:
        return "nothing changed" if review.empty else "no gate and no value changed"
    return ", ".join(told)


# --------------------------------------------------------------------------- terminal


def review_lines(review: Review, title: str) -> list[str]:
    """The whole review, at most 80 columns wide."""
    lines = [*_wrapped(title, "")]
    if review.loosened:
        lines += ["", f"LOOSENED: {counted(len(review.loosened), 'gates')}"]
        lines += [line for gate in review.loosened for line in _gate(gate)]
    for name, heading in _FACTS:
        lines += _facts(getattr(review, name), heading.upper())
    if review.rows:
        lines += ["", *_rows(review.rows)]
    for name, heading in _MORE_FACTS:
        lines += _facts(getattr(review, name), heading)
    if review.tightened:
        lines += ["", "Tightened"]
        lines += [line for gate in review.tightened for line in _gate(gate)]
    if review.unread:
        lines += ["", _UNREAD]
        lines += [line for text in review.unread for line in _wrapped(text, "  ")]
    return [*lines, "", *_wrapped(review_headline(review), "")]


def _gate(change: GateChange) -> Iterator[str]:
    place = f" ({change.file}:{change.line})" if change.line else ""
    yield from _wrapped(f"{change.checkpoint}  {change.gate}", "  ")
    yield from _wrapped(f"{change.old} -> {change.new}{place}", "      ")


def _facts(facts: Sequence[Fact], heading: str) -> list[str]:
    lines = ["", heading] if facts else []
    for fact in facts:
        lines += _wrapped(f"{fact.checkpoint}  {fact.key}".rstrip(), "  ")
        lines += _wrapped(fact.text, "      ")
    return lines


def _rows(rows: Iterable[Row]) -> Iterator[str]:
    for checkpoint, of_checkpoint in groupby(rows, key=lambda row: row.checkpoint):
        *above, name = _wrapped(checkpoint, "")
        if len(name) > _NAME:
            above, name = [*above, name], ""
        yield from above
        yield (
            f"{name:<{_NAME}} {'old':>10} {'new':>10} {'change':>10}"
            f" {'since first':>12}"
        )
        for key, of_key in groupby(of_checkpoint, key=lambda row: row.key):
            yield from _wrapped(key, "  ")
            for row in of_key:
                yield (
                    f"    {row.metric:<24} {number(row.old):>10} "
                    f"{number(row.new):>10} {change_text(row.change):>10} "
                    f"{change_text(row.drift):>12}"
                )
                if row.note not in ("", "new", "removed"):
                    yield f"      {row.note}"
                if exact := _exact(row):
                    yield f"      {exact}"


def _exact(row: Row) -> str:
    """Both values in full where six digits do not tell them apart."""
    same = row.old is not None and number(row.old) == number(row.new)
    return f"{row.old!r} -> {row.new!r}" if same else ""


def _wrapped(text: str, margin: str) -> list[str]:
    text = printable(text).replace("\n", "\\n")
    return textwrap.wrap(
        text,
        _WIDTH,
        initial_indent=margin,
        subsequent_indent=f"{margin}  ",
        break_on_hyphens=False,
    ) or [""]


# --------------------------------------------------------------------------- Markdown


def review_markdown(review: Review, title: str) -> str:
    """For a pull request's comment or a job summary."""
    mark = f"{_WARNING} " if review.loosened or review.suspect else ""
    blocks = [f"## {mark}Baselines: {review_headline(review)}\n\n{_shown(title)}\n"]
    if review.loosened:
        blocks.append(f"### {_WARNING} Loosened gates\n\n{_gates(review.loosened)}")
    for name, heading in _FACTS:
        if facts := getattr(review, name):
            blocks.append(f"### {_WARNING} {heading}\n\n{_listed(facts)}")
    if review.rows:
        blocks.append(f"### Values\n\n{_values(review.rows)}")
    for name, heading in _MORE_FACTS:
        if facts := getattr(review, name):
            blocks.append(f"### {heading}\n\n{_listed(facts)}")
    if review.tightened:
        table = _gates(review.tightened)
        blocks.append(
            f"<details><summary>Tightened gates</summary>\n\n{table}\n</details>\n"
        )
    if review.unread:
        blocks.append(f"### {_UNREAD}\n\n{fenced(list(map(printable, review.unread)))}")
    return "\n".join(blocks).rstrip("\n")


def _table(rows: Iterable[Sequence[str]]) -> str:
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def _gates(changes: Iterable[GateChange]) -> str:
    return _table(
        [
            ("checkpoint", "gate", "old", "new", "line"),
            ("---",) * 5,
            *(
                (
                    _shown(change.checkpoint),
                    _shown(change.gate),
                    _shown(change.old),
                    _shown(change.new),
                    _shown(f"{change.file}:{change.line}") if change.line else "",
                )
                for change in changes
            ),
        ]
    )


def _values(rows: Iterable[Row]) -> str:
    return _table(
        [
            ("checkpoint", "key", "metric", "old", "new", "change", "since first", ""),
            ("---", "---", "---", "---:", "---:", "---:", "---:", "---"),
            *(
                (
                    _shown(row.checkpoint),
                    _shown(row.key),
                    _shown(row.metric),
                    number(row.old),
                    number(row.new),
                    change_text(row.change),
                    change_text(row.drift),
                    ", ".join(filter(None, (row.note, _exact(row)))),
                )
                for row in rows
            ),
        ]
    )


def _listed(facts: Iterable[Fact]) -> str:
    return "".join(
        f"- {_shown(fact.checkpoint)}{' ' + _shown(fact.key) if fact.key else ''}: "
        f"{_shown(fact.text)}\n"
        for fact in facts
    )


def _shown(text: str) -> str:
    return code_span(printable(text))
