"""Keeps a measurement's finished windows on disk until the run that needs them is over.

A journal is a text file to which only whole lines are added, each the CRC-32 of a JSON
document and the document: first what is measured (:class:`Identity`), then the windows
of one batch after the other. A line that was cut or damaged is left out when the file
is read. So a process may die at any instant, and a run that finds the journal of the
same measurement goes on where the other was stopped.

Runs that measure the same at the same time have a file each, held by a lock, and read
each other's.
"""

from __future__ import annotations

import errno
import hashlib
import math
import os
import re
import time
import warnings
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from io import FileIO
from pathlib import Path
from types import TracebackType
from typing import Literal

import filelock
import msgspec
import platformdirs
from msgspec import UNSET, Struct, UnsetType

from .values import Scalar, Window, WindowScore

_FORMAT = 1
_DAYS_KEPT = 30
_RUNS_AT_ONCE = 64
_FILE = re.compile(r"[0-9a-f]{32}\.[0-9]+\.(jsonl|lock)")
_SYNC_SECONDS = 1.0
"""A power failure may take this much work; a killed process takes none."""


class Identity(Struct, frozen=True):
    """All that decides the losses of a measurement's windows, bit for bit.

    ``model`` is a digest of the model in memory, ``environment`` holds versions,
    device, dtype, kernels, threads and batch size.
    """

    model: str
    key: str
    windows_digest: str
    environment: dict[str, Scalar]


class _Head(Struct):
    """First line of a journal; ``format`` alone is read of later formats."""

    format: int
    identity: msgspec.Raw = msgspec.Raw()


class _Finished(Struct):
    """Any other line: index, summed NLL (nats) and scored tokens of each window.

    Of answers of a task also whether each is the greedy choice, in the same order.
    """

    windows: list[tuple[int, float, int]]
    greedy: list[bool] | UnsetType = UNSET


def default_folder() -> Path:
    """Where journals are if the user has not said: in the user's cache folder."""
    return platformdirs.user_cache_path("pytest-pplguard") / "journal"


class Journal:
    """The journal of one measurement in this process; a context manager.

    ``finished`` are the windows that earlier runs have scored, by index. ``notices``
    are lines for the user. ``path`` is None where nothing can be written.
    """

    def __init__(
        self,
        path: Path | None,
        finished: Mapping[int, WindowScore],
        *,
        lock: filelock.BaseFileLock | None = None,
        notices: Iterable[str] = (),
        complete: Callable[[Path], None] = lambda path: None,
    ) -> None:
        self.path = path
        self.finished = finished
        self.notices = list(notices)
        self._complete = complete
        self._lock = lock
        self._file: FileIO | None = None
        self._synced = time.monotonic()

    def add(self, scores: Mapping[int, WindowScore]) -> None:
        """Keep the windows of one batch; a disk that is full costs only the keeping."""
        if self.path is None:
            return
        windows = [(index, s.nll_sum, s.scored) for index, s in scores.items()]
        greedy = [s.greedy for s in scores.values() if s.greedy is not UNSET]
        try:
            if self._file is None:
                self._file = _open(self.path, "ab")
            _write(self._file, _line(_Finished(windows, greedy or UNSET)))
            now = time.monotonic()
            if now - self._synced >= _SYNC_SECONDS:
                os.fsync(self._file.fileno())
                self._synced = now
        except OSError as error:
            self.notices.append(_not_kept(self.path, error))
            self.close()
            self.path = None

    def close(self) -> None:
        """Let other runs write to the file."""
        if self._file is not None:
            self._file.close()
            self._file = None
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close it; where nothing was raised, it is complete."""
        self.close()
        if kind is None and self.path is not None:
            self._complete(self.path)


class Journals:
    """All journals of a folder, which is made when the first is opened."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._complete: list[Path] = []

    def take_complete(self) -> list[Path]:
        """Journals that were complete when they were left, each given once."""
        complete = self._complete.copy()
        self._complete.clear()
        return complete

    def open(
        self,
        identity: Identity,
        windows: Sequence[Window],
        *,
        label: str,
        unit: str = "windows",
    ) -> Journal:
        """The journal of the measurement ``identity`` of ``windows``.

        ``label`` is what notices call it, ``unit`` what they call its windows. Whatever
        is wrong with the folder or a file is a notice: the measurement is made all the
        same.
        """
        finished: dict[int, WindowScore] = {}
        notices: list[str] = []
        newest = 0.0
        path, lock = None, None
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            _drop_old(self._folder)
            for candidate in _candidates(self._folder, identity):
                if path is not None and not candidate.exists():
                    continue
                held = None if path is not None else _try_lock(candidate)
                content = _read(candidate, identity, windows)
                if content.format not in (None, _FORMAT):
                    notices.append(
                        f"{label}: the journal {candidate} was written by another "
                        f"version of pytest-pplguard (format {content.format}) and is "
                        "left alone"
                    )
                elif held is not None:
                    path, lock = candidate, held
                    _make_ready(path, identity, fresh=not content.is_ours)
                    if content.damaged:
                        notices.append(_damaged(label, path, content.damaged))
                if held is not None and path is not candidate:
                    held.release()
                if content.finished:
                    finished |= content.finished
                    newest = max(newest, content.written)
        except OSError as error:
            notices.append(_not_kept(self._folder, error))
            path = None
        if finished:
            notices.append(
                f"{label}: {len(finished)} of {len(windows)} {unit} were scored "
                f"already, the last at {datetime.fromtimestamp(newest):%Y-%m-%d %H:%M}"
            )
        return Journal(
            path,
            finished,
            lock=lock,
            notices=notices,
            complete=self._complete.append,
        )


def discard(path: Path) -> None:
    """Remove a journal, and what other runs left of the same measurement.

    One that a process still writes to stays.
    """
    identity = path.name.partition(".")[0]
    for file in path.parent.glob(f"{identity}.*.jsonl"):
        # A file that cannot be removed is not worth failing a finished run for: it is
        # read, and right, should the same measurement be started again.
        with suppress(OSError):
            lock = _try_lock(file)
            if lock is not None:
                file.unlink(missing_ok=True)
                lock.release()
                _lock_path(file).unlink(missing_ok=True)


# -------------------------------------------------------------------- files and lines


class _Content(Struct):
    """What a journal's file holds. ``format`` is None where its head cannot be read."""

    written: float = 0.0
    format: int | None = None
    is_ours: bool = False
    finished: dict[int, WindowScore] = {}
    damaged: int = 0


def _candidates(folder: Path, identity: Identity) -> list[Path]:
    """The files that a measurement has, and more names than there are runs at once."""
    name = hashlib.sha256(_json(identity)).hexdigest()[:32]
    there = {path.name for path in folder.glob(f"{name}.*.jsonl")}
    names = [f"{name}.{number}.jsonl" for number in range(len(there) + _RUNS_AT_ONCE)]
    return [folder / name for name in dict.fromkeys([*names, *sorted(there)])]


def _json(value: Struct) -> bytes:
    return msgspec.json.encode(value, order="deterministic")


def _line(value: Struct) -> bytes:
    document = _json(value)
    return b"%08x %s\n" % (zlib.crc32(document), document)


def _document(line: bytes) -> bytes | None:
    """The document of a line, None for a damaged one."""
    checksum, _, document = line.partition(b" ")
    return document if checksum == b"%08x" % zlib.crc32(document) else None


def _read(path: Path, identity: Identity, windows: Sequence[Window]) -> _Content:
    content = _Content()
    try:
        data = path.read_bytes()
        content.written = path.stat().st_mtime
    except FileNotFoundError:
        return content
    documents = [_document(line) for line in data.split(b"\n") if line]
    # A head that was cut while it was written is no damage: nothing stands behind it.
    content.damaged = data.count(b"\n")
    if not documents or documents[0] is None:
        return content
    try:
        head = msgspec.json.decode(documents[0], type=_Head)
    except (msgspec.DecodeError, RecursionError):
        return content
    content.format = head.format
    content.is_ours = head.format == _FORMAT and bytes(head.identity) == _json(identity)
    if content.is_ours:
        content.damaged = documents.count(None)
        content.finished = dict(_scores(filter(None, documents[1:]), windows))
    return content


def _scores(
    documents: Iterable[bytes], windows: Sequence[Window]
) -> Iterator[tuple[int, WindowScore]]:
    """The scores that fit the windows; the identity says that all do."""
    for document in documents:
        try:
            finished = msgspec.json.decode(document, type=_Finished)
        except (msgspec.DecodeError, RecursionError):  # whole, but not of our making
            continue
        greedy: Sequence[bool | UnsetType] = finished.greedy or (
            [UNSET] * len(finished.windows)
        )
        if len(greedy) != len(finished.windows):
            continue
        for (index, nll_sum, scored), choice in zip(
            finished.windows, greedy, strict=True
        ):
            if not 0 <= index < len(windows):
                continue
            window = windows[index]
            if scored == len(window.targets) and math.isfinite(nll_sum):
                yield index, WindowScore(nll_sum, scored, window.page, greedy=choice)


def _make_ready(path: Path, identity: Identity, *, fresh: bool) -> None:
    """Give the file its head, or end a line that was cut."""
    with _open(path, "wb" if fresh else "ab") as file:
        if fresh:
            _write(file, _line(_Head(_FORMAT, msgspec.Raw(_json(identity)))))
        elif not path.read_bytes().endswith(b"\n"):
            _write(file, b"\n")


def _open(path: Path, mode: Literal["ab", "wb"]) -> FileIO:
    return path.open(mode, buffering=0)


def _write(file: FileIO, data: bytes) -> None:
    """Append in one system call, which no signal and no other process can split."""
    if file.write(data) != len(data):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _lock_path(path: Path) -> Path:
    return path.with_suffix(".lock")


def _try_lock(path: Path) -> filelock.BaseFileLock | None:
    """The file's lock, None where another process holds it."""
    lock = filelock.FileLock(_lock_path(path))
    try:
        # Without locks in the file system it takes a file instead, and says so.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            lock.acquire(blocking=False)
    except filelock.Timeout:
        return None
    except NotImplementedError as error:  # older filelock
        raise OSError(errno.ENOSYS, "the file system has no locks") from error
    return lock


def _drop_old(folder: Path) -> None:
    """Remove what runs left that nobody has continued for a month."""
    oldest = time.time() - _DAYS_KEPT * 24 * 60 * 60
    for file in folder.iterdir():
        # It may be a folder of the user's, with files of theirs in it, and somebody
        # else's journals may not be ours to remove.
        if _FILE.fullmatch(file.name):
            with suppress(OSError):
                if file.stat().st_mtime < oldest:
                    file.unlink()


# -------------------------------------------------------------------------------- texts


def _damaged(label: str, path: Path, lines: int) -> str:
    records = "record" if lines == 1 else "records"
    return (
        f"{label}: {lines} damaged {records} in the journal {path}: what they held is "
        "scored again"
    )


def _not_kept(path: Path, error: OSError) -> str:
    return (
        f"finished windows are not kept, so a run that is killed starts again: {path}: "
        f"{error.strerror or error} (another folder: --ppl-journal=DIR, pplguard: "
        "--journal DIR)"
    )
