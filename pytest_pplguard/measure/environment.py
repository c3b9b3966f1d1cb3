"""What may move a number a little: recorded with every measurement."""

from __future__ import annotations

import platform
from importlib.metadata import version

from ..checkpoints import Loaded
from ..values import Key, Scalar

_PACKAGES = ("torch", "transformers", "tokenizers")


def environment(loaded: Loaded, key: Key, *, batch_size: int) -> dict[str, Scalar]:
    """Versions, device, dtype, attention kernel and batch size of a measurement."""
    packages = (*_PACKAGES, "lm_eval") if key.method == "lm-eval" else _PACKAGES
    return {
        "dtype": loaded.dtype,
        "device": loaded.device.partition(":")[0],
        "device_name": _device_name(loaded.device),
        "attention": loaded.attention,
        "batch_size": batch_size,
        "pytest_pplguard": version("pytest-pplguard"),
        "python": platform.python_version(),
        **{name: version(name) for name in packages},
    }


def kernels(loaded: Loaded) -> dict[str, Scalar]:
    """What decides the last bits beyond :func:`environment`: threads and precision.

    Not recorded: it moves a perplexity by some parts in ten million.
    """
    import torch

    decides: dict[str, Scalar] = {
        "matmul_precision": torch.get_float32_matmul_precision(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
    }
    if loaded.device == "cpu":
        decides["threads"] = torch.get_num_threads()
        decides["capability"] = torch.backends.cpu.get_cpu_capability()
    return decides


def _device_name(device: str) -> str:
    if device.partition(":")[0] == "cpu":
        return platform.machine()
    import torch

    module = torch.get_device_module(device)
    get_name = getattr(module, "get_device_name", None)
    return str(get_name(device)) if get_name is not None else device
