"""``pplguard cache``: what the result cache holds, and removing it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path

from ..cache import RESULT, Kept, clear, default_folder, kept
from ..errors import UsageError
from ..report import counted
from ..safetext import one_line
from .output import show

_UNITS = ((1e9, "GB"), (1e6, "MB"), (1e3, "kB"))
_UNREADABLE = "not readable"


def show_cache(folder: Path | None) -> None:
    """Print what is in a folder of results (None: the usual one), by checkpoint.

    Raises:
        UsageError: the folder cannot be read.
    """
    folder = folder or default_folder()
    for line in _lines(folder, _entries(folder)):
        show(line)


def clear_cache(folder: Path | None, *, older_than: float | None) -> bool:
    """Remove entries, and say how many; whether all could be removed.

    Raises:
        UsageError: the folder cannot be read.
    """
    folder = folder or default_folder()
    if not folder.exists():
        show(f"{folder}: no such folder, so nothing is cached")
        return True
    try:
        count = clear(folder, older_than=older_than)
    except OSError as error:
        raise _unreadable(folder, error) from error
    failed = count.pop("failed", 0)
    results = count.pop(RESULT, 0)
    others = counted(count.total(), "others")
    show(f"{folder}: removed {counted(results, 'results')} and {others}")
    if failed:
        show(f"{folder}: {counted(failed, 'files')} could not be removed")
    return not failed


def _entries(folder: Path) -> list[Kept]:
    if not folder.exists():
        return []
    try:
        return kept(folder)
    except OSError as error:
        raise _unreadable(folder, error) from error


def _unreadable(folder: Path, error: OSError) -> UsageError:
    return UsageError(f"--cache-dir: {folder}: {error.strerror or error}")


def _lines(folder: Path, entries: Sequence[Kept]) -> Iterator[str]:
    yield f"folder   {folder}"
    results = [entry for entry in entries if entry.kind == RESULT]
    others = [entry for entry in entries if entry.kind != RESULT]
    if not entries:
        yield "entries  none"
        return
    yield (
        f"entries  {counted(len(results), 'results')} ({_size(results)}), "
        f"{counted(len(others), 'others')} that only save time ({_size(others)})"
    )
    made = sorted(entry.made for entry in results)
    if made:
        yield f"made     {_time(made[0])} to {_time(made[-1])} UTC"
    groups: dict[str, list[Kept]] = {}
    for entry in sorted(results, key=lambda entry: entry.label):
        groups.setdefault(_checkpoint(entry), []).append(entry)
    for checkpoint, group in groups.items():
        used = max(entry.used for entry in group)
        yield checkpoint
        yield (
            f"  {counted(len(group), 'results')}, {_size(group)}, last used "
            f"{_time(used)} UTC"
        )


def _checkpoint(entry: Kept) -> str:
    """``FILE/NAME (PATH)`` of a label, which has the key between them."""
    name, _, rest = one_line(entry.label).partition(" ")
    place = rest.partition(" ")[2]
    return f"{name} {place}".strip() if name else _UNREADABLE


def _size(entries: Sequence[Kept]) -> str:
    size = sum(entry.size for entry in entries)
    for unit, name in _UNITS:
        if size >= unit:
            return f"{size / unit:.1f} {name}"
    return f"{size} B"


def _time(seconds: float) -> str:
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M}"
