"""Digests of a checkpoint's bytes, against digests that are computed here."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from pytest_pplguard.checkpoints import Located, contents
from pytest_pplguard.checkpoints.contents import file_digest
from pytest_pplguard.errors import CheckpointError

CHUNK = 16 * 1024 * 1024


def expected(data: bytes) -> str:
    parts = [data[i : i + CHUNK] for i in range(0, len(data), CHUNK)] or [b""]
    joined = b"".join(hashlib.sha256(part).digest() for part in parts)
    return f"sha256x16m:{hashlib.sha256(joined).hexdigest()}"


@pytest.mark.parametrize(
    "size", [0, 1, 1 << 20, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK + 12345]
)
def test_a_files_digest(tmp_path: Path, size: int) -> None:
    data = (bytes(range(251)) * (size // 251 + 1))[:size]
    (tmp_path / "file").write_bytes(data)
    assert file_digest(tmp_path / "file") == expected(data)


def folder(path: Path, **more: bytes) -> Path:
    path.mkdir(parents=True)
    files = {
        "config.json": b"{}",
        "tokenizer.json": b'{"a": 1}',
        "model.safetensors": b"weights",
    } | {name.replace("__", "."): data for name, data in more.items()}
    for name, data in files.items():
        (path / name).write_bytes(data)
    return path


def test_what_is_read(tmp_path: Path) -> None:
    path = folder(
        tmp_path / "it",
        merges__txt=b"a b",
        spiece__model=b"model",
        chat_template__jinja=b"x",
        README__md=b"not this",
        optimizer__pt=b"nor this",
        other__safetensors=b"nor this",
    )
    found = contents(Located("it", path))
    assert found.texts == {
        "chat_template.jinja": expected(b"x"),
        "config.json": expected(b"{}"),
        "merges.txt": expected(b"a b"),
        "spiece.model": expected(b"model"),
        "tokenizer.json": expected(b'{"a": 1}'),
    }
    assert found.weights == {"model.safetensors": expected(b"weights")}


def test_the_folder_is_not_part_of_it(tmp_path: Path) -> None:
    one, other = folder(tmp_path / "one"), folder(tmp_path / "other")
    assert contents(Located("one", one)) == contents(Located("two", other))


def test_an_adapter_and_its_base(tmp_path: Path) -> None:
    base = Located("base", folder(tmp_path / "base"))
    path = tmp_path / "adapter"
    path.mkdir()
    (path / "adapter_config.json").write_bytes(b"{}")
    (path / "adapter_model.safetensors").write_bytes(b"lora")
    found = contents(Located("adapter", path, base=base))
    assert found.texts == {
        "adapter_config.json": expected(b"{}"),
        "base/config.json": expected(b"{}"),
        "base/tokenizer.json": expected(b'{"a": 1}'),
    }
    assert found.weights == {
        "adapter_model.safetensors": expected(b"lora"),
        "base/model.safetensors": expected(b"weights"),
    }


def test_a_gguf_file_is_read_whole(tmp_path: Path) -> None:
    (tmp_path / "m.gguf").write_bytes(b"GGUF...")
    (tmp_path / "config.json").write_bytes(b"another model's")
    found = contents(Located("m.gguf", tmp_path, gguf="m.gguf"))
    assert found.texts == {"m.gguf": expected(b"GGUF...")}


def test_pickles_need_their_word_and_are_not_loaded(tmp_path: Path) -> None:
    path = folder(tmp_path / "it", pytorch_model__bin=b"\x80no pickle at all")
    (path / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="pickle weights only"):
        contents(Located("it", path))
    found = contents(Located("it", path), allow_pickle=True)
    assert found.weights == {"pytorch_model.bin": expected(b"\x80no pickle at all")}


def test_a_file_that_is_gone(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="cannot be read: No such file"):
        file_digest(tmp_path / "gone")
