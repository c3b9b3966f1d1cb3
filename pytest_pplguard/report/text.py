"""Text for people: one fact a line, the same nouns everywhere."""

from __future__ import annotations

import typing
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from itertools import groupby
from pathlib import PurePath

from msgspec.structs import replace

from ..baselines import Change
from ..safetext import one_line, printable
from ..values import Outcome, Verdict, relative_change
from .terminal import COMMANDS, FACT, Style, unstyled, wrapped

_NAME, _METRIC, _NUMBER = 28, 24, 10
"""Columns of a table of 80: a checkpoint, a metric, a number."""
_LONGEST_NAME = 400
_LOOK_FOR = (
    "a lost mask, another model or text; if it really is better: accept, or gate with "
    "direction: no-worse"
)
_JUDGED = (Outcome.REGRESSED, Outcome.IMPROVED, Outcome.PLAUSIBLE)
"""Outcomes that follow from a value and its bounds, and from nothing else."""


def number(value: float | None) -> str:
    """A value in tables: six significant digits."""
    return "-" if value is None else f"{value:.6g}"


def measured_text(
    verdict: Verdict, show: Callable[[float | None], str] = number
) -> str:
    """A measured value in tables; ``~5.2031`` is an estimate."""
    return f"{'~' if verdict.early else ''}{show(verdict.measured)}"


def counted(count: int, unit: str) -> str:
    """``2 windows``, ``1 window``."""
    return f"{count} {unit.removesuffix('s') if count == 1 else unit}"


def change_text(change: float | None) -> str:
    """A relative change in percent, with its sign: ``+3.10 %``."""
    if change is None:
        return "-"
    # Of what is rounded away the sign is noise: "-0.00" differs between machines.
    return f"{round(change * 100, 2) or 0.0:+.2f} %"


def failure_text(verdict: Verdict) -> str:
    """Everything about a gate that did not pass, in one screen."""
    lines = [*_first_reason(verdict), headline(verdict)]
    facts = [
        ("baseline", _baseline(verdict)),
        ("measured", with_cache(_measured(verdict), verdict)),
        ("early", verdict.early),
        ("allowed", _allowed(verdict)),
        ("gate", _gate(verdict)),
        ("std error", verdict.stderr),
        *(("documents", line) for line in verdict.documents),
        ("first", _drift(verdict)),
        ("published", _published(verdict)),
        ("recorded in", verdict.recorded_in),
        *(("because", reason) for reason in _other_reasons(verdict)),
        *(("checkpoint", line) for line in verdict.changes),
        *(("where", line) for line in verdict.where),
        *(("note", note) for note in verdict.notes),
        ("look for", _LOOK_FOR if verdict.outcome is Outcome.IMPROVED else ""),
        (command_label(verdict), verdict.command),
    ]
    lines += (f"  {name:<{FACT}} {_hanging(text)}" for name, text in facts if text)
    return printable("\n".join(lines))


def _hanging(text: str) -> str:
    """Further lines of a fact stand below its first: none looks like another fact."""
    return text.replace("\n", "\n" + " " * (FACT + 3))


def brief(verdicts: Iterable[Verdict]) -> str:
    """One line that says what did not pass, for lists of failures.

    Numbers are exact: with fewer digits a value can look as if it were allowed.
    """
    return printable("; ".join(map(_brief, verdicts)))


def _brief(verdict: Verdict) -> str:
    return ": ".join(filter(None, (headline(verdict), "; ".join(brief_facts(verdict)))))


def brief_facts(verdict: Verdict) -> list[str]:
    """What :func:`brief` says behind the headline: exact numbers, and why."""
    facts = list(verdict.reasons or verdict.changes[:1])
    if verdict.outcome in _JUDGED:
        allowed = range_text(*verdict.allowed, _show(verdict))
        facts.insert(0, f"measured {_measured(verdict)}, allowed {allowed}")
        facts += [verdict.early] if verdict.early else []
    if verdict.cached:
        facts.append(_from_cache(verdict))
    return facts


def range_text(
    low: float | None, high: float | None, show: Callable[[float], str]
) -> str:
    """``LOW .. HIGH``, in words where an end is open; nothing where both are."""
    if low is None and high is None:
        return ""
    if low is None:
        return f"at most {show(typing.cast(float, high))}"
    return f"at least {show(low)}" if high is None else f"{show(low)} .. {show(high)}"


def summary_lines(
    verdicts: Sequence[Verdict],
    *,
    style: Style = unstyled,
    width: int | None = None,
    quiet: bool = False,
    verbose: bool = False,
) -> list[str]:
    """The terminal summary: a table by checkpoint and key, then one line of counts.

    What failed stands in capitals, so that it is found without colour.

    Args:
        verdicts: of all tests.
        style: colours what it is given.
        width: of a terminal, at which prose is broken; the table has 80 columns.
        quiet: only the gates that failed, and the counts of all.
        verbose: also how many windows each key has, and how long they took.
    """
    table = _Table(style, width, verbose)
    shown = [verdict for verdict in verdicts if not (quiet and verdict.passed)]
    lines: list[str] = []
    for checkpoint in sorted({verdict.checkpoint for verdict in shown}):
        lines += table.head(checkpoint, ("baseline", "measured", "change"), "  outcome")
        by_key: dict[str, list[Verdict]] = {}
        for verdict in shown:
            if verdict.checkpoint == checkpoint:
                by_key.setdefault(verdict.key, []).append(verdict)
        for key, of_key in by_key.items():
            lines += table.key(key, of_key)
    return [*lines, count_line(verdicts, style=style)]


def count_line(verdicts: Sequence[Verdict], *, style: Style = unstyled) -> str:
    """``1 regressed, 4 within tolerance``: only what there is, red first."""
    words = {
        Outcome.WITHIN: "within tolerance",
        Outcome.PLAUSIBLE: "plausible (published, no evidence)",
    }
    counts = Counter(verdict.outcome for verdict in verdicts)
    red = {verdict.outcome for verdict in verdicts if not verdict.passed}
    return ", ".join(
        style(
            f"{counts[outcome]} {words.get(outcome, outcome.value)}",
            _colour(outcome, passed=outcome not in red),
        )
        for outcome in sorted(Outcome, key=lambda outcome: outcome not in red)
        if counts[outcome]
    )


def changes_table(changes: Iterable[Change], *, style: Style = unstyled) -> list[str]:
    """Old -> new of everything that was recorded."""
    table = _Table(style)
    lines: list[str] = []
    for checkpoint, group in groupby(changes, key=_checkpoint_of):
        titles = ("old", "new", "change")
        lines += table.head(checkpoint, titles, f" {'since first':>12}")
        for key, rows in groupby(group, key=lambda change: change.key):
            lines.append(f"  {one_line(key)}")
            for row in rows:
                moved = None if row.old is None else relative_change(row.new, row.old)
                drift = (
                    None if row.first is None else relative_change(row.new, row.first)
                )
                cells = (number(row.old), number(row.new), change_text(moved))
                lines += table.row(row.metric, cells, f" {change_text(drift):>12}")
    return lines


def _checkpoint_of(change: Change) -> str:
    return f"{PurePath(change.file).stem}/{change.checkpoint}"


def _colour(outcome: Outcome, *, passed: bool) -> str:
    if not passed:
        return "bold red"
    return "green" if outcome is Outcome.WITHIN else "yellow"


class _Table:
    """Rows of 80 columns; a name that is too long for its column has its own line."""

    def __init__(
        self, style: Style, width: int | None = None, verbose: bool = False
    ) -> None:
        self._style = style
        self._width = width
        self._verbose = verbose

    def head(self, name: str, titles: Sequence[str], tail: str) -> list[str]:
        """A checkpoint, and what the columns below are."""
        columns = "".join(f" {title:>{_NUMBER}}" for title in titles)
        name = one_line(name, most=_LONGEST_NAME)
        if len(name) <= _NAME:
            return [self._style(f"{name:<{_NAME}}{columns}{tail}", "bold")]
        titles_line = f"{'':<{_NAME}}{columns}{tail}"
        return [self._style(name, "bold"), self._style(titles_line, "bold")]

    def key(self, key: str, verdicts: Sequence[Verdict]) -> list[str]:
        """The rows of a key; that it is from the cache once, if it is true of all."""
        first = verdicts[0]
        lines = [f"  {one_line(key)}{self._effort(first)}"]
        if first.cached and all(verdict.cached == first.cached for verdict in verdicts):
            lines.append(f"    {_from_cache(first)}")
            verdicts = [replace(verdict, cached="") for verdict in verdicts]
        for verdict in verdicts:
            lines += self._of(verdict)
        return lines

    def row(
        self, name: str, cells: Sequence[str], tail: str, *, indent: int = 4
    ) -> list[str]:
        """A name, numbers, and what stands behind them."""
        columns = "".join(f" {cell:>{_NUMBER}}" for cell in cells)
        name = one_line(name, most=_LONGEST_NAME)
        size = _METRIC + 4 - indent
        start = f"{'':<{indent}}{name:<{size}}"
        if len(name) <= size:
            return [f"{start}{columns}{tail}".rstrip()]
        return [start, f"{'':<{indent + size}}{columns}{tail}".rstrip()]

    def _effort(self, verdict: Verdict) -> str:
        """What measuring a key took, for those who ask."""
        if not self._verbose or verdict.windows is None:
            return ""
        seconds = "" if verdict.seconds is None else f", {verdict.seconds:.1f} s"
        return f": {counted(verdict.windows, 'windows')}{seconds}"

    def _of(self, verdict: Verdict) -> list[str]:
        outcome = verdict.outcome if verdict.passed else verdict.outcome.upper()
        colour = _colour(verdict.outcome, passed=verdict.passed)
        change = f"{change_text(verdict.change):>{_NUMBER}}"
        if not verdict.passed and verdict.outcome in (*_JUDGED, Outcome.CHANGED):
            change = self._style(change, "red")
        rows = self.row(
            verdict.metric,
            (number(verdict.baseline), measured_text(verdict), change),
            f"  {self._style(outcome, colour)}",
        )
        rows += self._aside("early", verdict.early)
        if verdict.published is not None:
            cells = (
                number(verdict.published),
                number(verdict.measured),
                change_text(_from_published(verdict)),
            )
            rows += self.row("published", cells, "", indent=6)
        for line in verdict.documents[:1]:
            rows += self._aside("documents", line)
        rows += [f"      {_from_cache(verdict)}"] if verdict.cached else []
        return rows

    def _aside(self, name: str, text: str) -> list[str]:
        if not text:
            return []
        said = f"{name}: {printable(text)}"
        return wrapped(said, self._width, first=" " * 6, rest=" " * 8)


def headline(verdict: Verdict) -> str:
    """What came of a gate, in one line without its bounds."""
    name = one_line(verdict.checkpoint, most=_LONGEST_NAME)
    place = f"{name} {one_line(verdict.key)}"
    what = {
        Outcome.REGRESSED: f"{verdict.metric} {_regressed(verdict)}",
        Outcome.IMPROVED: f"{verdict.metric} improved{_by(verdict)}, more than is "
        "allowed",
        Outcome.CHANGED: f"{verdict.metric}: {_changed(verdict)}",
        Outcome.MISSING: f"{verdict.metric} has no baseline",
        Outcome.NOT_COMPARABLE: f"{verdict.metric} is not comparable to its baseline",
        Outcome.INVALID: f"{verdict.metric} is invalid",
        Outcome.ERROR: f"{verdict.metric} could not be measured",
        Outcome.PLAUSIBLE: f"{verdict.metric} has only a published baseline",
    }.get(verdict.outcome, f"{verdict.metric} {verdict.outcome.value}")
    return f"{place}: {what}"


def _regressed(verdict: Verdict) -> str:
    """A value can be above ``max`` without being worse than its baseline."""
    if _counts(verdict):
        return f"is broken in {_many(verdict.measured, 'group')}"
    # What regressed is beyond the worse end of what is allowed.
    low, value = verdict.allowed[0], verdict.measured
    below = low is not None and value is not None and value < low
    change = verdict.change or 0.0
    worse = verdict.change is None or round(-change if below else change, 4) > 0
    # Of zeros there may also be too few.
    if worse or verdict.key == "sparsity":
        return f"regressed{_by(verdict)}"
    return f"is {'below' if below else 'above'} what is allowed"


def _changed(verdict: Verdict) -> str:
    """Of gates of the weights, which measure how many tensors are not as they were.

    And of a metric that stayed within its bounds while the predictions drifted.
    """
    if not _counts(verdict):
        return "within its bounds, but the predictions drifted"
    many = _many(verdict.measured, "tensor")
    if verdict.key == "against":
        return f"weights that survived are not those of {verdict.metric}, in {many}"
    if verdict.metric == "mask":
        return f"zeros are not where they were recorded, in {many}"
    return f"weights are not the recorded ones, in {many}"


def _many(count: float | None, what: str) -> str:
    return f"{count or 0:.0f} {what}{'' if count == 1 else 's'}"


def _counts(verdict: Verdict) -> bool:
    """Whether a verdict's numbers are whole: of tensors, or of groups."""
    return verdict.key in ("weights", "against") or (
        verdict.key == "sparsity" and verdict.metric != "fraction"
    )


def _by(verdict: Verdict) -> str:
    change = verdict.change
    about = "about " if verdict.early else ""
    return "" if change is None else f" by {about}{abs(change) * 100:.2f} %"


def _first_reason(verdict: Verdict) -> tuple[str, ...]:
    """Another dtype explains a regression better than anything below it."""
    return verdict.reasons[:1] if _leads_with_dtype(verdict) else ()


def _other_reasons(verdict: Verdict) -> tuple[str, ...]:
    return verdict.reasons[1:] if _leads_with_dtype(verdict) else verdict.reasons


def _leads_with_dtype(verdict: Verdict) -> bool:
    return bool(verdict.reasons) and verdict.reasons[0].startswith("dtype ")


def _baseline(verdict: Verdict) -> str:
    if verdict.baseline is None:
        return ""
    if not verdict.source:
        return repr(verdict.baseline)
    known = verdict.source
    if known == "published" and verdict.reference:
        known += f": {verdict.reference}"
    return f"{verdict.baseline!r} ({known})"


def _measured(verdict: Verdict) -> str:
    if verdict.measured is None:
        return ""
    if verdict.early:
        return f"about {number(verdict.measured)}"
    return _show(verdict)(verdict.measured)


def with_cache(text: str, verdict: Verdict) -> str:
    """``text``, and when a value from the cache was measured."""
    return f"{text} ({_from_cache(verdict)})" if verdict.cached else text


def _from_cache(verdict: Verdict) -> str:
    """``from cache, measured 2026-11-26 09:12 UTC``."""
    when = verdict.cached.replace("T", " ").replace("Z", " UTC")
    return f"from cache, measured {when}"


def _show(verdict: Verdict) -> Callable[[float], str]:
    """Every digit of a number; whole numbers without a point."""
    return "{:.0f}".format if _counts(verdict) else repr


def _allowed(verdict: Verdict) -> str:
    text = range_text(*verdict.allowed, _show(verdict))
    return f"{text} ({verdict.gate})" if text and verdict.gate else text


def _gate(verdict: Verdict) -> str:
    """The gate where no range says it."""
    return "" if range_text(*verdict.allowed, repr) else verdict.gate


def _drift(verdict: Verdict) -> str:
    if verdict.first is None or verdict.first == verdict.baseline:
        return ""
    if not _comparable(verdict):
        return repr(verdict.first)
    drift = None
    if verdict.measured:
        drift = relative_change(verdict.measured, verdict.first)
    return f"{verdict.first!r} ({change_text(drift)} since)"


def _published(verdict: Verdict) -> str:
    if verdict.published is None:
        return ""
    here = f"{change_text(_from_published(verdict))} here"
    facts = [verdict.reference, here if _comparable(verdict) else ""]
    return f"{verdict.published!r} ({'; '.join(filter(None, facts))})"


def _comparable(verdict: Verdict) -> bool:
    """Whether the measured value is of the kind that was recorded.

    A gate that asks for more than there is evidence for has a change all the same.
    """
    return verdict.outcome is not Outcome.NOT_COMPARABLE or verdict.change is not None


def _from_published(verdict: Verdict) -> float | None:
    if not verdict.published or verdict.measured is None:
        return None
    if not _comparable(verdict):
        return None
    return verdict.measured / verdict.published - 1


def command_label(verdict: Verdict) -> str:
    """What the command does: ``to accept``, or ``to record`` where nothing is."""
    accept, record = COMMANDS
    return record if verdict.outcome is Outcome.MISSING else accept
