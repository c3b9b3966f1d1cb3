"""Harmless re-saves of real models are no difference; what matters is named."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer
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
    assert not difference.matters
    assert lines(difference)[-1] == "all weights and the tokenizer are the same"


def test_other_tokenizers(tmp_path: Path) -> None:
    tiny = save_tiny(tmp_path / "tiny")
    before = taken(tiny)

    def named(tokenizer: Tokenizer) -> list[str]:
        save_tokenizer(tokenizer, tiny)
        return lines(compare(before, taken(tiny)))

    without = build_tokenizer(bos=False)
    assert [line.split(" {")[0] for line in named(without)] == [
        "tokenizer: add_bos_token true -> false",
        "tokenizer: post_processor",
        "all weights and the config are the same",
    ]
    shifted = json.loads(build_tokenizer().to_str())
    vocabulary = shifted["model"]["vocab"]
    first, second = (token for token, place in vocabulary.items() if place in (5, 6))
    vocabulary[first], vocabulary[second] = vocabulary[second], vocabulary[first]
    assert named(Tokenizer.from_str(json.dumps(shifted))) == [
        "tokenizer: the same 320 tokens have other ids",
        "all weights and the config are the same",
    ]
    merges = json.loads(build_tokenizer().to_str())
    merges["model"]["merges"].reverse()
    assert named(Tokenizer.from_str(json.dumps(merges))) == [
        f"tokenizer: merges differ: {len(merges['model']['merges'])} merges before and "
        "now, but not the same",
        "all weights and the config are the same",
    ]


def test_a_merged_adapter(tmp_path: Path) -> None:
    import peft

    tiny = save_tiny(tmp_path / "tiny")
    model = AutoModelForCausalLM.from_pretrained(tiny)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "proj" in name:
                weight[:, ::2] = 0
    save(model, tiny)
    before = taken(tiny)
    config = peft.LoraConfig(
        r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        merged = peft.get_peft_model(model, config).merge_and_unload()
    save(merged, tiny)
    assert lines(compare(before, taken(tiny))) == [
        "all 2 layers, self_attn.q_proj, self_attn.v_proj: mask lost, 50.0 % -> 0.0 %",
        "all other weights (17 tensors), the config and the tokenizer are the same",
    ]


def test_another_seed_and_a_wrong_rope(tmp_path: Path) -> None:
    tiny = save_tiny(tmp_path / "tiny")
    other = save_tiny(tmp_path / "other", seed=1)
    assert lines(compare(taken(tiny), taken(other)))[0] == (
        "tensors all over the model differ, embeddings too (16 of 21 tensors), and by "
        "much: another model, or one trained anew?"
    )
    turned = save_tiny(tmp_path / "rope", rope_parameters={"rope_theta": 5e5})
    assert lines(compare(taken(tiny), taken(turned))) == [
        "config: rope_theta 10000.0 -> 500000.0",
        "all weights and the tokenizer are the same",
    ]
