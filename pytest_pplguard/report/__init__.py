"""What people and programs read: texts, tables, files, and what GitHub shows."""

from .comparison import comparison_document, comparison_lines, conclusion
from .csv import figures
from .examination import examination_document, examination_lines
from .files import check_report_path, write_report
from .github import annotation_commands, append_step_summary
from .heatmap import check_plot, write_heatmap
from .history import history_document, history_lines
from .inspection import inspection_document, inspection_lines
from .json import measurements_document, plain, results_document
from .ladder import ladder_document, ladder_lines, read_ladder
from .markdown import markdown_blocks
from .plan import plan_document, plan_lines
from .progress import can_be_redrawn, watch_lines, watch_live
from .terminal import Style, failure_lines, unstyled, wrapped
from .text import (
    brief,
    change_text,
    changes_table,
    counted,
    failure_text,
    number,
    summary_lines,
)
from .trend import write_trend
from .waterfall import write_waterfall
from .where import place_line, where_lines

__all__ = [
    "Style",
    "annotation_commands",
    "append_step_summary",
    "brief",
    "can_be_redrawn",
    "change_text",
    "changes_table",
    "check_plot",
    "check_report_path",
    "comparison_document",
    "comparison_lines",
    "conclusion",
    "counted",
    "examination_document",
    "examination_lines",
    "failure_lines",
    "failure_text",
    "figures",
    "history_document",
    "history_lines",
    "inspection_document",
    "inspection_lines",
    "ladder_document",
    "ladder_lines",
    "markdown_blocks",
    "measurements_document",
    "number",
    "place_line",
    "plain",
    "plan_document",
    "plan_lines",
    "read_ladder",
    "results_document",
    "summary_lines",
    "unstyled",
    "watch_lines",
    "watch_live",
    "where_lines",
    "wrapped",
    "write_heatmap",
    "write_report",
    "write_trend",
    "write_waterfall",
]
