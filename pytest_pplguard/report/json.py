"""JSON documents of verdicts and measurements. Strict: no NaN, no infinity."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import msgspec

from ..values import SCHEMA, Measurement, Results

_OF_SOME = ("documents", "stderr", "higher_is_better", "cached", "early")


def results_document(results: Results) -> dict[str, Any]:
    """``{"schema": 1, "verdicts": [...], ...}`` with every field of every verdict."""
    return {"schema": SCHEMA, **plain(results)}


def measurements_document(measurements: Sequence[Measurement]) -> dict[str, Any]:
    """``{"schema": 1, "measurements": [...]}``, evidence included.

    What only some measurements have, those of tasks of lm-eval for one, stands only
    there.
    """
    return {
        "schema": SCHEMA,
        "measurements": [
            {
                name: value
                for name, value in plain(measurement).items()
                if value or name not in _OF_SOME
            }
            for measurement in measurements
        ],
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
