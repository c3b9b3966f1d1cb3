"""Reads tensor names: what one is, which is which elsewhere, many in few words."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Collection, Hashable, Iterable, Mapping, Sequence
from typing import NamedTuple

IN_LAYER = re.compile(
    r"(?P<before>.*?)(?:^|\.)(?:layers|layer|h|blocks|block|blk)\."
    r"(?P<number>[0-9]+)\.(?P<rest>.+)"
)
"""A tensor inside a decoder layer: ``before`` the stack, and ``rest`` in the layer."""

_DERIVED = re.compile(
    r"rotary_emb\.inv_freq$|\.masked_bias$|position_ids$|\.(attn|attention)\.bias$"
)
_EMBEDDING = re.compile(r"(^|\.)(embed_tokens|embed_in|wte|word_embeddings)\.weight$")
_HEAD = re.compile(r"(^|\.)(lm_head|embed_out|output)\.weight$")
_WRAPPERS = re.compile(
    r"^(?:(?:model|transformer|language_model|base_model|gpt_neox|backbone|module)\.)+"
)
"""What stands before names where a model was saved with or without its head."""
_ANYWHERE = re.compile(
    r"(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\."
)
_SHOWN = 4
"""Names of one layer that are written out."""


class Group(NamedTuple):
    """Some tensors, and the words for them."""

    text: str
    names: tuple[str, ...]


def layer_of(name: str) -> str | None:
    """``layers.3`` of a tensor inside a decoder layer; None for one outside of them."""
    match = IN_LAYER.fullmatch(name)
    return None if match is None else name[: -len(match["rest"]) - 1]


def kind_of(name: str) -> str:
    """``self_attn.q_proj.weight``: the name inside its layer; all of it outside."""
    match = IN_LAYER.fullmatch(name)
    return name if match is None else match["rest"]


def is_derived(tensor: str) -> bool:
    """Whether a tensor is a buffer that models compute themselves."""
    return _DERIVED.search(tensor) is not None


def is_embedding(tensor: str) -> bool:
    """Whether a tensor is the input embedding."""
    return _EMBEDDING.search(tensor) is not None


def is_head(tensor: str) -> bool:
    """Whether a tensor is the output head."""
    return _HEAD.search(tensor) is not None


def match_names(before: Collection[str], now: Collection[str]) -> dict[str, str]:
    """Names of ``now`` to names of ``before``, each at most once.

    Equal names first, then those that differ only in what wrappers put before them: a
    model that was saved without its head, or from ``torch.compile``.
    """
    found = {name: name for name in now if name in before}
    taken = set(found.values())
    old = unique((name for name in before if name not in taken), _bare)
    new = unique((name for name in now if name not in found), _bare)
    return found | {new[each]: old[each] for each in new if each in old}


def unique(names: Iterable[str], key: Callable[[str], Hashable]) -> dict[Hashable, str]:
    """The names by a key that only one of them has."""
    by_key: dict[Hashable, list[str]] = defaultdict(list)
    for name in names:
        by_key[key(name)].append(name)
    return {each: found[0] for each, found in by_key.items() if len(found) == 1}


def _bare(name: str) -> str:
    if is_head(name) and layer_of(name) is None:
        return "head"  # ``embed_out`` of a GPT-NeoX is ``lm_head`` in memory
    return _WRAPPERS.sub("", _ANYWHERE.sub("", name))


def group(
    names: Iterable[str],
    *,
    known: Collection[str] = (),
    linear: Collection[str] = (),
) -> list[Group]:
    """Tensor names in few words: ranges of layers, times what is in each of them.

    ``layers 12-14, all projections`` or ``layers 3, 7, self_attn.q_proj``. Each name
    is in exactly one group; groups come in the order of their first tensors.

    Args:
        names: those to be named.
        known: all tensors of the checkpoint, so that "all" can be said.
        linear: its linear weights, the projections.
    """
    wanted = sorted(set(names), key=natural)
    if whole := _whole(wanted, known, linear):
        return [Group(whole, tuple(wanted))]
    stacks: dict[str, dict[str, set[int]]] = defaultdict(lambda: defaultdict(set))
    by_place: dict[tuple[str, int, str], str] = {}
    groups = []
    for name in wanted:
        if (place := _place(name)) is None:
            groups.append(Group(name, (name,)))
            continue
        stack, number, rest = place
        stacks[stack][rest].add(number)
        by_place[place] = name
    words = _Words(known, linear, stacks)
    for stack, rests in stacks.items():
        for layers, kinds in _blocks(rests):
            members = [
                by_place[stack, layer, kind] for layer in layers for kind in kinds
            ]
            groups.append(Group(words.of(stack, layers, kinds), tuple(members)))
    return sorted(groups, key=lambda found: natural(found.names[0]))


def natural(name: str) -> list[tuple[bool, int, str]]:
    """A sort key by which layer 2 is before layer 10."""
    return [
        (part.isdecimal(), int(part) if part.isdecimal() else 0, part)
        for part in re.split(r"([0-9]+)", name)
    ]


def ranges(numbers: Iterable[int]) -> str:
    """``3, 7, 12-14``."""
    runs: list[list[int]] = []
    for number in sorted(set(numbers)):
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ", ".join(
        f"{first}" if first == last else f"{first}-{last}" for first, last in runs
    )


def _place(name: str) -> tuple[str, int, str] | None:
    """The stack of layers, the number and the name inside the layer."""
    match = IN_LAYER.fullmatch(name)
    if match is None:
        return None
    word = name[match.end("before") : match.start("number")].strip(".")
    # Others than the usual word may stand beside it in one model.
    stack = match["before"] + ("" if word == "layers" else f" {word}")
    return stack, int(match["number"]), match["rest"]


def _whole(
    names: Sequence[str], known: Collection[str], linear: Collection[str]
) -> str | None:
    """The words for all tensors there are, or all linear ones."""
    for everything, what in ((linear, "linear weights"), (known, "tensors")):
        if len(names) == len(everything) > 1 and set(names) == set(everything):
            return f"all {len(names)} {what}"
    return None


def _blocks(
    rests: Mapping[str, Iterable[int]],
) -> list[tuple[tuple[int, ...], tuple[str, ...]]]:
    """Layers and what is in each of them, in as few blocks as one of two ways gives."""
    by_layer: dict[int, list[str]] = defaultdict(list)
    for rest in sorted(rests, key=natural):
        for layer in rests[rest]:
            by_layer[layer].append(rest)
    same_rests: dict[tuple[str, ...], list[int]] = defaultdict(list)
    for layer in sorted(by_layer):
        same_rests[tuple(by_layer[layer])].append(layer)
    same_layers: dict[tuple[int, ...], list[str]] = defaultdict(list)
    for rest in sorted(rests, key=natural):
        same_layers[tuple(sorted(rests[rest]))].append(rest)
    return min(
        [(tuple(layers), kinds) for kinds, layers in same_rests.items()],
        [(layers, tuple(kinds)) for layers, kinds in same_layers.items()],
        key=lambda blocks: (len(blocks), sum(len(ranges(n)) for n, _ in blocks)),
    )


class _Words:
    """Finds the words for a block of one checkpoint."""

    def __init__(
        self,
        known: Collection[str],
        linear: Collection[str],
        stacks: Collection[str],
    ) -> None:
        self._known = _by_layer(known)
        self._linear = _by_layer(linear)
        self._many = len({*stacks, *self._known, *self._linear}) > 1

    def of(self, stack: str, layers: Sequence[int], kinds: Sequence[str]) -> str:
        where = ranges(layers)
        there = {*self._known.get(stack, ()), *self._linear.get(stack, ())}
        if len(layers) > 1 and set(layers) == there:
            text = f"all {len(layers)} layers"
        else:
            text = f"layer{'s' * (len(layers) > 1)} {where}"
        if self._many:
            text = f"{stack} {text}".lstrip()
        return f"{text}, {self._kinds(stack, layers, kinds)}"

    def _kinds(self, stack: str, layers: Sequence[int], kinds: Sequence[str]) -> str:
        for known, what in (
            (self._linear, "all projections"),
            (self._known, "all tensors"),
        ):
            if len(kinds) > 1 and all(
                known.get(stack, {}).get(layer) == set(kinds) for layer in layers
            ):
                return what
        shown = _collapse([kind.removesuffix(".weight") for kind in kinds])
        if len(shown) > _SHOWN:
            first = shown[: _SHOWN - 1]
            return f"{', '.join(first)} and {len(shown) - len(first)} more"
        return ", ".join(shown)


def _by_layer(names: Iterable[str]) -> dict[str, dict[int, set[str]]]:
    """What is in each layer of each stack."""
    found: dict[str, dict[int, set[str]]] = defaultdict(lambda: defaultdict(set))
    for name in names:
        if place := _place(name):
            stack, number, rest = place
            found[stack][number].add(rest)
    return found


def _collapse(kinds: Iterable[str]) -> list[str]:
    """Names that differ in one number as one: ``mlp.experts.[0-7].up_proj``."""
    found: dict[tuple[str, str], list[int]] = defaultdict(list)
    for kind in kinds:
        match = re.fullmatch(r"(.*?\.)([0-9]+)(\..+)", kind)
        if match is None:
            found[kind, ""] = []
        else:
            found[match[1], match[3]].append(int(match[2]))
    return [
        f"{before}[{ranges(numbers)}]{after}"
        if len(numbers) > 1
        else f"{before}{ranges(numbers)}{after}"
        for (before, after), numbers in found.items()
    ]
