"""The metadata of a GGUF file is read once, and again if the file is another."""

from __future__ import annotations

import os
from pathlib import Path

import gguf
import numpy
import pytest

from pytest_pplguard.checkpoints import Located
from pytest_pplguard.checkpoints.gguf import gguf_fields, open_gguf
from pytest_pplguard.errors import CheckpointError

NAMES = ("general.architecture", "llama.context_length", "tokenizer.ggml.tokens")


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Files that the package gguf has read, in order."""
    names: list[str] = []
    start = gguf.GGUFReader.__init__

    def counted(self: gguf.GGUFReader, path: Path) -> None:
        names.append(Path(path).name)
        start(self, path)

    monkeypatch.setattr(gguf.GGUFReader, "__init__", counted)
    return names


def write(path: Path, length: int) -> Located:
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(length)
    writer.add_token_list(["a", "b"])
    writer.add_tensor("output.weight", numpy.zeros((2, 2), numpy.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return Located("m", path.parent, gguf=path.name)


def test_it_is_read_once(tmp_path: Path, opened: list[str]) -> None:
    located = write(tmp_path / "one.gguf", 512)
    open_gguf(located)
    found = {"general.architecture": "llama", "llama.context_length": 512}
    for _ in range(2):
        assert gguf_fields(located, *NAMES) == found  # no list of words
    assert opened == ["one.gguf"]


def test_another_file_is_read(tmp_path: Path, opened: list[str]) -> None:
    one, other = write(tmp_path / "one.gguf", 512), write(tmp_path / "two.gguf", 256)
    lengths = [gguf_fields(each, NAMES[1])[NAMES[1]] for each in (one, other, one, one)]
    assert lengths == [512, 256, 512, 512]
    assert opened == ["one.gguf", "two.gguf", "one.gguf"]


def test_a_file_that_was_replaced_is_read_again(tmp_path: Path) -> None:
    path = tmp_path / "one.gguf"
    located = write(path, 512)
    assert gguf_fields(located, NAMES[1]) == {NAMES[1]: 512}
    write(tmp_path / "new.gguf", 256)
    os.replace(tmp_path / "new.gguf", path)
    assert gguf_fields(located, NAMES[1]) == {NAMES[1]: 256}


def test_a_file_that_is_gone_or_broken_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "one.gguf"
    located = write(path, 512)
    gguf_fields(located, NAMES[1])
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(CheckpointError, match="is truncated or no valid GGUF file"):
        gguf_fields(located, NAMES[1])
    path.unlink()
    with pytest.raises(CheckpointError, match="is truncated or no valid GGUF file"):
        gguf_fields(located, NAMES[1])
