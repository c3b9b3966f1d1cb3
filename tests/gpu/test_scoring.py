"""The scorer on an accelerator: memory that really ends, and nothing that waits."""

from __future__ import annotations

import itertools
import math
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import nn

from pytest_pplguard.errors import DeviceError
from pytest_pplguard.planning import CHUNK_BYTES
from pytest_pplguard.scoring import Scorer, memory, scorer
from pytest_pplguard.scoring.head import losses
from tests.model.test_scoring_batches import VOCAB, counted, windows
from tests.model.tiny import build_model

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        not torch.accelerator.is_available(), reason="needs an accelerator"
    ),
]
on_cuda = pytest.mark.skipif(
    not torch.cuda.is_available(), reason="needs torch's device cuda"
)


def build(arch: str, vocab: int = VOCAB, dtype: torch.dtype = torch.float32) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = build_model(arch, vocab=vocab)
    return model.to(torch.accelerator.current_accelerator(), dtype)


@contextmanager
def at_most(more: int) -> Iterator[None]:
    """No more than so many bytes beside those that tensors have now."""
    torch.cuda.empty_cache()
    total = torch.cuda.mem_get_info()[1]
    fraction = (torch.cuda.memory_reserved() + more) / total
    torch.cuda.set_per_process_memory_fraction(fraction)
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
        torch.cuda.empty_cache()


@on_cuda
def test_auto_backs_off_and_loses_no_window(monkeypatch: pytest.MonkeyPatch) -> None:
    """Gemma-2's full logits: 32 MB a window, and some copies of them."""
    # Every batch takes one second, so that it pays to read more at once.
    monkeypatch.setattr(scorer, "_clock", itertools.count().__next__)
    backed_off: list[torch.device] = []
    give_back = memory.give_back

    def counting(device: torch.device) -> None:
        backed_off.append(device)
        give_back(device)

    monkeypatch.setattr(memory, "give_back", counting)
    model = build("gemma2", 8192)
    cut = windows((1024,) * 96)
    alone = Scorer(model)(cut)
    with at_most(1_000_000_000), counted(model) as shapes:
        scores = Scorer(model, batch_size="auto")(cut)
    assert backed_off
    assert max(count for count, _ in shapes) > 2
    assert [score.nll_sum for score in scores] == pytest.approx(
        [score.nll_sum for score in alone], rel=1e-6
    )


@on_cuda
def test_one_window_too_large_says_what_is_missing() -> None:
    model = build("gemma2", 8192)
    pattern = (
        r"out of memory on cuda:\d+ at window 1 of 1 \(page 1\) \(2000 tokens, float32"
        r"\): [\d.]+ GiB more were needed, [\d.]+ of [\d.]+ GiB are free; use a half-"
    )
    Scorer(model)(windows((16,)))  # libraries take their own memory
    with at_most(40_000_000), pytest.raises(DeviceError, match=pattern):
        Scorer(model, batch_size="auto")(windows((2000,)))


@pytest.mark.parametrize("batch_size", [3, 8, "auto"])
@pytest.mark.parametrize("arch", ["llama", "opt", "gemma2", "mixtral"])
def test_packed_windows_have_the_losses_that_each_has_alone(
    arch: str, batch_size: Any
) -> None:
    model, cut = build(arch), windows()
    alone = [score.nll_sum for score in Scorer(model)(cut)]
    reader = Scorer(model, batch_size=batch_size)
    together = [score.nll_sum for score in reader(cut)]
    assert together == pytest.approx(alone, rel=1e-5)
    assert math.fsum(together) == pytest.approx(math.fsum(alone), rel=1e-6)
    assert not any("equal length" in notice for notice in reader.notices)


@pytest.mark.parametrize("batch_size", [3, 8])
def test_in_bfloat16_shapes_change_the_rounding(batch_size: int) -> None:
    model, cut = build("llama", dtype=torch.bfloat16), windows()
    alone = [score.nll_sum for score in Scorer(model)(cut)]
    reader = Scorer(model, batch_size=batch_size)
    together = [score.nll_sum for score in reader(cut)]
    assert together == pytest.approx(alone, rel=2e-2)
    assert reader.notices == []


@on_cuda
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("plain", [True, False])
def test_no_chunk_waits_for_the_device(
    plain: bool, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(CHUNK_BYTES, "accelerator", 4 * 16 * 500)
    output = nn.Linear(32, 500, bias=False).to("cuda", dtype) if plain else None
    rows = torch.randn(100, 32 if plain else 500, device="cuda", dtype=dtype)
    positions = torch.arange(1, 95, device="cuda")
    targets = positions * 5
    with torch.no_grad():
        losses(rows, positions, targets, output)  # loads kernels
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error")
        try:
            found = losses(rows, positions, targets, output)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        logits = rows[1:95] if output is None else output(rows[1:95])
        expected = nn.functional.cross_entropy(
            logits.float(), targets, reduction="none"
        )
    close = 1e-5 if dtype == torch.float32 else 1e-2
    assert torch.allclose(found, expected, rtol=close)


@on_cuda
@pytest.mark.skipif(
    not (shutil.which("gcc") or shutil.which("cc") or shutil.which("clang")),
    reason="triton needs a C compiler",
)
def test_a_compiled_model_has_the_same_losses() -> None:
    model, cut = build("llama"), windows((64,) * 4)
    usual = [score.nll_sum for score in Scorer(model)(cut)]
    compiled = [score.nll_sum for score in Scorer(model, compile=True)(cut)]
    assert compiled == pytest.approx(usual, rel=1e-5)
