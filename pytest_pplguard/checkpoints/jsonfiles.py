"""Reads a checkpoint's JSON files."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import CheckpointError

_MAX_BYTES = 100_000_000
"""An index of a million tensors has as much."""


def read_json(path: Path) -> dict[str, Any]:
    """A JSON file that holds an object.

    Raises:
        CheckpointError: it does not.
    """
    if path.exists() and not path.is_file():
        raise CheckpointError(f"{path} is no file")
    try:
        with path.open("rb") as stream:
            data = stream.read(_MAX_BYTES + 1)
    except OSError as error:
        raise CheckpointError(
            f"{path} cannot be read: {error.strerror or error}"
        ) from error
    if len(data) > _MAX_BYTES:
        raise CheckpointError(
            f"{path} is larger than {_MAX_BYTES // 1_000_000} MB: it is no such file"
        )
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} is no JSON object")
    return value


def section(config: Mapping[str, Any], name: str) -> dict[str, Any]:
    """A nested object of a config; empty where there is none."""
    value = config.get(name)
    return value if isinstance(value, dict) else {}
