"""Shows loading and scoring to whoever waits: live on a terminal, lines in a log."""

from __future__ import annotations

import math
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

from ..safetext import encodable, one_line
from .text import counted

ScorerProgress = Callable[[int, int, float], None]

WINDOWS = "windows"
"""What is counted; of anything else (answers of a task) no perplexity is told."""
PHASE = ""
"""The unit of what has no count, such as loading a model: only its time is told."""

INTERVAL = 30.0
"""Seconds between two lines of a log, however long it takes: many CI systems end a job
that says nothing for ten minutes, and ten hours are some 1,200 lines."""
_WORTH_A_LINE = 3.0
"""Seconds after which a phase gets a line for its beginning, and one for its end."""
_LONGEST_LABEL = 200
_BAR, _ROOM = 20, 68
"""Columns of the bar alone, and of all that stands behind a label."""

Ticker = Callable[[Callable[[], None]], AbstractContextManager[None]]
"""While it is open, calls what it was given every now and then."""


def can_be_redrawn() -> bool:
    """Whether a terminal can take back what it shows: ``TERM=dumb`` says no."""
    return os.environ.get("TERM") != "dumb"


@contextmanager
def each_second(tick: Callable[[], None]) -> Iterator[None]:
    """Call ``tick`` from a thread: a model may need minutes for one batch."""
    over = threading.Event()

    def run() -> None:
        while not over.wait(1.0):
            tick()

    thread = threading.Thread(target=run, name="pplguard-progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


class Pace:
    """How far a measurement is, and when it will be done.

    Speed counts from the end of the first batch, which is read more than once to prove
    how it is read; windows that an earlier run has scored count for nothing.

    Args:
        unit: what is counted.
        early: whether it may end before the last window.
        clock: seconds, from any start.
    """

    def __init__(self, unit: str, *, early: bool, clock: Callable[[], float]) -> None:
        self.done = self.total = self.before = 0
        self._unit = unit
        self._early = early
        self._clock = clock
        self._mean = math.nan
        self._started = clock()
        self._first: tuple[int, float] | None = None
        self._latest: tuple[int, float] | None = None

    @property
    def elapsed(self) -> float:
        """Seconds since the start."""
        return self._clock() - self._started

    def update(self, done: int, total: int, mean_nll: float) -> None:
        """Take what the scorer tells; its first call is what there was already."""
        if not self.total:
            self.total, self.before = total, done
        elif done > self.before:
            now = self._clock()
            self._first = self._first or (done, now)
            self._latest = done, now
        self.done, self._mean = done, mean_nll

    def left(self) -> float | None:
        """Seconds that are left, None where that cannot be said yet."""
        if self._first is None or self._latest is None:
            return None
        (first, began), (done, now) = self._first, self._latest
        if done <= first or now <= began:
            return None
        left = (now - began) / (done - first) * (self.total - done)
        # The next batch is under way.
        return max(0.0, left - (self._clock() - now))

    def perplexity(self) -> str:
        """The perplexity of the windows so far; nothing where that is no perplexity."""
        if self._unit != WINDOWS or not self.done or math.isnan(self._mean):
            return ""
        return f"{math.exp(min(self._mean, 700.0)):.4g} per token"

    def time_left(self) -> str:
        """``about 12 min left``; nothing where it cannot be said."""
        left = self.left()
        if left is None or self.done >= self.total:
            return ""
        return f"{'at most' if self._early else 'about'} {duration(left)} left"

    def rate(self) -> str:
        """``2.5 windows/s``, or where that is less than one: ``4 s a window``.

        Nothing in the first second, of which little can be told.
        """
        new, elapsed = self.done - self.before, self.elapsed
        if new <= 0 or elapsed < 1:
            return ""
        if new >= elapsed:
            return f"{new / elapsed:.3g} {self._unit}/s"
        one = counted(1, self._unit).removeprefix("1 ")
        return f"{elapsed / new:.3g} s {'an' if one[0] in 'aeiou' else 'a'} {one}"


def duration(seconds: float) -> str:
    """``46 s``, ``12 min``, ``9 h 30 min``: two digits or so, as it is an estimate."""
    if seconds < 99.5:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 100:
        return f"{minutes} min"
    return f"{minutes // 60} h {minutes % 60} min"


class Watching:
    """What a scorer calls with how far it is.

    Args:
        progress: takes that.
        say: shows a line now, from any thread.
    """

    def __init__(self, progress: ScorerProgress, say: Callable[[str], None]) -> None:
        self._progress = progress
        self.say = say

    def __call__(self, done: int, total: int, mean_nll: float) -> None:
        """Show it."""
        self._progress(done, total, mean_nll)


@contextmanager
def watch_live(
    label: str,
    *,
    unit: str = WINDOWS,
    early: bool = False,
    stderr: bool = False,
    colour: bool = True,
) -> Iterator[ScorerProgress]:
    """A bar with windows done, running perplexity and time left; gone at the end.

    Loading has no count: it shows for how long it has been at it.
    """
    from rich.console import Console, Group, RenderableType
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        ProgressColumn,
        SpinnerColumn,
        Task,
        TextColumn,
        TimeElapsedColumn,
    )
    from rich.text import Text

    pace = Pace(unit, early=early, clock=time.monotonic)

    class Told(ProgressColumn):
        """What is told of the pace, as of now."""

        max_refresh = None

        def __init__(self, tell: Callable[[], str]) -> None:
            super().__init__()
            self._tell = tell

        def render(self, task: Task) -> Text:
            return Text(self._tell(), no_wrap=True)

    console = Console(stderr=stderr, no_color=True if not colour else None)
    shown = encodable(one_line(label, most=_LONGEST_LABEL), console.encoding)
    above = unit != PHASE and len(shown) + _ROOM > console.width
    columns: list[ProgressColumn] = [
        # Of lines, as not every terminal has dots.
        SpinnerColumn("line"),
        *(() if above else (TextColumn("{task.description}", markup=False),)),
        *(
            (TimeElapsedColumn(),)
            if unit == PHASE
            else (
                BarColumn(bar_width=_BAR),
                MofNCompleteColumn(),
                Told(pace.perplexity),
                Told(pace.time_left),
            )
        ),
    ]

    class Bars(Progress):
        """The label has a line of its own where there is no room beside it."""

        def get_renderables(self) -> Iterator[RenderableType]:
            if above:
                yield Group(
                    Text(shown, no_wrap=True, overflow="crop"),
                    self.make_tasks_table(self.tasks),
                )
            else:
                yield self.make_tasks_table(self.tasks)

    with Bars(*columns, console=console, transient=True) as bars:
        task = bars.add_task(shown, total=None)

        def progress(done: int, total: int, mean_nll: float) -> None:
            pace.update(done, total, mean_nll)
            bars.update(task, completed=done, total=total)

        def say(line: str) -> None:
            told = encodable(f"pplguard: {one_line(line)}", console.encoding)
            console.print(Text(told), soft_wrap=True)

        yield Watching(progress, say)


@contextmanager
def watch_lines(
    label: str,
    write: Callable[[str], None],
    *,
    unit: str = WINDOWS,
    early: bool = False,
    clock: Callable[[], float] = time.monotonic,
    ticker: Ticker = each_second,
) -> Iterator[ScorerProgress]:
    """A line every :data:`INTERVAL` seconds, and one at the end of a measurement.

    A phase without a count, such as loading, gets none if it is over in no time.
    """
    pace = Pace(unit, early=early, clock=clock)
    name = f"pplguard: {one_line(label, most=_LONGEST_LABEL)}"
    due = _WORTH_A_LINE if unit == PHASE else INTERVAL
    lock = threading.Lock()
    said = 0

    def tick() -> None:
        nonlocal due, said
        with lock:
            if pace.elapsed < due or 0 < pace.total <= pace.done:
                return
            due = INTERVAL * (pace.elapsed // INTERVAL + 1)
            said += 1
            write(f"{name}{_so_far(pace, unit, first=said == 1)}")

    def progress(done: int, total: int, mean_nll: float) -> None:
        with lock:
            begins = not pace.total
            pace.update(done, total, mean_nll)
            if begins and done:
                write(f"{name}: going on after {done} of {total} {unit}")
        tick()

    def say(line: str) -> None:
        with lock:
            write(f"{name}: {one_line(line)}")

    with ticker(tick):
        yield Watching(progress, say)
    if unit == PHASE:
        if said:
            write(f"{name}: done in {duration(pace.elapsed)}")
    elif pace.total:
        # Fewer where the verdict was known before the last.
        some = f"{pace.done} of " if pace.done < pace.total else ""
        rate = f" ({pace.rate()})" if pace.rate() else ""
        write(
            f"{name}: {some}{counted(pace.total, unit)} in {pace.elapsed:.1f} s{rate}"
        )


def _so_far(pace: Pace, unit: str, *, first: bool) -> str:
    if unit == PHASE:
        return "" if first else f": {duration(pace.elapsed)} so far"
    if not pace.total:
        return f": no {unit} yet, {duration(pace.elapsed)} so far"
    facts = [
        f"{pace.done} of {pace.total} {unit}",
        pace.perplexity(),
        pace.time_left() or f"{duration(pace.elapsed)} so far",
    ]
    return f": {', '.join(filter(None, facts))}"
