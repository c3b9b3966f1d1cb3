"""Early verdicts: their error by counting all orders, and when there must be none."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from pytest_pplguard.errors import InvalidLossError
from pytest_pplguard.gates import (
    EarlyPlan,
    EarlyTest,
    MetricGate,
    early_text,
    judge_metric,
    scoring_order,
    window_bounds,
)
from pytest_pplguard.gates.early import BETS, WITH_CAP, Range
from pytest_pplguard.report import brief, failure_text, summary_lines
from pytest_pplguard.report.csv import csv_report
from pytest_pplguard.values import (
    EarlyStop,
    Measurement,
    Outcome,
    Recorded,
    Source,
    Tolerance,
    WindowScore,
)

CAP = 0.1
LOSS = 3.0
"""Recorded, nats a token."""


def scores_of(sizes: Sequence[int], loss: float = LOSS) -> list[WindowScore]:
    return [WindowScore(loss * size, size) for size in sizes]


def run(
    changes: Sequence[float],
    order: Sequence[int],
    allowed: Mapping[str, Range],
    *,
    sizes: Sequence[int] | None = None,
    cap: float | None = CAP,
    error: float = 0.1,
) -> EarlyTest:
    """A test that has had all windows; ``changes`` are in nats a token."""
    sizes = sizes or [10] * len(changes)
    recorded = scores_of(sizes)
    test = EarlyTest(recorded, order, allowed, cap=cap, error=error)
    test(
        {
            index: replace(score, nll_sum=score.nll_sum + change * score.scored)
            for index, (score, change) in enumerate(zip(recorded, changes, strict=True))
        }
    )
    return test


def truth(changes: Sequence[float], sizes: Sequence[int], allowed: Range) -> str:
    """What a full run says."""
    total = math.fsum(c * n for c, n in zip(changes, sizes, strict=True))
    low, high = allowed
    if high is not None and total > high:
        return "regressed"
    return "improved" if low is not None and total < low else "within"


def probability(order: Sequence[int], sizes: Sequence[int]) -> float:
    """Of an order whose windows are drawn by their sizes, one after the other."""
    left, product = sum(sizes), 1.0
    for index in order:
        product *= sizes[index] / left
        left -= sizes[index]
    return product


def chances(
    changes: Sequence[float],
    allowed: Mapping[str, Range],
    sizes: Sequence[int],
    **options: Any,
) -> tuple[float, float]:
    """Probabilities of any wrong verdict, and of stopping early, over all orders."""
    alike: dict[tuple[tuple[float, int], ...], float] = {}
    for order in itertools.permutations(range(len(changes))):
        drawn = tuple((changes[index], sizes[index]) for index in order)
        alike[drawn] = alike.get(drawn, 0.0) + probability(order, sizes)
    assert math.fsum(alike.values()) == pytest.approx(1)
    wrong = early = 0.0
    for drawn, chance in alike.items():
        moved, lengths = zip(*drawn, strict=True)
        test = run(moved, range(len(drawn)), allowed, sizes=lengths, **options)
        if test.seen == len(changes):
            continue  # the full run decides
        early += chance
        if any(
            outcome != truth(changes, sizes, allowed[name])
            for name, outcome in test.decided.items()
        ):
            wrong += chance
    return wrong, early


EQUAL = [10] * 7
SLIGHTLY = 1e-9
# (what, changes, bounds): each population is where another verdict is nearest.
HARD: dict[str, tuple[list[float], list[int], dict[str, Range]]] = {
    "two spoilt, just above": (
        [CAP] * 2 + [0.0] * 5,
        EQUAL,
        {"m": (-2.0, 2.0 - SLIGHTLY)},
    ),
    "three spoilt, just above, no lower bound": (
        [CAP] * 3 + [0.0] * 4,
        EQUAL,
        {"m": (None, 3.0 - SLIGHTLY)},
    ),
    "three better, just below": (
        [-CAP] * 3 + [0.0] * 4,
        EQUAL,
        {"m": (-3.0 + SLIGHTLY, 3.0)},
    ),
    "just inside the upper bound": (
        [CAP] * 5 + [-CAP] * 2,
        EQUAL,
        {"m": (-3.0, 3.0 + SLIGHTLY)},
    ),
    "just inside the lower bound": (
        [-CAP] * 5 + [CAP] * 2,
        EQUAL,
        {"m": (-3.0 - SLIGHTLY, 3.0)},
    ),
    "only a lower bound, just below": (
        [-CAP] * 2 + [0.0] * 5,
        EQUAL,
        {"m": (-2.0 + SLIGHTLY, None)},
    ),
    "inside of both, which are one": (
        [-CAP] * 3 + [CAP] * 3 + [0.0],
        EQUAL,
        {"m": (-SLIGHTLY, SLIGHTLY)},
    ),
    "scattered, just above": (
        [0.1, 0.09, -0.03, 0.06, 0.01, -0.05, 0.02],
        EQUAL,
        {"m": (-2.0, 2.0 - SLIGHTLY)},
    ),
    "unequal windows, the long one spoilt": (
        [CAP, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0],
        [24, 12, 6, 6, 6, 3, 3],
        {"m": (-2.4, 2.4 - SLIGHTLY)},
    ),
    "unequal windows, the short ones spoilt": (
        [0.0, 0.0, CAP, CAP, CAP, CAP, CAP],
        [24, 12, 6, 6, 6, 3, 3],
        {"m": (-2.4, 2.4 - SLIGHTLY)},
    ),
    "unequal windows, just inside": (
        [CAP, CAP, -CAP, 0.0, -CAP, 0.0, 0.0],
        [24, 12, 6, 6, 6, 3, 3],
        {"m": (-2.4, 2.4 + SLIGHTLY)},
    ),
    "three metrics, between their bounds": (
        [CAP] * 3 + [0.0] * 4,
        EQUAL,
        {
            "a": (-2.0, 3.0 - SLIGHTLY),
            "b": (-3.0, 3.0 + SLIGHTLY),
            "c": (3.0 - 2 * SLIGHTLY, 4.0),
        },
    ),
}


@pytest.mark.parametrize("error", [0.02, 0.1, 0.3])
@pytest.mark.parametrize("case", HARD)
def test_of_all_orders_no_more_are_wrong_than_stated(case: str, error: float) -> None:
    changes, sizes, allowed = HARD[case]
    wrong, _ = chances(changes, allowed, sizes, error=error)
    assert wrong <= error


def test_some_orders_are_wrong_and_some_stop() -> None:
    """Else the test above could not fail."""
    wrong = {
        case: chances(changes, allowed, sizes, error=0.3)
        for case, (changes, sizes, allowed) in HARD.items()
    }
    assert sum(chance > 0.1 for chance, _ in wrong.values()) >= 3
    assert sum(early > 0.1 for _, early in wrong.values()) >= 5


def test_a_failure_without_a_cap_is_as_sure() -> None:
    # A few windows lost nearly all of their loss, so that the others look much worse.
    changes = [2.0, 2.0, 2.0, 1.0, -2.9, -2.9, -2.9]
    total = math.fsum(changes) * 10
    inside, outside = {"m": (None, total + SLIGHTLY)}, {"m": (None, total - SLIGHTLY)}
    for error in (0.05, 0.3, 0.5):
        wrong, early = chances(changes, inside, EQUAL, cap=None, error=error)
        assert wrong <= error
        right, stops = chances(changes, outside, EQUAL, cap=None, error=error)
        assert (right, stops) == (0, early)
    assert wrong > 0


@pytest.mark.parametrize("count", [40, 62, 166])
@pytest.mark.parametrize("spoilt", [1, 3, 8, 12])
def test_unchanged_windows_are_a_hypergeometric_test(count: int, spoilt: int) -> None:
    """At 0 change: as many as show that none of the spoilt ones would be missed."""
    error = 0.001
    allowed: dict[str, Range] = {"m": (None, spoilt * CAP * 10)}

    def missed(seen: int) -> float:
        return math.comb(count - spoilt, seen) / math.comb(count, seen)

    fewest = next(n for n in range(count + 1) if missed(n) <= error)
    share = BETS[0][1]
    most = next(n for n in range(count + 1) if missed(n) <= error * share)
    seen = run([0.0] * count, range(count), allowed, error=error).seen
    assert fewest <= seen <= most


CHANGES = st.lists(
    st.tuples(st.integers(-100, 100), st.integers(1, 30)), min_size=1, max_size=9
)
BOUND = st.none() | st.integers(-2000, 2000)


@settings(deadline=None)
@given(CHANGES, BOUND, BOUND, st.randoms(use_true_random=False))
def test_what_arithmetic_decides_is_never_wrong(
    windows: list[tuple[int, int]], low: int | None, high: int | None, random: Any
) -> None:
    """No bet wins 1e300, so that only what unseen windows cannot undo decides."""
    if low is not None and high is not None and low > high:
        low, high = high, low
    changes = [change / 1000 for change, _ in windows]
    sizes = [size for _, size in windows]
    # Between the sums that are possible, which are thousandths.
    allowed = (
        None if low is None else low / 1000 - 0.0005,
        None if high is None else high / 1000 + 0.0005,
    )
    order = list(range(len(windows)))
    random.shuffle(order)
    for cap in (CAP + 1e-12, None):
        test = run(changes, order, {"m": allowed}, sizes=sizes, cap=cap, error=1e-300)
        for outcome in test.decided.values():
            assert outcome == truth(changes, sizes, allowed)


@settings(deadline=None)
@given(CHANGES, st.integers(1, 500), st.integers(0, 8), st.randoms())
def test_names_and_units_of_windows_do_not_matter(
    windows: list[tuple[int, int]], bound: int, power: int, random: Any
) -> None:
    changes = [change / 1000 for change, _ in windows]
    sizes = [size for _, size in windows]
    order = list(range(len(windows)))
    allowed: dict[str, Range] = {"m": (-bound / 1000, bound / 1000)}
    here = run(changes, order, allowed, sizes=sizes, error=0.2)

    names = order.copy()
    random.shuffle(names)
    places = [names.index(name) for name in order]
    there = run(
        [changes[name] for name in names],
        places,
        allowed,
        sizes=[sizes[name] for name in names],
        error=0.2,
    )
    assert (here.seen, here.decided) == (there.seen, there.decided)

    # Powers of two change no digit.
    larger = run(
        changes,
        order,
        {"m": (-bound * 2.0**power / 1000, bound * 2.0**power / 1000)},
        sizes=[size * 2**power for size in sizes],
        error=0.2,
    )
    assert (here.seen, here.decided) == (larger.seen, larger.decided)


@settings(deadline=None)
@given(CHANGES, st.integers(1, 500))
def test_scores_in_one_batch_or_one_by_one_give_the_same(
    windows: list[tuple[int, int]], bound: int
) -> None:
    changes = [change / 1000 for change, _ in windows]
    sizes = [size for _, size in windows]
    allowed: dict[str, Range] = {"m": (-bound / 1000, bound / 1000)}
    at_once = run(changes, range(len(sizes)), allowed, sizes=sizes, error=0.2)
    recorded = scores_of(sizes)
    test = EarlyTest(recorded, range(len(sizes)), allowed, cap=CAP, error=0.2)
    known: dict[int, WindowScore] = {}
    # From the last on: nothing may be used before its turn.
    for index in reversed(range(len(sizes))):
        assert test.seen == 0
        moved = recorded[index].nll_sum + changes[index] * sizes[index]
        known[index] = WindowScore(moved, sizes[index])
        test(known)
    assert (test.seen, test.decided) == (at_once.seen, at_once.decided)


def test_a_window_beyond_the_cap_leaves_failures_alone() -> None:
    allowed: dict[str, Range] = {"m": (-2.0, 2.0)}
    calm = run([0.0] * 40, range(40), allowed, error=0.1)
    assert calm.decided == {"m": "within"}
    assert calm.seen < 39

    one = run([0.0, 0.11] + [0.0] * 38, range(40), allowed, error=0.1)
    assert (one.seen, one.decided) == (40, {})
    assert one.broken_by is not None
    assert one.broken_by[0] == 1
    assert one.broken_by[1] == pytest.approx(0.11)

    better = run([-0.11] * 40, range(40), allowed, error=0.1)
    assert (better.seen, better.decided) == (40, {})

    worse = run([0.5] * 40, range(40), allowed, error=0.1)
    assert worse.decided == {"m": "regressed"}
    assert worse.seen < 40
    assert worse.stopped().cap is None


def test_what_was_decided_under_the_cap_is_taken_back() -> None:
    """One metric is known sooner than the other; then a window breaks the cap."""
    allowed: dict[str, Range] = {"wide": (-60.0, 60.0), "narrow": (-3.5, 3.5)}
    changes = [0.0] * 20 + [0.3] + [0.0] * 60
    recorded = scores_of([10] * 81)
    test = EarlyTest(recorded, range(81), allowed, cap=CAP, error=0.001)
    known = {
        i: replace(score, nll_sum=score.nll_sum + 10 * change)
        for i, (score, change) in enumerate(zip(recorded, changes, strict=True))
    }
    test({i: known[i] for i in range(20)})
    assert test.decided == {"wide": "within"}
    test(known)
    assert (test.seen, test.decided) == (81, {})


def test_without_a_cap_nothing_passes() -> None:
    same = run([0.0] * 40, range(40), {"m": (-2.0, 2.0)}, cap=None)
    assert (same.seen, same.decided) == (40, {})
    worse = run([3.0] * 40, range(40), {"m": (-2.0, 2.0)}, cap=None, error=0.001)
    assert worse.decided == {"m": "regressed"}
    # Each factor is at most 1 + 3 / 3, so ten are needed; the mean falls, so fewer are.
    assert 5 <= worse.seen <= 11
    assert worse.stopped() == EarlyStop(
        seen=worse.seen,
        windows=40,
        cap=None,
        error=0.001,
        decided={"m": "regressed"},
    )


def test_losses_that_already_exceed_what_is_allowed() -> None:
    """One window as bad as all together may be: no bet is needed, and no error made."""
    test = run(
        [100.0, *[0.0] * 39], range(40), {"m": (-2.0, 2.0)}, cap=None, error=1e-9
    )
    # The recorded losses are 30 each: without those that are left it is above.
    assert 1000 - 34 * 30 < 2 < 1000 - 33 * 30
    assert test.seen == 40 - 33
    assert test.decided == {"m": "regressed"}


def test_the_stake_is_no_more_than_one() -> None:
    assert math.fsum(share for _, share in BETS) == pytest.approx(1)
    assert all(0 < c <= 1 for c, _ in BETS)
    assert 0 < WITH_CAP < 1


# ------------------------------------------------------------------------------ order


def test_the_order_is_the_digests_and_no_others() -> None:
    sizes = [100] * 20
    one = scoring_order("sha256:aa", sizes)
    assert sorted(one) == list(range(20))
    assert one == scoring_order("sha256:aa", sizes)
    assert one != scoring_order("sha256:ab", sizes)
    # Written out once: files that exist must go on to mean the same.
    assert one == [1, 13, 5, 3, 4, 19, 2, 18, 15, 16, 7, 8, 14, 11, 9, 10, 12, 0, 6, 17]


def test_windows_are_drawn_by_their_sizes() -> None:
    """All six orders of three windows, as often as drawing one by one gives them."""
    sizes, draws = [5, 3, 2], 20_000
    counts: dict[tuple[int, ...], int] = {}
    for number in range(draws):
        order = tuple(scoring_order(f"sha256:{number}", sizes))
        counts[order] = counts.get(order, 0) + 1
    for order in itertools.permutations(range(3)):
        chance = probability(order, sizes)
        deviation = math.sqrt(chance * (1 - chance) / draws)
        assert abs(counts[order] / draws - chance) < 4 * deviation


# ------------------------------------------------------------------------------- plans

DIGEST, TEXT = "sha256:" + "a" * 64, "sha256:" + "b" * 64
COUNT, SIZE = 40, 10
TOKENS = COUNT * SIZE
WORDS = 133


def recompute(
    scores: Sequence[WindowScore], units: Mapping[str, int]
) -> dict[str, float]:
    total = math.fsum(score.nll_sum for score in scores)
    if total / units["tokens"] > 700:
        raise InvalidLossError("too large")
    return {
        "token_perplexity": math.exp(total / units["tokens"]),
        "bits_per_word": total / units["words"] / math.log(2),
        "weighted": math.exp(
            math.fsum((2 + (i > 0)) * s.nll_sum for i, s in enumerate(scores))
            / (3 * units["tokens"])
        ),
    }


UNITS = {"tokens": TOKENS, "words": WORDS}
WINDOWS = [WindowScore((LOSS + math.sin(i)) * SIZE, SIZE) for i in range(COUNT)]
RECORDED = Recorded(
    metrics=recompute(WINDOWS, UNITS),
    source=Source("measured"),
    windows=COUNT,
    units=UNITS,
    windows_digest=DIGEST,
    corpus_digest=TEXT,
    evidence="x.json",
)


def plan(
    allowed: Mapping[str, Range], cap: float | None = CAP, **options: Any
) -> EarlyPlan:
    arguments: dict[str, Any] = {
        "recorded": RECORDED,
        "protocol": {"window": 11},
        "windows": WINDOWS,
        "allowed": allowed,
        "recompute": recompute,
        "cap": cap,
        "error": 0.1,
    }
    return EarlyPlan(**(arguments | options))


def measured(**changes: Any) -> Measurement:
    return replace(
        Measurement(
            key="wanda/wikitext2:11",
            metrics=dict(RECORDED.metrics),
            units=dict(UNITS),
            windows=COUNT,
            windows_digest=DIGEST,
            corpus_digest=TEXT,
            protocol={"window": 11},
            evidence=(),
            environment={},
            seconds=1.0,
        ),
        **changes,
    )


def bounds_of(metric: str, tolerance: Tolerance) -> dict[str, Range]:
    found = window_bounds(tolerance, RECORDED.metrics[metric])
    return {metric: (found.low, found.high)}


@pytest.mark.parametrize("metric", ["token_perplexity", "bits_per_word"])
@pytest.mark.parametrize(
    "tolerance",
    [
        Tolerance(rel=0.02),
        Tolerance(abs=0.05),
        Tolerance(rel=0.02, direction="no-worse"),
        Tolerance(rel=0.03, max=20.9, min=3),
        Tolerance(),
    ],
)
def test_the_verdict_is_that_of_the_metric(metric: str, tolerance: Tolerance) -> None:
    """All windows moved alike: the test says what the metric's bounds say of it."""
    allowed = bounds_of(metric, tolerance)
    said = set()
    for moved in (-0.06, -0.03, -0.004, 0.0, 0.004, 0.019, 0.021, 0.05):
        test = plan(allowed, cap=0.15).start(measured())
        assert test is not None
        scores = [replace(w, nll_sum=w.nll_sum + moved * SIZE) for w in WINDOWS]
        if not test(dict(enumerate(scores))):
            continue
        value = recompute(scores, UNITS)[metric]
        low, high = allowed[metric]
        expected = "within"
        if high is not None and value > high:
            expected = "regressed"
        elif low is not None and value < low:
            expected = "improved"
        assert test.decided == {metric: expected}
        said.add(expected)
    assert said


def test_a_metric_of_weighted_windows_needs_all() -> None:
    refused = plan({"weighted": (None, 30.0)})
    assert refused.start(measured()) is None
    assert refused.remark == "weighted does not follow from the sum of all losses"


def test_what_is_not_comparable_needs_all() -> None:
    allowed = bounds_of("token_perplexity", Tolerance(rel=0.02))
    for change in (
        {"windows_digest": "sha256:" + "c" * 64},
        {"corpus_digest": "sha256:" + "c" * 64},
        {"protocol": {"window": 12}},
        {"units": {"tokens": TOKENS, "words": WORDS + 1}},
        {"windows": COUNT + 1},
    ):
        refused = plan(allowed)
        assert refused.start(measured(**change)) is None
        assert refused.remark == "it is not comparable to its baseline"
    assert plan(allowed).start(measured()) is not None


def test_a_cap_that_leaves_nothing_to_test_is_refused() -> None:
    allowed = bounds_of("token_perplexity", Tolerance(rel=0.03))
    refused = plan(allowed, cap=0.0295)
    assert refused.start(measured()) is None
    assert refused.remark == (
        "the cap of 0.0295 nats a token is not above what a gate allows, 0.0296: that "
        "would assume the verdict"
    )
    assert plan(allowed, cap=0.03).remark == ""


def test_without_a_cap_a_gate_must_be_able_to_fail() -> None:
    allowed = bounds_of("token_perplexity", Tolerance(min=3))
    assert plan(allowed, cap=None).remark == (
        "without a cap only a regression can be known early"
    )


def test_a_gate_that_nothing_can_break_needs_all() -> None:
    """Else it would be known before the first window."""
    for allowed in ({}, {"token_perplexity": (0.0, None)}):
        refused = plan(allowed)
        assert refused.start(measured()) is None
        assert refused.remark == "there is nothing that it could break"


def test_an_estimate_moves_the_baseline() -> None:
    chosen = plan(bounds_of("token_perplexity", Tolerance(rel=0.02)))
    test = chosen.start(measured())
    assert test is not None
    first = chosen.order[0]
    score = WINDOWS[first]
    test({first: replace(score, nll_sum=score.nll_sum + 0.05 * SIZE)})
    estimate = chosen.estimate(test, UNITS)
    assert estimate is not None
    assert estimate["token_perplexity"] == pytest.approx(
        RECORDED.metrics["token_perplexity"] * math.exp(0.05), rel=1e-12
    )


def test_there_may_be_no_estimate() -> None:
    chosen = plan(bounds_of("token_perplexity", Tolerance(rel=0.02)))
    test = chosen.start(measured())
    assert test is not None
    first = chosen.order[0]
    test({first: WindowScore(800.0 * SIZE, SIZE)})
    assert chosen.estimate(test, UNITS) is None


# ---------------------------------------------------------------------------- verdicts

METRIC = "token_perplexity"


def judged(
    value: float, outcome: Any, tolerance: Tolerance | None = None, **stop: Any
) -> Any:
    early = EarlyStop(
        seen=27, windows=40, cap=CAP, error=0.001, decided={METRIC: outcome}
    )
    gate = MetricGate(
        checkpoint="llama/w50",
        key="wanda/wikitext2:11",
        metric=METRIC,
        tolerance=tolerance or Tolerance(rel=0.02),
        origin="llama.yaml:7",
        recorded_in="llama.yaml:9",
        command="pytest --ppl-update",
    )
    estimate = {**RECORDED.metrics, METRIC: value}
    now = measured(metrics=estimate, early=replace(early, **stop))
    return judge_metric(
        gate,
        now,
        RECORDED,
        recorded_protocol={"window": 11},
        recorded_windows=WINDOWS,
    )


def test_an_estimate_does_not_judge_what_is_decided() -> None:
    """It may lie beyond a bound that all windows keep."""
    base = RECORDED.metrics[METRIC]
    verdict = judged(base * 1.03, "within")
    assert (verdict.outcome, verdict.passed) == (Outcome.WITHIN, True)
    assert verdict.early == (
        "within after 27 of 40 windows, if no unseen window moved by more than 0.1 "
        "nats a token; 0.1 % error"
    )
    verdict = judged(base, "improved")
    assert (verdict.outcome, verdict.passed) == (Outcome.IMPROVED, False)


def test_a_pass_that_may_be_better_is_called_within() -> None:
    tolerance = Tolerance(rel=0.02, direction="no-worse")
    verdict = judged(RECORDED.metrics[METRIC] * 0.9, "within", tolerance)
    assert (verdict.outcome, verdict.passed) == (Outcome.WITHIN, True)


def test_what_is_not_comparable_is_so_early_too() -> None:
    gate = MetricGate("a/b", "wanda/wikitext2:11", METRIC, None, "", "", "")
    early = EarlyStop(
        seen=1, windows=40, cap=CAP, error=0.001, decided={METRIC: "within"}
    )
    now = measured(early=early, corpus_digest="sha256:" + "c" * 64)
    assert judge_metric(gate, now, RECORDED).outcome is Outcome.NOT_COMPARABLE


def test_texts_mark_an_estimate() -> None:
    base = RECORDED.metrics[METRIC]
    verdict = judged(base * 1.05, "regressed", cap=None)
    low, high = base / 1.02, base * 1.02
    assert failure_text(verdict) == (
        "llama/w50 wanda/wikitext2:11: token_perplexity regressed by about 5.00 %\n"
        f"  baseline     {base!r} (measured)\n"
        f"  measured     about {base * 1.05:.6g}\n"
        "  early        regressed after 27 of 40 windows; 0.1 % error\n"
        f"  allowed      {low!r} .. {high!r} (rel 0.02, llama.yaml:7)\n"
        "  recorded in  llama.yaml:9\n"
        "  to accept    pytest --ppl-update"
    )
    assert brief([verdict]) == (
        "llama/w50 wanda/wikitext2:11: token_perplexity regressed by about 5.00 %: "
        f"measured about {base * 1.05:.6g}, allowed {low!r} .. {high!r}; regressed "
        "after 27 of 40 windows; 0.1 % error"
    )
    lines = summary_lines([judged(base * 1.01, "within")])
    assert [" ".join(line.split()) for line in lines] == [
        "llama/w50 baseline measured change outcome",
        "wanda/wikitext2:11",
        f"token_perplexity {base:.6g} ~{base * 1.01:.6g} +1.00 % within",
        "early: within after 27 of 40 windows, if no unseen window moved by more than "
        "0.1 nats a token; 0.1 % error",
        "1 within tolerance",
    ]
    header, row = csv_report([verdict]).splitlines()
    assert header.endswith(",path,cached,early")
    assert row.endswith(",regressed after 27 of 40 windows; 0.1 % error")


def test_the_error_is_told_as_it_is() -> None:
    stop = EarlyStop(
        seen=3, windows=8, cap=0.05, error=0.025, decided={METRIC: "improved"}
    )
    assert early_text(stop, METRIC) == (
        "improved after 3 of 8 windows, if no unseen window moved by more than 0.05 "
        "nats a token; 2.5 % error"
    )
