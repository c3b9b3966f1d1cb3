"""Draws where the zeros of a checkpoint are: layer by projection."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from ..checkpoints import ZeroTable
from ..errors import UsageError

_SUFFIXES = (".png", ".svg", ".pdf")
_PAGE = ".html"
_COLOURS = "cividis"
"""Reads the same with and without colour vision, and in grey."""
_MOST_NUMBERS = 1200
"""Cells that still have their number written in them."""


def check_plot(path: str, *, option: str, or_page: bool = False) -> Path:
    """The file for a picture, before there is anything to draw.

    Args:
        path: of the file.
        option: what it was given by, for messages.
        or_page: whether it may be an interactive page, .html, as well.

    Raises:
        UsageError: another suffix, a folder that is not there, or no matplotlib (of a
            page: no plotly).
    """
    file = Path(path)
    suffixes = (_PAGE, *_SUFFIXES) if or_page else _SUFFIXES
    if file.suffix.lower() not in suffixes:
        raise UsageError(
            f"{option} {path}: the suffix says what to write: {', '.join(suffixes)}"
        )
    if not file.parent.is_dir():
        raise UsageError(f"{option} {path}: there is no folder {file.parent}")
    package = "plotly" if file.suffix.lower() == _PAGE else "matplotlib"
    if importlib.util.find_spec(package) is None:
        raise UsageError(
            f"{option} {path} needs the package {package}: "
            "pip install 'pytest-pplguard[plots]'"
        )
    return file


def write_heatmap(file: Path, table: ZeroTable, title: str) -> None:
    """Draw the share of zeros, 0 to 1, of each projection (across) and layer (down).

    Raises:
        UsageError: the file cannot be written.
    """
    import matplotlib as mpl
    import numpy
    from matplotlib.figure import Figure

    layers, projections = list(table.cells), table.projections
    shares = numpy.full((len(layers), len(projections)), numpy.nan)
    for row, cells in enumerate(table.cells.values()):
        for name, (zeros, count) in cells.items():
            if count:
                shares[row, projections.index(name)] = zeros / count
    # Text stays text in an SVG, and equal tables give equal files.
    settings = {"svg.fonttype": "none", "svg.hashsalt": "pplguard", "font.size": 8}
    with mpl.rc_context(settings):
        size = (2.2 + 0.75 * len(projections), 1.6 + 0.17 * max(6, len(layers)))
        figure = Figure(size, layout="constrained")
        axes = figure.subplots()
        mesh = axes.pcolormesh(shares, cmap=_COLOURS, vmin=0, vmax=1, edgecolor="white",
                               linewidth=0.3)  # fmt: skip
        axes.invert_yaxis()
        axes.set_xticks(
            numpy.arange(len(projections)) + 0.5, projections, rotation=30, ha="right"
        )
        axes.set_yticks(numpy.arange(len(layers)) + 0.5, layers)
        axes.set_ylabel("layer")
        axes.set_title(title)
        axes.tick_params(length=0)
        figure.colorbar(mesh, label="share of zeros", aspect=40)
        if shares.size <= _MOST_NUMBERS:
            for (row, column), share in numpy.ndenumerate(shares):
                if not numpy.isnan(share):
                    colour = "black" if share > 0.5 else "white"
                    axes.text(column + 0.5, row + 0.5, f"{share:.2f}", color=colour,
                              ha="center", va="center", fontsize=6)  # fmt: skip
        dated = {".svg": {"Date": None}, ".pdf": {"CreationDate": None}}
        try:
            figure.savefig(file, dpi=120, metadata=dated.get(file.suffix.lower()))
        except OSError as error:
            raise UsageError(f"--heatmap: {file} cannot be written: {error}") from error
