"""Pieces of Markdown, and docstrings as Markdown."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable, Sequence

_ROLE = re.compile(r":\w+:`[~.]?(?:[\w.]+\.)?([\w]+)`")


def cell(text: str) -> str:
    """``text`` for a cell of a table: one line, no bars."""
    return " ".join(text.split()).replace("|", "\\|")


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table; cells may hold Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(map(cell, line))} |\n" for line in lines)


def code(text: str) -> str:
    """``text`` as code, whatever is in it; nothing of nothing."""
    if not text:
        return ""
    ticks = "`" * (max(map(len, re.findall("`+", text)), default=0) + 1)
    space = " " if "`" in (text[0], text[-1]) else ""
    return f"{ticks}{space}{text}{space}{ticks}"


def prose(docstring: str | None) -> str:
    """A docstring as Markdown: roles and literals become code, examples blocks."""
    text = inspect.cleandoc(docstring or "")
    text = _ROLE.sub(r"`\1`", text).replace("``", "`")
    text = re.sub(r"(?m)^ *::\n\n", "::\n\n", text)
    text = re.sub(
        r"(?:^|(?<=\n))(?:::|(.*):)\n\n((?: {4}.*\n?|\n)+)",
        lambda found: _block(found[1], found[2]),
        text,
    )
    return text.strip() + "\n"


def _block(before: str | None, body: str) -> str:
    lead = "" if before is None else f"{before.rstrip(':')}:\n\n"
    lines = [line.removeprefix("    ") for line in body.rstrip().splitlines()]
    return "\n".join([f"{lead}```python", *lines, "```", "", ""])
