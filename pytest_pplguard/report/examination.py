"""What ``pplguard doctor`` says: lines for people, a document for programs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from itertools import groupby
from typing import Any

from msgspec import to_builtins

from ..checkpoints import Examination, Finding, ZeroTable
from ..checkpoints.examine import Grade
from ..safetext import one_line
from ..values import SCHEMA
from .terminal import Style, unstyled, wrapped

_MOST_ROWS = 24
"""Rows of the table that leave room on a screen for what is above it."""
_MOST_FILES = 4
_WIDEST, _NARROWEST = 15, 7
"""Characters of a projection's name above its column."""
_STYLES: dict[Grade, str] = {"error": "bold red", "warning": "yellow", "note": "cyan"}


def examination_document(examined: Examination) -> dict[str, Any]:
    """The examination as plain JSON data."""
    table = examined.zeros
    sparsity = None
    if table is not None:
        sparsity = {
            "zeros": table.zeros,
            "weights": table.total,
            "fraction": table.zeros / table.total if table.total else None,
            "pattern": table.pattern,
            "layers": {
                layer: {name: z / n if n else None for name, (z, n) in row.items()}
                for layer, row in table.cells.items()
            },
        }
    return {
        "schema": SCHEMA,
        "model": examined.model,
        "healthy": examined.healthy,
        "architecture": examined.architecture,
        "form": examined.form,
        "parameters": examined.parameters,
        "dtypes": examined.dtypes,
        "files": examined.files,
        "findings": [to_builtins(finding) for finding in examined.findings],
        "sparsity": sparsity,
    }


def examination_lines(
    examined: Examination,
    *,
    everything: bool = False,
    style: Style = unstyled,
    width: int | None = None,
) -> list[str]:
    """The examination as text; the table is cut at a screen unless ``everything``.

    Findings are broken at ``width``, if there is one.
    """
    layers = f", {examined.layers} layers" if examined.layers else ""
    model = one_line(examined.model)
    title = f"{model}: {examined.architecture or 'unknown architecture'}{layers}"
    facts = (
        f"form     {examined.form}",
        f"weights  {examined.parameters:,}{_dtypes(examined)}",
        f"files    {_files(examined.files)}",
    )
    lines = [style(one_line(title), "bold")]
    for fact in facts:
        lines += wrapped(one_line(fact), width, first="  ", rest=" " * 11)
    lines.append("")
    for found in examined.findings:
        lines += _finding(examined.model, found, style, width)
    lines.append(_summary(examined, style))
    if examined.zeros is not None:
        lines += ["", *_table(examined.zeros, everything=everything, columns=width)]
    return lines


def _finding(
    model: str, finding: Finding, style: Style, width: int | None
) -> list[str]:
    text = one_line(f"{finding.text.removeprefix(f'{model}: ')} ({finding.code})")
    grade = f"{finding.grade:<8}"
    first, *more = wrapped(text, width, first=f"{grade} ", rest=" " * 9)
    return [style(grade, _STYLES[finding.grade]) + first.removeprefix(grade), *more]


def _summary(examined: Examination, style: Style) -> str:
    counts = Counter(finding.grade for finding in examined.findings)
    said = ", ".join(
        f"{counts[grade]} {grade}{'s' if counts[grade] > 1 else ''}"
        for grade in _STYLES
        if counts[grade]
    )
    word = style("healthy", "green")
    if counts["error"]:
        word = style("ill", _STYLES["error"])
    elif counts["warning"]:
        word = style("suspicious", _STYLES["warning"])
    return f"{word}: {said or 'nothing found'}"


def _dtypes(examined: Examination) -> str:
    dtypes = examined.dtypes
    if len(dtypes) < 2:
        return "".join(f", {name}" for name in dtypes)
    total = max(1, examined.parameters)
    return ", " + ", ".join(f"{name} {n / total:.1%}" for name, n in dtypes.items())


def _files(sizes: dict[str, int]) -> str:
    largest = sorted(sizes, key=lambda name: (-sizes[name], name))
    shown = [f"{name} {_bytes(sizes[name])}" for name in largest[:_MOST_FILES]]
    if rest := largest[_MOST_FILES:]:
        shown.append(f"{len(rest)} more {_bytes(sum(sizes[name] for name in rest))}")
    return ", ".join(shown)


def _bytes(count: int) -> str:
    size = float(count)
    for unit in ("B", "kB", "MB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} GB"


# ------------------------------------------------------------------------------ table


def _table(
    table: ZeroTable, *, everything: bool, columns: int | None = None
) -> Iterator[str]:
    rows = list(_rows(table))
    cut = None if everything or len(rows) <= _MOST_ROWS else _MOST_ROWS
    total: dict[str, tuple[int, int]] = {}
    for row in table.cells.values():
        for name, (zeros, count) in row.items():
            known = total.get(name, (0, 0))
            total[name] = (known[0] + zeros, known[1] + count)
    last = ("all", _cells(table, total))
    first = max(len("zeros in %"), *(len(label) for label, _ in rows))
    names = (*table.projections, "all")
    widest, gap = _WIDEST, "  "
    while True:
        heads = [_short(name, widest) for name in names]
        widths = [max(6, len(head)) for head in heads]
        needed = first + sum(widths) + len(gap) * len(widths)
        if columns is None or needed <= columns or widest == _NARROWEST:
            break
        # Less air first, then less of the names.
        widest, gap = (widest, " ") if gap == "  " else (widest - 1, gap)

    def line(label: str, cells: tuple[str, ...]) -> str:
        shown = (f"{cell:>{width}}" for cell, width in zip(cells, widths, strict=True))
        return gap.join([f"{label:<{first}}", *shown])

    yield line("zeros in %", tuple(heads))
    for label, cells in rows[:cut]:
        yield line(label, cells)
    if cut is not None:
        yield f"... {len(rows) - cut} more rows: --all"
    yield line(*last)
    yield (
        f"{table.zeros:,} of {table.total:,} weights of the decoder layers are zero"
        + (f", in the pattern {table.pattern}" if table.pattern else "")
    )


def _rows(table: ZeroTable) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Label and cells; neighbours that read the same are one row."""
    layers = [(layer, _cells(table, row)) for layer, row in table.cells.items()]
    for cells, group in groupby(layers, key=lambda pair: pair[1]):
        names = [layer for layer, _ in group]
        last = names[-1].rpartition(".")[2]
        yield (names[0] if len(names) == 1 else f"{names[0]}-{last}"), cells


def _cells(table: ZeroTable, row: dict[str, tuple[int, int]]) -> tuple[str, ...]:
    whole = tuple(map(sum, zip(*row.values(), strict=True)))
    cells = [row.get(name) for name in table.projections]
    return tuple(map(_percent, [*cells, (whole[0], whole[1])]))


def _percent(cell: tuple[int, int] | None) -> str:
    if cell is None or not cell[1]:
        return "-"
    share = 100 * cell[0] / cell[1]
    if share < 0.1:
        return "0.0"  # rounding to 16 bits leaves some zeros in any model
    # Nothing is left of a weight that is all zeros; of one that rounds to it, a little.
    return "<100" if cell[0] < cell[1] and share > 99.9 else f"{share:.1f}"


def _short(name: str, widest: int) -> str:
    """The end of a long name, which says most."""
    dots = "\N{HORIZONTAL ELLIPSIS}"
    return name if len(name) <= widest else f"{dots}{name[1 - widest :]}"
