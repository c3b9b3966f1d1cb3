"""Takes a checkpoint's fingerprint: facts and digests of every tensor, in one pass."""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from ..values import Fingerprint, TensorFacts
from .describe import describe_config, describe_tokenizer
from .files import read_config
from .locate import Located
from .numbers import as_float32
from .sparsity import linear_weights
from .streams import Model, Stream, weight_streams

if TYPE_CHECKING:
    import numpy

    Array = numpy.ndarray[Any, Any]

_DIGITS = 32
"""Hexadecimal digits that are kept of a tensor's SHA-256: 128 bits."""
_MOST_THREADS = 16


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


def tensor_facts(streams: Iterable[Stream]) -> dict[str, TensorFacts]:
    """The facts of each tensor, several tensors at a time.

    A thread holds one chunk. numpy and hashlib let others run while they work.
    """
    # The largest first, so that none of them is left for the end.
    work = sorted(streams, key=_size, reverse=True)
    threads = min(_MOST_THREADS, os.cpu_count() or 1)
    with ThreadPoolExecutor(threads) as pool:
        facts = pool.map(_facts, work)
        return {s.name: f for s, f in zip(work, facts, strict=True)}


def _size(stream: Stream) -> int:
    return math.prod(stream.shape)


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


class _Tally:
    """Sums up the chunks of one floating tensor.

    Its numbers are digested as float32: the upper halves of the words, which are all of
    a bfloat16, apart from the lower ones, which count only if one of them is not zero.
    So bfloat16 and float32 of equal numbers have one digest, and a bfloat16 costs no
    more than the hash of its bytes. A float64 that no float32 holds adds its own bits.
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
        if dtype == "BF16":
            values, has_low = as_float32(words, dtype), False
        elif dtype == "F64":
            values, has_low = self._narrow(words), True
        else:
            values, has_low = as_float32(words, dtype), True
        self._digest(values, has_low=has_low)

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
        return values

    def _digest(self, values: Array, *, has_low: bool) -> None:
        import numpy

        # Adding 0.0 turns -0.0 into 0.0 and changes nothing else.
        with numpy.errstate(invalid="ignore"):  # of signalling NaNs
            values = values + numpy.float32(0)
        nonzero = values != 0
        self.zeros += values.size - int(numpy.count_nonzero(nonzero))
        self.mask.update(numpy.packbits(nonzero).data)
        words = values.view("<u4")
        self.parity ^= int(numpy.bitwise_xor.reduce(words))
        self._high.update((words >> 16).astype("<u2").data)
        if has_low:
            low = words.astype("<u2")
            self._has_low |= bool(low.any())
            self._low.update(low.data)
        self._sum_up(values)

    def _sum_up(self, values: Array) -> None:
        import numpy

        magnitude = numpy.abs(values)
        peak = float(magnitude.max(initial=0))
        if not numpy.isfinite(peak):
            finite = numpy.isfinite(values)
            self.bad += values.size - int(numpy.count_nonzero(finite))
            values = values[finite]
            peak = float(magnitude[finite].max(initial=0))
        self.peak = max(self.peak, peak)
        # A square may be beyond float32; few tensors have such a peak.
        if peak > 1e15:
            values = values.astype("f8")
        self.sum += float(values.sum())
        self.squares += float(numpy.dot(values, values))
