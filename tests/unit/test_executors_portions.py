"""How much is handed out at once."""

from __future__ import annotations

import pytest

from pytest_pplguard.executors.portions import PORTION_SECONDS, Pace, costs, run_of
from pytest_pplguard.values import Window


def test_a_batch_costs_its_padding_too() -> None:
    windows = [Window(tuple(range(n)), (1,)) for n in (4, 10, 7)]
    assert costs([[0, 1], [2]], windows) == [20, 7]


def test_a_portion_takes_about_as_long_on_any_replica() -> None:
    pace = Pace()
    pace.saw(1, 1000, 1)
    pace.saw(2, 4000, 1)
    for replica, speed in ((1, 1000), (2, 4000)):
        budget = pace.budget(replica, 1e9, {1, 2})
        assert budget == pytest.approx(PORTION_SECONDS * speed)


def test_portions_shrink_towards_the_end() -> None:
    pace = Pace()
    pace.saw(1, 1000, 1)
    pace.saw(2, 3000, 1)
    # What is left takes both of them a second: half of it for each.
    assert pace.budget(1, 4000, {1, 2}) == pytest.approx(500)
    assert pace.budget(2, 4000, {1, 2}) == pytest.approx(1500)


def test_an_unknown_replica_shows_its_speed_by_one_batch() -> None:
    pace = Pace()
    pace.saw(1, 1000, 1)
    assert pace.budget(2, 1e9, {1, 2}) == 0
    assert pace.speed(2) == 1000
    pace.forget(1)
    assert pace.speed(2) is None


def test_the_last_portion_counts_for_half() -> None:
    pace = Pace()
    pace.saw(1, 1000, 1)
    pace.saw(1, 2000, 1)
    assert pace.speed(1) == 1500


@pytest.mark.parametrize(
    ("waiting", "first", "budget", "run"),
    [
        ([0, 1, 2, 3], 0, 25, (0, 1)),
        ([0, 1, 2, 3], 0, 1000, (0, 1, 2, 3)),
        ([0, 1, 2, 3], 0, 0, (0,)),
        ([0, 1, 3, 4], 0, 1000, (0, 1)),  # those that follow each other
        ([0, 1, 3, 4], 2, 1000, (3, 4)),
    ],
)
def test_a_run(waiting: list[int], first: int, budget: int, run: tuple[int]) -> None:
    assert run_of(waiting, first, budget, dict.fromkeys(range(5), 10.0)) == run
