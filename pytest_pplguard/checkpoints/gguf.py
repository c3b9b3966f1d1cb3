"""Opens GGUF files with the optional package ``gguf``."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from ..errors import CheckpointError
from .locate import Located


def import_gguf() -> Any:
    """The optional package ``gguf``.

    Raises:
        CheckpointError: it is not installed; the message says how to.
    """
    try:
        import gguf
        import gguf.quants
    except ImportError as error:
        raise CheckpointError(
            "reading GGUF files needs the package gguf: "
            "pip install 'pytest-pplguard[gguf]'"
        ) from error
    return gguf


def open_gguf(located: Located) -> Any:
    """A ``GGUFReader`` of the checkpoint's file.

    Raises:
        CheckpointError: it is no whole GGUF file, or the package is not installed.
    """
    gguf = import_gguf()

    class Reader(gguf.GGUFReader):  # type: ignore[name-defined, misc]
        """Stops where the file does: a number in it may say that there is no end."""

        def _get(
            self, offset: int, dtype: Any, count: int = 1, *rest: Any, **more: Any
        ) -> Any:
            found = super()._get(offset, dtype, count, *rest, **more)
            if len(found) < count:
                raise ValueError(f"it ends before byte {offset}")
            return found

    path = located.folder / str(located.gguf)
    try:
        state = _state(path)
        reader = Reader(path)
        _remember(state, reader)
    # Whatever a broken file makes the reader do, it is the file that is broken.
    except (
        *(ValueError, IndexError, KeyError, OverflowError),
        *(TypeError, RecursionError, MemoryError, OSError),
    ) as error:
        raise CheckpointError(
            f"{located.spec} is truncated or no valid GGUF file: {error}"
        ) from error
    return reader


def gguf_fields(located: Located, *names: str) -> dict[str, Any]:
    """Those of the file's metadata fields that it has; lists are not among them.

    Reading the metadata takes seconds, for the words of the tokenizer are there: they
    are only read again if another file was opened since, or the file has changed.

    Raises:
        CheckpointError: as :func:`open_gguf`.
    """
    path = located.folder / str(located.gguf)
    if _read is None or not path.is_file() or _read.state != _state(path):
        open_gguf(located)
    assert _read is not None
    return {name: _read.fields[name] for name in names if name in _read.fields}


class _Read(NamedTuple):
    """Single values of the file that was opened last; its words would be megabytes."""

    state: tuple[object, ...]
    fields: dict[str, Any]


_read: _Read | None = None


def _state(path: Path) -> tuple[object, ...]:
    found = path.stat()
    return path, found.st_ino, found.st_size, found.st_mtime_ns


def _remember(state: tuple[object, ...], reader: Any) -> None:
    global _read  # noqa: PLW0603
    lists = import_gguf().GGUFValueType.ARRAY
    single = {n: field for n, field in reader.fields.items() if field.types[0] != lists}
    _read = _Read(state, {name: field.contents() for name, field in single.items()})
