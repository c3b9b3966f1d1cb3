"""What the documents of a task say of a change: measured and recorded, paired. Pure."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from msgspec import Struct

from ..errors import BaselineError
from ..values import AGGREGATION, ALIKE, DocumentResult, MetricName, Scalar

RESAMPLES = 1_000
SEED = 1234
"""lm-eval's own; any other would do, but it must not change."""

MOST_NAMED = 3

Aggregate = Callable[[list[Any]], float]


class DocumentChange(Struct, frozen=True):
    """A document whose value moved; ``change`` is measured - recorded."""

    task: str
    document: int
    change: float


class PairedDocuments(Struct, frozen=True):
    """Two runs of a task over the same documents; differences: measured - recorded.

    ``error`` is the standard error of the metric's difference, None where the documents
    are too few to tell one. ``how`` says what it comes from. ``risen`` and ``fallen``
    are the documents whose value went up and down, in their order, but where values are
    no 0 and 1 the largest change first; none are told where a value is no number.
    ``p`` is the exact two-sided McNemar p-value, None but for values of 0 and 1.
    """

    documents: int
    error: float | None
    how: Literal["mcnemar", "mean", "bootstrap"]
    risen: tuple[DocumentChange, ...] = ()
    fallen: tuple[DocumentChange, ...] = ()
    p: float | None = None


def paired_documents(
    metric: MetricName,
    measured: Sequence[DocumentResult],
    recorded: Sequence[DocumentResult],
    protocol: Mapping[str, Scalar],
    *,
    resample: bool = True,
) -> PairedDocuments | None:
    """Compare a metric of two runs, document by document.

    With ``b`` and ``c`` documents of ``n`` that went from 0 to 1 and from 1 to 0, the
    difference of two accuracies is ``(b - c) / n`` and its standard error
    ``sqrt(b + c - (b - c)^2 / n) / n`` (McNemar, *Psychometrika* 12, 1947; Agresti,
    *Categorical Data Analysis*, 3rd ed., 2013, section 11.1). Of other means it is
    ``s / sqrt(n)``, ``s`` the standard deviation of the differences (n - 1). Of a
    metric that is no mean (F1, perplexity) it is the standard deviation of the
    difference over :data:`RESAMPLES` draws of documents with replacement, the same draw
    for both runs, aggregated by lm-eval's own function.

    The tasks of a group are drawn from one by one: errors add as squares, each with the
    weight of its task.

    Args:
        metric: what is compared.
        measured: the documents of this run.
        recorded: those of the baseline, in any order.
        protocol: says how ``metric`` is aggregated.
        resample: False gives None where only a bootstrap would tell.

    Returns:
        None where the metric has no value by document, or its aggregation is not known.

    Raises:
        BaselineError: a document is in one of the runs only, or twice in one.
    """
    here, there = _by_document(metric, measured), _by_document(metric, recorded)
    if not here and not there:
        return None
    for one, other, who in ((here, there, "recorded"), (there, here, "measured")):
        if missing := sorted(one.keys() - other.keys()):
            task, document = missing[0]
            more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
            raise BaselineError(f"document {document} of {task}{more} was not {who}")
    pairs: dict[str, list[tuple[int, Any, Any]]] = {}
    for task, document in sorted(here):
        both = here[task, document], there[task, document]
        pairs.setdefault(task, []).append((document, *both))
    function, _, weighting = str(protocol.get(AGGREGATION + metric)).partition(", ")
    weights = _weights(pairs, alike=weighting == ALIKE)
    values = [v for items in pairs.values() for _, *both in items for v in both]
    if function == "mean":
        if not all(isinstance(v, int | float) for v in values):
            return None
        return _of_mean(pairs, weights, binary=all(v in (0, 1) for v in values))
    aggregate = _aggregation(function) if resample else None
    if aggregate is None:
        return None
    return PairedDocuments(
        len(here), _bootstrap(pairs, weights, aggregate), "bootstrap"
    )


def mcnemar_p(wins: int, losses: int) -> float:
    """Exact two-sided p-value: are wins and losses as likely as each other?

    Twice the smaller tail of a binomial distribution with probability 1/2, at most 1.
    """
    flips = wins + losses
    tail, term = 0, 1
    for k in range(min(wins, losses) + 1):
        tail += term
        term = term * (flips - k) // (k + 1)
    return min(1.0, 2 * tail / (1 << flips))


def is_share(
    metric: MetricName, documents: Sequence[DocumentResult], protocol: Mapping[str, Any]
) -> bool:
    """Whether a metric is a mean of values between 0 and 1."""
    values = [r.values[metric] for r in documents if metric in r.values]
    function = str(protocol.get(AGGREGATION + metric)).partition(", ")[0]
    return (
        bool(values)
        and function == "mean"
        and all(isinstance(v, int | float) and 0 <= v <= 1 for v in values)
    )


def document_lines(
    paired: PairedDocuments, *, higher_is_better: bool, name_better: bool
) -> tuple[str, ...]:
    """``12 of 500 got worse, 3 better (...)``, and up to three of them by name."""
    if paired.how == "bootstrap":
        return ()
    if not (paired.risen or paired.fallen):
        return (f"none of {paired.documents} moved",)
    worse, better = paired.risen, paired.fallen
    if higher_is_better:
        worse, better = better, worse
    lines = [f"{len(worse)} of {paired.documents} got worse, {len(better)} better"]
    if paired.p is not None:
        lines[0] += f" (exact McNemar p = {paired.p:.2g})"
    if named := better if name_better else worse:
        names = ", ".join(f"{c.task} {c.document}" for c in named[:MOST_NAMED])
        more = len(named) - MOST_NAMED
        lines.append(
            f"{'better' if name_better else 'worse'}: {names}"
            + (f" and {more} more" if more > 0 else "")
        )
    return tuple(lines)


def _by_document(
    metric: MetricName, results: Sequence[DocumentResult]
) -> dict[tuple[str, int], Any]:
    found: dict[tuple[str, int], Any] = {}
    for result in results:
        if metric not in result.values:
            continue
        where = result.task, result.document
        if where in found:
            raise BaselineError(
                f"document {result.document} of {result.task} is there twice"
            )
        found[where] = result.values[metric]
    return found


def _weights(pairs: Mapping[str, Sequence[object]], *, alike: bool) -> dict[str, float]:
    if alike:
        return dict.fromkeys(pairs, 1 / len(pairs))
    total = sum(map(len, pairs.values()))
    return {task: len(items) / total for task, items in pairs.items()}


def _of_mean(
    pairs: Mapping[str, Sequence[tuple[int, float, float]]],
    weights: Mapping[str, float],
    *,
    binary: bool,
) -> PairedDocuments:
    changes = [
        DocumentChange(task, document, new - old)
        for task, items in pairs.items()
        for document, new, old in items
        if new != old
    ]
    if not binary:
        changes.sort(key=lambda change: -abs(change.change))
    risen = tuple(change for change in changes if change.change > 0)
    fallen = tuple(change for change in changes if change.change < 0)
    error = _mcnemar_error if binary else _mean_error
    errors = [
        weights[task] * error([new - old for _, new, old in items])
        for task, items in pairs.items()
    ]
    known = all(map(math.isfinite, errors))
    return PairedDocuments(
        documents=sum(map(len, pairs.values())),
        error=math.hypot(*errors) if known else None,
        how="mcnemar" if binary else "mean",
        risen=risen,
        fallen=fallen,
        p=mcnemar_p(len(risen), len(fallen)) if binary else None,
    )


def _mcnemar_error(apart: Sequence[float]) -> float:
    """NaN for a single document that moved."""
    count = len(apart)
    wins, losses = apart.count(1), apart.count(-1)
    if count == 1 and wins + losses:
        return math.nan
    # In whole numbers, so that no error is exactly 0.
    squares = (wins + losses) * count - (wins - losses) ** 2
    return math.sqrt(squares / count) / count


def _mean_error(apart: Sequence[float]) -> float:
    """NaN for a single document that moved."""
    count = len(apart)
    if not any(apart):
        return 0.0
    if count < 2:
        return math.nan
    mean = math.fsum(apart) / count
    squares = math.fsum((value - mean) ** 2 for value in apart)
    return math.sqrt(squares / (count - 1) / count)


def _aggregation(name: str) -> Aggregate | None:
    """lm-eval's function of that name."""
    try:
        from lm_eval.api import metrics, registry
    except ImportError:  # a measurement that is made elsewhere can be judged here
        return None
    assert metrics  # its import fills the registry
    found: Aggregate | None = registry.AGGREGATION_REGISTRY.get(name, None)
    return found


def _bootstrap(
    pairs: Mapping[str, Sequence[tuple[int, Any, Any]]],
    weights: Mapping[str, float],
    aggregate: Aggregate,
) -> float | None:
    """None where the metric of a draw is not a number."""
    import numpy as np

    if all(new == old for items in pairs.values() for _, new, old in items):
        return 0.0
    if min(map(len, pairs.values())) < 2:
        return None
    generator = np.random.default_rng(SEED)
    draws = np.zeros(RESAMPLES)
    for task, items in pairs.items():
        for index in range(RESAMPLES):
            drawn = [items[i] for i in generator.integers(len(items), size=len(items))]
            new = aggregate([value for _, value, _ in drawn])
            old = aggregate([value for _, _, value in drawn])
            draws[index] += weights[task] * (float(new) - float(old))
    error = float(np.std(draws, ddof=1))
    return error if math.isfinite(error) else None
