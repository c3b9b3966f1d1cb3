"""Text on the page: nothing invisible in it, nothing that bursts it, every digit."""

from __future__ import annotations

import math
import re

from ..text import number

LONGEST_NAME = 120
"""Characters of a name that are shown; the whole stands in its ``title``."""

_HIDDEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff"
    "\ud800-\udfff]"
)
"""Control characters, what turns the direction of text, and halves of characters."""


_PLUS_MINUS = re.compile(r"(?<=\d) \+- (?=\d)")
_LONG_WORD = re.compile(r"\S{200,}")


def visible(text: str) -> str:
    r"""``text`` with what is not seen made visible.

    An escape character is shown as ``\x1b``, and does nothing. So is a surrogate, which
    is what Python makes of a byte in a name of a file that is no UTF-8: ``\udcff``, as
    in the other reports.
    """
    return _HIDDEN.sub(_shown, text)


def _shown(found: re.Match[str]) -> str:
    code = ord(found[0])
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"


def shown(text: str) -> str:
    """``text`` as it stands on the page: visible, and no word buries what is below."""
    return _LONG_WORD.sub(lambda found: clip(found[0]), visible(text))


def typeset(text: str) -> str:
    """A fact with an arrow and a plus-minus as print has them, but not what it quotes.

    Facts are in ASCII, because a terminal may have nothing else.
    """
    own, quote, quoted = text.partition('"')
    own = _PLUS_MINUS.sub(" \N{PLUS-MINUS SIGN} ", own)
    return own.replace(" -> ", " \N{RIGHTWARDS ARROW} ") + quote + quoted


def clip(text: str, most: int = LONGEST_NAME) -> str:
    """``text``, its middle left out where it is longer than ``most`` characters."""
    if len(text) <= most:
        return text
    head = (most - 1) // 2
    return f"{text[:head]}…{text[len(text) - (most - 1 - head) :]}"


def exact(value: float | None) -> str:
    """Every digit, as JSON, CSV and JUnit have it; empty where there is no number."""
    return "" if value is None or not math.isfinite(value) else repr(value)


def rounded(value: float | None) -> str:
    """Six digits; a dash where there is no number."""
    return "–" if value is None or not math.isfinite(value) else number(value)


def signed(value: float | None) -> str:
    """Three digits with a sign, for differences: ``+0.0399``."""
    if value is None or not math.isfinite(value):
        return "–"
    return f"{value:+.3g}".replace("-", "\N{MINUS SIGN}")


def percent(share: float | None) -> str:
    """A share in percent: ``50.0 %``."""
    return "–" if share is None else f"{share * 100:.1f} %"
