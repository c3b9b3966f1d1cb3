"""Writes plain data as the lines of a baseline file, such that YAML reads it back."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

from ..values import Scalar
from .tree import Plain, scalar_of

MAX_COLUMNS = 100

_DATE = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}")
_PLAIN = re.compile(r"[A-Za-z0-9_/][\w./+-]*(?:[ :][\w./+-]+)*", re.ASCII)
_NUMBER_LIKE = re.compile(r"(?=.*[0-9])[0-9_.:a-fA-FxXo+-]+", re.ASCII)
_OTHER_WORDS = frozenset({"y", "n", "nan", "inf", "infinity"})
_ESCAPED = re.compile(
    '["\\\\\x00-\x1f\x7f-\x9f\u2028\u2029\ufeff\ud800-\udfff\ufffe\uffff]'
)


class Block(dict[str, Plain]):
    """A mapping that always stands in block style, one field a line."""


def field_lines(name: str, value: Plain, *, column: int, step: int) -> list[str]:
    """The lines of ``name: value`` at ``column``, nested by ``step`` where needed.

    A mapping that is no :class:`Block` stands on one line if that has at most 100
    columns.
    """
    margin = " " * column
    line = f"{margin}{scalar(name)}: {_value(name, value)}"
    if not isinstance(value, Mapping) or not value:
        return [line]
    if not isinstance(value, Block) and len(line) <= MAX_COLUMNS:
        return [line]
    lines = [f"{margin}{scalar(name)}:"]
    for key, item in value.items():
        lines += field_lines(key, item, column=column + step, step=step)
    return lines


def flow(value: Plain) -> str:
    """``value`` on one line, in flow style."""
    if isinstance(value, Mapping):
        fields = (
            f"{scalar(key, flow=True)}: {_value(key, item)}"
            for key, item in value.items()
        )
        return "{" + ", ".join(fields) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(flow, value)) + "]"
    return scalar(value, flow=True)  # type: ignore[arg-type]


def scalar(value: Scalar, *, flow: bool = False) -> str:
    """A single value, quoted if YAML would otherwise read something else.

    Raises:
        ValueError: a number is not finite.
    """
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int):
        return str(value)
    if isinstance(value, float):
        return _float(value)
    return value if _may_be_plain(value) else _quoted(value)


def _value(key: str, value: Plain) -> str:
    is_date = key == "date" and isinstance(value, str) and _DATE.fullmatch(value)
    return str(value) if is_date else flow(value)


def _float(value: float) -> str:
    if not math.isfinite(value):
        raise ValueError(f"{value} cannot be written")
    mantissa, exponent, digits = repr(value).partition("e")
    if "." not in mantissa:  # YAML 1.1 takes 1e-05 for a text
        mantissa += ".0"
    return mantissa + exponent + digits


def _may_be_plain(text: str) -> bool:
    if not _PLAIN.fullmatch(text) or _NUMBER_LIKE.fullmatch(text):
        return False
    if text.lower() in _OTHER_WORDS:
        return False
    return scalar_of(text) == text


def _quoted(text: str) -> str:
    def escape(match: re.Match[str]) -> str:
        character = match[0]
        if character in '"\\':
            return "\\" + character
        return f"\\u{ord(character):04x}"

    return '"' + _ESCAPED.sub(escape, text) + '"'
