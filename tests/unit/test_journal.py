"""The journal of finished windows: whatever happens to its file, no wrong number."""

from __future__ import annotations

import errno
import math
import os
import resource
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from pytest_pplguard.journal import Identity, Journal, Journals, discard
from pytest_pplguard.values import Window, WindowScore

IDENTITY = Identity(
    model="sha256:1",
    key="wanda/tiny:4",
    windows_digest="sha256:2",
    environment={"torch": "2.13.0", "threads": 2},
)
WINDOWS = [Window(ids=(1, 2, 3, n), targets=(2, 3, n), page=n // 2) for n in range(6)]
SCORES = {n: WindowScore(math.pi * (n + 1), 3, n // 2) for n in range(6)}


def open_in(folder: Path, identity: Identity = IDENTITY) -> Journal:
    return Journals(folder).open(identity, WINDOWS, label="it")


def written(folder: Path, *indices: int) -> Path:
    """A journal with these windows, one record each, by a run that was killed."""
    journal = open_in(folder)
    for index in indices:
        journal.add({index: SCORES[index]})
    journal.close()
    assert journal.path is not None
    return journal.path


def continued(count: int, path: Path) -> str:
    stamp = time.strftime("%Y-%m-%d %H:%M", time.localtime(path.stat().st_mtime))
    return f"it: {count} of 6 windows were scored already, the last at {stamp}"


def test_a_new_journal_is_empty_and_says_nothing(tmp_path: Path) -> None:
    with open_in(tmp_path / "made" / "for" / "it") as journal:
        assert journal.finished == {}
        assert journal.notices == []


def test_what_was_added_is_there_again(tmp_path: Path) -> None:
    path = written(tmp_path, 0, 1, 4)
    with open_in(tmp_path) as journal:
        assert journal.finished == {n: SCORES[n] for n in (0, 1, 4)}
        assert journal.notices == [continued(3, path)]
        assert journal.path == path


def test_what_is_no_window_is_not_called_one(tmp_path: Path) -> None:
    written(tmp_path, 0, 1, 4)
    with Journals(tmp_path).open(IDENTITY, WINDOWS, label="it", unit="answers") as it:
        (notice,) = it.notices
    assert notice.startswith("it: 3 of 6 answers were scored already, the last at ")


def test_a_batch_is_one_record(tmp_path: Path) -> None:
    with open_in(tmp_path) as journal:
        journal.add({n: SCORES[n] for n in (2, 3)})
        assert journal.path is not None
        assert len(journal.path.read_bytes().splitlines()) == 2
    with open_in(tmp_path) as journal:
        assert journal.finished == {n: SCORES[n] for n in (2, 3)}


@given(nll=st.floats(min_value=0, allow_infinity=False))
def test_losses_come_back_bit_for_bit(
    tmp_path_factory: pytest.TempPathFactory, nll: float
) -> None:
    folder = tmp_path_factory.mktemp("journal")
    with open_in(folder) as journal:
        journal.add({0: WindowScore(nll, 3, 0)})
    with open_in(folder) as journal:
        assert journal.finished[0].nll_sum.hex() == nll.hex()


@pytest.mark.parametrize(
    "other",
    [
        replace(IDENTITY, model="sha256:other"),
        replace(IDENTITY, key="wanda/tiny:5"),
        replace(IDENTITY, windows_digest="sha256:other"),
        replace(IDENTITY, environment={**IDENTITY.environment, "threads": 1}),
    ],
    ids=["model", "key", "windows", "environment"],
)
def test_another_measurement_has_another_journal(
    tmp_path: Path, other: Identity
) -> None:
    path = written(tmp_path, 0)
    with open_in(tmp_path, other) as journal:
        assert journal.finished == {}
        assert journal.path != path


# ------------------------------------------------------------------------------- damage


def test_a_file_cut_anywhere_keeps_its_whole_records(tmp_path: Path) -> None:
    path = written(tmp_path / "whole", 0, 1, 2)
    data = path.read_bytes()
    ends = [i + 1 for i, byte in enumerate(data) if byte == ord("\n")]
    for size in range(len(data) + 1):
        folder = tmp_path / str(size)
        folder.mkdir()
        (folder / path.name).write_bytes(data[:size])
        # A record whose newline alone is missing is whole.
        whole = sum(size >= end - 1 for end in ends[1:])
        with open_in(folder) as journal:
            assert journal.finished == {n: SCORES[n] for n in range(whole)}, size
            journal.add({5: SCORES[5]})
        with open_in(folder) as journal:
            assert journal.finished.keys() == {*range(whole), 5}, size


def test_a_cut_record_is_told(tmp_path: Path) -> None:
    path = written(tmp_path, 0, 1)
    path.write_bytes(path.read_bytes()[:-10])
    with open_in(tmp_path) as journal:
        assert journal.notices == [
            f"it: 1 damaged record in the journal {path}: what they held is scored "
            "again",
            continued(1, path),
        ]


def test_a_changed_byte_costs_its_record_only(tmp_path: Path) -> None:
    path = written(tmp_path, 0, 1, 2)
    data = path.read_bytes()
    lines = data.splitlines(keepends=True)
    second = len(lines[0]) + len(lines[1])
    for place in range(second, second + len(lines[2])):
        for flip in (1, 128):
            changed = bytearray(data)
            changed[place] ^= flip
            path.write_bytes(changed)
            with open_in(tmp_path) as journal:
                right = {n: SCORES[n] for n in journal.finished}
                assert journal.finished == right
                assert journal.finished.keys() >= {0}


def test_scores_that_cannot_be_of_these_windows_are_not_taken(tmp_path: Path) -> None:
    with open_in(tmp_path) as journal:
        journal.add({0: WindowScore(1.0, 2, 0)})
        journal.add({1: SCORES[1]})
    with open_in(tmp_path) as journal:
        assert journal.finished == {1: SCORES[1]}


@pytest.mark.parametrize(
    "forged",
    [
        b'{"windows":[[-1,9.0,3],[6,9.0,3],[99999999999999,9.0,3]]}',
        b'{"windows":[[0,"code",3]]}',
        b'{"windows":' + b"[" * 100_000,
        b"[]",
    ],
)
def test_a_record_with_a_good_sum_that_no_run_wrote(
    tmp_path: Path, forged: bytes
) -> None:
    path = written(tmp_path, 1)
    with path.open("ab") as file:
        file.write(b"%08x %s\n" % (zlib.crc32(forged), forged))
    with open_in(tmp_path) as journal:
        assert journal.finished == {1: SCORES[1]}


def test_a_journal_of_another_version_is_left_alone(tmp_path: Path) -> None:
    path = written(tmp_path, 0)
    import zlib

    document = b'{"format":2,"identity":{"anything":"else"}}'
    other = b"%08x %s\nwhatever it means\n" % (zlib.crc32(document), document)
    path.write_bytes(other)
    with open_in(tmp_path) as journal:
        assert journal.finished == {}
        assert journal.notices == [
            f"it: the journal {path} was written by another version of "
            "pytest-pplguard (format 2) and is left alone"
        ]
        journal.add({0: SCORES[0]})
    assert path.read_bytes() == other
    with open_in(tmp_path) as journal:
        assert journal.finished == {0: SCORES[0]}


def test_a_file_that_is_no_journal_is_begun_anew(tmp_path: Path) -> None:
    path = written(tmp_path, 0)
    path.write_bytes(b"no\njournal\n")
    with open_in(tmp_path) as journal:
        assert journal.finished == {}
        assert journal.path == path
        assert journal.notices == [
            f"it: 2 damaged records in the journal {path}: what they held is scored "
            "again"
        ]
        journal.add({1: SCORES[1]})
    with open_in(tmp_path) as journal:
        assert journal.finished == {1: SCORES[1]}


# ------------------------------------------------------------------------ no good place


def test_an_unwritable_place_is_a_notice(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    folder = tmp_path / "file" / "journal"
    with open_in(folder) as journal:
        journal.add({0: SCORES[0]})
        assert journal.path is None
        assert journal.notices == [
            "finished windows are not kept, so a run that is killed starts again: "
            f"{folder}: Not a directory (another folder: --ppl-journal=DIR, pplguard: "
            "--journal DIR)"
        ]


@contextmanager
def limited(size: int) -> Iterator[None]:
    """No file may grow beyond ``size`` bytes, as on a disk that is full."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("room", [0, 5], ids=["none", "for half a record"])
def test_a_full_disk_ends_the_keeping_not_the_run(tmp_path: Path, room: int) -> None:
    path = written(tmp_path, 0)
    with open_in(tmp_path) as journal, limited(path.stat().st_size + room):
        for index in (1, 2):
            journal.add({index: SCORES[index]})
    assert journal.notices[1:] == [
        "finished windows are not kept, so a run that is killed starts again: "
        f"{path}: {os.strerror(27 if not room else 28)} (another folder: "
        "--ppl-journal=DIR, pplguard: --journal DIR)"
    ]
    with open_in(tmp_path) as journal:
        assert journal.finished == {0: SCORES[0]}


# ---------------------------------------------------------------------------- together


def test_runs_at_the_same_time_have_a_file_each(tmp_path: Path) -> None:
    with open_in(tmp_path) as one:
        one.add({0: SCORES[0]})
        with open_in(tmp_path) as other:
            assert other.finished == {0: SCORES[0]}
            assert other.path != one.path
            other.add({1: SCORES[1]})
            one.add({2: SCORES[2]})
    with open_in(tmp_path) as journal:
        assert journal.finished == {n: SCORES[n] for n in range(3)}
        assert journal.path == one.path


def test_a_killed_run_behind_two_that_are_over_is_found(tmp_path: Path) -> None:
    with open_in(tmp_path) as one, open_in(tmp_path) as two:
        killed = open_in(tmp_path)
        killed.add({3: SCORES[3]})
        killed.close()
        for over in (one, two):
            over.close()
            assert over.path is not None
            over.path.unlink()
    with open_in(tmp_path) as journal:
        assert journal.finished == {3: SCORES[3]}
        assert journal.path not in (None, killed.path)


def without_locks(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    import fcntl

    def no_lock(*_: object) -> None:
        raise error

    monkeypatch.setattr(fcntl, "flock", no_lock)


@pytest.mark.skipif(
    tuple(map(int, version("filelock").split(".")[:2])) < (3, 24),
    reason="filelock takes a file for a lock since 3.24; the test below is of before",
)
@pytest.mark.filterwarnings("error")
def test_a_file_system_without_locks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_locks(monkeypatch, OSError(errno.ENOSYS, os.strerror(errno.ENOSYS)))
    with open_in(tmp_path) as journal:
        journal.add({0: SCORES[0]})
    with open_in(tmp_path) as journal:
        assert journal.finished == {0: SCORES[0]}


def test_a_file_system_without_locks_under_older_filelock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_locks(monkeypatch, NotImplementedError("no flock"))
    with open_in(tmp_path) as journal:
        journal.add({0: SCORES[0]})
    assert journal.notices == [
        "finished windows are not kept, so a run that is killed starts again: "
        f"{tmp_path}: the file system has no locks (another folder: "
        "--ppl-journal=DIR, pplguard: --journal DIR)"
    ]


# ------------------------------------------------------------------------- when it goes


def test_complete_journals_are_given_once(tmp_path: Path) -> None:
    journals = Journals(tmp_path)
    with journals.open(IDENTITY, WINDOWS, label="it") as journal:
        assert journals.take_complete() == []
    assert journals.take_complete() == [journal.path]
    assert journals.take_complete() == []


def test_an_interrupted_journal_is_not_complete(tmp_path: Path) -> None:
    journals = Journals(tmp_path)
    with (
        pytest.raises(KeyboardInterrupt),
        journals.open(IDENTITY, WINDOWS, label="it"),
    ):
        raise KeyboardInterrupt
    assert journals.take_complete() == []


def test_discarding_takes_what_other_runs_left_but_not_what_they_write(
    tmp_path: Path,
) -> None:
    with open_in(tmp_path) as mine:
        with open_in(tmp_path) as killed:
            pass
        assert mine.path is not None
        with open_in(tmp_path) as running:
            assert running.path == killed.path
            mine.close()
            discard(mine.path)
            assert [f for f in tmp_path.iterdir() if f.suffix == ".jsonl"] == [
                running.path
            ]
            running.add({0: SCORES[0]})
        discard(mine.path)
    assert list(tmp_path.iterdir()) == []


def test_what_nobody_has_continued_for_a_month_goes(tmp_path: Path) -> None:
    old = written(tmp_path, 0)
    day = 24 * 60 * 60
    for file in tmp_path.iterdir():
        os.utime(file, (time.time() - 31 * day,) * 2)
    young = tmp_path / f"{'a' * 32}.0.jsonl"
    theirs = [tmp_path / name for name in ("train.jsonl", "uv.lock", "a.0.jsonl")]
    for file, age in ((young, 29), *((file, 900) for file in theirs)):
        file.write_text("")
        os.utime(file, (time.time() - age * day,) * 2)
    with open_in(tmp_path) as journal:
        assert journal.finished == {}
        assert journal.path == old
    assert all(file.exists() for file in (young, *theirs))
