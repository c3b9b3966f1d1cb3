"""Small pictures: where marks stand, histograms, and the colours of shares."""

from __future__ import annotations

import math
import random

import numpy
import pytest

from pytest_pplguard.report.html.pictures import (
    WIDTH,
    Bins,
    bins,
    cividis,
    strip,
)
from pytest_pplguard.values import Outcome, Verdict


def verdict(
    measured: float | None,
    allowed: tuple[float | None, float | None],
    baseline: float | None = None,
) -> Verdict:
    return Verdict(
        checkpoint="m/w50",
        key="wanda/tiny:16",
        metric="token_perplexity",
        outcome=Outcome.WITHIN,
        passed=True,
        baseline=baseline,
        measured=measured,
        change=None
        if baseline is None or measured is None
        else measured / baseline - 1,
        allowed=allowed,
    )


def test_marks_stand_as_far_apart_as_the_numbers() -> None:
    drawn = strip(verdict(10.5, (9.0, 11.0), 10.0))
    assert drawn is not None
    assert drawn.baseline is not None
    # 2 between the bounds, and 14 % of that on each side.
    assert drawn.low == pytest.approx(0.28 / 2.56 * WIDTH, abs=0.01)
    assert drawn.high == pytest.approx(2.28 / 2.56 * WIDTH, abs=0.01)
    assert drawn.baseline == pytest.approx(WIDTH / 2, abs=0.01)
    assert drawn.measured == pytest.approx(1.78 / 2.56 * WIDTH, abs=0.01)
    assert drawn.beyond == ""
    assert drawn.words == (
        "measured 10.5, baseline 10, change +5.00 %, allowed 9 .. 11"
    )


def test_a_value_far_outside_is_an_arrow() -> None:
    far = strip(verdict(90.0, (9.0, 11.0), 10.0))
    assert far is not None
    assert far.beyond == "right"
    # The band keeps a size that is seen: one fifth of what is drawn.
    assert 0.15 < (far.high - far.low) / WIDTH < 0.25
    near = strip(verdict(-60.0, (9.0, 11.0), 10.0))
    assert near is not None
    assert near.beyond == "left"


def test_an_open_end_reaches_the_edge() -> None:
    at_most = strip(verdict(1.05, (None, 1.1)))
    assert at_most is not None
    assert at_most.low == 0
    assert at_most.measured < at_most.high < WIDTH
    assert at_most.baseline is None
    at_least = strip(verdict(0.4, (0.5, None)))
    assert at_least is not None
    assert at_least.measured < at_least.low
    assert at_least.high == WIDTH


@pytest.mark.parametrize("value", [0.5, 0.0, 0.7])
def test_one_value_alone_is_allowed(value: float) -> None:
    drawn = strip(verdict(value, (0.5, 0.5), 0.5))
    assert drawn is not None
    assert drawn.low == drawn.high == drawn.baseline
    assert (drawn.measured > drawn.high) == (value > 0.5)
    assert 0 < drawn.measured < WIDTH


def test_nothing_is_drawn_of_nothing() -> None:
    assert strip(verdict(None, (1.0, 2.0))) is None
    assert strip(verdict(math.nan, (1.0, 2.0))) is None
    assert strip(verdict(1.0, (None, None))) is None
    zero = strip(verdict(0.0, (None, 0.0)))
    assert zero is not None
    assert zero.high == zero.measured


def test_a_histogram_counts_every_value_once() -> None:
    chance = random.Random(3)
    values = [chance.gauss(0.02, 0.01) for _ in range(300)]
    found = bins(values)
    edges = [
        found.start + place * found.width for place in range(len(found.counts) + 1)
    ]
    # No bin has zero inside of it: worse and better stay apart.
    assert min(abs(edge) for edge in edges) < 1e-12
    counted, _ = numpy.histogram(values, edges)
    assert found.counts == tuple(counted)
    assert sum(found.counts) == 300
    first, third = numpy.percentile(values, [25, 75])
    assert found.width == pytest.approx(2 * (third - first) / 300 ** (1 / 3), rel=0.05)


def test_histograms_of_little() -> None:
    assert bins([0.25]) == Bins(0.25, 0.05, (1,))
    assert bins([0.0, 0.0]) == Bins(0.0, 0.2, (2,))
    assert sum(bins([-1.0, 1.0]).counts) == 2
    # One that is far away does not make thousands of bins.
    assert len(bins([*[0.001 * n for n in range(100)], 1000.0]).counts) <= 41


def test_colours_are_those_of_cividis() -> None:
    matplotlib = pytest.importorskip("matplotlib")
    scale = matplotlib.colormaps["cividis"]
    for share in (0, 0.01, 0.25, 0.5, 0.77, 1):
        ours = [int(cividis(share)[at : at + 2], 16) for at in (1, 3, 5)]
        exact = [255 * part for part in scale(float(share))[:3]]
        assert ours == pytest.approx(exact, abs=5)
