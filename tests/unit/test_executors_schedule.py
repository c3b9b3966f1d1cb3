"""Who scores what: by hand, and whatever happens to a cluster that is made up."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from benchmarks.simulated_cluster import Fault, SimulatedCluster
from pytest_pplguard.executors.portions import PORTION_SECONDS, Pace
from pytest_pplguard.executors.schedule import MOST_LOSSES, Schedule, labelled


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def schedule(batches: int, *replicas: int, pace: Pace | None = None) -> Schedule:
    made = Schedule(
        dict.fromkeys(range(batches), 10.0), clock=Clock(), timeout=60, pace=pace
    )
    for replica in replicas:
        made.add(replica)
    return made


def taken(made: Schedule, replica: int) -> tuple[int, ...]:
    portion = made.take(replica)
    assert portion is not None
    return portion.batches


def test_the_first_portions_are_small_and_in_order() -> None:
    made = schedule(9, 1, 2)
    assert taken(made, 1) == (0,)
    assert taken(made, 2) == (1,)
    assert made.take(1) is None  # it is at one


def test_what_a_lost_replica_was_at_is_done_first() -> None:
    made = schedule(9, 1, 2)
    taken(made, 1)
    taken(made, 2)
    made.lost(1)
    made.answered(2, [1], 1.0)
    assert taken(made, 2) == (0,)


def test_a_batch_is_not_tried_for_ever() -> None:
    made = schedule(1)
    for replica in range(MOST_LOSSES):
        assert made.hopeless is None
        made.add(replica)
        assert taken(made, replica) == (0,)
        made.lost(replica)
    assert made.hopeless == 0


def test_of_batches_that_were_lost_together_each_goes_alone() -> None:
    pace = Pace()
    pace.saw(1, 1000, 1)
    made = schedule(8, 1, pace=pace)
    lost = taken(made, 1)
    assert len(lost) > 1
    made.lost(1)
    made.add(2)
    pace.saw(2, 1000, 1)
    for number in lost:
        assert taken(made, 2) == (number,)
        made.answered(2, [number], 0.1)


def test_a_refusal_is_confirmed_by_another_replica() -> None:
    made = schedule(2, 1, 2)
    assert taken(made, 1) == (0,)
    assert made.answered(1, [], 0.0, 0, anew=True) == []
    assert taken(made, 1) == (1,)  # not the same again
    assert taken(made, 2) == (0,)
    assert made.answered(2, [], 0.0, 0, anew=True) == [0]
    assert made.distrusted == []


def test_who_refuses_what_another_one_can_do_is_not_trusted() -> None:
    made = schedule(1, 1, 2)
    taken(made, 1)
    made.answered(1, [], 0.0, 0, anew=True)
    taken(made, 2)
    assert made.answered(2, [0], 1.0) == [0]
    assert made.distrusted == [1]
    assert made.done


def test_the_only_replica_confirms_nan_after_a_new_start() -> None:
    made = schedule(1, 1)
    taken(made, 1)
    assert made.answered(1, [], 0.0, 0, anew=True) == []
    assert made.wants_anew(1)
    made.lost(1)
    made.add(2)
    taken(made, 2)
    assert made.answered(2, [], 0.0, 0, anew=True) == [0]
    assert not made.wants_anew(2)


def test_nan_is_not_confirmed_by_who_is_left_and_has_said_it_before() -> None:
    made = schedule(1, 1, 2)
    taken(made, 1)
    assert made.answered(1, [], 0.0, 0, anew=True) == []
    made.lost(2)  # whoever should have been asked
    assert taken(made, 1) == (0,)
    assert made.answered(1, [], 0.0, 0, anew=True) == []
    assert made.wants_anew(1)


def test_the_only_replica_is_believed_at_once_in_other_errors() -> None:
    made = schedule(1, 1)
    taken(made, 1)
    assert made.answered(1, [], 0.0, 0) == [0]


def test_a_refusal_waits_for_who_is_about_to_be_ready() -> None:
    made = schedule(2, 1)
    made.expect(2)
    assert taken(made, 1) == (0,)
    assert made.answered(1, [], 1.0, refused=0) == []
    assert taken(made, 1) == (1,)
    made.answered(1, [1], 1.0)
    assert made.take(1) is None
    made.add(2)
    assert taken(made, 2) == (0,)
    assert made.answered(2, [0], 1.0) == [0]
    assert made.distrusted == [1]


def test_a_refusal_is_final_once_nobody_else_comes() -> None:
    made = schedule(1, 1)
    made.expect(2)
    assert taken(made, 1) == (0,)
    assert made.answered(1, [], 1.0, refused=0) == []
    made.lost(2)
    assert taken(made, 1) == (0,)
    assert made.answered(1, [], 1.0, refused=0) == [0]


def test_what_comes_behind_an_error_is_not_needed() -> None:
    made = schedule(5, 1)
    taken(made, 1)
    made.only_before(1)
    assert not made.done
    made.answered(1, [0], 1.0)
    assert taken(made, 1) == (1,)
    made.answered(1, [1], 1.0)
    assert made.done


def test_a_straggler_is_given_to_another_one_too_and_counts_once() -> None:
    clock = Clock()
    made = Schedule({0: 10.0, 1: 10.0}, clock=clock, timeout=600)
    made.add(1)
    made.add(2)
    assert (taken(made, 1), taken(made, 2)) == ((0,), (1,))
    clock.now = 1.0
    assert made.answered(2, [1], 1.0) == [1]
    assert made.take(2) is None  # the other one may yet answer
    clock.now = 6.0
    assert taken(made, 2) == (0,)
    clock.now = 7.0
    assert made.answered(2, [0], 1.0) == [0]
    assert made.done
    assert made.answered(1, [0], 7.0) == []


def test_a_slow_replica_does_not_take_the_last_batch() -> None:
    clock = Clock()
    pace = Pace()
    pace.saw(1, 1000, 1)
    pace.saw(2, 10, 1)  # a hundred times slower
    made = Schedule(dict.fromkeys(range(3), 500.0), clock=clock, timeout=60, pace=pace)
    made.add(1)
    made.add(2)
    taken(made, 1)
    assert made.take(2) is None


def test_a_portion_that_takes_too_long() -> None:
    made = schedule(2, 1)
    clock = made._clock
    assert isinstance(clock, Clock)
    portion = made.take(1)
    assert made.overdue() == []
    clock.now = 61
    assert made.overdue() == [portion]


@pytest.mark.parametrize(
    ("batches", "text"), [([0], "windows 1 to 2"), ([1], "window 3")]
)
def test_windows_by_name(batches: list[int], text: str) -> None:
    assert labelled(batches, [[0, 1], [2]]) == text


# ------------------------------------------------------------------ whatever may happen

speeds = st.lists(st.floats(1, 200), min_size=1, max_size=6)
faults = st.lists(
    st.builds(
        Fault,
        slot=st.integers(0, 5),
        at=st.floats(0, 200),
        kind=st.sampled_from(["kill", "hang", "nan"]),
    ),
    max_size=12,
)


@settings(max_examples=300, deadline=None)
@given(
    costs=st.lists(st.integers(1, 300), min_size=1, max_size=60),
    speeds=speeds,
    faults=faults,
    bad=st.frozensets(st.integers(0, 59), max_size=3),
    late=st.floats(0, 60),
)
@example(costs=[1], speeds=[1.0], faults=[], bad=frozenset({0}), late=0.0)
def test_it_ends_and_decides_each_batch_once(
    costs: list[int],
    speeds: list[float],
    faults: list[Fault],
    bad: frozenset[int],
    late: float,
) -> None:
    cluster = SimulatedCluster(
        costs,
        speeds,
        ready=[late],
        timeout=400,
        restart=5,
        faults=faults,
        bad=bad,
    )
    outcome = cluster.run()
    assert set(outcome.decided.values()) <= {1}
    # A replica that was lost comes back at most so often.
    assert outcome.losses <= 4 * len(speeds)
    sick = any(fault.kind == "nan" for fault in faults)
    if not sick:  # two sick ones may agree on what is fine
        assert outcome.refused <= bad
    if outcome.seconds is not None:
        assert outcome.decided == Counter(range(len(costs)))
        if not sick:
            assert outcome.refused == bad & {*range(len(costs))}
    else:
        assert faults or bad


@settings(max_examples=100, deadline=None)
@given(batches=st.integers(20, 200), replicas=st.integers(1, 12))
def test_equal_replicas_end_together(batches: int, replicas: int) -> None:
    """Nobody waits for longer than a batch, and a look at the clock."""
    speed, cost = 100.0, 20.0
    outcome = SimulatedCluster([cost] * batches, [speed] * replicas, overhead=0).run()
    assert outcome.seconds is not None
    assert outcome.waste == 0
    ideal = batches * cost / speed / replicas
    assert outcome.seconds <= ideal + cost / speed + PORTION_SECONDS / 2


@settings(max_examples=100, deadline=None)
@given(batches=st.integers(50, 200), slow=st.floats(2, 50))
def test_a_slow_replica_never_makes_it_slower(batches: int, slow: float) -> None:
    alone = SimulatedCluster([20.0] * batches, [100.0], overhead=0).run()
    both = SimulatedCluster([20.0] * batches, [100.0, 100.0 / slow], overhead=0).run()
    assert alone.seconds is not None
    assert both.seconds is not None
    # Its first batch shows how slow it is.
    assert both.seconds <= alone.seconds + 20.0 / 100.0 * slow
