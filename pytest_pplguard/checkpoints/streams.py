"""Streams a checkpoint's tensors, so that no more than a chunk of one is in memory."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import chain
from typing import TYPE_CHECKING, Any, Protocol

from msgspec import Struct

from ..errors import CheckpointError
from .compressed import Bitmasked, dense_chunks, split_compressed
from .config import is_quantised
from .files import TensorInfo, read_config, tensor_index
from .gguf import import_gguf, open_gguf
from .locate import Located

if TYPE_CHECKING:
    import numpy
    from torch import Tensor, nn

    Words = numpy.ndarray[Any, numpy.dtype[numpy.unsignedinteger[Any]]]

WORDS = {
    "F64": "<u8",
    "F32": "<u4",
    "F16": "<u2",
    "BF16": "<u2",
    "F8_E4M3": "u1",
    "F8_E5M2": "u1",
    "F8_E4M3FNUZ": "u1",
    "F8_E5M2FNUZ": "u1",
}
"""numpy's type for the bits of each plain floating dtype, little-endian."""

CHUNK = 1 << 18
"""Elements in a chunk, roughly: its temporaries stay in a processor's cache."""

_TORCH = {
    "float64": "F64",
    "float32": "F32",
    "float16": "F16",
    "bfloat16": "BF16",
    "float8_e4m3fn": "F8_E4M3",
    "float8_e5m2": "F8_E5M2",
    "float8_e4m3fnuz": "F8_E4M3FNUZ",
    "float8_e5m2fnuz": "F8_E5M2FNUZ",
}


class Read(Protocol):
    """Reads a tensor from its beginning, every time that it is called."""

    def __call__(self, unit: int = 1) -> Iterator[Words]:
        """Its words in row order, flat; each chunk but the last a multiple of ``unit``.

        Words are the elements' bits (:data:`WORDS`), bytes where it is no plain float.
        """


class Stream(Struct, frozen=True):
    """A tensor that can be read in chunks: ``dtype`` as safetensors names it."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    read: Read

    @property
    def is_float(self) -> bool:
        """Whether its elements are plain floating-point numbers."""
        return self.dtype in WORDS


def stored_streams(located: Located, *, allow_pickle: bool = False) -> list[Stream]:
    """The tensors of a checkpoint's files; sparse-compressed ones decoded.

    Those of a quantised checkpoint are as they are stored. Empty for pickles, which
    can only be loaded.

    Raises:
        CheckpointError: the files cannot be read, or are refused.
    """
    if located.gguf:
        return list(_gguf(located))
    folder = located.model.folder
    stored = tensor_index(folder, allow_pickle=allow_pickle)
    if not stored:
        return []
    compressed, others = split_compressed(
        stored, located.spec, quantised=is_quantised(read_config(located))
    )
    return [
        *(_file_stream(name, info) for name, info in others.items()),
        *(_decoded_stream(name, weight) for name, weight in compressed.items()),
    ]


def weight_streams(
    located: Located, *, model: Model | None = None, allow_pickle: bool = False
) -> list[Stream]:
    """The tensors of a checkpoint's files, or of the model that is made of them.

    That is so for an adapter, which is merged, and for pickles.

    Raises:
        CheckpointError: the files cannot be read, or ``model`` is needed and None.
    """
    streams = [] if located.base else stored_streams(located, allow_pickle=allow_pickle)
    if streams:
        return streams
    if model is None:
        what = "is an adapter" if located.base else "has pickle weights"
        raise CheckpointError(
            f"{located.spec} {what}: its weights are only known once it is loaded"
        )
    return model_streams(model())


def model_streams(model: nn.Module) -> list[Stream]:
    """The parameters and buffers of a loaded model; a shared one under each name."""
    tensors = chain(
        model.named_parameters(remove_duplicate=False),
        model.named_buffers(remove_duplicate=False),
    )
    return [_memory_stream(name, tensor) for name, tensor in tensors]


def _file_stream(name: str, info: TensorInfo) -> Stream:
    import numpy

    word = numpy.dtype(WORDS.get(info.dtype, "u1"))

    def read(unit: int = 1) -> Iterator[Words]:
        begin, end = info.offsets
        size = _step(unit) * word.itemsize
        with info.file.open("rb", buffering=0) as stream:
            stream.seek(begin)
            while begin < end:
                data = bytearray(min(size, end - begin))
                _fill(stream, data, info)
                begin += len(data)
                yield numpy.frombuffer(data, word)

    return Stream(name, info.dtype, info.shape, read)


def _fill(stream: Any, data: bytearray, info: TensorInfo) -> None:
    view = memoryview(data)
    while view:
        count = stream.readinto(view)
        if not count:
            raise CheckpointError(f"{info.file} became shorter while it was read")
        view = view[count:]


def _decoded_stream(name: str, weight: Bitmasked) -> Stream:
    def read(unit: int = 1) -> Iterator[Words]:
        return _regroup(dense_chunks(weight), _step(unit))

    return Stream(name, weight.values.dtype, weight.values.shape, read)


def _memory_stream(name: str, tensor: Tensor) -> Stream:
    dtype = _TORCH.get(str(tensor.dtype).removeprefix("torch."), "")
    if type(tensor.data).__name__ != "Tensor":
        dtype = ""  # of a quantiser's own class: it only stands for its elements
    shape = tuple(tensor.shape)

    def read(unit: int = 1) -> Iterator[Words]:
        import torch

        flat = tensor.detach().reshape(-1)
        size = _step(unit)
        for begin in range(0, flat.numel(), size):
            chunk = flat[begin : begin + size].cpu().contiguous()
            words: Words = chunk.view(torch.uint8).numpy()
            yield words.view(WORDS.get(dtype, "u1"))

    return Stream(name, dtype or _kind(tensor), shape, read)


def _kind(tensor: Tensor) -> str:
    """The dtype, or the class for tensors that only stand for their elements."""
    kind = type(tensor.data).__name__
    return str(tensor.dtype).removeprefix("torch.") if kind == "Tensor" else kind


def _gguf(located: Located) -> Iterator[Stream]:
    """The tensors of a GGUF file, unpacked to float32.

    A quantised block can only hold an exact zero where its format has one, so what is
    seen here is the model as llama.cpp would run it.
    """
    gguf = import_gguf()
    for tensor in open_gguf(located).tensors:
        shape = tuple(reversed([int(size) for size in tensor.shape]))
        yield Stream(tensor.name, "F32", shape, _gguf_reader(gguf, tensor, shape))


def _gguf_reader(gguf: Any, tensor: Any, shape: tuple[int, ...]) -> Read:
    def rows() -> Iterator[Words]:
        import numpy

        packed = tensor.data.reshape(-1, tensor.data.shape[-1])
        step = max(1, CHUNK // shape[-1])
        for begin in range(0, len(packed), step):
            part = gguf.quants.dequantize(
                packed[begin : begin + step], tensor.tensor_type
            )
            yield numpy.ascontiguousarray(part, "<f4").reshape(-1).view("<u4")

    def read(unit: int = 1) -> Iterator[Words]:
        return _regroup(rows(), _step(unit))

    return read


def _step(unit: int) -> int:
    """Elements in a chunk: a multiple of ``unit``, and of 8 so that bits pack."""
    unit = math.lcm(unit, 8)
    return unit * max(1, CHUNK // unit)


def _regroup(chunks: Iterable[Words], size: int) -> Iterator[Words]:
    """The same words in chunks of ``size``; the last one may be shorter."""
    import numpy

    kept: list[Words] = []
    count = 0
    for chunk in chunks:
        kept.append(chunk)
        count += chunk.size
        if count < size:
            continue
        whole = numpy.concatenate(kept)
        cut = count - count % size
        for begin in range(0, cut, size):
            yield whole[begin : begin + size]
        kept, count = [whole[cut:]], count - cut
    if count:
        yield numpy.concatenate(kept)


def by_name(streams: Iterable[Stream]) -> Mapping[str, Stream]:
    """The streams by the names of their tensors."""
    return {stream.name: stream for stream in streams}


Model = Callable[[], "nn.Module"]
"""Loads the model of a checkpoint whose files do not hold the weights that run."""
