"""What is gathered behind verdicts, from values alone."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec.structs import replace

from pytest_pplguard.errors import InvalidLossError
from pytest_pplguard.gates import scoring_order
from pytest_pplguard.session.details import loss_detail, weights_detail
from pytest_pplguard.values import (
    EarlyStop,
    Key,
    LossDetail,
    Measurement,
    Recorded,
    Source,
    TensorChange,
    TensorFacts,
    WeightsDetail,
    WindowScore,
)

from .diffing import LAYERS, NORM, at, decoder, taken

DIGEST = "sha256:" + "1" * 64
WANDA, KL = Key.parse("wanda/tiny:16"), Key.parse("kl/tiny:16")
TASK = Key.parse("lm-eval/piqa:256")
NOW = tuple(WindowScore(10.0 + i, 15, kl_sum=0.5 + i, top1=9) for i in range(4))
THEN = tuple(WindowScore(9.5 + i, 15, kl_sum=0.25 + i, top1=9) for i in range(4))
MEASURED = Measurement(
    key=str(WANDA),
    metrics={"token_perplexity": 3.5},
    units={"tokens": 60},
    windows=4,
    windows_digest=DIGEST,
    corpus_digest=DIGEST,
    protocol={"window": 16},
    evidence=NOW,
    environment={"dtype": "float32"},
    seconds=1.5,
    cached="2026-11-26T10:00",
)
RECORDED = Recorded(
    metrics={"token_perplexity": 3.25},
    source=Source("measured"),
    windows=4,
    windows_digest=DIGEST,
    evidence="x.json",
    environment={"dtype": "bfloat16"},
)
DETAIL = LossDetail(
    checkpoint="m/w50",
    key="wanda/tiny:16",
    of="nll_sum",
    total=4,
    windows=(0, 1, 2, 3),
    scored=(15, 15, 15, 15),
    measured=(10.0, 11.0, 12.0, 13.0),
    baseline=(9.5, 10.5, 11.5, 12.5),
    metrics={"token_perplexity": 3.5},
    recorded={"token_perplexity": 3.25},
    windows_digest=DIGEST,
    protocol={"window": 16},
    environment={"dtype": "float32"},
    baseline_environment={"dtype": "bfloat16"},
    seconds=1.5,
    cached="2026-11-26T10:00",
)


def detail(
    measured: Any = MEASURED,
    recorded: Recorded | None = RECORDED,
    evidence: tuple[WindowScore, ...] = THEN,
    key: Key = WANDA,
) -> LossDetail:
    return loss_detail("m/w50", key, measured, recorded, evidence)


def test_losses_beside_the_baseline() -> None:
    assert detail() == DETAIL


def test_divergences() -> None:
    measured = replace(MEASURED, key=str(KL))
    assert detail(measured, key=KL) == replace(
        DETAIL, key=str(KL), of="kl_sum",
        measured=(0.5, 1.5, 2.5, 3.5), baseline=(0.25, 1.25, 2.25, 3.25),
    )  # fmt: skip


def test_without_a_baseline() -> None:
    assert detail(recorded=None, evidence=()) == replace(
        DETAIL, baseline=(), recorded={}, baseline_environment={}
    )


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        (
            {"windows_digest": "sha256:other"},
            "no baseline losses: the baseline is of other windows",
        ),
        (
            {"evidence": None, "windows_digest": None},
            "no baseline losses: the baseline is a published value",
        ),
    ],
)
def test_baselines_that_cannot_be_paired(changes: dict[str, Any], problem: str) -> None:
    evidence = THEN if "evidence" not in changes else ()
    found = detail(recorded=replace(RECORDED, **changes), evidence=evidence)
    assert found == replace(DETAIL, baseline=(), problem=problem)


def test_an_early_verdict_has_its_windows_as_they_were_drawn() -> None:
    order = scoring_order(DIGEST, [15] * 4)
    assert order != sorted(order)
    stop = EarlyStop(2, 4, 0.1, 0.001, {"token_perplexity": "within"})
    seen = order[:2]
    measured = replace(
        MEASURED, evidence=tuple(NOW[index] for index in seen), early=stop
    )
    assert detail(measured) == replace(
        DETAIL,
        windows=tuple(seen),
        scored=(15, 15),
        measured=tuple(10.0 + index for index in seen),
        baseline=tuple(9.5 + index for index in seen),
    )


def test_an_invalid_loss_stands_among_those_that_are_fine() -> None:
    error = InvalidLossError.at(2, "the loss of window 3 of 4 is nan")
    error.scored, error.windows, error.windows_digest = 15, 4, DIGEST
    error.finished = {3: (13.0, 15), 0: (10.0, 15)}
    assert detail(error) == replace(
        DETAIL,
        windows=(0, 2, 3),
        scored=(15, 15, 15),
        measured=(10.0, None, 13.0),
        baseline=(9.5, 11.5, 12.5),
        metrics={},
        protocol={},
        environment={},
        seconds=0.0,
        cached="",
        problem="the loss of window 3 of 4 is nan",
    )


def test_an_invalid_number_of_finite_losses() -> None:
    error = InvalidLossError("a mean loss of 800 nats per token has no finite value")
    found = detail(error)
    assert (found.windows, found.measured, found.baseline) == ((), (), ())
    assert found.recorded == {"token_perplexity": 3.25}
    assert found.problem == str(error)


def test_answers_of_a_task_are_no_windows() -> None:
    found = detail(replace(MEASURED, key=str(TASK)), key=TASK)
    assert (found.windows, found.scored, found.measured) == ((), (), ())
    assert (found.total, found.environment) == (4, {"dtype": "float32"})
    assert found.problem == "answers of a task are no windows of a text"


# --------------------------------------------------------------------------- weights

UP = at(2, "mlp.up_proj")


def test_weights_beside_the_recorded_ones() -> None:
    weights = decoder(pruned=True)
    then = taken(weights)
    before = weights[UP].copy()
    weights[UP][:] = 0
    now = taken(weights)
    found = weights_detail("m/w50", "w50", now, then)
    assert found.digest == now.digest != found.recorded_digest == then.digest
    zeros = {name: int((weights[name] == 0).sum()) for name in found.zeros}
    assert found.zeros == {n: (zeros[n], weights[n].size) for n in then.linear}
    assert found.recorded_zeros == found.zeros | {
        UP: (int((before == 0).sum()), before.size)
    }
    (change,) = found.changes
    assert change == TensorChange(
        name=UP,
        kind="zeroed",
        size=before.size,
        before_zeros=float((before == 0).mean()),
        zeros=1.0,
        before_norm=change.before_norm,
        norm=0.0,
    )
    assert change.before_norm == pytest.approx(float((before**2).sum() ** 0.5))
    assert found.lines[0] == "layer 2, mlp.up_proj: all zeros now"
    counted = sum(weights[name].size for name in then.linear)
    assert found.sparsity == sum(zeros.values()) / counted


def test_tensors_stand_under_their_recorded_names() -> None:
    weights = decoder(pruned=True)
    then = taken(weights)
    renamed = {n.replace("model.", "base.model."): w for n, w in weights.items()}
    found = weights_detail("m/w50", "w50", taken(renamed), then)
    assert found.zeros == found.recorded_zeros
    assert set(found.zeros) == set(then.linear)


def test_the_same_weights_have_nothing_to_say() -> None:
    same = taken(decoder())
    found = weights_detail("m/w50", "w50", same, same)
    assert (found.changes, found.lines, found.problem) == ((), (), "")


def test_many_changes_are_some_lines_and_all_rows() -> None:
    then, now = taken(decoder(0)), taken(decoder(1))
    found = weights_detail("m/w50", "w50", now, then)
    assert len(found.changes) == 5 * LAYERS + 2
    assert 0 < len(found.lines) <= 40


def test_elements_that_are_no_floats_have_no_shares() -> None:
    then = taken(decoder())
    packed = TensorFacts("I32", (4, 4), "0" * 32)
    before = replace(then, tensors=then.tensors | {"packed": packed})
    now = replace(
        then, tensors=then.tensors | {"packed": replace(packed, values="1" * 32)}
    )
    (change,) = weights_detail("m/w50", "w50", now, before).changes
    assert change == TensorChange(name="packed", kind="values", size=16)


def test_one_side_alone() -> None:
    known = taken(decoder(pruned=True))
    assert weights_detail("m/w50", "w50", None, None) == WeightsDetail(
        checkpoint="m/w50", spec="w50"
    )
    now = weights_detail("m/w50", "w50", known, None)
    assert (now.digest, now.recorded_digest) == (known.digest, "")
    assert set(now.zeros) == set(known.linear)
    then = weights_detail("m/w50", "w50", None, known)
    assert (then.digest, then.recorded_digest) == ("", known.digest)
    assert set(then.recorded_zeros) == set(known.linear)
    assert NORM not in now.zeros


def test_evidence_that_does_not_hold_the_windows() -> None:
    why = "no baseline losses: the evidence does not hold these windows"
    assert detail(evidence=THEN[:3]) == replace(DETAIL, baseline=(), problem=why)
    of_losses = tuple(WindowScore(one.nll_sum, one.scored) for one in THEN)
    found = detail(replace(MEASURED, key=str(KL)), evidence=of_losses, key=KL)
    assert (found.baseline, found.problem) == ((), why)
