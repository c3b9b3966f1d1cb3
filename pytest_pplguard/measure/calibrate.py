"""How fast this machine runs a model's shape: windows of random tokens, timed.

The weights are random, so nothing of the checkpoint is read. What the scorer runs is
timed, body and head apart: as many layers as a short time and little memory allow, and
all of the head.
"""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable
from typing import Any

from ..checkpoints import is_out_of_memory
from ..errors import PplguardError
from ..planning import (
    ITEMSIZE,
    Shape,
    Skeleton,
    Timing,
    empty_model,
    shape_of,
    with_layers,
)
from ..startup import importing

MOST_BYTES = 2**31
"""Weights that are made up, at most; and no more than a quarter of what is free."""
PASS_SECONDS = 0.5
"""As long body and head may take each: layers are left out, then windows shortened."""
TIMED_SECONDS = 1.0
"""So long each is timed, and at least three times."""
SHORTEST = 64
"""Tokens; matrix products of fewer rows say little of long windows."""
_MOST_RUNS = 9
_BLOCK = 2**20

_clock = time.perf_counter


def calibrate(
    skeleton: Skeleton,
    windows: int,
    *,
    device: str,
    dtype: str,
    batch: int = 1,
    attention: str | None = None,
    trust_remote_code: bool = False,
    room: int,
) -> Timing:
    """FLOPs a second at windows of a length.

    Args:
        skeleton: of the checkpoint.
        windows: tokens of each.
        device: torch device.
        dtype: torch dtype by name.
        batch: windows that are read at once.
        attention: implementation; None lets transformers choose.
        trust_remote_code: run Python code that the checkpoint brings along.
        room: bytes that are free there.
    """
    with importing():
        import torch
        from transformers import AutoModelForCausalLM  # noqa: F401

    started = _clock()
    shape = skeleton.shape
    products = _products(shape, torch.device(device), getattr(torch, dtype))
    depth, tokens = excerpt(
        shape, windows, rate=products / batch, most=min(MOST_BYTES, room // 4),
        itemsize=ITEMSIZE[dtype],
    )  # fmt: skip
    try:
        if depth:
            config = with_layers(skeleton.config, depth)
            model = empty_model("", config, trust_remote_code, attention=attention)
            some = shape_of(model, config)
            _fill(model, torch.device(device), getattr(torch, dtype))
            of_body, of_head = _time(model, some.vocabulary, tokens, batch)
            others = _layers(shape, tokens) / _layers(some, tokens)
            rate = batch * shape.flops(tokens, tokens) / (of_body * others + of_head)
            whole = depth == len(shape.layers) and tokens == windows
            return Timing(
                "window" if whole else "layers",
                rate,
                tokens,
                0 if whole else depth,
                _clock() - started,
            )
    # Architectures whose parts depend on how many layers there are, and kernels that
    # are not there: the products are what is left to go by.
    except (PplguardError, RuntimeError, ValueError, TypeError, LookupError) as error:
        if is_out_of_memory(error):
            from ..scoring import memory

            memory.give_back(torch.device(device))
    return Timing("products", products, 0, 0, _clock() - started)


def _layers(shape: Shape, tokens: int) -> int:
    return shape.flops(tokens, 0)


def excerpt(
    shape: Shape, windows: int, *, rate: float, most: int, itemsize: int
) -> tuple[int, int]:
    """How many layers to time, and on how many tokens; no layers: too much in all.

    Args:
        shape: of the model.
        windows: tokens of each.
        rate: FLOPs a second that are to be expected.
        most: bytes of weights.
        itemsize: bytes of one.
    """
    fixed = shape.embedding + shape.head + shape.others
    sizes = [(fixed + layer.parameters) * itemsize for layer in shape.layers[:1]]
    if not sizes or sizes[0] > most:
        return 0, 0
    first = shape.layers[0]
    tokens = windows

    def pass_of(count: int) -> float:
        head = 2 * shape.hidden * shape.vocabulary * count
        return max(first.flops(count), head) / rate

    while tokens > SHORTEST and pass_of(tokens) > PASS_SECONDS:
        tokens = max(SHORTEST, tokens // 2)
    if pass_of(tokens) > 4 * PASS_SECONDS:
        return 0, 0
    depth, flops, size = 0, 0, fixed * itemsize
    for layer in shape.layers:
        flops += layer.flops(tokens)
        size += layer.parameters * itemsize
        if depth and (flops / rate > PASS_SECONDS or size > most):
            break
        depth += 1
    return depth, tokens


def _time(model: Any, vocabulary: int, tokens: int, batch: int) -> tuple[float, float]:
    """Seconds of a batch of windows: of the body, and of head and losses."""
    import torch

    from ..scoring import memory, models
    from ..scoring.head import losses

    body, head = models.body(model.eval()), models.output_head(model)
    device = models.device(model)
    if body is None:
        raise LookupError("the model has no body of its own")
    draw = random.Random(0)
    rows = [[draw.randrange(vocabulary) for _ in range(tokens)] for _ in range(batch)]
    ids = torch.tensor(rows, device=device)

    def run_body() -> torch.Tensor:
        hidden = models.hidden(body, ids)
        hidden[0, 0, 0].item()  # whoever asks for a number waits for the device
        return hidden

    with torch.no_grad(), memory.compact_heap(device):
        of_body = _median(run_body)
        hidden = run_body().flatten(0, 1)
        places = torch.arange(len(hidden), device=device)
        targets = ids.flatten()
        of_head = _median(lambda: losses(hidden, places, targets, head).sum().item())
    return of_body, of_head


def _median(run: Callable[[], object]) -> float:
    """Seconds of one call, after one that warms up."""
    run()
    found: list[float] = []
    while len(found) < 3 or (sum(found) < TIMED_SECONDS and len(found) < _MOST_RUNS):
        started = _clock()
        run()
        found.append(_clock() - started)
    return statistics.median(found)


def _fill(model: Any, device: Any, dtype: Any) -> None:
    """Give a model of ``meta`` numbers; a block of random ones, again and again.

    Drawing each would take longer than all that is timed. All of them zero would be
    too fast: GPUs keep a higher clock then.
    """
    import torch

    model.to(dtype).to_empty(device=device)
    seed = torch.Generator(device=device).manual_seed(0)
    block = 0.02 * torch.randn(_BLOCK, generator=seed, device=device, dtype=dtype)
    with torch.no_grad():
        for weight in model.parameters():
            flat = weight.view(-1)
            for start in range(0, flat.numel(), _BLOCK):
                part = flat[start : start + _BLOCK]
                part.copy_(block[: part.numel()])
            if weight.ndim == 1:
                weight.fill_(1)
        for buffer in model.buffers():  # of rotary positions, and masks
            buffer.fill_(0.01 if buffer.is_floating_point() else 1)


def _products(shape: Shape, device: Any, dtype: Any) -> float:
    """FLOPs a second of the largest product of a layer, on some rows."""
    import torch

    layer = shape.layers[0] if shape.layers else None
    width = min(shape.hidden, 4096)
    other = min(layer.middle if layer and layer.middle else shape.hidden, 16_384)
    weight = torch.full((width, other), 0.02, dtype=dtype, device=device)
    rows, best = 16, 0.0
    while True:
        some = torch.full((rows, width), 0.5, dtype=dtype, device=device)
        took: list[float] = []
        while len(took) < 3 and sum(took) < PASS_SECONDS:
            started = _clock()
            (some @ weight).sum().item()
            took.append(_clock() - started)
        best = max(best, 2 * rows * width * other / min(took))
        if min(took) > 0.05 or rows >= 4096:
            return best
        rows *= 4
