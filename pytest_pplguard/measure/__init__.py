"""Ties checkpoint, corpus, protocol and scorer together into measurements."""

from .divergence import Side, measure_divergence, naming_reference
from .ladder import check_ends
from .loading import journals_of, load_target, locate_target
from .run import max_positions, measure_loaded
from .store import Store

__all__ = [
    "Side",
    "Store",
    "check_ends",
    "journals_of",
    "load_target",
    "locate_target",
    "max_positions",
    "measure_divergence",
    "measure_loaded",
    "naming_reference",
]
