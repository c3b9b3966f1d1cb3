"""Windows x model -> negative log-likelihoods: the only place that runs the model."""

from .batching import BatchSize, batches, groups, proving, shared_context
from .head import chunk_size, nll
from .models import rotates_by_config, rotates_by_length, to_logits
from .scorer import (
    Kept,
    Loss,
    Progress,
    Scorer,
    Speaking,
    Stop,
    Tally,
    place,
    refuse_empty,
    tell_of_others,
    window_score,
)

__all__ = [
    "BatchSize",
    "Kept",
    "Loss",
    "Progress",
    "Scorer",
    "Speaking",
    "Stop",
    "Tally",
    "batches",
    "chunk_size",
    "groups",
    "nll",
    "place",
    "proving",
    "refuse_empty",
    "rotates_by_config",
    "rotates_by_length",
    "shared_context",
    "tell_of_others",
    "to_logits",
    "window_score",
]
