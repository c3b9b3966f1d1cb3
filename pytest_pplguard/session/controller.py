"""The controller's end: gathers verdicts from reports, writes, sums up, decides.

Runs once per session, in the process that the user started; under xdist the workers
only send. Everything travels on test reports as plain JSON types, so a worker that
crashes loses only the test it was in.
"""

from __future__ import annotations

import datetime
import shlex
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from ..baselines import Change, record
from ..errors import PplguardError
from ..journal import discard
from ..options import Options, Target
from ..report import (
    changes_table,
    failure_text,
    plain,
    summary_lines,
    write_report,
)
from ..values import Outcome, Recording, Verdict
from .files import BaselineFiles
from .outbox import decode_outbox

PLUGIN_NAME = "pplguard-controller"

_FINISHED = (
    pytest.ExitCode.OK,
    pytest.ExitCode.TESTS_FAILED,
    pytest.ExitCode.NO_TESTS_COLLECTED,
)


class Controller:
    """What came of a session, and what is to be done about it; a pytest plugin."""

    def __init__(
        self, options: Options, targets: Mapping[str, Target], files: BaselineFiles
    ) -> None:
        self._options = options
        self._targets = targets
        self._files = files
        self._verdicts: dict[str, list[Verdict]] = {}
        self._recordings: dict[tuple[str, str, str], Recording] = {}
        self._notices: dict[str, None] = {}
        self._journals: list[Path] = []
        self._problems: list[str] = []
        self._changes: list[Change] = []
        self._deselected_by_workers = 0
        self.deselected = 0

    @property
    def verdicts(self) -> list[Verdict]:
        """All verdicts so far, by test, in the order in which tests were run."""
        return [verdict for test in self._verdicts.values() for verdict in test]

    # ------------------------------------------------------------------------- hooks

    def pytest_report_header(self) -> str | None:
        """Say which checkpoints are meant: ``demo`` and a bare path are short forms."""
        shown = (
            name if name == target.spec else f"{name} ({target.spec})"
            for name, target in self._targets.items()
        )
        return f"pplguard: {', '.join(shown)}" if self._targets else None

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Take what a worker, or this process, has put on a report."""
        if report.when == "setup":
            # A test that is run again (pytest-rerunfailures) counts once.
            self._verdicts.pop(report.nodeid, None)
        wire = getattr(report, "pplguard", None)
        if wire is not None:
            self.take(wire, nodeid=report.nodeid)

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        """Write, and turn a green run red that did not do what was asked."""
        if session.config.option.collectonly:
            return
        status = session.exitstatus
        complete = status in _FINISHED and not (
            session.shouldfail or session.shouldstop
        )
        # Only a green run changes colour: an interrupted one stays interrupted.
        if not self.finish(complete=complete) and status == pytest.ExitCode.OK:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(
        self, terminalreporter: pytest.TerminalReporter, config: pytest.Config
    ) -> None:
        """The section ``perplexity``; silent where there is nothing to say."""
        verbose = config.option.verbose > 0
        lines = list(self.summary(verbose=verbose))
        if not lines:
            return
        terminalreporter.write_sep("=", "perplexity")
        for line in lines:
            terminalreporter.write_line(line)

    # -------------------------------------------------------------------------- deeds

    def take(self, wire: Mapping[str, Any], *, nodeid: str) -> None:
        """Add what came with a report of the test ``nodeid``."""
        outbox = decode_outbox(wire)
        self._verdicts.setdefault(nodeid, []).extend(outbox.verdicts)
        self._notices |= dict.fromkeys(outbox.notices)
        for recording in outbox.recordings:
            place = (recording.file, recording.checkpoint, recording.measurement.key)
            self._recordings[place] = recording
        self._journals += map(Path, outbox.journals)

    def take_deselected(self, count: int) -> None:
        """Add what a worker deselected; all workers collect the same."""
        self._deselected_by_workers = max(count, self._deselected_by_workers)

    def finish(self, *, complete: bool) -> bool:
        """Write baselines and reports; whether the session may stay green.

        ``complete`` is false where not all gates came to run: after Ctrl-C, with -x.
        """
        if complete:
            self._unmeasured()
        written = self._write()
        # An interrupted run goes on from its journals, and so does one whose
        # measurements could not be written.
        if complete and written:
            for journal in self._journals:
                discard(journal)
        return not self._problems

    def _unmeasured(self) -> None:
        judged = {verdict.checkpoint for verdict in self.verdicts}
        for name, target in self._targets.items():
            if name in judged:
                continue
            given = shlex.quote(f"{name}={target.spec}")
            if self._has_gates(name):
                folder = shlex.quote(self._options.baselines)
                why = (
                    "its gates were not among the tests that ran; "
                    f"run `pytest {folder} --ppl-model {given}`"
                )
            else:
                why = (
                    f"{self._files.path(name).name} has no gate for it; "
                    f"record one with `pplguard update {shlex.quote(target.spec)} "
                    f"--checkpoint {name}`"
                )
            self._problems.append(f"--ppl-model {given}: no gate was measured ({why})")

    def _has_gates(self, name: str) -> bool:
        # The target was found in a baseline file that could be read.
        gates = self._files.entry(name).gates
        return bool(
            gates.metrics
            or gates.relative
            or gates.sparsity
            or gates.against
            or gates.weights not in (None, "any")
        )

    def _write(self) -> bool:
        """Whether everything could be written."""
        problems = len(self._problems)
        with self._collecting_problems():
            if self._recordings:
                self._changes = record(
                    list(self._recordings.values()), today=datetime.date.today()
                )
        for path in self._options.reports:
            with self._collecting_problems():
                write_report(path, self.verdicts)
        return len(self._problems) == problems

    @contextmanager
    def _collecting_problems(self) -> Iterator[None]:
        try:
            yield
        except (PplguardError, OSError) as error:
            self._problems.append(str(error))

    def summary(self, *, verbose: bool) -> Iterable[str]:
        """Lines of the section ``perplexity``; none where there is nothing to say."""
        if self.verdicts:
            yield from summary_lines(self.verdicts)
        if self._changes:
            yield "recorded:"
            yield from changes_table(self._changes)
            for gate in dict.fromkeys(
                gate for change in self._changes for gate in change.added_gates
            ):
                yield f"added gate {gate}"
        for notice in self._notices:
            yield f"note: {notice}"
        if self._options.published == "warn":
            for verdict in self.verdicts:
                if verdict.outcome is Outcome.PLAUSIBLE:
                    yield (
                        f"warning: {verdict.checkpoint} {verdict.key} "
                        f"{verdict.metric}: {verdict.notes[0]}"
                    )
        if verbose:
            for verdict in self.verdicts:
                for note in verdict.notes:
                    yield f"note: {verdict.checkpoint} {verdict.key}: {note}"
        if self._deselected_by_workers and not self._targets:
            yield deselected_text(self._deselected_by_workers)
        for problem in self._problems:
            yield f"FAILED {problem}"


def deselected_text(count: int) -> str:
    """One line that says why gates did not run."""
    gates = "gate" if count == 1 else "gates"
    return f"pplguard: {count} {gates} deselected: no checkpoint given (--ppl-model)"


def failures_text(verdicts: Iterable[Verdict]) -> str:
    """The failure texts of all verdicts that did not pass, a blank line between."""
    return "\n\n".join(
        failure_text(verdict) for verdict in verdicts if not verdict.passed
    )


def add_properties(item: pytest.Item, verdicts: Iterable[Verdict]) -> None:
    """Every figure as a JUnit ``<property>`` of the test."""
    item.user_properties += [
        (f"ppl.{verdict.checkpoint}.{verdict.key}.{verdict.metric}.{name}", value)
        for verdict in verdicts
        for name in ("outcome", "measured", "baseline", "change")
        if (value := plain(getattr(verdict, name))) is not None
    ]


def forget_properties(item: pytest.Item) -> None:
    """Take back what an earlier attempt at this test has added."""
    item.user_properties[:] = [
        (name, value)
        for name, value in item.user_properties
        if not name.startswith("ppl.")
    ]


def controller_of(config: pytest.Config) -> Controller | None:
    """The session's controller; None in an xdist worker."""
    controller: Controller | None = config.pluginmanager.getplugin(PLUGIN_NAME)
    return controller
