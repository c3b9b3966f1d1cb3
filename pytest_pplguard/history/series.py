"""One number of one checkpoint from run to run."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence

from msgspec import Struct

from ..values import MetricName, relative_change
from .records import HistoryRun, Point


class SeriesPoint(Struct, frozen=True):
    """A number in one run.

    ``since_last`` is the change from the last number before it that is of the same
    windows, None where there is none. ``breaks`` says that the windows are others than
    those of the number before: the two cannot be compared.
    """

    run: HistoryRun
    point: Point
    sparsity: float | None
    since_last: float | None = None
    breaks: bool = False


class Series(Struct, frozen=True):
    """A metric of a checkpoint's key over time, the oldest first."""

    checkpoint: str
    key: str
    metric: MetricName
    points: tuple[SeriesPoint, ...]

    @property
    def values(self) -> list[float]:
        """The numbers since the last break."""
        values: list[float] = []
        for one in self.points:
            if one.breaks:
                values = []
            if one.point.measured is not None:
                values.append(one.point.measured)
        return values


def all_series(
    runs: Sequence[HistoryRun],
    *,
    checkpoints: Collection[str] = (),
    keys: Collection[str] = (),
    metrics: Collection[MetricName] = (),
    last: int | None = None,
) -> list[Series]:
    """What changed from run to run, by checkpoint, key and metric.

    Of a number that several tests of a run have judged, a gate of a baseline file
    counts before others, the last before those in front of it.

    Args:
        runs: the oldest first.
        checkpoints: only these, all where there are none.
        keys: likewise.
        metrics: likewise.
        last: only the last so many of the runs that have any of these.
    """
    found: list[tuple[HistoryRun, dict[tuple[str, str, str], Point]]] = []
    for run in runs:
        points = _one_each(
            point
            for point in run.points
            if (not checkpoints or point.checkpoint in checkpoints)
            and (not keys or point.key in keys)
            and (not metrics or point.metric in metrics)
        )
        if points:
            found.append((run, points))
    if last is not None:
        found = found[-last:]
    names = list(dict.fromkeys(name for _, points in found for name in points))
    order = list(dict.fromkeys(checkpoint for checkpoint, _, _ in names))
    return [
        Series(*name, tuple(_walk((run, p[name]) for run, p in found if name in p)))
        for name in sorted(names, key=lambda name: order.index(name[0]))
    ]


def _one_each(points: Iterable[Point]) -> dict[tuple[str, str, str], Point]:
    chosen: dict[tuple[str, str, str], Point] = {}
    for point in points:
        name = point.checkpoint, point.key, point.metric
        if name not in chosen or point.path or not chosen[name].path:
            chosen[name] = point
    return chosen


def _walk(points: Iterable[tuple[HistoryRun, Point]]) -> Iterator[SeriesPoint]:
    digest = ""
    before: list[float] = []  # of the windows of ``digest``
    for run, point in points:
        now = point.windows_digest or digest
        breaks = digest not in ("", now)
        before = [] if breaks else before
        since = None
        if before and point.measured is not None:
            since = relative_change(point.measured, before[-1])
        yield SeriesPoint(run, point, run.sparsity(point.checkpoint), since, breaks)
        digest = now
        before += [] if point.measured is None else [point.measured]
