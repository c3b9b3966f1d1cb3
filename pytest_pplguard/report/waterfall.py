"""Draws a ladder as a waterfall: each step from the perplexity before to that after."""

from __future__ import annotations

import math
from pathlib import Path
from textwrap import fill

from ..errors import UsageError
from ..values import Ladder
from .ladder import change_words, first_pages
from .text import number

_ENDS, _UP, _DOWN = "#4d4d4d", "#d55e00", "#0072b2"
"""Grey, and two colours of Okabe and Ito that no colour blindness confuses."""
_LABEL_WIDTH = 34
"""Characters of a line beside a bar."""


def write_waterfall(file: Path, ladder: Ladder, title: str) -> None:
    """Draw the perplexity after each step on a logarithmic axis, downwards.

    Bars are as long as the steps' log changes, and so as their shares.

    Raises:
        UsageError: the file cannot be written.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter

    values = [rung.perplexity for rung in ladder.rungs]
    # Text stays text in an SVG, and equal ladders give equal files.
    settings = {"svg.fonttype": "none", "svg.hashsalt": "pplguard", "font.size": 9}
    with mpl.rc_context(settings):
        figure = Figure((8, 1.4 + 0.5 * (len(values) + 1)), layout="constrained")
        axes = figure.subplots()
        low, high = min(values), max(values)
        room = (high / low) ** 0.25 if high > low else 1.1
        left, right = low / room, high * room**1.5
        labels = [f"{ladder.start}\n{ladder.start_metric}"]
        axes.barh(0, values[0] - left, left=left, color=_ENDS)
        _write(axes, 0, values[0], number(values[0]))
        for row, rung in enumerate(ladder.rungs[1:], start=1):
            before, after = values[row - 1], values[row]
            colour = _UP if after >= before else _DOWN
            axes.barh(row, after - before, left=before, color=colour)
            axes.plot([before] * 2, [row - 1.4, row + 0.4], color=_ENDS, linewidth=0.7)
            share = "" if rung.share is None else f" ({rung.share * 100:+.1f} %)"
            _write(axes, row, max(before, after), f"{number(after)}{share}")
            labels.append(fill(change_words(rung, ladder), _LABEL_WIDTH))
        end = len(values)
        axes.barh(end, values[-1] - left, left=left, color=_ENDS)
        axes.plot([values[-1]] * 2, [end - 1.4, end + 0.4], color=_ENDS, linewidth=0.7)
        _write(axes, end, values[-1], number(values[-1]))
        labels.append(f"{ladder.goal}\n{ladder.goal_metric}")
        axes.set_xscale("log")
        axes.set_xlim(left, right)
        ticks = _ticks(left, right)
        axes.set_xticks(ticks)
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.minorticks_off()
        axes.set_yticks(range(end + 1), labels)
        axes.invert_yaxis()
        axes.set_xlabel("perplexity (logarithmic)")
        pages = "" if ladder.limit is None else f", {first_pages(ladder.limit)}"
        axes.set_title(f"{title}{pages}")
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(axis="y", length=0)
        dated = {".svg": {"Date": None}, ".pdf": {"CreationDate": None}}
        try:
            figure.savefig(file, dpi=120, metadata=dated.get(file.suffix.lower()))
        except OSError as error:
            raise UsageError(f"--plot: {file} cannot be written: {error}") from error


def _write(axes: object, row: int, value: float, text: str) -> None:
    from matplotlib.axes import Axes

    assert isinstance(axes, Axes)
    axes.annotate(text, (value, row), xytext=(4, 0), textcoords="offset points",
                  va="center", fontsize=8)  # fmt: skip


def _ticks(low: float, high: float) -> list[float]:
    """Four or five numbers of two digits, evenly apart on a logarithmic axis."""
    step = (math.log(high) - math.log(low)) / 5
    marks = (math.exp(math.log(low) + step * index) for index in range(1, 5))
    return sorted({float(f"{mark:.2g}") for mark in marks})
