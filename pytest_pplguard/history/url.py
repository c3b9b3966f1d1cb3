"""Addresses of a history, as SQLAlchemy writes them: ``sqlite:///FILE``."""

from __future__ import annotations

import os
import re
from pathlib import Path

from ..errors import PplguardError, UsageError
from .database import check_database

_SQLITE = "sqlite:///"
_EXAMPLE = "write sqlite:///FILE (a path from here) or sqlite:////FOLDER/FILE"


def checked_url(url: str, *, base: Path, option: str) -> str:
    """``sqlite:///FILE`` with an absolute path, before there is anything to add.

    Args:
        url: as it was given.
        base: the folder that a relative path is from.
        option: what it was given with, for messages.

    Raises:
        UsageError: another kind of database, a folder that is not there, or a file that
            is no history, is too new, or cannot be written.
    """
    path = path_of(url, base=base, option=option)
    try:
        there = path.exists()
    except OSError as error:  # a name that is too long
        raise UsageError(f"{option}: {path}: {error.strerror or error}") from error
    if path.is_dir():
        raise UsageError(f"{option}: {path} is a folder; name a file in it")
    if not path.parent.is_dir():
        raise UsageError(f"{option}: the folder of {path} does not exist")
    if not there:
        if not os.access(path.parent, os.W_OK):
            raise UsageError(f"{option}: nothing can be written to {path.parent}")
        return f"{_SQLITE}{path}"
    try:
        check_database(path)
    except PplguardError as error:
        raise UsageError(f"{option}: {error}") from error
    return f"{_SQLITE}{path}"


def path_of(url: str, *, base: Path, option: str) -> Path:
    """The absolute path of the file that a URL names.

    Raises:
        UsageError: it is no URL of a file of SQLite's.
    """
    scheme, found, _ = url.partition(":")
    if not found or not re.fullmatch(r"[A-Za-z][\w+.-]*", scheme) or len(scheme) == 1:
        raise UsageError(f"{option}: {url!r} is not the URL of a database; {_EXAMPLE}")
    if scheme != "sqlite":
        # The rest may hold a password.
        raise UsageError(
            f"{option}: a history is a file of SQLite, not of {scheme}; {_EXAMPLE}"
        )
    name = url.removeprefix(_SQLITE)
    if name == url or name in ("", ":memory:"):
        raise UsageError(f"{option}: {url!r} names no file; {_EXAMPLE}")
    if "?" in name:
        raise UsageError(
            f"{option}: {url!r}: options behind a ? are not known; {_EXAMPLE}"
        )
    return Path(os.path.abspath(base / os.path.expanduser(name)))
