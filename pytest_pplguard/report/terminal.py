"""Lines for a terminal: broken at its width, and coloured where it has colours."""

from __future__ import annotations

import itertools
import operator
import re
import textwrap
from collections.abc import Callable, Iterable, Iterator

Style = Callable[[str, str], str]
"""Gives a text a style, such as ``bold red``; without colours, the text as it is."""

FACT = 12
"""Characters of the names before the facts of a failure text."""
COMMANDS = ("to accept", "to record")
"""Names of facts that are commands: to be copied, and so never broken."""

_SPAN = re.compile(r"`[^`\n]+`|\S+ \+- \S+|\d %")
"""What is not broken: commands, a number and its error, a number of percent."""
_FACT = re.compile(rf"  (?P<name>[a-z ]{{{FACT}}}) (?P<text>\S.*)")
_MORE = " " * (FACT + 3)
_LONG_REASON = 160
_HELD = "\x00"


def unstyled(text: str, _: str) -> str:
    """The style of a log, a file, and a terminal without colours."""
    return text


def wrapped(
    text: str, width: int | None, *, first: str = "", rest: str | None = None
) -> list[str]:
    """``text`` in lines of ``width`` behind ``first``, further ones behind ``rest``.

    Words are not cut, and `` `commands` `` not broken: both can be copied. Without a
    width, or where it fits, it is one line.
    """
    rest = first if rest is None else rest
    lines: list[str] = []
    for part in text.split("\n"):
        indent = rest if lines else first
        if width is None or len(indent) + len(part) <= width:
            lines.append(f"{indent}{part}".rstrip())
            continue
        held = _SPAN.sub(lambda span: span[0].replace(" ", _HELD), part)
        lines += (
            line.replace(_HELD, " ")
            for line in textwrap.wrap(
                held,
                max(width, len(rest) + 20),
                initial_indent=indent,
                subsequent_indent=rest,
                break_long_words=False,
                break_on_hyphens=False,
            )
        )
    return lines


def failure_lines(
    text: str, *, width: int | None, style: Style, shown: set[str]
) -> list[str]:
    """A failure text as a terminal shows it; reports keep it as it is.

    Facts are broken with a hanging indent, commands stay on their line. A long reason
    that is in ``shown`` is cut, and so are lines about the checkpoint: of one that
    cannot be loaded, or that has changed, every gate says the same. ``shown`` gets
    those that are not.
    """
    return [
        line
        for part in _once(text.split("\n"), shown)
        for line in _of(part, width, style, shown)
    ]


def _once(lines: Iterable[str], shown: set[str]) -> Iterator[str]:
    """The lines; of those about the checkpoint the first where all are ``shown``."""
    for name, group in itertools.groupby(_named(lines), key=operator.itemgetter(0)):
        block = [line for _, line in group]
        if name == "checkpoint" and len(block) > 1:
            if (said := "\n".join(block)) in shown:
                yield f"{block[0]} ... (in full further up)"
                continue
            shown.add(said)
        yield from block


def _named(lines: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Each line with the name of the fact that it belongs to."""
    name = ""
    for line in lines:
        if not line.startswith(_MORE):
            fact = _FACT.fullmatch(line)
            name = fact["name"].strip() if fact is not None else ""
        yield name, line


def _of(line: str, width: int | None, style: Style, shown: set[str]) -> Iterator[str]:
    if line.startswith(_MORE):
        yield from wrapped(line.removeprefix(_MORE), width, first=_MORE)
    elif (fact := _FACT.fullmatch(line)) is not None:
        name, said = fact["name"], fact["text"]
        first = f"  {name} "
        if name.strip() in COMMANDS:
            yield f"{first}{style(said, 'bold')}"
            return
        if name.strip() == "because" and len(said) > _LONG_REASON:
            if said in shown:
                said = f"{said[: _LONG_REASON // 2].rstrip()} ... (in full further up)"
            else:
                shown.add(said)
        yield from wrapped(said, width, first=first, rest=_MORE)
    else:
        for part in wrapped(line, width, rest="  "):
            yield style(part, "bold red") if part else part
