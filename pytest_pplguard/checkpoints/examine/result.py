"""What an examination gives: findings, and the table of zeros."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

from msgspec import Struct

from ...errors import CheckpointError

Grade = Literal["error", "warning", "note"]
"""``error``: cannot be measured, or the number would be wrong. ``warning``: suspicious,
someone should look. ``note``: good to know."""

GRADES: tuple[Grade, ...] = ("error", "warning", "note")


class Finding(Struct, frozen=True):
    """One thing that was found: one line for people, a stable ``code`` for programs.

    ``where`` is the place: a file, a field of the config, or weights.
    """

    grade: Grade
    code: str
    where: str
    text: str


class ZeroTable(Struct, frozen=True):
    """Zeros in the linear weights of the decoder layers.

    ``cells[layer][projection]`` is ``(zeros, weights)``; a layer may lack a projection.
    ``pattern`` is the N:M that all sparse weights keep, N of M weights being nonzero.
    """

    projections: tuple[str, ...]
    cells: dict[str, dict[str, tuple[int, int]]]
    pattern: str | None = None

    @property
    def zeros(self) -> int:
        """All zeros."""
        return sum(z for row in self.cells.values() for z, _ in row.values())

    @property
    def total(self) -> int:
        """All weights."""
        return sum(n for row in self.cells.values() for _, n in row.values())


class Examination(Struct, frozen=True):
    """What a checkpoint is, what was found, and where its zeros are.

    ``dtypes`` counts elements, ``files`` bytes. ``form`` says how the weights are
    stored. ``zeros`` is None where there is nothing to count.
    """

    model: str
    form: str
    architecture: str
    layers: int
    parameters: int
    dtypes: dict[str, int]
    files: dict[str, int]
    findings: tuple[Finding, ...]
    zeros: ZeroTable | None

    @property
    def healthy(self) -> bool:
        """Whether no finding is an error."""
        return not any(finding.grade == "error" for finding in self.findings)


class Findings:
    """Gathers findings; the same text is said once."""

    def __init__(self) -> None:
        self._found: dict[str, Finding] = {}

    def error(self, code: str, where: str, text: str) -> None:
        """Something by which it cannot be measured, or not rightly."""
        self._add(Finding("error", code, where, text))

    def warning(self, code: str, where: str, text: str) -> None:
        """Something that someone should look at."""
        self._add(Finding("warning", code, where, text))

    def note(self, code: str, where: str, text: str) -> None:
        """Something good to know."""
        self._add(Finding("note", code, where, text))

    @contextmanager
    def collect(self, code: str, where: str) -> Iterator[None]:
        """Make an error of what is refused inside."""
        try:
            yield
        except CheckpointError as error:
            self.error(code, where, str(error))

    def has(self, *codes: str) -> bool:
        """Whether there is a finding with one of ``codes``."""
        return any(finding.code in codes for finding in self._found.values())

    def sorted(self) -> tuple[Finding, ...]:
        """All of them, the worst first, else in the order of the checks."""
        return tuple(
            sorted(self._found.values(), key=lambda found: GRADES.index(found.grade))
        )

    def _add(self, finding: Finding) -> None:
        self._found.setdefault(finding.text, finding)
