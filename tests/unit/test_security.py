"""Hostile files are refused in one line, soon, and without much memory."""

from __future__ import annotations

import gzip
import json
import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy
import pytest

from pytest_pplguard.baselines import read_baseline, record
from pytest_pplguard.baselines.evidence import read_evidence
from pytest_pplguard.baselines.find import baseline_paths, looks_like_baseline
from pytest_pplguard.checkpoints import (
    Located,
    fingerprint,
    locate,
    measure_sparsity,
    tensor_index,
)
from pytest_pplguard.checkpoints.gguf import open_gguf
from pytest_pplguard.checkpoints.jsonfiles import read_json
from pytest_pplguard.corpora import open_corpus
from pytest_pplguard.errors import (
    BaselineError,
    CheckpointError,
    CorpusError,
    PplguardError,
    UsageError,
)
from pytest_pplguard.safetext import printable
from pytest_pplguard.values import Recorded, Source

from .test_baselines_store import TODAY, recording

DEEP = 200_000
ESCAPES = "\x1b[2J\x1b]0;title\x07\r\b\x00\x9b31m\u202e"
posix = pytest.mark.skipif(os.name == "nt", reason="needs a POSIX system")


def one_line(caught: pytest.ExceptionInfo[PplguardError], *parts: object) -> str:
    text = str(caught.value)
    assert len(text) < 8100
    assert text.isprintable()
    for part in parts:
        assert str(part) in text
    return text


# ------------------------------------------------------------------------------ headers


def write(folder: Path, header: object, data: bytes = b"") -> Path:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    file = folder / "model.safetensors"
    file.write_bytes(len(raw).to_bytes(8, "little") + raw + data)
    return file


def tensor(shape: object, offsets: object, dtype: object = "U8") -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


BIG = 1 << 63
HEADERS: dict[str, object] = {
    "sizes beyond an index": {"a": tensor([BIG], [0, 8])},
    "a product of 2**64, which is 0 in an overflow": {
        "a": tensor([1 << 32, 1 << 32], [0, 0])
    },
    "offsets beyond an index": {"a": tensor([8], [BIG, BIG + 8])},
    "a negative size": {"a": tensor([-8], [0, 8])},
    "two negative sizes": {"a": tensor([-2, -4], [0, 8])},
    "negative offsets": {"a": tensor([8], [-8, 0])},
    "offsets the wrong way round": {"a": tensor([8], [8, 0])},
    "a truth for a size": {"a": tensor([True, 8], [0, 8])},
    "a fraction for a size": {"a": tensor([8.0], [0, 8])},
    "a text for a size": {"a": tensor("8", [0, 8])},
    "millions of sizes": {"a": tensor([1] * 2_000_000, [0, 8])},
    "sizes whose product has a million digits": {
        "a": tensor([BIG - 1] * 60_000, [0, 8])
    },
    "a number of ten thousand digits": (
        b'{"a":{"dtype":"U8","shape":[' + b"9" * 10_000 + b'],"data_offsets":[0,8]}}'
    ),
    "infinity": b'{"a":{"dtype":"U8","shape":[Infinity],"data_offsets":[0,8]}}',
    "three offsets": {"a": tensor([8], [0, 8, 8])},
    "no offsets": {"a": {"dtype": "U8", "shape": [8]}},
    "an unknown dtype": {"a": tensor([8], [0, 8], "PICKLE")},
    "a dtype that is a list": {"a": tensor([8], [0, 8], ["U8"])},
    "tensors over each other": {"a": tensor([6], [0, 6]), "b": tensor([6], [2, 8])},
    "the same bytes twice": {"a": tensor([8], [0, 8]), "b": tensor([8], [0, 8])},
    "a gap": {"a": tensor([2], [0, 2]), "b": tensor([2], [6, 8])},
    "bytes that are no tensor's": {"a": tensor([2], [0, 2])},
    "a tensor behind the end": {"a": tensor([1000], [0, 1000])},
    "one name twice": (
        b'{"a":{"dtype":"U8","shape":[8],"data_offsets":[0,8]},'
        b'"a":{"dtype":"U8","shape":[8],"data_offsets":[0,8]}}'
    ),
    "lists without end": b"[" * DEEP,
    "an entry without end": b'{"a":' + b'{"a":' * DEEP,
    "metadata without end": b'{"__metadata__":' + b"[" * DEEP,
    "no JSON": b"\x80\x04\x95pickle",
    "a name with a line": {"a\n::error::b": tensor([8], [0, 8])},
    "a name that is drawn over": {f"a{ESCAPES}": tensor([8], [0, 8])},
    "a name with a NUL": {"a\0b": tensor([8], [0, 8])},
    "half a character": b'{"\\ud800":{"dtype":"U8","shape":[8],"data_offsets":[0,8]}}',
}


@pytest.mark.parametrize("what", HEADERS)
def test_header(tmp_path: Path, what: str) -> None:
    file = write(tmp_path, HEADERS[what], bytes(8))
    (tmp_path / "config.json").write_text("{}")
    for way in (
        lambda: tensor_index(tmp_path),
        lambda: fingerprint(Located("m", tmp_path)),
        lambda: measure_sparsity(Located("m", tmp_path)),
    ):
        with pytest.raises(CheckpointError) as caught:
            way()
        one_line(caught, file)


@pytest.mark.parametrize("length", [100_000_001, 1 << 30, (1 << 64) - 1])
def test_header_longer_than_allowed(tmp_path: Path, length: int) -> None:
    file = tmp_path / "model.safetensors"
    with file.open("wb") as stream:
        stream.write(length.to_bytes(8, "little") + b"{")
        stream.truncate(1 << 31)  # sparse: the length alone decides
    with pytest.raises(CheckpointError) as caught:
        tensor_index(tmp_path)
    assert one_line(caught) == (
        f"{file} is no safetensors file: its header would be {length} bytes long"
    )


def test_many_empty_tensors_are_read(tmp_path: Path) -> None:
    write(tmp_path, {f"t{i}": tensor([0], [0, 0]) for i in range(20_000)})
    (tmp_path / "config.json").write_text("{}")
    assert len(fingerprint(Located("m", tmp_path)).tensors) == 20_000


@pytest.mark.parametrize(
    "shard",
    [
        *("../evil.safetensors", "/etc/evil.safetensors", "a/../../evil.safetensors"),
        *("C:\\evil.safetensors", "..\\evil.safetensors", "", "."),
        *("evil.bin", "evil.safetensors\0", f"{ESCAPES}.safetensors"),
    ],
)
def test_shard_of_an_index(tmp_path: Path, shard: str) -> None:
    folder = tmp_path / "m"
    folder.mkdir()
    for place in (folder, tmp_path):
        write(place, {"a": tensor([1], [0, 1])}, b"1").rename(place / "evil.bin")
        write(place, {"a": tensor([1], [0, 1])}, b"1").rename(
            place / "evil.safetensors"
        )
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": shard}}))
    with pytest.raises(CheckpointError) as caught:
        tensor_index(folder)
    one_line(caught, folder)


# ------------------------------------------------------------------ JSON and compressed


@pytest.mark.parametrize("bomb", ["[" * DEEP, '{"a":' * DEEP, "9" * 10_000, "\x80"])
def test_json_files(tmp_path: Path, bomb: str) -> None:
    file = tmp_path / "config.json"
    file.write_text(bomb)
    with pytest.raises(CheckpointError) as caught:
        read_json(file)
    one_line(caught, file)
    (tmp_path / "corpus.jsonl").write_text(bomb + "\n")
    with pytest.raises(CorpusError) as broken:
        open_corpus("c", {"c": str(tmp_path / "corpus.jsonl")})
    one_line(broken, "corpus.jsonl:1")


def test_json_file_without_end(tmp_path: Path) -> None:
    file = tmp_path / "config.json"
    with file.open("wb") as stream:
        stream.truncate(1 << 40)
    with pytest.raises(CheckpointError) as caught:
        read_json(file)
    assert one_line(caught) == f"{file} is larger than 100 MB: it is no such file"


def test_shape_of_a_compressed_weight(tmp_path: Path) -> None:
    up = "model.layers.0.mlp.up_proj"
    for sizes in ([1 << 62, 4], [-1, 8], [0, 8], [1] * 70, [], [1 << 40, 1 << 40]):
        shape = numpy.array(sizes, "<i8").tobytes()
        header = {
            f"{up}.bitmask": tensor([1, 1], [0, 1]),
            f"{up}.compressed": tensor([1], [1, 5], "F32"),
            f"{up}.shape": tensor([len(sizes)], [5, 5 + len(shape)], "I64"),
        }
        write(tmp_path, header, b"\1" + bytes(4) + shape)
        (tmp_path / "config.json").write_text("{}")
        with pytest.raises(CheckpointError) as caught:
            fingerprint(Located("m", tmp_path))
        one_line(caught, "is malformed")


def test_gzip_bomb_is_read_as_far_as_it_is_asked(tmp_path: Path) -> None:
    """C4 has its first 1,100 documents read, whatever comes after them."""
    file = tmp_path / "c4.json.gz"
    with gzip.open(file, "wb") as stream:
        stream.write(b'{"text": "a"}\n' * 1100)
    whole = file.read_bytes()
    file.write_bytes(whole + b"no gzip at all")
    assert len(open_corpus("c4", {"c4": str(file)}).rows) == 1100
    file.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CorpusError) as caught:
        open_corpus("c4", {"c4": str(file)})
    one_line(caught, file)
    assert zlib.crc32(whole)  # the file was no empty one


# --------------------------------------------------------------------------------- GGUF


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value)) + value.encode()


def gguf(tensors: int, fields: int, *parts: bytes) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", 3, tensors, fields) + b"".join(parts)


NESTED = struct.pack("<IQ", 9, 1)  # an array of one array
GGUFS = {
    "tensors without number": gguf(1 << 60, 0),
    "fields without number": gguf(0, 1 << 60),
    "a name of exabytes": gguf(0, 1, struct.pack("<Q", 1 << 62), b"a"),
    "an array of exabytes": gguf(0, 1, text("a"), struct.pack("<IIQ", 9, 4, 1 << 61)),
    "arrays in arrays": gguf(0, 1, text("a"), struct.pack("<I", 9), NESTED * 100_000),
    "an unknown type": gguf(0, 1, text("a"), struct.pack("<I", 99)),
    "a tensor behind the end": gguf(
        *(1, 0, text("a"), struct.pack("<IQIQ", 1, 1 << 40, 0, 0)),
    ),
    "a tensor of more than all bytes": gguf(
        *(1, 0, text("a"), struct.pack("<IQQIQ", 2, 1 << 40, 1 << 40, 0, 0)),
    ),
    "nothing": b"GGUF",
}


@pytest.mark.parametrize("what", GGUFS)
def test_gguf(tmp_path: Path, what: str) -> None:
    (tmp_path / "m.gguf").write_bytes(GGUFS[what])
    located = locate("m.gguf", cwd=tmp_path)
    for way in (open_gguf, fingerprint, measure_sparsity):
        with pytest.raises(CheckpointError) as caught:
            way(located)
        one_line(caught, "m.gguf is truncated or no valid GGUF file")


# ----------------------------------------------------------------------- baseline files

HEAD = "schema: 1\nmodel: m\ncheckpoints:\n  a:\n"
BILLION = (
    "schema: 1\nmodel: m\n"
    "a: &a [lol, lol, lol, lol, lol, lol, lol, lol, lol]\n"
    + "".join(
        f"{name}: &{name} [{', '.join([f'*{before}'] * 9)}]\n"
        for before, name in zip("abcdefgh", "bcdefghi", strict=True)
    )
    + "checkpoints: {}\n"
)
YAMLS = {
    "an object": (HEAD + "    path: !!python/object/apply:os.system [touch ran]\n", 5),
    "a name": (HEAD + "    path: !!python/name:os.system\n", 5),
    "a module": (HEAD + "    path: !!python/module:evil\n", 5),
    "a tag of one's own": (HEAD + "    path: !evil x\n", 5),
    "a tag on the file": ("!!python/object:os.PathLike\n" + HEAD, 1),
    "bytes": (HEAD + "    path: !!binary aGk=\n", 5),
    "a billion laughs": (BILLION, 3),
    "itself": (HEAD + "    path: &x [*x]\n", 5),
    "a merge": (HEAD + "    <<: {path: x}\n", 5),
    "lists without end": (HEAD + "    path: " + "[" * DEEP + "\n", 5),
    "mappings without end": (HEAD + "    path: " + "{a: " * DEEP + "\n", 5),
    "blocks without end": (
        HEAD + "".join(f"{' ' * (4 + i)}a:\n" for i in range(2000)),
        23,
    ),
    "a number of megabytes": (HEAD + "    path: " + "9" * 4_000_000 + "\n", 5),
    "base 60 without end": (HEAD + "    path: 1" + ":01" * 4000 + ".5\n", 5),
    "a fraction of megabytes": (HEAD + f"    path: 1.{'9' * 400_000}e999\n", 5),
    "a control character": (HEAD + "    path: \x1b[2J\n", 5),
    "a second document": (HEAD + "    path: x\n--- !!python/object:evil {}\n", 6),
    "directives": ("%YAML 9.9\n---\n" + HEAD, 1),
}


@pytest.mark.parametrize("what", YAMLS)
def test_baseline_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "evil.py").write_text("open('ran', 'w')")
    monkeypatch.syspath_prepend(tmp_path)
    content, line = YAMLS[what]
    file = tmp_path / "m.yaml"
    file.write_text(content)
    with pytest.raises(BaselineError) as caught:
        read_baseline(file)
    assert str(caught.value).startswith(f"{file}:{line}: ")
    one_line(caught)
    assert not (tmp_path / "ran").exists()


@posix
def test_baseline_that_is_a_pipe_or_a_device_is_no_baseline(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.yaml")
    (tmp_path / "zero.yaml").symlink_to("/dev/zero")
    (tmp_path / "folder.yaml").mkdir()
    assert baseline_paths(tmp_path) == []
    for path in tmp_path.iterdir():
        assert not looks_like_baseline(path)


# ----------------------------------------------------------------------------- evidence


def evidence(folder: Path, name: str) -> str:
    recorded = Recorded(metrics={}, source=Source(kind="measured"), evidence=name)
    with pytest.raises(BaselineError) as caught:
        read_evidence(folder, recorded, where="m/a k")
    return one_line(caught, "m/a k")


@pytest.mark.parametrize(
    "name",
    [
        *("/etc/passwd", "/etc/x.json", "../x.json", "m/../../x.json", "./x.json"),
        *("C:/x.json", "C:x.json", "\\\\host\\x.json", "m\\..\\x.json", "~/x.json\0"),
        *("m//x.json", "file:///etc/x.json", "m/x.json/", f"{ESCAPES}.txt"),
    ],
)
def test_evidence_outside(tmp_path: Path, name: str) -> None:
    (tmp_path / "x.json").write_text("{}")
    folder = tmp_path / "baselines"
    folder.mkdir()
    assert "the path leaves the baseline folder" in evidence(folder, name)


@posix
def test_evidence_that_is_no_file(tmp_path: Path) -> None:
    folder = tmp_path / "baselines"
    folder.mkdir()
    os.mkfifo(folder / "pipe.json")
    (folder / "folder.json").mkdir()
    (folder / "zero.json").symlink_to("/dev/zero")
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "x.json").write_text("{}")
    (folder / "link").symlink_to(tmp_path / "outside")
    assert "the file does not exist" in evidence(folder, "pipe.json")
    assert "the file does not exist" in evidence(folder, "folder.json")
    for name in ("zero.json", "link/x.json"):
        assert "a symbolic link leads out" in evidence(folder, name)


@posix
def test_evidence_is_not_written_or_removed_outside(tmp_path: Path) -> None:
    """A link beside a baseline file, as a pull request may bring it."""
    folder, outside = tmp_path / "baselines", tmp_path / "outside"
    outside.mkdir()
    folder.mkdir()
    (folder / "m").symlink_to(outside)
    file = folder / "m.yaml"
    with pytest.raises(BaselineError) as caught:
        record([recording(file)], today=TODAY)
    one_line(caught, "a symbolic link leads out of the baseline folder")
    assert list(outside.iterdir()) == []
    assert not file.exists()
    (folder / "m").unlink()
    record([recording(file)], today=TODAY)
    (folder / "m").rename(outside / "m")
    (folder / "m").symlink_to(outside / "m")
    before = sorted(outside.rglob("*.json"))
    with pytest.raises(BaselineError):
        record([recording(file, 7.0)], today=TODAY)
    assert sorted(outside.rglob("*.json")) == before != []


def test_evidence_without_end(tmp_path: Path) -> None:
    import hashlib

    for bomb in (b"[" * DEEP, b'{"x":' + b"[" * DEEP, b'{"schema":1,"x":' * DEEP):
        digest = hashlib.sha256(bomb).hexdigest()[:12]
        (tmp_path / f"x-{digest}.json").write_bytes(bomb)
        assert "not an evidence file" in evidence(tmp_path, f"x-{digest}.json")


# ------------------------------------------------------------------------------ folders


@posix
@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "model.safetensors"])
@pytest.mark.parametrize("kind", ["pipe", "device"])
def test_checkpoint_with_a_pipe_or_a_device(
    tmp_path: Path, name: str, kind: str
) -> None:
    write(tmp_path, {"a": tensor([1], [0, 1])}, b"1")
    for other in ("config.json", "tokenizer.json"):
        (tmp_path / other).write_text("{}")
    (tmp_path / name).unlink()
    if kind == "pipe":
        os.mkfifo(tmp_path / name)
    else:
        (tmp_path / name).symlink_to("/dev/zero")
    with pytest.raises(CheckpointError) as caught:
        locate(str(tmp_path))
    assert one_line(caught) == (
        f"{tmp_path}: {name} is neither file nor folder, but a pipe or a device: no "
        "checkpoint has one, so do not trust it"
    )


# ---------------------------------------------------------------------- what people see


@pytest.mark.parametrize("kind", [UsageError, CheckpointError, BaselineError])
def test_messages_hold_nothing_that_only_a_terminal_sees(
    kind: Callable[[str], PplguardError],
) -> None:
    said = str(kind(f"a{ESCAPES}b, ü, 模型, a\u00a0b"))
    assert said == (
        "a\\x1b[2J\\x1b]0;title\\x07\\r\\x08\\x00\\x9b31m\\u202eb, ü, 模型, a\u00a0b"
    )


def test_the_middle_of_a_long_message_is_left_out() -> None:
    said = str(UsageError("m.yaml:5: " + "9" * 1_000_000 + " is no number"))
    assert said.startswith("m.yaml:5: 999")
    assert said.endswith("999 is no number")
    assert said.count(" [...] ") == 1
    assert len(said) == 8007


def test_lines_are_kept_but_in_what_is_one_line() -> None:
    assert printable("a\nb\tc") == "a\nb\tc"
    assert str(UsageError("a\nb")) == "a\nb"
    assert str(CheckpointError("a\nb")) == "a\\nb"


def test_names_of_files_and_fields_are_printable(tmp_path: Path) -> None:
    folder = tmp_path / "m"
    folder.mkdir()
    (folder / "a\x1b[31m.txt").write_text("")
    with pytest.raises(CheckpointError) as caught:
        locate(str(folder))
    assert "it holds a\\x1b[31m.txt" in one_line(caught)


def packed(folder: Path, packing: Any) -> Located:
    write(folder, {"a": tensor([1], [0, 1])}, b"1")
    (folder / "config.json").write_text(json.dumps({"quantization_config": packing}))
    return Located("m", folder)


def test_configs_are_quoted_printably(tmp_path: Path) -> None:
    from pytest_pplguard.checkpoints.config import check_config

    located = packed(tmp_path, {"sparsity_config": {"format": f"x{ESCAPES}\ny"}})
    with pytest.raises(CheckpointError) as caught:
        check_config(located, trust_remote_code=False)
    one_line(caught, "format x\\x1b[2J", "\\ny")
