"""Turns the bits of floating-point formats into numbers."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy

    Array = numpy.ndarray[Any, Any]

# Of each 8-bit format: bits of the exponent, bits of the mantissa, the bias, and
# whether it has infinities, or one NaN in place of -0.0.
_BYTES = {
    "F8_E4M3": (4, 3, 7, "nan"),
    "F8_E5M2": (5, 2, 15, "inf"),
    "F8_E4M3FNUZ": (4, 3, 8, "fnuz"),
    "F8_E5M2FNUZ": (5, 2, 16, "fnuz"),
}


def as_float32(words: Array, dtype: str) -> Array:
    """The numbers of ``words``, exactly; ``dtype`` is a floating one but not F64."""
    if dtype == "F32":
        return words.view("<f4")
    if dtype == "BF16":
        return (words.astype("<u4") << 16).view("<f4")
    if dtype == "F16":
        return words.view("<f2").astype("<f4")
    table: Array = _byte_values(dtype)
    return table[words]


def as_floats(words: Array, dtype: str) -> Array:
    """The numbers of ``words``, exactly: float64 for F64, else float32."""
    return words.view("<f8") if dtype == "F64" else as_float32(words, dtype)


@functools.cache
def _byte_values(dtype: str) -> Array:
    """The numbers of all 256 bytes of an 8-bit format (OCP OFP8; FNUZ of ONNX)."""
    import numpy

    exponent_bits, mantissa_bits, bias, kind = _BYTES[dtype]
    top = (1 << exponent_bits) - 1
    last = (1 << mantissa_bits) - 1
    values = []
    for byte in range(256):
        sign = -1.0 if byte & 0x80 else 1.0
        exponent = (byte >> mantissa_bits) & top
        mantissa = byte & last
        fraction = mantissa / (last + 1)
        if kind == "fnuz" and byte == 0x80:
            value = float("nan")
        elif kind == "inf" and exponent == top:
            value = float("nan") if mantissa else float("inf")
        elif kind == "nan" and exponent == top and mantissa == last:
            value = float("nan")
        elif exponent == 0:
            value = fraction * 2.0 ** (1 - bias)
        else:
            value = (1 + fraction) * 2.0 ** (exponent - bias)
        values.append(sign * value)
    return numpy.array(values, "<f4")
