"""Results of many runs in one database, so that a trend can be seen."""

from __future__ import annotations

from .database import add_run, check_database, read_runs
from .export import export_runs
from .origin import Origin, run_origin
from .records import HistoryRun, Point, WeightsPoint
from .series import Series, SeriesPoint, all_series
from .url import checked_url, path_of

__all__ = [
    "HistoryRun",
    "Origin",
    "Point",
    "Series",
    "SeriesPoint",
    "WeightsPoint",
    "add_run",
    "all_series",
    "check_database",
    "checked_url",
    "export_runs",
    "path_of",
    "read_runs",
    "run_origin",
]
