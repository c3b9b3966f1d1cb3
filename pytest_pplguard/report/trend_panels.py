"""What a picture of the trend shows: a panel for each number of a checkpoint."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Literal

from msgspec import Struct

from ..history import Series, SeriesPoint
from .history import BREAK, commit_text, one_line
from .text import change_text, number


class Panel(Struct, frozen=True):
    """One number of one checkpoint over time; None breaks the line.

    ``hover`` says, for each point, what it is; ``baseline`` is None where there was
    none.
    """

    checkpoint: str
    title: str
    kind: Literal["value", "share"]
    times: tuple[str | None, ...]
    values: tuple[float | None, ...]
    passed: tuple[bool, ...]
    hover: tuple[str, ...]
    baseline: tuple[float | None, ...] = ()


def panels_of(series: Sequence[Series]) -> Iterator[Panel]:
    """What there is to draw: of each checkpoint its numbers, then its sparsity."""
    for checkpoint, of_checkpoint in groupby(series, key=lambda one: one.checkpoint):
        shares: dict[str, SeriesPoint] = {}
        for one in of_checkpoint:
            yield _panel(one)
            shares |= {p.run.id: p for p in one.points if p.sparsity is not None}
        if shares:
            points = sorted(shares.values(), key=lambda p: p.run.time)
            zeros = [p.sparsity or 0.0 for p in points]
            texts = [f"{100 * share:.4g} % zeros" for share in zeros]
            yield Panel(
                checkpoint,
                "share of zeros",
                "share",
                tuple(p.run.time for p in points),
                tuple(zeros),
                (True,) * len(points),
                tuple(map(_hover, points, texts)),
            )


def _panel(one: Series) -> Panel:
    times: list[str | None] = []
    values: list[float | None] = []
    passed: list[bool] = []
    hover: list[str] = []
    baseline: list[float | None] = []
    for point in one.points:
        if point.breaks:
            times.append(point.run.time)
            values.append(None)
            passed.append(True)
            hover.append(BREAK)
            baseline.append(None)
        measured = point.point.measured
        change = change_text(point.point.change)
        text = (
            f"{number(measured)} ({change} from the baseline), "
            f"{one_line(point.point.outcome)}"
        )
        times.append(point.run.time)
        values.append(measured)
        passed.append(point.point.passed)
        hover.append(_hover(point, text))
        baseline.append(point.point.baseline)
    return Panel(
        one.checkpoint,
        f"{one_line(one.key)} {one_line(one.metric)}",
        "value",
        tuple(times),
        tuple(values),
        tuple(passed),
        tuple(hover),
        tuple(baseline),
    )


def _hover(point: SeriesPoint, text: str) -> str:
    run = point.run
    where = f"commit {commit_text(run)}"
    if run.branch:
        where += f" of {one_line(run.branch)}"
    return f"{text}\n{where}\n{run.time[:16].replace('T', ' ')} UTC"
