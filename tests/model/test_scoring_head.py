"""Losses in one buffer against cross_entropy, and heads that are not a plain one."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from pytest_pplguard.planning import CHUNK_BYTES
from pytest_pplguard.scoring import Scorer, head, nll
from pytest_pplguard.scoring.head import losses
from tests.model.test_scoring_batches import nats, windows
from tests.model.tiny import build_model

VOCAB, WIDTH, COUNT = 997, 24, 53


@pytest.fixture(autouse=True)
def _no_gradients() -> Any:
    with torch.no_grad():
        yield


def rows(dtype: torch.dtype = torch.float32, width: int = WIDTH) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(90, width, generator=generator).to(dtype)


POSITIONS = torch.arange(3, 3 + COUNT)
TARGETS = torch.arange(COUNT) * 17 % VOCAB


def textbook(states: torch.Tensor, output: nn.Module | None) -> torch.Tensor:
    """All logits at once, in float32 where they are in half, and cross entropy."""
    logits = states[POSITIONS] if output is None else output(states[POSITIONS])
    if logits.dtype in (torch.float16, torch.bfloat16):
        logits = logits.float()
    return nn.functional.cross_entropy(logits, TARGETS, reduction="none")


@pytest.mark.parametrize("chunk", [1, 2, 10, 1000])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16]
)
def test_one_buffer_has_the_losses_of_cross_entropy(
    dtype: torch.dtype, bias: bool, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(CHUNK_BYTES, "cpu", 4 * 2 * chunk * VOCAB)
    output = nn.Linear(WIDTH, VOCAB, bias=bias).to(dtype)
    states = rows(dtype)
    assert head._filling(states, output) is not None
    found = losses(states, POSITIONS, TARGETS, output)
    # The same product of the same rows: the chunks that it was made in.
    size = head.chunk_size(states, output)
    parts = [
        nll(output(states[POSITIONS[part]]), TARGETS[part])
        for part in head._parts(COUNT, size)
    ]
    assert torch.equal(found.double(), torch.cat(parts))
    close = 1e-5 if dtype.itemsize >= 4 else 5e-2
    assert torch.allclose(found, textbook(states, output).to(found), rtol=close)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_logits_have_the_losses_of_cross_entropy_and_stay(dtype: torch.dtype) -> None:
    logits = rows(dtype, VOCAB)
    before = logits.clone()
    found = losses(logits, POSITIONS, TARGETS, None)
    assert torch.equal(found, textbook(logits, None))
    assert torch.equal(logits, before)


class Scaled(nn.Linear):
    """A head that does more than its weight says."""

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        return super().forward(states) * 0.5


def hooked() -> nn.Module:
    output = nn.Linear(WIDTH, VOCAB)
    output.register_forward_hook(lambda module, args, logits: logits * 0.5)
    return output


def hooked_before() -> nn.Module:
    output = nn.Linear(WIDTH, VOCAB)
    output.register_forward_pre_hook(lambda module, args: (args[0] * 0.5,))
    return output


def replaced() -> nn.Module:
    """As accelerate does it."""
    output: Any = nn.Linear(WIDTH, VOCAB)
    forward = output.forward
    output.forward = lambda states: forward(states) * 0.5
    return output  # type: ignore[no-any-return]


def parametrized() -> nn.Module:
    class Half(nn.Module):
        def forward(self, weight: torch.Tensor) -> torch.Tensor:
            return weight * 0.5

    output = nn.Linear(WIDTH, VOCAB)
    nn.utils.parametrize.register_parametrization(output, "weight", Half())
    return output


@pytest.mark.parametrize(
    "make",
    [lambda: Scaled(WIDTH, VOCAB), hooked, hooked_before, replaced, parametrized],
)
def test_a_head_that_does_more_is_called(make: Any) -> None:
    output = make()
    assert head._filling(rows(), output) is None
    found = losses(rows(), POSITIONS, TARGETS, output)
    assert torch.allclose(found, textbook(rows(), output), rtol=1e-5)


def test_autocast_changes_a_plain_head() -> None:
    output = nn.Linear(WIDTH, VOCAB)
    with torch.autocast("cpu", torch.bfloat16):
        assert head._filling(rows(), output) is None
        found = losses(rows(), POSITIONS, TARGETS, output)
        expected = textbook(rows(), output)
    assert torch.allclose(found.float(), expected.float(), rtol=1e-3)


def test_a_head_in_another_dtype_is_called() -> None:
    output = nn.Linear(WIDTH, VOCAB).double()
    assert head._filling(rows(), output) is None


@pytest.mark.parametrize("count", [1, 7, 300, 2047])
def test_chunks_are_even_and_as_few_as_can_be(count: int) -> None:
    parts = list(head._parts(count, 300))
    sizes = [len(range(count)[part]) for part in parts]
    assert sum(sizes) == count
    assert max(sizes) <= 300
    assert len(sizes) == -(-count // 300)
    assert max(sizes) - min(sizes) < len(sizes)


def test_no_more_logits_exist_than_the_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[int] = []
    empty = torch.Tensor.new_empty

    def new_empty(tensor: torch.Tensor, *size: Any) -> torch.Tensor:
        result = empty(tensor, *size)
        made.append(result.numel())
        return result

    monkeypatch.setattr(torch.Tensor, "new_empty", new_empty)
    monkeypatch.setitem(CHUNK_BYTES, "cpu", 4 * 10 * 320)
    model = build_model("llama", vocab=320)
    cut = windows((48, 40))
    scores = Scorer(model)(cut)
    assert max(made) <= 10 * 320
    assert [score.nll_sum for score in scores] == pytest.approx(
        nats(model, cut), rel=2e-6
    )
