"""Figures beside their limits, and the table that the command prints."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

MB = 1e6


@dataclass(frozen=True)
class Figure:
    """One line of the table.

    ``limit`` is None where nothing is promised, ``value`` where nothing was measured;
    ``note`` says why, or what else there is to know. ``least`` turns the limit round.
    """

    label: str
    value: float | None
    unit: str
    limit: float | None = None
    note: str = ""
    least: bool = False

    @property
    def verdict(self) -> str:
        """``met``, ``not met``, ``skipped``, or nothing for what has no limit."""
        if self.value is None:
            return "skipped"
        if self.limit is None:
            return ""
        good = self.value >= self.limit if self.least else self.value <= self.limit
        return "met" if good else "not met"


@dataclass(frozen=True)
class Account:
    """Where the seconds of a process went."""

    total: float
    imports: float
    loading: float
    forward: float

    @property
    def own(self) -> float:
        """What is left beyond imports, loading and forward passes."""
        return self.total - self.imports - self.loading - self.forward


def render(figures: Sequence[Figure]) -> str:
    """The table: label, value, limit, verdict, note."""
    rows = [("", "measured", "limit", "", "")]
    for one in figures:
        value = "-" if one.value is None else f"{one.value:.2f} {one.unit}"
        limit = "-" if one.limit is None else f"{one.limit:g} {one.unit}"
        rows.append((one.label, value, limit, one.verdict, one.note))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(
            format(cell, f"{side}{width}")
            for cell, side, width in zip(row, "<>><<", widths, strict=True)
        ).rstrip()
        for row in rows
    )
