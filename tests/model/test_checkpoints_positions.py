"""How long a window may be, read without weights: as the loaded model says."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pytest_pplguard.checkpoints import locate, positions
from pytest_pplguard.errors import CheckpointError
from tests.model.tiny import save_tiny
from tests.official import smollm2_gguf


def test_a_folder_without_weights(tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "m", max_position_embeddings=96)
    (folder / "model.safetensors").unlink()
    assert positions(locate(str(folder))) == 96


def test_a_config_that_calls_it_otherwise(tmp_path: Path) -> None:
    """GPT-2's ``n_positions`` is what transformers calls max_position_embeddings."""
    folder = save_tiny(tmp_path / "m")
    config = {"model_type": "gpt2", "n_positions": 77, "n_embd": 8, "n_head": 2}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    assert positions(locate(str(folder))) == 77


def test_a_config_that_does_not_say(tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "m")
    (folder / "config.json").write_text('{"model_type": "bloom"}', encoding="utf-8")
    assert positions(locate(str(folder))) is None


def test_a_config_of_no_known_model(tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "m")
    (folder / "config.json").write_text('{"model_type": "nosuch"}', encoding="utf-8")
    with pytest.raises(CheckpointError, match="m: its config could not be read: "):
        positions(locate(str(folder)))


def test_a_gguf_file() -> None:
    file = smollm2_gguf()
    assert positions(locate(str(file))) == 8192
