"""The trend as a table: a number of a checkpoint from run to run."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Any

from ..history import HistoryRun, Series, SeriesPoint
from ..safetext import printable
from ..values import SCHEMA
from .json import plain
from .text import change_text, number

WIDTH = 80
_BARS = "▁▂▃▄▅▆▇█"
_MOST_BARS = 40
_HEAD = (
    f"  {'UTC':<16} {'commit':<8} {'measured':>10} {'to last':>8} {'to base':>8} "
    f"{'zeros':>7}  outcome"
)
BREAK = "other windows from here on: not comparable"


def history_lines(series: Sequence[Series], *, unicode: bool = True) -> Iterator[str]:
    """A table for each checkpoint, key and metric; ``*`` marks a dirty commit.

    With ``unicode`` also the numbers as bars, from the lowest to the highest.
    """
    groups = groupby(series, key=lambda one: one.checkpoint)
    for index, (checkpoint, of_checkpoint) in enumerate(groups):
        if index:
            yield ""
        yield one_line(checkpoint)
        yield _HEAD
        for one in of_checkpoint:
            yield from _titled(one_line(one.key), one_line(one.metric))
            for point in one.points:
                if point.breaks:
                    yield f"  -- {BREAK} --"
                yield _row(point)
            trend = trend_text(one.values)
            if unicode and trend:
                yield f"  {trend}"


def _titled(key: str, metric: str) -> list[str]:
    if len(key) + len(metric) + 2 <= WIDTH:
        return [f" {key} {metric}"]
    return [f" {key}", f" {metric}"]


def _row(one: SeriesPoint) -> str:
    run, point = one.run, one.point
    zeros = "-" if one.sparsity is None else f"{one.sparsity * 100:.2f} %"
    estimate = "~" if point.early else ""
    outcome = one_line(point.outcome)
    return (
        f"  {run.time[:16].replace('T', ' '):<16} {commit_text(run):<8} "
        f"{estimate + number(point.measured):>10} {change_text(one.since_last):>8} "
        f"{change_text(point.change):>8} {zeros:>7}  "
        f"{outcome if point.passed else outcome.upper()}"
    )


def commit_text(run: HistoryRun) -> str:
    """A commit in seven digits, and ``*`` if there were changes to it."""
    if not run.commit:
        return "-"
    return one_line(run.commit)[:7] + ("*" if run.dirty else "")


def trend_text(values: Sequence[float]) -> str:
    """Bars of the last numbers, the lowest is the shortest; nothing for less than 3."""
    last = values[-_MOST_BARS:]
    low, high = min(last, default=0.0), max(last, default=0.0)
    if len(last) < 3 or low == high:
        return ""
    steps = len(_BARS) - 1
    bars = (_BARS[round((value - low) / (high - low) * steps)] for value in last)
    return f"{''.join(bars)}  {number(low)} .. {number(high)}"


def one_line(text: str) -> str:
    """Any text as it may stand in a line on a terminal."""
    return printable(text).replace("\n", "\\n").replace("\t", "\\t")


def history_document(series: Sequence[Series]) -> dict[str, Any]:
    """``{"schema": 1, "series": [...]}`` with every number and its run."""
    return {
        "schema": SCHEMA,
        "series": [
            {
                "checkpoint": one.checkpoint,
                "key": one.key,
                "metric": one.metric,
                "points": [_point(point) for point in one.points],
            }
            for one in series
        ],
    }


def _point(one: SeriesPoint) -> dict[str, Any]:
    run = one.run
    left = ("checkpoint", "key", "metric")
    point = {
        name: value for name, value in plain(one.point).items() if name not in left
    }
    environment = run.environment.get(one.point.checkpoint, {}).get(one.point.key, {})
    return {
        "run": run.id,
        "time": run.time,
        "commit": run.commit,
        "branch": run.branch,
        "dirty": run.dirty,
        "job": run.job,
        "version": run.version,
        **point,
        "since_last": one.since_last,
        "breaks": one.breaks,
        "sparsity": one.sparsity,
        "environment": environment,
    }
