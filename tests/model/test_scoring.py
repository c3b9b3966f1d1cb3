"""The scorer against full logits, for models whose heads differ; and bad losses."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from pytest_pplguard.errors import InvalidLossError, MeasurementError
from pytest_pplguard.planning import CHUNK_BYTES
from pytest_pplguard.scoring import Scorer, scorer
from pytest_pplguard.values import Window
from tests.model.tiny import ARCHITECTURES, build_model

CHANGES_LOGITS = ("gemma2", "cohere", "granite")
VOCAB = 320


def windows(count: int = 4, length: int = 48, *, start: int = 0) -> list[Window]:
    generator = torch.Generator().manual_seed(5)
    ids = torch.randint(3, VOCAB, (count, length), generator=generator).tolist()
    return [
        Window(tuple(row), tuple(row[start + 1 :]), start, page)
        for page, row in enumerate(ids)
    ]


def full_losses(model: nn.Module, cut: Window) -> torch.Tensor:
    """Per-token losses by the textbook: whole logits, cross entropy, float64."""
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([cut.ids])).logits[0].double()
    scored = logits[cut.start : cut.start + len(cut.targets)]
    return nn.functional.cross_entropy(
        scored, torch.tensor(cut.targets), reduction="none"
    )


@pytest.fixture(params=ARCHITECTURES)
def arch(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_every_architecture_equals_full_logits(
    arch: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(CHUNK_BYTES, "cpu", 4 * 7 * VOCAB)
    model = build_model(arch, vocab=VOCAB)
    scorer = Scorer(model)
    cut = windows()
    for window, score in zip(cut, scorer(cut), strict=True):
        expected = full_losses(model, window).sum().item()
        assert score.nll_sum == pytest.approx(expected, rel=1e-6)
        assert (score.scored, score.page) == (len(window.targets), window.page)
    assert bool(scorer.notices) is (arch in CHANGES_LOGITS)


def test_the_fall_back_says_why(arch: str) -> None:
    scorer = Scorer(build_model(arch, vocab=VOCAB))
    scorer(windows(1))
    assert scorer.notices == (
        [
            "full logits are computed for this model: it changes the logits behind the "
            "output head (slower, more memory, same numbers)"
        ]
        if arch in CHANGES_LOGITS
        else []
    )


def test_only_scored_positions_count() -> None:
    model = build_model("llama", vocab=VOCAB)
    for window, score in zip(
        windows(start=30), Scorer(model)(windows(start=30)), strict=True
    ):
        expected = full_losses(model, window).sum().item()
        assert score.nll_sum == pytest.approx(expected, rel=1e-6)
        assert score.scored == 17


@pytest.mark.parametrize("batch_size", [2, 3, 100])
def test_batches_give_the_same_numbers_in_the_same_order(batch_size: int) -> None:
    model = build_model("llama", vocab=VOCAB)
    mixed = [*windows(3, 48), *windows(2, 20), *windows(4, 48, start=9)]
    alone = Scorer(model)(mixed)
    together = Scorer(model, batch_size=batch_size)(mixed)
    for one, other in zip(alone, together, strict=True):
        assert other.nll_sum == pytest.approx(one.nll_sum, rel=1e-6)
        assert (other.scored, other.page) == (one.scored, one.page)


def test_a_head_chunk_is_small_and_full_logits_are_never_made(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(CHUNK_BYTES, "cpu", 4 * 16 * VOCAB)
    monkeypatch.setattr(scorer, "_PROOF_POSITIONS", 8)
    model = build_model("llama", vocab=VOCAB)
    sizes: list[int] = []
    model.lm_head.register_forward_hook(
        lambda module, args, output: sizes.append(output.numel() // VOCAB)
    )
    Scorer(model)(windows(2, 100))
    assert max(sizes) == 8  # log-probabilities of as many take the other half


def test_half_precision_is_summed_in_full() -> None:
    model = build_model("llama", vocab=VOCAB).to(torch.bfloat16)
    window = windows(1)[0]
    (score,) = Scorer(model)([window])
    expected = full_losses(model, window).sum().item()
    assert score.nll_sum == pytest.approx(expected, rel=1e-3)


def test_progress_counts_windows_and_carries_the_running_mean() -> None:
    model = build_model("llama", vocab=VOCAB)
    calls: list[tuple[int, int, float]] = []
    scores = Scorer(model, progress=lambda *call: calls.append(call))(windows(3))
    steps = [(done, total) for done, total, _ in calls]
    assert steps == [(0, 3), (1, 3), (2, 3), (3, 3)]
    assert calls[0][2] == 0.0
    total = math.fsum(score.nll_sum for score in scores)
    assert calls[-1][2] == pytest.approx(total / sum(score.scored for score in scores))


def test_a_model_in_training_mode_is_put_back() -> None:
    model = build_model("llama", vocab=VOCAB)
    model.train()
    model.model.layers[0].eval()
    before = [module.training for module in model.modules()]
    Scorer(model)(windows(1))
    assert [module.training for module in model.modules()] == before


def test_dropout_does_not_count() -> None:
    model = build_model("opt", vocab=VOCAB, dropout=0.5)
    model.train()
    first, second = (Scorer(model)(windows(1))[0].nll_sum for _ in range(2))
    assert first == second


def test_no_gradients_are_kept() -> None:
    model = build_model("llama", vocab=VOCAB)
    model.requires_grad_(True)
    Scorer(model)(windows(1))
    assert all(parameter.grad is None for parameter in model.parameters())


# ------------------------------------------------------------------- models of the user


class Bare(nn.Module):
    """A module that knows nothing of transformers: only logits."""

    def __init__(self, value: float = 0.0, *, poisoned: int | None = None) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((VOCAB,), value))
        self.poisoned = poisoned
        self.calls = 0

    def forward(self, input_ids: torch.Tensor) -> Any:
        logits = self.weight.expand(*input_ids.shape, VOCAB).clone()
        if self.calls == self.poisoned:
            logits[..., 3, :] = float("nan")
        self.calls += 1
        return SimpleNamespace(logits=logits)


def test_any_module_with_logits_can_be_scored() -> None:
    scores = Scorer(Bare())(windows(2))
    assert [score.nll_sum for score in scores] == pytest.approx(
        [47 * math.log(VOCAB)] * 2
    )


@pytest.mark.parametrize("poisoned", [0, 2])
def test_one_nan_is_found_and_its_window_named(poisoned: int) -> None:
    with pytest.raises(InvalidLossError) as caught:
        Scorer(Bare(poisoned=poisoned))(windows(3))
    assert str(caught.value) == (
        f"the loss of window {poisoned + 1} of 3 (page {poisoned + 1}) is nan"
    )


def test_one_nan_of_a_task_is_an_answer() -> None:
    with pytest.raises(InvalidLossError) as caught:
        Scorer(Bare(poisoned=1))(windows(3), answers=True)
    assert str(caught.value) == "the loss of answer 2 of 3 is nan"


def test_an_infinite_loss_is_found() -> None:
    model = build_model("llama", vocab=VOCAB)
    with torch.no_grad():
        model.lm_head.weight[7] = float("inf")
    cut = Window((3, 4, 5), (4, 5), 0, None)
    with pytest.raises(
        InvalidLossError, match=r"the loss of window 1 of 1 is (nan|inf)"
    ):
        Scorer(model)([cut])


def test_a_nan_weight_poisons_every_architecture(arch: str) -> None:
    model = build_model(arch, vocab=VOCAB)
    with torch.no_grad():
        next(model.parameters())[5] = float("nan")
    cut = Window((5, 5, 5, 5), (5, 5, 5), 0, None)
    with pytest.raises(InvalidLossError, match="window 1 of 1 is nan"):
        Scorer(model)([cut])


def test_a_window_without_targets_is_invalid() -> None:
    with pytest.raises(InvalidLossError) as caught:
        Scorer(Bare())([Window((3, 4), (), 0, None)])
    assert str(caught.value) == "window 1 of 1 scores no token"


def test_what_the_model_raises_names_the_window() -> None:
    model = build_model("opt", vocab=VOCAB, max_position_embeddings=16)
    with pytest.raises(MeasurementError) as caught:
        Scorer(model)(windows(1, 48))
    assert str(caught.value).startswith(
        "the model failed on window 1 of 1 (page 1) (48 tokens): IndexError: "
    )


def test_scoring_leaves_the_random_state_alone() -> None:
    model = build_model("llama", vocab=VOCAB)
    before = torch.get_rng_state()
    Scorer(model)(windows(1))
    assert torch.equal(torch.get_rng_state(), before)
