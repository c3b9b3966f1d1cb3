"""Where a model comes from, what it is, and how it is loaded.

Importing this package imports no torch and no transformers.
"""

from __future__ import annotations

from ..tensornames import layer_of
from .against import Survivors, compare_with_dense
from .compare import Comparison, compare_streams
from .config import refuse_remote_code
from .contents import Contents, contents
from .device import (
    DeviceChoice,
    DtypeChoice,
    Hardware,
    choose_device,
    choose_dtype,
    is_out_of_memory,
    probe,
)
from .examine import Examination, Finding, ZeroTable, examine
from .files import (
    TensorInfo,
    digest,
    files_state,
    read_config,
    saved_dtype,
    tensor_index,
)
from .fingerprint import fingerprint, tensor_facts, to_record
from .load import Loaded, load, load_tokenizer
from .locate import Located, locate
from .places import changed_places
from .positions import positions
from .sparsity import Sparsity, Zeros, measure_sparsity, sparsity_of
from .state import model_digest, state_digest
from .streams import Stream, each, model_streams, stored_streams

__all__ = [
    "Comparison",
    "Contents",
    "DeviceChoice",
    "DtypeChoice",
    "Examination",
    "Finding",
    "Hardware",
    "Loaded",
    "Located",
    "Sparsity",
    "Stream",
    "Survivors",
    "TensorInfo",
    "ZeroTable",
    "Zeros",
    "changed_places",
    "choose_device",
    "choose_dtype",
    "compare_streams",
    "compare_with_dense",
    "contents",
    "digest",
    "each",
    "examine",
    "files_state",
    "fingerprint",
    "is_out_of_memory",
    "layer_of",
    "load",
    "load_tokenizer",
    "locate",
    "measure_sparsity",
    "model_digest",
    "model_streams",
    "positions",
    "probe",
    "read_config",
    "refuse_remote_code",
    "saved_dtype",
    "sparsity_of",
    "state_digest",
    "stored_streams",
    "tensor_facts",
    "tensor_index",
    "to_record",
]
