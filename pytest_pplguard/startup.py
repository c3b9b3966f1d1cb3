"""Large libraries are imported faster: the collector of cycles rests meanwhile.

torch, transformers and lm-eval leave half a million objects that live as long as the
process. Python's collector looks through all of them again and again while they are
imported: about a second on a CPU, half as long as the demo's forward passes. Nothing of
that frees any memory.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def importing() -> Iterator[None]:
    """Import large libraries inside: no cycles are collected until the block is left.

    What the process does afterwards, and how it exits, stays as it is: that is the
    user's.
    """
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collects:
            gc.enable()
