"""Decides which devices a model's layers go to, before anything is loaded. Pure.

What a decision needs are bytes: of the weights by layer, which the files' headers say,
and of the free memory by device. The layers are then placed by accelerate; this is who
says beforehand whether they fit.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping

from msgspec import Struct

from ..errors import CheckpointError, DeviceError, UsageError
from ..tensornames import is_embedding, layer_of
from .device import DeviceChoice, Hardware, choose_device, seen
from .files import BITS
from .streams import Stream

FILL = 0.9
"""Share of a GPU's free memory that weights may take; the rest is for activations and
logits. It is what accelerate leaves, too."""

CPU, DISK = "cpu", "disk"

_UNITS = ((2**40, "TiB"), (2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB"))


class Placement(Struct, frozen=True):
    """Where a model's layers go.

    ``device`` is where ids go. The whole model is there if ``max_memory`` is empty;
    else accelerate fills these devices (GPUs by number, ``cpu``) with at most so many
    bytes of weights, and what is left goes to disk. ``spread``: nothing may be left.
    """

    device: str
    max_memory: dict[int | str, int] = {}
    spread: bool = False


def layer_weights(
    tensors: Iterable[Stream], dtype: str, *, quantised: bool = False
) -> dict[str, int]:
    """Bytes of the weights in memory, by layer, in the order in which a model runs.

    A layer is ``model.layers.3``, or outside of those a module such as ``lm_head``.

    Args:
        tensors: those of the files, from :func:`~.streams.stored_streams`.
        dtype: that the model is loaded in, by torch's name.
        quantised: they are in memory as they are stored.
    """
    width = _BYTES[dtype]
    sizes: dict[str, int] = {}
    for tensor in tensors:
        module = layer_of(tensor.name) or tensor.name.rpartition(".")[0] or tensor.name
        count = math.prod(tensor.shape)
        is_cast = tensor.is_float and not quantised
        size = count * width if is_cast else count * BITS.get(tensor.dtype, 8) // 8
        sizes[module] = sizes.get(module, 0) + size
    return dict(sorted(sizes.items(), key=lambda one: _order(one[0])))


_BYTES = {"float64": 8, "float32": 4, "float16": 2, "bfloat16": 2}


def _order(module: str) -> tuple[int, list[int], str]:
    """The embedding, then layers by number, then the rest."""
    numbers = [int(number) for number in re.findall(r"[0-9]+", module)]
    if is_embedding(f"{module}.weight"):
        return 0, [], module
    return (1, numbers, module) if layer_of(f"{module}.x") else (2, [], module)


def fits(weights: int, free: int) -> bool:
    """Whether ``weights`` bytes leave a GPU of ``free`` bytes room for activations."""
    return weights <= FILL * free


def assign(
    layers: Mapping[str, int], room: Mapping[int | str, int]
) -> dict[str, int | str]:
    """The device of each layer: the first with room left, in order; ``disk`` at last.

    As accelerate does it, which also keeps room for the largest layer on the device
    that offloaded layers are brought to, the first, and on the CPU.

    Args:
        layers: bytes by layer.
        room: bytes that weights may take, by number of the GPU and ``cpu``.
    """
    devices = sorted(room, key=lambda device: (device == CPU, device))
    left = dict(room)
    largest = max(layers.values(), default=0)
    for device in {*devices[:1], *({CPU} & room.keys())}:
        left[device] -= largest
    found: dict[str, int | str] = {}
    at = 0
    for layer, size in layers.items():
        while at < len(devices) and left[devices[at]] < size:
            at += 1
        if at == len(devices):
            found[layer] = DISK
            continue
        found[layer] = devices[at]
        left[devices[at]] -= size
    return found


def main_device(
    requested: str,
    max_memory: Mapping[str, int],
    hardware: Hardware,
    *,
    worker_index: int | None = None,
) -> DeviceChoice:
    """The device that ids go to: as :func:`choose_device`, heeding ``max_memory``.

    Raises:
        DeviceError: a device is not there.
        UsageError: ``requested`` names no device, or not one that ``max_memory`` does.
    """
    if not max_memory:
        return choose_device(requested, hardware, worker_index=worker_index)
    kind, _, index = requested.partition(":")
    gpus = sorted(int(device) for device in max_memory if device != CPU)
    if index or kind == "mps":
        raise UsageError(
            f"--ppl-device {requested} is one device, and --ppl-max-memory places "
            "layers on those that it names: leave one of the two out"
        )
    if kind == CPU and gpus:
        raise UsageError(
            f"--ppl-max-memory {gpus[0]}=... is for a GPU, and --ppl-device cpu uses "
            "none: leave one of the two out"
        )
    if kind not in ("auto", CPU) and not gpus:
        raise UsageError(
            f"--ppl-max-memory cpu=... places no layer on a GPU, which --ppl-device "
            f"{requested} asks for: add for example --ppl-max-memory 0=20GiB"
        )
    if not gpus:
        return DeviceChoice(
            CPU,
            f"--ppl-max-memory names the CPU only: unused are {seen(hardware)}"
            if hardware.count and kind == "auto"
            else None,
        )
    accelerator = choose_device(requested, hardware).device
    if accelerator in (CPU, "mps"):
        raise DeviceError(
            f"no GPU {gpus[0]} here for --ppl-max-memory (torch sees: "
            f"{seen(hardware)}). Way out: --ppl-max-memory cpu=SIZE"
        )
    absent = [gpu for gpu in gpus if gpu >= hardware.count]
    if absent:
        raise DeviceError(
            f"no GPU {absent[0]} here for --ppl-max-memory (torch sees: "
            f"{seen(hardware)}, numbered from 0)"
        )
    if worker_index is not None:
        raise UsageError(
            f"--ppl-max-memory {gpus[0]}=... and -n: an xdist worker has a GPU of its "
            "own, and all of them would take these; run without -n"
        )
    return DeviceChoice(f"{accelerator}:{gpus[0]}")


def choose_placement(
    spec: str,
    layers: Mapping[str, int],
    *,
    dtype: str,
    device: str,
    hardware: Hardware,
    free: Callable[[int], int | None],
    spread: bool = False,
    worker_index: int | None = None,
) -> Placement:
    """On one device if the weights fit there, else on several GPUs if they may be.

    Args:
        spec: names the checkpoint in errors.
        layers: bytes by layer, from :func:`layer_weights`; empty where nobody knows.
        dtype: that the model is loaded in.
        device: from :func:`choose_device`.
        hardware: what is there.
        free: bytes that are free on a GPU, by its number; None: nobody knows. Asked
            only of the GPUs that matter: a process takes memory of each it asks.
        spread: whether the user leaves the choice of GPUs to us.
        worker_index: number of the xdist worker, None outside one.

    Raises:
        DeviceError: the weights are larger than the memory that is free.
    """
    kind, _, index = device.partition(":")
    here = None if kind == CPU else free(int(index or 0))
    total = sum(layers.values())
    if here is None or fits(total, here):
        return Placement(device)
    known = {int(index or 0): here}
    if spread and worker_index is None and hardware.count > 1:
        for number in range(hardware.count):
            known[number] = known.get(number) or free(number) or 0
        room: dict[int | str, int] = {
            number: int(FILL * size) for number, size in sorted(known.items())
        }
        if DISK not in assign(layers, room).values():
            return Placement(f"{kind}:0", room, spread=True)
    if total <= here:  # tight: whether it runs depends on the windows
        return Placement(device)
    where = f"{device} has {size_text(here)} free"
    ways = ["a half-precision --ppl-dtype"] if _BYTES[dtype] > 2 else []
    if len(known) > 1:
        where = (
            f"the {hardware.count} GPUs have {size_text(sum(known.values()))} free, of "
            f"which {1 - FILL:.0%} is for activations"
        )
    elif worker_index is not None:
        where += ", the only GPU of this xdist worker"
        if hardware.count > 1:
            ways.append("no -n, so that it is placed on several")
    elif hardware.count > 1:
        ways.append("--ppl-device auto, which places it on several GPUs")
    if worker_index is None:
        sizes = [f"{number}={_gib(FILL * known[number])}" for number in sorted(known)]
        options = [f"--ppl-max-memory {size}" for size in (*sizes, "cpu=SIZE")]
        ways.append(f"CPU memory and disk, which are slow: {' '.join(options)}")
    raise DeviceError(
        f"{spec} takes {size_text(total)} of weights in {dtype}, and {where}. "
        f"Way out: free memory, {', or '.join(ways) or 'a smaller checkpoint'}"
    )


def check_max_memory(
    spec: str,
    layers: Mapping[str, int],
    max_memory: Mapping[str, int],
    *,
    device: str,
    dtype: str,
    free: Callable[[int], int | None],
    offloads: str = "",
) -> Placement:
    """What the user's sizes mean for a checkpoint.

    Args:
        spec: names the checkpoint in errors.
        layers: bytes by layer, from :func:`layer_weights`; empty where nobody knows.
        max_memory: bytes by device, as typed.
        device: from :func:`main_device`.
        dtype: that the model is loaded in.
        free: as for :func:`choose_placement`; no GPU gets more.
        offloads: why layers of this checkpoint can be neither in CPU memory beside
            GPUs nor on disk, in words behind its name; empty where they can.

    Raises:
        DeviceError: a device has no room for the largest layer.
        CheckpointError: layers would have to be where they cannot be.
    """
    room: dict[int | str, int] = {}
    for name, size in max_memory.items():
        if name == CPU:
            room[CPU] = size
        else:
            here = free(int(name))
            room[int(name)] = size if here is None else min(size, here)
    largest = max(layers, key=lambda layer: layers[layer], default="")
    for place, size in room.items():
        if largest and size < layers[largest]:
            raise DeviceError(
                f"--ppl-max-memory {place}=... leaves {size_text(size)} for {spec}, "
                f"whose largest layer, {largest}, takes {size_text(layers[largest])} "
                f"in {dtype}: give at least that, or leave {place} out"
            )
    if offloads:
        # All in one place needs no room for layers that are brought there.
        total = sum(layers.values())
        if len(room) == 1 and total <= next(iter(room.values())):
            return Placement(device)
        if CPU in room or DISK in assign(layers, room).values():
            raise CheckpointError(
                f"{spec} {offloads}: with --ppl-max-memory it can be on GPUs only, "
                f"and takes {size_text(total)} in {dtype}; give GPUs room for that, or "
                "a checkpoint in safetensors files that needs no such step"
            )
    return Placement(device, room, spread=bool(offloads))


def placed(device_map: Mapping[str, object]) -> str:
    """``GPU 0: 14 layers, model.embed_tokens; disk: 2 layers, model.norm, lm_head``.

    Args:
        device_map: the device by module, as accelerate leaves it on a model.
    """
    found: dict[str, tuple[int, list[str]]] = {}
    for module, device in device_map.items():
        name = f"GPU {device}" if isinstance(device, int) else str(device)
        layers, others = found.setdefault(name, (0, []))
        if layer_of(f"{module}.x") is not None:
            layers += 1
        else:
            others.append(module or "all modules")
        found[name] = layers, others
    return "; ".join(
        f"{device}: {', '.join([*([_layers(layers)] if layers else []), *others])}"
        for device, (layers, others) in found.items()
    )


def _layers(count: int) -> str:
    return f"{count} layer{'' if count == 1 else 's'}"


def size_text(size: float) -> str:
    """``13.5 GiB``."""
    for unit, name in _UNITS:
        if size >= unit:
            return f"{size / unit:.3g} {name}"
    return f"{size:.0f} bytes"


def _gib(size: float) -> str:
    return f"{max(1, math.floor(size / 2**30))}GiB"
