"""Standard errors, the McNemar test and gates in them, computed here once more."""

from __future__ import annotations

import math
import random
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from pytest_pplguard.errors import BaselineError
from pytest_pplguard.gates import (
    MetricGate,
    PairedDocuments,
    judge_metric,
    judge_relative,
    mcnemar_p,
    paired_documents,
)
from pytest_pplguard.report import failure_text, summary_lines
from pytest_pplguard.values import (
    DocumentResult,
    Measurement,
    Outcome,
    Recorded,
    RelativeGate,
    Scalar,
    Source,
    Tolerance,
    Verdict,
)

KEY = "lm-eval/piqa:2048"
DIGEST = "sha256:" + "a" * 64
MEAN: dict[str, Scalar] = {"aggregation of acc": "mean"}
BITS = st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=40)


def documents(
    values: Sequence[Any], task: str = "piqa", metric: str = "acc"
) -> tuple[DocumentResult, ...]:
    return tuple(
        DocumentResult(task, index, {metric: value})
        for index, value in enumerate(values)
    )


def bits(values: Sequence[bool]) -> tuple[DocumentResult, ...]:
    return documents([int(value) for value in values])


def pairing(
    new: Sequence[DocumentResult],
    old: Sequence[DocumentResult],
    protocol: dict[str, Scalar] | None = None,
    metric: str = "acc",
) -> PairedDocuments:
    found = paired_documents(metric, new, old, protocol or MEAN)
    assert found is not None
    return found


def error_of(found: PairedDocuments) -> float:
    assert found.error is not None
    return found.error


# ------------------------------------------------------------------------- statistics


@given(BITS)
def test_mcnemar(pairs: list[tuple[bool, bool]]) -> None:
    found = pairing(bits([new for new, _ in pairs]), bits([old for _, old in pairs]))
    apart = [int(new) - int(old) for new, old in pairs]
    if len(pairs) == 1 and any(apart):
        assert found.error is None
    else:
        expected = math.sqrt(statistics.pvariance(apart) / len(apart))
        assert error_of(found) == pytest.approx(expected, rel=1e-9, abs=1e-12)
    wins, losses = apart.count(1), apart.count(-1)
    assert (len(found.risen), len(found.fallen)) == (wins, losses)
    assert [c.document for c in found.risen] == [
        index for index, value in enumerate(apart) if value == 1
    ]
    assert found.how == "mcnemar"
    assert (found.documents, found.p) == (len(pairs), mcnemar_p(wins, losses))


@given(st.integers(0, 60), st.integers(0, 60))
def test_the_exact_p_value(wins: int, losses: int) -> None:
    flips = wins + losses
    chance = [math.comb(flips, k) / 2**flips for k in range(flips + 1)]
    # Two-sided by another definition: all outcomes that are no more likely than this
    # one. With probability 1/2 it is the same.
    seen = chance[wins]
    expected = math.fsum(p for p in chance if p <= seen * (1 + 1e-9))
    assert mcnemar_p(wins, losses) == pytest.approx(expected, rel=1e-9)


def test_the_exact_p_value_of_a_whole_benchmark() -> None:
    # Beyond what a double can hold: 2 ** 10042 is one of HellaSwag's documents.
    assert mcnemar_p(5021, 5021) == 1.0
    z = 200 / math.sqrt(10_000)
    assert mcnemar_p(5100, 4900) == pytest.approx(math.erfc(z / math.sqrt(2)), rel=0.05)


@given(BITS)
def test_swapping_the_runs_swaps_the_signs(pairs: list[tuple[bool, bool]]) -> None:
    new, old = bits([new for new, _ in pairs]), bits([old for _, old in pairs])
    there, back = pairing(new, old), pairing(old, new)
    assert (there.error, there.p) == (back.error, back.p)
    assert [c.document for c in there.risen] == [c.document for c in back.fallen]
    assert [c.change for c in there.fallen] == [-c.change for c in back.risen]


@given(BITS, st.randoms(use_true_random=False))
def test_the_order_of_documents_changes_nothing(
    pairs: list[tuple[bool, bool]], order: random.Random
) -> None:
    new, old = bits([new for new, _ in pairs]), bits([old for _, old in pairs])
    shuffled_new, shuffled_old = list(new), list(old)
    order.shuffle(shuffled_new)
    order.shuffle(shuffled_old)
    assert pairing(shuffled_new, shuffled_old) == pairing(new, old)


def test_the_mean_of_other_values() -> None:
    new, old = [0.25, 0.5, 1.75, 0.0], [0.5, 0.5, 1.0, 0.125]
    found = pairing(documents(new), documents(old))
    apart = [a - b for a, b in zip(new, old, strict=True)]
    assert found.error == pytest.approx(statistics.stdev(apart) / 2)
    assert (found.how, found.p) == ("mean", None)
    # The largest first.
    assert [c.document for c in found.fallen] == [0, 3]
    assert [c.document for c in found.risen] == [2]


def test_one_document_that_moved_tells_no_error() -> None:
    assert pairing(documents([0.25]), documents([0.5])).error is None
    assert pairing(documents([0.25]), documents([0.25])).error == 0.0


@pytest.mark.parametrize("weighting", ["tasks by size", "tasks alike"])
def test_a_group_adds_the_errors_of_its_tasks(weighting: str) -> None:
    a_new, a_old = [1, 0, 0, 1, 1, 0], [0, 0, 1, 0, 1, 1]
    b_new, b_old = [1, 0], [0, 0]
    found = pairing(
        documents(a_new, "a") + documents(b_new, "b"),
        documents(b_old, "b") + documents(a_old, "a"),
        {"aggregation of acc": f"mean, {weighting}"},
    )
    weights = (6 / 8, 2 / 8) if weighting == "tasks by size" else (1 / 2, 1 / 2)
    variance = sum(
        weight**2
        * statistics.pvariance([x - y for x, y in zip(new, old, strict=True)])
        / len(new)
        for weight, new, old in zip(
            weights, (a_new, b_new), (a_old, b_old), strict=True
        )
    )
    assert found.error == pytest.approx(math.sqrt(variance))
    assert [(c.task, c.document) for c in found.risen] == [("a", 0), ("a", 3), ("b", 0)]


def test_a_bootstrap_is_near_the_closed_form() -> None:
    # exp(-mean), lm-eval's `perplexity`: to the first order, its difference is the mean
    # of the values' differences, each weighted by the perplexity.
    generator = random.Random(7)
    old = [generator.gauss(-2.0, 0.5) for _ in range(400)]
    new = [value + generator.gauss(-0.1, 0.3) for value in old]
    protocol: dict[str, Scalar] = {"aggregation of perplexity": "perplexity"}
    found = pairing(
        documents(new, metric="perplexity"),
        documents(old, metric="perplexity"),
        protocol,
        "perplexity",
    )
    here, there = (math.exp(-statistics.fmean(values)) for values in (new, old))
    linear = [here * a - there * b for a, b in zip(new, old, strict=True)]
    # 1,000 resamples know a standard error to 2.2 %.
    assert error_of(found) == pytest.approx(statistics.stdev(linear) / 20, rel=0.08)
    assert found.how == "bootstrap"
    backwards = pairing(
        documents(old, metric="perplexity"),
        documents(new, metric="perplexity"),
        protocol,
        "perplexity",
    )
    assert error_of(backwards) == pytest.approx(error_of(found), rel=1e-12)


def test_values_that_are_lists() -> None:
    # F1 over pairs of label and answer; runs that agree have no error.
    new = documents([[1, 1], [0, 1], [1, 1], [0, 0]] * 20, metric="f1")
    old = documents([[1, 1], [0, 0], [1, 0], [0, 0]] * 20, metric="f1")
    protocol: dict[str, Scalar] = {"aggregation of f1": "f1"}
    assert 0.0 < error_of(pairing(new, old, protocol, "f1")) < 0.2
    assert pairing(new, new, protocol, "f1").error == 0.0
    assert pairing(new, new, protocol, "f1").risen == ()


def test_an_aggregation_that_is_not_known() -> None:
    new = documents([[1], [2]])
    unknown: dict[str, Scalar] = {"aggregation of acc": "code of the task"}
    assert paired_documents("acc", new, new, unknown) is None
    assert paired_documents("f1", new, new, MEAN) is None


@pytest.mark.parametrize(
    ("new", "old", "message"),
    [
        (3, 2, "document 2 of piqa was not recorded"),
        (2, 5, "document 2 of piqa and 2 more was not measured"),
    ],
)
def test_a_document_in_one_run_only(new: int, old: int, message: str) -> None:
    with pytest.raises(BaselineError) as caught:
        pairing(documents([1] * new), documents([1] * old))
    assert str(caught.value) == message


def test_a_document_that_is_there_twice() -> None:
    twice = documents([1]) * 2
    with pytest.raises(BaselineError) as caught:
        pairing(twice, twice)
    assert str(caught.value) == "document 0 of piqa is there twice"


# ------------------------------------------------------------------------------ gates


def task(
    values: Sequence[Any] | None, value: float | None = None, **changes: Any
) -> Measurement:
    if value is None:
        value = math.fsum(values or ()) / len(values or (1,))
    return replace(
        Measurement(
            key=KEY,
            metrics={"acc": value},
            units={},
            windows=2,
            windows_digest=DIGEST,
            corpus_digest=DIGEST,
            protocol=dict(MEAN),
            evidence=(),
            environment={},
            seconds=1.0,
            documents=documents(values) if values is not None else (),
            higher_is_better=("acc",),
        ),
        **changes,
    )


def held(
    new: Measurement,
    old: Measurement,
    tolerance: Tolerance | None,
    source: Source | None = None,
) -> Verdict:
    metric = new.quoted
    recorded = Recorded(
        metrics=old.metrics, source=source or Source("measured"), stderr=old.stderr
    )
    gate = MetricGate(
        checkpoint="m/x",
        key=KEY,
        metric=metric,
        tolerance=tolerance,
        origin="m.yaml:7",
        recorded_in="m.yaml:9",
        command="pytest m.yaml --ppl-update",
    )
    return judge_metric(
        gate,
        new,
        recorded,
        recorded_protocol=new.protocol,
        recorded_documents=old.documents,
    )


OLD = task([1] * 15 + [0] * 5)
LOST = task([0] * 9 + [1] * 6 + [1] + [0] * 4)
"""Nine of OLD's right answers lost, one gained."""


def test_regressed_in_full() -> None:
    error = math.sqrt(9 + 1 - 8**2 / 20) / 20
    p = 2 * (math.comb(10, 0) + math.comb(10, 1)) / 2**10
    assert f"{p:.2g}" == "0.021"
    verdict = held(LOST, OLD, Tolerance(sigma=2.0, direction="no-worse"))
    assert verdict.allowed[0] == pytest.approx(0.75 - 2 * error)
    exact = float(verdict.stderr.split()[0])
    low = 0.75 - 2.0 * exact
    assert exact == pytest.approx(error)
    assert verdict.allowed == (low, None)
    assert failure_text(verdict) == (
        "m/x lm-eval/piqa:2048: acc regressed by 53.33 %\n"
        "  baseline     0.75 (measured)\n"
        "  measured     0.35\n"
        f"  allowed      at least {low!r} (sigma 2, no-worse, m.yaml:7)\n"
        f"  std error    {exact!r} of the difference, paired by document\n"
        "  documents    9 of 20 got worse, 1 better (exact McNemar p = 0.021)\n"
        "  documents    worse: piqa 0, piqa 1, piqa 2 and 6 more\n"
        "  recorded in  m.yaml:9\n"
        "  to accept    pytest m.yaml --ppl-update"
    )
    docs = Path(__file__).parents[2] / "docs" / "baseline-files.md"
    assert failure_text(verdict) in docs.read_text(encoding="utf-8")
    assert summary_lines([verdict]) == [
        "m/x                            baseline   measured     change  outcome",
        "  lm-eval/piqa:2048",
        "    acc                            0.75       0.35   -53.33 %  REGRESSED",
        "      documents: 9 of 20 got worse, 1 better (exact McNemar p = 0.021)",
        "1 regressed",
    ]


def test_improved_names_what_got_better() -> None:
    verdict = held(OLD, LOST, Tolerance(sigma=2.0))
    assert (verdict.outcome, verdict.passed) == (Outcome.IMPROVED, False)
    assert verdict.documents == (
        "1 of 20 got worse, 9 better (exact McNemar p = 0.021)",
        "better: piqa 0, piqa 1, piqa 2 and 6 more",
    )
    passed = held(OLD, LOST, Tolerance(sigma=2.0, direction="no-worse"))
    assert (passed.outcome, passed.passed) == (Outcome.IMPROVED, True)


def test_of_some_metrics_less_is_better() -> None:
    low, high = (replace(m, higher_is_better=()) for m in (LOST, OLD))
    verdict = held(high, low, Tolerance(sigma=2.0))
    assert verdict.outcome is Outcome.REGRESSED
    assert "acc regressed by 114.29 %" in failure_text(verdict)
    assert verdict.documents[0].startswith("9 of 20 got worse, 1 better")
    assert held(low, high, Tolerance(abs=0.1)).outcome is Outcome.IMPROVED
    assert held(low, high, Tolerance(abs=0.1, direction="no-worse")).passed


@given(BITS, st.floats(1e-6, 1e3))
def test_identical_documents_pass_any_sigma(
    pairs: list[tuple[bool, bool]], sigma: float
) -> None:
    run = task([int(value) for value, _ in pairs])
    verdict = held(run, run, Tolerance(sigma=sigma))
    assert (verdict.outcome, verdict.passed) == (Outcome.WITHIN, True)
    assert verdict.documents == (f"none of {len(pairs)} moved",)
    value = run.metrics["acc"]
    assert verdict.allowed == (value, value)


def test_without_an_error_only_the_same_value_passes() -> None:
    # Every document fell: the difference has no variance.
    verdict = held(task([0, 0, 0]), task([1, 1, 1]), Tolerance(sigma=1e6))
    assert verdict.outcome is Outcome.REGRESSED
    assert verdict.allowed == (1.0, 1.0)


@given(BITS, st.floats(0.1, 5.0))
def test_the_allowed_bounds_are_the_doubles_that_decide(
    pairs: list[tuple[bool, bool]], sigma: float
) -> None:
    new, old = ([int(pair[i]) for pair in pairs] for i in (0, 1))
    verdict = held(task(new), task(old), Tolerance(sigma=sigma))
    if len(pairs) == 1 and new != old:
        assert verdict.outcome is Outcome.NOT_COMPARABLE
        return
    low, high = verdict.allowed
    assert low is not None
    assert high is not None
    assert verdict.passed == (low <= math.fsum(new) / len(new) <= high)


def test_unpaired() -> None:
    old = task(None, 0.5, stderr={"acc": 0.03})
    new = task([1, 0], 0.4, stderr={"acc": 0.04})
    verdict = held(new, old, Tolerance(sigma=1.9))
    error = math.sqrt(0.03**2 + 0.04**2)
    assert verdict.allowed == pytest.approx((0.5 - 1.9 * error, 0.5 + 1.9 * error))
    assert verdict.outcome is Outcome.REGRESSED
    assert verdict.stderr == (
        f"{math.hypot(0.03, 0.04)!r} of the difference, not paired (0.04 here, 0.03 "
        "then)"
    )
    assert held(new, old, Tolerance(sigma=2.1)).passed


PUBLISHED = Source("published", reference="Wanda, table 23", digits=2)
ASKS = "the gate asks for standard errors: "


@pytest.mark.parametrize(
    ("new", "old", "source", "reason"),
    [
        (
            OLD,
            task(None, 0.5),
            PUBLISHED,
            ASKS + "a published value has none, nor documents: write rel or abs",
        ),
        (
            OLD,
            task(None, 0.5),
            None,
            ASKS + "the baseline has neither that nor documents: record it again with "
            "the command",
        ),
        (
            task([0.25]),
            task([0.5]),
            None,
            ASKS + "1 documents are too few to tell one",
        ),
        (
            task([[1], [1]], 0.5),
            task([[1], [0]], 0.5),
            None,
            ASKS + "for acc none is recorded, and this plugin cannot resample what "
            "aggregates it: write rel or abs",
        ),
        (
            task([1, 1, 0]),
            task([1, 1]),
            None,
            "not the same documents: document 2 of piqa was not recorded",
        ),
    ],
    ids=["published", "no stderr", "one document", "not supported", "other documents"],
)
def test_not_comparable(
    new: Measurement, old: Measurement, source: Source | None, reason: str
) -> None:
    verdict = held(new, old, Tolerance(sigma=2.0), source)
    assert (verdict.outcome, verdict.passed) == (Outcome.NOT_COMPARABLE, False)
    assert verdict.reasons == (reason,)


@pytest.mark.parametrize(
    ("new", "old", "tolerance", "reason"),
    [
        (
            OLD,
            OLD,
            Tolerance(abs=2.0),
            "abs 2 can never fail: acc is between 0 and 1; write 0.02 for two points",
        ),
        (
            OLD,
            task([0, 0]),
            Tolerance(rel=0.05),
            "rel 0.05 is a share of the baseline, and that is 0.0: write abs or sigma",
        ),
        (
            task(None, 0.5),
            task(None, 0.5),
            Tolerance(sigma=2.0),
            "sigma counts standard errors of a task's documents, and lm-eval/piqa:2048 "
            "has none: write rel, abs or drift",
        ),
    ],
    ids=["abs", "rel of nothing", "windows"],
)
def test_a_gate_that_can_say_nothing(
    new: Measurement, old: Measurement, tolerance: Tolerance, reason: str
) -> None:
    verdict = held(new, old, tolerance)
    assert (verdict.outcome, verdict.passed) == (Outcome.ERROR, False)
    assert verdict.reasons == (reason,)


def test_a_baseline_of_nothing_right() -> None:
    old = task([0] * 20)
    verdict = held(task([1] * 9 + [0] * 11), old, Tolerance(sigma=2.0))
    assert (verdict.outcome, verdict.change) == (Outcome.IMPROVED, None)
    assert "acc improved, more than is allowed" in failure_text(verdict)


def test_the_default_of_a_task() -> None:
    verdict = held(LOST, OLD, None)
    assert verdict.outcome is Outcome.REGRESSED
    assert verdict.gate == "sigma 2, no-worse, the default"
    assert held(LOST, OLD, Tolerance()).gate == verdict.gate
    lost, old = (replace(run, higher_is_better=()) for run in (LOST, OLD))
    assert held(lost, old, None).gate == "rel 0.005, the default"


def test_a_limit_holds_beside_sigma() -> None:
    verdict = held(OLD, OLD, Tolerance(sigma=2.0, min=0.8))
    assert verdict.outcome is Outcome.REGRESSED
    assert verdict.allowed == (0.8, 0.75)
    assert "acc is below what is allowed" in failure_text(verdict)


def test_other_bounds_tell_the_documents_too() -> None:
    verdict = held(LOST, OLD, Tolerance(abs=0.1))
    assert verdict.allowed == (0.65, 0.85)
    assert verdict.documents[0].startswith("9 of 20 got worse, 1 better")


@pytest.mark.parametrize(
    ("run", "outcome"),
    [(OLD, Outcome.ERROR), (replace(OLD, higher_is_better=()), Outcome.WITHIN)],
)
def test_a_ratio_where_more_is_better(run: Measurement, outcome: Outcome) -> None:
    gate = RelativeGate(to="dense", key=KEY, max_ratio=1.1)
    verdict = judge_relative(
        "m/x", gate, "acc", measured=run, base=run, origin="m.yaml:3"
    )
    assert verdict.outcome is outcome
    if outcome is Outcome.ERROR:
        assert verdict.reasons == (
            "more is better of acc, and max_ratio would bound its better side: gate "
            "acc of lm-eval/piqa:2048 itself, with min or sigma",
        )


def test_values_that_are_not_positive() -> None:
    # A correlation from -0.5 to -0.25 rose by half, and was nothing at first.
    new, old = (task([1, 0], value) for value in (-0.25, -0.5))
    recorded = Recorded(old.metrics, Source("measured"), first={"acc": 0.0})
    gate = MetricGate("m/x", KEY, "acc", Tolerance(abs=0.1), "m.yaml:7", "", "")
    verdict = judge_metric(gate, new, recorded)
    assert (verdict.outcome, verdict.change) == (Outcome.IMPROVED, 0.5)
    assert "  first        0.0 (- since)\n" in failure_text(verdict)
