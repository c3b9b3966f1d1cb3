"""The state digest sees every change of a live model, and nothing else."""

from __future__ import annotations

import importlib
import linecache
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from pytest_pplguard.checkpoints import load, locate, model_digest, state_digest
from pytest_pplguard.checkpoints.state import device_hash

from .tiny import build_model, save_tiny

ROOT = Path(__file__).parents[2]


@pytest.fixture
def model() -> Any:
    return build_model("llama")


def one_element(model: Any) -> None:
    model.model.layers[1].mlp.down_proj.weight.data[31, 63] += 1e-6


def wanda_mask(model: Any) -> None:
    weight = model.model.layers[0].mlp.up_proj.weight
    weight.data[weight.abs() < 0.01] = 0


def sign_of_zero(model: Any) -> None:
    model.lm_head.weight.data[5, 5] = -0.0


def buffer(model: Any) -> None:
    model.model.rotary_emb.inv_freq[0] *= 2


def hook(model: Any) -> None:
    model.lm_head.register_forward_hook(lambda *_: None)


def pre_hook(model: Any) -> None:
    model.model.register_forward_pre_hook(lambda *_: None)


def swapped_tensors(model: Any) -> None:
    mlp = model.model.layers[0].mlp
    gate, up = mlp.gate_proj.weight, mlp.up_proj.weight
    gate.data, up.data = up.data, gate.data


def swapped_elements(model: Any) -> None:
    row = model.lm_head.weight.data[0]
    row[[0, 1]] = row[[1, 0]]


def training_flag(model: Any) -> None:
    model.model.layers[0].train()


def replaced_module(model: Any) -> None:
    old = model.lm_head

    class Head(nn.Linear):
        pass

    model.lm_head = Head(old.in_features, old.out_features, bias=False)
    model.lm_head.weight = old.weight
    model.lm_head.eval()


def replaced_forward(model: Any) -> None:
    model.lm_head.forward = lambda hidden: hidden


def tied(model: Any) -> None:
    model.lm_head.weight = nn.Parameter(model.lm_head.weight.clone())
    model.model.embed_tokens.weight = model.lm_head.weight


def half(model: Any) -> None:
    model.lm_head.bfloat16()


def attention(model: Any) -> None:
    model.set_attn_implementation("eager")


@pytest.mark.parametrize(
    "change",
    [
        one_element,
        wanda_mask,
        sign_of_zero,
        buffer,
        hook,
        pre_hook,
        swapped_tensors,
        swapped_elements,
        training_flag,
        replaced_module,
        replaced_forward,
        tied,
        half,
        attention,
    ],
)
def test_change_is_seen(model: Any, change: Callable[[Any], None]) -> None:
    model.lm_head.weight.data[5, 5] = 0.0
    before = state_digest(model)
    change(model)
    assert state_digest(model) != before


def test_reading_changes_nothing(model: Any) -> None:
    before = state_digest(model)
    with torch.inference_mode():
        model(torch.tensor([[0, 5, 6]]))
    assert state_digest(model) == before
    handle = model.lm_head.register_forward_hook(lambda *_: None)
    handle.remove()
    assert state_digest(model) == before


def test_change_that_was_undone(model: Any) -> None:
    before = state_digest(model)
    saved = {name: t.clone() for name, t in model.state_dict().items()}
    wanda_mask(model)
    model.load_state_dict(saved)
    assert state_digest(model) == before


def test_non_contiguous_and_meta_tensors() -> None:
    model = nn.Module()
    model.register_buffer("transposed", torch.arange(12.0).reshape(3, 4).t())
    model.register_buffer("scalar", torch.tensor(1, dtype=torch.int8))
    model.register_buffer("empty", torch.zeros(0, 3))
    model.register_buffer("far", torch.zeros(2, device="meta"))
    before = state_digest(model)
    transposed: Any = model.transposed
    transposed[3, 2] = -1
    assert state_digest(model) != before


@pytest.mark.parametrize("size", [8, 24, 64, 7, 13])
def test_device_hash_sees_every_bit(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pytest_pplguard.checkpoints.state._CHUNK", 4)
    data = torch.randint(0, 256, (size,), dtype=torch.uint8)
    seen = {device_hash(data)}
    for position in range(size):
        for bit in range(8):
            changed = data.clone()
            changed[position] ^= 1 << bit
            seen.add(device_hash(changed))
    assert len(seen) == 1 + 8 * size
    assert device_hash(data.clone()) in seen
    assert device_hash(torch.cat([data, data])[size:]) == device_hash(data)


# ----------------------------------------------------------------- which model it is


def digest_of(path: Path) -> str | None:
    return model_digest(load(locate(str(path)), device="cpu", dtype="float32").model)


def test_another_process_and_another_folder_give_the_same_digest(
    tmp_path: Path,
) -> None:
    expected = digest_of(save_tiny(tmp_path / "one"))
    again = save_tiny(tmp_path / "elsewhere")
    code = (
        "from pytest_pplguard.checkpoints import load, locate, model_digest\n"
        f"located = locate({str(again)!r})\n"
        "print(model_digest(load(located, device='cpu', dtype='float32').model))"
    )
    run = subprocess.run(
        [sys.executable, "-c", code],
        check=True,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert run.stdout.strip() == expected


def test_weights_and_config_are_in_the_digest_and_names_are_not(tmp_path: Path) -> None:
    path = save_tiny(tmp_path / "model")
    loaded = load(locate(str(path)), device="cpu", dtype="float32")
    first = model_digest(loaded.model)
    loaded.model.config._name_or_path = "elsewhere"
    assert model_digest(loaded.model) == first
    loaded.model.config.rms_norm_eps *= 2
    second = model_digest(loaded.model)
    one_element(loaded.model)
    third = model_digest(loaded.model)
    assert len({first, second, third}) == 3


def test_the_source_of_a_models_own_code_is_in_the_digest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    source = tmp_path / "own_code.py"
    digests = set()
    for factor in (1, 2):
        source.write_text(
            "from torch import nn\n\n\nclass Own(nn.Identity):\n"
            f"    def forward(self, x):\n        return {factor} * x\n"
        )
        sys.modules.pop("own_code", None)
        linecache.clearcache()
        importlib.invalidate_caches()
        own = importlib.import_module("own_code")
        model = build_model("llama")
        model.model.norm = own.Own()
        digests.add(model_digest(model))
    sys.modules.pop("own_code", None)
    assert len(digests) == 2
