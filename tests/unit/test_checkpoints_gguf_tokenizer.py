"""How a GGUF file's tokenizer splits words: as the rule says that the file names."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

from pytest_pplguard.checkpoints.gguf_tokenizer import set_pre_tokenizer


@pytest.fixture
def tokenizer() -> Any:
    """What transformers makes of every byte-level tokenizer of a Llama."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return SimpleNamespace(backend_tokenizer=backend)


def words(tokenizer: Any, text: str) -> list[str]:
    split = tokenizer.backend_tokenizer.pre_tokenizer.pre_tokenize_str(text)
    return [word.replace("\u0120", "_").replace("\u010a", "|") for word, _ in split]


def test_single_digits_stand_alone_and_white_space_before_them_too(
    tokenizer: Any,
) -> None:
    text = "in 1990 \n\n 2nd a"
    assert words(tokenizer, text) == ["in", "_1990", "_||", "_2", "nd", "_a"]
    assert set_pre_tokenizer(tokenizer, kind="gpt2", rule="smollm") is None
    assert words(tokenizer, text) == [
        *("in", "_", "1", "9", "9", "0", "_||_", "2", "nd", "_a"),
    ]


@pytest.mark.parametrize(
    ("kind", "rule"),
    [
        ("gpt2", "gpt-2"),
        ("gpt2", "default"),
        ("gpt2", None),
        ("llama", "default"),
        (None, "smollm"),
    ],
)
def test_gpt2s_rule_stays_where_it_is_meant(
    tokenizer: Any, kind: str | None, rule: str | None
) -> None:
    before = str(tokenizer.backend_tokenizer.pre_tokenizer)
    assert set_pre_tokenizer(tokenizer, kind=kind, rule=rule) is None
    assert str(tokenizer.backend_tokenizer.pre_tokenizer) == before


@pytest.mark.parametrize("rule", ["llama-bpe", "smollm"])
def test_a_rule_that_transformers_has_set_stays(tokenizer: Any, rule: str) -> None:
    own = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split("a", behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.backend_tokenizer.pre_tokenizer = own
    assert set_pre_tokenizer(tokenizer, kind="gpt2", rule=rule) is None
    assert words(tokenizer, "banana") == ["b", "a", "n", "a", "n", "a"]


def test_an_unknown_rule_is_told(tokenizer: Any) -> None:
    assert set_pre_tokenizer(tokenizer, kind="gpt2", rule="tekken") == (
        "the GGUF file splits words by the rule 'tekken', which this version of "
        "transformers does not know: tokens may differ from the original tokenizer's; "
        "a Hugging Face folder of the model has no such doubt"
    )
