"""Harmless re-saves of real models are no difference; what matters is named."""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from pytest_pplguard.checkpoints import Located, fingerprint
from pytest_pplguard.diff import compare, lines
from pytest_pplguard.values import Fingerprint
from tests.model.tiny import (
    ARCHITECTURES,
    build_tokenizer,
    save,
    save_tiny,
    save_tokenizer,
)


def taken(folder: Path) -> Fingerprint:
    return fingerprint(Located(str(folder), folder))


def saved_again(
    source: Path, path: Path, *, shard: str | None = None, dtype: str = "auto"
) -> Path:
    model = AutoModelForCausalLM.from_pretrained(source, dtype=dtype)
    save(model, path, shard)
    AutoTokenizer.from_pretrained(source).save_pretrained(path)
    return path


@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("shard", [None, "20KB"])
def test_a_checkpoint_that_transformers_saves_again(
    tmp_path: Path, arch: str, shard: str | None
) -> None:
    tiny = save_tiny(tmp_path / "tiny", arch, dtype="bfloat16")
    again = saved_again(tiny, tmp_path / "again", shard=shard)
    difference = compare(taken(tiny), taken(again))
    assert (difference.matters, difference.changes) == (False, ())


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_a_float32_copy(tmp_path: Path, arch: str) -> None:
    tiny = save_tiny(tmp_path / "tiny", arch, dtype="bfloat16")
    again = saved_again(tiny, tmp_path / "again", dtype="float32")
    difference = compare(taken(tiny), taken(again))
    assert not difference.matters
    total = len(taken(again).weights)
    assert lines(difference) == [
        f"all {total} tensors: BF16 -> F32, the same numbers",
        "config: dtype bfloat16 -> float32",
        "the tokenizer is the same",
    ]


@pytest.mark.parametrize("arch", ["llama", "opt", "gpt_neox", "mixtral"])
def test_a_model_saved_without_its_head(tmp_path: Path, arch: str) -> None:
    tiny = save_tiny(tmp_path / "tiny", arch, tie_word_embeddings=True)
    body = AutoModelForCausalLM.from_pretrained(tiny).base_model
    save(body, tmp_path / "body")
    save_tokenizer(build_tokenizer(), tmp_path / "body")
    difference = compare(taken(tiny), taken(tmp_path / "body"))
    print(lines(difference))
    assert not difference.matters
