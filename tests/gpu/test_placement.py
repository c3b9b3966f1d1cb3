"""Layers on GPUs, beside them in the CPU's memory, and on disk: the bits of one GPU."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from pytest_pplguard.checkpoints import (
    Loaded,
    Placement,
    load,
    locate,
    model_digest,
)
from pytest_pplguard.corpora import open_corpus
from pytest_pplguard.measure import measure_loaded
from pytest_pplguard.measure.loading import load_target
from pytest_pplguard.measure.subject import facts_of
from pytest_pplguard.options import Options, Target
from pytest_pplguard.values import Key, Measurement
from tests.model.tiny import save_tiny

GPUS = torch.cuda.device_count()
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(GPUS == 0, reason="needs a CUDA GPU"),
]
TWO = pytest.mark.skipif(GPUS < 2, reason="needs two GPUs")
ONE_AND_A_LAYER = 180_000
"""Bytes for the embedding, a layer or two, and room for one that is brought there."""


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """268 kB in float32: five layers of 37 kB, embedding and head of 41 kB each."""
    folder = tmp_path_factory.mktemp("tiny") / "tiny"
    return save_tiny(folder, num_hidden_layers=5, tie_word_embeddings=False)


def read(path: Path, max_memory: dict[int | str, int]) -> Loaded:
    place = Placement("cuda:0", max_memory)
    return load(locate(str(path)), device=place, dtype="float32")


def measure(loaded: Loaded, key: str = "wanda/demo:64:first6") -> Measurement:
    return measure_loaded(
        loaded, Key.parse(key), lambda name: open_corpus(name, {}), batch_size=2
    )


@pytest.mark.parametrize(
    ("max_memory", "devices"),
    [
        ({0: ONE_AND_A_LAYER, "cpu": 10**9}, {0, "cpu"}),
        ({0: ONE_AND_A_LAYER, "cpu": 90_000}, {0, "cpu", "disk"}),
        ({0: ONE_AND_A_LAYER}, {0, "disk"}),
        pytest.param({0: ONE_AND_A_LAYER, 1: 10**9}, {0, 1}, marks=TWO),
    ],
)
def test_the_bits_of_one_gpu(
    max_memory: dict[int | str, int], devices: set[object], path: Path
) -> None:
    plain, placed = read(path, {}), read(path, max_memory)
    assert set(placed.model.hf_device_map.values()) == devices
    for key in ("wanda/demo:64:first6", "lm-eval/wikitext+demo:64:first2"):
        expected, found = measure(plain, key), measure(placed, key)
        assert found.evidence == expected.evidence
        assert found.notices == expected.notices
        assert found.environment == expected.environment
    assert model_digest(placed.model) == model_digest(plain.model)
    assert placed.device == "cuda:0"
    assert facts_of(placed).device_name == torch.cuda.get_device_name(0)


def test_sizes_that_a_user_types(path: Path) -> None:
    said: list[str] = []
    loaded = load_target(
        Target("it", str(path)),
        Options(max_memory={"0": ONE_AND_A_LAYER, "cpu": 10**9}, dtype="float32"),
        tell=lambda *lines: said.extend(lines),
    )
    [notice] = said
    assert notice.startswith(f"where the layers of {path} are: GPU 0: ")
    assert "; cpu: " in notice
    assert measure(loaded).evidence == measure(read(path, {})).evidence


@TWO
def test_auto_spreads_over_gpus_that_are_too_small_alone(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pytest_pplguard.measure import loading

    monkeypatch.setattr(
        loading, "free_memory", lambda hardware, index: 220_000 if index < 2 else 0
    )
    loaded = load_target(
        Target("it", str(path)), Options(dtype="float32"), tell=lambda *lines: None
    )
    assert set(loaded.model.hf_device_map.values()) == {0, 1}
    assert measure(loaded).evidence == measure(read(path, {})).evidence
