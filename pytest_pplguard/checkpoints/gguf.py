"""Opens GGUF files with the optional package ``gguf``."""

from __future__ import annotations

from typing import Any

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
        return Reader(path)
    # Whatever a broken file makes the reader do, it is the file that is broken.
    except (
        *(ValueError, IndexError, KeyError, OverflowError),
        *(TypeError, RecursionError, MemoryError, OSError),
    ) as error:
        raise CheckpointError(
            f"{located.spec} is truncated or no valid GGUF file: {error}"
        ) from error


def gguf_fields(located: Located, *names: str) -> dict[str, Any]:
    """Those of the file's metadata fields that it has.

    Raises:
        CheckpointError: as :func:`open_gguf`.
    """
    fields = open_gguf(located).fields
    return {name: fields[name].contents() for name in names if name in fields}
