"""Decides on which device and in which dtype a model runs."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from msgspec import Struct

from ..errors import DeviceError, UsageError
from ..startup import importing
from ..values import near_matches

if TYPE_CHECKING:
    import torch

DTYPES = ("float32", "float16", "bfloat16", "float64")
_ALIASES = {
    "fp32": "float32",
    "float": "float32",
    "fp16": "float16",
    "half": "float16",
    "bf16": "bfloat16",
    "fp64": "float64",
    "double": "float64",
}
_DEVICE = re.compile(r"(?P<kind>[a-z]+)(?::(?P<index>[0-9]+))?", re.ASCII)
_KINDS = ("cuda", "mps", "xpu", "npu", "hpu", "mlu", "musa")
_WAY_OUT = "Way out: --ppl-device auto or cpu"


_NO_MEMORY = (
    "can't allocate memory",
    "DefaultCPUAllocator: not enough memory",
    "CUDA error: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
    "MPS backend out of memory",
)


class Hardware(Struct, frozen=True):
    """The accelerators that torch sees: their kind, how many, what they are called."""

    accelerator: str | None = None
    count: int = 0
    names: tuple[str, ...] = ()


class DeviceChoice(Struct, frozen=True):
    """A torch device, and a line for the user where the choice may surprise."""

    device: str
    notice: str | None = None


class DtypeChoice(Struct, frozen=True):
    """A torch dtype's name, and a line for the user where the choice may surprise."""

    dtype: str
    notice: str | None = None


def probe() -> Hardware:
    """Ask torch which accelerators this machine has."""
    with importing():
        import torch

    if not torch.accelerator.is_available():
        return Hardware()
    accelerator = torch.accelerator.current_accelerator()
    if accelerator is None:
        return Hardware()
    count = torch.accelerator.device_count()
    names = tuple(_name(accelerator, index) for index in range(count))
    return Hardware(accelerator.type, count, names)


def _name(accelerator: torch.device, index: int) -> str:
    import torch

    module = torch.get_device_module(accelerator)
    ask = getattr(module, "get_device_name", None)
    return str(ask(index)) if ask else accelerator.type.upper()


def free_memory(hardware: Hardware, index: int) -> int | None:
    """Bytes that a process can take of an accelerator; None where torch cannot say.

    Asking takes some of them: torch starts using the device.
    """
    import torch

    if hardware.accelerator is None:
        return None
    module: Any = torch.get_device_module(hardware.accelerator)
    if not hasattr(module, "mem_get_info"):
        return None
    free: int = module.mem_get_info(index)[0]
    # What the allocator keeps of models that are gone is there for the next one.
    return free + int(module.memory_reserved(index) - module.memory_allocated(index))


def choose_device(
    requested: str, hardware: Hardware, *, worker_index: int | None = None
) -> DeviceChoice:
    """Pick the device for ``auto``, ``cpu``, ``cuda``, ``cuda:1``, ``mps``, ...

    Args:
        requested: what the user asked for. Without an index, xdist workers spread over
            the accelerators.
        hardware: what is there.
        worker_index: number of the xdist worker, None outside one.

    Raises:
        DeviceError: the device is not there.
        UsageError: ``requested`` names no device.
    """
    kind, index = _parse(requested)
    if kind == "cpu":
        return DeviceChoice("cpu")
    if kind == "auto":
        if hardware.accelerator is None or hardware.count == 0:
            return DeviceChoice("cpu", "no accelerator found: running on the CPU")
        kind = hardware.accelerator
    if kind != hardware.accelerator or hardware.count == 0:
        what = "CUDA GPU" if kind == "cuda" else f"{kind} device"
        raise DeviceError(
            f"no {what} here for --ppl-device {requested} "
            f"(torch sees: {seen(hardware)}). {_WAY_OUT}"
        )
    if index is not None and index >= hardware.count:
        raise DeviceError(
            f"no {kind}:{index} here (torch sees: {seen(hardware)}). {_WAY_OUT}"
        )
    if index is None and worker_index is not None:
        index = worker_index % hardware.count
    return DeviceChoice(kind if index is None else f"{kind}:{index}")


def _parse(requested: str) -> tuple[str, int | None]:
    match = _DEVICE.fullmatch(requested)
    known = ("auto", "cpu", *_KINDS)
    if match is None or match["kind"] not in known:
        raise UsageError(
            f"--ppl-device {requested!r} is no device{near_matches(requested, known)}: "
            f"expected auto, cpu, cuda, cuda:1, or one of {', '.join(_KINDS[1:])}"
        )
    if match["index"] and match["kind"] in ("auto", "cpu"):
        raise UsageError(
            f"--ppl-device {requested!r} is no device: {match['kind']} takes no index"
        )
    return match["kind"], int(match["index"]) if match["index"] else None


def seen(hardware: Hardware) -> str:
    """``2 GPUs: NVIDIA H100``, for messages."""
    if hardware.accelerator is None or hardware.count == 0:
        return "nothing"
    noun = {"cuda": "GPU"}.get(hardware.accelerator, f"{hardware.accelerator} device")
    plural = "" if hardware.count == 1 else "s"
    names = ", ".join(dict.fromkeys(hardware.names))
    return f"{hardware.count} {noun}{plural}" + (f": {names}" if names else "")


def choose_dtype(
    requested: str, device: str, checkpoint_dtype: str | None
) -> DtypeChoice:
    """Pick the dtype that a model is loaded in.

    ``auto`` is float32 on a CPU: exact for weights saved in half precision, and many
    CPUs multiply bfloat16 matrices 200 times slower. On an accelerator it is the
    checkpoint's own dtype.

    Args:
        requested: ``auto`` or a dtype; fp32, fp16, bf16 and fp64 are understood.
        device: the chosen device.
        checkpoint_dtype: dtype of the saved weights, None where there is none.

    Raises:
        UsageError: ``requested`` is no dtype that a model can run in.
    """
    on_cpu = device.partition(":")[0] == "cpu"
    if requested == "auto":
        if on_cpu:
            return DtypeChoice("float32")
        if checkpoint_dtype in DTYPES:
            return DtypeChoice(checkpoint_dtype)
        return DtypeChoice(
            "float32",
            f"the checkpoint's dtype is {checkpoint_dtype or 'not known'}: "
            "running in float32",
        )
    dtype = _ALIASES.get(requested, requested.removeprefix("torch."))
    if dtype not in DTYPES:
        known = ("auto", *DTYPES, *_ALIASES)
        raise UsageError(
            f"--ppl-dtype {requested!r} is no dtype{near_matches(requested, known)}: "
            f"expected auto, {', '.join(DTYPES)}"
        )
    if on_cpu and dtype in ("float16", "bfloat16"):
        return DtypeChoice(
            dtype,
            f"{dtype} on a CPU can be 200 times slower than float32, "
            "which is exact for weights saved in half precision",
        )
    return DtypeChoice(dtype)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a device, or the machine, had no memory left."""
    import torch

    # torch's CPU allocator has no exception of its own, nor have libraries and MPS.
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or (
        isinstance(error, RuntimeError)
        and any(words in str(error) for words in _NO_MEMORY)
    )
