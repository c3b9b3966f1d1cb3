"""What the page shows of losses: window by window, measured beside baseline."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from msgspec import Struct

from ...gates import Paired, paired
from ...gates.paired import EQUAL
from ...values import LossDetail, Verdict, WindowPlace, WindowScore
from ..where import where_lines
from .pictures import Bins, bins
from .words import clip, visible

MOST_ROWS = 1000
"""Windows in the table of all; of a longer text those that moved most."""

MOST_MOVED = 10
"""Windows in the table of those that moved most."""

INTERVAL = 1.96
"""Standard errors on each side of a mean that hold 95 % of a normal distribution."""

_LONGEST_TEXT = 160
_NAMES = {"nll_sum": "NLL", "kl_sum": "KL divergence"}


class WindowRow(Struct, frozen=True):
    """One window; losses are in nats a token, ``number`` counts from 1."""

    number: int
    page: int | None
    title: str
    words: str
    scored: int
    measured: float | None
    baseline: float | None

    @property
    def change(self) -> float | None:
        """Measured less baseline; None where one is not known."""
        if self.measured is None or self.baseline is None:
            return None
        return self.measured - self.baseline

    @property
    def place(self) -> str:
        """``page 3, Robert Boulter``; empty where it is not known."""
        page = "" if self.page is None else f"page {self.page + 1}"
        return ", ".join(filter(None, (page, self.title.strip("= "))))


class Losses(Struct, frozen=True):
    """One measurement on the page.

    ``documents`` say which of a task's moved. ``moved`` are all windows, the one that
    adds most to the change first. ``data`` is what the page's script draws, plain JSON.
    ``missing`` says what cannot be shown and why, a sentence each.
    """

    anchor: str
    detail: LossDetail
    name: str
    failed: bool
    change: Paired | None
    where: tuple[str, ...]
    documents: tuple[str, ...]
    rows: tuple[WindowRow, ...]
    moved: tuple[WindowRow, ...]
    data: dict[str, Any]
    missing: tuple[str, ...]

    @property
    def half(self) -> float | None:
        """Half the width of the mean's 95 % interval."""
        if self.change is None or self.change.error is None:
            return None
        return INTERVAL * self.change.error


def losses_of(detail: LossDetail, verdicts: Iterable[Verdict], anchor: str) -> Losses:
    """What is shown of a measurement, and of the gates on it."""
    own = [
        verdict
        for verdict in verdicts
        if (verdict.checkpoint, verdict.key) == (detail.checkpoint, detail.key)
    ]
    rows = _rows(detail)
    change, where = _compared(detail, rows)
    histogram = None
    if change is not None and change.extent != "nothing":
        histogram = bins([row.change for row in rows if row.change is not None])
    return Losses(
        anchor=anchor,
        detail=detail,
        name=_NAMES[detail.of],
        failed=any(not verdict.passed for verdict in own),
        change=change,
        where=where,
        documents=tuple(dict.fromkeys(line for one in own for line in one.documents)),
        rows=rows,
        moved=tuple(sorted(rows, key=_weight, reverse=True)),
        data=_data(detail, rows, change, histogram),
        missing=tuple(_missing(detail, rows)),
    )


def _rows(detail: LossDetail) -> tuple[WindowRow, ...]:
    places: Sequence[WindowPlace | None] = detail.places or [None] * len(detail.windows)
    recorded: Sequence[float | None] = detail.baseline or [None] * len(detail.windows)
    return tuple(
        WindowRow(
            number=index + 1,
            page=None if place is None else place.page,
            title="" if place is None else clip(place.title, _LONGEST_TEXT),
            words="" if place is None else clip(place.words, _LONGEST_TEXT),
            scored=scored,
            measured=_per_token(measured, scored),
            baseline=_per_token(baseline, scored),
        )
        for index, scored, measured, baseline, place in zip(
            detail.windows,
            detail.scored,
            detail.measured,
            recorded,
            places,
            strict=True,
        )
    )


def _per_token(total: float | None, scored: int) -> float | None:
    if total is None or not math.isfinite(total) or not scored:
        return None
    return total / scored


def _compared(
    detail: LossDetail, rows: Sequence[WindowRow]
) -> tuple[Paired | None, tuple[str, ...]]:
    """The windows that have both losses, paired as gates pair them, and in words."""
    both = [place for place, row in enumerate(rows) if row.change is not None]
    if not both:
        return None, ()
    change = paired(
        _scores(detail, detail.measured, both),
        _scores(detail, detail.baseline, both),
        of=detail.of,
    )
    # Some windows, or all in another order: sentences about "window 3 of 64" would
    # count among these.
    if [detail.windows[place] for place in both] != [*range(detail.total)]:
        return change, ()
    return change, where_lines(change, _places(detail))


def _scores(
    detail: LossDetail, sums: Sequence[float | None], places: Sequence[int]
) -> list[WindowScore]:
    scores = []
    for place in places:
        total, scored = sums[place] or 0.0, detail.scored[place]
        if detail.of == "kl_sum":
            scores.append(WindowScore(nll_sum=0.0, scored=scored, kl_sum=total))
        else:
            scores.append(WindowScore(nll_sum=total, scored=scored))
    return scores


def _places(detail: LossDetail) -> Mapping[int, WindowPlace]:
    return dict(zip(detail.windows, detail.places, strict=False))


def _weight(row: WindowRow) -> float:
    """What a window adds to the change; one that has no loss comes first."""
    if row.measured is None:
        return math.inf
    return abs(row.change or 0.0) * row.scored


def _missing(detail: LossDetail, rows: Sequence[WindowRow]) -> Iterable[str]:
    if detail.problem:
        yield f"{detail.problem[0].upper()}{detail.problem[1:].removesuffix('.')}."
    if not rows:
        if not detail.problem:
            yield "No window was scored."
        return
    lost = [row.number for row in rows if row.measured is None]
    if lost:
        shown = ", ".join(map(str, lost[:5])) + (", …" if len(lost) > 5 else "")
        yield (
            f"{len(lost)} of {len(rows)} windows have no finite loss (window {shown}): "
            "what follows is of the others."
        )
    if not detail.baseline and not detail.problem:
        yield "There are no recorded losses of these windows to compare with."
    if len(rows) < detail.total:
        yield f"Shown are the {len(rows)} of {detail.total} windows that were scored."
    if not detail.places and not detail.problem:
        yield "Where the windows are in the text is not known."


def _data(
    detail: LossDetail,
    rows: Sequence[WindowRow],
    change: Paired | None,
    histogram: Bins | None,
) -> dict[str, Any]:
    """What the script needs, column by column; None stands for no number."""
    data: dict[str, Any] = {
        "name": _NAMES[detail.of],
        "total": detail.total,
        "equal": EQUAL,
        "drawn": [row.number for row in rows] != sorted(row.number for row in rows),
        "number": [row.number for row in rows],
        "place": [visible(row.place) for row in rows],
        "words": [visible(row.words) for row in rows],
        "measured": [row.measured for row in rows],
        "baseline": [row.baseline for row in rows],
        "weight": [abs(row.change or 0.0) * row.scored for row in rows],
    }
    if change is not None and histogram is not None:
        data["histogram"] = {
            "start": histogram.start,
            "width": histogram.width,
            "counts": histogram.counts,
            "mean": change.mean,
            "half": None if change.error is None else INTERVAL * change.error,
        }
    return data
