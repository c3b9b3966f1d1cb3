"""A report for people who did not see the run: a file, or GitHub's job summary.

Names stand in code spans and texts in fenced blocks, so nothing in them is taken for
Markdown or HTML.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from ..safetext import printable
from ..values import Results, Verdict
from .text import (
    change_text,
    count_line,
    failure_text,
    measured_text,
    number,
    range_text,
    with_cache,
)

_GREEN, _RED = "\N{WHITE HEAVY CHECK MARK}", "\N{CROSS MARK}"
_NEUTRAL = "\N{MEDIUM WHITE CIRCLE}"
_STOPPED = "The run was stopped before its end: what is not listed was not measured."


def markdown(results: Results) -> str:
    """The whole report."""
    return "\n".join(markdown_blocks(results))


def markdown_blocks(results: Results) -> list[str]:
    """The report in pieces that can be read alone, the most important ones first."""
    blocks = [f"## {_headline(results)}\n"]
    if not results.complete:
        blocks.append(f"**{_STOPPED}**\n")
    problems = [problem.text for problem in results.problems]
    if problems:
        blocks.append(f"### Problems of the run\n\n{fenced(problems)}")
    blocks += _tables(results.verdicts)
    failed = [verdict for verdict in results.verdicts if not verdict.passed]
    if failed:
        blocks.append("### Not passed\n")
        blocks += [fenced([failure_text(verdict)]) for verdict in failed]
    notes = [f"warning: {warning.text}" for warning in results.warnings]
    notes += [f"note: {notice}" for notice in results.notices]
    if notes:
        blocks.append(f"### Notes\n\n{fenced(notes)}")
    return blocks


def _headline(results: Results) -> str:
    """Green only if something was judged: a run without gates is no success."""
    if results.passed and not results.verdicts:
        return f"{_NEUTRAL} Perplexity: nothing was measured against a baseline"
    counts = count_line(results.verdicts) or "no gate reached a verdict"
    return f"{_mark(results.passed)} Perplexity: {counts}"


def _tables(verdicts: Sequence[Verdict]) -> list[str]:
    """A table for each checkpoint, those with something red first."""
    checkpoints: dict[str, list[Verdict]] = {}
    for verdict in sorted(verdicts, key=lambda verdict: verdict.checkpoint):
        checkpoints.setdefault(verdict.checkpoint, []).append(verdict)
    tables = [(_passed(rows), _table(name, rows)) for name, rows in checkpoints.items()]
    return [table for _, table in sorted(tables, key=lambda pair: pair[0])]


def _passed(verdicts: Sequence[Verdict]) -> bool:
    return all(verdict.passed for verdict in verdicts)


def _table(checkpoint: str, verdicts: Sequence[Verdict]) -> str:
    rows = [
        ("key", "metric", "baseline", "measured", "change", "allowed", "outcome"),
        ("---", "---", "---:", "---:", "---:", "---", "---"),
        *map(_row, _by_key(verdicts)),
    ]
    lines = [f"| {' | '.join(row)} |" for row in rows]
    paths = dict.fromkeys(verdict.path for verdict in verdicts if verdict.path)
    given = "".join(f" = {code_span(path)}" for path in paths if path != checkpoint)
    return "\n".join(
        [
            f"### {_mark(_passed(verdicts))} {code_span(checkpoint)}{given}",
            "",
            *lines,
            "",
        ]
    )


def _by_key(verdicts: Sequence[Verdict]) -> list[Verdict]:
    """Verdicts of one key side by side, else in their order."""
    keys = [verdict.key for verdict in verdicts]
    return sorted(verdicts, key=lambda verdict: keys.index(verdict.key))


def _row(verdict: Verdict) -> tuple[str, ...]:
    show = number if verdict.early or _survives_rounding(verdict) else _exact
    outcome = verdict.outcome.value
    early = f" ({verdict.early})" if verdict.early else ""
    return (
        code_span(verdict.key),
        code_span(verdict.metric),
        _baseline(verdict, show),
        measured_text(verdict, show),
        change_text(verdict.change),
        range_text(*verdict.allowed, show) or "-",
        with_cache(
            (f"{_GREEN} {outcome}" if verdict.passed else f"{_RED} **{outcome}**")
            + early,
            verdict,
        ),
    )


def _baseline(verdict: Verdict, show: Callable[[float | None], str]) -> str:
    if verdict.published is None:
        return show(verdict.baseline)
    return f"{show(verdict.baseline)} (published: {number(verdict.published)})"


def _survives_rounding(verdict: Verdict) -> bool:
    """Whether the value is still on the same side of its bounds with six digits."""
    value = verdict.measured
    return value is None or all(
        _side(value, bound) == _side(float(number(value)), float(number(bound)))
        for bound in verdict.allowed
        if bound is not None
    )


def _side(value: float, bound: float) -> int:
    return (value > bound) - (value < bound)


def _exact(value: float | None) -> str:
    return "-" if value is None else repr(value)


def _mark(passed: bool) -> str:
    return _GREEN if passed else _RED


def code_span(text: str) -> str:
    """``text`` as a code span that a table can hold."""
    text = printable(" ".join(text.split())) or " "
    ticks = "`" * (_longest_run(text) + 1)
    pad = " " if text.startswith("`") or text.endswith("`") else ""
    # In a table a pipe ends the cell, also in code.
    return f"{ticks}{pad}{text}{pad}{ticks}".replace("|", r"\|")


def fenced(texts: Sequence[str]) -> str:
    """Texts as they are, in a fence that none of them can close."""
    text = printable("\n".join(texts))
    fence = "`" * max(3, _longest_run(text) + 1)
    return f"{fence}text\n{text}\n{fence}\n"


def _longest_run(text: str) -> int:
    return max(map(len, re.findall("`+", text)), default=0)
