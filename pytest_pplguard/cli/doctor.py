"""``pplguard doctor``: looks a checkpoint over without running it."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from msgspec.structs import replace

from ..checkpoints import Examination, examine
from ..errors import UsageError
from ..report import (
    check_heatmap,
    examination_document,
    examination_lines,
    write_heatmap,
)
from . import own_options
from .measure import say


def doctor_model(
    spec: str,
    *,
    window: int | None,
    json_path: str | None,
    heatmap: str | None,
    everything: bool,
    allow_pickle: bool,
    trust_remote_code: bool,
) -> bool:
    """Examine a checkpoint and print it; whether it is healthy.

    Raises:
        UsageError: a file cannot be written.
        CheckpointError: there is nothing to examine.
    """
    picture = None if heatmap is None else check_heatmap(heatmap)
    examined = _in_own_words(
        examine(
            spec,
            window=window,
            allow_pickle=allow_pickle,
            trust_remote_code=trust_remote_code,
        )
    )
    if picture is not None and examined.zeros is None:
        say(f"{spec} has no weights of decoder layers to draw: no {heatmap}")
    elif picture is not None and examined.zeros is not None:
        write_heatmap(picture, examined.zeros, spec)
    document = json.dumps(examination_document(examined), allow_nan=False)
    if json_path == "-":
        print(document)
        return examined.healthy
    if json_path is not None:
        try:
            Path(json_path).write_text(document + "\n", encoding="utf-8")
        except OSError as error:
            raise UsageError(
                f"--json: {json_path} cannot be written: {error}"
            ) from error
    _print(examined, everything=everything)
    return examined.healthy


def _in_own_words(examined: Examination) -> Examination:
    """Name the options of this command, not pytest's."""
    return replace(
        examined,
        findings=tuple(
            replace(finding, text=own_options(finding.text))
            for finding in examined.findings
        ),
    )


def _print(examined: Examination, *, everything: bool) -> None:
    if not sys.stdout.isatty():
        print("\n".join(examination_lines(examined, everything=everything)))
        return
    from rich.console import Console
    from rich.style import Style
    from rich.text import Text

    console = Console(highlight=False, soft_wrap=True)
    lines = examination_lines(
        examined,
        everything=everything,
        style=lambda text, style: Style.parse(style).render(text),
    )
    # rich leaves colours out where the terminal or NO_COLOR says so.
    for line in lines:
        console.print(Text.from_ansi(line))
