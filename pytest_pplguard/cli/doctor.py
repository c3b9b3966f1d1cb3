"""``pplguard doctor``: looks a checkpoint over without running it."""

from __future__ import annotations

import sys

from msgspec.structs import replace

from ..checkpoints import Examination, examine
from ..report import (
    check_plot,
    examination_document,
    examination_lines,
    write_heatmap,
)
from . import own_options
from .output import say, show_painted, style_of, terminal_width, write_json


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
    picture = None if heatmap is None else check_plot(heatmap, option="--heatmap")
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
    write_json(examination_document(examined), json_path)
    if json_path != "-":
        show_painted(
            examination_lines(
                examined,
                everything=everything,
                style=style_of(sys.stdout),
                width=terminal_width(sys.stdout),
            )
        )
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
