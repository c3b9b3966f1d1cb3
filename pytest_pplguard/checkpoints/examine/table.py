"""Builds the table of zeros: layer by projection."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from ...values import TensorFacts
from .places import in_order, place_of, short_roles
from .result import ZeroTable


def zero_table(
    facts: Mapping[str, TensorFacts], linear: Collection[str], pattern: str | None
) -> ZeroTable | None:
    """Zeros of the linear weights, experts of a layer together; None without any."""
    places = {name: place for name in linear if (place := place_of(name)) is not None}
    if not places:
        return None
    roles = in_order({place.role for place in places.values()})
    short = short_roles(roles)
    stacks = sorted({place.stack for place in places.values()})
    cells: dict[str, dict[str, tuple[int, int]]] = {}
    for name, place in sorted(places.items(), key=lambda item: item[1][:2]):
        layer = str(place.layer)
        if len(stacks) > 1:
            layer = f"{place.stack}.{layer}"
        row = cells.setdefault(layer, {})
        zeros, total = row.get(short[place.role], (0, 0))
        row[short[place.role]] = (zeros + facts[name].zeros, total + facts[name].size)
    return ZeroTable(tuple(short[role] for role in roles), cells, pattern)
