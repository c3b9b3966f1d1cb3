"""Where a command's lines go: results to stdout, remarks and errors to stderr.

Every line for people passes through here: nothing in it is unseen, what the terminal
cannot write is spelled in ASCII, and colours are left out where they are not wanted.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, TextIO

from ..errors import UsageError
from ..report import Style, unstyled, wrapped
from ..safetext import ESCAPING, one_line, printable
from . import own_options

LOG_WIDTH = 88
"""Columns of prose where nobody can say how many there are."""


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


def show(*lines: str, style: str = "") -> None:
    """Results go to stdout; ``style``, such as ``bold``, is for all of the lines.

    A line is one line: what looks like another is a newline in somebody's name.
    """
    paint = style_of(sys.stdout) if style else unstyled
    for line in lines:
        print(paint(one_line(line), style))


def show_table(lines: Sequence[str]) -> None:
    """Results whose first line is a heading; on a terminal long ones are broken."""
    show(*lines[:1], style="bold")
    width = terminal_width(sys.stdout)
    for line in map(one_line, lines[1:]):
        text = line.lstrip()
        indent = line[: len(line) - len(text)]
        show(*wrapped(text, width, first=indent, rest=f"{indent}  "))


def show_prose(text: str, *, first: str = "", rest: str = "  ") -> None:
    """A result in words: a line in a log, on a terminal broken at its width."""
    show(*wrapped(one_line(text), terminal_width(sys.stdout), first=first, rest=rest))


def show_painted(lines: Iterable[str]) -> None:
    """Results that hold colours of ours, and nothing unseen of others."""
    for line in lines:
        print(line)


def say(*lines: str) -> None:
    """Remarks go to stderr, so that ``--json -`` stays JSON."""
    for line in lines:
        said = f"pplguard: {printable(own_options(line))}"
        complain(*wrapped(said, terminal_width(sys.stderr), rest="  "))


def complain(*lines: str) -> None:
    """Lines as they are, to stderr."""
    for line in lines:
        print(printable(line), file=sys.stderr)


def style_of(stream: TextIO) -> Style:
    """Colours for a terminal, unless NO_COLOR or TERM=dumb; FORCE_COLOR for a log."""
    forced = bool(os.environ.get("FORCE_COLOR"))
    if os.environ.get("NO_COLOR") or not (forced or _is_terminal(stream)):
        return unstyled
    from rich.style import Style as Rich

    return lambda text, style: Rich.parse(style).render(text)


def _is_terminal(stream: TextIO) -> bool:
    return stream.isatty() and os.environ.get("TERM") != "dumb"


def text_width() -> int:
    """Columns for prose on stdout: a terminal's, but no more than can be read."""
    return min(LOG_WIDTH, terminal_width(sys.stdout) or LOG_WIDTH)


def terminal_width(stream: TextIO) -> int | None:
    """Columns of a terminal; None for anything else."""
    if not stream.isatty():
        return None
    return shutil.get_terminal_size((LOG_WIDTH, 24)).columns


def write_anything() -> None:
    """Have stdout and stderr spell in ASCII what their encoding lacks."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=ESCAPING)
