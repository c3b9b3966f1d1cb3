"""Finds baseline files in a folder and takes checkpoint names apart."""

from __future__ import annotations

import re
from pathlib import Path

from ..errors import BaselineError, UsageError
from ..values import is_entry_name

SUFFIXES = (".yaml", ".yml")

_SNIFFED = 64 * 1024
_SNIFF = re.compile(rb"^(?:\xef\xbb\xbf)?[\"']?(?:schema|checkpoints)[\"']?\s*:", re.M)


def baseline_paths(folder: Path) -> list[Path]:
    """The baseline files directly in ``folder``, sorted; none if it does not exist.

    Raises:
        BaselineError: ``folder`` cannot be listed, or two files share a stem.
    """
    if not folder.exists():
        return []
    try:
        found = sorted(
            path
            for path in folder.iterdir()
            if path.suffix in SUFFIXES
            and not path.name.startswith(".")
            and path.is_file()
        )
    except OSError as error:
        raise BaselineError(
            f"{folder}: cannot be listed: {error.strerror or error}"
        ) from error
    stems: dict[str, Path] = {}
    for path in found:
        other = stems.setdefault(path.stem, path)
        if other is not path:
            raise two_of_a_stem(folder, other.name, path.name)
    return found


def baseline_path(folder: Path, stem: str) -> Path:
    """The file in ``folder`` whose checkpoints are called ``stem/...``.

    Where there is none: what it would be called.

    Raises:
        BaselineError: there are two.
    """
    usual, *others = (folder / f"{stem}{suffix}" for suffix in SUFFIXES)
    found = [path for path in (usual, *others) if path.is_file()]
    if len(found) > 1:
        raise two_of_a_stem(folder, found[0].name, found[1].name)
    return found[0] if found else usual


def two_of_a_stem(folder: Path | str, one: str, other: str) -> BaselineError:
    """What is wrong with ``m.yaml`` beside ``m.yml``."""
    return BaselineError(
        f"{folder}: {one} and {other} would both name their checkpoints "
        f"{Path(one).stem}/...: rename one of the two"
    )


def split_name(name: str) -> tuple[str, str]:
    """Take ``llama-2-7b/wanda-50`` apart: the file's stem and the entry in it.

    Raises:
        UsageError: ``name`` has another form.
    """
    parts = name.split("/")
    if len(parts) != 2 or not all(map(is_entry_name, parts)):
        raise UsageError(
            f"{name!r} is not a checkpoint name: expected FILE/NAME, a baseline "
            "file's stem and an entry in it, for example llama-2-7b/wanda-50 "
            "(letters, digits and ._+- only)"
        )
    return parts[0], parts[1]


def looks_like_baseline(path: Path) -> bool:
    """Whether the start of ``path`` reads like a baseline file; never raises."""
    try:
        if not path.is_file():  # a pipe would block
            return False
        with path.open("rb") as stream:
            return _SNIFF.search(stream.read(_SNIFFED)) is not None
    except (OSError, ValueError):
        return False
