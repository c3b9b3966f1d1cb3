"""Saved weights are read from headers; hostile and broken ones are refused."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy
import pytest

from pytest_pplguard.checkpoints import (
    Located,
    digest,
    identity_state,
    saved_dtype,
    tensor_index,
)
from pytest_pplguard.checkpoints.files import index_notices, weight_files
from pytest_pplguard.errors import CheckpointError

Header = Mapping[str, object]


def write(file: Path, header: Header | bytes, data: bytes = b"") -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    file.write_bytes(len(text).to_bytes(8, "little") + text + data)
    return file


def entry(dtype: str, shape: list[int], begin: int, end: int) -> Header:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def refused(folder: Path, **options: bool) -> str:
    with pytest.raises(CheckpointError) as caught:
        tensor_index(folder, **options)
    return str(caught.value)


def sharded(folder: Path, weight_map: dict[str, str]) -> None:
    """Two shards, ``a`` in the first and ``b`` in the second, and an index."""
    write(folder / "one.safetensors", {"a": entry("U8", [2], 0, 2)}, b"ab")
    write(folder / "two.safetensors", {"b": entry("U8", [2], 0, 2)}, b"cd")
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": weight_map}))


def test_what_safetensors_writes(tmp_path: Path) -> None:
    from safetensors.numpy import save_file

    tensors: dict[str, numpy.ndarray[Any, Any]] = {
        "b": numpy.arange(6, dtype=numpy.float32).reshape(2, 3),
        "a": numpy.ones(3, dtype=numpy.float16),
        "none": numpy.zeros((0, 4), dtype=numpy.float32),
        "one": numpy.array(2.5),
    }
    file = tmp_path / "model.safetensors"
    save_file(tensors, file, metadata={"format": "pt"})
    index = tensor_index(tmp_path)
    assert {name: (t.dtype, t.shape) for name, t in index.items()} == {
        "a": ("F16", (3,)),
        "b": ("F32", (2, 3)),
        "none": ("F32", (0, 4)),
        "one": ("F64", ()),
    }
    begin, end = index["b"].offsets
    assert file.read_bytes()[begin:end] == tensors["b"].tobytes()


def test_shards(tmp_path: Path) -> None:
    sharded(tmp_path, {"a": "one.safetensors", "b": "two.safetensors"})
    index = tensor_index(tmp_path)
    assert {name: t.file.name for name, t in index.items()} == {
        "a": "one.safetensors",
        "b": "two.safetensors",
    }


def test_missing_shard(tmp_path: Path) -> None:
    sharded(tmp_path, {"a": "one.safetensors", "b": "three.safetensors"})
    assert refused(tmp_path) == (
        f"{tmp_path} lacks the shard three.safetensors that "
        "model.safetensors.index.json names: copy or download it again"
    )


@pytest.mark.parametrize(
    ("weight_map", "what"),
    [
        (
            {"a": "one.safetensors", "b": "two.safetensors", "c": "two.safetensors"},
            "c is in two.safetensors, but no shard has it",
        ),
        (
            {"a": "two.safetensors", "b": "one.safetensors"},
            "a is in two.safetensors, but it is in one.safetensors",
        ),
    ],
)
def test_stale_index(tmp_path: Path, weight_map: dict[str, str], what: str) -> None:
    sharded(tmp_path, weight_map)
    assert refused(tmp_path) == (
        f"{tmp_path / 'model.safetensors.index.json'} is stale: it says that {what}. "
        "Save the checkpoint again into an empty folder"
    )


def test_tensor_in_two_shards(tmp_path: Path) -> None:
    sharded(tmp_path, {"a": "one.safetensors", "b": "two.safetensors"})
    write(tmp_path / "two.safetensors", {"a": entry("U8", [2], 0, 2)}, b"xy")
    assert refused(tmp_path) == (
        f"{tmp_path} holds the tensor a twice: in one.safetensors and in "
        "two.safetensors"
    )


@pytest.mark.parametrize(
    "shard", ["../out.safetensors", "/etc/passwd", "a/../../b", "..\\b", ""]
)
def test_shard_outside_the_folder(tmp_path: Path, shard: str) -> None:
    sharded(tmp_path, {"a": shard})
    assert refused(tmp_path) == (
        f"{tmp_path / 'model.safetensors.index.json'} names the shard {shard!r}, "
        "which is outside its folder"
    )


@pytest.mark.parametrize("allow_pickle", [False, True])
@pytest.mark.parametrize(
    "weight_map",
    [
        {"a": "pytorch_model.bin", "b": "pytorch_model.bin"},
        {"a": "one.safetensors", "b": "pytorch_model.bin"},
    ],
)
def test_pickle_behind_the_index_of_safetensors(
    tmp_path: Path, weight_map: dict[str, str], allow_pickle: bool
) -> None:
    """transformers would unpickle it; the way for pickles is their own index."""
    sharded(tmp_path, weight_map)
    (tmp_path / "pytorch_model.bin").write_bytes(b"pickle")
    assert refused(tmp_path, allow_pickle=allow_pickle) == (
        f"{tmp_path / 'model.safetensors.index.json'} names the shard "
        "'pytorch_model.bin', which is no safetensors file: save the checkpoint again "
        "(model.save_pretrained writes safetensors)"
    )


@pytest.mark.parametrize("text", ["{}", '{"weight_map": []}', '{"weight_map": {}}'])
def test_index_without_map(tmp_path: Path, text: str) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(text)
    assert refused(tmp_path) == (
        f"{tmp_path / 'model.safetensors.index.json'} has no weight_map"
    )


def test_index_that_is_no_json(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors.index.json").write_text('{"weight')
    assert refused(tmp_path).startswith(
        f"{tmp_path / 'model.safetensors.index.json'} is not valid JSON: "
    )


def test_truncated_shard(tmp_path: Path) -> None:
    file = write(
        tmp_path / "model.safetensors", {"a": entry("F32", [4], 0, 16)}, b"0123"
    )
    size = file.stat().st_size
    assert refused(tmp_path) == (
        f"{file} is truncated: {size} bytes, expected {size + 12}. "
        "Copy or download it again"
    )


def test_truncated_within_the_header(tmp_path: Path) -> None:
    file = write(tmp_path / "model.safetensors", {"a": entry("F32", [4], 0, 16)})
    file.write_bytes(file.read_bytes()[:20])
    assert refused(tmp_path).startswith(f"{file} is truncated: 20 bytes, its header")
    file.write_bytes(b"abc")
    assert refused(tmp_path) == f"{file} is truncated: 3 bytes are no safetensors"


def test_git_lfs_pointer(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    file.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9")
    assert refused(tmp_path) == f"{file} is a Git LFS pointer: run `git lfs pull`"


def test_header_of_gigabytes(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    file.write_bytes((1 << 40).to_bytes(8, "little") + b"{}")
    assert refused(tmp_path) == (
        f"{file} is no safetensors file: its header would be 1099511627776 bytes long"
    )


@pytest.mark.parametrize(
    ("header", "what"),
    [
        (
            {"a": entry("U8", [4], 0, 4), "b": entry("U8", [4], 2, 6)},
            "is malformed: a and b overlap",
        ),
        (
            {"a": entry("U8", [2], 0, 2), "b": entry("U8", [3], 3, 6)},
            "is malformed: a and b leave a gap",
        ),
        (
            {"a": entry("U8", [4], 2, 6)},
            "is malformed: the header and a leave a gap",
        ),
    ],
)
def test_offsets_that_do_not_tile_the_file(
    tmp_path: Path, header: Header, what: str
) -> None:
    file = write(tmp_path / "model.safetensors", header, b"012345")
    assert refused(tmp_path) == f"{file} {what}"


def test_bytes_after_the_tensors(tmp_path: Path) -> None:
    file = write(
        tmp_path / "model.safetensors", {"a": entry("U8", [4], 0, 4)}, b"01234"
    )
    size = file.stat().st_size
    assert refused(tmp_path) == (
        f"{file} is malformed: {size} bytes, but its tensors end at {size - 1}"
    )


@pytest.mark.parametrize(
    ("bad", "what"),
    [
        (entry("F12", [1], 0, 4), "a has the unknown dtype 'F12'"),
        (
            entry("F32", [2], 0, 4),
            "a is F32 [2], 8 bytes, but its data_offsets span 4",
        ),
        (
            entry("F32", [-1], 0, 4),
            "a has no valid shape and data_offsets: [-1], [0, 4]",
        ),
        (
            {"dtype": "F32", "shape": [1], "data_offsets": [0, 2, 4]},
            "a has no valid shape and data_offsets: [1], [0, 2, 4]",
        ),
        (
            {"dtype": "F32", "shape": [True], "data_offsets": [0, 4]},
            "a has no valid shape and data_offsets: [True], [0, 4]",
        ),
        ([], "malformed entry of a"),
    ],
)
def test_bad_entry(tmp_path: Path, bad: object, what: str) -> None:
    file = write(tmp_path / "model.safetensors", {"a": bad}, b"0123")
    assert refused(tmp_path) == f"{file}: {what}"


@pytest.mark.parametrize(
    "header", [b"[]", b"{", b"\xff", b"[" * 100_000, b'{"a": {}, "a": {}}']
)
def test_header_that_is_no_object(tmp_path: Path, header: bytes) -> None:
    file = write(tmp_path / "model.safetensors", header)
    assert refused(tmp_path).startswith(
        f"{file} is no safetensors file: malformed header"
    )


def test_no_weights(tmp_path: Path) -> None:
    assert refused(tmp_path) == (
        f"{tmp_path} has no weights: neither model.safetensors nor "
        "model.safetensors.index.json"
    )


def test_pickles_only(tmp_path: Path) -> None:
    (tmp_path / "pytorch_model.bin").write_bytes(b"pickle")
    assert refused(tmp_path) == (
        f"{tmp_path} has pickle weights only (pytorch_model.bin), and unpickling can "
        "run code: convert them (model.save_pretrained writes safetensors), or trust "
        "them with --ppl-allow-pickle"
    )
    assert tensor_index(tmp_path, allow_pickle=True) == {}
    files = weight_files(tmp_path, allow_pickle=True)
    assert files == [tmp_path / "pytorch_model.bin"]


def test_masks_of_torch_prune(tmp_path: Path) -> None:
    names = ["layers.0.fc.weight_mask", "layers.0.fc.weight_orig"]
    header = {name: entry("U8", [1], i, i + 1) for i, name in enumerate(names)}
    write(tmp_path / "model.safetensors", header, b"01")
    assert refused(tmp_path) == (
        f"{tmp_path} was saved with its pruning masks (2 tensors like "
        "layers.0.fc.weight_mask): call torch.nn.utils.prune.remove(module, 'weight') "
        "on every pruned module, then save again"
    )


@pytest.mark.parametrize(
    ("config", "dtype"),
    [
        ({"dtype": "bfloat16"}, "bfloat16"),
        ({"torch_dtype": "torch.float16"}, "float16"),
        ({"text_config": {"dtype": "float16"}}, "float16"),
        ({"text_config": None}, "float32"),
    ],
)
def test_saved_dtype(tmp_path: Path, config: Header, dtype: str) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config))
    header = {"a": entry("F32", [1], 0, 4), "b": entry("F16", [1], 4, 6)}
    write(tmp_path / "model.safetensors", header, b"012345")
    assert saved_dtype(Located("m", tmp_path)) == dtype


def test_digest_sees_config_tokenizer_and_weights(tmp_path: Path) -> None:
    for name in ("config.json", "tokenizer.json", "generation_config.json"):
        (tmp_path / name).write_text("{}")
    weights = tmp_path / "model.safetensors"
    write(weights, {"a": entry("U8", [1], 0, 1)}, b"0")
    located = Located("m", tmp_path)
    first = digest(located)
    assert first.startswith("sha256:")
    assert len(first) == len("sha256:") + 64
    (tmp_path / "generation_config.json").write_text("{ }")
    assert digest(located) == first
    seen = {first}
    for name in ("config.json", "tokenizer.json"):
        (tmp_path / name).write_text("{ }")
        seen.add(digest(located))
    write(weights, {"a": entry("U8", [1], 0, 1)}, b"1")
    seen.add(digest(located))
    assert len(seen) == 4


def test_the_state_changes_with_what_the_digest_is_made_of(tmp_path: Path) -> None:
    lora, base = tmp_path / "lora", tmp_path / "base"
    for folder in (lora, base):
        folder.mkdir()
        (folder / "tokenizer.json").write_text("{}")
    (lora / "adapter_config.json").write_text("{}")
    (base / "config.json").write_text("{}")
    one = {"a": entry("U8", [1], 0, 1)}
    write(lora / "adapter_model.safetensors", one, b"0")
    write(base / "model.safetensors", one, b"0")
    located = Located("lora", lora, base=Located("base", base))
    first = identity_state(located)
    (base / "README.md").write_text("a card")
    assert identity_state(located) == first
    seen = [first]
    for file in (
        base / "config.json",
        base / "model.safetensors",
        lora / "tokenizer.json",
        lora / "adapter_model.safetensors",
    ):
        # Another file of the same bytes in its place: nobody knows which was read.
        other = file.with_name("other")
        other.write_bytes(file.read_bytes())
        other.replace(file)
        seen.append(identity_state(located))
    assert len(set(seen)) == 5
    (base / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="has no weights"):
        identity_state(located)


def test_digest_of_an_adapter_covers_its_base(tmp_path: Path) -> None:
    lora, base = tmp_path / "lora", tmp_path / "base"
    for folder in (lora, base):
        folder.mkdir()
        (folder / "tokenizer.json").write_text("{}")
    (lora / "adapter_config.json").write_text("{}")
    (base / "config.json").write_text("{}")
    one = {"a": entry("U8", [1], 0, 1)}
    write(lora / "adapter_model.safetensors", one, b"0")
    write(base / "model.safetensors", one, b"0")
    located = Located("lora", lora, base=Located("base", base))
    seen = {digest(located), digest(Located("base", base))}
    (lora / "README.md").write_text("")
    assert digest(located) in seen
    for name in ("adapter_config.json", "tokenizer.json"):
        (lora / name).write_text("{ }")
        seen.add(digest(located))
    write(lora / "adapter_model.safetensors", one, b"1")
    seen.add(digest(located))
    write(base / "model.safetensors", one, b"1")
    seen.add(digest(located))
    assert len(seen) == 6


@pytest.mark.parametrize(
    ("metadata", "notices"),
    [
        ({}, ()),
        ({"total_size": 4}, ()),
        ({"total_size": 4.0}, ()),
        ({"total_size": "4"}, ()),
        (
            {"total_size": 6},
            (
                "m: the shards hold 4 bytes of weights, but "
                "model.safetensors.index.json counts 6: is a shard from another "
                "checkpoint?",
            ),
        ),
    ],
)
def test_shard_of_another_size(
    tmp_path: Path, metadata: Header, notices: tuple[str, ...]
) -> None:
    sharded(tmp_path, {"a": "one.safetensors", "b": "two.safetensors"})
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps(json.loads(index.read_text()) | {"metadata": metadata}))
    assert index_notices(Located("m", tmp_path)) == notices
    assert index_notices(Located("m", tmp_path, gguf="m.gguf")) == ()
