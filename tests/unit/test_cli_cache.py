"""``pplguard cache``: what it prints, and what it removes."""

from __future__ import annotations

import functools
import os
from pathlib import Path

import pytest

from pytest_pplguard.cache import Cache
from pytest_pplguard.cli.cache import clear_cache, show_cache
from pytest_pplguard.errors import UsageError

MADE = 1_795_000_000


def fill(folder: Path) -> None:
    """Three results of two checkpoints, windows, and a file of the user's."""
    for number, label in enumerate(
        (
            "llama/w50 wanda/wikitext2:4096 (out/w50)",
            "llama/w50 lm-eval/wikitext:4096 (out/w50)",
            "llama/dense wanda/wikitext2:4096 (out/my dense)",
        )
    ):
        cache = Cache(
            folder, tell=pytest.fail, now=functools.partial(int, MADE + 60 * number)
        )
        cache.put("result", {"number": number}, "x" * 500, label=label)
    cache.put("windows", {}, [], label="llama/w50 wanda/wikitext2:4096")
    (folder / "notes.txt").write_text("mine")
    for path in folder.glob("*.json"):
        os.utime(path, (MADE + 3600, MADE + 3600))


def test_what_is_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fill(tmp_path)
    show_cache(tmp_path)
    sizes = {
        kind: sum(path.stat().st_size for path in tmp_path.glob(f"*.{kind}.json"))
        for kind in ("result", "windows")
    }
    assert capsys.readouterr().out.splitlines() == [
        f"folder   {tmp_path}",
        f"entries  3 results ({sizes['result'] / 1000:.1f} kB), 1 other that only "
        f"save time ({sizes['windows']} B)",
        "made     2026-11-18 11:06 to 2026-11-18 11:08 UTC",
        "llama/dense (out/my dense)",
        f"  1 result, {len_of(tmp_path, 'my dense')} B, last used 2026-11-18 12:06 UTC",
        "llama/w50 (out/w50)",
        f"  2 results, {len_of(tmp_path, 'out/w50') / 1000:.1f} kB, last used "
        "2026-11-18 12:06 UTC",
    ]


def len_of(folder: Path, place: str) -> int:
    return sum(
        path.stat().st_size
        for path in folder.glob("*.result.json")
        if place in path.read_text()
    )


def test_no_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    show_cache(tmp_path / "none")
    assert clear_cache(tmp_path / "none", older_than=None)
    assert capsys.readouterr().out.splitlines() == [
        f"folder   {tmp_path / 'none'}",
        "entries  none",
        f"{tmp_path / 'none'}: no such folder, so nothing is cached",
    ]
    assert not (tmp_path / "none").exists()


def test_names_cannot_write_to_the_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cache = Cache(tmp_path, tell=pytest.fail)
    cache.put("result", {}, {}, label="a/b\x1b[2J key (x)")
    show_cache(tmp_path)
    assert "a/b\\x1b[2J (x)" in capsys.readouterr().out


def test_clear(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fill(tmp_path)
    assert clear_cache(tmp_path, older_than=None)
    out = capsys.readouterr().out
    assert out == f"{tmp_path}: removed 3 results and 1 other\n"
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_clear_that_fails_says_so(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fill(tmp_path)

    def refuse(path: Path) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "unlink", refuse)
    assert not clear_cache(tmp_path, older_than=None)
    assert f"{tmp_path}: 4 files could not be removed\n" in capsys.readouterr().out


def test_a_folder_that_is_a_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("mine")
    with pytest.raises(UsageError, match=r"--cache-dir: .*file: Not a directory"):
        show_cache(path)
    with pytest.raises(UsageError, match=r"--cache-dir: .*file: Not a directory"):
        clear_cache(path, older_than=None)
