"""What a measurement takes, said before anything large is loaded.

Pure arithmetic over a model's shape; only :mod:`.skeleton`, which makes the shape of a
config, imports transformers when it is called.
"""

from .place import Place, Pool, place
from .plan import Disk, KeyWork, Plan, Timing
from .shape import CHUNK_BYTES, ITEMSIZE, Layer, Memory, Shape, chunk_rows, pairs
from .skeleton import (
    Skeleton,
    disk_of,
    empty_model,
    is_packed,
    shape_of,
    skeleton,
    stored_parameters,
    with_layers,
)
from .work import (
    PROOF_PASSES,
    WIKITEXT2_PAGES,
    Count,
    bytes_a_token,
    estimate_windows,
    key_flops,
    seconds,
)

__all__ = [
    "CHUNK_BYTES",
    "ITEMSIZE",
    "PROOF_PASSES",
    "WIKITEXT2_PAGES",
    "Count",
    "Disk",
    "KeyWork",
    "Layer",
    "Memory",
    "Place",
    "Plan",
    "Pool",
    "Shape",
    "Skeleton",
    "Timing",
    "bytes_a_token",
    "chunk_rows",
    "disk_of",
    "empty_model",
    "estimate_windows",
    "is_packed",
    "key_flops",
    "pairs",
    "place",
    "seconds",
    "shape_of",
    "skeleton",
    "stored_parameters",
    "with_layers",
]
