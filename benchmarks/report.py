"""The HTML report: how long it takes to write and to draw, and how large it is."""

from __future__ import annotations

import statistics
import tempfile
from pathlib import Path

from scripts.browser import chromium, why_no_browser

from .figures import MB, Figure
from .processes import run_python
from .settings import Settings

GATES, WINDOWS = 4, 200
RUNS = 5
_WRITE = """
import sys, time
started = time.perf_counter()
from benchmarks.made_up import made_up
run = made_up(int(sys.argv[2]), int(sys.argv[3]))
from pytest_pplguard.report import write_report
write_report(sys.argv[1], *run)
print(time.perf_counter() - started)
"""
_DRAWN = "performance.getEntriesByName('pplguard-drawn')"


def measure_report(settings: Settings) -> list[Figure]:
    """Write the report of a made-up run in fresh processes, and open it in Chromium.

    Writing is with all imports, and with making up the run. Drawn is the page when
    every plot is there, counted from the start of the navigation.
    """
    runs = 1 if settings.quick else RUNS
    what = f"{GATES} gates x {WINDOWS} windows"
    note = f"median of {runs} processes, imports included; {what}"
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "report.html")
        arguments = (str(file), str(GATES), str(WINDOWS))
        written = [float(run_python("-c", _WRITE, *arguments)) for _ in range(runs)]
        size = file.stat().st_size
        drawn, why = _draw(file, runs)
    return [
        Figure("report written", statistics.median(written), "s", 2, note),
        Figure("report drawn", drawn, "s", 1, why),
        Figure("report's size", size / MB, "MB", 6, what),
    ]


def _draw(file: Path, runs: int) -> tuple[float | None, str]:
    """Seconds from the start of a navigation until all plots are drawn."""
    if why := why_no_browser():
        return None, why
    seconds = []
    with chromium() as browser:
        for _ in range(runs):
            context = browser.new_context(viewport={"width": 1180, "height": 800})
            page = context.new_page()
            page.goto(file.as_uri())
            page.wait_for_function(f"{_DRAWN}.length === 1")
            plots = page.locator(".plot")
            if (
                plots.count() != 2 * GATES
                or page.locator("[data-drawn]").count() != plots.count()
            ):
                raise AssertionError("not all plots of the report were drawn")
            seconds.append(page.evaluate(f"{_DRAWN}[0].startTime") / 1000)
            context.close()
        words = f"Chromium {browser.version}, headless; median of {runs} new profiles"
    return statistics.median(seconds), words
