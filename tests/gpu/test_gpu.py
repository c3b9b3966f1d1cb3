"""What only an accelerator can show; skipped without one."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from pytest_pplguard.checkpoints import (
    choose_device,
    load,
    locate,
    probe,
    state_digest,
)
from pytest_pplguard.corpora import open_corpus
from pytest_pplguard.measure import measure_loaded
from pytest_pplguard.values import Key
from tests.model.tiny import save_tiny

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        not torch.accelerator.is_available(), reason="needs an accelerator"
    ),
]

KEYS = ("wanda/demo:256", "lm-eval/wikitext+demo:256:first3")


def test_auto_takes_the_accelerator() -> None:
    hardware = probe()
    assert hardware.count >= 1
    assert choose_device("auto", hardware).device.startswith(str(hardware.accelerator))


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize(("dtype", "apart"), [("float32", 1e-4), ("bfloat16", 2e-2)])
def test_the_demo_reads_as_on_the_cpu(key: str, dtype: str, apart: float) -> None:
    located = locate("demo/wanda-50")
    device = choose_device("auto", probe()).device
    here = load(located, device=device, dtype=dtype)
    there = load(located, device="cpu", dtype="float32")
    measured, expected = (
        measure_loaded(loaded, Key.parse(key), lambda name: open_corpus(name, {}))
        for loaded in (here, there)
    )
    assert measured.metrics == pytest.approx(expected.metrics, rel=apart)
    assert measured.windows_digest == expected.windows_digest
    assert measured.environment["device"] == device.partition(":")[0]


def test_a_change_of_one_weight_is_seen(tmp_path: Path) -> None:
    located = locate(str(save_tiny(tmp_path / "tiny")))
    device = choose_device("auto", probe()).device
    model = load(located, device=device, dtype="float32").model
    before = state_digest(model)
    assert state_digest(model) == before
    model.model.layers[1].mlp.up_proj.weight.data[3, 4] = 0
    assert state_digest(model) != before
