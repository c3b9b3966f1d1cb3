"""Models whose layers accelerate has placed: where modules run, and what they weigh.

Accelerate replaces ``forward`` of such modules by one that moves inputs to the module's
device, and brings offloaded weights there for the time of the call; in between they are
on torch's ``meta`` device.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

from msgspec import Struct

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn


class Kept(Struct, frozen=True):
    """A tensor that is not in its module: where it is kept, and what brings it.

    ``place`` is the same for tensors that are one.
    """

    place: tuple[object, ...]
    load: Callable[[], Tensor]


def is_hooked(module: nn.Module) -> bool:
    """Whether ``forward`` of a module is what accelerate has made of its class's.

    Not so if anybody else has replaced it, before or after, nor if accelerate was given
    a hook that does more than place: that may change what is computed.
    """
    forward = vars(module).get("forward")
    inside = vars(module).get("_old_forward")
    return (
        isinstance(forward, functools.partial)
        and forward.func.__module__ == "accelerate.hooks"
        and getattr(inside, "__func__", None) is type(module).forward
        and all(map(_only_places, _all_hooks(vars(module).get("_hf_hook"))))
    )


def _only_places(hook: object) -> bool:
    kind = type(hook)
    return (kind.__module__, kind.__name__) == ("accelerate.hooks", "AlignDevicesHook")


def _all_hooks(hook: Any) -> Iterator[object]:
    """Those that a hook of accelerate is made of."""
    parts = getattr(hook, "hooks", None)
    if parts is None:
        yield hook
        return
    for part in parts:
        yield from _all_hooks(part)


def device_of(module: nn.Module) -> torch.device | None:
    """Where a module's weights are when it runs; None where it has none."""
    weight = next(module.parameters(), None)
    if weight is None or weight.device.type != "meta":
        return None if weight is None else weight.device
    import torch

    for part in module.modules():
        for hook in _hooks(part):
            if hook.execution_device is not None:
                return torch.device(hook.execution_device)
    return weight.device


def devices_of(module: nn.Module) -> list[torch.device]:
    """All devices on which a module's parts run, in their order."""
    import torch

    found: dict[torch.device, None] = {}
    for part in module.modules():
        weights = [weight.device for weight in part.parameters(recurse=False)]
        for hook in _hooks(part):
            if weights and hook.execution_device is not None:
                weights = [torch.device(hook.execution_device)]
        found |= dict.fromkeys(weights)
    return list(found)


def _hooks(module: nn.Module) -> Iterator[Any]:
    """Those of accelerate that place a module's inputs and weights."""
    for each in _all_hooks(vars(module).get("_hf_hook")):
        if hasattr(each, "execution_device"):
            yield each


@contextmanager
def at_hand(module: nn.Module | None) -> Iterator[None]:
    """Bring a module's own weights to its device once, for many calls inside.

    There it is as if accelerate had never touched it: inputs are not moved.
    """
    if module is None or not is_hooked(module):
        yield
        return
    from accelerate.utils import align_module_device, has_offloaded_params

    own = module.parameters(recurse=False)
    away = any(weight.device.type == "meta" for weight in own)
    if away and not has_offloaded_params(module):  # its parent brings its weights
        yield
        return
    with align_module_device(module) if away else nullcontext():
        forward = vars(module).pop("forward")
        try:
            yield
        finally:
            vars(module)["forward"] = forward


def kept_tensors(model: nn.Module) -> dict[str, Kept]:
    """The tensors of a model that are offloaded, by their names in it."""
    found: dict[str, Kept] = {}
    for path, module in model.named_modules(remove_duplicate=False):
        for hook in _hooks(module):
            if not hook.offload or hook.weights_map is None:
                continue
            own = (*module._parameters.items(), *module._buffers.items())
            for name, tensor in own:
                if tensor is not None and tensor.device.type == "meta":
                    whole = f"{path}.{name}" if path else name
                    found[whole] = _kept(hook, name)
    return found


def _kept(hook: Any, name: str) -> Kept:
    import torch

    weights, key = hook.weights_map, name
    while hasattr(weights, "prefix"):
        weights, key = weights.dataset, f"{weights.prefix}{key}"
    info = getattr(weights, "index", {}).get(key, {})
    place: tuple[object, ...] = (id(weights), key)
    if key in getattr(weights, "state_dict", {}):
        place = ("memory", weights.state_dict[key].data_ptr())
    elif "safetensors_file" in info:
        place = (info["safetensors_file"], info.get("weight_name", key))

    def load() -> Tensor:
        tensor: Tensor = hook.weights_map[name]
        return tensor.to(torch.device(hook.execution_device))

    return Kept(place, load)


def loader_of(model: nn.Module) -> object | None:
    """What reads a model's offloaded weights; None where none are."""
    for module in model.modules():
        for hook in _hooks(module):
            weights: Any = hook.weights_map if hook.offload else None
            while hasattr(weights, "prefix"):
                weights = weights.dataset
            if weights is not None:
                found: object = weights
                return found
    return None
