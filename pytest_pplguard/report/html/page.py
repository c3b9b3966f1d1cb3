"""Fills the templates, and says in the page's policy what it may run: its own code."""

from __future__ import annotations

import base64
import datetime
import hashlib
import json
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...values import Details, Results
from ..json import results_document
from . import words
from .ladders import waterfall
from .losses import MOST_MOVED, MOST_ROWS, Losses, losses_of
from .pictures import WIDTH, cividis
from .surroundings import surroundings
from .verdicts import STOPPED, checkpoint_gates, run_headline
from .weights import Weights, kind_words, weights_of

if TYPE_CHECKING:
    from jinja2 import Environment

_TEMPLATES = Path(__file__).parent / "templates"
_DARK_TEXT, _LIGHT_TEXT = "#000", "#fff"


def html_report(
    results: Results, details: Details, *, written: datetime.datetime | None = None
) -> str:
    """The whole page: one text that needs no other file and no network.

    Args:
        results: what came of the run.
        details: what is behind the verdicts; whatever is missing in it is said.
        written: the time that the page shows, now where it is not given.
    """
    from markupsafe import Markup

    losses = [
        losses_of(detail, results.verdicts, f"losses-{index}")
        for index, detail in enumerate(details.losses, start=1)
    ]
    weights = [
        weights_of(detail, f"weights-{index}")
        for index, detail in enumerate(details.weights, start=1)
    ]
    script = (_TEMPLATES / "page.js").read_text(encoding="utf-8")
    style = (_TEMPLATES / "page.css").read_text(encoding="utf-8") + _heat_rules(weights)
    when = written or datetime.datetime.now(datetime.UTC)
    page = (
        _environment()
        .get_template("page.html")
        .render(
            policy=_policy(script, style),
            # Both are files of this package.
            script=Markup(script),
            style=Markup(style),
            results=results,
            document=results_document(results),
            head=run_headline(results),
            stopped="" if results.complete else STOPPED,
            checkpoints=checkpoint_gates(results.verdicts),
            # What failed is what is looked for.
            losses=sorted(losses, key=lambda one: not one.failed),
            weights=sorted(weights, key=lambda one: one.same),
            ladders=[waterfall(ladder) for ladder in details.ladders],
            surroundings=surroundings(details.losses),
            opened=_opened(losses),
            most_moved=MOST_MOVED,
            most_rows=MOST_ROWS,
            picture_width=WIDTH,
            written=when.strftime("%Y-%m-%d %H:%M UTC"),
            version=version("pytest-pplguard"),
        )
    )
    return page + "\n"


def _environment() -> Environment:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES),
        autoescape=True,
        finalize=_shown,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "as_json": _as_json,
        "clip": words.clip,
        "exact": words.exact,
        "kind": kind_words,
        "percent": words.percent,
        "rounded": words.rounded,
        "signed": words.signed,
        "typeset": words.typeset,
        "whole": _whole,
    }
    return environment


def _shown(value: Any) -> Any:
    """Every text that a template prints, also those that come from a checkpoint."""
    if isinstance(value, str) and not hasattr(value, "__html__"):
        return words.shown(value)
    return value


def _whole(text: str) -> str:
    """``text`` with all its words in full: a command that is to be copied."""
    from markupsafe import escape

    return escape(words.visible(text))


def _as_json(value: Any) -> str:
    """``value`` for an element ``<script type="application/json">``.

    Nothing in it ends that element, or opens a comment in it. Strict JSON: a NaN is a
    ``ValueError`` here, and never on the page.
    """
    from markupsafe import Markup

    text = json.dumps(value, allow_nan=False, separators=(",", ":"))
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)


def _policy(script: str, style: str) -> str:
    """A content security policy: nothing is fetched, and only our own code runs."""
    return (
        f"default-src 'none'; script-src '{_digest(script)}'; "
        f"style-src '{_digest(style)}'; img-src data:; base-uri 'none'; "
        "form-action 'none'"
    )


def _digest(text: str) -> str:
    digest = hashlib.sha256(text.encode()).digest()
    return f"sha256-{base64.b64encode(digest).decode()}"


def _opened(losses: Iterable[Losses]) -> frozenset[str]:
    """Which measurements are open from the start: those that failed, or all of few."""
    losses = list(losses)
    failed = {one.anchor for one in losses if one.failed}
    return frozenset(failed or (one.anchor for one in losses[:2]))


def _heat_rules(weights: Iterable[Weights]) -> str:
    """A rule of CSS for each share of zeros that is on the page."""
    levels = {
        cell.level
        for one in weights
        if one.heat is not None
        for _, *sides in one.heat.rows
        for side in sides
        for cell in side
        if cell is not None
    }
    levels |= {0, 25, 50, 75, 100}  # the scale
    rules = []
    for level in sorted(levels):
        colour = cividis(level / 100)
        text = _DARK_TEXT if _luminance(colour) > 0.179 else _LIGHT_TEXT
        rules.append(f".h{level}{{background:{colour};color:{text}}}\n")
    return "".join(rules)


def _luminance(colour: str) -> float:
    """Relative luminance as WCAG 2 has it; above 0.179 black is easier to read."""
    parts = [int(colour[start : start + 2], 16) / 255 for start in (1, 3, 5)]
    red, green, blue = (
        part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4
        for part in parts
    )
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue
