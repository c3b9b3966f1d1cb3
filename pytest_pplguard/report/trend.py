"""The trend as a picture: perplexity and sparsity of each checkpoint over time."""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from pathlib import Path

from ..errors import UsageError
from ..history import Series
from .history import one_line
from .trend_page import page
from .trend_panels import Panel, panels_of

LINE, FAILED, BASELINE = "#0072B2", "#D55E00", "#7F7F7F"
"""Of Okabe and Ito's palette, which colour-blind people can tell apart; what failed is
also another shape, and the baseline another kind of line."""


def write_trend(file: Path, series: Sequence[Series]) -> None:
    """Draw it, as the suffix says.

    Raises:
        UsageError: the file cannot be written.
    """
    panels = list(panels_of(series))
    try:
        if file.suffix.lower() == ".html":
            text = page(panels, tables=series)
            file.write_text(text, "utf-8", "backslashreplace", newline="\n")
        else:
            _draw(file, panels)
    except OSError as error:
        raise UsageError(f"--plot: {file} cannot be written: {error}") from error


def _draw(file: Path, panels: Sequence[Panel]) -> None:
    import matplotlib as mpl
    from matplotlib.figure import Figure

    settings = {
        "svg.fonttype": "none",
        "svg.hashsalt": "pplguard",
        "font.size": 8,
        "text.parse_math": False,  # names may hold dollars
    }
    with mpl.rc_context(settings):
        figure = Figure((7, 0.4 + 1.9 * len(panels)), layout="constrained")
        rows = figure.subplots(len(panels), squeeze=False)[:, 0]
        for axes, panel in zip(rows, panels, strict=True):
            times = [_date(time) for time in panel.times]
            values = [float("nan") if v is None else v for v in panel.values]
            if panel.baseline:
                known = [float("nan") if v is None else v for v in panel.baseline]
                axes.plot(times, known, "--", color=BASELINE, lw=0.9, label="baseline")
            axes.plot(times, values, "-o", color=LINE, lw=1.2, ms=3, label="measured")
            red = [i for i, passed in enumerate(panel.passed) if not passed]
            if red:
                axes.plot([times[i] for i in red], [values[i] for i in red], "X",
                          color=FAILED, ms=7, label="not passed")  # fmt: skip
            axes.set_title(f"{one_line(panel.checkpoint)}: {panel.title}", loc="left")
            if panel.kind == "share":
                axes.set_ylim(-0.03, 1.03)
            else:
                axes.legend(frameon=False, ncols=3)
                axes.ticklabel_format(axis="y", useOffset=False)
            axes.spines[["top", "right"]].set_visible(False)
            axes.tick_params(axis="x", rotation=20)
            axes.margins(y=0.15)
        dated = {".svg": {"Date": None}, ".pdf": {"CreationDate": None}}
        figure.savefig(file, dpi=120, metadata=dated.get(file.suffix.lower()))


def _date(time: str | None) -> datetime.datetime:
    assert time is not None
    return datetime.datetime.fromisoformat(time).replace(tzinfo=None)
