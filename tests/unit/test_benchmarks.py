"""The benchmarks' table, verdicts and arithmetic; nothing is timed."""

from __future__ import annotations

from dataclasses import asdict
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from benchmarks.figures import Account, Figure, render
from benchmarks.gate_process import Clocks
from benchmarks.page import PAGE as DOCS_PAGE
from benchmarks.page import read_results, with_tables, write_page
from benchmarks.scoring import exponent, less_memory, ratio, scoring_figures


@pytest.mark.parametrize(
    ("value", "limit", "verdict"),
    [
        (4.9, 5, "met"),
        (5, 5, "met"),
        (5.001, 5, "not met"),
        (7, None, ""),
        (None, 5, "skipped"),
        (None, None, "skipped"),
    ],
)
def test_verdict(value: float | None, limit: float | None, verdict: str) -> None:
    assert Figure("import", value, "ms", limit).verdict == verdict


@pytest.mark.parametrize(("value", "verdict"), [(0.5, "met"), (0.49, "not met")])
def test_verdict_on_what_must_not_be_less(value: float, verdict: str) -> None:
    assert Figure("rate", value, "x", 0.5, least=True).verdict == verdict


def test_own_time_is_what_is_left() -> None:
    assert Account(total=10, imports=5, loading=1.5, forward=2.25).own == 1.25


def test_table() -> None:
    figures = [
        Figure("plugin import", 0.8, "ms", 5, "median of 11 processes"),
        Figure("demo gate, own time", 3.256, "s", 3),
        Figure("  total", 12, "s"),
        Figure("peak memory", None, "MB", 120, "no file"),
    ]
    assert render(figures) == (
        "                     measured   limit\n"
        "plugin import         0.80 ms    5 ms  met      median of 11 processes\n"
        "demo gate, own time    3.26 s     3 s  not met\n"
        "  total               12.00 s       -\n"
        "peak memory                 -  120 MB  skipped  no file"
    )


def test_a_moment_counts_for_the_innermost_work_only() -> None:
    ticks = count()
    clocks = Clocks(lambda: float(next(ticks)))  # a second passes at every reading
    clocks.enter("loading")
    clocks.enter("imports")
    clocks.enter("imports")
    clocks.leave()
    clocks.leave()
    clocks.leave()
    clocks.enter("forward")
    clocks.leave()
    assert clocks.seconds == {"imports": 3.0, "loading": 2.0, "forward": 1.0}


def row(**changes: Any) -> dict[str, Any]:
    """Of the part ``scoring``: a window of SmolLM2 in two pairs."""
    return {
        "model": "smollm2",
        "vocabulary": 49_152,
        "window": 2048,
        "device": "cpu",
        "dtype": "float32",
        "batch": 1,
        "seconds": {
            "ours": [1.0, 3.0],
            "formula": [2.0, 3.0],
            "pages": [9.0, 9.0],
            "hflm": [10.0, 10.0],
        },
        "memory": {"ours": 80_000_000, "formula": 960_000_000, "hflm": 1_600_000_000},
        **changes,
    }


def test_ratios_are_of_pairs() -> None:
    assert ratio(row(), "ours", "formula") == 0.75  # of 0.5 and 1, not of 4 and 5
    assert ratio(row(seconds={}), "ours", "formula") is None


def test_memory_that_ran_out_gives_no_figure() -> None:
    assert less_memory(row(), "formula") == 12
    assert less_memory(row(memory={"ours": 1, "formula": None}), "formula") is None


@pytest.mark.parametrize(
    ("changes", "limits"),
    [
        ({}, [1.02, 0.95, 120, 10, None]),
        ({"window": 512}, [1.02, 0.95, None, None, None]),
        ({"model": "vocabulary", "vocabulary": 128_256}, [0.9, 0.95, None, 25, None]),
        ({"model": "demo", "vocabulary": 2048}, [None, None, None, None, None]),
        ({"device": "cuda"}, [None, None, None, None, None]),
    ],
)
def test_limits_stand_beside_what_is_promised(
    changes: dict[str, Any], limits: list[float | None]
) -> None:
    figures = scoring_figures({"rows": [row(**changes)], "absent": {}})
    assert [one.limit for one in figures] == limits


def test_an_exponent_is_a_slope_of_logarithms() -> None:
    assert exponent([(1, 5), (2, 20), (4, 80)]) == pytest.approx(2)
    assert exponent([(1, 7), (10, 7)]) == pytest.approx(0)


# ---------------------------------------------------------------------------- the page


STORED = {
    "import": {
        "machine": {"cores": "2"},
        "raw": {"figures": [asdict(Figure("plugin import", 0.81, "ms", 5))]},
    },
    "scoring": {
        "machine": {"cores": "2"},
        "raw": {"rows": [row()], "absent": {"vocabulary": "no file"}},
    },
}
PAGE = """\
Words.
<!-- measured: limits -->
old
<!-- end -->
<!-- measured: scoring -->
<!-- end -->
<!-- measured: growth -->
<!-- end -->
<!-- measured: machines -->
<!-- end -->
More words.
"""


def test_tables_are_put_between_marks() -> None:
    assert with_tables(PAGE, STORED) == (
        "Words.\n"
        "<!-- measured: limits -->\n"
        "|  | measured | limit |  |\n"
        "| --- | ---: | ---: | ---: |\n"
        "| plugin import | 0.810 ms | at most 5 ms | met |\n"
        "| SmolLM2-135M, 2048: time, ours / formula | 0.750 x | at most 1.02 x | "
        "met |\n"
        "| SmolLM2-135M, 2048: time, ours / HFLM | 0.900 x | at most 0.95 x | met |\n"
        "| SmolLM2-135M, 2048: peak memory | 80.0 MB | at most 120 MB | met |\n"
        "| SmolLM2-135M, 2048: peak, formula / ours | 12.0 x | at least 10 x | met |\n"
        "<!-- end -->\n"
        "<!-- measured: scoring -->\n"
        "| model, window | time a window | / formula | / HFLM | peak memory | "
        "formula's peak / ours | HFLM's peak / ours |\n"
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: |\n"
        "| SmolLM2-135M, 2048 | 2000 ms | 0.750 x | 0.900 x | 80.0 MB | 12.0 x | "
        "20.0 x |\n"
        "| small body, 128k words | no file | - | - | - | - | - |\n"
        "\n![Time and peak memory of the originals on a CPU, ours = 1]"
        "(images/performance-scoring.svg)\n"
        "<!-- end -->\n"
        "<!-- measured: growth -->\n"
        "Not measured yet: `python -m benchmarks --write-docs` does it.\n"
        "<!-- end -->\n"
        "<!-- measured: machines -->\n"
        "- import, scoring: cores 2\n"
        "<!-- end -->\n"
        "More words.\n"
    )


def test_the_page_says_what_is_stored() -> None:
    """Run `python -m benchmarks --redraw` if this fails."""
    text = DOCS_PAGE.read_text(encoding="utf-8")
    assert with_tables(text, read_results()) == text


def test_the_page_has_a_place_for_every_part() -> None:
    text = DOCS_PAGE.read_text(encoding="utf-8")
    for name in ("limits", "scoring", "scoring-cuda", "limit", "gate", "growth"):
        assert f"<!-- measured: {name} -->" in text


def test_pictures_are_drawn_alike_each_time(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    drawn = []
    for folder in ("one", "other"):
        page.write_text(PAGE)
        write_page(STORED, page, tmp_path / folder)
        drawn.append((tmp_path / folder / "performance-scoring.svg").read_text())
    assert drawn[0] == drawn[1]
    assert "SmolLM2-135M, 2048" in drawn[0]
    assert page.read_text() == with_tables(PAGE, STORED)
