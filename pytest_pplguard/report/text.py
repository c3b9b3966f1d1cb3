"""Text for people: one fact a line, the same nouns everywhere."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import groupby
from pathlib import PurePath

from ..baselines import Change
from ..values import Outcome, Verdict

_LABEL_WIDTH = 12


def number(value: float | None) -> str:
    """A value in tables: six significant digits."""
    return "-" if value is None else f"{value:.6g}"


def change_text(change: float | None) -> str:
    """A relative change in percent, with its sign: ``+3.10 %``."""
    return "-" if change is None else f"{change * 100:+.2f} %"


def failure_text(verdict: Verdict) -> str:
    """Everything about a gate that did not pass, in one screen."""
    lines = [*_first_reason(verdict), _headline(verdict)]
    facts = [
        ("baseline", _baseline(verdict)),
        ("measured", _exact(verdict.measured)),
        ("allowed", _allowed(verdict)),
        ("first", _drift(verdict)),
        ("recorded in", verdict.recorded_in),
        *(("because", reason) for reason in _other_reasons(verdict)),
        *(("note", note) for note in verdict.notes),
        (_command_label(verdict), verdict.command),
    ]
    return "\n".join(
        [*lines, *(f"  {name:<{_LABEL_WIDTH}} {text}" for name, text in facts if text)]
    )


def summary_lines(verdicts: Sequence[Verdict]) -> list[str]:
    """The terminal summary: a table by checkpoint and key, then one line of counts.

    What failed stands in capitals, so that it is found without colour.
    """
    lines: list[str] = []
    for checkpoint in sorted({verdict.checkpoint for verdict in verdicts}):
        lines.append(
            f"{checkpoint:<28} {'baseline':>10} {'measured':>10} {'change':>10}"
            "  outcome"
        )
        by_key: dict[str, list[str]] = {}
        for verdict in verdicts:
            if verdict.checkpoint == checkpoint:
                by_key.setdefault(verdict.key, []).append(_row(verdict))
        for key, rows in by_key.items():
            lines += [f"  {key}", *rows]
    lines.append(count_line(verdicts))
    return lines


def count_line(verdicts: Sequence[Verdict]) -> str:
    """``4 within tolerance, 1 regressed``: only what there is."""
    words = {
        Outcome.WITHIN: "within tolerance",
        Outcome.PLAUSIBLE: "plausible (published, no evidence)",
    }
    parts = []
    for outcome in Outcome:
        count = sum(verdict.outcome == outcome for verdict in verdicts)
        if count:
            parts.append(f"{count} {words.get(outcome, outcome.value)}")
    return ", ".join(parts)


def changes_table(changes: Iterable[Change]) -> list[str]:
    """Old -> new of everything that was recorded."""
    lines: list[str] = []
    for checkpoint, group in groupby(changes, key=_checkpoint_of):
        lines.append(
            f"{checkpoint:<28} {'old':>10} {'new':>10} {'change':>10}"
            f" {'since first':>12}"
        )
        for key, rows in groupby(group, key=lambda change: change.key):
            lines.append(f"  {key}")
            for row in rows:
                moved = row.new / row.old - 1 if row.old else None
                drift = row.new / row.first - 1 if row.first else None
                lines.append(
                    f"    {row.metric:<24} {number(row.old):>10} "
                    f"{number(row.new):>10} {change_text(moved):>10} "
                    f"{change_text(drift):>12}"
                )
    return lines


def _checkpoint_of(change: Change) -> str:
    return f"{PurePath(change.file).stem}/{change.checkpoint}"


def _row(verdict: Verdict) -> str:
    return (
        f"    {verdict.metric:<24} {number(verdict.baseline):>10} "
        f"{number(verdict.measured):>10} {change_text(verdict.change):>10}  "
        f"{verdict.outcome if verdict.passed else verdict.outcome.upper()}"
    )


def _headline(verdict: Verdict) -> str:
    place = f"{verdict.checkpoint} {verdict.key}"
    change = verdict.change
    by = "" if change is None else f" by {abs(change) * 100:.2f} %"
    what = {
        Outcome.REGRESSED: f"{verdict.metric} regressed{by}",
        Outcome.IMPROVED: f"{verdict.metric} improved{by}, and should stay within",
        Outcome.MISSING: f"{verdict.metric} has no baseline",
        Outcome.NOT_COMPARABLE: f"{verdict.metric} is not comparable to its baseline",
        Outcome.INVALID: f"{verdict.metric} is invalid",
        Outcome.ERROR: f"{verdict.metric} could not be measured",
        Outcome.PLAUSIBLE: f"{verdict.metric} has only a published baseline",
    }.get(verdict.outcome, f"{verdict.metric} {verdict.outcome.value}")
    return f"{place}: {what}"


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
    source = f" ({verdict.source})" if verdict.source else ""
    return f"{verdict.baseline!r}{source}"


def _exact(value: float | None) -> str:
    return "" if value is None else repr(value)


def _allowed(verdict: Verdict) -> str:
    low, high = verdict.allowed
    if low is None and high is None:
        return ""
    if low is None:
        text = f"at most {high!r}"
    elif high is None:
        text = f"at least {low!r}"
    else:
        text = f"{low!r} .. {high!r}"
    return f"{text} ({verdict.gate})" if verdict.gate else text


def _drift(verdict: Verdict) -> str:
    if verdict.first is None or verdict.first == verdict.baseline:
        return ""
    drift = (verdict.measured or 0) / verdict.first - 1 if verdict.measured else None
    return f"{verdict.first!r} ({change_text(drift)} since)"


def _command_label(verdict: Verdict) -> str:
    return "to record" if verdict.outcome is Outcome.MISSING else "to accept"
