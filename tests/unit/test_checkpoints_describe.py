"""Config and tokenizer are described the same whoever saved them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pytest_pplguard.checkpoints.describe import describe_config, describe_tokenizer
from pytest_pplguard.checkpoints.locate import Located
from pytest_pplguard.errors import CheckpointError


def config(folder: Path, settings: dict[str, Any]) -> dict[str, Any]:
    (folder / "config.json").write_text(json.dumps(settings))
    return describe_config(Located("m", folder))


def tokenizer(folder: Path, **files: Any) -> dict[str, str]:
    for path in folder.iterdir():
        path.unlink()
    for stem, content in files.items():
        (folder / f"{stem}.json").write_text(json.dumps(content))
    return describe_tokenizer(Located("m", folder))


SIZES = {"hidden_size": 64, "num_attention_heads": 4, "num_hidden_layers": 2}


@pytest.mark.parametrize(
    ("four", "five"),
    [
        (
            {"rope_theta": 5e5, "rope_scaling": None, "torch_dtype": "bfloat16"},
            {
                "rope_parameters": {"rope_theta": 5e5, "rope_type": "default"},
                "dtype": "bfloat16",
            },
        ),
        (
            {"rope_theta": 1e4, "rope_scaling": {"type": "linear", "factor": 2.0}},
            {
                "rope_parameters": {
                    "rope_theta": 1e4,
                    "rope_type": "linear",
                    "factor": 2.0,
                }
            },
        ),
        (
            {"rope_theta": 1e6, "rope_local_base_freq": 1e4},
            {
                "rope_parameters": {
                    "full_attention": {"rope_theta": 1e6, "rope_type": "default"},
                    "sliding_attention": {"rope_theta": 1e4, "rope_type": "default"},
                }
            },
        ),
        (
            {"rope_theta": 1e4, "partial_rotary_factor": 0.25},
            {"rope_parameters": {"rope_theta": 1e4, "partial_rotary_factor": 0.25}},
        ),
        (
            {"use_sliding_window": False, "sliding_window": 4096},
            {
                "use_sliding_window": False,
                "sliding_window": None,
                "layer_types": ["full_attention", "full_attention"],
            },
        ),
        (
            {"architectures": ["B", "A"], "transformers_version": "4.40"},
            {
                "architectures": ["A", "B"],
                "num_key_value_heads": 4,
                "head_dim": 16,
                "pad_token_id": None,
                "use_cache": False,
                "id2label": {"0": "x"},
            },
        ),
        (
            {},
            {"quantization_config": {"quant_method": "compressed-tensors",
                                     "format": "dense", "sparsity_config": {"a": 1}}},
        ),
    ],
)  # fmt: skip
def test_versions_of_transformers_say_the_same(
    tmp_path: Path, four: dict[str, Any], five: dict[str, Any]
) -> None:
    assert config(tmp_path, {**SIZES, **four}) == config(tmp_path, {**five, **SIZES})


def test_what_decides_is_kept_by_dotted_names(tmp_path: Path) -> None:
    found = config(
        tmp_path,
        {
            **SIZES,
            "num_key_value_heads": 2,
            "head_dim": 32,
            "torch_dtype": "torch.float16",
            "rope_theta": 1e4,
            "rope_scaling": {
                "rope_type": "yarn",
                "factor": 4.0,
                "long_factor": [1.0] * 99,
            },
            "my_knob": {"a": {"b": 3}},
            "time_step_limit": [0.0, float("inf")],
            "text_config": {"hidden_size": 8, "rope_parameters": {"rope_theta": 7.0}},
        },
    )
    assert found.pop("rope_scaling.long_factor").startswith("99 items, ")
    assert found == {
        **SIZES,
        "num_key_value_heads": 2,
        "head_dim": 32,
        "dtype": "float16",
        "rope_theta": 1e4,
        "rope_scaling.rope_type": "yarn",
        "rope_scaling.factor": 4.0,
        "my_knob.a.b": 3,
        "time_step_limit": [0.0, "inf"],
        "text_config.hidden_size": 8,
        "text_config.rope_theta": 7.0,
    }
    json.dumps(found, allow_nan=False)


def test_a_contradiction_keeps_both(tmp_path: Path) -> None:
    found = config(
        tmp_path, {"rope_theta": 1e4, "rope_parameters": {"rope_theta": 5e5}}
    )
    assert found == {"rope_theta": 1e4, "rope_parameters.rope_theta": 5e5}


def test_an_adapter_adds_its_settings(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(SIZES))
    (tmp_path / "adapter_config.json").write_text(
        json.dumps({"r": 8, "lora_alpha": 16, "target_modules": ["v", "q"], "x": 1})
    )
    base = Located("org/base", tmp_path)
    assert describe_config(Located("a", tmp_path, base=base)) == {
        **SIZES,
        "adapter.base": "org/base",
        "adapter.r": 8,
        "adapter.lora_alpha": 16,
        "adapter.target_modules": ["q", "v"],
    }


def test_a_config_that_is_nested_too_deeply_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"a":' * 100_000 + "1" + "}" * 100_000)
    with pytest.raises(CheckpointError, match=r"config\.json"):
        describe_config(Located("m", tmp_path))


# -------------------------------------------------------------------------- tokenizer

TEMPLATE = {
    "type": "TemplateProcessing",
    "single": [{"SpecialToken": {"id": "<s>"}}, {"Sequence": {"id": "A"}}],
    "pair": [],
    "special_tokens": {"<s>": {"ids": [0]}},
}
WHOLE: dict[str, Any] = {
    "version": "1.0",
    "truncation": None,
    "padding": None,
    "added_tokens": [
        {"id": 1, "content": "</s>", "special": True, "lstrip": True},
        {"id": 0, "content": "<s>", "special": True},
    ],
    "normalizer": None,
    "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False},
    "post_processor": TEMPLATE,
    "decoder": {"type": "ByteLevel"},
    "model": {
        "type": "BPE",
        "dropout": None,
        "byte_fallback": False,
        "vocab": {"<s>": 0, "</s>": 1, "a": 2, "b": 3, "ab": 4},
        "merges": ["a b"],
    },
}


def changed(**parts: Any) -> dict[str, Any]:
    return {**WHOLE, **parts}


def with_model(**parts: Any) -> dict[str, Any]:
    return changed(model={**WHOLE["model"], **parts})


def test_the_parts_of_a_tokenizer(tmp_path: Path) -> None:
    settings = {
        "bos_token": "<s>",
        "eos_token": {"content": "</s>"},
        "tokenizer_class": "LlamaTokenizerFast",
        "chat_template": "x",
        "model_max_length": 5,
    }
    found = tokenizer(tmp_path, tokenizer=WHOLE, tokenizer_config=settings)
    vocabulary, ids, merges = (
        found.pop(key) for key in ("vocabulary", "token ids", "merges")
    )
    assert vocabulary.startswith("5 tokens, ")
    assert ids.startswith("5 ids, ")
    assert merges.startswith("1 merges, ")
    assert found == {
        "add_bos_token": "true",
        "add_eos_token": "false",
        "added tokens": "<s>=0 </s>=1[lstrip]",
        "bos_token": "<s>",
        "eos_token": "</s>",
        "tokenizer_class": "LlamaTokenizer",
        "model": '{"type":"BPE"}',
        "pre_tokenizer": '{"add_prefix_space":false,"type":"ByteLevel"}',
        "post_processor": (
            '{"single":[{"SpecialToken":{"id":"<s>"}},{"Sequence":{"id":"A"}}],'
            '"special_tokens":{"<s>":{"ids":[0]}},"type":"TemplateProcessing"}'
        ),
        "decoder": '{"type":"ByteLevel"}',
    }


@pytest.mark.parametrize(
    "same",
    [
        changed(truncation={"max_length": 5}, padding={"strategy": "x"}),
        changed(added_tokens=WHOLE["added_tokens"][::-1]),
        changed(pre_tokenizer={**WHOLE["pre_tokenizer"], "trim_offsets": True}),
        changed(post_processor={**TEMPLATE, "pair": [1]}),
        with_model(merges=[["a", "b"]]),
        with_model(vocab=dict(reversed(WHOLE["model"]["vocab"].items()))),
        with_model(unk_token=None, ignore_merges=False),
    ],
)
def test_what_changes_no_token_is_no_difference(
    tmp_path: Path, same: dict[str, Any]
) -> None:
    assert tokenizer(tmp_path, tokenizer=same) == tokenizer(tmp_path, tokenizer=WHOLE)


@pytest.mark.parametrize(
    ("other", "parts"),
    [
        (
            with_model(vocab={"<s>": 0, "</s>": 1, "a": 3, "b": 2, "ab": 4}),
            {"token ids"},
        ),
        (
            with_model(vocab={"<s>": 0, "</s>": 1, "a": 2, "b": 3, "ba": 4}),
            {"token ids", "vocabulary"},
        ),
        (with_model(merges=["b a"]), {"merges"}),
        (with_model(byte_fallback=True), {"model"}),
        (changed(normalizer={"type": "NFC"}), {"normalizer"}),
        (changed(pre_tokenizer={"type": "Whitespace"}), {"pre_tokenizer"}),
        (changed(post_processor=None), {"post_processor", "add_bos_token"}),
        (changed(added_tokens=WHOLE["added_tokens"][:1]), {"added tokens"}),
        (changed(decoder={"type": "Other"}), {"decoder"}),
    ],
)
def test_a_part_that_differs_is_the_one_that_is_told(
    tmp_path: Path, other: dict[str, Any], parts: set[str]
) -> None:
    one, two = (tokenizer(tmp_path, tokenizer=each) for each in (WHOLE, other))
    assert {key for key in one | two if one.get(key) != two.get(key)} == parts


def test_a_flag_wins_over_the_template_and_is_absent_where_it_says_the_same(
    tmp_path: Path,
) -> None:
    plain = tokenizer(tmp_path, tokenizer=WHOLE)
    said = tokenizer(
        tmp_path, tokenizer=WHOLE, tokenizer_config={"add_bos_token": True}
    )
    denied = tokenizer(
        tmp_path, tokenizer=WHOLE, tokenizer_config={"add_bos_token": False}
    )
    assert said == plain
    assert (plain["add_bos_token"], denied["add_bos_token"]) == ("true", "false")


def test_a_folder_with_vocabulary_files_only(tmp_path: Path) -> None:
    whole = tokenizer(tmp_path, tokenizer=WHOLE)
    (tmp_path / "tokenizer.json").unlink()
    (tmp_path / "vocab.json").write_text(json.dumps(WHOLE["model"]["vocab"]))
    (tmp_path / "merges.txt").write_text("#version: 0.2\na b\n")
    (tmp_path / "added_tokens.json").write_text('{"</s>": 1, "<s>": 0}')
    files = describe_tokenizer(Located("m", tmp_path))
    assert files == {
        "added tokens": "<s>=0 </s>=1",
        **{key: whole[key] for key in ("vocabulary", "token ids", "merges")},
    }
    (tmp_path / "tokenizer.model").write_bytes(b"x")
    with_model_file = describe_tokenizer(Located("m", tmp_path))
    # sha256 of b"x", its first half of 16 digits.
    assert with_model_file["tokenizer.model"] == "sha256 2d711642b726b044"
