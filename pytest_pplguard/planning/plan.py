"""What a measurement takes and where it can be done, as one value."""

from __future__ import annotations

import math
from typing import Literal

from msgspec import Struct

from .place import Place, Pool
from .shape import Memory, Shape
from .work import Count


class KeyWork(Struct, frozen=True):
    """What one key takes.

    ``counted`` says how its windows are known: ``exact``, from a baseline's record
    (``recorded``), or ``estimated``.
    """

    key: str
    counted: Literal["exact", "recorded", "estimated"]
    count: Count
    flops: int
    seconds: float | None = None


class Timing(Struct, frozen=True):
    """FLOPs a second of one replica, and how they were found.

    ``window``: all of the model's shape read windows; ``layers``: so many of its
    ``layers`` did, and windows of ``tokens``; ``products``: only its matrix products
    were timed; ``given``: by the user. ``took`` seconds it took.
    """

    how: Literal["window", "layers", "products", "given"]
    rate: float
    tokens: int = 0
    layers: int = 0
    took: float = 0.0


class Disk(Struct, frozen=True):
    """Bytes of the weights' files.

    ``known`` by the ``files``, an ``index`` of them, or the parameters (``estimated``).
    """

    size: int
    known: Literal["files", "index", "estimated"]


class Plan(Struct, frozen=True):
    """What measuring a checkpoint takes, and where it can be done."""

    model: str
    shape: Shape
    disk: Disk
    device: str
    dtype: str
    window: int
    batch: int
    memory: Memory
    pool: Pool
    place: Place
    keys: tuple[KeyWork, ...]
    replicas: int = 1
    timing: Timing | None = None
    notices: tuple[str, ...] = ()

    @property
    def flops(self) -> int:
        """Of all keys."""
        return sum(work.flops for work in self.keys)

    @property
    def seconds(self) -> float | None:
        """Of all keys, one after the other; None where no time is claimed."""
        known = [work.seconds for work in self.keys if work.seconds is not None]
        return math.fsum(known) if known and len(known) == len(self.keys) else None

    @property
    def possible_replicas(self) -> int:
        """How many fit the GPUs of all machines at once."""
        if self.place.verdict not in ("one GPU", "several GPUs"):
            return 1
        return len(self.pool.gpus) // self.place.gpus * self.pool.machines
