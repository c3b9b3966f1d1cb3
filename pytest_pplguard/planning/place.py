"""Where a model fits, by the rules that loading goes by. Pure.

Which layers go where is decided by :mod:`..checkpoints.placement`, for a plan as for a
model that is loaded. What is added here is what a device needs while it scores.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Literal

from msgspec import Struct

from ..checkpoints.placement import CPU, DISK, FILL, assign, fits
from .shape import Memory, Shape

_MANY = 1024
"""GPUs; who has more will not ask how many are needed."""


class Pool(Struct, frozen=True):
    """Devices that are free: bytes of each GPU of one machine, of ``machines`` alike.

    ``cpu`` is what a machine's own memory has, None where nobody said. ``given``:
    somebody said so, and it is not this machine. ``name`` is what the GPUs are called.
    """

    gpus: tuple[int, ...] = ()
    machines: int = 1
    cpu: int | None = None
    given: bool = False
    name: str = ""

    @property
    def count(self) -> int:
        """GPUs in all."""
        return len(self.gpus) * self.machines


Verdict = Literal[
    "one GPU", "several GPUs", "CPU", "offloaded", "several machines", "nowhere"
]


class Place(Struct, frozen=True):
    """Where a model fits.

    ``gpus`` are those of one replica, ``layers`` the decoder layers on each. ``room``
    is what weights may take of each device: what ``--ppl-max-memory`` is to say where
    loading would not do it by itself (``typed``). ``offloaded`` are bytes of weights in
    the CPU's memory. ``short`` bytes are missing where it fits nowhere, ``left`` stay
    free on the fullest device. ``least`` GPUs like the first would do, 0 where none is
    large enough for a layer.
    """

    verdict: Verdict
    gpus: int = 0
    layers: tuple[int, ...] = ()
    room: dict[str, int] = {}
    typed: bool = False
    offloaded: int = 0
    short: int = 0
    left: int = 0
    least: int = 0

    @property
    def fits(self) -> bool:
        """Whether it can be measured there."""
        return self.verdict != "nowhere"


def place(
    shape: Shape, memory: Memory, pool: Pool, itemsize: int, *, most: int | None = None
) -> Place:
    """Where a model fits: on one GPU, split over those of a machine, or not.

    Args:
        shape: of the model.
        memory: what it takes on one device.
        pool: what there is; without GPUs, the CPU's memory.
        itemsize: bytes of a weight.
        most: GPUs that a replica may have, None for all of a machine.
    """
    if not pool.gpus:
        left = (pool.cpu or 0) - memory.total
        if left >= 0:
            return Place("CPU", left=left)
        return Place("nowhere", short=-left)
    parts = modules(shape, itemsize)
    gpus = pool.gpus[:most]
    rooms = [_room(size, memory) for size in gpus]
    least = _least(parts, rooms[0])
    alone = len(shape.layers)
    left = gpus[0] - memory.total
    if left >= 0 and (fits(memory.weights, gpus[0]) or len(gpus) == 1):
        return Place("one GPU", 1, (alone,), left=left, least=1)
    if len(rooms) > 1:
        found = _split(parts, rooms)
        if found is not None:
            return _several(parts, found, gpus, rooms, memory, least)
    if left >= 0:  # its weights leave less than is usual, and there is no other way
        return Place("one GPU", 1, (alone,), left=left, least=least)
    return _elsewhere(parts, rooms, memory, pool, least, most)


def modules(shape: Shape, itemsize: int) -> dict[str, int]:
    """Bytes of what is not divided, by name, in the order in which a model runs."""
    layers = {
        f"model.layers.{index}": layer.parameters * itemsize
        for index, layer in enumerate(shape.layers)
    }
    last = (shape.head + shape.others) * itemsize
    return {"model.embed_tokens": shape.embedding * itemsize, **layers, "head": last}


def _room(size: int, memory: Memory) -> int:
    """What weights may take of a device; any of them may have the largest batch."""
    return max(0, min(int(FILL * size), size - memory.running))


def _split(
    parts: Mapping[str, int], gpus: Sequence[int], cpu: int | None = None
) -> dict[str, int | str] | None:
    """The device of each part, None where that would be the disk."""
    rooms: dict[int | str, int] = dict(enumerate(gpus))
    if cpu is not None:
        rooms[CPU] = cpu
    found = assign(parts, rooms)
    return None if DISK in found.values() else found


def _several(
    parts: Mapping[str, int],
    found: Mapping[str, int | str],
    gpus: tuple[int, ...],
    rooms: list[int],
    memory: Memory,
    least: int,
) -> Place:
    taken: Counter[int | str] = Counter()
    for part, device in found.items():
        taken[device] += parts[part]
    count = 1 + max(int(device) for device in taken)
    left = min(
        gpus[index] - taken[index] - memory.running
        for index in range(count)
        if taken[index]
    )
    by_itself = not fits(memory.weights, gpus[0]) and rooms == [
        int(FILL * size) for size in gpus
    ]
    return Place(
        "several GPUs",
        count,
        _layers(found, count),
        room={str(index): room for index, room in enumerate(rooms[:count])},
        typed=not by_itself,
        left=left,
        least=least,
    )


def _elsewhere(
    parts: Mapping[str, int],
    rooms: list[int],
    memory: Memory,
    pool: Pool,
    least: int,
    most: int | None,
) -> Place:
    """The GPUs of one replica are not enough: the CPU's memory, or other machines."""
    named = {str(index): room for index, room in enumerate(rooms)}
    if pool.cpu is not None:
        cpu = int(FILL * pool.cpu)
        found = _split(parts, rooms, cpu)
        if found is not None:
            offloaded = sum(parts[part] for part, on in found.items() if on == CPU)
            return Place(
                "offloaded",
                len(rooms),
                _layers(found, len(rooms)),
                room=named | {CPU: cpu},
                typed=True,
                offloaded=offloaded,
                least=least,
            )
    if pool.machines > 1 and most is None:
        everything = rooms * pool.machines
        if _split(parts, everything) is not None:
            layers = _evenly(sum(".layers." in part for part in parts), len(everything))
            return Place("several machines", len(everything), layers, least=least)
    short = max(1, memory.weights - sum(rooms))
    return Place("nowhere", len(rooms), room=named, short=short, least=least)


def _layers(found: Mapping[str, int | str], count: int) -> tuple[int, ...]:
    """Decoder layers on each of the first GPUs."""
    on = Counter(device for part, device in found.items() if ".layers." in part)
    return tuple(on[index] for index in range(count))


def _least(parts: Mapping[str, int], room: int) -> int:
    found = _split(parts, [room] * _MANY)
    return 0 if found is None else 1 + max(int(device) for device in found.values())


def _evenly(total: int, count: int) -> tuple[int, ...]:
    """``total`` in ``count`` whole numbers, the larger ones first."""
    return tuple(total // count + (i < total % count) for i in range(count))
