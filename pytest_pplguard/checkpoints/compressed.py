"""Decodes sparse-compressed weights, which transformers itself no longer can.

The formats ``sparse-bitmask`` and ``sparse-24-bitmask`` of compressed-tensors (up to
0.14) keep, instead of ``X.weight``, the stored values in row order as ``X.compressed``,
one bit per weight as ``X.bitmask`` (rows padded to whole bytes, lowest bit first) and
``X.shape``; the former also ``X.row_offsets``, which says nothing new. Its first
versions wrote ``X.weight.compressed`` and so on.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from msgspec import Struct
from msgspec.structs import replace

from ..errors import CheckpointError
from .files import TensorInfo, tensor_bytes

if TYPE_CHECKING:
    import numpy
    from torch import Tensor

_PARTS = ("bitmask", "compressed", "shape", "row_offsets")
_SIGNS = (".bitmask", ".compressed")
_AT_ONCE = 1 << 22
"""Bits unpacked at once, roughly; each takes a byte then."""
_DTYPES = {
    "F64": ("float64", "<u8"),
    "F32": ("float32", "<u4"),
    "F16": ("float16", "<u2"),
    "BF16": ("bfloat16", "<u2"),
    "F8_E4M3": ("float8_e4m3fn", "u1"),
    "F8_E5M2": ("float8_e5m2", "u1"),
    "I8": ("int8", "u1"),
}
"""torch's name of a dtype, and numpy's for its bits."""
_MAX_DIMENSIONS = 64
_SCALED = ("F8_E4M3", "F8_E5M2", "I8")
"""Dtypes whose values are weights only once they are multiplied by a scale."""


class Bitmasked(Struct, frozen=True):
    """A sparse-compressed weight: ``values`` go where ``bitmask`` has a bit set.

    ``values`` has the dense shape, but only the stored values' bytes.
    """

    values: TensorInfo
    bitmask: TensorInfo


def split_compressed(
    tensors: Mapping[str, TensorInfo], spec: str, *, quantised: bool
) -> tuple[dict[str, Bitmasked], dict[str, TensorInfo]]:
    """The compressed weights by the names of the dense ones, and all other tensors.

    Args:
        tensors: from :func:`~.files.tensor_index`.
        spec: names the checkpoint in errors.
        quantised: whether its config says that weights are to be dequantised.

    Raises:
        CheckpointError: the parts of a compressed weight do not fit together, or it is
            quantised and its scale or scheme is missing.
    """
    weights: dict[str, Bitmasked] = {}
    others = dict(tensors)
    modules = {n.rpartition(".")[0] for n in tensors if n.endswith(_SIGNS)}
    for module in sorted(modules):
        parts = {part: others.pop(f"{module}.{part}", None) for part in _PARTS}
        name = module if module.endswith((".weight", ".bias")) else f"{module}.weight"
        what = f"{spec}: the sparse-compressed {name}"
        weights[name] = _weight(what, parts)
        kind = weights[name].values.dtype
        if kind in _SCALED and not (quantised and f"{name}_scale" in tensors):
            raise CheckpointError(
                f"{what} is stored as {kind} without a scale: bring back its "
                f"{name}_scale and the quantization_config of config.json, or save "
                "the checkpoint again as it was before quantising"
            )
        if name in others:
            raise CheckpointError(f"{spec} holds {name} twice, dense and compressed")
    return weights, others


def _weight(what: str, parts: Mapping[str, TensorInfo | None]) -> Bitmasked:
    bitmask, values, shape = (parts[part] for part in _PARTS[:3])
    if bitmask is None or values is None or shape is None:
        lacking = next(part for part in _PARTS if parts[part] is None)
        raise CheckpointError(f"{what} lacks its tensor {lacking!r}")
    dense = _dense_shape(shape)
    if (
        not dense
        or min(dense) < 1
        or bitmask.dtype != "U8"
        or bitmask.offsets[1] - bitmask.offsets[0] != _rows(dense) * _row_bytes(dense)
        or values.dtype not in _DTYPES
    ):
        raise CheckpointError(
            f"{what} is malformed: its bitmask is {bitmask.dtype} "
            f"{list(bitmask.shape)}, its values are {values.dtype}, its shape is "
            f"{list(dense)}"
        )
    weight = Bitmasked(replace(values, shape=dense), bitmask)
    marked = sum(int(bits.sum()) for bits in _bits(weight))
    if marked != math.prod(values.shape):
        raise CheckpointError(
            f"{what} is malformed: its bitmask marks {marked} weights, but "
            f"{math.prod(values.shape)} are stored"
        )
    return weight


def decode(weight: Bitmasked) -> Tensor:
    """The dense weight, bit for bit as it was compressed, in its own dtype."""
    import numpy
    import torch

    dtype, word = _DTYPES[weight.values.dtype]
    dense = numpy.empty(math.prod(weight.values.shape), word)
    begin = 0
    for chunk in dense_chunks(weight):
        dense[begin : begin + chunk.size] = chunk
        begin += chunk.size
    tensor = torch.from_numpy(dense).view(getattr(torch, dtype))
    return tensor.reshape(weight.values.shape)


def dense_chunks(weight: Bitmasked) -> Iterator[numpy.ndarray[Any, Any]]:
    """The bits of the dense weight in row order, flat, some rows at a time."""
    import numpy

    word = numpy.dtype(_DTYPES[weight.values.dtype][1])
    with tensor_bytes(weight.values) as take:
        for bits in _bits(weight):
            dense = numpy.zeros(bits.size, word)
            values = numpy.empty(int(bits.sum()), word)
            take(values.data)
            dense[bits] = values
            yield dense


def decoded_state(
    weights: Mapping[str, Bitmasked], others: Mapping[str, TensorInfo]
) -> dict[str, Tensor]:
    """All tensors of a checkpoint on the CPU, the compressed ones decoded."""
    from safetensors import safe_open

    state = {name: decode(weight) for name, weight in weights.items()}
    for file in sorted({tensor.file for tensor in others.values()}):
        with safe_open(file, framework="pt") as stream:
            for name, tensor in others.items():
                if tensor.file == file:
                    state[name] = stream.get_tensor(name)
    return state


def _bits(weight: Bitmasked) -> Iterator[numpy.ndarray[Any, Any]]:
    """The bitmask as flat booleans, some rows at a time, without the padding."""
    import numpy

    shape = weight.values.shape
    rows, width = _rows(shape), _row_bytes(shape)
    step = max(1, _AT_ONCE // shape[-1])
    with tensor_bytes(weight.bitmask) as take:
        for row in range(0, rows, step):
            packed = numpy.empty((min(step, rows - row), width), "u1")
            take(packed.data)
            bits = numpy.unpackbits(packed, axis=1, count=shape[-1], bitorder="little")
            yield bits.ravel().view(bool)


def _rows(shape: Sequence[int]) -> int:
    return math.prod(shape[:-1])


def _row_bytes(shape: Sequence[int]) -> int:
    return -(-shape[-1] // 8)


def _dense_shape(tensor: TensorInfo) -> tuple[int, ...]:
    """The sizes that a tensor holds; empty if they cannot be those of a weight."""
    import numpy

    begin, end = tensor.offsets
    if tensor.dtype != "I64" or end - begin > 8 * _MAX_DIMENSIONS:
        return ()
    sizes = numpy.empty((end - begin) // 8, "<i8")
    with tensor_bytes(tensor) as take:
        take(sizes.data)
    return tuple(sizes.tolist())
