"""The ladder from one method's number to another's, in words and as JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from textwrap import wrap
from typing import Annotated, Any

import msgspec
from msgspec import Meta, Struct

from ..errors import UsageError
from ..values import SCHEMA, Key, Ladder, LadderDetail, Rung, Scalar
from .json import plain
from .text import number

_WIDTH = 88
"""Columns where nobody says how many there are."""
_NUMBERS = 40
"""Columns of the table beside what changes."""
"""Characters of a line of the conclusion."""

_TITLES = {
    "text": "text",
    "per_page": "windows",
    "tail": "tail",
    "first": "first token",
    "scored": "scored",
    "mean": "mean",
    "divisor": "divided by",
    "window": "window",
    "stride": "stride",
}
_WORDS: dict[str, dict[Scalar, str]] = {
    "text": {
        "rows": "rows, joined",
        "file": "the raw file",
        "detokenised pages": "detokenised pages, joined",
    },
    "per_page": {False: "across pages", True: "page by page"},
    "tail": {"kept": "shorter window", "filled backwards": "filled from text before"},
    "first": {
        "as it is": "not scored",
        "BOS in its place": "not scored, BOS in its place",
        "prefix": "scored after a prefix",
    },
    "scored": {
        "all": "every token once",
        "second half": "the second half of each window",
    },
    "mean": {
        "tokens": "over tokens",
        "windows": "over windows",
        "weighted": "over windows by tokens",
    },
    "stride": {None: "one window"},
}
"""What a property is called, and its values; what is not here is shown as it is."""


def change_words(rung: Rung, ladder: Ladder) -> str:
    """What a rung changed: ``tail: dropped -> kept as a shorter window``."""
    if rung.changed is None:
        return f"{Key.parse(ladder.start).method} itself"
    title = _TITLES.get(rung.changed, rung.changed.replace("_", " "))
    words = _WORDS.get(rung.changed, {})
    before, after = (
        words.get(value, str(value)) for value in (rung.before, rung.after)
    )
    return f"{title}: {before} -> {after}"


def ladder_lines(
    model: str, ladder: Ladder, *, width: int = _WIDTH, columns: int | None = None
) -> list[str]:
    """The table of a ladder, and below it what it says.

    Prose is broken at ``width``; the table has ``columns``, if there are any.
    """
    lines = [*_table(model, ladder, columns), ""]
    for text in conclusion_lines(ladder):
        lines += wrap(text, width, break_on_hyphens=False, break_long_words=False)
    return lines


def _table(model: str, ladder: Ladder, columns: int | None) -> Iterator[str]:
    pages = "" if ladder.limit is None else f"{first_pages(ladder.limit)} of "
    yield f"{model} on {pages}{ladder.corpus}"
    start, goal = Key.parse(ladder.start), Key.parse(ladder.goal)
    last = len(ladder.rungs) - 1
    rows = [
        (
            str(index) if index else "",
            change_words(rung, ladder) if index else f"{start} ({ladder.start_metric})",
            number(rung.perplexity),
            f"{rung.log_change:+.4f}" if index else "",
            _percent(rung.share) if index else "",
        )
        for index, rung in enumerate(ladder.rungs)
    ]
    rows.append(
        (
            "",
            f"{goal} ({ladder.goal_metric})",
            number(ladder.rungs[last].perplexity),
            f"{ladder.gap:+.4f}",
            _percent(1.0 if ladder.gap else None),
        )
    )
    head = ("step", "what changes", "perplexity", "log change", "share")
    longest = max(len(row[1]) for row in (head, *rows))
    width = longest if columns is None else min(longest, max(20, columns - _NUMBERS))
    for step, change, perplexity, log_change, share in (head, *rows):
        said, *more = wrap(change, width, break_on_hyphens=False)
        yield (
            f"{step:>4}  {said:<{width}}  {perplexity:>10}  {log_change:>10}  "
            f"{share:>8}"
        ).rstrip()
        yield from (f"{'':>4}    {line}" for line in more)


def conclusion_lines(ladder: Ladder) -> list[str]:
    """What the ladder says, for somebody who knows neither method."""
    first, last = ladder.rungs[0].perplexity, ladder.rungs[-1].perplexity
    start, goal = (Key.parse(key).method for key in (ladder.start, ladder.goal))
    units = _unit(ladder.start_metric), _unit(ladder.goal_metric)
    one, other = f"{number(first)} per {units[0]}", f"{number(last)} per {units[1]}"
    apart = f"{(last / first - 1) * 100:+.1f} %" if ladder.gap else "the same number"
    lines = [
        f"The same model on the same text: {one} by {start}, {other} by {goal}: "
        f"{apart}."
    ]
    if ladder.gap:
        lines += _reasons(ladder)
    else:
        lines.append("There is no gap, and so no step has a share of it.")
    if first > 1 and units[0] != units[1]:
        lines.append(
            f"As a power: {number(last)} = {number(first)} ^ "
            f"{math.log(last) / math.log(first):.4f} "
            f"(ln {units[1]} perplexity / ln {units[0]} perplexity)."
        )
    if {start, goal} == {"wanda", "lm-eval"}:
        lines.append(
            "Whether pruning has a part in the gap, two models tell: pplguard compare "
            "DENSE PRUNED."
        )
    if ladder.limit is not None:
        lines.append(
            f"Both ends are of {first_pages(ladder.limit)} alone: they are not the "
            "numbers of the whole text."
        )
    return lines


def _reasons(ladder: Ladder) -> Iterator[str]:
    """Which steps make the gap."""
    shares = {
        index: rung.share
        for index, rung in enumerate(ladder.rungs)
        if index and rung.share
    }
    divisor = next((i for i in shares if ladder.rungs[i].changed == "divisor"), None)
    cuts = {index: share for index, share in shares.items() if index != divisor}
    if divisor is not None:
        rung = ladder.rungs[divisor]
        ratio = rung.scored / ladder.words
        unit, other, power = "word", "token", ratio
        if rung.after == "tokens":
            unit, other, power = "token", "word", 1 / ratio
        verb = "explains" if 0 <= shares[divisor] <= 1 else "makes"
        yield (
            f"The divisor alone {verb} {shares[divisor] * 100:.1f} % of the gap: "
            f"there are {ratio:.3f} tokens a word, so a perplexity P per {other} is "
            f"P ^ {power:.3f} per {unit}."
        )
    if cuts:
        largest = max(cuts, key=lambda index: abs(cuts[index]))
        part = "All of it is how the text is cut and read"
        if divisor is not None:
            others = math.fsum(cuts.values()) * 100
            part = (
                "The other steps, how the text is cut and read, "
                f"{'add' if others >= 0 else 'take off'} {abs(others):.1f} % together"
            )
        yield (
            f"{part}; the largest is step {largest} with "
            f"{_percent(cuts[largest])} "
            f"({change_words(ladder.rungs[largest], ladder)})."
        )
    against = [str(index) for index, share in shares.items() if share < 0]
    if against:
        *most, last = against
        steps = f"steps {', '.join(most)} and {last}" if most else f"step {last}"
        yield (
            f"A negative share pulls the other way: {steps}. "
            "All shares add up to 100 %."
        )


def _unit(metric: str) -> str:
    return metric.partition("_")[0]


def first_pages(count: int) -> str:
    """``the first 20 pages``."""
    return "the first page" if count == 1 else f"the first {count} pages"


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{share * 100:+.1f} %"


_Perplexity = Annotated[float, Meta(gt=0)]


class _Versioned(Struct, frozen=True):
    """What every version of the document has."""

    schema: Annotated[int, Meta(ge=1)]


class _End(Struct, frozen=True):
    key: str
    metric: str
    value: _Perplexity


class _Step(Struct, frozen=True):
    change: str
    perplexity: _Perplexity
    log_change: float
    share: float | None


class _Document(Struct, frozen=True, rename={"start": "from", "goal": "to"}):
    """The fields of :func:`ladder_document` that reports show."""

    schema: int
    model: str
    text: str
    start: _End
    goal: _End
    steps: Annotated[list[_Step], Meta(min_length=1)]
    conclusion: list[str]
    notices: list[str]


def _number(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text} is not finite")
    return value


def read_ladder(path: Path, *, option: str) -> LadderDetail:
    """What ``pplguard explain --json`` has written to ``path``.

    Every field that a report shows is checked; those that it does not are left out.

    Raises:
        UsageError: it cannot be read, is of a newer version, or is something else.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        why = error.strerror or str(error)
        raise UsageError(f"{option}: {path} cannot be read: {why}") from error
    hint = "write it anew with `pplguard explain MODEL --json FILE`"
    try:
        # Python's reader, because a path that is no UTF-8 leaves halves of characters.
        found = json.loads(content, parse_constant=_number, parse_float=_number)
        schema = msgspec.convert(found, _Versioned).schema
        if schema > SCHEMA:
            raise UsageError(
                f"{option}: {path} has schema {schema}, and this version reads up to "
                f"{SCHEMA}: update pytest-pplguard, or {hint}"
            )
        checked = msgspec.convert(found, _Document)
    except (msgspec.ValidationError, ValueError, RecursionError) as error:
        raise UsageError(
            f"{option}: {path} is not a ladder of `pplguard explain --json`: {error}; "
            f"{hint}"
        ) from error
    document: dict[str, Any] = msgspec.to_builtins(checked)
    return LadderDetail(checked.model, document)


def ladder_document(model: str, ladder: Ladder) -> dict[str, Any]:
    """``{"schema": 1, "steps": [...], ...}``; the first step is the first method."""
    first, last = ladder.rungs[0].perplexity, ladder.rungs[-1].perplexity
    tokens = ladder.rungs[-1].scored
    document = {
        "schema": SCHEMA,
        "model": model,
        "text": ladder.corpus,
        "text_digest": ladder.corpus_digest,
        "pages": ladder.pages,
        "words": ladder.words,
        "limit": ladder.limit,
        "window": Key.parse(ladder.goal).window,
        "from": {"key": ladder.start, "metric": ladder.start_metric, "value": first},
        "to": {"key": ladder.goal, "metric": ladder.goal_metric, "value": last},
        "gap": ladder.gap,
        "exponent": math.log(last) / math.log(first) if first > 1 else None,
        "tokens_per_word": tokens / ladder.words if ladder.words else None,
        "steps": [
            {
                "change": change_words(rung, ladder),
                "perplexity": rung.perplexity,
                "log_change": rung.log_change,
                "share": rung.share,
                "property": rung.changed,
                "before": rung.before,
                "after": rung.after,
                "windows": rung.windows,
                "new_windows": rung.new_windows,
                "scored": rung.scored,
                "measured": rung.measured,
            }
            for rung in ladder.rungs
        ],
        "conclusion": conclusion_lines(ladder),
        "environment": ladder.environment,
        "seconds": ladder.seconds,
        "notices": ladder.notices,
    }
    checked: dict[str, Any] = plain(document)
    return checked
