"""Where a model comes from, what it is, and how it is loaded.

Importing this package imports no torch and no transformers.
"""

from __future__ import annotations

from ..tensornames import layer_of
from .against import Survivors, compare_with_dense
from .compare import Comparison, compare_streams
from .config import is_quantised, refuse_remote_code
from .contents import Contents, contents
from .device import (
    DeviceChoice,
    DtypeChoice,
    Hardware,
    choose_device,
    choose_dtype,
    free_memory,
    is_out_of_memory,
    probe,
)
from .examine import Examination, Finding, ZeroTable, examine
from .files import (
    TensorInfo,
    digest,
    files_state,
    identity_state,
    read_config,
    saved_dtype,
    tensor_index,
)
from .fingerprint import fingerprint, tensor_facts, to_record
from .load import Loaded, load, load_tokenizer
from .locate import Located, locate
from .offloaded import at_hand, device_of, devices_of, loader_of
from .placement import (
    Placement,
    check_max_memory,
    choose_placement,
    fits,
    layer_weights,
    main_device,
)
from .places import changed_places
from .positions import positions
from .sparsity import Sparsity, Zeros, measure_sparsity, sparsity_of
from .state import model_digest, state_digest
from .streams import Model, Stream, each, model_streams, stored_streams
from .tokenizers import tokenizer_digest

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
    "Model",
    "Placement",
    "Sparsity",
    "Stream",
    "Survivors",
    "TensorInfo",
    "ZeroTable",
    "Zeros",
    "at_hand",
    "changed_places",
    "check_max_memory",
    "choose_device",
    "choose_dtype",
    "choose_placement",
    "compare_streams",
    "compare_with_dense",
    "contents",
    "device_of",
    "devices_of",
    "digest",
    "each",
    "examine",
    "files_state",
    "fingerprint",
    "fits",
    "free_memory",
    "identity_state",
    "is_out_of_memory",
    "is_quantised",
    "layer_of",
    "layer_weights",
    "load",
    "load_tokenizer",
    "loader_of",
    "locate",
    "main_device",
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
    "tokenizer_digest",
]
