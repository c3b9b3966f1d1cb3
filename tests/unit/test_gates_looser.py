"""What admits more than before is looser, and nothing else."""

from __future__ import annotations

from typing import Literal

import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from pytest_pplguard.gates import loosens, tolerance_loosens
from pytest_pplguard.values import CheckpointEntry, Recorded, Source, Tolerance

Direction = Literal["both", "no-worse"]

bound = st.one_of(st.none(), st.floats(0, 3, allow_subnormal=False))
limit = st.one_of(st.none(), st.floats(0.5, 20, allow_subnormal=False))
direction: st.SearchStrategy[Direction] = st.sampled_from(["both", "no-worse"])


@st.composite
def tolerances(draw: st.DrawFn) -> Tolerance:
    sigma = draw(st.one_of(st.none(), st.floats(0.1, 5)))
    least, most = draw(limit), draw(limit)
    if least is not None and most is not None and least > most:
        least, most = most, least
    return Tolerance(
        rel=draw(bound) if sigma is None else None,
        abs=draw(bound) if sigma is None else None,
        min=least,
        max=most,
        drift=draw(bound),
        sigma=sigma,
        direction=draw(direction),
    )


def admits(
    gate: Tolerance, value: float, base: float, error: float, drift: float, higher: bool
) -> bool:
    """As docs/baseline-files.md has it, bound by bound."""
    below_is_better = not higher
    free_below = gate.direction == "no-worse" and below_is_better
    free_above = gate.direction == "no-worse" and not below_is_better
    around = []
    if gate.rel is not None:
        around.append((base / (1 + gate.rel), base * (1 + gate.rel)))
    if gate.abs is not None:
        around.append((base - gate.abs, base + gate.abs))
    if gate.sigma is not None:
        around.append((base - gate.sigma * error, base + gate.sigma * error))
    return (
        all(free_below or value >= low for low, _ in around)
        and all(free_above or value <= high for _, high in around)
        and (gate.max is None or value <= gate.max)
        and (gate.min is None or value >= gate.min)
        and (gate.drift is None or drift <= gate.drift)
    )


@settings(max_examples=600)
@given(
    tolerances(), tolerances(), st.floats(0.01, 30), st.floats(0.5, 20),
    st.floats(1e-6, 10), st.floats(0, 5), st.booleans(),
)  # fmt: skip
@example(Tolerance(rel=0.1), Tolerance(abs=0.6), 5.55, 5.0, 1.0, 0.0, False)
@example(Tolerance(sigma=2.0), Tolerance(sigma=3.0), 5.25, 5.0, 0.1, 0.0, False)
@example(Tolerance(sigma=2.0, max=7.0), Tolerance(rel=0.1), 5.2, 5.0, 0.05, 0.0, False)
@example(Tolerance(rel=0.1), Tolerance(rel=0.1, direction="no-worse"), 1.0, 5.0, 1.0,
         0.0, False)  # fmt: skip
@example(Tolerance(rel=0.1), Tolerance(rel=0.1, direction="no-worse"), 9.0, 5.0, 1.0,
         0.0, True)  # fmt: skip
@example(Tolerance(drift=0.1), Tolerance(), 5.0, 5.0, 1.0, 0.2, False)
def test_what_admits_more_is_loosened(
    old: Tolerance,
    new: Tolerance,
    value: float,
    base: float,
    error: float,
    drift: float,
    higher: bool,
) -> None:
    metric = "top1_agreement" if higher else "token_perplexity"
    facts = (value, base, error, drift, higher)
    assume(admits(new, *facts) and not admits(old, *facts))
    assert loosens(old, new, metric=metric, baseline=base)
    assert loosens(old, new, metric="acc", baseline=base, task=True)
    assert loosens(old, new, metric=metric, baseline=None)


@settings(max_examples=300)
@given(tolerances(), st.floats(0.5, 20), st.booleans())
def test_nothing_is_looser_than_itself(
    gate: Tolerance, base: float, higher: bool
) -> None:
    metric = "top1_agreement" if higher else "token_perplexity"
    assert not loosens(gate, gate, metric=metric, baseline=base)
    assert not loosens(gate, gate, metric=metric, baseline=None)


@pytest.mark.parametrize(
    ("old", "new", "metric", "expected"),
    [
        (Tolerance(rel=0.005), Tolerance(rel=0.004), "token_perplexity", False),
        # Around 5, 0.01 is less than half a percent.
        (Tolerance(rel=0.005), Tolerance(abs=0.01), "token_perplexity", False),
        (Tolerance(rel=0.005), Tolerance(abs=0.03), "token_perplexity", True),
        (Tolerance(rel=0.005), Tolerance(rel=0.01, max=5.01, min=4.99),
         "token_perplexity", False),
        (Tolerance(max=6.0), Tolerance(max=6.0, min=1.0), "token_perplexity", False),
        (Tolerance(rel=0.1, direction="no-worse"), Tolerance(rel=0.1),
         "token_perplexity", False),
        (Tolerance(rel=0.1, direction="no-worse"), Tolerance(rel=0.2),
         "token_perplexity", True),
        # Below the baseline nothing is worse, whatever the new bound is.
        (Tolerance(max=5.5, direction="no-worse"), Tolerance(max=5.5, rel=0.1),
         "token_perplexity", False),
        (Tolerance(sigma=2.0), Tolerance(sigma=1.0), "acc", False),
        (Tolerance(sigma=2.0, max=4.0), Tolerance(sigma=3.0, max=4.0, min=4.5), "acc",
         True),
        (Tolerance(rel=0.1, drift=0.002), Tolerance(rel=0.1, drift=0.001),
         "token_perplexity", False),
    ],
)  # fmt: skip
def test_by_hand(old: Tolerance, new: Tolerance, metric: str, expected: bool) -> None:
    task = metric == "acc"
    assert loosens(old, new, metric=metric, baseline=5.0, task=task) is expected


def test_a_published_value_has_its_rounding_on_both_sides() -> None:
    """5.0 with one decimal is 4.95 to 5.05, and abs counts from there."""
    old, new = Tolerance(max=5.06), Tolerance(abs=0.02)
    assert loosens(old, new, metric="token_perplexity", baseline=5.0, digits=1)
    assert not loosens(
        Tolerance(max=5.08, min=4.9), new,
        metric="token_perplexity", baseline=5.0, digits=1,
    )  # fmt: skip


RELATIVE = Tolerance(rel=0.005)
BY_STDERR = Tolerance(sigma=2.0, direction="no-worse")


@pytest.mark.parametrize(
    ("metric", "value", "stderr", "new", "expected"),
    [
        # Of a perplexity nothing written is half a percent, with a standard error, too.
        ("perplexity", 12.0, 0.5, BY_STDERR, True),
        ("word_perplexity", 12.0, 0.5, BY_STDERR, True),
        ("word_perplexity", 12.0, 0.5, RELATIVE, False),
        # Of an accuracy it is two standard errors, also where none is recorded.
        ("acc", 0.7, 0.01, BY_STDERR, False),
        ("acc", 0.7, None, BY_STDERR, False),
        ("acc", 0.7, None, RELATIVE, True),
        # Whether more of this is better only its task knows.
        ("f1", 0.7, 0.01, BY_STDERR, True),
        ("f1", 0.7, 0.01, RELATIVE, True),
        ("likelihood_diff", -0.7, 0.01, BY_STDERR, False),
        ("f1", 0.7, 0.01, Tolerance(), False),
    ],
)
def test_what_was_allowed_where_nothing_was_written(
    metric: str, value: float, stderr: float | None, new: Tolerance, expected: bool
) -> None:
    errors = {} if stderr is None else {metric: stderr}
    measured = Source(kind="measured")
    recorded = Recorded(metrics={metric: value}, source=measured, stderr=errors)
    key = "lm-eval/some_task:2048"
    entry = CheckpointEntry("it", recorded={key: recorded})
    assert tolerance_loosens(key, metric, Tolerance(), new, entry, entry) is expected
