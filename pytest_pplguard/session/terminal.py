"""What pytest's terminal can show, and failure texts laid out for it."""

from __future__ import annotations

import sys
from collections.abc import Generator
from typing import Any

import pytest

from ..report import Style, failure_lines, unstyled
from ..safetext import encodable
from .failing import IS_GATES


def style_of(config: pytest.Config) -> Style:
    """Colours as pytest has them: ``--color``, a terminal, NO_COLOR, FORCE_COLOR."""
    writer = config.get_terminal_writer()
    if not writer.hasmarkup:
        return unstyled
    return lambda text, style: writer.markup(text, **dict.fromkeys(style.split(), True))


def width_of(reporter: pytest.TerminalReporter) -> int | None:
    """The terminal's width; None for a log, whose lines nobody has to break."""
    return reporter.config.get_terminal_writer().fullwidth if reporter.isatty else None


def terminal_encoding() -> str | None:
    """The encoding of what pytest writes to."""
    return getattr(sys.__stdout__, "encoding", None)


FAILURES_NAME = "pplguard-failures"

_SHOWN_IN = ("error", "failed", "xfailed")
"""Categories of reports that pytest shows in full, in its order."""


class Failures:
    """Lays the failures of gates out for the terminal, while pytest shows them.

    Everybody else (JUnit XML, other plugins) gets the reports as they are.
    """

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_terminal_summary(
        self, terminalreporter: pytest.TerminalReporter, config: pytest.Config
    ) -> Generator[None]:
        """Around pytest's own, which writes the failures."""
        width, style = width_of(terminalreporter), style_of(config)
        shown: set[str] = set()
        changed: list[tuple[Any, Any]] = []
        for category in _SHOWN_IN:
            for report in terminalreporter.stats.get(category, ()):
                # Somebody else may have put another text in its place.
                own = hasattr(report.longrepr, "reprcrash")
                if own and getattr(report, IS_GATES, False):
                    lines = failure_lines(
                        report.longreprtext, width=width, style=style, shown=shown
                    )
                    changed.append((report, report.longrepr))
                    report.longrepr = _LaidOut(report.longrepr, lines)
        try:
            return (yield)
        finally:
            for report, longrepr in changed:
                report.longrepr = longrepr


class _LaidOut:
    """Stands in for what pytest shows of a failure."""

    def __init__(self, longrepr: Any, lines: list[str]) -> None:
        self.reprcrash = longrepr.reprcrash
        self._text = str(longrepr)
        self._lines = lines

    def __str__(self) -> str:
        return self._text

    def toterminal(self, writer: Any) -> None:
        """Write line by line: pytest escapes ends of lines where it has to escape."""
        encoding = terminal_encoding()
        for line in self._lines:
            writer.line(encodable(line, encoding))
