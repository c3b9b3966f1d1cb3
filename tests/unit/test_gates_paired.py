"""Windows paired with recorded ones: sums by hand, estimates from known randomness."""

from __future__ import annotations

import math
import random
import statistics
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_pplguard.errors import BaselineError
from pytest_pplguard.gates import Paired, paired
from pytest_pplguard.values import WindowScore


def pair(differences: Sequence[float], sizes: Sequence[int] | int = 10) -> Paired:
    """Windows whose summed losses differ by ``differences`` nats."""
    if isinstance(sizes, int):
        sizes = [sizes] * len(differences)
    old = [WindowScore(2.0 * size, size, page=3) for size in sizes]
    new = [
        WindowScore(score.nll_sum + difference, score.scored, page=3)
        for score, difference in zip(old, differences, strict=True)
    ]
    return paired(new, old)


def test_sums_by_hand() -> None:
    """Differences 1, 4, -2 over 10, 20, 20 tokens: 3 nats over 50 tokens."""
    found = pair([1.0, 4.0, -2.0], [10, 20, 20])
    assert (found.windows, found.worse, found.better, found.equal) == (3, 2, 1, 0)
    assert found.mean == pytest.approx(0.06)
    # From the mean: 1 - 0.6, 4 - 1.2, -2 - 1.2; squares 0.16 + 7.84 + 10.24.
    assert found.error == pytest.approx(math.sqrt(3 / 2 * 18.24) / 50)
    assert [
        (moved.index, moved.page, round(moved.change, 12), round(moved.total, 12))
        for moved in found.moved_most
    ] == [(1, 3, 0.2, 4.0), (2, 3, -0.1, -2.0), (0, 3, 0.1, 1.0)]
    assert found.half == 1  # 4 of 7
    assert found.divergence is None


@given(st.lists(st.floats(-5, 5), min_size=2, max_size=40))
def test_equal_windows_have_the_usual_standard_error(differences: list[float]) -> None:
    means = [difference / 10 for difference in differences]
    usual = statistics.stdev(means) / math.sqrt(len(means))
    found = pair(differences)
    assert found.mean == pytest.approx(statistics.fmean(means), abs=1e-12)
    assert found.error == pytest.approx(usual, abs=1e-12)


def test_one_window_has_no_error() -> None:
    found = pair([0.5])
    assert (found.error, found.divergence, found.extent) == (None, None, "whole")


@pytest.mark.parametrize("sizes", [[100], [20, 50, 200]], ids=["equal", "unequal"])
def test_the_error_and_the_divergence_of_known_randomness(sizes: list[int]) -> None:
    """Log-ratios drawn from N(KL, 2 KL), for which KL is the divergence exactly."""
    kl, windows = 0.02, 600
    chance = random.Random(0)
    sizes = sizes * (windows // len(sizes))
    sums = [
        math.fsum(chance.gauss(kl, math.sqrt(2 * kl)) for _ in range(size))
        for size in sizes
    ]
    found = pair(sums, sizes)
    assert found.mean == pytest.approx(kl, rel=0.1)
    assert found.error == pytest.approx(math.sqrt(2 * kl / sum(sizes)), rel=0.1)
    # A variance over W windows is known to sqrt(2 / W), 6 %.
    assert found.divergence == pytest.approx(kl, rel=0.15)
    assert found.error is not None
    # The mean falls out: the same predictions, on a text that got no harder.
    shifted = pair([s - kl * n for s, n in zip(sums, sizes, strict=True)], sizes)
    assert shifted.mean == pytest.approx(0.0, abs=3 * found.error)
    assert shifted.divergence == pytest.approx(found.divergence)


@pytest.mark.parametrize(
    ("differences", "extent", "half"),
    [
        ([0.0] * 20, "nothing", 20),
        ([9e-6] * 20, "nothing", 11),  # 9e-7 a token
        ([1.0] * 20, "whole", 11),
        ([1.0] * 18 + [-1.0] * 2, "whole", 11),
        ([1.0] * 17 + [-1.0] * 3, "mixed", 11),
        ([-1.0] * 20, "whole", 11),
        # One of twenty is a few; of the same sign everywhere or not.
        ([0.01] * 19 + [1.0], "few", 1),
        ([0.01] * 10 + [-0.01] * 9 + [-1.0], "few", 1),
        ([0.01] * 18 + [1.0, 1.0], "whole", 2),
        ([0.01] * 38 + [1.0, 1.0], "few", 2),
        # One of eight is an eighth of the text.
        ([0.01] * 8 + [1.0], "few", 1),
        ([0.01] * 7 + [1.0], "whole", 1),
        ([0.01] * 3 + [-1.0], "mixed", 1),
    ],
)
def test_where_the_change_is(differences: list[float], extent: str, half: int) -> None:
    found = pair(differences)
    assert (found.extent, found.half) == (extent, half)


def test_windows_that_moved_alike_stand_in_order() -> None:
    found = pair([0.1, 0.3, 0.3 + 1e-9, 0.2])
    assert [window.index for window in found.moved_most] == [1, 2, 3]


def test_other_windows_cannot_be_paired() -> None:
    with pytest.raises(BaselineError) as caught:
        paired([WindowScore(1.0, 5)] * 2, [WindowScore(1.0, 5), WindowScore(1.0, 6)])
    assert str(caught.value) == (
        "the recorded evidence is of other windows (2) than were measured (2)"
    )


def test_divergences_from_a_reference() -> None:
    """Their own sums are paired, whatever the losses did; nothing is estimated."""
    old = [WindowScore(20.0, 10, kl_sum=1.0, top1=9) for _ in range(12)]
    new = [WindowScore(10.0, 10, kl_sum=1.0 + 0.5 * (i == 7)) for i in range(12)]
    found = paired(new, old, of="kl_sum")
    assert (found.worse, found.better, found.equal) == (1, 0, 11)
    assert found.mean == pytest.approx(0.5 / 120)
    assert (found.moved_most[0].index, found.extent) == (7, "few")
    assert (found.of, found.divergence) == ("kl_sum", None)
