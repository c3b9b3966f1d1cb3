"""The benchmarks' table, verdicts and arithmetic; nothing is timed."""

from __future__ import annotations

from itertools import count

import pytest

from benchmarks.figures import Account, Figure, render
from benchmarks.gate_process import Clocks


@pytest.mark.parametrize(
    ("value", "limit", "verdict"),
    [
        (4.9, 5, "met"),
        (5, 5, "met"),
        (5.001, 5, "not met"),
        (7, None, ""),
        (None, 5, "skipped"),
        (None, None, "skipped"),
    ],
)
def test_verdict(value: float | None, limit: float | None, verdict: str) -> None:
    assert Figure("import", value, "ms", limit).verdict == verdict


@pytest.mark.parametrize(("value", "verdict"), [(0.5, "met"), (0.49, "not met")])
def test_verdict_on_what_must_not_be_less(value: float, verdict: str) -> None:
    assert Figure("rate", value, "x", 0.5, least=True).verdict == verdict


def test_own_time_is_what_is_left() -> None:
    assert Account(total=10, imports=5, loading=1.5, forward=2.25).own == 1.25


def test_table() -> None:
    figures = [
        Figure("plugin import", 0.8, "ms", 5, "median of 11 processes"),
        Figure("demo gate, own time", 3.256, "s", 3),
        Figure("  total", 12, "s"),
        Figure("peak memory", None, "MB", 120, "no file"),
    ]
    assert render(figures) == (
        "                     measured   limit\n"
        "plugin import         0.80 ms    5 ms  met      median of 11 processes\n"
        "demo gate, own time    3.26 s     3 s  not met\n"
        "  total               12.00 s       -\n"
        "peak memory                 -  120 MB  skipped  no file"
    )


def test_a_moment_counts_for_the_innermost_work_only() -> None:
    ticks = count()
    clocks = Clocks(lambda: float(next(ticks)))  # a second passes at every reading
    clocks.enter("loading")
    clocks.enter("imports")
    clocks.enter("imports")
    clocks.leave()
    clocks.leave()
    clocks.leave()
    clocks.enter("forward")
    clocks.leave()
    assert clocks.seconds == {"imports": 3.0, "loading": 2.0, "forward": 1.0}
