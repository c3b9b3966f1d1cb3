"""``pplguard history``: the trend, as a table, a picture, JSON, or sent to MLflow."""

from __future__ import annotations

import sys
from pathlib import Path

from msgspec import Struct

from ..errors import UsageError
from ..history import HistoryRun, all_series, export_runs, path_of, read_runs
from ..report import (
    check_plot,
    counted,
    history_document,
    history_lines,
    write_trend,
)
from ..values import near_matches
from .output import say, show, write_json

_FILL = "add runs with `pytest --ppl-history={}`"


class Wanted(Struct, frozen=True):
    """What is to be shown; everything where a list is empty.

    ``last`` is a number of runs.
    """

    checkpoints: tuple[str, ...] = ()
    keys: tuple[str, ...] = ()
    metrics: tuple[str, ...] = ()
    last: int | None = None


def show_history(
    url: str,
    wanted: Wanted,
    *,
    plot: str | None,
    json_path: str | None,
    mlflow: str | None,
    experiment: str,
) -> None:
    """Print the trend; write a picture or JSON, and send it, where that is asked.

    Raises:
        UsageError: no such history, nothing in it of what is wanted, or a file that
            cannot be written.
        PplguardError: the file is no history, or the server refuses something.
    """
    picture = None if plot is None else check_plot(plot, option="--plot", or_page=True)
    runs = _runs(url)
    for what, asked, known in _parts(runs, wanted):
        _require(what, asked, known)
    series = all_series(
        runs,
        checkpoints=wanted.checkpoints,
        keys=wanted.keys,
        metrics=wanted.metrics,
        last=wanted.last,
    )
    if not series:
        raise UsageError("no run has all of what was asked for: ask for less")
    if json_path != "-":
        show(*history_lines(series, unicode=_shows_bars()))
    write_json(history_document(series), json_path)
    if picture is not None:
        write_trend(picture, series)
        say(f"the trend is in {picture}")
    if mlflow is not None:
        sent, there = export_runs(
            _latest(runs, wanted),
            mlflow,
            experiment=experiment,
            checkpoints=wanted.checkpoints,
        )
        say(
            f"sent {counted(sent, 'runs')} to the experiment {experiment} of {mlflow}; "
            f"{there} were there already"
        )


def _runs(url: str) -> tuple[HistoryRun, ...]:
    path = path_of(url, base=Path.cwd(), option="URL")
    if not path.is_file():
        raise UsageError(f"there is no history at {path}: {_FILL.format(url)}")
    runs = read_runs(path)
    if not runs:
        raise UsageError(f"there is no run in {path} yet: {_FILL.format(url)}")
    return runs


def _latest(runs: tuple[HistoryRun, ...], wanted: Wanted) -> tuple[HistoryRun, ...]:
    return runs if wanted.last is None else runs[-wanted.last :]


def _parts(
    runs: tuple[HistoryRun, ...], wanted: Wanted
) -> list[tuple[str, tuple[str, ...], dict[str, None]]]:
    points = [point for run in runs for point in run.points]
    return [
        ("checkpoint", wanted.checkpoints, dict.fromkeys(p.checkpoint for p in points)),
        ("key", wanted.keys, dict.fromkeys(p.key for p in points)),
        ("metric", wanted.metrics, dict.fromkeys(p.metric for p in points)),
    ]


def _require(what: str, asked: tuple[str, ...], known: dict[str, None]) -> None:
    for name in asked:
        if name not in known:
            raise UsageError(
                f"no {what} {name!r} in this history{near_matches(name, known)}; there "
                f"{'is' if len(known) == 1 else 'are'} {', '.join(known)}"
            )


def _shows_bars() -> bool:
    try:
        "▁█".encode(sys.stdout.encoding or "ascii")
    except UnicodeEncodeError:
        return False
    return True
