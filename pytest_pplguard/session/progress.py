"""Progress of loading and scoring during a pytest run."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import pytest

from ..report import can_be_redrawn, watch_lines, watch_live
from ..report.progress import ScorerProgress
from ..safetext import encodable
from .files import shown_path
from .terminal import terminal_encoding
from .xdist import is_worker


def watch(
    config: pytest.Config, label: str, *, unit: str = "windows", early: bool = False
) -> AbstractContextManager[ScorerProgress]:
    """Progress as the run's output allows it; none in a worker and under ``-q``."""
    reporter = config.pluginmanager.getplugin("terminalreporter")
    if reporter is None or is_worker(config) or config.option.verbose < 0:
        return _silent()
    return _on_terminal(config, reporter, label, unit, early)


@contextmanager
def _silent() -> Iterator[ScorerProgress]:
    yield lambda done, total, mean_nll: None


@contextmanager
def _on_terminal(
    config: pytest.Config, reporter: Any, label: str, unit: str, early: bool
) -> Iterator[ScorerProgress]:
    """Progress with output capturing suspended, so that it is seen while it runs."""
    capture = config.pluginmanager.getplugin("capturemanager")
    suspended = (
        capture.global_and_fixture_disabled() if capture is not None else nullcontext()
    )
    line = getattr(reporter, "currentfspath", None)
    encoding = terminal_encoding()

    def write(text: str) -> None:
        reporter.write_line(encodable(text, encoding))

    try:
        with suspended:
            if reporter.isatty and can_be_redrawn():
                reporter.ensure_newline()
                colour = reporter.hasmarkup
                with watch_live(label, unit=unit, early=early, colour=colour) as told:
                    yield told
            else:
                with watch_lines(label, write, unit=unit, early=early) as told:
                    yield told
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
