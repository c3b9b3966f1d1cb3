"""Where tensors are in a model, and how many of them are named in a few words."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from itertools import groupby
from typing import NamedTuple

from ...tensornames import layer_of

_NUMBER = re.compile(r"(?<=\.)[0-9]+(?=\.)")
_SHOWN = 4

# The order in which a layer computes, and in which people list its projections.
_ORDER = tuple(
    map(
        re.compile,
        (
            r"(^|[._])(q|wq|q_proj|query)$",
            r"(^|[._])(k|wk|k_proj|key)$",
            r"(^|[._])(v|wv|v_proj|value)$",
            r"qkv|query_key_value|c_attn|Wqkv",
            r"att.*(o|o_proj|out_proj|dense|c_proj|wo|output)$",
            r"att",
            r"router|gate$",
            r"gate_up|gate_proj|w1$|fc1|h_to_4h|c_fc|up_gate|ffn_gate",
            r"up_proj|w3$|ffn_up",
            r"down_proj|w2$|fc2|4h_to_h|c_proj|ffn_down",
        ),
    )
)


class Place(NamedTuple):
    """A tensor inside a decoder layer: which stack, layer and role in it.

    Tensors with one role are each other's like in all layers. The experts of a layer
    share their roles.
    """

    stack: str
    layer: int
    role: str


def place_of(name: str) -> Place | None:
    """Where a tensor is; None for one outside of all layers."""
    layer = layer_of(name)
    if layer is None:
        return None
    stack, _, number = layer.rpartition(".")
    rest = _NUMBER.sub("*", name[len(layer) + 1 :]).removesuffix(".weight")
    return Place(stack, int(number), rest)


def by_role(names: Iterable[str]) -> dict[tuple[str, str], dict[int, list[str]]]:
    """Names of tensors in layers, by stack and role, then by layer in order."""
    roles: dict[tuple[str, str], dict[int, list[str]]] = {}
    for name in names:
        if (place := place_of(name)) is not None:
            layers = roles.setdefault((place.stack, place.role), {})
            layers.setdefault(place.layer, []).append(name)
    return {role: dict(sorted(layers.items())) for role, layers in roles.items()}


def in_order(roles: Iterable[str]) -> list[str]:
    """Roles in the order in which a layer computes."""

    def rank(role: str) -> tuple[int, str]:
        matches = (i for i, known in enumerate(_ORDER) if known.search(role))
        return next(matches, len(_ORDER)), role

    return sorted(roles, key=rank)


def spans(numbers: Iterable[int]) -> str:
    """``0-2, 5`` of 0, 1, 2 and 5."""
    runs = []
    for _, run in groupby(enumerate(sorted(numbers)), lambda pair: pair[1] - pair[0]):
        members = [number for _, number in run]
        last = f"-{members[-1]}" if len(members) > 1 else ""
        runs.append(f"{members[0]}{last}")
    return ", ".join(runs)


def layers_text(numbers: Iterable[int]) -> str:
    """``layer 3`` or ``layers 0-2, 5``."""
    numbers = sorted(set(numbers))
    return f"layer{'s' if len(numbers) > 1 else ''} {spans(numbers)}"


def named(names: Iterable[str]) -> str:
    """Tensors in a few words: ``layers 3-5: q_proj, k_proj; lm_head.weight``."""
    names = list(names)
    layers: dict[str, set[int]] = {}
    others = []
    for name in sorted(names):
        if (place := place_of(name)) is None:
            others.append(name)
        else:
            layers.setdefault(place.role, set()).add(place.layer)
    together: dict[str, list[str]] = {}
    for role in in_order(layers):
        together.setdefault(layers_text(layers[role]), []).append(role)
    parts = [f"{where}: {_few(roles)}" for where, roles in together.items()]
    return "; ".join([*_cut(parts), *([_few(others)] if others else [])])


def _few(words: list[str]) -> str:
    more = f" and {len(words) - _SHOWN} more" if len(words) > _SHOWN else ""
    return ", ".join(words[:_SHOWN]) + more


def _cut(parts: list[str]) -> list[str]:
    if len(parts) <= _SHOWN:
        return parts
    return [*parts[:_SHOWN], f"{len(parts) - _SHOWN} more places"]


def short_roles(roles: Iterable[str]) -> Mapping[str, str]:
    """The shortest ends of roles that still tell them apart."""
    roles = list(roles)
    short = {}
    for role in roles:
        parts = role.split(".")
        for count in range(1, len(parts) + 1):
            end = ".".join(parts[-count:])
            if sum(f".{other}".endswith(f".{end}") for other in roles) == 1:
                break
        short[role] = end
    return short
