"""Hidden states -> losses of tokens, a few positions' logits at a time."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any, TypeGuard

import torch

from ..checkpoints import at_hand, device_of
from ..planning import chunk_rows


def chunk_size(rows: torch.Tensor, head: torch.nn.Module | None) -> int:
    """How many positions' logits may exist at once. Without head, rows are logits."""
    kind = "cpu" if rows.device.type == "cpu" else "accelerator"
    return chunk_rows(_vocabulary(rows, head), rows.dtype.itemsize, kind=kind)


def _vocabulary(rows: torch.Tensor, head: torch.nn.Module | None) -> int:
    weight: Any = getattr(head, "weight", None)
    return int(rows.shape[-1] if weight is None else weight.shape[0])


def nll(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """-log softmax(logits)[target] of each position, in float64 [positions].

    Both originals call the kernel behind ``cross_entropy``. In float32 it sums a large
    vocabulary's exponentials a little low (7e-6 nat a token at 49,152 words, measured
    against float64); a better sum would be apart from them by more than rounding.
    """
    return _cross_entropy(logits, targets.to(logits.device)).to("cpu").double()


def losses(
    rows: torch.Tensor,
    positions: torch.Tensor,
    targets: torch.Tensor,
    head: torch.nn.Module | None,
) -> torch.Tensor:
    """As :func:`nll`, of ``rows[positions]``: [positions], and on the head's device.

    ``rows`` are what ``head`` reads, [all x width], or logits where it is None. On an
    accelerator nothing waits for it.
    """
    with at_hand(head):
        where = (None if head is None else device_of(head)) or rows.device
        return _losses(rows.to(where), positions.to(where), targets.to(where), head)


def _losses(
    rows: torch.Tensor,
    positions: torch.Tensor,
    targets: torch.Tensor,
    head: torch.nn.Module | None,
) -> torch.Tensor:
    """As :func:`losses`, all in one place."""
    fill = _filling(rows, head)
    size = chunk_size(rows, head)
    if fill is not None:
        of_chunk = _reuse(rows, fill, _vocabulary(rows, head))
    else:
        of_chunk = _apart(rows, head)
        if rows.device.type == "cpu":
            size = max(1, size // 2)  # log-probabilities take memory of their own
    return torch.cat(
        [
            of_chunk(positions[part], targets[part])
            for part in _parts(len(positions), size)
        ]
    )


def _parts(count: int, size: int) -> Iterator[slice]:
    """All of ``count``, at most ``size`` at once and about as many each time."""
    each = math.ceil(count / math.ceil(count / size))
    for start in range(0, count, each):
        yield slice(start, start + each)


OfChunk = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""Positions and targets [n] -> losses [n]."""

Fill = Callable[[torch.Tensor, torch.Tensor], object]
"""Writes the logits of positions [n] into a tensor [n x vocabulary]."""


def _apart(rows: torch.Tensor, head: torch.nn.Module | None) -> OfChunk:
    """Runs any head as its author wrote it."""

    def of_chunk(positions: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        chosen = rows[positions]
        return _cross_entropy(chosen if head is None else head(chosen), targets)

    return of_chunk


def _reuse(rows: torch.Tensor, fill: Fill, vocabulary: int) -> OfChunk:
    """The kernels of ``cross_entropy``, in one buffer for all logits and what follows.

    Memory that is new takes a CPU as long as a product with few rows.
    """
    logits = wide = rows.new_empty(0)

    def of_chunk(positions: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        nonlocal logits, wide
        count = len(positions)
        if count > len(logits):
            logits = wide = rows.new_empty(count, vocabulary)
            if not is_single_or_better(rows.dtype):
                wide = torch.empty_like(logits, dtype=torch.float32)
        fill(positions, logits[:count])
        result = wide[:count]
        if wide is not logits:
            result.copy_(logits[:count])
        torch.log_softmax(result, -1, out=result)
        return result.gather(1, targets[:, None])[:, 0].neg_()

    return of_chunk


def _filling(rows: torch.Tensor, head: torch.nn.Module | None) -> Fill | None:
    """What :func:`_reuse` may call, None where that may not be what the head does.

    None on an accelerator, too: its allocator gives the same memory again anyhow, and
    whether its kernels may write where they read is not said anywhere.
    """
    if rows.device.type != "cpu":
        return None
    if head is None:
        return lambda positions, out: torch.index_select(rows, 0, positions, out=out)
    if not _is_plain(head, rows):
        return None
    weight = head.weight.t()
    bias: torch.Tensor | None = head.bias
    # The products of ``torch.nn.functional.linear``, to the bit.
    if bias is None:
        return lambda positions, out: torch.mm(rows[positions], weight, out=out)
    return lambda positions, out: torch.addmm(bias, rows[positions], weight, out=out)


def _is_plain(head: torch.nn.Module, rows: torch.Tensor) -> TypeGuard[torch.nn.Linear]:
    """Whether calling ``head`` is one matrix product with its weight, and no more."""
    if type(head) is not torch.nn.Linear or "forward" in vars(head):
        return False
    if head._forward_hooks or head._forward_pre_hooks:
        return False
    tensors = [head.weight] if head.bias is None else [head.weight, head.bias]
    return not torch.is_autocast_enabled("cpu") and all(
        type(tensor) in (torch.Tensor, torch.nn.Parameter)
        and tensor.layout == torch.strided
        and (tensor.device, tensor.dtype) == (rows.device, rows.dtype)
        for tensor in tensors
    )


def _cross_entropy(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    if not is_single_or_better(logits.dtype):
        # Accelerators widen in the same kernel: no second copy of all logits.
        wide = torch.log_softmax(logits, -1, dtype=torch.float32)
        return wide.gather(1, targets[:, None])[:, 0].neg_()
    return torch.nn.functional.cross_entropy(logits, targets, reduction="none")


def is_single_or_better(dtype: torch.dtype) -> bool:
    """Whether sums of a vocabulary can be taken in ``dtype``."""
    return dtype in (torch.float32, torch.float64)
