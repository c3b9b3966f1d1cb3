"""``pplguard explain``: why two methods give two numbers, one property at a time."""

from __future__ import annotations

import os
import sys
from contextlib import closing
from pathlib import Path

from ..baselines import baseline_paths, read_baseline
from ..errors import UsageError
from ..options import DEMO, DEMO_CHECKPOINTS, Options
from ..report import check_plot, ladder_document, ladder_lines, write_waterfall
from .measure import Checkpoint, Wanted
from .output import show_table, terminal_width, text_width, write_json


def explain_model(
    spec: str,
    wanted: Wanted,
    options: Options,
    *,
    pages: int | None,
    json_path: str | None,
    plot: str | None,
    folder: Path,
) -> None:
    """Measure the ladder between the two methods of ``wanted``, and print it.

    Raises:
        UsageError: a method that is no cut, or twice the same; a file that cannot be
            written; a baseline, which is no model.
        PplguardError: the model or a rung cannot be measured.
    """
    picture = None if plot is None else check_plot(plot, option="--plot")
    _refuse_baseline(spec, folder)
    with closing(Checkpoint(spec, options)) as checkpoint:
        start, goal = checkpoint.keys(wanted)
        ladder = checkpoint.ladder(start, goal, pages=pages)
    write_json(ladder_document(spec, ladder), json_path)
    if picture is not None:
        write_waterfall(picture, ladder, spec)
    if json_path != "-":
        show_table(
            ladder_lines(
                spec, ladder, width=text_width(), columns=terminal_width(sys.stdout)
            )
        )
    checkpoint.discard_journals()


def _refuse_baseline(spec: str, folder: Path) -> None:
    """A name that is recorded, and no checkpoint that is there."""
    if spec in DEMO_CHECKPOINTS or os.path.exists(Path(os.path.expanduser(spec))):
        return
    if spec == DEMO:
        raise UsageError(
            f"{DEMO} is two models, and one is explained at a time: give "
            f"{' or '.join(DEMO_CHECKPOINTS)}"
        )
    stem, _, entry = spec.partition("/")
    for path in baseline_paths(folder):
        if path.stem == stem and (
            not entry or entry in read_baseline(path).checkpoints
        ):
            raise UsageError(
                f"{spec} is a recorded baseline ({path}): it holds numbers and no "
                "model, and every step of an explanation is measured. Give the "
                "checkpoint itself: pplguard explain PATH"
            )
