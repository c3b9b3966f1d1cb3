"""Counts the zeros of a saved checkpoint's decoder layers, as the Wanda code does.

Wanda's ``check_sparsity`` counts the weights of the ``nn.Linear`` modules inside the
decoder layers of the model in memory; here the saved files are counted. Beyond that
definition, GPT-2's ``Conv1D`` weights (linear layers stored the other way round) and
the experts that newer transformers fuse into one tensor are counted as well; older ones
had an ``nn.Linear`` for each, and one for the router.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from msgspec import Struct

from ..errors import CheckpointError
from .files import TensorInfo, read_config, section, tensor_index
from .gguf import import_gguf, open_gguf
from .locate import Located

if TYPE_CHECKING:
    import numpy

_IN_LAYER = re.compile(
    r"(?P<before>.*?)(?:^|\.)(?:layers|layer|h|blocks|block|blk)\."
    r"(?P<number>[0-9]+)\.(?P<rest>.+)"
)
_OTHER_STACKS = re.compile(r"vision|visual|audio|speech|encoder")
_NOT_LINEAR = re.compile(
    r"norm|(^|\.)ln_?[0-9a-z]*\.|embed|conv([12]d)?\.weight$|relative_attention"
)
_NOT_WEIGHT = re.compile(r"bias|scale|position|inv_freq")
_LAYER_COUNTS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")

# numpy's type of the bits, and a mask that drops the sign: -0.0 is a zero. In the FNUZ
# formats the bits of -0.0 mean NaN.
_FLOATS = {
    "F64": ("<u8", 0x7FFF_FFFF_FFFF_FFFF),
    "F32": ("<u4", 0x7FFF_FFFF),
    "F16": ("<u2", 0x7FFF),
    "BF16": ("<u2", 0x7FFF),
    "F8_E4M3": ("u1", 0x7F),
    "F8_E5M2": ("u1", 0x7F),
    "F8_E4M3FNUZ": ("u1", 0xFF),
    "F8_E5M2FNUZ": ("u1", 0xFF),
}
_CHUNK = 1 << 23
"""Bytes read at once; a multiple of every element's size."""
_ROWS_AT_ONCE = 1 << 22
"""Elements of a GGUF tensor unpacked at once, roughly."""


class Sparsity(Struct, frozen=True):
    """Share of zeros: ``fraction == zeros / total``."""

    fraction: float
    zeros: int
    total: int


def measure_sparsity(located: Located) -> Sparsity:
    """Count zeros in the linear weights of the decoder layers, from the files.

    Counted are two-dimensional ``.weight`` tensors and expert tensors inside the
    decoder layers; norms, biases, embeddings and the head are not. Needs no torch and
    constant memory.

    Raises:
        CheckpointError: the weights cannot be read, are packed (quantised or
            compressed), or no decoder layer was found.
    """
    counts = _gguf_counts(located) if located.gguf else _counts(located)
    zeros = total = 0
    for tensor_zeros, tensor_total in counts:
        zeros += tensor_zeros
        total += tensor_total
    if not total:
        raise CheckpointError(
            f"{located.spec} has no linear weights of decoder layers (tensors named "
            "like model.layers.0.mlp.up_proj.weight): its sparsity cannot be counted"
        )
    return Sparsity(zeros / total, zeros, total)


def _counts(located: Located) -> Iterator[tuple[int, int]]:
    tensors = tensor_index(located.folder)
    layers = _layer_count(read_config(located))
    for name in linear_weights(tensors, located.spec, layers):
        yield _count_zeros(tensors[name])


def _layer_count(config: Mapping[str, Any]) -> int | None:
    """How many decoder layers run; some checkpoints append layers that never do."""
    for settings in (config, section(config, "text_config")):
        for name in _LAYER_COUNTS:
            if isinstance(settings.get(name), int):
                return int(settings[name])
    return None


def linear_weights(
    tensors: Mapping[str, TensorInfo], spec: str, layers: int | None = None
) -> list[str]:
    """Names of the counted tensors, sorted; only of the first ``layers`` layers.

    Raises:
        CheckpointError: one of them is packed; ``spec`` names the checkpoint.
    """
    names = []
    for name, tensor in sorted(tensors.items()):
        rest = _rest(name, layers)
        if rest is None or _NOT_WEIGHT.search(rest.rpartition(".")[2]):
            continue
        if tensor.dtype not in _FLOATS:
            raise CheckpointError(
                f"{spec}: {name} is stored as {tensor.dtype}: the sparsity of packed "
                "(quantised or compressed) weights is not counted; measure the "
                "checkpoint as it was before packing"
            )
        if _is_linear(rest, len(tensor.shape)):
            names.append(name)
    return names


def _rest(name: str, layers: int | None) -> str | None:
    """The name inside its decoder layer; None if it is in none that counts."""
    match = _IN_LAYER.fullmatch(name)
    if match is None or _OTHER_STACKS.search(match["before"]):
        return None
    if layers is not None and int(match["number"]) >= layers:
        return None
    return match["rest"]


def _is_linear(rest: str, dimensions: int) -> bool:
    if _NOT_LINEAR.search(rest) or dimensions not in (2, 3):
        return False
    return rest.endswith(".weight") or ".experts." in f".{rest}"


def _count_zeros(tensor: TensorInfo) -> tuple[int, int]:
    """Zeros and elements of one tensor, read in chunks."""
    import numpy

    kind, mask = _FLOATS[tensor.dtype]
    begin, end = tensor.offsets
    unsigned = numpy.dtype(kind)
    magnitude = unsigned.type(mask)
    nonzero = 0
    with tensor.file.open("rb") as stream:
        stream.seek(begin)
        for position in range(begin, end, _CHUNK):
            data = stream.read(min(_CHUNK, end - position))
            nonzero += _nonzero(numpy.frombuffer(data, unsigned) & magnitude)
    total = (end - begin) // unsigned.itemsize
    return total - nonzero, total


def _nonzero(values: numpy.ndarray[Any, Any]) -> int:
    import numpy

    return int(numpy.count_nonzero(values))


# ------------------------------------------------------------------------------ GGUF


def _gguf_counts(located: Located) -> Iterator[tuple[int, int]]:
    """Zeros of the two-dimensional block tensors, after unpacking them.

    A quantised block can only hold an exact zero where its format has one, so a
    sparsity counted here is that of the model as llama.cpp would run it.
    """
    gguf = import_gguf()
    for tensor in open_gguf(located).tensors:
        rest = _rest(tensor.name, None)
        if rest is None or not _is_linear(rest, len(tensor.shape)):
            continue
        rows = tensor.data.reshape(-1, tensor.data.shape[-1])
        step = max(1, _ROWS_AT_ONCE // int(tensor.shape[0]))
        nonzero = sum(
            _nonzero(gguf.quants.dequantize(rows[i : i + step], tensor.tensor_type))
            for i in range(0, len(rows), step)
        )
        total = int(tensor.n_elements)
        yield total - nonzero, total
