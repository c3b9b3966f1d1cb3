"""Shows loading and scoring to whoever waits: live on a terminal, lines in a log."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from .text import counted

ScorerProgress = Callable[[int, int, float], None]

WINDOWS = "windows"
"""What is counted; of anything else (answers of a task) no perplexity is told."""

_LOG_INTERVAL = 30.0
_LOG_LINES = 20


@contextmanager
def watch_live(
    label: str, *, unit: str = WINDOWS, stderr: bool = False
) -> Iterator[ScorerProgress]:
    """A bar with windows done, running perplexity and time left; gone at the end."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=20),
        MofNCompleteColumn(),
        TextColumn("{task.fields[perplexity]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=stderr), transient=True) as bars:
        task = bars.add_task(label, total=None, perplexity="")

        def progress(done: int, total: int, mean_nll: float) -> None:
            shown = _perplexity(mean_nll, unit).strip(", ") if done else ""
            bars.update(task, completed=done, total=total, perplexity=shown)

        yield progress


@contextmanager
def watch_lines(
    label: str,
    write: Callable[[str], None],
    *,
    unit: str = WINDOWS,
    interval: float = _LOG_INTERVAL,
    clock: Callable[[], float] = time.monotonic,
) -> Iterator[ScorerProgress]:
    """A line every ``interval`` seconds, and one at the end of a measurement.

    A measurement that takes hours has fewer: about twenty, so that a log stays short.
    """
    started = last = clock()
    windows, before, reached = 0, 0, 0

    def progress(done: int, total: int, mean_nll: float) -> None:
        nonlocal last, windows, before, reached
        reached = done
        if not windows:  # the first call: what an interrupted run has left
            windows, before = total, done
            if done:
                write(f"pplguard: {label}: going on after {done} of {total} {unit}")
        now = clock()
        if not before < done < total:
            return
        expected = (now - started) / (done - before) * (total - before)
        if now - last >= max(interval, expected / _LOG_LINES):
            last = now
            left = expected * (total - done) / (total - before)
            write(
                f"pplguard: {label}: {done} of {total} {unit}"
                f"{_perplexity(mean_nll, unit)}, about {left:.0f} s left"
            )

    yield progress
    if windows:
        # Fewer where the verdict was known before the last.
        some = f"{reached} of " if reached < windows else ""
        write(
            f"pplguard: {label}: {some}{counted(windows, unit)} in "
            f"{clock() - started:.1f} s"
        )


def _perplexity(mean_nll: float, unit: str) -> str:
    if unit != WINDOWS or math.isnan(mean_nll):
        return ""
    return f", {math.exp(min(mean_nll, 700.0)):.4g} per token"
