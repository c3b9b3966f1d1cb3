"""Ties checkpoint, corpus, protocol and scorer together into measurements.

Importing this package imports no torch: what needs it is imported when it is asked for.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .facts import Facts
from .loading import journals_of, load_target, locate_target
from .store import Store
from .subject import (
    Compared,
    Executor,
    ScorerElsewhere,
    Subject,
    WindowScorer,
    facts_of,
    max_positions,
)
from .weights import Dense, SameFiles, StoredWeights, WeightsReader

if TYPE_CHECKING:
    from .divergence import Side, measure_divergence, naming_reference
    from .ladder import check_ends
    from .results import Results
    from .run import measure_loaded

__all__ = [
    "Compared",
    "Dense",
    "Executor",
    "Facts",
    "Results",
    "SameFiles",
    "ScorerElsewhere",
    "Side",
    "Store",
    "StoredWeights",
    "Subject",
    "WeightsReader",
    "WindowScorer",
    "check_ends",
    "facts_of",
    "journals_of",
    "load_target",
    "locate_target",
    "max_positions",
    "measure_divergence",
    "measure_loaded",
    "naming_reference",
]

_ELSEWHERE = {
    "Results": "results",
    "Side": "divergence",
    "check_ends": "ladder",
    "measure_divergence": "divergence",
    "measure_loaded": "run",
    "naming_reference": "divergence",
}


def __getattr__(name: str) -> Any:
    if name not in _ELSEWHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_ELSEWHERE[name]}", __name__), name)
