"""Finds which tensor of one checkpoint is which of another."""

from __future__ import annotations

from collections.abc import Container, Hashable, Mapping

from msgspec.structs import replace

from ..tensornames import match_names, unique
from ..values import Fingerprint, TensorFacts

Tensors = Mapping[str, TensorFacts]


def match(before: Tensors, now: Tensors) -> dict[str, str]:
    """Names of ``now`` to names of ``before``, each at most once.

    Equal names first, then names that differ in what wrappers put before them, then
    tensors that hold numbers that no other one does.
    """
    found = match_names(before, now)

    def content(tensors: Tensors, taken: Container[str]) -> dict[Hashable, str]:
        left = (name for name in tensors if name not in taken)
        return unique(left, lambda name: (tensors[name].values, tensors[name].shape))

    old, new = content(before, set(found.values())), content(now, found)
    return found | {new[each]: old[each] for each in new if each in old}


def as_recorded(now: Fingerprint, recorded: Fingerprint) -> Fingerprint:
    """``now``, with tensors under the names that ``recorded`` has for them."""
    names = match(recorded.weights, now.weights)
    return replace(
        now,
        tensors={names.get(name, name): facts for name, facts in now.tensors.items()},
        linear=tuple(names.get(name, name) for name in now.linear),
    )
