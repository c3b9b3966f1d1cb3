"""Streams a checkpoint's tensors, so that no more than a chunk of one is in memory."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from msgspec import Struct

from ..errors import CheckpointError
from .compressed import Bitmasked, dense_chunks, split_compressed
from .config import is_quantised
from .files import TensorInfo, file_state, read_config, tensor_bytes, tensor_index
from .gguf import import_gguf, open_gguf
from .locate import Located
from .offloaded import kept_tensors

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

_MOST_THREADS = 16
T = TypeVar("T")

_TORCH = {
    "float64": "F64",
    "float32": "F32",
    "float16": "F16",
    "bfloat16": "BF16",
    "float8_e4m3fn": "F8_E4M3",
    "float8_e5m2": "F8_E5M2",
    "float8_e4m3fnuz": "F8_E4M3FNUZ",
    "float8_e5m2fnuz": "F8_E5M2FNUZ",
    **{f"int{bits}": f"I{bits}" for bits in (8, 16, 32, 64)},
    **{f"uint{bits}": f"U{bits}" for bits in (8, 16, 32, 64)},
    "bool": "BOOL",
    "complex64": "C64",
}
"""safetensors' names of torch's dtypes."""


class Read(Protocol):
    """Reads a tensor from its beginning, every time that it is called."""

    def __call__(self, unit: int = 1) -> Iterator[Words]:
        """Its words in row order, flat; each chunk but the last a multiple of ``unit``.

        A chunk is good until the next one is asked for, which may be in its place.
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
    quantised = bool(stored) and is_quantised(read_config(located))
    return file_streams(stored, located.spec, quantised=quantised)


def file_streams(
    tensors: Mapping[str, TensorInfo], spec: str, *, quantised: bool
) -> list[Stream]:
    """The tensors of safetensors files; sparse-compressed ones decoded.

    Args:
        tensors: from :func:`~.files.tensor_index`.
        spec: names the checkpoint in errors.
        quantised: whether its config says that weights are to be dequantised.

    Raises:
        CheckpointError: the parts of a compressed weight do not fit together.
    """
    compressed, others = split_compressed(tensors, spec, quantised=quantised)
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


def state_streams(state: Mapping[str, Tensor]) -> list[Stream]:
    """Tensors in memory by name."""
    return [_memory_stream(name, tensor) for name, tensor in state.items()]


def model_streams(model: nn.Module) -> list[Stream]:
    """What a loaded model would save; a shared tensor under each of its names."""
    saved = model.state_dict().keys()
    away = kept_tensors(model)
    tensors = chain(
        model.named_parameters(remove_duplicate=False),
        model.named_buffers(remove_duplicate=False),
    )
    return [
        _memory_stream(name, tensor, away[name].load if name in away else None)
        for name, tensor in tensors
        if name in saved
    ]


def each(streams: Iterable[Stream], work: Callable[[Stream], T]) -> dict[str, T]:
    """What ``work`` gives for each tensor, several tensors at a time.

    A thread holds one chunk. numpy and hashlib let others run while they work.
    """
    # The largest first, so that none of them is left for the end.
    largest = sorted(streams, key=lambda stream: math.prod(stream.shape), reverse=True)
    pool = ThreadPoolExecutor(min(_MOST_THREADS, os.cpu_count() or 1))
    try:
        results = pool.map(work, largest)
        return {s.name: result for s, result in zip(largest, results, strict=True)}
    finally:  # an error, or Ctrl-C, waits for the tensors that are being read only
        pool.shutdown(cancel_futures=True)


def _file_stream(name: str, info: TensorInfo) -> Stream:
    import numpy

    word = numpy.dtype(WORDS.get(info.dtype, "u1"))

    def read(unit: int = 1) -> Iterator[Words]:
        begin, end = info.offsets
        size = _step(unit) * word.itemsize
        memory = numpy.empty(min(size, end - begin) // word.itemsize, word)
        with tensor_bytes(info) as take:
            for place in range(begin, end, size):
                chunk = memory[: (end - place) // word.itemsize]
                take(chunk.data)
                yield chunk

    return Stream(name, info.dtype, info.shape, read)


def _decoded_stream(name: str, weight: Bitmasked) -> Stream:
    def read(unit: int = 1) -> Iterator[Words]:
        return _regroup(dense_chunks(weight), _step(unit))

    return Stream(name, weight.values.dtype, weight.values.shape, read)


def _memory_stream(
    name: str, tensor: Tensor, load: Callable[[], Tensor] | None = None
) -> Stream:
    """Of a tensor in memory; ``load`` brings one that is offloaded."""
    dtype, shape = _kind(tensor), tuple(tensor.shape)

    def read(unit: int = 1) -> Iterator[Words]:
        import torch

        here = tensor if load is None else load()
        flat = here.detach().reshape(-1)
        size = _step(unit)
        for begin in range(0, flat.numel(), size):
            chunk = flat[begin : begin + size].cpu().contiguous()
            words: Words = chunk.view(torch.uint8).numpy()
            yield words.view(WORDS.get(dtype, "u1"))

    return Stream(name, dtype, shape, read)


def _kind(tensor: Tensor) -> str:
    """The dtype, or a quantiser's own class, which only stands for its elements."""
    kind = type(tensor.data).__name__
    if kind != "Tensor":
        return kind
    dtype = str(tensor.dtype).removeprefix("torch.")
    return _TORCH.get(dtype, dtype)


def _gguf(located: Located) -> Iterator[Stream]:
    """The tensors of a GGUF file, unpacked to float32.

    A quantised block can only hold an exact zero where its format has one, so what is
    seen here is the model as llama.cpp would run it.
    """
    import_gguf()
    file = located.folder / str(located.gguf)
    with file.open("rb") as stream:
        state = file_state(stream.fileno())
    for tensor in open_gguf(located).tensors:
        shape = tuple(reversed([int(size) for size in tensor.shape]))
        begin = int(tensor.data_offset)
        offsets = begin, begin + int(tensor.n_bytes)
        # Read, not mapped: a file that is cut short meanwhile would kill the process.
        info = TensorInfo(file, tensor.tensor_type.name, shape, offsets, state)
        yield _gguf_stream(tensor.name, info, tensor.tensor_type)


def _gguf_stream(name: str, info: TensorInfo, kind: Any) -> Stream:
    def rows() -> Iterator[Words]:
        import numpy
        from gguf.quants import dequantize

        count = math.prod(info.shape[:-1])
        if not math.prod(info.shape):
            return
        width = (info.offsets[1] - info.offsets[0]) // count
        step = max(1, CHUNK // info.shape[-1])
        with tensor_bytes(info) as take:
            for row in range(0, count, step):
                packed = numpy.empty((min(step, count - row), width), "u1")
                take(packed.data)
                try:
                    dense = dequantize(packed, kind)
                except NotImplementedError as error:
                    raise CheckpointError(
                        f"{info.file}: {name} is {info.dtype}, which the package gguf "
                        "cannot unpack: give the checkpoint that it was made from"
                    ) from error
                yield numpy.ascontiguousarray(dense, "<f4").reshape(-1).view("<u4")

    def read(unit: int = 1) -> Iterator[Words]:
        return _regroup(rows(), _step(unit))

    return Stream(name, "F32", info.shape, read)


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
