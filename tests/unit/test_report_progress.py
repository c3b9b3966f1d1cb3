"""Progress in a log, by a clock that the tests set, and what a terminal is told."""

from __future__ import annotations

import io
import math
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from pytest_pplguard.report import watch_lines, watch_live
from pytest_pplguard.report.progress import PHASE, Pace, Watching, duration, each_second

SIX = math.log(6.0)


class Log:
    """The lines of a log, and the clock by which they are written."""

    def __init__(self) -> None:
        self.now = 0.0
        self.lines: list[str] = []
        self._tick: Callable[[], None] = lambda: None

    @contextmanager
    def ticker(self, tick: Callable[[], None]) -> Iterator[None]:
        self._tick = tick
        yield

    def wait(self, seconds: int) -> None:
        """Let time go by, a second at a time, as the thread would notice it."""
        for _ in range(seconds):
            self.now += 1.0
            self._tick()

    @contextmanager
    def watch(
        self, label: str, unit: str = "windows", *, early: bool = False
    ) -> Iterator[Callable[[int, int, float], None]]:
        with watch_lines(
            label,
            self.lines.append,
            unit=unit,
            early=early,
            clock=lambda: self.now,
            ticker=self.ticker,
        ) as progress:
            yield progress


def test_a_line_every_30_seconds_and_one_at_the_end() -> None:
    log = Log()
    with log.watch("m/x wanda") as progress:
        for done in range(9):
            progress(done, 8, SIX)
            log.wait(10)
    # The first window ends at 10 s and counts for nothing; then it is 10 s a window.
    assert log.lines == [
        "pplguard: m/x wanda: 2 of 8 windows, 6 per token, about 50 s left",
        "pplguard: m/x wanda: 5 of 8 windows, 6 per token, about 20 s left",
        "pplguard: m/x wanda: 8 windows in 90.0 s (11.2 s a window)",
    ]


def test_a_batch_that_takes_minutes_does_not_keep_the_log_silent() -> None:
    log = Log()
    with log.watch("m/x wanda") as progress:
        log.wait(30)  # cutting the text
        progress(0, 2, math.nan)
        log.wait(30)
        progress(1, 2, SIX)
        log.wait(60)
        progress(2, 2, SIX)
    assert log.lines == [
        "pplguard: m/x wanda: no windows yet, 30 s so far",
        "pplguard: m/x wanda: 0 of 2 windows, 60 s so far",
        "pplguard: m/x wanda: 1 of 2 windows, 6 per token, 90 s so far",
        "pplguard: m/x wanda: 1 of 2 windows, 6 per token, 2 min so far",
        "pplguard: m/x wanda: 2 windows in 120.0 s (60 s a window)",
    ]


def test_a_slow_first_batch_does_not_count_for_the_time_left() -> None:
    log = Log()
    with log.watch("m/x wanda") as progress:
        progress(0, 102, math.nan)
        log.now = 29.0
        progress(1, 102, SIX)
        log.now = 30.0
        progress(2, 102, SIX)
        log.now = 31.0
        progress(102, 102, SIX)
    assert log.lines[0] == (
        "pplguard: m/x wanda: 2 of 102 windows, 6 per token, about 2 min left"
    )


def test_the_time_left_counts_on_while_a_batch_is_read() -> None:
    log = Log()
    pace = Pace("windows", early=False, clock=lambda: log.now)
    for done in range(3):
        pace.update(done, 4, SIX)
        log.now += 20.0
    assert pace.left() == 20.0  # 40 s at the end of the second window, 20 s ago
    log.now += 100.0
    assert pace.left() == 0.0


def test_of_a_run_that_goes_on_only_new_windows_count() -> None:
    log = Log()
    with log.watch("m/x wanda") as progress:
        progress(90, 100, SIX)
        log.wait(20)
        progress(91, 100, SIX)
        log.wait(10)
        assert len(log.lines) == 2
        progress(92, 100, SIX)
        log.wait(10)
        progress(93, 100, SIX)
        log.wait(20)
        progress(100, 100, SIX)
    assert log.lines == [
        "pplguard: m/x wanda: going on after 90 of 100 windows",
        "pplguard: m/x wanda: 91 of 100 windows, 6 per token, 30 s so far",
        "pplguard: m/x wanda: 93 of 100 windows, 6 per token, about 50 s left",
        "pplguard: m/x wanda: 100 windows in 60.0 s (6 s a window)",
    ]


def test_ten_hours_are_a_line_every_30_seconds_all_the_same() -> None:
    log = Log()
    with log.watch("m/x wanda") as progress:
        for done in range(601):
            progress(done, 600, SIX)
            if done < 600:
                log.wait(60)
    assert len(log.lines) == 1200 + 1
    assert log.lines[299] == (
        "pplguard: m/x wanda: 149 of 600 windows, 6 per token, about 7 h 30 min left"
    )
    assert (
        log.lines[-1] == "pplguard: m/x wanda: 600 windows in 36000.0 s (60 s a window)"
    )


def test_where_a_verdict_may_come_early_the_time_left_is_the_most() -> None:
    log = Log()
    with log.watch("m/x wanda", early=True) as progress:
        for done in range(4):
            progress(done, 10, SIX)
            log.wait(15)
    assert log.lines == [
        "pplguard: m/x wanda: 1 of 10 windows, 6 per token, 30 s so far",
        "pplguard: m/x wanda: 3 of 10 windows, 6 per token, at most 90 s left",
        "pplguard: m/x wanda: 3 of 10 windows in 60.0 s (20 s a window)",
    ]


def test_a_task_has_answers_and_no_perplexity() -> None:
    log = Log()
    with log.watch("m/x lm-eval/piqa:64", "answers") as progress:
        for done in (1, 2, 3, 4):
            progress(done, 4, SIX)
            log.wait(20 if done < 4 else 0)
    assert log.lines == [
        "pplguard: m/x lm-eval/piqa:64: going on after 1 of 4 answers",
        "pplguard: m/x lm-eval/piqa:64: 2 of 4 answers, 30 s so far",
        "pplguard: m/x lm-eval/piqa:64: 3 of 4 answers, about 0 s left",
        "pplguard: m/x lm-eval/piqa:64: 4 answers in 60.0 s (20 s an answer)",
    ]


def test_less_than_a_second_has_no_rate_and_one_window_is_no_windows() -> None:
    log = Log()
    with log.watch("m/x wanda") as progress:
        progress(0, 1, math.nan)
        progress(1, 1, SIX)
    assert log.lines == ["pplguard: m/x wanda: 1 window in 0.0 s"]


def test_fast_windows_have_a_rate_a_second() -> None:
    log = Log()
    with log.watch("m/x wanda") as progress:
        progress(0, 25, math.nan)
        log.wait(10)
        progress(25, 25, SIX)
    assert log.lines == ["pplguard: m/x wanda: 25 windows in 10.0 s (2.5 windows/s)"]


def test_a_measurement_that_fails_has_no_last_line() -> None:
    log = Log()

    def fail() -> None:
        with log.watch("m/x wanda") as progress:
            progress(1, 8, SIX)
            raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        fail()
    assert log.lines == ["pplguard: m/x wanda: going on after 1 of 8 windows"]


def test_a_line_that_somebody_else_has_to_say_comes_at_once() -> None:
    log = Log()
    with log.watch("m/x wanda") as progress:
        assert isinstance(progress, Watching)
        progress(0, 2, SIX)
        progress.say("the server\nis away")
        assert log.lines == ["pplguard: m/x wanda: the server\\nis away"]
        progress(2, 2, SIX)
    assert log.lines[1:] == ["pplguard: m/x wanda: 2 windows in 0.0 s"]


def test_on_a_terminal_such_a_line_stays_above_the_bar(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    terminal = io.StringIO()
    monkeypatch.setattr(sys, "stdout", terminal)
    monkeypatch.setenv("COLUMNS", "60")
    line = "the server at http://127.0.0.1:8000/v1 does not answer (503); " * 2
    with watch_live("m/x wanda", colour=False) as progress:
        assert isinstance(progress, Watching)
        progress.say(line)
    # Whole, however narrow the terminal is.
    assert f"pplguard: {line}".rstrip() in terminal.getvalue()


def test_loading_has_a_line_for_its_beginning_and_its_end_if_it_takes_a_while() -> None:
    log = Log()
    with log.watch("loading m/x (13.5 GB)", PHASE):
        log.wait(74)
    assert log.lines == [
        "pplguard: loading m/x (13.5 GB)",
        "pplguard: loading m/x (13.5 GB): 30 s so far",
        "pplguard: loading m/x (13.5 GB): 60 s so far",
        "pplguard: loading m/x (13.5 GB): done in 74 s",
    ]


def test_loading_that_is_over_in_no_time_leaves_no_line() -> None:
    log = Log()
    with log.watch("loading m/x (2.1 MB)", PHASE):
        log.wait(2)
    assert log.lines == []


def test_a_label_is_one_short_line_that_can_be_seen() -> None:
    log = Log()
    with log.watch("m/\x1b[31mx\n" + "w" * 5000) as progress:
        progress(0, 1, math.nan)
        progress(1, 1, SIX)
    (line,) = log.lines
    assert line.startswith("pplguard: m/\\x1b[31mx\\nwww")
    assert line.endswith("w: 1 window in 0.0 s")
    assert len(line) < 250


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.4, "0 s"),
        (99.4, "99 s"),
        (99.6, "2 min"),
        (3600, "60 min"),
        (5960, "99 min"),
        (6000, "1 h 40 min"),
        (34200, "9 h 30 min"),
    ],
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_the_thread_ticks_and_is_gone_afterwards() -> None:
    ticked = threading.Event()
    with each_second(ticked.set):
        assert ticked.wait(30)
    assert "pplguard-progress" not in {thread.name for thread in threading.enumerate()}


@pytest.mark.parametrize("encoding", ["utf-8", "ascii", "cp1252"])
def test_a_terminal_of_any_encoding(
    encoding: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Terminal(io.TextIOWrapper):
        def isatty(self) -> bool:
            return True

    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", Terminal(raw, encoding=encoding))
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.delenv("NO_COLOR", raising=False)
    label = "llama-2-7b/wand\u00e4-50 lm-eval/wikitext+\u6587:4096"
    with watch_live(label, colour=False) as progress:
        progress(0, 3, math.nan)
        progress(1, 3, SIX)
    with watch_live("loading \u6587", unit=PHASE, colour=False):
        pass
    sys.stdout.flush()
    shown = raw.getvalue().decode(encoding)
    assert "1/3" in shown
    assert "6 per token" in shown
    assert "\x1b[3" not in shown  # no colour
    words = {"utf-8": label, "cp1252": label.replace("\u6587", "\\u6587")}
    expected = label.replace("\u00e4", "\\xe4").replace("\u6587", "\\u6587")
    assert words.get(encoding, expected) in shown
