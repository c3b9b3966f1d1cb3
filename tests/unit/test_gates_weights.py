"""Gates of the weights: shares of zeros, patterns, the recorded and the dense ones."""

from __future__ import annotations

import math
from typing import Any

import pytest
from msgspec.structs import replace

from pytest_pplguard.errors import CheckpointError
from pytest_pplguard.gates import (
    WeightsGate,
    judge_against,
    judge_pattern,
    judge_sparsity,
    judge_weights,
)
from pytest_pplguard.report import brief, failure_text
from pytest_pplguard.values import (
    Fingerprint,
    Outcome,
    SparsityGate,
    TensorFacts,
    Verdict,
)

GATE = WeightsGate("m/x", "m.yaml:3", "m.yaml:9", "pytest X --ppl-update")
KINDS = ("self_attn.q_proj", "mlp.up_proj")
LINEAR = tuple(f"model.layers.{n}.{k}.weight" for n in range(20) for k in KINDS)


def of_layer(number: int) -> list[str]:
    return [name for name in LINEAR if f".{number}." in name]


# --------------------------------------------------------------------------- sparsity


@pytest.mark.parametrize(
    ("fraction", "outcome"),
    [
        (0.5, Outcome.WITHIN),
        (0.4991, Outcome.WITHIN),
        (0.4989, Outcome.REGRESSED),
        (0.5011, Outcome.REGRESSED),
        (0.327, Outcome.REGRESSED),
        (math.nan, Outcome.REGRESSED),
    ],
)
def test_total(fraction: float, outcome: Outcome) -> None:
    verdict = judge_sparsity(GATE, SparsityGate(fraction=0.5), fraction)
    assert verdict.outcome is outcome
    assert verdict.passed is (outcome is Outcome.WITHIN)


def test_lost_sparsity_in_full() -> None:
    verdict = judge_sparsity(GATE, SparsityGate(fraction=0.4), 0.327)
    assert failure_text(verdict) == (
        "m/x sparsity: fraction regressed by 18.25 %\n"
        "  baseline     0.4\n"
        "  measured     0.327\n"
        "  allowed      0.399 .. 0.401 (abs 0.001, m.yaml:3)\n"
        "  because      zeros in the linear weights of the decoder layers: fewer than "
        "allowed; a mask was lost, or weights were merged or tuned"
    )


def by_tensor(**gate: Any) -> SparsityGate:
    return SparsityGate(scope="tensor", **gate)


def test_a_mask_lost_in_three_layers() -> None:
    shares = dict.fromkeys(LINEAR, 0.5)
    for number in (12, 13, 14):
        shares |= dict.fromkeys(of_layer(number), 0.0003)
    total = sum(shares.values()) / len(shares)
    gate = by_tensor(fraction=0.5)
    verdict = judge_sparsity(GATE, gate, total, shares, linear=LINEAR)
    assert failure_text(verdict) == (
        "m/x sparsity: fraction regressed by 99.94 %\n"
        "  baseline     0.5\n"
        "  measured     0.0003\n"
        "  allowed      0.499 .. 0.501 (abs 0.001 in every tensor, m.yaml:3)\n"
        "  because      layers 12-14, all projections: 0.0003 of 0.5 (mask lost)\n"
        "  note         the share is that of model.layers.12.mlp.up_proj.weight\n"
        "  note         6 of 40 tensors out of bounds; all together: 0.425045"
    )
    assert brief([verdict]) == (
        "m/x sparsity: fraction regressed by 99.94 %: measured 0.0003, allowed "
        "0.499 .. 0.501; layers 12-14, all projections: 0.0003 of 0.5 (mask lost)"
    )


def test_one_tensor_and_the_total_is_within() -> None:
    shares = dict.fromkeys(LINEAR, 0.5) | {LINEAR[7]: 0.47}
    loose = SparsityGate(fraction=0.5)
    assert judge_sparsity(GATE, loose, 0.4993).passed
    verdict = judge_sparsity(
        GATE, by_tensor(fraction=0.5), 0.4993, shares, linear=LINEAR
    )
    assert (verdict.outcome, verdict.passed) == (Outcome.REGRESSED, False)
    assert (verdict.measured, verdict.baseline) == (0.47, 0.5)
    assert verdict.reasons == ("layer 3, mlp.up_proj: 0.47 of 0.5",)


def test_layers_are_named_by_their_tensors() -> None:
    shares = {f"model.layers.{number}": 0.5 for number in range(20)}
    gate = SparsityGate(fraction=0.5, scope="layer")
    assert judge_sparsity(GATE, gate, 0.5, shares, linear=LINEAR).passed
    shares |= {"model.layers.2": 0.4, "model.layers.3": 0.0}
    shares |= {"model.layers.4": 1.0}
    verdict = judge_sparsity(GATE, gate, 0.5, shares, linear=LINEAR)
    assert verdict.reasons == (
        "layer 3, all projections: 0 of 0.5 (mask lost)",
        "layer 2, all projections: 0.4 of 0.5",
        "layer 4, all projections: 1 of 0.5 (all zeros)",
    )
    assert verdict.notes[1] == "3 of 20 layers out of bounds; all together: 0.5"


def test_an_unpruned_checkpoint_is_one_line() -> None:
    shares = {name: number / 1e6 for number, name in enumerate(LINEAR)}
    verdict = judge_sparsity(GATE, by_tensor(fraction=0.5), 0.0, shares, linear=LINEAR)
    assert verdict.reasons == (
        "all 40 linear weights: 0 to 3.9e-05 of 0.5 (mask lost)",
    )


def test_recorded_shares() -> None:
    recorded = {name: 0.3 + number / 100 for number, name in enumerate(LINEAR)}
    verdict = judge_sparsity(
        GATE, by_tensor(abs=0.0), 0.5, recorded, recorded=dict(recorded), linear=LINEAR
    )
    assert verdict.passed
    assert verdict.recorded_in == "m.yaml:9"
    # Two tensors have changed places: every share occurs, and so does the total.
    first, last = LINEAR[0], LINEAR[-1]
    now = recorded | {first: recorded[last], last: recorded[first]}
    verdict = judge_sparsity(
        GATE, by_tensor(), 0.5, now, recorded=recorded, linear=LINEAR
    )
    assert failure_text(verdict) == (
        "m/x sparsity: fraction regressed by 130.00 %\n"
        "  baseline     0.3\n"
        "  measured     0.69\n"
        "  allowed      0.299 .. 0.301 (abs 0.001 in every tensor, m.yaml:3)\n"
        "  recorded in  m.yaml:9\n"
        "  because      layer 0, self_attn.q_proj: 0.69 of 0.3\n"
        "  because      layer 19, mlp.up_proj: 0.3 of 0.69\n"
        "  note         the share is that of model.layers.0.self_attn.q_proj.weight\n"
        "  note         2 of 40 tensors out of bounds; all together: 0.5\n"
        "  to accept    pytest X --ppl-update"
    )


def test_other_tensors_than_recorded_are_not_comparable() -> None:
    recorded = dict.fromkeys(LINEAR, 0.5)
    now = dict.fromkeys(LINEAR[2:], 0.5) | {"model.layers.20.mlp.up_proj.weight": 0.5}
    verdict = judge_sparsity(
        GATE, by_tensor(), 0.5, now, recorded=recorded, linear=list(now)
    )
    assert (verdict.outcome, verdict.passed) == (Outcome.NOT_COMPARABLE, False)
    assert verdict.reasons == (
        "layer 0, mlp.up_proj, self_attn.q_proj: gone",
        "layer 20, mlp.up_proj: new, not in the baseline",
    )


def test_no_recorded_shares() -> None:
    verdict = judge_sparsity(GATE, by_tensor(), 0.5, dict.fromkeys(LINEAR, 0.5))
    assert failure_text(verdict) == (
        "m/x sparsity: fraction has no baseline\n"
        "  gate         abs 0.001 in every tensor, m.yaml:3\n"
        "  because      no fingerprint is recorded for m/x\n"
        "  to record    pytest X --ppl-update"
    )


# --------------------------------------------------------------------------- patterns


def test_pattern_kept() -> None:
    verdict = judge_pattern(GATE, "2:4", dict.fromkeys(LINEAR, (0, 64)))
    assert (verdict.outcome, verdict.passed) == (Outcome.WITHIN, True)
    assert (verdict.metric, verdict.measured, verdict.allowed) == ("2:4", 0, (None, 0))


def test_pattern_broken() -> None:
    groups = dict.fromkeys(LINEAR, (0, 64))
    groups |= {LINEAR[6]: (10, 64), LINEAR[7]: (20, 64), LINEAR[1]: (1, 64)}
    verdict = judge_pattern(GATE, "2:4", groups)
    assert failure_text(verdict) == (
        "m/x sparsity: 2:4 is broken in 31 groups\n"
        "  measured     31\n"
        "  allowed      at most 0 (groups that break 2:4, m.yaml:3)\n"
        "  because      layer 0, mlp.up_proj: 1 of 64 groups have more weights than "
        "2:4 allows\n"
        "  because      layer 3, all projections: 30 of 128 groups have more weights "
        "than 2:4 allows\n"
        "  note         2560 groups looked at"
    )
    # As it comes from another process.
    assert brief([replace(verdict, measured=31.0, allowed=(None, 0.0))]) == (
        "m/x sparsity: 2:4 is broken in 31 groups: measured 31, allowed at most 0; "
        "layer 0, mlp.up_proj: 1 of 64 groups have more weights than 2:4 allows; "
        "layer 3, all projections: 30 of 128 groups have more weights than 2:4 allows"
    )


# ----------------------------------------------------------------- recorded weights


def facts(name: str, **changes: Any) -> TensorFacts:
    made = TensorFacts(
        "F32",
        (8, 8),
        f"v{name}",
        zeros=32,
        mask=f"m{name}",
        sum=1.0,
        norm=2.0,
        peak=1.0,
    )
    return replace(made, **changes)


EMBEDDING, NORM, HEAD = (
    "model.embed_tokens.weight",
    "model.norm.weight",
    "lm_head.weight",
)


def fingerprint(**changes: TensorFacts | None) -> Fingerprint:
    """``changes`` by ``layerNUMBER_KIND``, or a whole name; None: it is not there."""
    tensors = {name: facts(name) for name in (*LINEAR, EMBEDDING, NORM)}
    tensors[NORM] = facts(NORM, shape=(8,), zeros=0)
    for name, change in changes.items():
        if change is None:
            del tensors[name]
        else:
            tensors[name] = change
    linear = tuple(name for name in tensors if name in LINEAR)
    return Fingerprint(tensors, linear=linear)


def same(now: Fingerprint, then: Fingerprint | None) -> Verdict:
    return judge_weights(GATE, "same", now, then)


def mask(now: Fingerprint, then: Fingerprint | None) -> Verdict:
    return judge_weights(GATE, "mask", now, then)


def test_nothing_changed() -> None:
    for judge in (same, mask):
        verdict = judge(fingerprint(), fingerprint())
        assert (verdict.outcome, verdict.passed) == (Outcome.WITHIN, True)
        assert (verdict.measured, verdict.notes) == (0, ())


def test_another_dtype_a_tied_head_and_a_buffer_change_nothing() -> None:
    now = {name: facts(name, dtype="BF16") for name in LINEAR}
    now |= {HEAD: facts(EMBEDDING), "model.rotary_emb.inv_freq": facts("other")}
    verdict = same(fingerprint(**now), fingerprint())
    assert verdict.passed
    assert verdict.notes == ("stored as BF16, recorded F32: 40 tensors",)


def test_same_counts_whatever_is_not_the_recorded_tensor() -> None:
    now = fingerprint(
        **{
            LINEAR[0]: facts(LINEAR[0], values="scaled", norm=2.1),
            LINEAR[5]: facts(LINEAR[5], values="seed", mask="seed"),
            NORM: facts(NORM, shape=(4, 2)),
            EMBEDDING: None,
            HEAD: facts(HEAD),
        },
    )
    assert failure_text(same(now, fingerprint())) == (
        "m/x weights: same: weights are not the recorded ones, in 5 tensors\n"
        "  measured     5\n"
        "  allowed      at most 0 (m.yaml:3)\n"
        "  recorded in  m.yaml:9\n"
        "  to accept    pytest X --ppl-update"
    )


def test_a_list_of_failures_has_the_first_thing_that_changed() -> None:
    verdict = same(fingerprint(**{NORM: None}), fingerprint())
    assert brief([replace(verdict, changes=("model.norm.weight: gone", "more"))]) == (
        "m/x weights: same: weights are not the recorded ones, in 1 tensor: "
        "model.norm.weight: gone"
    )


def test_mask_lets_values_move() -> None:
    tuned = {name: facts(name, values="tuned", norm=3.0) for name in LINEAR}
    assert mask(fingerprint(**tuned), fingerprint()).passed
    assert not same(fingerprint(**tuned), fingerprint()).passed
    # What is not linear has no mask.
    other = fingerprint(**{EMBEDDING: facts(EMBEDDING, mask="other"), NORM: None})
    assert mask(other, fingerprint()).passed


def test_mask_that_moved() -> None:
    moved = facts(LINEAR[5], values="x", mask="x")
    changes = {LINEAR[5]: moved, LINEAR[3]: None}
    verdict = mask(fingerprint(**changes), fingerprint())
    assert failure_text(verdict) == (
        "m/x weights: mask: zeros are not where they were recorded, in 2 tensors\n"
        "  measured     2\n"
        "  allowed      at most 0 (m.yaml:3)\n"
        "  recorded in  m.yaml:9\n"
        "  to accept    pytest X --ppl-update"
    )


def test_packed_weights_have_no_mask() -> None:
    packed = "model.layers.0.mlp.up_proj.qweight"
    now = fingerprint(**{packed: TensorFacts("I32", (8, 1), "v")})
    with pytest.raises(CheckpointError) as caught:
        mask(now, now)
    assert str(caught.value) == (
        "m/x: model.layers.0.mlp.up_proj.qweight is packed (I32), so there is no mask "
        "of zeros to compare; gate it with weights: same"
    )
    assert same(now, now).passed
    with pytest.raises(CheckpointError, match="it has no linear weights of decoder"):
        mask(Fingerprint({NORM: facts(NORM)}), None)


@pytest.mark.parametrize("kind", ["same", "mask"])
def test_nothing_recorded(kind: str) -> None:
    verdict = judge_weights(GATE, kind, fingerprint(), None)
    assert failure_text(verdict) == (
        f"m/x weights: {kind} has no baseline\n"
        "  gate         m.yaml:3\n"
        "  recorded in  m.yaml:9\n"
        "  because      no fingerprint is recorded for m/x\n"
        "  to record    pytest X --ppl-update"
    )


# --------------------------------------------------------------------- dense weights


def against(moved: dict[str, tuple[int, int]], **strange: tuple[str, ...]) -> Verdict:
    known = (*LINEAR, NORM)
    return judge_against(
        GATE, "dense", moved=moved, strange=strange, known=known, linear=LINEAR
    )


def test_survivors_are_the_dense_ones() -> None:
    verdict = against({})
    assert (verdict.outcome, verdict.passed) == (Outcome.WITHIN, True)
    assert (verdict.measured, verdict.allowed) == (0, (None, 0))


def test_survivors_that_moved() -> None:
    moved = dict.fromkeys([*of_layer(3), *of_layer(4)], (5, 32)) | {NORM: (1, 8)}
    assert failure_text(against(moved, gone=(EMBEDDING,))) == (
        "m/x against: dense: weights that survived are not those of dense, in 6 "
        "tensors\n"
        "  measured     6\n"
        "  allowed      at most 0 (m.yaml:3)\n"
        "  because      model.embed_tokens.weight: gone\n"
        "  because      layers 3-4, all projections: 20 of 128 surviving weights "
        "moved\n"
        "  because      model.norm.weight: 1 of 8 surviving weights moved\n"
        "  note         41 tensors compared, weight by weight"
    )
