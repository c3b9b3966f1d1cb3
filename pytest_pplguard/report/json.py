"""JSON documents of verdicts and measurements. Strict: no NaN, no infinity."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from ..errors import UsageError
from ..values import SCHEMA, Measurement, Verdict


def verdicts_document(verdicts: Sequence[Verdict]) -> dict[str, Any]:
    """``{"schema": 1, "verdicts": [...]}`` with every field of every verdict."""
    return {"schema": SCHEMA, "verdicts": [plain(verdict) for verdict in verdicts]}


def measurements_document(measurements: Sequence[Measurement]) -> dict[str, Any]:
    """``{"schema": 1, "measurements": [...]}``, evidence included."""
    return {
        "schema": SCHEMA,
        "measurements": [plain(measurement) for measurement in measurements],
    }


def plain(value: object) -> Any:
    """``value`` as plain JSON data; a number that JSON cannot hold becomes None."""
    return _finite(msgspec.to_builtins(value))


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {name: _finite(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value


def check_report_path(path: str, *, option: str) -> None:
    """Refuse a report that could not be written when the run is over.

    Raises:
        UsageError: a suffix that no report has, or no such folder.
    """
    file = Path(path)
    if file.suffix != ".json":
        raise UsageError(f"{option}: {path} must end in .json")
    if not file.absolute().parent.is_dir():
        raise UsageError(f"{option}: the folder of {path} does not exist")


def write_report(path: str, verdicts: Sequence[Verdict]) -> None:
    """Write the verdicts to ``path``."""
    text = json.dumps(verdicts_document(verdicts), indent=2, allow_nan=False)
    Path(path).write_text(text + "\n", encoding="utf-8")
