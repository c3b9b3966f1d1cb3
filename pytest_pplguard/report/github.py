"""What GitHub Actions reads: workflow commands in the log, and the job's summary."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from ..safetext import printable
from ..values import Remark

MOST_ANNOTATIONS = 10
"""GitHub shows so many of each level for a step, and drops the rest without a word."""

SUMMARY_BYTES = 1024 * 1024
"""A step's summary that is larger is not shown at all."""

_MORE = "the job summary and the section perplexity of this log have them all"
_CUT = (
    b"**The report is cut here: GitHub shows no more than 1 MiB.** "
    b"The section `perplexity` of the log has every verdict.\n"
)


def annotation_commands(
    level: Literal["error", "warning"], remarks: Sequence[Remark]
) -> list[str]:
    """Workflow commands that put each remark at its place in the repository.

    Where there are more than GitHub shows, the last one says how many.
    """
    shown = list(remarks)
    if len(shown) > MOST_ANNOTATIONS:
        rest = len(shown) - MOST_ANNOTATIONS + 1
        shown[-rest:] = [Remark(f"and {rest} more: {_MORE}")]
    return [_command(level, remark) for remark in shown]


def append_step_summary(path: str, blocks: Sequence[str]) -> None:
    """Add ``blocks`` to a step's summary, as many as GitHub will show.

    Raises:
        OSError: the file cannot be written.
    """
    file = Path(path)
    before = file.read_bytes() if file.exists() else b""
    # Whatever an earlier command of the step has written ends here.
    gap = b"\n\n" if before else b""
    with file.open("ab") as stream:
        stream.write(gap + fit(blocks, SUMMARY_BYTES - len(before) - len(gap)))


def fit(blocks: Sequence[str], room: int) -> bytes:
    """Blocks from the first on, as many as ``room`` bytes hold, and that it was cut."""
    # Names of files need not be text.
    encoded = [block.encode(errors="backslashreplace") for block in blocks]
    whole = b"\n".join(encoded)
    if len(whole) <= room:
        return whole
    kept: list[bytes] = []
    left = room - len(_CUT)
    for block in encoded:
        left -= len(block) + 1
        if left < 0:
            break
        kept.append(block)
    text = b"\n".join([*kept, _CUT])
    return text if len(text) <= room else b""


def _command(level: str, remark: Remark) -> str:
    properties = {"file": remark.file, "line": remark.line, "title": "perplexity"}
    listed = ",".join(
        f"{name}={_escape(str(value), also=':,')}"
        for name, value in properties.items()
        if value
    )
    # The log shows the line to people, too.
    return printable(f"::{level} {listed}::{_escape(remark.text)}")


def _escape(text: str, *, also: str = "") -> str:
    """Characters that would end a command, or a property, as GitHub writes them."""
    return re.sub(f"[%\r\n{also}]", lambda character: f"%{ord(character[0]):02X}", text)
