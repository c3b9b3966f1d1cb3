"""Ties checkpoint, corpus, protocol and scorer together into measurements."""

from .loading import journals_of, load_target, locate_target
from .run import max_positions, measure_loaded
from .store import Store

__all__ = [
    "Store",
    "journals_of",
    "load_target",
    "locate_target",
    "max_positions",
    "measure_loaded",
]
