"""Looks inside sparse matrices: rows and heads without a weight, and N:M patterns."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from typing import TYPE_CHECKING, Any

from msgspec import Struct

from ...errors import CheckpointError
from ...values import TensorFacts
from ..sparsity import input_axis
from ..streams import Stream, each
from .places import layers_text, named, place_of
from .result import Findings

if TYPE_CHECKING:
    import numpy

    Bools = numpy.ndarray[Any, numpy.dtype[numpy.bool_]]

_GROUPS = (4, 8, 16, 32)
_SPARSE = 0.2
"""A smaller share of zeros is no pattern."""
_ROUNDING = 0.01
_BY_HEADS = re.compile(r"(^|\.)(q|k|v)(_proj)?$")
_FROM_HEADS = re.compile(r"att.*\.(o_proj|out_proj|wo)(\.weight)?$")
_MANY = 0.1
"""Share of dead rows from which on they are suspicious: magnitude pruning by layer
leaves a few per cent."""


class Inside(Struct, frozen=True, eq=False):
    """What one matrix has inside.

    ``dead_outputs`` and ``dead_inputs`` mark those whose weights are all zeros, the
    latter empty where nobody asks. ``patterns`` are the (N, M) that every group keeps.
    """

    name: str
    dead_outputs: Bools
    dead_inputs: Bools
    patterns: frozenset[tuple[int, int]]


def look_inside(
    streams: Iterable[Stream],
    facts: Mapping[str, TensorFacts],
    config: Mapping[str, Any],
) -> list[Inside]:
    """Read those of the linear weights again that have enough zeros."""
    work = [
        stream
        for stream in streams
        if len(stream.shape) >= 2
        and min(stream.shape) > 0
        and min(stream.shape) <= facts[stream.name].zeros < facts[stream.name].size
    ]
    found = each(work, lambda one: _inside(one, facts[one.name].share, config))
    return list(found.values())


def _inside(stream: Stream, share: float, config: Mapping[str, Any]) -> Inside:
    import numpy

    width = stream.shape[-1]
    along_rows = _reads_rows(stream, config)
    # GPT-2's matrices lie the other way round; an output is a column of them.
    wants_columns = not along_rows or _FROM_HEADS.search(stream.name) is not None
    most = dict.fromkeys(_group_sizes(stream, share) if along_rows else (), 0)
    dead_rows = []
    alive = numpy.zeros(width, bool)
    for chunk in stream.read(width):
        # Without the sign: -0.0 is a zero.
        rows = ((chunk << 1) != 0).reshape(-1, width)
        dead_rows.append(~rows.any(axis=1))
        if wants_columns:
            alive |= rows.any(axis=0)
        for size in list(most):
            most[size] = max(most[size], _fullest(rows, size))
            # More weights than zeros leave room for: no pattern made these zeros.
            if most[size] / size > 1 - share + _ROUNDING:
                del most[size]
    rows_dead = numpy.concatenate(dead_rows)
    columns_dead = ~alive if wants_columns else alive[:0]
    return Inside(
        stream.name,
        rows_dead if along_rows else columns_dead,
        columns_dead if along_rows else rows_dead[:0],
        frozenset((count, size) for size, count in most.items()),
    )


def _reads_rows(stream: Stream, config: Mapping[str, Any]) -> bool:
    """Whether a row holds the weights of one output."""
    try:
        return input_axis(stream, config, "") == len(stream.shape) - 1
    except CheckpointError:  # it cannot be told of experts in one tensor
        return True


def _group_sizes(stream: Stream, share: float) -> tuple[int, ...]:
    if share < _SPARSE:
        return ()
    return tuple(size for size in _GROUPS if stream.shape[-1] % size == 0)


def _fullest(rows: Bools, size: int) -> int:
    """The most weights that a group has."""
    members = rows.view("u1").reshape(-1, size)
    counts = members[:, 0].copy()
    for index in range(1, size):
        counts += members[:, index]
    return int(counts.max(initial=0))


def pattern_of(
    insides: Iterable[Inside], facts: Mapping[str, TensorFacts], linear: Iterable[str]
) -> str | None:
    """The N:M with the smallest M that all sparse linear weights keep."""
    sparse = {name for name in linear if _SPARSE <= facts[name].share < 1}
    kept = [inside.patterns for inside in insides if inside.name in sparse]
    if not sparse or len(kept) < len(sparse):
        return None
    common = frozenset.intersection(*kept)
    if not common:
        return None
    count, size = min(common, key=lambda pair: pair[1])
    return f"{count}:{size}"


def check_rows(
    spec: str, insides: Iterable[Inside], config: Mapping[str, Any], found: Findings
) -> None:
    """Heads and rows that are all zeros, beyond what pruning single weights leaves."""
    heads: dict[str, list[tuple[int, int]]] = {}
    many, few = [], []
    for inside in insides:
        place = place_of(inside.name)
        assert place is not None
        dead = _dead_heads(inside, place.role, _head_size(config))
        if dead:
            heads.setdefault(place.role, []).extend((place.layer, h) for h in dead)
        elif inside.dead_outputs.mean() > _MANY:
            many.append(inside)
        elif inside.dead_outputs.any():
            few.append(inside)
    for role, dead_heads in heads.items():
        shown = ", ".join(
            f"layer {layer} head {head}" for layer, head in dead_heads[:4]
        )
        more = f" and {len(dead_heads) - 4} more" if len(dead_heads) > 4 else ""
        found.warning(
            "dead-heads",
            f"{layers_text(layer for layer, _ in dead_heads)}: {role}",
            f"{spec}: whole attention heads of {role} are zeros ({shown}{more}): "
            "removed on purpose, or overwritten?",
        )
    if many:
        names = [inside.name for inside in many]
        found.warning(
            "dead-rows",
            named(names),
            f"{spec}: all-zero rows ({_count(many)}) in {named(names)}: neurons "
            "removed on purpose, or overwritten?",
        )
    if few:
        names = [inside.name for inside in few]
        found.note(
            "dead-rows",
            named(names),
            f"{spec}: all-zero rows ({_count(few)}) in {named(names)}",
        )


def _count(insides: Collection[Inside]) -> int:
    return sum(int(inside.dead_outputs.sum()) for inside in insides)


def _dead_heads(inside: Inside, role: str, size: int | None) -> list[int]:
    """Numbers of the heads, from 0, that have no weight in this matrix."""
    marks = inside.dead_inputs
    if _BY_HEADS.search(role):
        marks = inside.dead_outputs
    elif not _FROM_HEADS.search(role):
        return []
    if size is None or not marks.size or marks.size % size or marks.size == size:
        return []
    heads = marks.reshape(-1, size)
    return [head for head, outputs in enumerate(heads) if outputs.all()]


def _head_size(config: Mapping[str, Any]) -> int | None:
    size, heads = config.get("head_dim"), config.get("num_attention_heads")
    hidden = config.get("hidden_size")
    if isinstance(size, int):
        return size
    if isinstance(heads, int) and isinstance(hidden, int) and heads > 0:
        return hidden // heads
    return None
