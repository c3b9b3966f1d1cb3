"""Holds a pruned checkpoint to the dense one: what is left is to be what was there."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from msgspec import Struct

from ..errors import CheckpointError
from ..tensornames import is_derived, is_embedding, is_head, match_names
from .compare import compare_streams
from .files import read_config
from .locate import Located
from .sparsity import count_zeros, linear_weights
from .streams import Model, Stream, by_name, each, weight_streams


class Survivors(Struct, frozen=True):
    """Whether the weights that survived pruning are those of the dense checkpoint.

    ``moved`` holds, of each tensor in which they are not, how many are not and how many
    had to be. ``strange`` are tensors that cannot be compared, by the reason.
    ``known`` are all tensors that were looked at, ``linear`` those of them that may
    have been pruned.
    """

    moved: dict[str, tuple[int, int]]
    strange: dict[str, tuple[str, ...]]
    known: tuple[str, ...]
    linear: tuple[str, ...]


def compare_with_dense(
    pruned: Located,
    dense: Located,
    *,
    model: Model | None = None,
    dense_model: Model | None = None,
    allow_pickle: bool = False,
) -> Survivors:
    """Compare a pruned checkpoint with the dense one, number by number.

    In the tensors in which sparsity is counted a weight may be zero; everything else is
    to be equal, whatever the dtypes. Names may have lost or got a prefix. Streamed from
    the files of both, unless they do not hold the weights that run.

    Args:
        pruned: from :func:`~.locate.locate`.
        dense: the checkpoint that it was made of.
        model: loads the pruned one; called only if need be.
        dense_model: loads the dense one; called only if need be.
        allow_pickle: whether pickle weights may be loaded.

    Raises:
        CheckpointError: weights cannot be read, or the two have no tensor in common.
    """
    streams = weight_streams(pruned, model=model, allow_pickle=allow_pickle)
    linear = set(linear_weights(streams, read_config(pruned)))
    now = _deciding(streams)
    then = _deciding(
        weight_streams(dense, model=dense_model, allow_pickle=allow_pickle)
    )
    here = {old: new for new, old in match_names(then, now).items()}
    then = {here.get(name, name): stream for name, stream in then.items()}
    both = [name for name in now if name in then]
    if not both:
        raise CheckpointError(
            f"{pruned.spec} and {dense.spec} have no tensor of the same name "
            f"({next(iter(now), 'none')} here, {next(iter(then), 'none')} there): they "
            "are not checkpoints of one model in one format"
        )
    strange = {
        "gone": _alone(then, now),
        f"new, not in {dense.spec}": _alone(now, then),
        f"not comparable, other shape or format than in {dense.spec}": tuple(
            name for name in both if not _comparable(now[name], then[name])
        ),
    }
    found = each(
        (now[name] for name in both if _comparable(now[name], then[name])),
        lambda one: _moved(one, then[one.name], prunable=one.name in linear),
    )
    return Survivors(
        moved={name: counts for name, counts in found.items() if counts[0]},
        strange={why: names for why, names in strange.items() if names},
        known=tuple(dict.fromkeys([*then, *now])),
        linear=tuple(name for name in now if name in linear),
    )


def _moved(now: Stream, then: Stream, *, prunable: bool) -> tuple[int, int]:
    """Weights that are not as they have to be, and how many have to be."""
    compared = compare_streams(then, now)
    # One that was zero and is not any more has survived nothing.
    moved = compared.moved + compared.lost
    if not prunable:
        return moved + compared.gained, compared.total
    if not moved:
        return 0, 0
    counted = count_zeros(now)
    return moved, counted.total - counted.zeros


def _comparable(one: Stream, other: Stream) -> bool:
    floats = one.is_float and other.is_float
    return one.shape == other.shape and (floats or one.dtype == other.dtype)


def _deciding(streams: Iterable[Stream]) -> dict[str, Stream]:
    """By name, without buffers that models compute themselves."""
    return {
        name: stream
        for name, stream in by_name(streams).items()
        if not is_derived(name)
    }


def _alone(one: Mapping[str, Stream], other: Mapping[str, Stream]) -> tuple[str, ...]:
    """Tensors that only ``one`` has, but for a head that is tied to its embedding."""
    embeddings = [stream for name, stream in one.items() if is_embedding(name)]
    return tuple(
        name
        for name, stream in one.items()
        if name not in other
        and not (is_head(name) and any(_equal(stream, e) for e in embeddings))
    )


def _equal(one: Stream, other: Stream) -> bool:
    return _comparable(one, other) and compare_streams(one, other).equal
