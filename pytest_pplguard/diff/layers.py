"""Tells which layers hold what others held: swapped, duplicated, moved up."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping
from typing import NamedTuple

from ..tensornames import IN_LAYER, group, ranges

_EXPERT = re.compile(r"(?P<room>.*experts)\.(?P<number>[0-9]+)\.(?P<rest>.+)").fullmatch


class Place(NamedTuple):
    """Where a tensor is: in which stack of layers, in which of them, and what."""

    stack: str
    layer: int
    kind: str


class Told(NamedTuple):
    """Some words, and the tensors that they tell of."""

    text: str
    names: tuple[str, ...]


def place_of(name: str) -> Place | None:
    """The place of a tensor inside the layers; None for one outside of them."""
    match = IN_LAYER.fullmatch(name)
    if match is None:
        return None
    return Place(match["before"], int(match["number"]), match["rest"])


def tell_copies(sources: Mapping[str, str], *, known: Collection[str]) -> list[Told]:
    """Lines for tensors (keys) that hold what others (values) held.

    Args:
        sources: tensors, and those whose numbers they hold.
        known: all tensors of the checkpoint.
    """
    kinds: dict[tuple[str, int, int], set[str]] = defaultdict(set)
    told = []
    others = {}
    for name, source in sources.items():
        here, there = place_of(name), place_of(source)
        if here and there and (here.stack, here.kind) == (there.stack, there.kind):
            kinds[here.stack, here.layer, there.layer].add(here.kind)
        else:
            others[name] = source
    by_kinds: dict[tuple[str, tuple[str, ...]], dict[int, int]] = defaultdict(dict)
    for (stack, layer, source_layer), found in kinds.items():
        by_kinds[stack, tuple(sorted(found))][layer] = source_layer
    for (stack, found_kinds), layers in by_kinds.items():
        names = [
            name
            for name, source in sources.items()
            if name not in others
            and (place := place_of(name))
            and place.stack == stack
            and place.kind in found_kinds
            and place.layer in layers
            and (origin := place_of(source))
            and layers[place.layer] == origin.layer
        ]
        what = _what(stack, found_kinds, layers, known)
        told.append(Told(_layers(layers) + what, tuple(names)))
    experts = _tell_experts(others, known)
    told_of = {name for one in experts for name in one.names}
    rest = {name: one for name, one in others.items() if name not in told_of}
    return [*told, *experts, *_tell_others(rest, known)]


def _what(
    stack: str, kinds: Collection[str], layers: Iterable[int], known: Iterable[str]
) -> str:
    """Which tensors of the layers, if not all large ones."""
    layers = set(layers)
    there = {
        place.kind
        for name in known
        if (place := place_of(name)) and place.stack == stack and place.layer in layers
    }
    # Norms may be alike in all layers, and then they are no copies.
    if all(
        kind in kinds for kind in there if "norm" not in kind and "bias" not in kind
    ):
        return ""
    shown = [kind.removesuffix(".weight") for kind in kinds]
    more = f" and {len(shown) - 3} more" if len(shown) > 3 else ""
    return f": {', '.join(shown[:3])}{more} only"


def _layers(sources: Mapping[int, int], what: str = "layer") -> str:
    """Words for layers (keys) that hold what others (values) held."""
    here, there = list(sources), list(sources.values())
    if len(here) == 2 and sorted(here) == sorted(there):
        return f"{what}s {min(here)} and {max(here)} are swapped"
    if sorted(here) == sorted(there):
        order = ", ".join(str(sources[layer]) for layer in sorted(here))
        return f"{what}s {ranges(here)} are in another order: they hold {order}"
    if len(here) == 1:
        return f"{what} {here[0]} holds what {what} {there[0]} held (duplicated?)"
    shifts = {source - layer for layer, source in sources.items()}
    if len(shifts) == 1:
        guess = f"one {'left out' if shifts.pop() > 0 else 'put in'}?"
        return (
            f"{what}s {ranges(here)} hold what {what}s {ranges(there)} held ({guess})"
        )
    if len(set(there)) == 1:
        return f"{what}s {ranges(here)} hold what {what} {there[0]} held (duplicated?)"
    order = ", ".join(str(sources[layer]) for layer in sorted(here))
    return f"{what}s {ranges(here)} hold what {what}s {order} held"


def _tell_experts(sources: Mapping[str, str], known: Collection[str]) -> list[Told]:
    """Experts that hold, as a whole, what others of the same layer held."""
    sizes = Counter(
        match.group("room", "number") for match in map(_EXPERT, known) if match
    )
    moved: dict[tuple[str, str, str], list[str]] = defaultdict(list)
    for name, source in sources.items():
        here, there = _EXPERT(name), _EXPERT(source)
        if here and there and here.group("room", "rest") == there.group("room", "rest"):
            moved[here["room"], here["number"], there["number"]].append(name)
    rooms: dict[str, dict[int, int]] = defaultdict(dict)
    members: dict[str, list[str]] = defaultdict(list)
    for (room, number, source), names in moved.items():
        if len(names) == sizes[room, number]:
            rooms[room][int(number)] = int(source)
            members[room] += names
    alike: dict[tuple[tuple[int, int], ...], list[str]] = defaultdict(list)
    for room, order in rooms.items():
        alike[tuple(sorted(order.items()))] += members[room]
    return [
        Told(f"{_where(names, known)}: {_layers(dict(order), 'expert')}", tuple(names))
        for order, names in alike.items()
    ]


def _tell_others(sources: Mapping[str, str], known: Collection[str]) -> list[Told]:
    """Tensors that hold what one of another kind, or outside the layers, held."""
    told = []
    pairs: dict[tuple[str, str, bool], list[str]] = defaultdict(list)
    done: set[str] = set()
    for name, source in sources.items():
        if name in done:
            continue
        swapped = sources.get(source) == name
        here, there = place_of(name), place_of(source)
        names = [name, source] if swapped else [name]
        done.update(names)
        if here and there and (here.stack, here.layer) == (there.stack, there.layer):
            pairs[here.kind, there.kind, swapped] += names
        elif swapped:
            told.append(Told(f"{name} and {source} are swapped", tuple(names)))
        else:
            told.append(Told(f"{name} holds what {source} held", tuple(names)))
    for (kind, source_kind, swapped), names in pairs.items():
        one, other = (each.removesuffix(".weight") for each in (kind, source_kind))
        where = _where(names, known)
        text = (
            f"{where}: {one} and {other} are swapped"
            if swapped
            else f"{where}: {one} holds what {other} held"
        )
        told.append(Told(text, tuple(names)))
    return told


def _where(names: Iterable[str], known: Collection[str]) -> str:
    """Only the layers of a group's words."""
    return group(names, known=known)[0].text.partition(", ")[0]
