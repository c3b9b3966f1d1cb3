"""The page: one self-contained file for people who did not see the run."""

from __future__ import annotations

from ...values import Details, Results


def html_report(results: Results, details: Details) -> str:
    """The whole page."""
    raise NotImplementedError
