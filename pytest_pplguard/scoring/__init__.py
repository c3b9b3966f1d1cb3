"""Windows x model -> negative log-likelihoods: the only place that runs the model."""

from .batching import BatchSize, batches, groups, proving, shared_context
from .head import chunk_size, nll
from .models import rotates_by_length
from .scorer import (
    Kept,
    Progress,
    Scorer,
    Stop,
    Tally,
    place,
    refuse_empty,
    tell_of_others,
)

__all__ = [
    "BatchSize",
    "Kept",
    "Progress",
    "Scorer",
    "Stop",
    "Tally",
    "batches",
    "chunk_size",
    "groups",
    "nll",
    "place",
    "proving",
    "refuse_empty",
    "rotates_by_length",
    "shared_context",
    "tell_of_others",
]
