"""Where a command's lines go: JSON to a file or stdout, remarks to stderr."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from ..errors import UsageError, printable
from . import own_options


def write_json(document: dict[str, Any], path: str | None) -> None:
    """Into a file, for ``-`` to stdout, for None nowhere.

    Raises:
        UsageError: the file cannot be written.
    """
    if path is None:
        return
    text = json.dumps(document, allow_nan=False)
    if path == "-":
        print(text)
        return
    try:
        Path(path).write_text(text + "\n", encoding="utf-8")
    except OSError as error:
        raise UsageError(f"--json: {path} cannot be written: {error}") from error


def show(*lines: str) -> None:
    """Results go to stdout, and nothing in them is unseen."""
    for line in lines:
        print(printable(line))


def say(*lines: str) -> None:
    """Remarks go to stderr, so that ``--json -`` stays JSON."""
    for line in lines:
        print(f"pplguard: {own_options(line)}", file=sys.stderr)
