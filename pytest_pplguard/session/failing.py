"""Fails a test with nothing but a text."""

from __future__ import annotations

from typing import TYPE_CHECKING, NoReturn

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterable

    from ..values import Verdict


_BRIEF = "pplguard_brief"

IS_GATES = "pplguard_gates"
"""The attribute of a report whose text is that of gates; it travels with the report."""


def fail(text: str) -> NoReturn:
    """As ``pytest.fail(text, pytrace=False)``, and without the error being handled.

    Called in an ``except`` block, that would be shown above the text, frames and all.
    """
    raise pytest.fail.Exception(text, pytrace=False) from None


def fail_gates(verdicts: Iterable[Verdict]) -> NoReturn:
    """Fail with the texts of all verdicts that did not pass, a blank line between."""
    from ..report import brief, failure_text

    failed = [verdict for verdict in verdicts if not verdict.passed]
    error = pytest.fail.Exception("\n\n".join(map(failure_text, failed)), pytrace=False)
    error.__dict__[_BRIEF] = brief(failed)
    raise error from None


def shorten(report: pytest.TestReport, call: pytest.CallInfo[None]) -> None:
    """Have lists of failures show one line for gates that did not pass.

    Pytest's short summary and the ``message`` of JUnit XML would repeat whole texts.
    The report is marked, so that a terminal can lay its text out.
    """
    error = call.excinfo.value if call.excinfo is not None else None
    crash = getattr(report.longrepr, "reprcrash", None)
    if crash is not None and _BRIEF in vars(error):
        crash.message = vars(error)[_BRIEF]
        report.__dict__[IS_GATES] = True
