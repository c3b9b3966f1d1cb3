"""WikiText's raw form: file lines to dataset rows, rows to pages.

The rules are those of the Hub datasets ``Salesforce/wikitext`` (rows) and
``EleutherAI/wikitext_document_level`` (pages, which lm-eval's task reads); both are
checked against published fingerprints in ``tests/unit/test_corpora_official.py``.
"""

from __future__ import annotations

from collections.abc import Sequence

_BLANK_LINE = " "


def rows(text: str) -> tuple[str, ...]:
    """Dataset rows of a raw file: ``""`` for a blank line, else line + newline."""
    lines = text.split("\n")
    if lines[-1] == "":
        lines.pop()
    return tuple(line + "\n" if line.strip() else "" for line in lines)


def is_heading(line: str) -> bool:
    """Whether a line opens a page: `` = Title = `` and no deeper heading."""
    bare = line.replace("= = =", "===").replace("= =", "==").strip()
    return bare.startswith("= ") and bare.endswith(" =")


def pages(rows: Sequence[str]) -> tuple[str, ...]:
    """The documents of a text: from one level-1 heading to the next.

    A page is its lines joined by a newline; a page of white space alone is dropped.
    """
    cut: list[list[str]] = [[]]
    for row in rows:
        line = row.removesuffix("\n") if row else _BLANK_LINE
        if is_heading(line):
            cut.append([])
        cut[-1].append(line)
    # The raw file ends with a newline, which the published pages keep.
    cut[-1].append("")
    joined = ("\n".join(lines) for lines in cut)
    return tuple(page for page in joined if page.strip())


def first_pages(rows: Sequence[str], count: int) -> tuple[str, ...]:
    """The rows of the first ``count`` pages, as :func:`pages` cuts them."""
    found, text = 0, ""
    for index, row in enumerate(rows):
        if is_heading(row.removesuffix("\n")):
            found, text = found + bool(text.strip()), ""
            if found == count:
                return tuple(rows[:index])
        text += row
    return tuple(rows)
