"""Takes a checkpoint's fingerprint: facts and digests of every tensor, in one pass."""

from __future__ import annotations

import hashlib
import shlex
import threading
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from ..errors import CheckpointError
from ..values import Fingerprint, TensorFacts
from .describe import describe_config, describe_tokenizer
from .files import read_config
from .locate import Located
from .numbers import as_float32
from .sparsity import linear_weights
from .streams import Model, Stream, each, weight_streams

if TYPE_CHECKING:
    import numpy

    Array = numpy.ndarray[Any, Any]

_DIGITS = 32
"""Hexadecimal digits that are kept of a tensor's SHA-256: 128 bits."""

_INFINITY = 0x7F80_0000
_SQUARED = (1e-15, 1e15)


def fingerprint(
    located: Located, *, model: Model | None = None, allow_pickle: bool = False
) -> Fingerprint:
    """Facts and digests of the tensors of a checkpoint.

    From the files, in chunks; those of a quantised checkpoint as they are packed. The
    weights of an adapter and of pickles are those of the loaded model.

    Args:
        located: from :func:`~.locate.locate`.
        model: loads it; called only if need be.
        allow_pickle: whether pickle weights may be loaded.

    Raises:
        CheckpointError: the weights cannot be read, or only in a loaded model and
            ``model`` is None.
    """
    streams = weight_streams(located, model=model, allow_pickle=allow_pickle)
    tensors = tensor_facts(streams)
    return Fingerprint(
        tensors={name: tensors[name] for name in sorted(tensors)},
        linear=tuple(linear_weights(streams, read_config(located))),
        config=describe_config(located),
        tokenizer=describe_tokenizer(located),
    )


def to_record(found: Fingerprint, spec: str) -> Fingerprint:
    """A fingerprint that may be recorded; ``spec`` is the checkpoint, for people.

    Raises:
        CheckpointError: there is NaN or infinity in it, which nobody means to keep.
    """
    if not found.broken:
        return found
    count = len(found.broken)
    raise CheckpointError(
        f"{count} tensor{'s' * (count > 1)} of {spec} hold{'s' * (count == 1)} NaN or "
        f"infinity ({found.broken[0]}{', ...' * (count > 1)}), so its fingerprint is "
        f"not recorded; see `pplguard doctor {shlex.quote(spec)}`"
    )


def tensor_facts(streams: Iterable[Stream]) -> dict[str, TensorFacts]:
    """The facts of each tensor, several tensors at a time."""
    return each(streams, _facts)


def _facts(stream: Stream) -> TensorFacts:
    return _float_facts(stream) if stream.is_float else _opaque_facts(stream)


def _opaque_facts(stream: Stream) -> TensorFacts:
    sha = hashlib.sha256(stream.dtype.encode())
    for chunk in stream.read():
        sha.update(chunk.data)
    return TensorFacts(stream.dtype, stream.shape, sha.hexdigest()[:_DIGITS])


def _float_facts(stream: Stream) -> TensorFacts:
    tally = _Tally()
    for chunk in stream.read():
        tally.add(chunk, stream.dtype)
    return TensorFacts(
        dtype=stream.dtype,
        shape=stream.shape,
        values=tally.values,
        zeros=tally.zeros,
        mask=tally.mask.hexdigest()[:_DIGITS],
        sum=tally.sum,
        norm=tally.squares**0.5,
        peak=tally.peak,
        bad=tally.bad,
        parity=tally.parity,
    )


class _Memory(threading.local):
    """Arrays that a thread writes its steps' results to, chunk after chunk.

    The system takes as long to give new memory as SHA-256 takes for it.
    """

    def __init__(self) -> None:
        self._arrays: dict[tuple[str, str], Array] = {}

    def __call__(self, step: str, dtype: str, size: int) -> Array:
        import numpy

        array = self._arrays.get((step, dtype))
        if array is None or array.size < size:
            array = self._arrays[step, dtype] = numpy.empty(size, dtype)
        return array[:size]


_memory = _Memory()


class _Tally:
    """Sums up the chunks of one floating tensor.

    Its numbers are digested as float32: the upper halves of the words, which are all of
    a bfloat16, apart from the lower ones, which count only if one of them is not zero.
    So bfloat16 and float32 of equal numbers have one digest, and a bfloat16 costs no
    more than the hash of its bytes. A float64 that no float32 holds adds its own bits.

    Zeros are told by their bits: a process may have been set to take numbers below
    1.2e-38 for zero (``torch.set_flush_denormal``), and that decides nothing here.
    """

    def __init__(self) -> None:
        self.zeros = self.bad = self.parity = 0
        self.sum = self.squares = self.peak = 0.0
        self.mask = hashlib.sha256()
        self._high = hashlib.sha256()
        self._low: Any = hashlib.sha256()
        self._wide: Any = hashlib.sha256()
        self._has_low = self._is_wide = False

    def add(self, words: Array, dtype: str) -> None:
        """Take in a chunk of a tensor of ``dtype``."""
        if dtype == "F64":
            self._mark(words)
            words = self._narrow(words)
            largest = int((words & 0x7FFF_FFFF).max(initial=0))
        else:
            if dtype not in ("F32", "BF16"):
                words = as_float32(words, dtype).view("<u4")
            largest = self._mark(words)
        self._digest(words)
        self._sum_up(words, largest)

    @property
    def values(self) -> str:
        """The digest of all numbers."""
        parts = [self._high]
        if self._has_low:
            parts.append(self._low)
        if self._is_wide:
            parts.append(self._wide)
        if len(parts) == 1:
            return self._high.hexdigest()[:_DIGITS]
        joined = b"".join(part.digest() for part in parts)
        return hashlib.sha256(joined).hexdigest()[:_DIGITS]

    def _narrow(self, words: Array) -> Array:
        import numpy

        wide = words.view("<f8") + 0.0  # +0.0 turns -0.0 into 0.0
        with numpy.errstate(over="ignore", invalid="ignore"):
            values = wide.astype("<f4")
            same = (values == wide) | numpy.isnan(wide)
        self._is_wide |= not same.all()
        self._wide.update(wide.data)
        return values.view("<u4")

    def _mark(self, words: Array) -> int:
        """Take in where zeros are; returns the largest bits without their sign."""
        import numpy

        magnitude = _memory("magnitude", words.dtype.str, words.size)
        # A number of the same type: numpy 1 makes an int64 of uint64 and int.
        but_sign = _minus_zero(words) - words.dtype.type(1)
        numpy.bitwise_and(words, but_sign, out=magnitude)
        nonzero = _memory("flags", "?", words.size)
        numpy.not_equal(magnitude, 0, out=nonzero)
        self.zeros += words.size - int(numpy.count_nonzero(nonzero))
        self.mask.update(numpy.packbits(nonzero).data)
        return int(magnitude.max(initial=0))

    def _digest(self, words: Array) -> None:
        """Take in the bits of float32 or bfloat16."""
        import numpy

        minus = _memory("flags", "?", words.size)
        numpy.equal(words, _minus_zero(words), out=minus)
        if minus.any():
            words = numpy.where(minus, words.dtype.type(0), words)
        parity = int(numpy.bitwise_xor.reduce(words))
        if words.itemsize == 2:
            self.parity ^= parity << 16
            self._high.update(words.data)
            return
        self.parity ^= parity
        wide = _memory("wide", "<u4", words.size)
        half = _memory("half", "<u2", words.size)
        numpy.copyto(half, numpy.right_shift(words, 16, out=wide), casting="unsafe")
        self._high.update(half.data)
        numpy.copyto(half, words, casting="unsafe")
        self._has_low |= bool(half.max(initial=0))
        self._low.update(half.data)

    def _sum_up(self, words: Array, largest: int) -> None:
        import numpy

        if words.itemsize == 2:
            wide = _memory("wide", "<u4", words.size)
            numpy.copyto(wide, words)
            words, largest = numpy.left_shift(wide, 16, out=wide), largest << 16
        values = words.view("<f4")
        if largest >= _INFINITY:
            finite = numpy.isfinite(values)
            self.bad += values.size - int(numpy.count_nonzero(finite))
            values = values[finite]
            peak = float(numpy.abs(values).max(initial=0))
        else:
            peak = float(numpy.uint32(largest).view("f4"))
        self.peak = max(self.peak, peak)
        # Squares may be out of float32's range; few tensors have such a peak.
        if not _SQUARED[0] < peak < _SQUARED[1]:
            values = values.astype("f8")
        self.sum += float(values.sum())
        # einsum and not dot: what a BLAS returns depends on its number of threads.
        self.squares += float(numpy.einsum("i,i->", values, values))


def _minus_zero(words: Array) -> Any:
    """-0.0 in the format of ``words``."""
    return words.dtype.type(1 << (8 * words.itemsize - 1))
