"""Digests of tokenizers: equal wherever the same one is loaded, else not."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers
from transformers import AutoTokenizer, ByT5Tokenizer

from pytest_pplguard.checkpoints import Located, tokenizer_digest

from .tiny import build_tokenizer, save_tokenizer

WORDS = ["<unk>", *(f"word{number}" for number in range(500))]
VOCABULARY = {word: id_ for id_, word in enumerate(WORDS)}


def fast(model: Any) -> Tokenizer:
    made = Tokenizer(model)
    made.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made.add_special_tokens([AddedToken("<s>"), AddedToken("</s>")])
    return made


KINDS: dict[str, Callable[[], Tokenizer]] = {
    "BPE": build_tokenizer,
    "WordLevel": lambda: fast(models.WordLevel(VOCABULARY, unk_token="<unk>")),
    "WordPiece": lambda: fast(models.WordPiece(VOCABULARY, unk_token="<unk>")),
    "Unigram": lambda: fast(
        models.Unigram([(word, -float(id_)) for id_, word in enumerate(WORDS)], 0)
    ),
}


def digest(folder: Path) -> str:
    loaded = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    return tokenizer_digest(loaded, Located(str(folder), folder))


def reordered(folder: Path) -> None:
    """The same ``tokenizer.json``, each object's keys the other way round."""

    def turned(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: turned(value[key]) for key in reversed(value)}
        return [turned(one) for one in value] if isinstance(value, list) else value

    file = folder / "tokenizer.json"
    file.write_text(json.dumps(turned(json.loads(file.read_text()))))


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_one_has_the_same_digest(tmp_path: Path, kind: str) -> None:
    """Hash maps are in another order each time, in Rust also within a process."""
    save_tokenizer(KINDS[kind](), tmp_path)
    first = digest(tmp_path)
    assert first.startswith("sha256:")
    assert {digest(tmp_path) for _ in range(5)} == {first}
    reordered(tmp_path)
    assert digest(tmp_path) == first
    used = AutoTokenizer.from_pretrained(tmp_path, local_files_only=True)
    used("some words of a text")
    assert tokenizer_digest(used, Located("it", tmp_path)) == first


def edited(folder: Path, file: str, change: Callable[[Any], object]) -> None:
    data = json.loads((folder / file).read_text())
    change(data)
    (folder / file).write_text(json.dumps(data))


def swap(vocabulary: dict[str, int]) -> None:
    one, other = list(vocabulary)[-2:]
    vocabulary[one], vocabulary[other] = vocabulary[other], vocabulary[one]


@pytest.mark.parametrize(
    ("file", "change"),
    [
        ("tokenizer.json", lambda it: swap(it["model"]["vocab"])),
        ("tokenizer.json", lambda it: it["model"]["merges"].reverse()),
        ("tokenizer.json", lambda it: it.update(post_processor=None)),
        ("tokenizer.json", lambda it: it.update(normalizer={"type": "NFC"})),
        ("tokenizer_config.json", lambda it: it.update(eos_token="<unk>")),
    ],
    ids=["ids", "merges", "bos", "normalizer", "special"],
)
def test_another_one_has_another_digest(
    tmp_path: Path, file: str, change: Callable[[Any], object]
) -> None:
    save_tokenizer(build_tokenizer(), tmp_path)
    before = digest(tmp_path)
    edited(tmp_path, file, change)
    assert digest(tmp_path) != before


def test_one_of_python_code(tmp_path: Path) -> None:
    """It has no form of its own: its files and its class say what it is."""
    ByT5Tokenizer(extra_ids=2).save_pretrained(tmp_path / "one")
    ByT5Tokenizer(extra_ids=3).save_pretrained(tmp_path / "other")
    assert getattr(ByT5Tokenizer(), "backend_tokenizer", None) is None
    first = digest(tmp_path / "one")
    assert digest(tmp_path / "one") == first
    assert digest(tmp_path / "other") != first
