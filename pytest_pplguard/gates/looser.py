"""Whether a gate allows more than it did: of two tolerances the ranges are compared."""

from __future__ import annotations

import math

from msgspec.structs import asdict

from ..values import (
    HIGHER_IS_BETTER,
    CheckpointEntry,
    Key,
    MetricName,
    Recorded,
    RelativeGate,
    SparsityGate,
    Tolerance,
    divergence_tolerance,
)
from .bounds import bounds, published_bounds
from .judge import DEFAULT_MEASURED, DEFAULT_PUBLISHED

_SCOPES = {"total": 0, "layer": 1, "tensor": 2}
_WINDOW_METHODS = frozenset(
    {"token_perplexity", "word_perplexity", "byte_perplexity", "bits_per_byte"}
) | {"kl_divergence", "top1_agreement"}
_ACCURACIES = frozenset({"acc", "acc_norm", "exact_match"})
_BY_STDERR = Tolerance(sigma=2.0, direction="no-worse")


def loosens(
    old: Tolerance,
    new: Tolerance,
    *,
    metric: MetricName,
    baseline: float | None,
    digits: int | None = None,
    task: bool = False,
) -> bool:
    """Whether ``new`` admits a value that ``old`` does not.

    Beside a known ``baseline`` that is exact: the two ranges are compared, with any
    standard error. Without one, a bound that is gone or wider is looser.

    Args:
        old: the tolerance before.
        new: the tolerance after.
        metric: whose they are; of a task's either direction may be the better one.
        baseline: the recorded value that both are around.
        digits: those of a published value.
        task: whether the key is a task of lm-eval.
    """
    if _wider(old.drift, new.drift):
        return True
    if baseline is None:
        return _field_loosens(old, new)
    senses = [metric in HIGHER_IS_BETTER]
    if task or metric not in _WINDOW_METHODS:
        senses = [False, True]
    return any(_range_loosens(old, new, baseline, digits, sense) for sense in senses)


def _field_loosens(old: Tolerance, new: Tolerance) -> bool:
    names = ("rel", "abs", "max", "sigma")
    if any(_wider(getattr(old, name), getattr(new, name)) for name in names):
        return True
    if old.min is not None and (new.min is None or new.min < old.min):
        return True
    around = (old.rel, old.abs, old.sigma) != (None, None, None)
    return around and (old.direction, new.direction) == ("both", "no-worse")


def _wider(old: float | None, new: float | None) -> bool:
    return old is not None and (new is None or new > old)


def _range_loosens(
    old: Tolerance, new: Tolerance, base: float, digits: int | None, higher: bool
) -> bool:
    """By both ends: ``min(fixed, base + sigma * error)``, for any error above 0.

    The new one is higher somewhere if its fixed end is, or if its sigma is larger and
    its fixed end leaves room for it.
    """
    low, high, low_sigma, high_sigma = _ends(old, base, digits, higher)
    new_low, new_high, new_low_sigma, new_high_sigma = _ends(new, base, digits, higher)
    return (
        new_high > high
        or new_low < low
        or (new_high_sigma > high_sigma and new_high > base)
        or (new_low_sigma > low_sigma and new_low < base)
    )


def _ends(
    tolerance: Tolerance, base: float, digits: int | None, higher: bool
) -> tuple[float, float, float, float]:
    """Low and high of what needs no standard error, and sigma on either side."""
    found = (
        bounds(base, tolerance, higher_is_better=higher)
        if digits is None
        else published_bounds(base, digits, tolerance, higher_is_better=higher)
    )
    sigma = math.inf if tolerance.sigma is None else tolerance.sigma
    no_worse = tolerance.direction == "no-worse"
    return (
        -math.inf if found.low is None else found.low,
        math.inf if found.high is None else found.high,
        math.inf if no_worse and not higher else sigma,
        math.inf if no_worse and higher else sigma,
    )


def tolerance_loosens(
    key: str,
    metric: MetricName,
    old: Tolerance | None,
    new: Tolerance | None,
    was: CheckpointEntry,
    now: CheckpointEntry,
) -> bool:
    """Whether a gate allows more around what ``was`` or ``now`` has recorded.

    A gate that is gone allows everything; None is no gate.
    """
    if old is None or new is None:
        return new is None
    records = [entry.recorded.get(key) for entry in (was, now)]
    known = [r for r in records if r is not None and metric in r.metrics]
    parsed = Key.parse(key)
    task = parsed.method == "lm-eval" and parsed.text != "wikitext"
    if not known:
        return loosens(old, new, metric=metric, baseline=None, task=task)
    return any(
        loosens(
            _filled(old, default),
            _filled(new, default),
            metric=metric,
            baseline=record.metrics[metric],
            digits=record.source.digits,
            task=task,
        )
        for record in known
        for default in _defaults(metric, record)
    )


def _filled(tolerance: Tolerance, default: Tolerance) -> Tolerance:
    """With the default where no bound is written, as the gates have it."""
    if tolerance != Tolerance(direction=tolerance.direction):
        return tolerance
    direction = tolerance.direction
    if direction == "both":
        direction = default.direction
    return Tolerance(**{**asdict(default), "direction": direction})


def _defaults(metric: MetricName, recorded: Recorded) -> tuple[Tolerance, ...]:
    """What may be meant where no bound is written.

    Of a task's metric that depends on its better direction, see ``task_tolerance``,
    which a baseline file does not say.
    """
    value = recorded.metrics[metric]
    published = recorded.source.kind == "published"
    default = DEFAULT_PUBLISHED if published else DEFAULT_MEASURED
    default = divergence_tolerance(metric, value) or default
    if published or metric in _WINDOW_METHODS:
        return (default,)
    if metric in _ACCURACIES or value <= 0:
        return (_BY_STDERR,)
    return default, _BY_STDERR


def sparsity_loosens(old: SparsityGate | None, new: SparsityGate | None) -> bool:
    """Whether ``new`` admits zeros that ``old`` does not; None is no gate."""
    if old is None or new is None:
        return new is None
    if old.pattern is not None and not _implies(new.pattern, old.pattern):
        return True
    if old.fraction is None and old.scope == "total":  # it bounds its pattern alone
        return False
    if _SCOPES[new.scope] < _SCOPES[old.scope]:
        return True
    if old.fraction is None:  # the recorded shares, which may be any
        return new.fraction is not None or new.abs > old.abs
    if new.fraction is None:
        return True
    low, high = old.fraction - old.abs, old.fraction + old.abs
    return (
        max(0.0, new.fraction - new.abs) < max(0.0, low)
        or min(1.0, new.fraction + new.abs) > min(1.0, high)
    )  # fmt: skip


def _implies(one: str | None, other: str) -> bool:
    """Whether weights with the pattern ``one`` have the pattern ``other``, too."""
    if one is None:
        return False
    keep, size = map(int, one.split(":"))
    most, width = map(int, other.split(":"))
    return width % size == 0 and keep * (width // size) <= most


def relative_loosens(old: RelativeGate | None, new: RelativeGate | None) -> bool:
    """Whether ``new`` admits a ratio that ``old`` does not; None is no gate."""
    if old is None or new is None:
        return new is None
    same = (old.to, old.key, old.metric) == (new.to, new.key, new.metric)
    return not same or new.max_ratio > old.max_ratio
