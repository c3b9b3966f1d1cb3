"""The controller's end: gathers verdicts from reports, writes, sums up, decides.

Runs once per session, in the process that the user started; under xdist the workers
only send. Everything travels on test reports as plain JSON types, so a worker that
crashes loses only the test it was in.
"""

from __future__ import annotations

import datetime
import os
import shlex
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from ..baselines import Change, record, split_name
from ..errors import PplguardError
from ..history import add_run, run_origin
from ..journal import discard
from ..options import Options, Target
from ..report import (
    Style,
    brief,
    changes_table,
    counted,
    figures,
    summary_lines,
    unstyled,
    wrapped,
    write_report,
)
from ..safetext import encodable, one_line, printable, shell_join
from ..values import (
    Details,
    LossDetail,
    Outcome,
    Recording,
    Remark,
    Results,
    Scalar,
    Verdict,
    WeightsDetail,
)
from .files import BaselineFiles, shown_path
from .github import GitHub, others_annotate
from .outbox import Outbox, decode_outbox
from .progress import resume_line
from .terminal import style_of, terminal_encoding, width_of
from .xdist import gated_checkpoint

PLUGIN_NAME = "pplguard-controller"
_DESELECTED = "pplguard_deselected"
_LONGEST_PATH = 400
_QUIETEST = -1
"""Of pytest's verbosities, the last at which there is a section."""

_FINISHED = (
    pytest.ExitCode.OK,
    pytest.ExitCode.TESTS_FAILED,
    pytest.ExitCode.NO_TESTS_COLLECTED,
)


class Controller:
    """What came of a session, and what is to be done about it; a pytest plugin."""

    def __init__(
        self,
        config: pytest.Config,
        options: Options,
        targets: Mapping[str, Target],
        files: BaselineFiles,
    ) -> None:
        self._config = config
        self._start = config.invocation_params.dir
        self._options = options
        self._targets = targets
        self._files = files
        self._github = GitHub.of(os.environ)
        self._verdicts: dict[str, list[Verdict]] = {}
        self._failed: dict[str, str] = {}
        self._unjudged: dict[str, Remark] = {}
        self._recordings: dict[tuple[str, str, str], Recording] = {}
        self._notices: dict[str, None] = {}
        self._journals: list[Path] = []
        self._problems: list[str] = []
        self._losses: dict[tuple[str, str], LossDetail] = {}
        self._weights: dict[str, WeightsDetail] = {}
        self._gated: set[tuple[str, str]] = set()
        self._changes: list[Change] = []
        self._asides: dict[str, None] = {}
        self._environments: dict[str, dict[str, Scalar]] = {}
        self._complete = True
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
            name
            if name == target.spec
            else f"{name} ({one_line(target.spec, most=_LONGEST_PATH)})"
            for name, target in self._targets.items()
        )
        if not self._targets:
            return None
        return encodable(f"pplguard: {', '.join(shown)}", terminal_encoding())

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        """Keep why a baseline file could not be collected."""
        file = report.nodeid.partition("::")[0]
        if report.failed and file.endswith((".yaml", ".yml")):
            shown, _ = self._place((file, None, ""))
            self._unjudged[report.nodeid] = Remark(report.longreprtext, file=shown)

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Take what a worker, or this process, has put on a report."""
        resume_line(self._config)
        nodeid = report.nodeid
        if report.when == "setup":
            # A test that is run again (pytest-rerunfailures) counts once.
            for kept in (self._verdicts, self._failed, self._unjudged):
                kept.pop(nodeid, None)
        wire = getattr(report, "pplguard", None)
        if wire is not None:
            self.take(wire, nodeid=nodeid, place=self._place(report.location))
        if report.failed:
            self._failed.setdefault(nodeid, report.when)
            if gated_checkpoint(nodeid) and not self._verdicts.get(nodeid):
                self._unjudged[nodeid] = self._without_verdict(report)

    def _place(self, location: tuple[str, int | None, str]) -> tuple[str, int | None]:
        """File, as people read it, and line (from 1) of a test."""
        file, line, _ = location
        path = Path(os.path.abspath(self._config.rootpath / file))
        return shown_path(path, self._start), None if line is None else line + 1

    def _without_verdict(self, report: pytest.TestReport) -> Remark:
        """A gate that crashed, or took too long."""
        crash = getattr(report.longrepr, "reprcrash", None)
        why = crash.message if crash is not None else str(report.longrepr).strip()
        file, line = self._place(report.location)
        return Remark(f"{report.nodeid}: no verdict: {why}", file=file, line=line)

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
        lines = list(
            self.summary(
                verbosity=config.option.verbose,
                style=style_of(config),
                width=width_of(terminalreporter),
            )
        )
        if lines and config.option.verbose >= _QUIETEST:
            terminalreporter.write_sep("=", "perplexity")
        encoding = terminal_encoding()
        for line in [*lines, *self.annotations()]:
            terminalreporter.write_line(encodable(line, encoding))

    # -------------------------------------------------------------------------- deeds

    def take(
        self, wire: Mapping[str, Any], *, nodeid: str, place: tuple[str, int | None]
    ) -> None:
        """Add what came with a report of the test ``nodeid``, which stands there."""
        outbox = decode_outbox(wire)
        file, line = place
        self._verdicts.setdefault(nodeid, []).extend(
            replace(verdict, file=file, line=line, path=self._path(nodeid, verdict))
            for verdict in outbox.verdicts
        )
        self._notices |= dict.fromkeys(outbox.notices)
        self._asides |= dict.fromkeys(outbox.asides)
        self._environments |= outbox.environments
        for recording in outbox.recordings:
            measured = recording.measurement
            key = "" if measured is None else measured.key
            self._recordings[recording.file, recording.checkpoint, key] = recording
        self._journals += map(Path, outbox.journals)
        self._take_details(outbox, gated=gated_checkpoint(nodeid) is not None)

    def _take_details(self, outbox: Outbox, *, gated: bool) -> None:
        """A test may measure another model under a checkpoint's name: gates win."""
        for loss in outbox.losses:
            place = loss.checkpoint, loss.key
            if gated or place not in self._gated:
                self._losses[place] = loss
                self._gated |= {place} if gated else set()
        for weights in outbox.weights:
            name = weights.checkpoint
            if gated or (name, "") not in self._gated:
                self._weights[name] = weights
                self._gated |= {(name, "")} if gated else set()

    def _path(self, nodeid: str, verdict: Verdict) -> str:
        """What was given for a gate's checkpoint; a test may have measured another."""
        if not gated_checkpoint(nodeid) or verdict.checkpoint not in self._targets:
            return ""
        return self._targets[verdict.checkpoint].spec

    def take_deselected(self, count: int) -> None:
        """Add what a worker deselected; all workers collect the same."""
        self._deselected_by_workers = max(count, self._deselected_by_workers)

    def finish(self, *, complete: bool) -> bool:
        """Write baselines and reports; whether the session may stay green.

        ``complete`` is false where not all gates came to run: after Ctrl-C, with -x.
        """
        self._complete = complete
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
        # What others were held to was read as well.
        judged |= {
            f"{split_name(verdict.checkpoint)[0]}/{verdict.metric}"
            for verdict in self.verdicts
            if verdict.key == "against" and verdict.outcome is not Outcome.ERROR
        }
        judged |= {*filter(None, map(self._reference, self.verdicts))}
        lost = {gated_checkpoint(nodeid) for nodeid in self._unjudged}
        for name, target in self._targets.items():
            if name in judged:
                continue
            given = shell_join([f"{name}={target.spec}"])
            if name in lost:
                why = "its gates ended without a verdict"
            elif self._has_gates(name):
                folder = shlex.quote(self._options.baselines)
                why = (
                    "its gates were not among the tests that ran; "
                    f"run `pytest {folder} --ppl-model {given}`"
                )
            else:
                why = (
                    f"{self._files.path(name).name} has no gate for it; "
                    f"record one with `pplguard update {shell_join([target.spec])} "
                    f"--checkpoint {name}`"
                )
            self._problems.append(f"--ppl-model {given}: no gate was measured ({why})")

    def _reference(self, verdict: Verdict) -> str | None:
        """The checkpoint that a verdict's was compared with, and so measured."""
        if not verdict.key.startswith("kl/") or verdict.measured is None:
            return None
        reference = self._files.entry(verdict.checkpoint).reference
        return f"{verdict.checkpoint.partition('/')[0]}/{reference}"

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
                notices: list[str] = []
                self._changes = record(
                    list(self._recordings.values()),
                    today=datetime.date.today(),
                    tell=notices.append,
                )
                self._notices |= dict.fromkeys(notices)
        for path in self._options.reports:
            with self._collecting_problems():
                self._write_report(path)
        if self._options.history is not None:
            with self._collecting_problems():
                self._add_to_history(self._options.history)
        written = len(self._problems) == problems
        self._tell_github()
        return written

    def _write_report(self, path: str) -> None:
        try:
            write_report(path, self.results(), self.details())
        except (PplguardError, OSError):
            raise
        except Exception as error:
            # What one cannot show is no reason to lose the others, and the history.
            raise PplguardError(
                f"--ppl-report: {path} could not be made ({type(error).__name__}: "
                f"{error}): please report this fault of pytest-pplguard"
            ) from error

    def _add_to_history(self, url: str) -> None:
        results = self.results()
        if not results.verdicts:  # tests of something else, in a project with a history
            return
        origin = run_origin(self._start, os.environ)
        try:
            add_run(url, results, self.details(), origin)
        except PplguardError as error:
            raise PplguardError(f"--ppl-history: {error}") from error

    def details(self) -> Details:
        """What is behind the verdicts, as far as it was gathered."""
        return Details(
            losses=tuple(self._losses.values()),
            weights=tuple(self._weights.values()),
            ladders=self._options.ladders,
        )

    def _tell_github(self) -> None:
        results = self.results()
        if self._github is None or not (results.verdicts or results.problems):
            return
        try:
            self._github.summarise(results)
        except OSError as error:
            # Nobody asked for it, so the run is no less good without it.
            self._notices[f"the job summary could not be written: {error}"] = None

    @contextmanager
    def _collecting_problems(self) -> Iterator[None]:
        try:
            yield
        except (PplguardError, OSError) as error:
            self._problems.append(str(error))

    def results(self) -> Results:
        """What came of the run, for reports."""
        problems = map(Remark, self._problems)
        return Results(
            verdicts=tuple(self.verdicts),
            problems=(*problems, *self._unjudged.values()),
            warnings=tuple(self._warnings()),
            notices=tuple(self._notices),
            complete=self._complete,
        )

    def _warnings(self) -> Iterator[Remark]:
        if self._options.published != "warn":
            return
        for verdict in self.verdicts:
            if verdict.outcome is Outcome.PLAUSIBLE:
                yield Remark(
                    f"{verdict.checkpoint} {verdict.key} {verdict.metric}: "
                    f"{verdict.notes[0]}",
                    file=verdict.file,
                    line=verdict.line,
                )

    def annotations(self) -> Iterable[str]:
        """What makes GitHub show the red gates at their lines; else nothing."""
        if self._github is None:
            return
        results = self.results()
        errors = [
            *results.problems,
            *(
                Remark(brief([verdict]), file=verdict.file, line=verdict.line)
                # Of a test that passes all the same (xfail) nothing is wrong.
                for nodeid, when in self._failed.items()
                if not others_annotate(self._config, when=when)
                for verdict in self._verdicts.get(nodeid, ())
                if not verdict.passed
            ),
        ]
        yield from self._github.commands("error", errors, start=self._start)
        yield from self._github.commands("warning", results.warnings, start=self._start)

    def summary(
        self, *, verbosity: int, style: Style = unstyled, width: int | None = None
    ) -> Iterator[str]:
        """Lines of the section ``perplexity``; none where there is nothing to say.

        ``verbosity`` is pytest's: under ``-q`` only what failed and the counts, under
        ``-qq`` only what would make the run red without a word, under ``-v`` all.
        """
        if verbosity < _QUIETEST:
            yield from self._problem_lines(style, width)
            return
        quiet, verbose = verbosity < 0, verbosity > 0
        if self.verdicts:
            yield from summary_lines(
                self.verdicts, style=style, width=width, quiet=quiet, verbose=verbose
            )
        if self._changes:
            yield from self._recorded(style, quiet=quiet)
        remarks = [] if quiet else [f"note: {notice}" for notice in self._notices]
        remarks += [f"warning: {warning.text}" for warning in self._warnings()]
        if verbose:
            remarks += dict.fromkeys(
                f"note: {verdict.checkpoint} {verdict.key}: {note}"
                for verdict in self.verdicts
                for note in verdict.notes
            )
            remarks += self._asides
            remarks += _environments(self._environments)
        if self._deselected_by_workers and not self._targets:
            remarks.append(deselected_text(self._deselected_by_workers))
        for remark in remarks:
            yield from wrapped(printable(remark), width, rest="  ")
        yield from self._problem_lines(style, width)

    def _recorded(self, style: Style, *, quiet: bool) -> Iterator[str]:
        if quiet:
            files = dict.fromkeys(change.file for change in self._changes)
            shown = ", ".join(shown_path(Path(file), self._start) for file in files)
            values = counted(len(self._changes), "values")
            yield printable(f"recorded {values} in {shown}")
            return
        yield "recorded:"
        yield from changes_table(self._changes, style=style)
        for gate in dict.fromkeys(
            gate for change in self._changes for gate in change.added_gates
        ):
            yield f"added gate {gate}"

    def _problem_lines(self, style: Style, width: int | None) -> Iterator[str]:
        for problem in self._problems:
            for line in wrapped(f"FAILED {printable(problem)}", width, rest="  "):
                yield style(line, "red")


def _environments(of: Mapping[str, Mapping[str, Scalar]]) -> Iterator[str]:
    """What the measurements ran in; which of them, where it was not the same."""
    groups: list[tuple[dict[str, Scalar], list[str]]] = []
    for name, environment in of.items():
        for common, names in groups:
            # Another method names another library beside the same ones.
            if all(common.get(fact, it) == it for fact, it in environment.items()):
                common.update(environment)
                names.append(name)
                break
        else:
            groups.append((dict(environment), [name]))
    for common, names in groups:
        whose = f" of {', '.join(names)}" if len(groups) > 1 else ""
        facts = ", ".join(f"{fact} {value}" for fact, value in common.items())
        yield f"environment{whose}: {facts}"


def deselected_text(count: int) -> str:
    """One line that says why gates did not run."""
    gates = "gate" if count == 1 else "gates"
    return f"pplguard: {count} {gates} deselected: no checkpoint given (--ppl-model)"


def add_properties(item: pytest.Item, verdicts: Iterable[Verdict]) -> None:
    """Every figure as a JUnit ``<property>`` of the test."""
    item.user_properties += [
        (
            # XML has no place for control characters, and pytest escapes only values.
            one_line(f"ppl.{verdict.checkpoint}.{verdict.key}.{verdict.metric}.{name}"),
            printable(value) if isinstance(value, str) else value,
        )
        for verdict in verdicts
        for name, value in {
            "outcome": verdict.outcome.value,
            **figures(verdict),
            **({"cached": verdict.cached} if verdict.cached else {}),
            **({"early": verdict.early} if verdict.early else {}),
        }.items()
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


def note_deselected(config: pytest.Config, count: int) -> None:
    """Have it said how many gates were deselected, by whichever process speaks."""
    controller = controller_of(config)
    if controller is not None:
        controller.deselected = count
    else:
        output: dict[str, object] = config.workeroutput  # type: ignore[attr-defined]
        output[_DESELECTED] = count


def take_deselected(node: Any) -> None:
    """Take what :func:`note_deselected` left in a worker that has ended."""
    controller = controller_of(node.config)
    # A worker that crashed has left nothing.
    count = getattr(node, "workeroutput", {}).get(_DESELECTED, 0)
    if controller is not None:
        controller.take_deselected(count)
