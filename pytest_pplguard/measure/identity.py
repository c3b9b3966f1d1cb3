"""All that could change a measured number, known before a model is loaded.

Two runs whose identities are equal measure the same number. What cannot be known
without loading the model (which attention kernel transformers chooses, say) follows
from what is in here: files, what was asked for, and versions.
"""

from __future__ import annotations

import functools
import hashlib
import os
import platform
import re
import shutil
import sys
from importlib.metadata import PackageNotFoundError, entry_points, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

from ..cache import TORCH, Cache
from ..checkpoints import (
    Hardware,
    Located,
    choose_dtype,
    main_device,
    probe,
    saved_dtype,
)
from ..corpora import Corpus, rows_digest
from ..options import Options
from ..values import Key, Scalar
from .environment import device_name, switches

PACKAGES = (
    "pytest-pplguard",
    "torch",
    "transformers",
    "tokenizers",
    "lm_eval",
    "accelerate",
    "safetensors",
    "numpy",
    "msgspec",
    "sentencepiece",
    "tiktoken",
    "protobuf",
    "gguf",
    "peft",
    "compressed-tensors",
    "bitsandbytes",
    "torchao",
    "optimum",
    "optimum-quanto",
    "gptqmodel",
    "auto-gptq",
    "autoawq",
    "hqq",
    "eetq",
    "fbgemm-gpu",
    "kernels",
    "triton",
    "flash-attn",
    "flash_attn_3",
    "flash-linear-attention",
    "xformers",
    "causal-conv1d",
    "mamba-ssm",
    "liger_kernel",
    "deepspeed",
    "apex",
    "intel-extension-for-pytorch",
    "mkl",
    "nvidia-cublas",
    "nvidia-cublas-cu12",
    "nvidia-cudnn-cu12",
    "nvidia-cudnn-cu13",
    "nvidia-cuda-nvrtc-cu12",
    "nvidia-cuda-runtime-cu12",
)
"""Whatever of these is installed, by its version."""

VARIABLES = re.compile(
    r"(ATEN|BLIS|CUBLAS|CUBLASLT|CUDNN|DNNL|FLASH_ATTENTION|GOMP|GOTO|HIPBLASLT|KMP|MIOPEN"
    r"|MKL|NVIDIA|OMP|ONEDNN|OPENBLAS|PYTORCH|ROCBLAS|TORCH|TORCHDYNAMO|TORCHINDUCTOR"
    r"|TRITON|VECLIB|XFORMERS|XLA)_\w+"
    r"|HSA_OVERRIDE_GFX_VERSION|LD_LIBRARY_PATH|LD_PRELOAD|DYLD_\w+"
    r"|DISABLE_KERNEL_MAPPING|USE_HUB_KERNELS|GLIBC_TUNABLES|CUDA_LAUNCH_BLOCKING"
    r"|CUDA_FORCE_PTX_JIT|CUDA_DISABLE_PTX_JIT"
)
"""Environment variables that choose kernels, or how they work."""

_NO_VARIABLES = re.compile(
    r"(TORCHINDUCTOR|TRITON)_(CACHE_DIR|HOME|DUMP_DIR)|TORCH_(HOME|LOGS|TRACE|LOGS_OUT)"
    r"|NVIDIA_(VISIBLE_DEVICES|DRIVER_CAPABILITIES|REQUIRE_\w+|PRODUCT_NAME)"
    r"|KMP_(INIT_AT_FORK|DUPLICATE_LIB_OK)"
)
"""Of these the ones that only say where files go, or which devices are seen.

The device is known by its name.
"""

_DRIVERS = (
    "/sys/module/nvidia/version",
    "/proc/driver/nvidia/version",
    "/sys/module/amdgpu/version",
    "/sys/module/amdgpu/srcversion",
    "/sys/module/xe/srcversion",
    "/sys/module/i915/srcversion",
)
_NAME = "torch"


class Place(Struct, frozen=True):
    """Where a checkpoint will run, and in which dtype.

    ``notices`` say where that may surprise.
    """

    device: str
    dtype: str
    notices: tuple[str, ...] = ()


class _Torch(Struct, forbid_unknown_fields=True):
    """What torch says of itself in a process that has changed nothing about it."""

    config: str
    switches: dict[str, Scalar]


def identity(
    located: Located,
    key: Key,
    corpus: Corpus,
    options: Options,
    *,
    files: dict[str, Any],
    place: Place,
    allow_keys: tuple[str, ...],
    threads: int | None,
    cache: Cache,
) -> dict[str, Any]:
    """JSON data; equal for two runs if nothing differs that could move the number.

    Args:
        located: the checkpoint.
        key: what is measured, by one of this package's own methods.
        corpus: the text.
        options: how it is measured.
        files: digests of the checkpoint's files.
        place: from :func:`place_of`.
        allow_keys: tensors that the model need not have.
        threads: that torch will be told to use; None: it is left alone.
        cache: keeps what torch says of itself, which takes seconds to hear.
    """
    kind = place.device.partition(":")[0]
    facts = _torch_facts(kind, cache)
    kernels = dict(facts.switches)
    if threads is not None and "threads" in kernels:
        kernels["threads"] = threads
    return {
        "checkpoint": files,
        "is gguf": located.gguf is not None,
        "allow keys": sorted(allow_keys),
        "key": str(key),
        "corpus": {
            "name": corpus.name,
            "rows": corpus.digest,
            "pages": rows_digest(corpus.pages),
            "recipe": msgspec.to_builtins(corpus.recipe),
            "official": corpus.official,
        },
        "dtype": place.dtype,
        "device": kind,
        "device name": device_name(place.device),
        "drivers": {} if kind == "cpu" else _drivers(),
        "max memory": options.max_memory,
        "attention": options.attention,
        "batch size": options.batch_size,
        "compile": _compilers() if options.compile else False,
        "torch": facts.config,
        "kernels": kernels,
        "variables": variables(),
        "versions": versions(),
        "code": own_code(),
        "machine": _machine(),
    }


def place_of(located: Located, options: Options, *, worker: int | None) -> Place:
    """Device and dtype that the checkpoint will be loaded to and in.

    Raises:
        DeviceError: the device is not there.
        CheckpointError: its files cannot be read.
    """
    is_cpu = options.device == "cpu" or (
        options.device == "auto" and _has_cpu_only(_torch_folder())
    )
    hardware = Hardware() if is_cpu else probe()
    device = main_device(
        options.device, options.max_memory, hardware, worker_index=worker
    )
    dtype = choose_dtype(options.dtype, device.device, saved_dtype(located))
    # That a dtype is slow is of no use where it has been measured already.
    surprising = (device.notice, dtype.notice if options.dtype == "auto" else None)
    return Place(device.device, dtype.dtype, tuple(filter(None, surprising)))


def variables() -> dict[str, str]:
    """The environment variables that count, as they are now."""
    return {
        name: value
        for name, value in os.environ.items()
        if VARIABLES.fullmatch(name) and not _NO_VARIABLES.fullmatch(name)
    }


@functools.cache
def versions() -> dict[str, str]:
    """Of all packages that may compute something, and of Python."""
    found = {"python": f"{platform.python_implementation()} {sys.version}"}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def now(device: str) -> dict[str, Scalar]:
    """Torch's switches as they are, but for the threads, which loading may set."""
    return {k: v for k, v in switches(device).items() if k != "threads"}


# ------------------------------------------------------------------------------- torch


def _torch_facts(kind: str, cache: Cache) -> _Torch:
    """What torch says of itself now.

    Where nobody has imported it yet, nobody has changed it: then it says what it said
    to a process before, on this machine and with these variables.
    """
    if _NAME in sys.modules:
        return _ask_torch(kind)
    about = {
        "device": kind,
        "build": _build(_torch_folder()),
        "variables": variables(),
        "machine": _machine(),
        "versions": versions(),
        "code": own_code(),
    }
    label = "what torch says of itself"
    known = cache.get(
        TORCH,
        about,
        lambda content, _: msgspec.json.decode(content, type=_Torch),
        label=label,
    )
    if known is None:
        known = _ask_torch(kind)
        cache.put(TORCH, about, known, label=label)
    return known


def _ask_torch(kind: str) -> _Torch:
    import torch

    shown = torch.__config__.show() + torch.__config__.parallel_info()
    lines = [line for line in shown.splitlines() if "hread" not in line]
    digest = hashlib.sha256("\n".join(lines).encode()).hexdigest()
    return _Torch(
        f"{torch.__version__} {torch.version.git_version} {digest}", switches(kind)
    )


def _torch_folder() -> Path | None:
    spec = find_spec(_NAME)
    return Path(spec.origin).parent if spec is not None and spec.origin else None


def _has_cpu_only(folder: Path | None) -> bool:
    """Whether torch was built for CPUs alone, as its own file says.

    On a Mac it never is, and others may bring a backend.
    """
    if (
        folder is None
        or sys.platform == "darwin"
        or entry_points(group="torch.backends")
    ):
        return False
    try:
        text = (folder / "version.py").read_text(encoding="utf-8")
    except OSError:
        return False
    built_for = dict(
        re.findall(r"^(cuda|hip|rocm|xpu)\b[^=\n]*=\s*(.+?)\s*$", text, re.M)
    )
    return {"cuda", "hip", "xpu"} <= built_for.keys() and set(built_for.values()) == {
        "None"
    }


def _build(folder: Path | None) -> dict[str, Any]:
    """What changes where torch is installed anew."""
    if folder is None:
        return {}
    found: dict[str, Any] = {"folder": str(folder)}
    for file in sorted({folder / "version.py", *(folder / "lib").glob("*torch*")}):
        if file.is_file():
            state = file.stat()
            found[file.name] = [state.st_size, state.st_mtime_ns]
    return found


# ----------------------------------------------------------------------------- machine


@functools.cache
def _machine() -> dict[str, Any]:
    """The CPU: libraries choose their kernels by it."""
    found: dict[str, Any] = {
        "system": platform.system(),
        "machine": platform.machine(),
        "processor": platform.processor(),
        "libc": " ".join(platform.libc_ver()),
        "cores": os.cpu_count(),
    }
    affinity = getattr(os, "sched_getaffinity", None)
    if affinity is not None:
        found["usable cores"] = len(affinity(0))
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return found
    # Of the first core: others differ in their number and clock.
    first = text.partition("\n\n")[0]
    for line in first.splitlines():
        name, _, value = (part.strip() for part in line.partition(":"))
        if name in ("model name", "vendor_id", "cpu family", "model", "stepping"):
            found[name] = value
        elif name in ("flags", "Features", "CPU part", "CPU implementer"):
            found[name] = hashlib.sha256(value.encode()).hexdigest()[:32]
    return found


def _compilers() -> dict[str, list[Any]]:
    """Those that torch.compile may call, by what changes when they are replaced."""
    found = {}
    for name in filter(None, (os.environ.get("CXX"), "g++", "clang++", "gcc", "clang")):
        path = shutil.which(name)
        if path is not None:
            real = Path(path).resolve()
            state = real.stat()
            found[name] = [str(real), state.st_size, state.st_mtime_ns]
    return found


def _drivers() -> dict[str, str]:
    """What the system says of its drivers for accelerators."""
    found = {}
    for name in _DRIVERS:
        try:
            found[name] = Path(name).read_text(encoding="utf-8", errors="replace")
        except OSError:
            continue
    return found


@functools.cache
def own_code() -> str:
    """This package's own files: a version may be worked on."""
    sha = hashlib.sha256()
    folder = Path(__file__).parents[1]
    for file in sorted(folder.rglob("*.py")):
        sha.update(f"{file.relative_to(folder).as_posix()}\0".encode())
        sha.update(file.read_bytes())
    return f"sha256:{sha.hexdigest()}"
