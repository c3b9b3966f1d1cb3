"""Windows x model -> negative log-likelihoods: the only place that runs the model."""

from .batching import BatchSize, batches, groups, shared_context
from .head import chunk_size, nll
from .scorer import Kept, Progress, Scorer, Stop, place

__all__ = [
    "BatchSize",
    "Kept",
    "Progress",
    "Scorer",
    "Stop",
    "batches",
    "chunk_size",
    "groups",
    "nll",
    "place",
    "shared_context",
]
