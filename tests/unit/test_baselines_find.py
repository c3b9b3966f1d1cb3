"""Tests of finding baseline files and of checkpoint names."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pytest_pplguard.baselines import (
    baseline_path,
    baseline_paths,
    looks_like_baseline,
    split_name,
)
from pytest_pplguard.errors import BaselineError, UsageError


def test_paths_are_sorted_and_hidden_and_other_files_skipped(tmp_path: Path) -> None:
    for name in ("b.yaml", "a.yml", ".c.yaml", ".b.yaml.lock", "d.json", "e.YAML"):
        (tmp_path / name).write_text("")
    (tmp_path / "folder.yaml").mkdir()
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "inner.yaml").write_text("")
    assert baseline_paths(tmp_path) == [tmp_path / "a.yml", tmp_path / "b.yaml"]


def test_a_folder_that_does_not_exist_holds_nothing(tmp_path: Path) -> None:
    assert baseline_paths(tmp_path / "none") == []


def test_a_file_in_place_of_the_folder(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("")
    with pytest.raises(BaselineError) as caught:
        baseline_paths(path)
    assert str(caught.value) == f"{path}: cannot be listed: Not a directory"


def test_two_files_of_one_stem(tmp_path: Path) -> None:
    for name in ("m.yaml", "m.yaml.yaml", "m.yml"):
        (tmp_path / name).write_text("")
    with pytest.raises(BaselineError) as caught:
        baseline_paths(tmp_path)
    assert str(caught.value) == (
        f"{tmp_path}: m.yaml and m.yml would both name their checkpoints m/...: "
        "rename one of the two"
    )


def test_the_file_of_a_stem(tmp_path: Path) -> None:
    (tmp_path / "b.yml").write_text("")
    (tmp_path / "m.yaml").mkdir()
    assert baseline_path(tmp_path, "b") == tmp_path / "b.yml"
    assert baseline_path(tmp_path, "m") == tmp_path / "m.yaml"
    assert baseline_path(tmp_path / "none", "a.b") == tmp_path / "none" / "a.b.yaml"
    (tmp_path / "b.yaml").write_text("")
    with pytest.raises(BaselineError) as caught:
        baseline_path(tmp_path, "b")
    assert str(caught.value) == (
        f"{tmp_path}: b.yaml and b.yml would both name their checkpoints b/...: "
        "rename one of the two"
    )


def test_a_name_is_split_into_stem_and_entry() -> None:
    assert split_name("llama-2-7b/wanda-50") == ("llama-2-7b", "wanda-50")
    assert split_name("a.b/2+4") == ("a.b", "2+4")


@pytest.mark.parametrize(
    "name",
    ["", "dense", "/dense", "m/", "m/a/b", "m/a b", "../x", "m/-a", "m\\a", "é/a"],
)
def test_names_of_another_form(name: str) -> None:
    with pytest.raises(UsageError) as caught:
        split_name(name)
    assert str(caught.value) == (
        f"{name!r} is not a checkpoint name: expected FILE/NAME, a baseline file's "
        "stem and an entry in it, for example llama-2-7b/wanda-50 (letters, digits "
        "and ._+- only)"
    )


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"schema: 1\n", True),
        (b"\xef\xbb\xbfschema : 1\r\n", True),
        (b"# comment\n'checkpoints': {}\n", True),
        (b"on: push\njobs:\n  schema: 1\n", False),
        (b"\xff\xfe\x00", False),
        (b"", False),
        (b"\n" * 70_000 + b"schema: 1\n", False),
    ],
)
def test_sniffing(tmp_path: Path, content: bytes, expected: bool) -> None:
    path = tmp_path / "m.yaml"
    path.write_bytes(content)
    assert looks_like_baseline(path) is expected


def test_sniffing_never_raises_or_blocks(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.yaml")
    assert not looks_like_baseline(tmp_path / "pipe.yaml")
    assert not looks_like_baseline(tmp_path)
    assert not looks_like_baseline(tmp_path / "none.yaml")
    assert not looks_like_baseline(Path("a\0b"))
