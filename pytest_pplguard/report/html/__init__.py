"""The page: one self-contained file for people who did not see the run."""

from .page import html_report

__all__ = ["html_report"]
