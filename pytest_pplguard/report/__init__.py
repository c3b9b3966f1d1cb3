"""What people and programs read: failure text, terminal summary, JSON documents."""

from .json import (
    check_report_path,
    measurements_document,
    plain,
    verdicts_document,
    write_report,
)
from .progress import watch_lines, watch_live
from .text import change_text, changes_table, failure_text, number, summary_lines

__all__ = [
    "change_text",
    "changes_table",
    "check_report_path",
    "failure_text",
    "measurements_document",
    "number",
    "plain",
    "summary_lines",
    "verdicts_document",
    "watch_lines",
    "watch_live",
    "write_report",
]
