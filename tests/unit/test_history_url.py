"""Addresses of a history: what they mean, and what is refused before a run."""

from __future__ import annotations

import os
import sqlite3
from pathlib import Path

import pytest

from pytest_pplguard.errors import UsageError
from pytest_pplguard.history import checked_url, path_of

EXAMPLE = "write sqlite:///FILE (a path from here) or sqlite:////FOLDER/FILE"


def message(url: str, base: Path) -> str:
    with pytest.raises(UsageError) as caught:
        checked_url(url, base=base, option="--ppl-history")
    return str(caught.value)


def test_relative_and_absolute(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    for url, path in (
        ("sqlite:///h.db", tmp_path / "h.db"),
        ("sqlite:///sub/../h.db", tmp_path / "h.db"),
        (f"sqlite:///{tmp_path / 'sub' / 'h.db'}", tmp_path / "sub" / "h.db"),
        ("sqlite:///name with # and %41.db", tmp_path / "name with # and %41.db"),
    ):
        checked = checked_url(url, base=tmp_path, option="x")
        assert checked == f"sqlite:///{path}"
        # What is checked stays what it is, wherever it is read from.
        assert path_of(checked, base=Path("/elsewhere"), option="x") == path
    assert list(tmp_path.iterdir()) == [tmp_path / "sub"]


def test_a_drive_of_windows() -> None:
    path = path_of(r"sqlite:///C:\runs\h.db", base=Path("/base"), option="x")
    assert path.name == r"C:\runs\h.db"  # on Windows the file h.db of that folder


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("h.db", f"--ppl-history: 'h.db' is not the URL of a database; {EXAMPLE}"),
        (
            r"C:\h.db",
            rf"--ppl-history: 'C:\\h.db' is not the URL of a database; {EXAMPLE}",
        ),
        (
            "postgresql://me:secret@host/db",
            "--ppl-history: a history is a file of SQLite, not of postgresql; "
            f"{EXAMPLE}",
        ),
        ("sqlite://h.db", f"--ppl-history: 'sqlite://h.db' names no file; {EXAMPLE}"),
        ("sqlite:///", f"--ppl-history: 'sqlite:///' names no file; {EXAMPLE}"),
        (
            "sqlite:///:memory:",
            f"--ppl-history: 'sqlite:///:memory:' names no file; {EXAMPLE}",
        ),
        (
            "sqlite:///h.db?mode=ro",
            "--ppl-history: 'sqlite:///h.db?mode=ro': options behind a ? are not "
            f"known; {EXAMPLE}",
        ),
        (
            "sqlite:///no/h.db",
            "--ppl-history: the folder of HERE/no/h.db does not exist",
        ),
        ("sqlite:///sub", "--ppl-history: HERE/sub is a folder; name a file in it"),
        (
            "sqlite:///text.txt",
            "--ppl-history: HERE/text.txt is not a history: it is no database of "
            "SQLite; name another file",
        ),
        (
            "sqlite:///other.db",
            "--ppl-history: HERE/other.db is not a history: it is a database of "
            "something else; name another file",
        ),
        (
            "sqlite:///newer.db",
            "--ppl-history: HERE/newer.db was written by a newer pytest-pplguard "
            "(schema 2, this version reads 1): upgrade",
        ),
    ],
)
def test_mistakes(tmp_path: Path, url: str, said: str) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "text.txt").write_text("no database, but long enough to be one " * 9)
    for name, statements in {
        "other.db": "CREATE TABLE runs (id)",
        "newer.db": "CREATE TABLE runs (id); PRAGMA user_version = 2; "
        "PRAGMA application_id = 0x70706c67",
    }.items():
        with sqlite3.connect(tmp_path / name) as connection:
            connection.executescript(statements)
        connection.close()
    assert message(url, tmp_path).replace(str(tmp_path), "HERE") == said


def test_an_empty_file_will_do(tmp_path: Path) -> None:
    (tmp_path / "h.db").touch()
    assert checked_url("sqlite:///h.db", base=tmp_path, option="x")
    assert (tmp_path / "h.db").stat().st_size == 0


@pytest.mark.skipif(
    not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write anything"
)
def test_what_cannot_be_written(tmp_path: Path) -> None:
    path = tmp_path / "h.db"
    path.touch(0o400)
    assert message("sqlite:///h.db", tmp_path) == (
        f"--ppl-history: {path} cannot be written: attempt to write a readonly database"
    )
    path.unlink()
    tmp_path.chmod(0o500)
    assert message("sqlite:///h.db", tmp_path) == (
        f"--ppl-history: nothing can be written to {tmp_path}"
    )
    tmp_path.chmod(0o700)


def test_somebody_who_adds_a_run_does_not_disturb(tmp_path: Path) -> None:
    path = tmp_path / "h.db"
    with sqlite3.connect(path, isolation_level=None) as writer:
        writer.executescript(
            "CREATE TABLE runs (id); PRAGMA application_id = 0x70706c67; "
            "PRAGMA user_version = 1"
        )
        writer.execute("BEGIN IMMEDIATE")
        assert checked_url("sqlite:///h.db", base=tmp_path, option="x")
        writer.execute("ROLLBACK")
    writer.close()


def test_a_name_that_is_too_long(tmp_path: Path) -> None:
    name = "x" * 300
    assert message(f"sqlite:///{name}", tmp_path) == (
        f"--ppl-history: {tmp_path}/{name}: File name too long"
    )
