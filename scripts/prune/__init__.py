"""Prunes decoders by Wanda's criterion or by magnitude, for examples and tests."""

from __future__ import annotations

from .criteria import Pattern, Unstructured, magnitude_score, wanda_score
from .walk import prune_magnitude, prune_wanda

__all__ = [
    "Pattern",
    "Unstructured",
    "magnitude_score",
    "prune_magnitude",
    "prune_wanda",
    "wanda_score",
]
