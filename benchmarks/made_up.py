"""A run that never was: gates, windows and weights of the size that people have."""

from __future__ import annotations

import math
import random

from pytest_pplguard.gates import bounds
from pytest_pplguard.values import (
    Details,
    LossDetail,
    Outcome,
    Results,
    Scalar,
    TensorChange,
    Tolerance,
    Verdict,
    WeightsDetail,
    WindowPlace,
)

_KEYS = (
    ("wanda/wikitext2:2048", "token_perplexity"),
    ("lm-eval/wikitext:2048", "word_perplexity"),
    ("strided/wikitext2:2048:stride512", "token_perplexity"),
    ("llama-cpp/wikitext2:512", "token_perplexity"),
)
_TITLES = ("Robert Boulter", "Du Fu", "Kiss You (One Direction song)", "Ise @-@ class")
_WORDS = (
    *("the", "album", "was", "released", "in", "November", "by", "a", "label", "of"),
    *("region", ",", "and", "critics", "wrote", "that", "its", "second", "half", "is"),
    *("better", "one", ";", "charts", "it", "reached", "number", "4"),
)
_PROJECTIONS = (
    *("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj"),
    *("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"),
)
LAYERS, WIDTH = 32, 4096
_LOST = range(12, 15)
"""Layers that have lost their masks."""


def made_up(gates: int, windows: int) -> tuple[Results, Details]:
    """A run of ``gates`` gates that all failed, each over ``windows`` windows."""
    chance = random.Random(7)
    found = [
        _measured(chance, *_KEYS[index % len(_KEYS)], windows) for index in range(gates)
    ]
    return (
        Results(
            verdicts=tuple(verdict for verdict, _ in found),
            notices=("no accelerator found: running on the CPU",),
        ),
        Details(losses=tuple(loss for _, loss in found), weights=(_weights(),)),
    )


def _measured(
    chance: random.Random, key: str, metric: str, windows: int
) -> tuple[Verdict, LossDetail]:
    scored = (2048,) * windows
    hard = [chance.gauss(1.84, 0.16) for _ in scored]
    moved = [max(-0.004, chance.gauss(0.021, 0.014)) for _ in scored]
    old = tuple(size * loss for size, loss in zip(scored, hard, strict=True))
    new = tuple(
        size * (loss + change)
        for size, loss, change in zip(scored, hard, moved, strict=True)
    )
    tokens = sum(scored)
    before, now = (math.exp(math.fsum(one) / tokens) for one in (old, new))
    allowed = bounds(before, Tolerance(rel=0.005))
    verdict = Verdict(
        checkpoint="llama-2-7b/wanda-50",
        key=key,
        metric=metric,
        outcome=Outcome.REGRESSED,
        passed=False,
        baseline=before,
        measured=now,
        change=now / before - 1,
        allowed=(allowed.low, allowed.high),
        gate="rel 0.005, baselines/llama-2-7b.yaml:9",
        source="measured",
        recorded_in="baselines/llama-2-7b.yaml:21",
        command=f"pytest baselines/llama-2-7b.yaml::wanda-50::{key} "
        "--ppl-model llama-2-7b/wanda-50=out/llama-2-7b-wanda-50 --ppl-update",
        windows=windows,
        seconds=61.8,
        path="out/llama-2-7b-wanda-50",
        changes=(
            f"layers {_LOST[0]}-{_LOST[-1]}, all projections: mask lost, "
            "50.0 % -> 0.0 %",
            "all other weights (270 tensors), the config and the tokenizer are the "
            "same",
        ),
    )
    places = tuple(
        WindowPlace(
            windows=windows,
            page=index * 62 // windows,
            title=f"= {_TITLES[index * 62 // windows % len(_TITLES)]} =",
            words="..." + " ".join(chance.choices(_WORDS, k=10))[:54] + "...",
        )
        for index in range(windows)
    )
    environment: dict[str, Scalar] = {
        "dtype": "float16",
        "device": "cuda",
        "torch": "2.13.0",
    }
    loss = LossDetail(
        checkpoint=verdict.checkpoint,
        key=key,
        of="nll_sum",
        total=windows,
        windows=tuple(range(windows)),
        scored=scored,
        measured=new,
        baseline=old,
        places=places,
        metrics={metric: now},
        recorded={metric: before},
        windows_digest="sha256:" + "3f2a91c0d4e7" * 5 + "0000",
        protocol={"window": 2048, "tail": "dropped", "mean": "tokens"},
        environment=environment,
        baseline_environment=environment | {"torch": "2.6.0"},
        seconds=61.8,
    )
    return verdict, loss


def _weights() -> WeightsDetail:
    names = [
        f"model.layers.{layer}.{projection}.weight"
        for layer in range(LAYERS)
        for projection in _PROJECTIONS
    ]
    size = WIDTH * WIDTH
    lost = {name for name in names if int(name.split(".")[2]) in _LOST}
    return WeightsDetail(
        checkpoint="llama-2-7b/wanda-50",
        spec="out/llama-2-7b-wanda-50",
        digest="sha256:" + "ab" * 32,
        zeros={name: (0 if name in lost else size // 2, size) for name in names},
        recorded_digest="sha256:" + "cd" * 32,
        recorded_zeros=dict.fromkeys(names, (size // 2, size)),
        changes=tuple(
            TensorChange(
                name=name,
                kind="mask",
                size=size,
                before_zeros=0.5,
                zeros=0.0,
                before_norm=91.25,
                norm=96.5,
            )
            for name in names
            if name in lost
        ),
        lines=("layers 12-14, all projections: mask lost, 50.0 % -> 0.0 %",),
    )
