"""What scoring takes of a device's memory, and what is left."""

from __future__ import annotations

import ctypes
import gc
import os
import platform
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from ..errors import DeviceError

# Of glibc's malloc.h, and sizes in bytes.
_M_MMAP_THRESHOLD, _MAPPED_FROM, _ADAPTED_TO = -3, 2**20, 2**25

_ASKED = re.compile(r"[Tt]ried to allocate ([\d.]+) (bytes|[KMGT]iB)")
_FULL = re.compile(r"\bGPU (\d+) has a total capacity")
_UNITS = {"bytes": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40}

_SAMPLED_EVERY = 0.01

_CGROUPS = (
    ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
    (
        "/sys/fs/cgroup/memory/memory.limit_in_bytes",
        "/sys/fs/cgroup/memory/memory.usage_in_bytes",
    ),
)
"""What a container may have and has, by version 2 and 1."""


class OutOfMemory(DeviceError):
    """Windows that were read together took more memory than there is."""


def shortage(error: BaseException, device: torch.device) -> str:
    """``6.00 GiB more were needed, 1.20 of 79.20 GiB are free``, as far as is known."""
    asked = _ASKED.search(str(error))
    parts = []
    if asked:
        parts.append(f"{_gib(float(asked[1]) * _UNITS[asked[2]])} GiB more were needed")
    left = _left(device)
    if left is not None:
        parts.append(f"{_gib(left[0])} of {_gib(left[1])} GiB are free")
    return ", ".join(parts)


def full_device(error: BaseException, device: torch.device) -> torch.device:
    """The one that had no memory left: ``device`` where its error names none."""
    named = _FULL.search(str(error))
    if named is None or device.type == "cpu":
        return device
    return torch.device(device.type, int(named[1]))


def _gib(size: float) -> str:
    return f"{size / 2**30:.2f}"


def _left(device: torch.device) -> tuple[int, int] | None:
    """Bytes that are free on a device, and all that it has."""
    if device.type == "cpu":
        import psutil

        memory = psutil.virtual_memory()
        return available(), int(memory.total)
    ask = getattr(torch.get_device_module(device), "mem_get_info", None)
    return None if ask is None else ask(device)


def give_back(device: torch.device) -> None:
    """Have the allocator return what nobody uses.

    An error's frames hold the tensors of the batch that failed, in a cycle.
    """
    gc.collect()
    if device.type != "cpu":
        torch.accelerator.empty_cache()


def available() -> int:
    """Bytes that this machine, or this container, can give without swapping."""
    import psutil

    free = int(psutil.virtual_memory().available)
    for limit, used in _CGROUPS:
        try:
            most, now = Path(limit).read_text(), Path(used).read_text()
        except OSError:
            continue
        if most.strip().isdecimal():
            free = min(free, max(0, int(most) - int(now)))
    return free


def has_room(taken: int) -> bool:
    """Whether twice of what a batch has taken fits into half of what is available.

    Where a CPU's memory ends, the system ends the process, and there is no error to
    learn from.
    """
    return 2 * taken <= available() // 2


@contextmanager
def watching_peak(device: torch.device) -> Iterator[list[int]]:
    """Bytes by which this process grew inside the block, at most: one, when it is left.

    Only of a CPU's memory: an accelerator says itself when there is no more.
    """
    found: list[int] = []
    if device.type != "cpu":
        yield found
        return
    import psutil

    process, done = psutil.Process(), threading.Event()
    before = most = int(process.memory_info().rss)

    def sample() -> None:
        nonlocal most
        while not done.wait(_SAMPLED_EVERY):
            most = max(most, int(process.memory_info().rss))

    thread = threading.Thread(target=sample, daemon=True)
    thread.start()
    try:
        yield found
    finally:
        done.set()
        thread.join()
    found.append(most - before)


@contextmanager
def compact_heap(device: torch.device) -> Iterator[None]:
    """Have glibc map large activations one by one, and unmap them when freed.

    Once a program has freed a large block, glibc takes blocks of up to 32 MiB from its
    heap, where activations of different sizes leave holes: about twice the memory that
    a model's layers hold at a time. Not where the user has tuned malloc.
    """
    tuned = {"MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES"} & os.environ.keys()
    if device.type != "cpu" or tuned or platform.libc_ver()[0] != "glibc":
        yield
        return
    mallopt = ctypes.CDLL(None).mallopt
    mallopt(_M_MMAP_THRESHOLD, _MAPPED_FROM)
    try:
        yield
    finally:
        # What glibc itself adapts to in a program that frees large blocks.
        mallopt(_M_MMAP_THRESHOLD, _ADAPTED_TO)
