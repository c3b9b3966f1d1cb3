"""The gates that a recorded checkpoint gets where nobody wrote one. Pure."""

from __future__ import annotations

from collections.abc import Iterable

from msgspec.structs import replace

from ..values import SparsityGate

DEFAULT_SPARSITY_ABS = 0.001
SPARSE_FROM = 0.01
"""A checkpoint with fewer zeros than this share is not called pruned."""


def default_sparsity(
    total: float,
    *,
    layers: Iterable[float],
    tensors: Iterable[float],
    pattern: str | None = None,
    recorded: bool = True,
) -> SparsityGate | None:
    """The strictest gate that holds; None where nothing is pruned.

    One share for every tensor, else for every layer, else for each tensor its own: the
    recorded one. (OWL and the like prune layers unevenly.)

    Args:
        total: share of zeros of all weights that count.
        layers: that of each decoder layer.
        tensors: that of each tensor.
        pattern: N:M that every group of weights keeps.
        recorded: whether the share of each tensor is recorded.
    """
    if total <= SPARSE_FROM:
        return None
    fraction = round(total, 6)
    gate = SparsityGate(fraction, DEFAULT_SPARSITY_ABS, pattern)
    # The very doubles that the gate will compare with.
    low, high = fraction - gate.abs, fraction + gate.abs

    def is_met_by(shares: Iterable[float]) -> bool:
        return all(low <= share <= high for share in shares)

    if is_met_by(tensors):
        return replace(gate, scope="tensor")
    if is_met_by(layers):
        return replace(gate, scope="layer")
    return replace(gate, fraction=None, scope="tensor") if recorded else gate
