"""Large libraries come and go faster: the collector of cycles rests meanwhile.

torch, transformers and lm-eval leave half a million objects that live as long as the
process. Python's collector looks through all of them again and again while they are
imported, and several times more while the interpreter exits: about two seconds on a
CPU, as long as the demo's forward passes. Nothing of that frees any memory.
"""

from __future__ import annotations

import atexit
import gc
import io
from collections.abc import Iterator
from contextlib import contextmanager, suppress

_WRITERS = (io.TextIOWrapper, io.BufferedWriter, io.BufferedRandom)
"""In this order: text goes through a buffer of bytes."""

_registered = False


@contextmanager
def importing() -> Iterator[None]:
    """Import large libraries inside: no cycles are collected until the block is left.

    The first use also has the interpreter exit without looking for cycles.
    """
    _leave_quickly()
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collects:
            gc.enable()


def _leave_quickly() -> None:
    global _registered  # noqa: PLW0603
    if not _registered:
        _registered = True
        atexit.register(_freeze)


def _freeze() -> None:
    """Hide what is in memory from the collections of the interpreter's exit.

    What only they would have finalised is not, for which Python gives no guarantee
    (``object.__del__``), except that nothing written to a file may be lost: buffers
    are emptied here.
    """
    gc.collect(1)  # what became garbage a moment ago
    writers = [thing for thing in gc.get_objects() if type(thing) in _WRITERS]
    writers.sort(key=lambda writer: _WRITERS.index(type(writer)))
    for writer in writers:
        # Its reader is gone, or its disk is full: as silent as at any exit.
        with suppress(OSError, ValueError):
            writer.flush()
    gc.freeze()
