"""Judges one gate: measurement and baseline in, verdict out."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

from msgspec import Struct
from msgspec.structs import replace

from ..errors import BaselineError
from ..values import (
    FEWEST_WINDOWS,
    DocumentResult,
    Measurement,
    MetricName,
    Outcome,
    Recorded,
    RelativeGate,
    Scalar,
    Tolerance,
    Verdict,
    WindowScore,
    divergence_tolerance,
    near_matches,
    relative_change,
    task_tolerance,
)
from .bounds import Bounds, bounds, published_bounds
from .comparable import differences, environment_notes
from .documents import (
    PairedDocuments,
    document_lines,
    is_share,
    paired_documents,
)
from .early import early_text
from .paired import paired

DEFAULT_MEASURED = Tolerance(rel=0.005)
"""The same checkpoint measured again: 0.5 % covers other machines and versions."""

DEFAULT_PUBLISHED = Tolerance(rel=0.03)
"""A value from a paper: 3 % covers another calibration draw and rounding."""


class MetricGate(Struct, frozen=True):
    """Everything about a metric's gate but the numbers.

    ``tolerance`` None or without a bound takes the default for the kind of baseline.
    ``origin`` says where it comes from, for the reader. ``command`` accepts or records.
    """

    checkpoint: str
    key: str
    metric: str
    tolerance: Tolerance | None
    origin: str
    recorded_in: str
    command: str


def judge_metric(
    gate: MetricGate,
    measured: Measurement,
    recorded: Recorded | None,
    *,
    recorded_protocol: Mapping[str, Scalar] | None = None,
    recorded_windows: Sequence[WindowScore] = (),
    recorded_documents: Sequence[DocumentResult] = (),
    published: str = "accept",
) -> Verdict:
    """Hold one metric to its baseline.

    Args:
        gate: what is allowed.
        measured: the measurement of the gate's key.
        recorded: the baseline of that key, None if there is none.
        recorded_protocol: properties from the baseline's evidence.
        recorded_windows: its windows.
        recorded_documents: what came of its documents, of a task.
        published: ``accept``, ``warn`` or ``fail`` for a published value without
            evidence (ini ``ppl_published``).
    """
    verdict = Verdict(
        checkpoint=gate.checkpoint,
        key=gate.key,
        metric=gate.metric,
        outcome=Outcome.ERROR,
        passed=False,
        recorded_in=gate.recorded_in,
        windows=measured.windows,
        seconds=measured.seconds,
        cached=measured.cached,
    )
    if gate.metric not in measured.metrics:
        return replace(
            verdict,
            reasons=(no_metric(gate.key, gate.metric, measured.metrics),),
        )
    broken = [
        f"the measured {name} is {value}"
        for name, value in measured.metrics.items()
        if not math.isfinite(value)
    ]
    if broken:
        return replace(verdict, outcome=Outcome.INVALID, reasons=tuple(broken))
    value = measured.metrics[gate.metric]
    verdict = replace(verdict, measured=value, command=gate.command)
    if recorded is None or gate.metric not in recorded.metrics:
        return _without_baseline(gate, verdict, recorded)
    baseline = recorded.metrics[gate.metric]
    is_published = recorded.source.kind == "published"
    tolerance, origin = _effective(gate, baseline, measured, published=is_published)
    higher = measured.is_higher_better(gate.metric)
    allowed = (
        published_bounds(
            baseline, recorded.source.digits or 0, tolerance, higher_is_better=higher
        )
        if is_published
        else bounds(baseline, tolerance, higher_is_better=higher)
    )
    dtype, others = environment_notes(measured.environment, recorded.environment)
    verdict = replace(
        verdict,
        baseline=baseline,
        change=relative_change(value, baseline),
        allowed=(allowed.low, allowed.high),
        gate=origin,
        source=recorded.source.kind,
        first=_number(recorded.first.get(gate.metric)),
        published=_number(recorded.published.get(gate.metric)),
        reference=_reference(recorded, gate.metric),
        notes=others,
    )
    different = differences(measured, recorded, recorded_protocol, recorded_windows)
    if different:
        # A change would say how far two numbers are apart that mean different things.
        return replace(
            verdict, outcome=Outcome.NOT_COMPARABLE, change=None, reasons=different
        )
    if why := _cannot_mean(gate.metric, tolerance, baseline, measured):
        return replace(verdict, outcome=Outcome.ERROR, change=None, reasons=(why,))
    difference, why = _by_documents(
        gate.metric, tolerance, measured, recorded, recorded_documents
    )
    if difference is not None and tolerance.sigma is not None:
        allowed = bounds(
            baseline, tolerance, higher_is_better=higher, error=difference.error
        )
        verdict = replace(verdict, allowed=(allowed.low, allowed.high))
    if why:
        return replace(verdict, outcome=Outcome.NOT_COMPARABLE, reasons=(why,))
    verdict = _placed(verdict, measured, allowed)
    outcome, passed = verdict.outcome, verdict.passed
    if difference is not None:
        verdict = replace(
            verdict,
            stderr=difference.words,
            documents=document_lines(
                difference.documents,
                higher_is_better=higher,
                name_better=outcome is Outcome.IMPROVED,
            )
            if difference.documents is not None
            else (),
        )
    if passed and tolerance.drift is not None:
        verdict = _held_to_drift(verdict, measured, recorded_windows, tolerance.drift)
        passed = verdict.passed
    if dtype is not None:
        # It explains a failure better than anything else, and a pass needs no excuse.
        verdict = (
            replace(verdict, notes=(dtype, *others))
            if passed
            else replace(verdict, reasons=(dtype, *verdict.reasons))
        )
    if is_published and passed:
        remark = f"published, no evidence: {recorded.source.reference}"
        if published == "fail":
            return replace(
                verdict,
                outcome=Outcome.PLAUSIBLE,
                passed=False,
                reasons=(f"{remark} (ppl_published = fail)",),
            )
        return replace(
            verdict, outcome=Outcome.PLAUSIBLE, notes=(remark, *verdict.notes)
        )
    return verdict


def window_bounds(tolerance: Tolerance | None, baseline: float) -> Bounds:
    """The allowed range of a perplexity by a measured baseline."""
    filled, _ = _filled(tolerance, DEFAULT_MEASURED)
    return bounds(baseline, filled)


def no_metric(key: str, metric: MetricName, known: Iterable[MetricName]) -> str:
    """The words for a gate on a metric that its key does not yield."""
    yields = [*known]
    return (
        f"{key} has no metric {metric}{near_matches(metric, yields)}; it yields "
        f"{', '.join(yields)}"
    )


def judge_relative(
    checkpoint: str,
    gate: RelativeGate,
    metric: str,
    *,
    measured: Measurement,
    base: Measurement,
    origin: str,
) -> Verdict:
    """Bound measured / base, both measured in this run over the same windows."""
    verdict = Verdict(
        checkpoint=checkpoint,
        key=gate.key,
        metric=f"{metric} / {gate.to}",
        outcome=Outcome.WITHIN,
        passed=True,
        allowed=(None, gate.max_ratio),
        gate=f"max_ratio {gate.max_ratio:g} to {gate.to}, {origin}",
        windows=measured.windows,
        # Of two, the one that says more: how old the ratio may be.
        cached=min(filter(None, (measured.cached, base.cached)), default=""),
    )
    for each in (measured, base):
        if metric not in each.metrics:
            return replace(
                verdict,
                outcome=Outcome.ERROR,
                passed=False,
                reasons=(no_metric(gate.key, metric, each.metrics),),
            )
    value, reference = measured.metrics[metric], base.metrics[metric]
    if measured.is_higher_better(metric):
        return replace(
            verdict,
            outcome=Outcome.ERROR,
            passed=False,
            reasons=(
                f"more is better of {metric}, and max_ratio would bound its better "
                f"side: gate {metric} of {gate.key} itself, with min or sigma",
            ),
        )
    if not (math.isfinite(value) and math.isfinite(reference) and reference):
        return replace(
            verdict,
            outcome=Outcome.INVALID,
            passed=False,
            reasons=(f"measured {value}, {gate.to} {reference}",),
        )
    verdict = replace(
        verdict,
        measured=value / reference,
        notes=(f"{value:.6g} here, {reference:.6g} for {gate.to}",),
    )
    if measured.windows_digest != base.windows_digest:
        return replace(
            verdict,
            outcome=Outcome.NOT_COMPARABLE,
            passed=False,
            reasons=(
                f"{checkpoint} and {gate.to} cut the text into different token "
                "windows: their tokenizers differ",
            ),
        )
    if not value / reference <= gate.max_ratio:
        return replace(verdict, outcome=Outcome.REGRESSED, passed=False)
    return verdict


class _Difference(Struct, frozen=True):
    """The standard error of a metric's difference from its baseline, in words too."""

    error: float | None
    words: str = ""
    documents: PairedDocuments | None = None


def _cannot_mean(
    metric: str, tolerance: Tolerance, baseline: float, measured: Measurement
) -> str:
    """Why a tolerance can say nothing of a metric; empty where it can."""
    share = is_share(metric, measured.documents, measured.protocol)
    if tolerance.abs is not None and tolerance.abs >= 1 and share:
        return (
            f"abs {tolerance.abs:g} can never fail: {metric} is between 0 and 1; write "
            "0.02 for two points"
        )
    if tolerance.rel is not None and measured.documents and baseline <= 0:
        return (
            f"rel {tolerance.rel:g} is a share of the baseline, and that is "
            f"{baseline!r}: write abs or sigma"
        )
    if tolerance.sigma is not None and not (measured.documents or measured.stderr):
        return (
            f"sigma counts standard errors of a task's documents, and {measured.key} "
            "has none: write rel, abs or drift"
        )
    return ""


def _by_documents(
    metric: str,
    tolerance: Tolerance,
    measured: Measurement,
    recorded: Recorded,
    recorded_documents: Sequence[DocumentResult],
) -> tuple[_Difference | None, str]:
    """How sure the difference is, or why that cannot be told though a gate asks."""
    asked = tolerance.sigma is not None
    found: PairedDocuments | None = None
    if measured.documents and recorded_documents:
        try:
            found = paired_documents(
                metric,
                measured.documents,
                recorded_documents,
                measured.protocol,
                resample=asked,
            )
        except BaselineError as other:
            return None, f"not the same documents: {other}"
    if found is not None and found.error is not None:
        words = f"{found.error!r} of the difference, paired by document"
        return _Difference(found.error, words, found), ""
    here, there = measured.stderr.get(metric), recorded.stderr.get(metric)
    if here is not None and there is not None:
        error = math.hypot(here, there)
        words = (
            f"{error!r} of the difference, not paired ({here!r} here, {there!r} then)"
        )
        return _Difference(error, words, found), ""
    if not asked:
        return (_Difference(None, "", found) if found is not None else None), ""
    if recorded.source.kind == "published":
        why = "a published value has none, nor documents: write rel or abs"
    elif found is not None:
        why = f"{found.documents} documents are too few to tell one"
    elif measured.documents and recorded_documents:
        why = (
            f"for {metric} none is recorded, and this plugin cannot resample what "
            "aggregates it: write rel or abs"
        )
    else:
        side = "the baseline" if there is None else "this measurement"
        why = f"{side} has neither that nor documents: record it again with the command"
    return None, f"the gate asks for standard errors: {why}"


def _held_to_drift(
    verdict: Verdict,
    measured: Measurement,
    recorded_windows: Sequence[WindowScore],
    limit: float,
) -> Verdict:
    """A verdict that has passed all else, held to its ``drift``."""
    drift = None
    if recorded_windows:
        drift = paired(measured.evidence, recorded_windows).divergence
    if drift is None:
        why = (
            f"there are {measured.windows}, and {FEWEST_WINDOWS} are needed"
            if recorded_windows
            else "the baseline has none"
        )
        return replace(
            verdict,
            outcome=Outcome.NOT_COMPARABLE,
            passed=False,
            reasons=(f"the gate asks for drift, which windows tell: {why}",),
        )
    if drift <= limit:
        return replace(verdict, notes=(*verdict.notes, f"drift {drift:.2g}"))
    return replace(
        verdict,
        outcome=Outcome.CHANGED,
        passed=False,
        reasons=(
            f"the predictions drifted by {drift!r} nats a token (estimated from the "
            f"windows), allowed is {limit!r}",
        ),
    )


def _without_baseline(
    gate: MetricGate, verdict: Verdict, recorded: Recorded | None
) -> Verdict:
    """No baseline, so no windows to compare with: red, also within ``min`` and ``max``.

    A bound that is broken as well is told.
    """
    limits = gate.tolerance or Tolerance()
    allowed, value = Bounds(limits.min, limits.max), verdict.measured
    written = describe(gate.tolerance) if gate.tolerance is not None else ""
    reasons = [
        f"no baseline is recorded for {gate.checkpoint} {gate.key}"
        if recorded is None
        else f"the baseline of {gate.key} has no {gate.metric}"
    ]
    if value is not None and allowed.above(value):
        reasons.append(f"and {value!r} is above max {limits.max!r}")
    if value is not None and allowed.below(value):
        reasons.append(f"and {value!r} is below min {limits.min!r}")
    return replace(
        verdict,
        outcome=Outcome.MISSING,
        allowed=(limits.min, limits.max),
        gate=", ".join(filter(None, (written, gate.origin))),
        reasons=tuple(reasons),
    )


def _effective(
    gate: MetricGate, baseline: float, measured: Measurement, *, published: bool
) -> tuple[Tolerance, str]:
    default = DEFAULT_PUBLISHED if published else DEFAULT_MEASURED
    default = divergence_tolerance(gate.metric, baseline) or default
    if not published:
        default = task_tolerance(gate.metric, measured) or default
    tolerance, is_default = _filled(gate.tolerance, default)
    origin = "the default" if is_default else gate.origin
    return tolerance, f"{describe(tolerance)}, {origin}"


def _filled(tolerance: Tolerance | None, default: Tolerance) -> tuple[Tolerance, bool]:
    """The default where no bound is written, and whether it is that."""
    if tolerance is None or tolerance == Tolerance():
        return default, True
    if tolerance == Tolerance(direction=tolerance.direction):
        return replace(default, direction=tolerance.direction), True
    return tolerance, False


def describe(tolerance: Tolerance) -> str:
    """A tolerance as people write it: ``rel 0.005, no-worse``."""
    parts = [
        f"{name} {bound:g}"
        for name in ("rel", "abs", "sigma", "max", "min", "drift")
        if (bound := getattr(tolerance, name)) is not None
    ]
    if tolerance.direction != "both":
        parts.append(tolerance.direction)
    return ", ".join(parts)


def _placed(verdict: Verdict, measured: Measurement, allowed: Bounds) -> Verdict:
    """The verdict, its value held to its bounds."""
    metric = verdict.metric
    early = measured.early
    if early is None:
        higher = measured.is_higher_better(metric)
        outcome, passed = _place(
            measured.metrics[metric], allowed, higher_is_better=higher
        )
        return replace(verdict, outcome=outcome, passed=passed)
    # The value is an estimate, and may lie beyond a bound that all windows keep: what
    # is known is where the whole run's would be.
    outcome = Outcome(early.decided[metric])
    return replace(
        verdict,
        outcome=outcome,
        passed=outcome is Outcome.WITHIN,
        early=early_text(early, metric),
    )


def _place(
    value: float, allowed: Bounds, *, higher_is_better: bool
) -> tuple[Outcome, bool]:
    worse, better = allowed.above(value), allowed.below(value)
    usual = Bounds(low=allowed.usual, high=None).below(value)
    if higher_is_better:
        worse, better = better, worse
        usual = Bounds(low=None, high=allowed.usual).above(value)
    if worse:
        return Outcome.REGRESSED, False
    if better:
        return Outcome.IMPROVED, False
    return (Outcome.IMPROVED if usual else Outcome.WITHIN), True


def _reference(recorded: Recorded, metric: str) -> str:
    """Where the metric was published, now or before it was measured."""
    if metric in recorded.published:
        return str(recorded.published.get("reference") or "")
    return recorded.source.reference or ""


def _number(value: Scalar) -> float | None:
    return float(value) if isinstance(value, int | float) else None
