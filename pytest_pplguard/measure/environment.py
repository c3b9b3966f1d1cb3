"""What may move a number a little: recorded with every measurement."""

from __future__ import annotations

import platform
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from ..values import Key, Scalar
from .facts import Facts

if TYPE_CHECKING:  # importing it imports torch
    from ..scoring import BatchSize

_PACKAGES = ("torch", "transformers", "tokenizers")
_SWITCHES = (
    "fp32_precision",
    "cuda.flash_sdp_enabled",
    "cuda.mem_efficient_sdp_enabled",
    "cuda.math_sdp_enabled",
    "cuda.cudnn_sdp_enabled",
    "cuda.matmul.fp32_precision",
    "cuda.matmul.allow_fp16_reduced_precision_reduction",
    "cuda.matmul.allow_bf16_reduced_precision_reduction",
    "cuda.matmul.allow_fp16_accumulation",
    "cuda.fp16_bf16_reduction_math_sdp_allowed",
    "cuda.preferred_blas_library",
    "cudnn.enabled",
    "cudnn.benchmark",
    "cudnn.deterministic",
    "cudnn.fp32_precision",
    "mkldnn.deterministic",
    "mkldnn.enabled",
    "mkldnn.fp32_precision",
    "mkldnn.matmul.fp32_precision",
)
"""Of ``torch.backends``; some are newer than the oldest torch."""


def environment(
    facts: Facts,
    key: Key,
    *,
    batch_size: BatchSize,
    compile: bool = False,
    threads: int | None = None,
) -> dict[str, Scalar]:
    """Versions, device, dtype, attention kernel and batch size of a measurement.

    And what the user has chosen beyond what is usual: ``threads`` of a CPU, and
    ``compile`` where the model runs through torch.compile.
    """
    chosen: dict[str, Scalar] = {}
    if threads is not None and facts.device == "cpu":
        chosen["threads"] = threads
    if compile:
        chosen["compile"] = True
    return {
        "dtype": facts.dtype,
        "device": facts.device,
        "device_name": facts.device_name,
        "attention": facts.attention,
        "batch_size": batch_size,
        **chosen,
        **facts.more,
        **facts.versions,
        # lm-eval cuts and counts in this process, wherever the model is.
        **({"lm_eval": version("lm_eval")} if key.method == "lm-eval" else {}),
    }


def scored_on(
    environment: dict[str, Scalar], device_name: str | None
) -> dict[str, Scalar]:
    """An environment as it was in the end; ``device_name`` is of what has scored.

    None where that was known before.
    """
    return (
        environment
        if device_name is None
        else {
            **environment,
            "device_name": device_name,
        }
    )


def python_versions() -> dict[str, Scalar]:
    """Of this package, Python and what runs models, in this process."""
    return {
        "pytest_pplguard": version("pytest-pplguard"),
        "python": platform.python_version(),
        **{name: version(name) for name in _PACKAGES},
    }


@contextmanager
def using_threads(count: int | None) -> Iterator[None]:
    """Let torch compute with ``count`` threads, and as many as before afterwards."""
    if count is None:
        yield
        return
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def switches(device: str) -> dict[str, Scalar]:
    """What decides the last bits beyond :func:`environment`: threads, torch's switches.

    As they are now for what runs on ``device``. Not recorded: but for autocast they
    move a perplexity by some parts in ten million.
    """
    import torch

    device = device.partition(":")[0]
    autocast = torch.is_autocast_enabled(device)
    decides: dict[str, Scalar] = {
        "autocast": str(torch.get_autocast_dtype(device)) if autocast else None,
        "default_dtype": str(torch.get_default_dtype()),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "matmul_precision": _matmul_precision(),
        **{name: str(_switch(name)) for name in _SWITCHES},
    }
    if device == "cpu":
        decides["threads"] = torch.get_num_threads()
        decides["capability"] = torch.backends.cpu.get_cpu_capability()
        # Torch can set this and not tell it. Of 1e-39 half is a number, or 0.
        smallest = torch.full((), 1e-39, dtype=torch.float32, device="cpu")
        decides["flush_denormal"] = (smallest * 0.5).item() == 0
    return decides


def _matmul_precision() -> str | None:
    import torch

    try:
        return torch.get_float32_matmul_precision()
    except RuntimeError:  # torch has no answer where the newer switches are in use
        return None


def _switch(name: str) -> object:
    """The value of a switch of ``torch.backends``; None where torch has none."""
    import torch

    value: Any = torch.backends
    for part in name.split("."):
        value = getattr(value, part, None)
    return value() if callable(value) else value


def device_name(device: str) -> str:
    """What the hardware is called; of a CPU only its kind."""
    if device.partition(":")[0] == "cpu":
        return platform.machine()
    import torch

    module = torch.get_device_module(device)
    get_name = getattr(module, "get_device_name", None)
    return str(get_name(device)) if get_name is not None else device
