"""Finds which tensor of one checkpoint is which of another."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Container, Hashable, Mapping

from msgspec.structs import replace

from ..tensornames import layer_of
from ..values import Fingerprint, TensorFacts, is_head

_WRAPPERS = re.compile(
    r"^(?:(?:model|transformer|language_model|base_model|gpt_neox|backbone|module)\.)+"
)
"""What stands before names where a model was saved with or without its head."""
_ANYWHERE = re.compile(
    r"(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\."
)

Tensors = Mapping[str, TensorFacts]


def match(before: Tensors, now: Tensors) -> dict[str, str]:
    """Names of ``now`` to names of ``before``, each at most once.

    Equal names first, then names that differ in what wrappers put before them, then
    tensors that hold numbers that no other one does.
    """
    found = {name: name for name in now if name in before}
    for key in (_core, _content):
        left = _unique(before, set(found.values()), key)
        right = _unique(now, found, key)
        found |= {right[each]: left[each] for each in right if each in left}
    return found


def as_recorded(now: Fingerprint, recorded: Fingerprint) -> Fingerprint:
    """``now``, with tensors under the names that ``recorded`` has for them."""
    names = match(recorded.weights, now.weights)
    return replace(
        now,
        tensors={names.get(name, name): facts for name, facts in now.tensors.items()},
        linear=tuple(names.get(name, name) for name in now.linear),
    )


def _core(name: str, _: TensorFacts) -> Hashable:
    if is_head(name) and layer_of(name) is None:
        return "head"  # ``embed_out`` of a GPT-NeoX is ``lm_head`` in memory
    return _WRAPPERS.sub("", _ANYWHERE.sub("", name))


def _content(_: str, facts: TensorFacts) -> Hashable:
    return facts.values, facts.shape


def _unique(
    tensors: Tensors,
    taken: Container[str],
    key: Callable[[str, TensorFacts], Hashable],
) -> dict[Hashable, str]:
    """The names by a key that only one of those left has."""
    names: dict[Hashable, list[str]] = defaultdict(list)
    for name, facts in tensors.items():
        if name not in taken:
            names[key(name, facts)].append(name)
    return {each: found[0] for each, found in names.items() if len(found) == 1}
