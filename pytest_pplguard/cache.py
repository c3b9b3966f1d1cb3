"""Keeps results of measurements on disk, for runs of the same checkpoint.

A folder of entries, one file each, whose name is a digest of what the entry is about:
everything that could change it. An entry is a JSON document in a document that holds
its digest and its format. It is written beside its place and then moved there, so
several runs may share a folder.

An entry is believed if it is whole, says of itself what it is about, has a date, and is
a file that nobody but the user can write. Whatever else it must be is for its reader
to say: a :class:`Wrong` is a notice, and the entry is made again.
"""

from __future__ import annotations

import hashlib
import os
import re
import stat
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import platformdirs
from msgspec import Raw, Struct

FORMAT = 1
DAYS_KEPT = 90
"""An entry that no run has used for so long is dropped when one is written."""

RESULT, WINDOWS, TORCH = "result", "windows", "torch"
"""Kinds of entries: a measurement; tokenised windows; what torch says of itself."""

_KINDS = (RESULT, WINDOWS, TORCH)
_NOUNS = {RESULT: "result", WINDOWS: "windows", TORCH: "facts"}
_DIGITS = 40
_ENTRY = re.compile(rf"[0-9a-f]{{{_DIGITS}}}\.({'|'.join(_KINDS)})\.json")
_TEMPORARY = re.compile(r"\.pplguard-\w+\.tmp")
_MOST_BYTES = 1 << 28
_SECONDS_A_DAY = 24 * 60 * 60
_TIME = "%Y-%m-%dT%H:%M:%SZ"

T = TypeVar("T")
Identity = Mapping[str, Any]
"""JSON data: everything that an entry depends on."""


class Wrong(Exception):
    """Why an entry is not used, as the end of a sentence about it."""


class _File(Struct):
    """What is in a file; of a later format only ``format`` is read."""

    format: int
    sha256: str = ""
    entry: Raw = Raw()


class _Entry(Struct, forbid_unknown_fields=True):
    """``made`` is when (UTC), ``label`` what people call it."""

    identity: Raw
    made: str
    label: str
    content: Raw


class Kept(Struct, frozen=True):
    """An entry for people: what it is of, its size in bytes, made and used when.

    ``label`` is empty where the entry cannot be read. ``made`` and ``used`` are seconds
    since 1970; that of an entry that cannot be read is when it was last used.
    """

    kind: str
    label: str
    size: int
    made: float
    used: float


class Cache:
    """Entries in a folder, which is made when the first is written.

    Nothing that is wrong with them, or with the folder, is an error.

    Args:
        folder: where they are.
        tell: called with notices for the user.
        now: seconds since 1970.
    """

    def __init__(
        self,
        folder: Path,
        *,
        tell: Callable[[str], None],
        now: Callable[[], float] = time.time,
    ) -> None:
        self._folder = folder
        self._tell = tell
        self._now = now
        self._newer: set[Path] = set()

    def get(
        self,
        kind: str,
        identity: Identity,
        read: Callable[[Raw, datetime], T],
        *,
        label: str,
    ) -> T | None:
        """What ``read`` makes of the entry and its date; None if there is none.

        ``read`` may raise :class:`Wrong`, or an error of msgspec. ``label`` is what
        notices call the entry.
        """
        path = self._path(kind, identity)
        try:
            try:
                content, made = self._read(path, identity)
                found = read(content, made)
            except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
                raise Wrong("is damaged") from error
        except FileNotFoundError:
            return None
        except NotADirectoryError:  # writing it will say so
            return None
        except OSError as error:
            self._tell(
                f"{label}: the cached {_NOUNS[kind]} {path} cannot be read "
                f"({error.strerror or error}): made again"
            )
            return None
        except Wrong as why:
            self._tell(f"{label}: the cached {_NOUNS[kind]} {path} {why}: made again")
            return None
        with suppress(OSError):  # how long it has not been used is a matter of space
            os.utime(path)
        return found

    def put(
        self, kind: str, identity: Identity, content: object, *, label: str
    ) -> None:
        """Keep an entry, in the place of the one before.

        One of a newer version of this package is left as it is.
        """
        path = self._path(kind, identity)
        if path in self._newer:
            return
        made = datetime.fromtimestamp(int(self._now()), UTC)
        entry = _json(
            _Entry(
                Raw(canonical(identity)),
                made.strftime(_TIME),
                label.encode(errors="replace").decode(),
                Raw(_json(content)),
            )
        )
        data = _json(_File(FORMAT, hashlib.sha256(entry).hexdigest(), Raw(entry)))
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            _write(path, data)
            self._drop_old()
        except OSError as error:
            self._tell(
                f"results are not cached: {self._folder}: {error.strerror or error} "
                "(another folder: --ppl-cache-dir=DIR)"
            )

    def _path(self, kind: str, identity: Identity) -> Path:
        name = hashlib.sha256(canonical(identity)).hexdigest()[:_DIGITS]
        return self._folder / f"{name}.{kind}.json"

    def _read(self, path: Path, identity: Identity) -> tuple[Raw, datetime]:
        """Content and date of an entry that is whole, ours, and about ``identity``."""
        file = msgspec.json.decode(_own_bytes(path), type=_File)
        if file.format > FORMAT:
            self._newer.add(path)
            raise Wrong(
                f"is of a newer version of pytest-pplguard (format {file.format}) and "
                "is left alone"
            )
        if file.format != FORMAT:
            raise Wrong(f"is of an older version (format {file.format})")
        if hashlib.sha256(file.entry).hexdigest() != file.sha256:
            raise Wrong("is damaged")
        entry = msgspec.json.decode(file.entry, type=_Entry)
        if bytes(entry.identity) != canonical(identity):
            raise Wrong("is about something else")
        made = _parse_time(entry.made)
        if made.timestamp() > self._now():
            raise Wrong(f"is dated in the future ({entry.made}; is the clock right?)")
        return entry.content, made

    def _drop_old(self) -> None:
        """Remove what nobody uses any more, and what processes that died have left."""
        now = self._now()
        for file, age in ours(self._folder):
            days = 1 if _TEMPORARY.fullmatch(file.name) else DAYS_KEPT
            # Somebody else's, in a folder that is shared, may not be ours to remove.
            with suppress(OSError):
                if now - age.st_mtime > days * _SECONDS_A_DAY:
                    file.unlink()


def default_folder() -> Path:
    """Where results are kept if the user has not said: in the user's cache folder."""
    return platformdirs.user_cache_path("pytest-pplguard") / "results"


def canonical(identity: Identity) -> bytes:
    """The same bytes for equal identities."""
    try:
        return msgspec.json.encode(identity, order="deterministic")
    except UnicodeEncodeError:
        # Names of files and variables of the environment need be no text.
        return msgspec.json.encode(_as_text(identity), order="deterministic")


def _as_text(value: Any) -> Any:
    """JSON data, with strings that are no text as the digits of their bytes."""
    if isinstance(value, Mapping):
        return {_as_text(name): _as_text(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_as_text(item) for item in value]
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError:
            return f"bytes {value.encode(errors='surrogatepass').hex()}"
    return value


def ours(folder: Path) -> list[tuple[Path, os.stat_result]]:
    """The files of a folder that are entries, or parts of one; others are a user's.

    Raises:
        OSError: the folder cannot be read.
    """
    found = []
    for file in sorted(folder.iterdir()):
        if _ENTRY.fullmatch(file.name) or _TEMPORARY.fullmatch(file.name):
            with suppress(FileNotFoundError):  # another run may have replaced it
                found.append((file, file.lstat()))
    return found


def kept(folder: Path) -> list[Kept]:
    """All entries of a folder, for people; nothing is checked.

    Raises:
        OSError: the folder cannot be read.
    """
    found = []
    for file, state in ours(folder):
        match = _ENTRY.fullmatch(file.name)
        if match is None:
            continue
        label, made = "", state.st_mtime
        with suppress(
            msgspec.MsgspecError, RecursionError, UnicodeError, Wrong, OSError
        ):
            outer = msgspec.json.decode(_own_bytes(file), type=_File)
            entry = msgspec.json.decode(outer.entry, type=_Entry)
            label, made = entry.label, _parse_time(entry.made).timestamp()
        found.append(Kept(match[1], label, state.st_size, made, state.st_mtime))
    return found


def clear(folder: Path, *, older_than: float | None = None) -> Counter[str]:
    """Remove entries; how many, by kind, and ``failed`` those that could not be.

    Only files that are ours, and with ``older_than`` only those that were not used for
    so many days.

    Raises:
        OSError: the folder cannot be read.
    """
    count: Counter[str] = Counter()
    now = time.time()
    for file, state in ours(folder):
        if (
            older_than is not None
            and now - state.st_mtime < older_than * _SECONDS_A_DAY
        ):
            continue
        match = _ENTRY.fullmatch(file.name)
        try:
            file.unlink()
        except OSError:
            count["failed"] += 1
        else:
            count[match[1] if match else "temporary"] += 1
    return count


def _own_bytes(path: Path) -> bytes:
    """The bytes of a file that nobody but the user can have written."""
    flags = (
        getattr(os, name, 0)
        for name in ("O_NOFOLLOW", "O_NONBLOCK", "O_CLOEXEC", "O_BINARY")
    )
    file = os.open(path, os.O_RDONLY | sum(flags))
    with os.fdopen(file, "rb") as stream:
        state = os.fstat(file)
        if not stat.S_ISREG(state.st_mode) or state.st_size > _MOST_BYTES:
            raise Wrong("is no entry")
        if os.name == "posix" and (
            state.st_uid != os.geteuid()
            or state.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
        ):
            raise Wrong("belongs to another user, or others can write it")
        return stream.read()


def _write(path: Path, data: bytes) -> None:
    """All of it, or nothing."""
    handle, name = tempfile.mkstemp(prefix=".pplguard-", suffix=".tmp", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
        os.replace(name, path)
    except BaseException:
        with suppress(OSError):
            os.unlink(name)
        raise


def _json(value: object) -> bytes:
    return msgspec.json.encode(value)


def _parse_time(text: str) -> datetime:
    try:
        return datetime.strptime(text, _TIME).replace(tzinfo=UTC)
    except ValueError as error:
        raise Wrong("has no date") from error
