"""Headings in front of places of a text that is only known as token ids."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from ..corpora.wikitext import is_heading

Decode = Callable[[Sequence[int]], str]
Before = tuple[int, str]
"""How many headings there are, and the last one; empty where there is none."""

_CONTEXT = 8
"""Tokens that are decoded again in front of a line: some tokenizers leave out the space
before the first token that they are given."""

_LOOKED_AT = 4000
"""Tokens that are searched for the end of a line, backwards from a place."""


def headings_before(
    ids: Sequence[int], stops: Iterable[int], decode: Decode
) -> dict[int, Before]:
    """The headings in ``decode(ids[:stop])`` for each of ``stops``.

    Decoding each from the start would take a time that grows with the square of the
    text. Here the text is decoded once, from line to line; where the parts do not make
    up the whole, as with a tokenizer that looks far back, it is done the slow way.
    """
    wanted = sorted(set(stops))
    lines = _Lines(ids, decode)
    found = {stop: lines.before(stop) for stop in wanted}
    if not wanted or (lines.sound and lines.text == _text(ids, wanted[-1], decode)):
        return found
    return {stop: _summed(_headings(_text(ids, stop, decode))) for stop in wanted}


class _Lines:
    """The text up to a token that only moves on, told from its lines."""

    def __init__(self, ids: Sequence[int], decode: Decode) -> None:
        self._ids = ids
        self._decode = decode
        self._anchor = 0  # the tokens in front of it are whole lines
        self._parts: list[str] = []  # their text
        self._count, self._last = 0, ""
        self._rest = ""  # the text from there on
        self.sound = True  # whether no token changed what stands in front of it

    @property
    def text(self) -> str:
        """All of it."""
        return "".join([*self._parts, self._rest])

    def before(self, stop: int) -> Before:
        """Move on to the token ``stop``; the headings in front of it."""
        anchor = self._line_end(stop)
        if anchor > self._anchor:
            part = self._between(anchor)
            if part.endswith("\n"):
                self._parts.append(part)
                count, last = _summed(_headings(part))
                self._count, self._last = self._count + count, last or self._last
                self._anchor = anchor
        self._rest = self._between(stop)
        count, last = _summed(_headings(self._rest))
        return self._count + count, last or self._last

    def _line_end(self, stop: int) -> int:
        """The nearest place up to ``stop`` where a line ends with a token."""
        first = max(self._anchor, stop - _LOOKED_AT)
        for index in range(stop, first, -1):
            if self._decode(self._ids[index - 1 : index]).endswith("\n"):
                return index
        return self._anchor

    def _between(self, stop: int) -> str:
        """The text from the anchor to ``stop``."""
        if stop == self._anchor:
            return ""
        start = max(0, self._anchor - _CONTEXT)
        known = self._decode(self._ids[start : self._anchor]) if self._anchor else ""
        text = self._decode(self._ids[start:stop])
        self.sound &= text.startswith(known)
        return text[len(known) :]


def _text(ids: Sequence[int], stop: int, decode: Decode) -> str:
    return decode(ids[:stop]) if stop else ""


def _headings(text: str) -> list[str]:
    return [line for line in text.split("\n") if is_heading(line)]


def _summed(headings: Sequence[str]) -> Before:
    return len(headings), headings[-1] if headings else ""
