"""Tables and pictures of docs/performance.md, from the stored results alone."""

from __future__ import annotations

import json
import math
import re
import statistics
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from .cluster import cluster_figures, ideal
from .figures import MB, Figure
from .gates import gate_figures
from .processes import HERE, ROOT
from .scoring import (
    exponents,
    growth_figures,
    label,
    less_memory,
    limit_figures,
    ratio,
    scoring_figures,
)

Raw = dict[str, Any]
Stored = dict[str, Raw]
"""By the name of a file: ``scoring``, ``scoring-cuda``, ..."""

RESULTS = HERE / "results"
PAGE = ROOT / "docs" / "performance.md"
IMAGES = ROOT / "docs" / "images"
_BLOCK = re.compile(r"(<!-- measured: ([\w-]+) -->\n).*?(<!-- end -->)", re.DOTALL)
_NOTHING = "Not measured yet: `python -m benchmarks --write-docs` does it.\n"
_OURS, _FORMULA, _HFLM, _INK = "#2f8fd0", "#d55e00", "#b0892d", "#808080"
"""Told apart by all, on light and dark; text and lines in grey, no background."""

FIGURES: dict[str, Callable[[Raw], list[Figure]]] = {
    "scoring": scoring_figures,
    "limit": limit_figures,
    "gate": gate_figures,
    "growth": growth_figures,
    "cluster": cluster_figures,
}


def figures_of(part: str, raw: Raw) -> list[Figure]:
    """Of what a part has measured; parts without a picture store their figures."""
    if part in FIGURES:
        return FIGURES[part](raw)
    return [Figure(**one) for one in raw["figures"]]


def read_results(folder: Path = RESULTS) -> Stored:
    """All that is stored."""
    return {
        file.stem: json.loads(file.read_text(encoding="utf-8"))
        for file in sorted(folder.glob("*.json"))
    }


def write_page(stored: Stored, page: Path = PAGE, images: Path = IMAGES) -> None:
    """Put tables between their marks, and draw what was measured."""
    text = page.read_text(encoding="utf-8")
    page.write_text(with_tables(text, stored), encoding="utf-8")
    for name, draw in _PICTURES.items():
        if name in stored:
            images.mkdir(parents=True, exist_ok=True)
            _draw(draw, stored[name]["raw"], images / f"performance-{name}.svg")


def with_tables(text: str, stored: Stored) -> str:
    """The page's text with all that stands between marks made anew."""

    def block(found: re.Match[str]) -> str:
        return f"{found[1]}{table(found[2], stored)}{found[3]}"

    return _BLOCK.sub(block, text)


def table(name: str, stored: Stored) -> str:
    """What stands between the marks of a name."""
    if name == "limits":
        return _limits(stored)
    if name == "machines":
        return _machines(stored)
    if name == "cluster-simulated":
        return _simulated(stored)
    if name not in stored:
        return _NOTHING
    tables = {"scoring": _scoring, "limit": _rates, "gate": _plain, "growth": _growth}
    part = name.partition("-")[0]
    made = tables.get(part, _plain)(part, stored[name]["raw"])
    return made if part == "cluster" else f"{made}{_picture(name)}"


def _picture(name: str) -> str:
    if name not in _PICTURES:
        return ""
    return f"\n![{_TITLES[name]}](images/performance-{name}.svg)\n"


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table: the first column to the left, the others to the right."""
    ruler = ["---", *(["---:"] * (len(head) - 1))]
    return "".join(f"| {' | '.join(row)} |\n" for row in (head, ruler, *rows))


def _limits(stored: Stored) -> str:
    rows = [
        (one.label.strip(), _value(one), _limit(one), one.verdict)
        for name, result in stored.items()
        for one in figures_of(name.partition("-")[0], result["raw"])
        if one.limit is not None
    ]
    if not rows:
        return _NOTHING
    return markdown(("", "measured", "limit", ""), rows)


def _value(one: Figure) -> str:
    return "-" if one.value is None else f"{_digits(one.value)} {one.unit}".strip()


def _limit(one: Figure) -> str:
    side = "at least" if one.least else "at most"
    return f"{side} {one.limit:g} {one.unit}".strip()


def _digits(value: float) -> str:
    """Three digits that mean something."""
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    places = max(0, 2 - math.floor(math.log10(abs(value))))
    return f"{value:.{places}f}"


def _machines(stored: Stored) -> str:
    """What each part was measured on; equal ones together."""
    found: dict[str, list[str]] = {}
    for name, result in stored.items():
        words = ", ".join(f"{key} {value}" for key, value in result["machine"].items())
        found.setdefault(words, []).append(name)
    if not found:
        return _NOTHING
    return "".join(f"- {', '.join(names)}: {words}\n" for words, names in found.items())


def _scoring(_: str, raw: Raw) -> str:
    rows = []
    for row in raw["rows"]:
        seconds = {n: statistics.median(s) for n, s in row["seconds"].items()}
        memory = row["memory"]
        rows.append(
            (
                f"{label(row['model'])}, {row['window']}",
                f"{_digits(1e3 * seconds['ours'])} ms" if "ours" in seconds else "-",
                _times(ratio(row, "ours", "formula")),
                _times(ratio(row, "pages", "hflm")),
                f"{_digits(memory['ours'] / MB)} MB" if memory.get("ours") else "-",
                _times(less_memory(row, "formula")),
                _times(less_memory(row, "hflm")),
            )
        )
    rows += [
        (label(model), reason, *["-"] * 5) for model, reason in raw["absent"].items()
    ]
    return markdown(
        (
            "model, window",
            "time a window",
            "/ formula",
            "/ HFLM",
            "peak memory",
            "formula's peak / ours",
            "HFLM's peak / ours",
        ),
        rows,
    )


def _times(value: float | None) -> str:
    return "-" if value is None else f"{_digits(value)} x"


def _rates(_: str, raw: Raw) -> str:
    rows = [
        (
            f"{label(row['model'])}, {row['window']}",
            f"{row['rate'] / 1e9:.0f}",
            f"{row['product_rate'] / 1e9:.0f}",
            _digits(row["rate"] / row["product_rate"]),
        )
        for row in raw["rows"]
    ]
    head = ("model, window", "scoring, GFLOP/s", "matrix products, GFLOP/s", "share")
    return markdown(head, rows)


def _plain(part: str, raw: Raw) -> str:
    rows = [(one.label.strip(), _value(one), one.note) for one in figures_of(part, raw)]
    return markdown(("", "measured", ""), rows)


_AXES = {
    "windows": "number of windows",
    "window": "window length",
    "vocabulary": "vocabulary",
}


def _growth(_: str, raw: Raw) -> str:
    found = exponents(raw)

    def cell(axis: str, quantity: str, variant: str) -> str:
        value = found.get((axis, quantity, variant))
        return "-" if value is None else f"{value:.2f}"

    rows = [
        (
            words,
            *(
                cell(axis, quantity, variant)
                for quantity in ("seconds", "bytes")
                for variant in ("ours", "formula")
            ),
        )
        for axis, words in _AXES.items()
    ]
    head = ("over", "time", "formula's", "peak memory", "formula's")
    return markdown(head, rows)


def _simulated(stored: Stored) -> str:
    """Speed-up and waste of one checkpoint on replicas that do not exist."""
    if "cluster" not in stored:
        return _NOTHING
    raw = stored["cluster"]["raw"]
    by_count: dict[int, list[str]] = {}
    cases: dict[str, None] = {}
    for row in raw["simulated"]:
        cases[row["case"]] = None
        gain = ideal(raw, 1) / row["seconds"]
        by_count.setdefault(row["replicas"], []).extend(
            (f"{gain:.1f} x", f"{row['waste']:.0%}")
        )
    head = ["replicas"]
    for case in cases:
        head += [case, "read in vain"]
    rows = [(str(replicas), *cells) for replicas, cells in by_count.items()]
    return f"{markdown(head, rows)}{_picture('cluster')}"


# ---------------------------------------------------------------------------- pictures


def _draw(draw: Callable[[Any, Raw], None], raw: Raw, file: Path) -> None:
    import matplotlib as mpl
    from matplotlib.figure import Figure as Sheet

    # Text stays text in an SVG, and equal results give equal files.
    settings = {
        "svg.fonttype": "none",
        "svg.hashsalt": "pplguard",
        "font.size": 9,
        "axes.edgecolor": _INK,
        "axes.labelcolor": _INK,
        "axes.titlecolor": _INK,
        "axes.titlesize": 9,
        "text.color": _INK,
        "xtick.color": _INK,
        "ytick.color": _INK,
        "legend.frameon": False,
        "axes.spines.top": False,
        "axes.spines.right": False,
    }
    with mpl.rc_context(settings):
        sheet = Sheet(layout="constrained")
        draw(sheet, raw)
        sheet.savefig(file, format="svg", transparent=True, metadata={"Date": None})
    lines = file.read_text(encoding="utf-8").splitlines()
    file.write_text("\n".join(map(str.rstrip, lines)) + "\n", encoding="utf-8")


def _draw_scoring(sheet: Any, raw: Raw) -> None:
    rows = raw["rows"]
    sheet.set_size_inches(8, 1.4 + 0.55 * len(rows))
    time, memory = sheet.subplots(1, 2, sharey=True)
    labels = [f"{label(row['model'])}, {row['window']}" for row in rows]
    for place, (name, other, colour) in enumerate(
        (("original formula", "formula", _FORMULA), ("HFLM", "hflm", _HFLM))
    ):
        ours = "ours" if other == "formula" else "pages"
        heights = [index + 0.35 * place for index in range(len(rows))]
        took = [1 / (ratio(row, ours, other) or math.nan) for row in rows]
        time.barh(heights, took, 0.3, color=colour, label=name)
        more = [less_memory(row, other) or math.nan for row in rows]
        memory.barh(heights, more, 0.3, color=colour)
    time.set_yticks([index + 0.17 for index in range(len(rows))], labels)
    time.invert_yaxis()
    for axes, title in ((time, "time, ours = 1"), (memory, "peak memory, ours = 1")):
        axes.axvline(1, color=_OURS, linewidth=2)
        axes.set_title(title)
    memory.set_xscale("log")
    ticks = [1, 2, 5, 10, 20, 50, 100]
    memory.set_xticks(ticks, list(map(str, ticks)))
    memory.minorticks_off()
    sheet.legend(loc="outside lower center", ncols=2)


def _draw_growth(sheet: Any, raw: Raw) -> None:
    sheet.set_size_inches(8, 5)
    grid = sheet.subplots(2, len(raw), sharey="row")
    units = {"seconds": ("time, s", 1.0), "bytes": ("peak memory, MB", MB)}
    found = exponents(raw)
    for column, (axis, rows) in enumerate(raw.items()):
        for line, (quantity, (words, scale)) in enumerate(units.items()):
            axes = grid[line][column]
            for variant, colour in (("ours", _OURS), ("formula", _FORMULA)):
                points = list(_points(rows, quantity, variant, scale))
                if not points:
                    continue
                power = found[axis, quantity, variant]
                axes.plot(
                    *zip(*points, strict=True),
                    "o-",
                    color=colour,
                    markersize=4,
                    label=f"{variant}: exponent {power:.2f}",
                )
            axes.set_xscale("log")
            axes.set_yscale("log")
            values = [row["value"] for row in rows]
            axes.set_xticks(values, [f"{value:,}" for value in values], fontsize=7)
            axes.minorticks_off()
            axes.legend(fontsize=7)
            if column == 0:
                axes.set_ylabel(words)
            if line:
                axes.set_xlabel(_AXES[axis])


def _points(
    rows: Sequence[Raw], quantity: str, variant: str, scale: float
) -> Iterator[tuple[float, float]]:
    for row in rows:
        if variant in row[quantity]:
            yield row["value"], row[quantity][variant] / scale


def _draw_gate(sheet: Any, raw: Raw) -> None:
    sheet.set_size_inches(8, 2.6)
    axes = sheet.subplots()
    seconds = {
        name: statistics.median(took)
        for name, took in raw["originals"]["seconds"].items()
    }
    for row, (ours, names) in enumerate(
        (("demo/dense", ("dense",)), ("demo", ("dense", "wanda-50")))
    ):
        axes.barh(3 * row, seconds[f"pytest {ours}"], color=_OURS)
        left = 0.0
        for name in names:
            for method, colour in (("wanda", _FORMULA), ("lm_eval", _HFLM)):
                took = seconds[f"original {method} {name}"]
                axes.barh(3 * row + 1, took, left=left, color=colour)
                axes.text(
                    left + took / 2,
                    3 * row + 1,
                    method,
                    ha="center",
                    va="center",
                    color="white",
                    fontsize=7,
                )
                left += took
    axes.set_yticks(
        [0, 1, 3, 4],
        [
            "one checkpoint",
            "both originals",
            "two checkpoints",
            "both originals, twice",
        ],
    )
    axes.invert_yaxis()
    axes.set_xlabel("seconds, from start to exit")


def _draw_cluster(sheet: Any, raw: Raw) -> None:
    sheet.set_size_inches(8, 3.4)
    gain, waste = sheet.subplots(1, 2)
    cases: dict[str, list[Raw]] = {}
    for row in raw["simulated"]:
        cases.setdefault(row["case"], []).append(row)
    colours = (_OURS, _FORMULA, _HFLM)
    for (case, rows), colour in zip(cases.items(), colours, strict=True):
        counts = [row["replicas"] for row in rows]
        gains = [ideal(raw, 1) / row["seconds"] for row in rows]
        gain.plot(counts, gains, "o-", color=colour, markersize=4, label=case)
        shares = [100 * row["waste"] for row in rows]
        waste.plot(counts, shares, "o-", color=colour, markersize=4)
    gain.plot(counts, counts, "--", color=_INK, linewidth=1, label="one for each")
    gain.set_yscale("log")
    for axes, title in (
        (gain, "speed-up of one checkpoint"),
        (waste, "read in vain, %"),
    ):
        axes.set_xscale("log")
        axes.set_xticks(counts, list(map(str, counts)), fontsize=7)
        axes.minorticks_off()
        axes.set_title(title)
        axes.set_xlabel("replicas")
    ticks = [1, 4, 16, 64, 256]
    gain.set_yticks(ticks, list(map(str, ticks)))
    gain.minorticks_off()
    sheet.legend(loc="outside lower center", ncols=2)


_PICTURES: dict[str, Callable[[Any, Raw], None]] = {
    "scoring": _draw_scoring,
    "scoring-cuda": _draw_scoring,
    "growth": _draw_growth,
    "gate": _draw_gate,
    "cluster": _draw_cluster,
}
_TITLES = {
    "scoring": "Time and peak memory of the originals on a CPU, ours = 1",
    "scoring-cuda": "Time and peak memory of the originals on a GPU, ours = 1",
    "growth": "Time and peak memory over windows, window length and vocabulary",
    "cluster": "Speed-up and waste of up to 256 simulated replicas",
    "gate": "Seconds of a gate and of the originals' commands",
}
