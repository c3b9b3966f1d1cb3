"""Where a model comes from, what it is, and how it is loaded.

Importing this package imports no torch and no transformers.
"""

from __future__ import annotations

from .device import (
    DeviceChoice,
    DtypeChoice,
    Hardware,
    choose_device,
    choose_dtype,
    probe,
)
from .files import TensorInfo, digest, read_config, saved_dtype, tensor_index
from .fingerprint import fingerprint, tensor_facts
from .load import Loaded, load
from .locate import Located, locate
from .sparsity import Sparsity, Zeros, layer_of, measure_sparsity
from .state import model_digest, state_digest

__all__ = [
    "DeviceChoice",
    "DtypeChoice",
    "Hardware",
    "Loaded",
    "Located",
    "Sparsity",
    "TensorInfo",
    "Zeros",
    "choose_device",
    "choose_dtype",
    "digest",
    "fingerprint",
    "layer_of",
    "load",
    "locate",
    "measure_sparsity",
    "model_digest",
    "probe",
    "read_config",
    "saved_dtype",
    "state_digest",
    "tensor_facts",
    "tensor_index",
]
