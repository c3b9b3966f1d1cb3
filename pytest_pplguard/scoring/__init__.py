"""Windows x model -> negative log-likelihoods: the only place that runs the model."""

from .batching import BatchSize, batches, groups, shared_context
from .head import chunk_size, nll
from .models import rotates_by_length, to_logits
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
    "rotates_by_length",
    "shared_context",
    "to_logits",
]
