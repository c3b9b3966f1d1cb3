"""Splices one entry into the text of a baseline file and leaves every other byte."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NoReturn

from msgspec import Struct
from msgspec.structs import replace

from ..errors import BaselineError
from ..values import SCHEMA
from .emit import Block, field_lines, scalar
from .tree import (
    BYTE_ORDER_MARK,
    LINE_BREAK,
    Field,
    Node,
    Plain,
    parse_tree,
    plain,
    scalar_spans,
)

_ROOT_ORDER = ("schema", "model", "checkpoints")
_ENTRY_ORDER = ("path", "allow_keys", "gates", "recorded")
_COMMENT = re.compile("#[^\n\r\x85\u2028\u2029]*")


class Entry(Struct, frozen=True, kw_only=True):
    """What is to stand at ``checkpoints.<checkpoint>.recorded.<key>``.

    ``default_gates`` maps gate keys to gates; those that the checkpoint already has
    are left as they are. ``path`` is used only where the checkpoint is new.
    """

    checkpoint: str
    key: str
    recorded: Mapping[str, Plain]
    default_gates: Mapping[str, Plain] = {}
    path: str | None = None


def splice(text: str, entries: Sequence[Entry], *, file: str) -> str:
    """``text`` with ``entries`` set, in its own indent, line ends and order.

    In an entry that is replaced, fields that stay the same keep their lines, and
    comments stay where they are.

    Raises:
        BaselineError: ``text`` is no baseline file, or its layout is such that the
            entry cannot be placed; ``file`` and the line are named.
    """
    body = text.removeprefix(BYTE_ORDER_MARK)
    mark = text[: len(text) - len(body)]
    tree = parse_tree(body, file=file)
    return mark + splice_tree(body, tree, entries, file=file)[0]


def splice_tree(
    text: str, tree: Node, entries: Sequence[Entry], *, file: str
) -> tuple[str, Node]:
    """:func:`splice` for a ``text`` that was parsed already; its result is, too.

    Raises:
        BaselineError: as :func:`splice`.
    """
    for batch in _batches(entries):
        text, tree = _splice_batch(text, tree, batch, file)
    return text, tree


def new_file(model: str, entries: Sequence[Entry] = (), *, file: str) -> str:
    """The text of a new baseline file of the base ``model`` that holds ``entries``.

    Raises:
        BaselineError: a value cannot be written.
    """
    start = f"schema: {SCHEMA}\nmodel: {scalar(model)}\ncheckpoints: {{}}\n"
    return splice(start, entries, file=file)


def _batches(entries: Sequence[Entry]) -> Iterator[list[Entry]]:
    """The entries in order, no key of a checkpoint twice in a batch."""
    batch: dict[tuple[str, str], Entry] = {}
    for entry in entries:
        if (entry.checkpoint, entry.key) in batch:
            yield list(batch.values())
            batch = {}
        batch[entry.checkpoint, entry.key] = entry
    if batch:
        yield list(batch.values())


def _splice_batch(
    text: str, tree: Node, entries: Sequence[Entry], file: str
) -> tuple[str, Node]:
    """Set entries together: reading the YAML again is what a splice takes its time for.

    What is replaced may end in the very place where something is added, so that comes
    after it. Entries that cannot be set together are set one by one.
    """
    gates = {name: _gates(group) for name, group in _by_checkpoint(entries).items()}
    entries = [
        replace(entry, default_gates=gates[entry.checkpoint]) for entry in entries
    ]
    known = [entry for entry in entries if _is_recorded(tree, entry)]
    new = [entry for entry in entries if not _is_recorded(tree, entry)]
    result = text, tree
    try:
        for part in filter(None, (known, new)):
            result = _splice_together(*result, part, file)
    except BaselineError:
        if len(entries) == 1:
            raise
    else:
        return result
    for entry in entries:  # the one that is at fault, at its line of the text
        _splice_together(text, tree, [entry], file)
    for entry in entries:
        text, tree = _splice_together(text, tree, [entry], file)
    return text, tree


def _by_checkpoint(entries: Sequence[Entry]) -> dict[str, list[Entry]]:
    groups: dict[str, list[Entry]] = {}
    for entry in entries:
        groups.setdefault(entry.checkpoint, []).append(entry)
    return groups


def _is_recorded(tree: Node, entry: Entry) -> bool:
    node = tree
    for name in ("checkpoints", entry.checkpoint, "recorded", entry.key):
        fields = _fields(node)
        if name not in fields:
            return False
        node = fields[name].node
    return True


def _splice_together(
    text: str, tree: Node, entries: Sequence[Entry], file: str
) -> tuple[str, Node]:
    """Entries of different keys, set at once; an error names the first of them."""
    editor = _Editor(text, tree, file)
    editor.set(entries)
    result = editor.result()
    entry = entries[0]
    place = f"checkpoint {entry.checkpoint}, recorded, {entry.key}"
    advice = (
        "cannot be edited in this layout, nothing was written: put it in block style, "
        "one 'name: value' a line with two more spaces for each level"
    )
    line = _nearest_line(tree, entry)
    try:
        new_tree = parse_tree(result, file=file)
    except BaselineError as error:
        raise BaselineError(f"{file}:{line}: {place}: {advice}") from error
    expected = functools.reduce(_expected, entries, plain(tree))
    if _canonical(plain(new_tree)) != _canonical(expected):
        raise BaselineError(f"{file}:{line}: {place}: {advice}")
    return result, new_tree


def _expected(data: Any, entry: Entry) -> Any:
    """The plain data that the spliced text must hold."""
    checkpoints = dict(data.get("checkpoints") or {})
    checkpoint = dict(checkpoints.get(entry.checkpoint) or {})
    if entry.checkpoint not in checkpoints and entry.path is not None:
        checkpoint["path"] = entry.path
    if entry.default_gates:
        checkpoint["gates"] = {
            **entry.default_gates,
            **(checkpoint.get("gates") or {}),
        }
    recorded = dict(checkpoint.get("recorded") or {})
    checkpoint["recorded"] = {**recorded, entry.key: entry.recorded}
    checkpoints[entry.checkpoint] = checkpoint
    return {**data, "checkpoints": checkpoints}


def _canonical(data: Plain) -> str:
    # Python takes 1, 1.0 and True for equal, JSON text does not.
    return json.dumps(data, sort_keys=True, allow_nan=False)


def _nearest_line(tree: Node, entry: Entry) -> int:
    line, node = tree.line, tree
    for name in ("checkpoints", entry.checkpoint, "recorded", entry.key):
        fields = _fields(node)
        if name not in fields:
            break
        line, node = fields[name].line, fields[name].node
    return line


def _fields(node: Node) -> dict[str, Field]:
    return node.value if isinstance(node.value, dict) else {}


class _Editor:
    """Gathers the edits of entries against one text, and applies them together."""

    def __init__(self, text: str, tree: Node, file: str) -> None:
        self.text = text
        self.tree = tree
        self.file = file
        self.edits: list[tuple[int, int, str]] = []
        found = LINE_BREAK.search(text)
        self.newline = "\r\n" if found and found[0] == "\r\n" else "\n"
        self.step = _indent_step(tree)

    def set(self, entries: Sequence[Entry]) -> None:
        """Set recorded entries of different keys, and the gates that are missing."""
        groups = _by_checkpoint(entries)
        checkpoints = _fields(self.tree).get("checkpoints")
        known = _fields(checkpoints.node) if checkpoints else {}
        # Edits at one place keep their order: what is further in comes first.
        for name in filter(known.__contains__, groups):
            self._set_in(known[name], groups[name])
        new = {
            name: _whole(group) for name, group in groups.items() if name not in known
        }
        if new and checkpoints is None:
            everything = {"checkpoints": Block(new)}
            self._add(self.tree, self.tree.column, everything, order=_ROOT_ORDER)
        elif new and checkpoints is not None:
            self._add_below(checkpoints, new)

    def result(self) -> str:
        """The text with all edits applied; those at one place keep their order."""
        parts: list[str] = []
        position = 0
        for start, end, new in sorted(self.edits, key=lambda edit: edit[:2]):
            parts += [self.text[position:start], new]
            position = max(position, end)
        return "".join([*parts, self.text[position:]])

    # ------------------------------------------------------------- inside a checkpoint

    def _set_in(self, checkpoint: Field, entries: Sequence[Entry]) -> None:
        sections = _fields(checkpoint.node)
        missing: dict[str, Plain] = {}
        gates = sections.get("gates")
        present = _fields(gates.node) if gates else {}
        defaults = _gates(entries)
        wanted = {key: gate for key, gate in defaults.items() if key not in present}
        if wanted and gates:
            self._add_below(gates, wanted)
        elif wanted:
            missing["gates"] = Block(wanted)
        recorded = sections.get("recorded")
        known = _fields(recorded.node) if recorded else {}
        for entry in entries:
            if entry.key in known:
                self._replace(known[entry.key], entry.recorded)
        new = {
            entry.key: Block(entry.recorded)
            for entry in entries
            if entry.key not in known
        }
        if new and recorded is None:
            missing["recorded"] = Block(new)
        elif new and recorded is not None:
            self._add_below(recorded, new)
        if missing:
            self._add_below(checkpoint, missing, order=_ENTRY_ORDER)

    def _replace(self, field: Field, new: Mapping[str, Plain]) -> None:
        node = field.node
        if node.flow or not isinstance(node.value, dict):
            self._fill(field, new)
            return
        old = node.value
        column = self._column(node)
        for name, part in old.items():
            if name not in new:
                self._remove(part)
            elif _canonical(plain(part.node)) != _canonical(new[name]):
                self._rewrite(part, new[name])
        kept = {name: part for name, part in old.items() if name in new}
        added = {name: value for name, value in new.items() if name not in old}
        if not kept:
            self._refuse(field, "holds no field that stays")
        self._insert(kept, added, column=column, order=tuple(new))

    def _rewrite(self, field: Field, value: Plain) -> None:
        """Put ``value`` in the place of a field's value; its comments stay."""
        end = self._content_end(field.node)
        lines = self._lines(field.name, value, field.column)
        name = self.text[field.start : field.end]
        lines[0] = name + lines[0].strip()[len(scalar(field.name)) :]
        notes = self._comments(field.node, since=field.end)
        margin = " " * field.column
        lines = [*(margin + note for note in notes), margin + lines[0], *lines[1:]]
        new = self.newline.join(lines).removeprefix(margin)
        self.edits.append((field.start, end, new))

    def _remove(self, field: Field) -> None:
        """Take a field's lines out; a comment on them stays as a line."""
        end = self._content_end(field.node)
        notes = self._comments(field.node, since=field.end)
        margin = self.newline + " " * field.column
        rest = self.text[end : self._line_end(end)]
        if rest.strip():
            start = end + len(rest) - len(rest.lstrip())
            kept = margin.join([*notes, ""]) if notes else ""
            self.edits.append((field.start, start, kept))
        elif notes:
            self.edits.append((field.start, end, margin.join(notes)))
        else:
            start = self._line_start(field.start)
            stop = self._line_end(end)
            after = LINE_BREAK.match(self.text, stop)
            if after:
                stop = after.end()
            else:  # the last line has no break: take the one before it
                start -= 2 if self.text[start - 2 : start] == "\r\n" else 1
            self.edits.append((start, stop, ""))

    # ------------------------------------------------------------------ adding fields

    def _add_below(
        self, field: Field, new: Mapping[str, Plain], *, order: Sequence[str] = ()
    ) -> None:
        """Add fields to the mapping that is the value of ``field``."""
        if field.node.empty:
            self._fill(field, new)
        elif field.node.flow or not _fields(field.node):
            self._refuse(field, "is not in block style")
        else:
            self._add(field.node, self._column(field.node), new, order=order)

    def _add(
        self, node: Node, column: int, new: Mapping[str, Plain], *, order: Sequence[str]
    ) -> None:
        fields = _fields(node)
        if node.flow:
            raise BaselineError(
                f"{self.file}:{node.line}: is in flow style, {{...}}: write it in "
                "block style, one 'name: value' a line"
            )
        order = order or (*fields, *new)
        self._insert(fields, new, column=column, order=order)

    def _insert(
        self,
        present: Mapping[str, Field],
        new: Mapping[str, Plain],
        *,
        column: int,
        order: Sequence[str],
    ) -> None:
        """Add fields each after the nearest one before it in ``order``."""
        for name, value in new.items():
            lines = self._lines(name, value, column)
            before = [other for other in order[: order.index(name)] if other in present]
            if before:
                last = max((present[other] for other in before), key=lambda f: f.start)
                place = self._end_of(last, column)
                block = "".join(self.newline + line for line in lines)
            else:
                place = next(iter(present.values())).start
                block = "".join(line + self.newline for line in lines)
                block = block.removeprefix(" " * column) + " " * column
            self.edits.append((place, place, block))

    def _fill(self, field: Field, new: Mapping[str, Plain]) -> None:
        """Replace the value of ``field`` by block lines below it."""
        node = field.node
        column = field.column + self.step
        start = node.start
        while self.text[start - 1] == " ":
            start -= 1
        end = self._content_end(node)
        notes = self._comments(node, since=node.start)
        lines = [" " * column + note for note in notes]
        for name, value in new.items():
            lines += self._lines(name, value, column)
        if start < end:
            self.edits.append((start, end, ""))
        place = self._line_end(end)
        block = "".join(self.newline + line for line in lines)
        self.edits.append((place, place, block))

    def _lines(self, name: str, value: Plain, column: int) -> list[str]:
        return field_lines(name, value, column=column, step=self.step)

    # -------------------------------------------------------------------------- places

    def _end_of(self, field: Field, column: int) -> int:
        """The end of the last line of ``field``, and of comments that belong to it."""
        end = self._line_end(max(field.end, self._content_end(field.node)))
        position = end
        while after := LINE_BREAK.match(self.text, position):
            position = self._line_end(after.end())
            line = self.text[after.end() : position]
            if not line.strip():
                continue
            if not line.lstrip(" ").startswith("#"):
                break
            if len(line) - len(line.lstrip(" ")) <= column:
                break
            end = position
        return end

    def _content_end(self, node: Node) -> int:
        """``node.end`` without the blank lines that end a block text."""
        return node.start + len(self.text[node.start : node.end].rstrip())

    def _line_start(self, position: int) -> int:
        while position and not LINE_BREAK.match(self.text[position - 1]):
            position -= 1
        return position

    def _line_end(self, position: int) -> int:
        found = LINE_BREAK.search(self.text, position)
        return found.start() if found else len(self.text)

    def _column(self, node: Node) -> int:
        return next(iter(_fields(node).values())).column

    def _comments(self, node: Node, *, since: int) -> list[str]:
        """Comments between the parts of ``node``, which would go with it."""
        found = []
        for start, end in [*scalar_spans(node), (node.end, node.end)]:
            found += _COMMENT.findall(self.text[since:start])
            since = max(since, end)
        return found

    def _refuse(self, field: Field, what: str) -> NoReturn:
        raise BaselineError(
            f"{self.file}:{field.line}: {field.name} {what} and cannot be added to: "
            "write it in block style, one 'name: value' a line"
        )


def _whole(entries: Sequence[Entry]) -> Block:
    """All of a checkpoint that is new."""
    checkpoint = Block()
    if entries[0].path is not None:
        checkpoint["path"] = entries[0].path
    if gates := _gates(entries):
        checkpoint["gates"] = Block(gates)
    checkpoint["recorded"] = Block(
        {entry.key: Block(entry.recorded) for entry in entries}
    )
    return checkpoint


def _gates(entries: Sequence[Entry]) -> dict[str, Plain]:
    """The default gates of a checkpoint's entries; the first of a key counts."""
    gates: dict[str, Plain] = {}
    for entry in entries:
        for key, gate in entry.default_gates.items():
            gates.setdefault(key, gate)
    return gates


def _indent_step(tree: Node) -> int:
    """How many columns the file indents by, at its first nested block mapping."""
    for field in _fields(tree).values():
        node = field.node
        if _fields(node) and not node.flow:
            return node.column - field.column
    return 2
