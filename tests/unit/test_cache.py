"""Entries of the cache: whatever happens to a file or a folder, no wrong content."""

from __future__ import annotations

import hashlib
import json
import os
import resource
import signal
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_pplguard.cache import Cache, Wrong, clear, kept, ours

ABOUT = {"key": "wanda/tiny:4", "dtype": "float32", "threads": 2}
CONTENT = {"value": 5.75, "windows": [1, 2, 3]}
NOW = 1_795_000_000.75


class Folder:
    """A cache, and what it has told."""

    def __init__(self, path: Path, now: float = NOW) -> None:
        self.path = path
        self.now = now
        self.told: list[str] = []
        self.cache = Cache(path, tell=self.told.append, now=lambda: self.now)

    def put(self, content: Any = CONTENT, about: Any = ABOUT) -> None:
        self.cache.put("result", about, content, label="a/b wanda/tiny:4 (here)")

    def get(self, about: Any = ABOUT) -> Any:
        return self.cache.get(
            "result",
            about,
            lambda content, made: (msgspec.json.decode(content), made),
            label="it",
        )

    @property
    def entry(self) -> Path:
        (path,) = self.path.glob("*.result.json")
        return path


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(tmp_path / "made" / "for" / "it")


def sealed(document: dict[str, Any]) -> bytes:
    """A file whose digest is right, written here without the code under test."""
    entry = json.dumps(document["entry"], separators=(",", ":"))
    digest = hashlib.sha256(entry.encode()).hexdigest()
    head = json.dumps({"format": document["format"], "sha256": digest})
    return f'{head[:-1]}, "entry": {entry}}}'.encode()


def edit(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change an entry, and its digest with it."""
    document = json.loads(path.read_bytes())
    change(document)
    path.write_bytes(sealed(document))


def test_what_was_put_is_there_with_its_date(folder: Folder) -> None:
    assert folder.get() is None
    folder.put()
    made = datetime(2026, 11, 18, 11, 6, 40, tzinfo=UTC)
    assert made.timestamp() == 1_795_000_000
    assert folder.get() == (CONTENT, made)
    assert folder.told == []


def test_the_helper_that_seals_makes_what_is_read(folder: Folder) -> None:
    folder.put()
    edit(folder.entry, lambda document: None)
    assert folder.get()[0] == CONTENT


@given(value=st.floats(allow_nan=False, allow_infinity=False))
def test_numbers_come_back_bit_for_bit(
    tmp_path_factory: pytest.TempPathFactory, value: float
) -> None:
    folder = Folder(tmp_path_factory.mktemp("cache"))
    folder.put({"value": value})
    assert folder.get()[0]["value"].hex() == value.hex()


@pytest.mark.parametrize("name", ABOUT)
def test_another_identity_is_another_entry(folder: Folder, name: str) -> None:
    folder.put()
    assert folder.get(ABOUT | {name: "other"}) is None
    assert folder.get({k: v for k, v in ABOUT.items() if k != name}) is None
    assert folder.get(dict(reversed(ABOUT.items())))[0] == CONTENT
    assert folder.told == []


def test_what_is_no_text_can_be_looked_up(folder: Folder) -> None:
    """File names and variables of the environment are bytes."""
    one, other = (os.fsdecode(b"/opt/" + byte) for byte in (b"\xff", b"\xfe"))
    about = {"files": {one: "a"}, "variables": {"LD_LIBRARY_PATH": one}}
    folder.cache.put("result", about, CONTENT, label=one)
    assert folder.get(about)[0] == CONTENT
    assert folder.told == []
    assert folder.get({"files": {other: "a"}, "variables": {}}) is None
    assert folder.get(about | {"variables": {"LD_LIBRARY_PATH": other}}) is None
    assert [entry.label for entry in kept(folder.path)] == ["/opt/?"]


def test_files_are_for_their_user_alone(folder: Folder) -> None:
    old = os.umask(0)
    try:
        folder.put()
    finally:
        os.umask(old)
    assert stat.S_IMODE(folder.path.stat().st_mode) == 0o700
    assert stat.S_IMODE(folder.entry.stat().st_mode) == 0o600


def test_every_cut_is_damage(folder: Folder) -> None:
    folder.put()
    data = folder.entry.read_bytes()
    for length in range(len(data)):
        folder.entry.write_bytes(data[:length])
        assert folder.get() is None
    assert folder.told == [
        f"it: the cached result {folder.entry} is damaged: made again"
    ] * len(data)
    folder.put()
    assert folder.get()[0] == CONTENT


def test_every_changed_byte_is_seen(folder: Folder) -> None:
    folder.put()
    data = folder.entry.read_bytes()
    for place in range(len(data)):
        changed = bytearray(data)
        changed[place] ^= 1
        folder.entry.write_bytes(changed)
        found = folder.get()
        # The name of an unknown field decides nothing; no content is another one.
        assert found is None or found[0] == CONTENT
    assert len(folder.told) > len(data) * 0.9


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\0" * 100,
        b"\xff\xfe{}",
        b"[" * 100_000,
        b"null",
        b"{}",
        b'{"format":"1"}',
    ],
)
def test_rubbish_is_damage(folder: Folder, data: bytes) -> None:
    folder.put()
    folder.entry.write_bytes(data)
    assert folder.get() is None
    assert len(folder.told) == 1


def test_an_entry_of_something_else_is_not_used(folder: Folder) -> None:
    other = ABOUT | {"dtype": "bfloat16"}
    folder.put()
    mine = folder.entry
    folder.put({"value": 1.0}, other)
    (theirs,) = set(folder.path.glob("*.result.json")) - {mine}
    mine.write_bytes(theirs.read_bytes())
    assert folder.get() is None
    assert folder.told == [
        f"it: the cached result {mine} is about something else: made again"
    ]


def test_a_newer_format_is_left_alone(folder: Folder) -> None:
    folder.put()
    newer = b'{"format": 2, "whatever": [1, {"of": "a later version"}]}'
    folder.entry.write_bytes(newer)
    assert folder.get() is None
    folder.put({"value": 1.0})
    assert folder.entry.read_bytes() == newer
    assert folder.told == [
        f"it: the cached result {folder.entry} is of a newer version of "
        "pytest-pplguard (format 2) and is left alone: made again"
    ]


def test_an_older_format_is_replaced(folder: Folder) -> None:
    folder.put()
    edit(folder.entry, lambda document: document.update(format=0))
    assert folder.get() is None
    assert "is of an older version (format 0)" in folder.told[0]
    folder.put()
    assert folder.get()[0] == CONTENT


def test_a_date_in_the_future_is_not_believed(folder: Folder) -> None:
    folder.put()
    folder.now -= 2
    assert folder.get() is None
    assert folder.told == [
        f"it: the cached result {folder.entry} is dated in the future "
        "(2026-11-18T11:06:40Z; is the clock right?): made again"
    ]
    folder.put()
    assert folder.get()[0] == CONTENT


@pytest.mark.parametrize(
    "made", ["", "2026-11-18", "yesterday", "2026-13-01T00:00:00Z"]
)
def test_no_date_is_not_believed(folder: Folder, made: str) -> None:
    folder.put()
    edit(folder.entry, lambda document: document["entry"].update(made=made))
    assert folder.get() is None
    assert "has no date" in folder.told[0]


def test_an_unknown_field_is_damage(folder: Folder) -> None:
    folder.put()
    edit(folder.entry, lambda document: document["entry"].update(more=1))
    assert folder.get() is None


def test_what_its_reader_refuses_is_not_used(folder: Folder) -> None:
    folder.put()

    def refuse(content: object, made: object) -> None:
        raise Wrong("is not sound (it is of bread)")

    assert folder.cache.get("result", ABOUT, refuse, label="it") is None
    assert folder.told == [
        f"it: the cached result {folder.entry} is not sound (it is of bread): "
        "made again"
    ]


# --------------------------------------------------------------------- whose file it is


@pytest.mark.parametrize("mode", [0o620, 0o602, 0o666])
def test_what_others_can_write_is_refused(folder: Folder, mode: int) -> None:
    folder.put()
    folder.entry.chmod(mode)
    assert folder.get() is None
    assert "belongs to another user, or others can write it" in folder.told[0]
    folder.put()
    assert folder.get()[0] == CONTENT


def test_another_users_file_is_refused(
    folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder.put()
    me = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: me + 1)
    assert folder.get() is None
    assert "belongs to another user" in folder.told[0]


def test_a_link_is_not_followed(folder: Folder, tmp_path: Path) -> None:
    folder.put()
    entry = folder.entry
    moved = entry.rename(tmp_path / "elsewhere.json")
    entry.symlink_to(moved)
    assert folder.get() is None
    assert "cannot be read" in folder.told[0]
    folder.put()
    assert not entry.is_symlink()
    assert folder.get()[0] == CONTENT


def test_a_pipe_keeps_nobody_waiting(folder: Folder) -> None:
    folder.put()
    entry = folder.entry
    entry.unlink()
    os.mkfifo(entry)
    assert folder.get() is None
    assert "is no entry" in folder.told[0]


# ------------------------------------------------------------- folders that cannot be


def test_a_folder_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    folder = Folder(tmp_path / "file")
    assert folder.get() is None
    folder.put()
    assert folder.told == [
        f"results are not cached: {tmp_path / 'file'}: File exists "
        "(another folder: --ppl-cache-dir=DIR)"
    ]
    assert (tmp_path / "file").read_text() == "mine"


def test_a_folder_inside_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    folder = Folder(tmp_path / "file" / "in" / "it")
    assert folder.get() is None
    folder.put()
    assert len(folder.told) == 1
    assert "Not a directory" in folder.told[0]


def test_a_folder_that_cannot_be_written(
    folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("tempfile.mkstemp", refuse)
    folder.put()
    assert folder.told == [
        f"results are not cached: {folder.path}: Permission denied "
        "(another folder: --ppl-cache-dir=DIR)"
    ]


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """What a full disk does to files that grow beyond ``size`` bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_leaves_what_was_there(folder: Folder) -> None:
    folder.put()
    with files_of_at_most(100):
        folder.put({"value": 1.0})
    assert folder.told == [
        f"results are not cached: {folder.path}: File too large "
        "(another folder: --ppl-cache-dir=DIR)"
    ]
    assert folder.get()[0] == CONTENT
    assert [path.name for path in folder.path.iterdir()] == [folder.entry.name]


# ------------------------------------------------------------------ several at once


def test_processes_share_a_folder(tmp_path: Path) -> None:
    """Of ten that write and read at the same time each sees whole entries only."""
    children = []
    for number in range(10):
        child = os.fork()
        if child == 0:
            status = 1
            try:
                folder = Folder(tmp_path / "shared")
                for turn in range(50):
                    content = {"value": [number, turn] * 500}
                    folder.put(content)
                    found = folder.get()[0]["value"]
                    assert len(found) == 1000
                    assert found == found[:2] * 500
                status = 1 if folder.told else 0
            finally:
                os._exit(status)
        children.append(child)
    statuses = [os.waitstatus_to_exitcode(os.waitpid(c, 0)[1]) for c in children]
    assert statuses == [0] * 10
    assert len(list((tmp_path / "shared").iterdir())) == 1


def test_a_process_that_is_killed_leaves_no_half_entry(tmp_path: Path) -> None:
    folder = Folder(tmp_path / "shared")
    for delay in (0.0, 0.002, 0.005, 0.01, 0.02):
        child = os.fork()
        if child == 0:
            while True:
                Folder(folder.path).put({"value": list(range(20_000))})
        time.sleep(delay)
        os.kill(child, signal.SIGKILL)
        assert os.WIFSIGNALED(os.waitpid(child, 0)[1])
        found = folder.get()
        assert found is None or found[0]["value"][-1] == 19_999
    assert folder.told == []


# --------------------------------------------------------------------------- growth


def age(path: Path, days: float, now: float = NOW) -> None:
    os.utime(path, (now - days * 86_400, now - days * 86_400))


def test_what_nobody_uses_is_dropped(folder: Folder) -> None:
    folder.put()
    old = folder.entry
    age(old, 90.1)
    folder.put(about=ABOUT | {"key": "used"})
    (used,) = set(folder.path.glob("*.result.json")) - {old}
    assert not old.exists()
    age(used, 89.9)
    folder.put()
    assert used.exists()


def test_use_keeps_an_entry(folder: Folder) -> None:
    folder.now = time.time()
    folder.put()
    age(folder.entry, 89.9, folder.now)
    assert folder.get() is not None
    assert folder.now - folder.entry.stat().st_mtime < 1000


def test_files_of_others_stay(folder: Folder) -> None:
    folder.path.mkdir(parents=True)
    theirs = [
        folder.path / name
        for name in ("notes.txt", "a.result.json", f"{'g' * 40}.result.json", ".tmp")
    ]
    for path in theirs:
        path.write_text("mine")
        age(path, 1000)
    folder.put()
    clear(folder.path)
    assert sorted(folder.path.iterdir()) == sorted(theirs)


def test_what_dead_processes_left_is_dropped(folder: Folder) -> None:
    folder.path.mkdir(parents=True)
    left, new = folder.path / ".pplguard-abc.tmp", folder.path / ".pplguard-def.tmp"
    for path, days in ((left, 1.1), (new, 0.5)):
        path.write_text("half")
        age(path, days)
    folder.put()
    assert not left.exists()
    assert new.exists()


# --------------------------------------------------------------------------- commands


def test_what_is_kept(folder: Folder) -> None:
    folder.put()
    (folder.path / "notes.txt").write_text("mine")
    broken = folder.path / f"{'0' * 40}.result.json"
    broken.write_bytes(b"rubbish")
    unreadable, whole = kept(folder.path)
    assert (unreadable.kind, unreadable.label, unreadable.size) == ("result", "", 7)
    assert whole.label == "a/b wanda/tiny:4 (here)"
    assert whole.made == 1_795_000_000
    assert whole.size == folder.path.joinpath(ours(folder.path)[1][0]).stat().st_size


def test_clear_counts(folder: Folder) -> None:
    folder.put()
    folder.put(about=ABOUT | {"key": "other"})
    folder.cache.put("torch", ABOUT, {}, label="x")
    (folder.path / ".pplguard-abc.tmp").write_text("half")
    for path, _ in ours(folder.path):
        age(path, 3, time.time())
    age(folder.path / ".pplguard-abc.tmp", 1, time.time())
    assert clear(folder.path, older_than=3.5) == {}
    assert clear(folder.path, older_than=2) == {"result": 2, "torch": 1}
    assert clear(folder.path) == {"temporary": 1}
    assert list(folder.path.iterdir()) == []


def test_clear_says_what_it_cannot_remove(
    folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder.put()

    def refuse(path: Path) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "unlink", refuse)
    assert clear(folder.path) == {"failed": 1}
