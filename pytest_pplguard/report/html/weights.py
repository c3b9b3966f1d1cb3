"""What the page shows of weights: where the zeros are, and which tensors changed."""

from __future__ import annotations

from collections.abc import Mapping

from msgspec import Struct

from ...checkpoints.examine.result import ZeroTable
from ...checkpoints.examine.table import zero_table
from ...tensornames import natural
from ...values import TensorChange, TensorFacts, WeightsDetail

Counts = Mapping[str, tuple[int, int]]

MOST_CHANGES = 500
"""Tensors that are listed; of more, those that a person would look at first."""

_KINDS = {
    "bad": "NaN or infinity",
    "huge": "huge values",
    "zeroed": "all zero",
    "gone": "gone",
    "new": "new",
    "reshaped": "another shape",
    "mask": "zeros elsewhere",
    "values": "other values",
    "retyped": "another dtype",
}


class Cell(Struct, frozen=True):
    """Zeros of one projection in one layer; ``level`` is their share in percent."""

    zeros: int
    weights: int
    moved: bool

    @property
    def share(self) -> float:
        """Share of zeros, 0 to 1."""
        return self.zeros / self.weights

    @property
    def level(self) -> int:
        """The share in whole percent, which names its colour."""
        return round(self.share * 100)


class HeatMap(Struct, frozen=True):
    """Layers down, projections across: ``rows`` are ``(layer, recorded, now)``.

    ``recorded`` is empty where nothing is. A cell is None where no such tensor is.
    """

    projections: tuple[str, ...]
    rows: tuple[tuple[str, tuple[Cell | None, ...], tuple[Cell | None, ...]], ...]


class Weights(Struct, frozen=True):
    """One checkpoint's weights on the page; shares are None where not known."""

    anchor: str
    detail: WeightsDetail
    sparsity: float | None
    recorded: float | None
    heat: HeatMap | None
    changes: tuple[TensorChange, ...]
    more: int

    @property
    def same(self) -> bool:
        """Whether the weights are known to be the recorded ones."""
        return bool(self.detail.digest) and (
            self.detail.digest == self.detail.recorded_digest
        )


def weights_of(detail: WeightsDetail, anchor: str) -> Weights:
    """What is shown of a checkpoint's weights."""
    changes = sorted(detail.changes, key=_rank)
    return Weights(
        anchor=anchor,
        detail=detail,
        sparsity=detail.sparsity,
        recorded=_share(detail.recorded_zeros),
        heat=_heat(detail.zeros, detail.recorded_zeros),
        changes=tuple(changes[:MOST_CHANGES]),
        more=max(0, len(changes) - MOST_CHANGES),
    )


def kind_words(change: TensorChange) -> str:
    """``zeros elsewhere, scaled``: what differs, and what it looks like."""
    kind = _KINDS.get(change.kind, change.kind)
    before, now = change.before_zeros, change.zeros
    if change.kind == "mask" and before is not None and now is not None:
        kind = "fewer zeros" if now < before else "more zeros" if now > before else kind
    return f"{kind}, {change.looks}" if change.looks else kind


def _rank(change: TensorChange) -> tuple[int, list[tuple[bool, int, str]]]:
    kinds = [*_KINDS]
    known = change.kind in kinds
    return (kinds.index(change.kind) if known else len(kinds), natural(change.name))


def _share(counts: Counts) -> float | None:
    total = sum(size for _, size in counts.values())
    return sum(zeros for zeros, _ in counts.values()) / total if total else None


def _heat(now: Counts, recorded: Counts) -> HeatMap | None:
    """Both tables side by side; None without anything to count."""
    # Of both together, so that rows and columns are the same.
    frame = _table({**recorded, **now})
    if frame is None:
        return None
    here, there = _table(now), _table(recorded)
    rows = []
    for layer in frame.cells:
        cells = [
            tuple(_counts(table, layer, name) for name in frame.projections)
            for table in (there, here)
        ]
        pairs = list(zip(*cells, strict=True))
        recorded_row = tuple(_cell(old, old) for old, _ in pairs) if recorded else ()
        now_row = tuple(_cell(new, old) for old, new in pairs) if now else ()
        rows.append((layer, recorded_row, now_row))
    return HeatMap(frame.projections, tuple(rows))


def _table(counts: Counts) -> ZeroTable | None:
    facts = {
        name: TensorFacts(dtype="", shape=(size,), values="", zeros=zeros)
        for name, (zeros, size) in counts.items()
    }
    return zero_table(facts, facts, None)


def _counts(
    table: ZeroTable | None, layer: str, projection: str
) -> tuple[int, int] | None:
    found = None if table is None else table.cells.get(layer, {}).get(projection)
    return found if found is not None and found[1] else None


def _cell(counts: tuple[int, int] | None, old: tuple[int, int] | None) -> Cell | None:
    if counts is None:
        return None
    return Cell(*counts, moved=old is not None and old != counts)
