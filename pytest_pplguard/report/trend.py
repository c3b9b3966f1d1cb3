"""The trend as a picture: perplexity and sparsity of each checkpoint over time."""

from __future__ import annotations

import datetime
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import Literal

from msgspec import Struct

from ..errors import UsageError
from ..history import Series, SeriesPoint
from .history import BREAK, commit_text, one_line
from .text import change_text, number
from .trend_page import page

LINE, FAILED, BASELINE = "#0072B2", "#D55E00", "#7F7F7F"
"""Of Okabe and Ito's palette, which colour-blind people can tell apart; what failed is
also another shape, and the baseline another kind of line."""


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


def write_trend(file: Path, series: Sequence[Series]) -> None:
    """Draw it, as the suffix says.

    Raises:
        UsageError: the file cannot be written.
    """
    panels = list(panels_of(series))
    try:
        if file.suffix.lower() == ".html":
            text = page(panels, tables=series)
            file.write_text(text, "utf-8", "backslashreplace", newline="\n")
        else:
            _draw(file, panels)
    except OSError as error:
        raise UsageError(f"--plot: {file} cannot be written: {error}") from error


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


def _draw(file: Path, panels: Sequence[Panel]) -> None:
    import matplotlib as mpl
    from matplotlib.figure import Figure

    settings = {
        "svg.fonttype": "none",
        "svg.hashsalt": "pplguard",
        "font.size": 8,
        "text.parse_math": False,  # names may hold dollars
    }
    with mpl.rc_context(settings):
        figure = Figure((7, 0.4 + 1.9 * len(panels)), layout="constrained")
        rows = figure.subplots(len(panels), squeeze=False)[:, 0]
        for axes, panel in zip(rows, panels, strict=True):
            times = [_date(time) for time in panel.times]
            values = [float("nan") if v is None else v for v in panel.values]
            if panel.baseline:
                known = [float("nan") if v is None else v for v in panel.baseline]
                axes.plot(times, known, "--", color=BASELINE, lw=0.9, label="baseline")
            axes.plot(times, values, "-o", color=LINE, lw=1.2, ms=3, label="measured")
            red = [i for i, passed in enumerate(panel.passed) if not passed]
            if red:
                axes.plot([times[i] for i in red], [values[i] for i in red], "X",
                          color=FAILED, ms=7, label="not passed")  # fmt: skip
            axes.set_title(f"{one_line(panel.checkpoint)}: {panel.title}", loc="left")
            if panel.kind == "share":
                axes.set_ylim(-0.03, 1.03)
            else:
                axes.legend(frameon=False, ncols=3)
                axes.ticklabel_format(axis="y", useOffset=False)
            axes.spines[["top", "right"]].set_visible(False)
            axes.tick_params(axis="x", rotation=20)
            axes.margins(y=0.15)
        dated = {".svg": {"Date": None}, ".pdf": {"CreationDate": None}}
        figure.savefig(file, dpi=120, metadata=dated.get(file.suffix.lower()))


def _date(time: str | None) -> datetime.datetime:
    assert time is not None
    return datetime.datetime.fromisoformat(time).replace(tzinfo=None)
