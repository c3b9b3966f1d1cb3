"""Every outcome of a gate, its bounds as doubles, and what makes numbers comparable."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from pytest_pplguard.gates import (
    MetricGate,
    bounds,
    judge_metric,
    judge_relative,
    published_bounds,
)
from pytest_pplguard.report import brief, failure_text
from pytest_pplguard.values import (
    Measurement,
    Outcome,
    Recorded,
    RelativeGate,
    Scalar,
    Source,
    Tolerance,
    Verdict,
    WindowScore,
)

POSITIVE = st.floats(1e-3, 1e6)
WINDOWS, TEXT = "sha256:" + "a" * 64, "sha256:" + "b" * 64
PROTOCOL: dict[str, Scalar] = {
    "window": 4096,
    "first token": "BOS 1",
    "official text": True,
}
ENVIRONMENT: dict[str, Scalar] = {
    "dtype": "float16",
    "device": "cuda",
    "torch": "2.13.0",
}


def measurement(value: float, **changes: Any) -> Measurement:
    return replace(
        Measurement(
            key="wanda/wikitext2:4096",
            metrics={"token_perplexity": value},
            units={"tokens": 339_885},
            windows=83,
            windows_digest=WINDOWS,
            corpus_digest=TEXT,
            protocol=dict(PROTOCOL),
            evidence=(WindowScore(1.0, 1),),
            environment=dict(ENVIRONMENT),
            seconds=1.0,
        ),
        **changes,
    )


def baseline(value: float = 6.0, **changes: Any) -> Recorded:
    return replace(
        Recorded(
            metrics={"token_perplexity": value},
            source=Source("measured"),
            windows=83,
            units={"tokens": 339_885},
            windows_digest=WINDOWS,
            corpus_digest=TEXT,
            evidence="m/wanda-50/x.json",
            environment=dict(ENVIRONMENT),
        ),
        **changes,
    )


PUBLISHED = Recorded(
    metrics={"token_perplexity": 6.42},
    source=Source("published", reference="locuslab/wanda README", digits=2),
)


def gate(tolerance: Tolerance | None = None) -> MetricGate:
    return MetricGate(
        checkpoint="m/wanda-50",
        key="wanda/wikitext2:4096",
        metric="token_perplexity",
        tolerance=tolerance,
        origin="baselines/m.yaml:7",
        recorded_in="baselines/m.yaml:12",
        command="pytest m.yaml --ppl-update",
    )


def judge(
    value: float | Measurement,
    recorded: Recorded | None = None,
    tolerance: Tolerance | None = None,
    **options: Any,
) -> Verdict:
    measured = value if isinstance(value, Measurement) else measurement(value)
    options.setdefault("recorded_protocol", PROTOCOL)
    return judge_metric(gate(tolerance), measured, recorded or baseline(), **options)


# ------------------------------------------------------------------------------ bounds


@given(value=POSITIVE, rel=st.floats(0, 10))
def test_the_printed_bounds_are_inside(value: float, rel: float) -> None:
    allowed = bounds(value, Tolerance(rel=rel))
    assert allowed.low == value / (1 + rel)
    assert allowed.high == value * (1 + rel)
    for edge in (allowed.low, allowed.high):
        assert judge(float(repr(edge)), baseline(value), Tolerance(rel=rel)).passed


@given(value=POSITIVE, rel=st.floats(0, 1))
def test_the_next_double_is_outside(value: float, rel: float) -> None:
    allowed = bounds(value, Tolerance(rel=rel))
    assert allowed.low is not None
    assert allowed.high is not None
    above = math.nextafter(allowed.high, math.inf)
    below = math.nextafter(allowed.low, -math.inf)
    recorded, tolerance = baseline(value), Tolerance(rel=rel)
    assert judge(above, recorded, tolerance).outcome is Outcome.REGRESSED
    assert judge(below, recorded, tolerance).outcome is Outcome.IMPROVED


def test_every_bound_that_is_written_holds() -> None:
    allowed = bounds(6.0, Tolerance(rel=0.5, abs=1.0, max=6.5))
    assert (allowed.low, allowed.high) == (5.0, 6.5)
    alone = bounds(6.0, Tolerance(max=6.5))
    assert (alone.low, alone.high) == (None, 6.5)


def test_no_worse_opens_the_better_side_but_for_a_limit() -> None:
    tolerance = Tolerance(rel=0.5, abs=0.1, max=0.95, min=0.2, direction="no-worse")
    worse_above = bounds(0.6, tolerance)
    assert (worse_above.low, worse_above.high) == (0.2, 0.7)
    worse_below = bounds(0.6, tolerance, higher_is_better=True)
    assert (worse_below.low, worse_below.high) == (0.5, 0.95)
    only_abs = Tolerance(abs=0.1, direction="no-worse")
    open_above = bounds(0.6, only_abs, higher_is_better=True)
    assert (open_above.low, open_above.high) == (0.5, None)


def test_a_published_value_stands_for_all_that_print_like_it() -> None:
    allowed = published_bounds(5.12, 2, Tolerance(rel=0.0))
    assert allowed.low == pytest.approx(5.115)
    assert allowed.high == pytest.approx(5.125)


def test_nothing_is_rounded_first() -> None:
    """0.945 must not pass a recovery of 0.95, nor 3.0049 % one of 3 %."""
    assert not judge(6.0 * 1.030049, tolerance=Tolerance(rel=0.03)).passed


# ---------------------------------------------------------------------------- outcomes


def test_within() -> None:
    verdict = judge(6.01)
    assert (verdict.outcome, verdict.passed) == (Outcome.WITHIN, True)
    assert verdict.gate == "rel 0.005, the default"


@given(value=st.sampled_from([math.nan, math.inf, -math.inf]), rel=st.floats(0, 10))
def test_a_number_that_is_not_finite_never_passes(value: float, rel: float) -> None:
    verdict = judge(value, tolerance=Tolerance(rel=rel))
    assert (verdict.outcome, verdict.passed) == (Outcome.INVALID, False)


def test_a_further_metric_that_is_nan_is_invalid() -> None:
    measured = measurement(
        6.0, metrics={"token_perplexity": 6.0, "bits_per_byte": math.nan}
    )
    assert judge(measured).outcome is Outcome.INVALID


def test_regressed_in_full() -> None:
    assert failure_text(judge(6.06, tolerance=Tolerance(rel=0.005))) == (
        "m/wanda-50 wanda/wikitext2:4096: token_perplexity regressed by 1.00 %\n"
        "  baseline     6.0 (measured)\n"
        "  measured     6.06\n"
        "  allowed      5.970149253731344 .. 6.029999999999999 "
        "(rel 0.005, baselines/m.yaml:7)\n"
        "  recorded in  baselines/m.yaml:12\n"
        "  to accept    pytest m.yaml --ppl-update"
    )


def test_improved_fails_both_ways_and_passes_no_worse() -> None:
    verdict = judge(5.0)
    assert (verdict.outcome, verdict.passed) == (Outcome.IMPROVED, False)
    assert failure_text(verdict).splitlines()[0] == (
        "m/wanda-50 wanda/wikitext2:4096: token_perplexity improved by 16.67 %, more "
        "than is allowed"
    )
    verdict = judge(5.0, tolerance=Tolerance(rel=0.03, direction="no-worse"))
    assert (verdict.outcome, verdict.passed) == (Outcome.IMPROVED, True)
    assert verdict.allowed[0] is None


def test_no_worse_alone_takes_the_default_width() -> None:
    verdict = judge(6.04, tolerance=Tolerance(direction="no-worse"))
    assert verdict.outcome is Outcome.REGRESSED
    assert verdict.gate == "rel 0.005, no-worse, the default"


def test_above_max_without_being_worse_than_the_baseline() -> None:
    verdict = judge(6.0, tolerance=Tolerance(max=5.9))
    assert failure_text(verdict).splitlines()[0] == (
        "m/wanda-50 wanda/wikitext2:4096: token_perplexity is above what is allowed"
    )
    assert brief([verdict]) == (
        "m/wanda-50 wanda/wikitext2:4096: token_perplexity is above what is allowed: "
        "measured 6.0, allowed at most 5.9"
    )


def test_missing_in_full() -> None:
    verdict = judge_metric(gate(Tolerance(max=5.0)), measurement(6.0), None)
    assert (verdict.outcome, verdict.passed) == (Outcome.MISSING, False)
    assert failure_text(verdict) == (
        "m/wanda-50 wanda/wikitext2:4096: token_perplexity has no baseline\n"
        "  measured     6.0\n"
        "  allowed      at most 5.0 (max 5, baselines/m.yaml:7)\n"
        "  recorded in  baselines/m.yaml:12\n"
        "  because      no baseline is recorded for m/wanda-50 wanda/wikitext2:4096\n"
        "  because      and 6.0 is above max 5.0\n"
        "  to record    pytest m.yaml --ppl-update"
    )


def test_a_metric_that_was_never_recorded_is_missing() -> None:
    recorded = baseline(metrics={"word_perplexity": 8.0})
    verdict = judge(6.0, recorded)
    assert verdict.reasons == (
        "the baseline of wanda/wikitext2:4096 has no token_perplexity",
    )


def test_a_metric_that_vanished_is_not_comparable() -> None:
    recorded = baseline(metrics={"token_perplexity": 6.0, "word_perplexity": 8.0})
    verdict = judge(6.0, recorded)
    assert (verdict.outcome, verdict.passed) == (Outcome.NOT_COMPARABLE, False)
    assert verdict.reasons == ("metric word_perplexity was not measured, baseline 8",)


def test_a_gate_on_a_metric_that_the_method_lacks() -> None:
    wrong = replace(gate(), metric="word_perplexity")
    verdict = judge_metric(wrong, measurement(6.0), baseline())
    assert (verdict.outcome, verdict.passed) == (Outcome.ERROR, False)
    assert verdict.reasons == (
        "wanda/wikitext2:4096 has no metric word_perplexity (did you mean "
        "'token_perplexity'?); it yields token_perplexity",
    )


def test_plausible_by_policy() -> None:
    accepted = judge(6.5, PUBLISHED)
    assert (accepted.outcome, accepted.passed) == (Outcome.PLAUSIBLE, True)
    assert accepted.notes[0] == "published, no evidence: locuslab/wanda README"
    assert accepted.gate == "rel 0.03, the default"
    refused = judge(6.5, PUBLISHED, published="fail")
    assert (refused.outcome, refused.passed) == (Outcome.PLAUSIBLE, False)
    assert judge(6.7, PUBLISHED).outcome is Outcome.REGRESSED


def test_a_published_baseline_says_where_in_a_failure() -> None:
    assert failure_text(judge(8.0, PUBLISHED)) == (
        "m/wanda-50 wanda/wikitext2:4096: token_perplexity regressed by 24.61 %\n"
        "  baseline     6.42 (published: locuslab/wanda README)\n"
        "  measured     8.0\n"
        f"  allowed      {6.415 / 1.03!r} .. {6.425 * 1.03!r} (rel 0.03, the default)\n"
        "  recorded in  baselines/m.yaml:12\n"
        "  to accept    pytest m.yaml --ppl-update"
    )


def test_what_was_published_is_told_beside_a_measured_baseline() -> None:
    recorded = baseline(
        published={"token_perplexity": 6.42, "reference": "a README", "digits": 2}
    )
    verdict = judge(6.01, recorded)
    assert verdict.outcome is Outcome.WITHIN
    assert (verdict.published, verdict.reference) == (6.42, "a README")
    assert failure_text(judge(8.0, recorded)).splitlines()[4] == (
        "  published    6.42 (a README; +24.61 % here)"
    )
    other = baseline(published={"word_perplexity": 11.22, "reference": "a README"})
    verdict = judge(6.01, other)
    assert (verdict.published, verdict.reference) == (None, "")


def test_a_published_value_needs_the_official_text() -> None:
    other = measurement(6.42, protocol=PROTOCOL | {"official text": False})
    verdict = judge(other, PUBLISHED, recorded_protocol=None)
    assert verdict.outcome is Outcome.NOT_COMPARABLE
    assert verdict.reasons == (
        "text is not the official test split, which the value was published for",
    )


# ---------------------------------------------------------------------- not comparable


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        (
            {"protocol": PROTOCOL | {"window": 2048}},
            "window 2048, baseline 4096",
        ),
        (
            {"protocol": PROTOCOL | {"first token": "none"}},
            "first token none, baseline BOS 1",
        ),
        ({"units": {"tokens": 341_000}}, "tokens 341000, baseline 339885"),
        ({"windows": 82}, "windows 82, baseline 83"),
        (
            {"corpus_digest": "sha256:" + "c" * 64},
            "text cccccccccccc, baseline bbbbbbbbbbbb",
        ),
        (
            {"windows_digest": "sha256:" + "c" * 64},
            "tokenizer: the same text has other ids (token windows cccccccccccc, "
            "baseline aaaaaaaaaaaa)",
        ),
    ],
)
def test_each_property_makes_it_not_comparable(
    changes: dict[str, Any], reason: str
) -> None:
    verdict = judge(measurement(6.0, **changes))
    assert (verdict.outcome, verdict.passed) == (Outcome.NOT_COMPARABLE, False)
    assert verdict.reasons == (reason,)


def test_not_comparable_in_full() -> None:
    changed = measurement(
        9.0,
        protocol=PROTOCOL | {"window": 2048},
        windows=166,
        units={"tokens": 339_802},
    )
    assert failure_text(judge(changed)) == (
        "m/wanda-50 wanda/wikitext2:4096: token_perplexity is not comparable to its "
        "baseline\n"
        "  baseline     6.0 (measured)\n"
        "  measured     9.0\n"
        "  allowed      5.970149253731344 .. 6.029999999999999 "
        "(rel 0.005, the default)\n"
        "  recorded in  baselines/m.yaml:12\n"
        "  because      window 2048, baseline 4096\n"
        "  because      tokens 339802, baseline 339885\n"
        "  because      windows 166, baseline 83\n"
        "  to accept    pytest m.yaml --ppl-update"
    )
    assert brief([judge(changed)]) == (
        "m/wanda-50 wanda/wikitext2:4096: token_perplexity is not comparable to its "
        "baseline: window 2048, baseline 4096; tokens 339802, baseline 339885; "
        "windows 166, baseline 83"
    )


# ------------------------------------------------------------------------- environment


def test_another_dtype_leads_a_failure() -> None:
    measured = measurement(8.0, environment=ENVIRONMENT | {"dtype": "bfloat16"})
    lines = failure_text(judge(measured)).splitlines()
    assert lines[0] == "dtype bfloat16, baseline float16"
    assert lines[1].endswith("token_perplexity regressed by 33.33 %")


def test_another_dtype_does_not_fail_a_number_that_is_within() -> None:
    measured = measurement(
        6.0, environment=ENVIRONMENT | {"dtype": "bfloat16", "torch": "2.14.0"}
    )
    verdict = judge(measured)
    assert verdict.passed
    assert verdict.notes == (
        "dtype bfloat16, baseline float16",
        "torch 2.14.0, baseline 2.13.0",
    )


def test_drift_since_the_first_record_is_shown() -> None:
    verdict = judge(
        6.5, baseline(first={"token_perplexity": 5.0, "date": "2026-01-01"})
    )
    assert "  first        5.0 (+30.00 % since)" in failure_text(verdict)


# ---------------------------------------------------------------- relative


def relative(value: float, base: float, **changes: Any) -> Verdict:
    return judge_relative(
        "m/wanda-50",
        RelativeGate("dense", "wanda/wikitext2:4096", 1.3),
        "token_perplexity",
        measured=measurement(value, **changes),
        base=measurement(base),
        origin="baselines/m.yaml:9",
    )


def test_relative() -> None:
    assert relative(6.5, 5.0).passed
    verdict = relative(6.6, 5.0)
    assert (verdict.outcome, verdict.passed) == (Outcome.REGRESSED, False)
    assert failure_text(verdict) == (
        "m/wanda-50 wanda/wikitext2:4096: token_perplexity / dense regressed\n"
        "  measured     1.3199999999999998\n"
        "  allowed      at most 1.3 (max_ratio 1.3 to dense, "
        "baselines/m.yaml:9)\n"
        "  note         6.6 here, 5 for dense"
    )


def test_relative_by_a_metric_that_a_task_lacks() -> None:
    measured = measurement(5.0)
    verdict = judge_relative(
        "m/wanda-50",
        RelativeGate("dense", measured.key, 1.3, "acc_nrom"),
        "acc_nrom",
        measured=measured,
        base=measured,
        origin="baselines/m.yaml:9",
    )
    assert (verdict.outcome, verdict.passed) == (Outcome.ERROR, False)
    assert verdict.reasons == (
        f"{measured.key} has no metric acc_nrom; it yields token_perplexity",
    )


def test_relative_to_other_windows_is_not_comparable() -> None:
    verdict = relative(5.0, 5.0, windows_digest="sha256:" + "c" * 64)
    assert (verdict.outcome, verdict.passed) == (Outcome.NOT_COMPARABLE, False)


@pytest.mark.parametrize(("value", "base"), [(math.nan, 5.0), (5.0, math.inf)])
def test_relative_of_what_is_not_finite(value: float, base: float) -> None:
    assert relative(value, base).outcome is Outcome.INVALID


# -------------------------------------------------------------------------- divergence

APART = (
    WindowScore(5.0, 5, kl_sum=0.25, top1=4, reference_nll=4.0),
    WindowScore(5.0, 5, kl_sum=0.25, top1=5, reference_nll=4.0),
)


def judge_divergence(
    metric: str,
    value: float,
    tolerance: Tolerance | None = None,
    *,
    base: float | None = None,
    windows: tuple[WindowScore, ...] = APART,
    **changes: Any,
) -> Verdict:
    before = {"kl_divergence": 0.05, "top1_agreement": 0.9}
    if base is not None:
        before[metric] = base
    changes.setdefault("evidence", APART)
    return judge_metric(
        replace(gate(tolerance), metric=metric, key="kl/wikitext2:4096"),
        measurement(0.0, metrics=before | {metric: value}, **changes),
        baseline(0.0, metrics=before),
        recorded_protocol=PROTOCOL,
        recorded_windows=windows,
    )


@pytest.mark.parametrize(
    ("value", "tolerance", "outcome", "passed"),
    [
        (0.9, Tolerance(abs=0.01), Outcome.WITHIN, True),
        (0.88, Tolerance(abs=0.01), Outcome.REGRESSED, False),
        (0.92, Tolerance(abs=0.01), Outcome.IMPROVED, False),
        (0.92, Tolerance(abs=0.01, direction="no-worse"), Outcome.IMPROVED, True),
        (0.88, Tolerance(abs=0.01, direction="no-worse"), Outcome.REGRESSED, False),
        (0.89, Tolerance(min=0.9), Outcome.REGRESSED, False),
        (0.9, Tolerance(min=0.9), Outcome.WITHIN, True),
        (0.93, Tolerance(max=0.92, direction="no-worse"), Outcome.IMPROVED, False),
        (0.8951, None, Outcome.WITHIN, True),
        (0.8949, None, Outcome.REGRESSED, False),
    ],
)
def test_more_agreement_is_better(
    value: float, tolerance: Tolerance | None, outcome: Outcome, passed: bool
) -> None:
    verdict = judge_divergence("top1_agreement", value, tolerance)
    assert (verdict.outcome, verdict.passed) == (outcome, passed)


def test_lost_agreement_in_full() -> None:
    tolerance = Tolerance(abs=0.01, min=0.85, direction="no-worse")
    assert failure_text(judge_divergence("top1_agreement", 0.84, tolerance)) == (
        "m/wanda-50 kl/wikitext2:4096: top1_agreement regressed by 6.67 %\n"
        "  baseline     0.9 (measured)\n"
        "  measured     0.84\n"
        "  allowed      at least 0.89 (abs 0.01, min 0.85, no-worse, "
        "baselines/m.yaml:7)\n"
        "  recorded in  baselines/m.yaml:12\n"
        "  to accept    pytest m.yaml --ppl-update"
    )
    verdict = judge_divergence("top1_agreement", 0.9, Tolerance(min=0.95))
    assert failure_text(verdict).splitlines()[0] == (
        "m/wanda-50 kl/wikitext2:4096: top1_agreement is below what is allowed"
    )


@pytest.mark.parametrize(
    ("base", "value", "passed"),
    [
        (0.05, 0.0509, True),
        (0.05, 0.0511, False),
        (0.05, 0.0489, False),
        (0.004, 0.00409, True),
        (0.004, 0.00411, False),
        (0.0, 0.0, True),
        (0.0, 0.00009, True),
        (0.0, 0.00011, False),
    ],
)
def test_the_default_for_a_divergence(base: float, value: float, passed: bool) -> None:
    """Two per cent; of a small one, a ten-thousandth of a nat."""
    for tolerance in (None, Tolerance(), Tolerance(direction="no-worse")):
        verdict = judge_divergence("kl_divergence", value, tolerance, base=base)
        lower = value < base and tolerance == Tolerance(direction="no-worse")
        assert verdict.passed is (passed or lower)


def test_a_baseline_of_nothing_has_no_relative_change() -> None:
    verdict = judge_divergence("kl_divergence", 0.1, Tolerance(rel=0.05), base=0.0)
    assert failure_text(verdict).splitlines()[:4] == [
        "m/wanda-50 kl/wikitext2:4096: kl_divergence regressed",
        "  baseline     0.0 (measured)",
        "  measured     0.1",
        "  allowed      0.0 .. 0.0 (rel 0.05, baselines/m.yaml:7)",
    ]


def test_min_without_a_baseline_is_told() -> None:
    tolerance = Tolerance(min=0.95, max=0.99)
    verdict = judge_metric(
        replace(gate(tolerance), metric="top1_agreement"),
        measurement(0.0, metrics={"top1_agreement": 0.9}),
        None,
    )
    assert (verdict.outcome, verdict.passed) == (Outcome.MISSING, False)
    assert verdict.allowed == (0.95, 0.99)
    assert verdict.reasons[1:] == ("and 0.9 is below min 0.95",)


@pytest.mark.parametrize(
    ("loss", "reason"),
    [
        (4.0, None),
        (4.0 * 1.0005, None),
        (
            4.1,
            "the reference is another model (perplexity 2.24791, baseline 2.22554)",
        ),
    ],
)
def test_another_reference_is_not_comparable(loss: float, reason: str | None) -> None:
    here = tuple(replace(score, reference_nll=loss) for score in APART[:1])
    verdict = judge_divergence(
        "kl_divergence", 0.05, evidence=(*here, APART[1]), windows=APART
    )
    if reason is None:
        assert verdict.outcome is Outcome.WITHIN
    else:
        assert verdict.outcome is Outcome.NOT_COMPARABLE
        assert verdict.reasons == (reason,)


# ------------------------------------------------------------------------------- drift

CALM: tuple[WindowScore, ...] = tuple(WindowScore(100.0, 50) for _ in range(10))


def moved(by: float) -> tuple[WindowScore, ...]:
    """Every other window better by so much, the rest worse: the mean stays."""
    return tuple(WindowScore(100.0 + by * (-1) ** i, 50) for i in range(10))


def judge_drift(
    by: float, tolerance: Tolerance, *, value: float = 6.0, **changes: Any
) -> Verdict:
    windows: int = changes.setdefault("windows", len(CALM))
    changes.setdefault("evidence", moved(by))
    return judge(
        measurement(value, **changes),
        baseline(windows=windows),
        tolerance,
        recorded_windows=CALM[:windows],
    )


def test_a_mean_that_stays_while_the_predictions_drift() -> None:
    # Sums that scatter by 0.5 over windows of 50 tokens: Var / 2n, with W - 1 of 10.
    drift = 10 * 0.5**2 / 9 / (2 * 50)
    verdict = judge_drift(0.5, Tolerance(rel=0.005, drift=0.0027))
    assert verdict.outcome is Outcome.CHANGED
    said = float(verdict.reasons[0].split()[4])
    assert said == pytest.approx(drift, rel=1e-12)
    assert failure_text(verdict) == (
        "m/wanda-50 wanda/wikitext2:4096: token_perplexity: within its bounds, but the "
        "predictions drifted\n"
        "  baseline     6.0 (measured)\n"
        "  measured     6.0\n"
        "  allowed      5.970149253731344 .. 6.029999999999999 (rel 0.005, drift "
        "0.0027, baselines/m.yaml:7)\n"
        "  recorded in  baselines/m.yaml:12\n"
        f"  because      the predictions drifted by {said!r} nats a token (estimated "
        "from the windows), allowed is 0.0027\n"
        "  to accept    pytest m.yaml --ppl-update"
    )
    passed = judge_drift(0.5, Tolerance(rel=0.005, drift=0.0028))
    assert passed.passed
    assert passed.notes == ("drift 0.0028",)


def test_what_regressed_is_not_said_to_have_drifted() -> None:
    verdict = judge_drift(0.5, Tolerance(rel=0.005, drift=0.0), value=6.1)
    assert (verdict.outcome, verdict.reasons) == (Outcome.REGRESSED, ())


def test_too_few_windows_tell_no_drift() -> None:
    few: dict[str, Any] = {"evidence": moved(0.0)[:8], "windows": 8}
    verdict = judge_drift(0.0, Tolerance(rel=0.005, drift=0.0027), **few)
    assert (verdict.outcome, verdict.passed) == (Outcome.NOT_COMPARABLE, False)
    assert verdict.reasons == (
        "the gate asks for drift, which windows tell: there are 8, and 9 are needed",
    )


def test_a_published_value_tells_no_drift() -> None:
    verdict = judge(6.42, PUBLISHED, Tolerance(rel=0.03, drift=0.003))
    assert verdict.outcome is Outcome.NOT_COMPARABLE
    assert verdict.reasons == (
        "the gate asks for drift, which windows tell: the baseline has none",
    )


def test_drift_in_another_dtype_begins_with_the_dtype() -> None:
    other: dict[str, Any] = {"environment": ENVIRONMENT | {"dtype": "float32"}}
    verdict = judge_drift(0.5, Tolerance(drift=0.0027), **other)
    assert verdict.reasons[0] == "dtype float32, baseline float16"
    assert verdict.reasons[1].startswith("the predictions drifted by 0.00277")
