"""Counts the zeros of a checkpoint's decoder layers, as the Wanda code does.

Wanda's ``check_sparsity`` counts the weights of the ``nn.Linear`` modules inside the
decoder layers of the model in memory; here the saved files are counted wherever they
hold the weights as they are. Beyond that definition, GPT-2's ``Conv1D`` weights (linear
layers stored the other way round) and the experts that newer transformers fuse into one
tensor are counted as well; older ones had an ``nn.Linear`` for each, and one for the
router.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import chain
from typing import TYPE_CHECKING, Any

from msgspec import Struct

from ..errors import CheckpointError
from .compressed import split_compressed
from .config import is_quantised
from .files import TensorInfo, read_config, tensor_index
from .gguf import import_gguf, open_gguf
from .jsonfiles import section
from .locate import Located

if TYPE_CHECKING:
    import numpy
    from torch import Tensor, nn

_IN_LAYER = re.compile(
    r"(?P<before>.*?)(?:^|\.)(?:layers|layer|h|blocks|block|blk)\."
    r"(?P<number>[0-9]+)\.(?P<rest>.+)"
)
_OTHER_STACKS = re.compile(r"vision|visual|audio|speech|encoder")
_NOT_LINEAR = re.compile(
    r"norm|(^|\.)ln_?[0-9a-z]*\.|embed|conv([12]d)?\.weight$|relative_attention"
)
_NOT_WEIGHT = re.compile(r"bias|scale|shape|zero_point|position|inv_freq")
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


def measure_sparsity(
    located: Located,
    *,
    model: Callable[[], nn.Module] | None = None,
    allow_pickle: bool = False,
) -> Sparsity:
    """Count zeros in the linear weights of the decoder layers.

    Counted are two-dimensional ``.weight`` tensors and expert tensors inside the
    decoder layers; norms, biases, embeddings and the head are not. From the files,
    which needs no torch and constant memory, unless they do not hold the weights that
    run: those of a merged adapter, of a quantised checkpoint and of pickles are
    counted in the loaded model.

    Args:
        located: from :func:`~.locate.locate`.
        model: loads it; called only if need be.
        allow_pickle: whether pickle weights may be loaded.

    Raises:
        CheckpointError: the weights cannot be read or stay packed, or no decoder layer
            was found.
    """
    counts: Iterable[tuple[int, int]]
    if located.gguf:
        counts = _gguf_counts(located)
    else:
        found = _stored_weights(located, allow_pickle=allow_pickle)
        if not isinstance(found, str):
            counts = map(_count_zeros, found)
        elif model is not None:
            counts = _model_counts(model(), located.spec)
        else:
            raise CheckpointError(
                f"{located.spec}{found}: its sparsity can only be counted in the "
                "loaded model"
            )
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


def _stored_weights(located: Located, *, allow_pickle: bool) -> list[TensorInfo] | str:
    """The tensors to count in the files, or why those are not the weights that run."""
    if located.base is not None:
        return " is an adapter"
    stored = tensor_index(located.folder, allow_pickle=allow_pickle)
    if not stored:
        return " has pickle weights"
    config = read_config(located)
    compressed, others = split_compressed(
        stored, located.spec, quantised=is_quantised(config)
    )
    tensors = others | {name: weight.values for name, weight in compressed.items()}
    dimensions = {
        name: len(tensor.shape) if tensor.dtype in _FLOATS else None
        for name, tensor in tensors.items()
    }
    linear, packed = _linear_weights(dimensions, _layer_count(config))
    if packed:
        return f": {packed[0]} is packed ({tensors[packed[0]].dtype})"
    return [tensors[name] for name in linear]


def _layer_count(config: Mapping[str, Any]) -> int | None:
    """How many decoder layers run; some checkpoints append layers that never do."""
    for settings in (config, section(config, "text_config")):
        for name in _LAYER_COUNTS:
            if isinstance(settings.get(name), int):
                return int(settings[name])
    return None


def _linear_weights(
    dimensions: Mapping[str, int | None], layers: int | None = None
) -> tuple[list[str], list[str]]:
    """Names of the tensors to count, and of packed ones, in the first ``layers``.

    Args:
        dimensions: of each tensor; None for one whose elements are no plain floats.
        layers: None for all.
    """
    linear, packed = [], []
    for name, count in dimensions.items():
        rest = _rest(name, layers)
        if rest is None or _NOT_WEIGHT.search(rest.rpartition(".")[2]):
            continue
        if count is None:
            packed.append(name)
        elif _is_linear(rest, count):
            linear.append(name)
    return linear, packed


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
    """Zeros and elements of one tensor, its bytes read in chunks.

    Of a compressed one only the stored values have bytes.
    """
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
    total = math.prod(tensor.shape)
    return total - nonzero, total


def _nonzero(values: numpy.ndarray[Any, Any]) -> int:
    import numpy

    return int(numpy.count_nonzero(values))


# -------------------------------------------------------------------------- in memory


def _model_counts(model: nn.Module, spec: str) -> Iterator[tuple[int, int]]:
    """Zeros and elements of a model's linear weights.

    Raises:
        CheckpointError: some are still packed.
    """
    tensors = dict(chain(model.named_parameters(), model.named_buffers()))
    linear, packed = _linear_weights(
        {name: t.dim() if _is_plain(t) else None for name, t in tensors.items()}
    )
    if packed:
        raise CheckpointError(
            f"{spec}: {packed[0]} is packed ({_kind(tensors[packed[0]])}) also in "
            "memory: the sparsity of such weights is not counted; count the zeros of "
            "the checkpoint as it was before packing"
        )
    for name in linear:
        weight = tensors[name]
        yield weight.numel() - int(weight.count_nonzero()), weight.numel()


def _is_plain(tensor: Tensor) -> bool:
    return tensor.is_floating_point() and _kind(tensor) == str(tensor.dtype)


def _kind(tensor: Tensor) -> str:
    """The dtype, or the class for tensors that only stand for their elements."""
    kind = type(tensor.data)
    return str(tensor.dtype) if kind.__name__ == "Tensor" else kind.__name__


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
