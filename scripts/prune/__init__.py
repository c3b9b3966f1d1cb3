"""Prunes decoders by Wanda's criterion or by magnitude, for examples and tests."""

from __future__ import annotations

from .blocks import Matrix, decoder_blocks, matrices
from .criteria import Pattern, Unstructured, magnitude_score, wanda_score
from .walk import prune_magnitude, prune_wanda

__all__ = [
    "Matrix",
    "Pattern",
    "Unstructured",
    "decoder_blocks",
    "magnitude_score",
    "matrices",
    "prune_magnitude",
    "prune_wanda",
    "wanda_score",
]
