"""Turns YAML text into a tree that knows its places, refusing what YAML reads oddly."""

from __future__ import annotations

import bisect
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import yaml
from msgspec import Struct

from ..errors import BaselineError
from ..values import Scalar

Plain: TypeAlias = "Scalar | Sequence[Plain] | Mapping[str, Plain]"
"""Data without places: what a YAML text says."""

MAX_DEPTH = 20
BYTE_ORDER_MARK = "\ufeff"
LINE_BREAK = re.compile("\r\n|[\n\r\x85\u2028\u2029]")

_CONFLICT = re.compile(r"(?:<{7}|\|{7}|={7}|>{7})(?: |$)")
_EXPONENT = re.compile(r"[-+]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)[eE][-+]?[0-9]+")
_OCTAL = re.compile(r"[-+]?0[0-7_]+")
_TAG = "tag:yaml.org,2002:"
_YAML_1_1: Any = yaml.SafeLoader("")


class Node(Struct, frozen=True):
    """A value and its place: ``text[start:end]``, ``line`` from 1, ``column`` from 0.

    ``end`` of a block mapping is the end of its last value, before any comment.
    """

    value: Scalar | tuple[Node, ...] | dict[str, Field]
    start: int
    end: int
    line: int
    column: int
    flow: bool = False
    empty: bool = False


class Field(Struct, frozen=True):
    """One ``key: value`` of a mapping; the place is that of the key."""

    name: str
    node: Node
    start: int
    end: int
    line: int
    column: int


def parse_tree(text: str, *, file: str) -> Node:
    """Read one YAML document, which must be a mapping.

    Raises:
        BaselineError: the text is no YAML, or it uses what a baseline file may not.
    """
    _refuse_conflicts(text, file=file)
    return _Composer(text, file).document()


def plain(node: Node) -> Plain:
    """The data of ``node`` without places."""
    value = node.value
    if isinstance(value, dict):
        return {name: plain(field.node) for name, field in value.items()}
    if isinstance(value, tuple):
        return [plain(item) for item in value]
    return value


def scalar_spans(node: Node) -> Iterator[tuple[int, int]]:
    """``(start, end)`` of every key and scalar below ``node``, in the text's order."""
    value = node.value
    if isinstance(value, dict):
        for field in value.values():
            yield field.start, field.end
            yield from scalar_spans(field.node)
    elif isinstance(value, tuple):
        for item in value:
            yield from scalar_spans(item)
    else:
        yield node.start, node.end


def scalar_of(text: str) -> Scalar:
    """What YAML 1.1 makes of an unquoted ``text``.

    Raises:
        ValueError: it looks like a number that it is not; the message says which.
    """
    tag = str(_YAML_1_1.resolve(yaml.ScalarNode, text, (True, False)))
    kind = tag.removeprefix(_TAG)
    if kind not in ("null", "bool", "int", "float"):
        if _EXPONENT.fullmatch(text):
            raise ValueError(_exponent_advice(text))
        return text
    if kind == "int" and len(text) > 18:
        raise ValueError(f"{text[:18]}... is too long for a whole number")
    try:
        value: Scalar = _YAML_1_1.yaml_constructors[tag](
            _YAML_1_1, yaml.ScalarNode(tag, text)
        )
    except (ValueError, OverflowError) as error:
        raise ValueError(f"{text[:40]} is no number") from error
    if kind in ("int", "float") and ":" in text:
        raise ValueError(
            f'unquoted {text} is read by YAML as the number {value}: quote it: "{text}"'
        )
    if kind == "int" and _OCTAL.fullmatch(text):
        raise ValueError(
            f"{text} is read by YAML as the octal number {value}: drop the leading "
            f'zero, or quote it: "{text}"'
        )
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{text} is not a finite number: write a finite one")
    return value


def _exponent_advice(text: str) -> str:
    mantissa, _, exponent = text.lower().partition("e")
    mantissa += "" if "." in mantissa else ".0"
    exponent = exponent if exponent[0] in "+-" else "+" + exponent
    decimal = f"{float(text):.17g}"
    also = f" or {decimal}" if "e" not in decimal else ""
    return (
        f"YAML reads {text} as a text, not as a number: write {mantissa}e{exponent}"
        f'{also} (or quote it, "{text}", if a text is meant)'
    )


def _refuse_conflicts(text: str, *, file: str) -> None:
    for number, line in enumerate(LINE_BREAK.split(text), start=1):
        if _CONFLICT.match(line):
            raise BaselineError(
                f"{file}:{number}: a merge-conflict marker ({line[:7]}): resolve the "
                "conflict, keep one side and remove the marker lines"
            )


class _Composer:
    """Builds nodes from the parser's events, which still show anchors and tags."""

    def __init__(self, text: str, file: str) -> None:
        self.text = text
        self.file = file
        self.trail: list[str] = []
        self.loader: Any = None

    def document(self) -> Node:
        try:
            self.loader = yaml.SafeLoader(self.text)
            return self._document()
        except yaml.reader.ReaderError as error:
            self.trail.clear()
            breaks = [match.start() for match in LINE_BREAK.finditer(self.text)]
            line = bisect.bisect_left(breaks, error.position) + 1
            raise self._error(
                line,
                f"the character U+{error.character:04X} may not stand in YAML: "
                "remove it",
            ) from error
        except yaml.MarkedYAMLError as error:
            self.trail.clear()  # the scanner is ahead of it
            raise self._syntax_error(error) from error

    def _document(self) -> Node:
        self.loader.get_event()  # the stream starts
        if self.loader.check_event(yaml.StreamEndEvent):
            raise self._error(1, f"the file is empty: {_MINIMUM}")
        self.loader.get_event()  # the document starts
        root = self._node(depth=0)
        self.loader.get_event()  # the document ends
        if not self.loader.check_event(yaml.StreamEndEvent):
            line = self.loader.get_event().start_mark.line + 1
            raise self._error(
                line, "a second YAML document starts here: keep one per file"
            )
        if not isinstance(root.value, dict):
            raise self._error(root.line, f"the file is no mapping: {_MINIMUM}")
        return root

    def _node(self, *, depth: int) -> Node:
        event = self.loader.get_event()
        line = event.start_mark.line + 1
        if isinstance(event, yaml.AliasEvent):
            raise self._error(
                line,
                f"the alias *{event.anchor} is not allowed here: write the value out",
            )
        if event.anchor is not None:
            raise self._error(
                line,
                f"the anchor &{event.anchor} is not allowed here: remove it and write "
                "the value out where it is used",
            )
        if event.tag is not None:
            tag = event.tag.replace(_TAG, "!!")
            raise self._error(
                line, f"the tag {tag} is not allowed here: remove it (quote texts)"
            )
        if depth > MAX_DEPTH:
            raise self._error(line, f"nested deeper than {MAX_DEPTH} levels: flatten")
        if isinstance(event, yaml.ScalarEvent):
            return self._scalar(event)
        if isinstance(event, yaml.SequenceStartEvent):
            return self._sequence(event, depth=depth)
        return self._mapping(event, depth=depth)

    def _scalar(self, event: Any) -> Node:
        mark = event.start_mark
        value: Scalar = event.value
        if event.implicit[0]:  # unquoted
            try:
                value = scalar_of(event.value)
            except ValueError as error:
                raise self._error(mark.line + 1, str(error)) from error
        start, end = mark.index, event.end_mark.index
        return Node(value, start, end, mark.line + 1, mark.column, empty=value is None)

    def _sequence(self, event: Any, *, depth: int) -> Node:
        mark = event.start_mark
        items: list[Node] = []
        while not self.loader.check_event(yaml.SequenceEndEvent):
            items.append(self._node(depth=depth + 1))
        end = self.loader.get_event().end_mark.index
        if items and not event.flow_style:
            end = items[-1].end
        return Node(
            tuple(items),
            mark.index,
            end,
            mark.line + 1,
            mark.column,
            flow=bool(event.flow_style),
        )

    def _mapping(self, event: Any, *, depth: int) -> Node:
        mark = event.start_mark
        fields: dict[str, Field] = {}
        while not self.loader.check_event(yaml.MappingEndEvent):
            field = self._field(depth=depth + 1)
            if field.name in fields:
                raise self._error(
                    field.line,
                    f"the key {field.name!r} is already on line "
                    f"{fields[field.name].line}: keep one of the two",
                )
            fields[field.name] = field
        end = self.loader.get_event().end_mark.index
        if fields and not event.flow_style:
            end = next(reversed(fields.values())).node.end
        return Node(
            fields,
            mark.index,
            end,
            mark.line + 1,
            mark.column,
            flow=bool(event.flow_style),
            empty=not fields,
        )

    def _field(self, *, depth: int) -> Field:
        key = self._node(depth=depth)
        if key.value == "<<" and self.text[key.start] == "<":
            raise self._error(
                key.line, "the merge key << is not allowed here: write the fields out"
            )
        if not isinstance(key.value, str):
            raise self._error(key.line, self._key_advice(key))
        self.trail.append(key.value)
        node = self._node(depth=depth)
        self.trail.pop()
        return Field(key.value, node, key.start, key.end, key.line, key.column)

    def _key_advice(self, key: Node) -> str:
        if isinstance(key.value, dict | tuple):
            return "a mapping or list cannot be a key here: write a text"
        written = self.text[key.start : key.end]
        if not written:
            return "the key before the colon is missing"
        kind = "a yes/no value" if isinstance(key.value, bool) else "a number"
        kind = "an empty value" if key.value is None else kind
        return (
            f"YAML reads the key {written} as {kind}, not as a text: "
            f'quote it: "{written}"'
        )

    def _syntax_error(self, error: yaml.MarkedYAMLError) -> BaselineError:
        mark = error.problem_mark or error.context_mark
        line = mark.line + 1 if mark else 1
        problem = error.problem or error.context or "cannot be read"
        if "'\\t'" in problem:
            return self._error(line, "a tab where YAML allows only spaces: use spaces")
        context = f" {error.context}" if error.context else ""
        return self._error(
            line, f"not valid YAML: {problem}{context}: mend this line or the one above"
        )

    def _error(self, line: int, message: str) -> BaselineError:
        trail = ", ".join(self.trail)
        trail = trail.replace("checkpoints, ", "checkpoint ", 1)
        place = f"{trail}: " if trail else ""
        return BaselineError(f"{self.file}:{line}: {place}{message}")


_MINIMUM = "a baseline file starts with 'schema: 1', 'model: NAME' and 'checkpoints:'"
