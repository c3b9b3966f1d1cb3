"""Digests a live model: which one it is, and whether it was changed in place."""

from __future__ import annotations

import hashlib
import inspect
import json
import sys
from collections.abc import Iterator
from itertools import chain
from typing import TYPE_CHECKING, Any

from .offloaded import is_hooked, kept_tensors

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PreTrainedModel

_IDLE = ("_name_or_path", "transformers_version")
"""Fields of a config that decide nothing."""

_CHUNK = 1 << 22
"""Elements mixed at once on a device: temporary memory is some hundred MB at most."""
_TWO_64 = 1 << 64
# The constants of SplitMix64, in two's complement as torch's int64 wants them.
_GAMMA = 0x9E3779B97F4A7C15 - _TWO_64
_MIX = ((30, 0xBF58476D1CE4E5B9 - _TWO_64), (27, 0x94D049BB133111EB - _TWO_64))


def model_digest(model: PreTrainedModel) -> str | None:
    """A digest of all that decides what a model computes, comparable between processes.

    Covers the state, the config, and the source of model classes that neither torch nor
    transformers define; their versions are not covered. None where something else may
    decide: a ``forward`` that was replaced, hooks, tensors of a quantiser's own class,
    classes without a source. Where accelerate has placed layers makes no difference;
    those that are offloaded are read one tensor at a time.
    """
    if not _is_plain(model):
        return None
    config = model.config.to_dict()
    for name in _IDLE:
        config.pop(name, None)
    try:
        sources = list(_sources(model))
    except (OSError, TypeError):
        return None
    lines = (
        state_digest(model),
        json.dumps(config, sort_keys=True, default=str),
        *sources,
    )
    return f"sha256:{hashlib.sha256(chr(10).join(lines).encode()).hexdigest()}"


def _is_plain(model: nn.Module) -> bool:
    """Whether state, config and classes say all about what a model computes."""
    import torch

    tensors = chain(model.parameters(), model.buffers())
    return all(
        type(tensor) in (torch.Tensor, torch.nn.Parameter) for tensor in tensors
    ) and not any(
        _is_replaced(module) or module._forward_hooks or module._forward_pre_hooks
        for module in model.modules()
    )


def _is_replaced(module: nn.Module) -> bool:
    """Whether ``forward`` is not its class's, but for what accelerate does to it."""
    return "forward" in vars(module) and not is_hooked(module)


def _sources(model: nn.Module) -> Iterator[str]:
    modules = {type(module).__module__ for module in model.modules()}
    for name in sorted(modules):
        if name.partition(".")[0] not in ("torch", "transformers"):
            yield f"{name} {inspect.getsource(sys.modules[name])}"


def state_digest(model: nn.Module) -> str:
    """A digest of everything that a test may change in a model by accident.

    Covers each bit of all parameters and buffers (so also ``weight.data[mask] = 0``,
    which no version counter sees, and the sign of a zero), their names, shapes, dtypes
    and ties, the modules' names, types, training flags and numbers of hooks, a
    ``forward`` replaced on an instance, and the attention implementation.

    Digests are comparable between devices of one type and versions of torch.
    """
    total = hashlib.sha256()
    for line in chain(_structure(model), _tensors(model)):
        total.update(line.encode())
        total.update(b"\n")
    return total.hexdigest()


def _structure(model: nn.Module) -> Iterator[str]:
    config = getattr(model, "config", None)
    yield f"attention {getattr(config, '_attn_implementation', None)}"
    for name, module in model.named_modules(remove_duplicate=False):
        kind = type(module)
        hooks = (len(module._forward_pre_hooks), len(module._forward_hooks))
        yield (
            f"{name} {kind.__module__}.{kind.__qualname__} {module.training} {hooks} "
            f"{_is_replaced(module)}"
        )


def _tensors(model: nn.Module) -> Iterator[str]:
    seen: dict[object, str] = {}
    kept = kept_tensors(model)
    everything = chain(
        model.named_parameters(remove_duplicate=False),
        model.named_buffers(remove_duplicate=False),
    )
    for name, tensor in everything:
        away = kept.get(name)
        which: object = id(tensor) if away is None else away.place
        if which in seen:
            yield f"{name} is {seen[which]}"
            continue
        seen[which] = name
        real = tensor if away is None else away.load()
        shape = tuple(real.shape)
        yield f"{name} {real.dtype} {shape} {real.device.type} {_bits(real)}"


def _bits(tensor: Tensor) -> str:
    """Digest of a tensor's bytes; of those inside for quantised and sparse classes."""
    flatten = getattr(tensor, "__tensor_flatten__", None)
    if flatten is not None:
        inner: list[str] = flatten()[0]
        return " ".join(f"{name}={_bits(getattr(tensor, name))}" for name in inner)
    if tensor.device.type == "meta":
        return "meta"
    flat = _bytes(tensor)
    return _host_hash(flat) if tensor.device.type == "cpu" else device_hash(flat)


def _bytes(tensor: Tensor) -> Tensor:
    """The tensor's bytes as a flat uint8 tensor, without a copy if contiguous."""
    import torch

    return tensor.detach().contiguous().reshape(-1).view(torch.uint8)


def _host_hash(flat: Tensor) -> str:
    import xxhash

    data: Any = flat.numpy()
    return xxhash.xxh3_128_hexdigest(data)


def device_hash(flat: Tensor) -> str:
    """Hash of bytes where they are, exact on bits: no single change goes unseen.

    Every word is mixed with its position by SplitMix64, whose steps can be undone: a
    changed word changes its term of the sum for certain. Sums wrap around.

    Args:
        flat: a contiguous, one-dimensional uint8 tensor on any device.
    """
    import torch

    words = flat
    if flat.numel() % 8 == 0 and flat.storage_offset() % 8 == 0:
        words = flat.view(torch.int64)
    total = torch.zeros((), dtype=torch.int64, device=flat.device)
    for begin in range(0, words.numel(), _CHUNK):
        chunk = words[begin : begin + _CHUNK].to(torch.int64)
        mixed = torch.arange(begin, begin + chunk.numel(), device=flat.device)
        mixed = mixed.mul_(_GAMMA).add_(chunk)
        for shift, factor in _MIX:
            mixed = _xor_shift(mixed, shift).mul_(factor)
        total += _xor_shift(mixed, 31).sum()
    return f"{int(total) % _TWO_64:016x}"


def _xor_shift(words: Tensor, shift: int) -> Tensor:
    """``words ^ (words >> shift)`` in place; torch's shift would copy the sign."""
    zeros_in_front = (1 << (64 - shift)) - 1
    return words.bitwise_xor_((words >> shift).bitwise_and_(zeros_in_front))
