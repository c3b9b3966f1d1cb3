"""Progress of loading and scoring during a pytest run."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import pytest

from ..report import watch_lines, watch_live
from ..report.progress import ScorerProgress
from .files import shown_path
from .xdist import worker_index


def watch(
    config: pytest.Config, label: str, *, unit: str = "windows"
) -> AbstractContextManager[ScorerProgress]:
    """Progress as the run's output allows it; none in a worker and under ``-q``."""
    reporter = config.pluginmanager.getplugin("terminalreporter")
    if (
        reporter is None
        or worker_index(config) is not None
        or config.option.verbose < 0
    ):
        return _silent()
    return _on_terminal(config, reporter, label, unit)


@contextmanager
def _silent() -> Iterator[ScorerProgress]:
    yield lambda done, total, mean_nll: None


@contextmanager
def _on_terminal(
    config: pytest.Config, reporter: Any, label: str, unit: str
) -> Iterator[ScorerProgress]:
    """Progress with output capturing suspended, so that it is seen while it runs."""
    capture = config.pluginmanager.getplugin("capturemanager")
    suspended = (
        capture.global_and_fixture_disabled() if capture is not None else nullcontext()
    )
    line = getattr(reporter, "currentfspath", None)
    try:
        with suspended:
            if reporter.isatty:
                reporter.ensure_newline()
                with watch_live(label, unit=unit) as progress:
                    yield progress
            else:
                with watch_lines(label, reporter.write_line, unit=unit) as progress:
                    yield progress
    finally:
        if isinstance(line, Path) and reporter.currentfspath is None:
            config.stash[_BROKEN_LINE] = line


_BROKEN_LINE = pytest.StashKey[Path]()
"""The file whose line of dots was left for progress."""


def resume_line(config: pytest.Config) -> None:
    """Before a result is shown: begin its line anew if progress broke it off.

    A letter alone on a line says nothing in a log.
    """
    file = config.stash.get(_BROKEN_LINE, None)
    if file is None:
        return
    del config.stash[_BROKEN_LINE]
    reporter: Any = config.pluginmanager.getplugin("terminalreporter")
    if reporter.currentfspath is None:
        reporter.write(f"{shown_path(file, config.invocation_params.dir)} ")
        reporter.currentfspath = file
