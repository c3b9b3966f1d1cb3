"""Tests that a splice changes one entry and nothing else, whatever the layout."""

from __future__ import annotations

import datetime
import math
import sys
from textwrap import dedent
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import Struct

from pytest_pplguard.baselines import Entry, new_file, splice
from pytest_pplguard.baselines.emit import field_lines, flow, scalar
from pytest_pplguard.baselines.tree import parse_tree, plain
from pytest_pplguard.errors import BaselineError

FILE = "baselines/m.yaml"
GATE = {"token_perplexity": {"rel": 0.005}}


def an_entry(
    checkpoint: str = "dense",
    key: str = "wanda/wikitext2:4096",
    value: float = 5.5,
    **more: Any,
) -> Entry:
    return Entry(
        checkpoint=checkpoint,
        key=key,
        recorded={
            "token_perplexity": value,
            "units": {"tokens": 12},
            "source": {"kind": "measured"},
            "first": {"token_perplexity": value, "date": "2026-11-23"},
        },
        **more,
    )


def spliced(text: str, *entries: Entry) -> str:
    return splice(dedent(text), entries or [an_entry()], file=FILE)


def test_a_new_file_has_the_layout_of_the_design() -> None:
    entry = an_entry(default_gates={"wanda/wikitext2:4096": GATE}, path="out/x")
    assert new_file("meta-llama/Llama-2-7b-hf", [entry], file=FILE) == dedent(
        """\
        schema: 1
        model: meta-llama/Llama-2-7b-hf
        checkpoints:
          dense:
            path: out/x
            gates:
              wanda/wikitext2:4096: {token_perplexity: {rel: 0.005}}
            recorded:
              wanda/wikitext2:4096:
                token_perplexity: 5.5
                units: {tokens: 12}
                source: {kind: measured}
                first: {token_perplexity: 5.5, date: 2026-11-23}
        """
    )


def test_replacing_keeps_comments_order_and_unchanged_lines() -> None:
    old = """\
        # the house rules
        schema: 1
        model: m
        checkpoints:
          dense:
            recorded:
              wanda/wikitext2:4096:  # the paper's window
                # accepted in review 12
                units:   {tokens: 12}
                token_perplexity: 5.4   # was 5.2
                first: {token_perplexity: 5.5,   # long ago
                        date: 2026-01-01}  # by hand
                reference: old  # gone
                # the end of it
                source: {kind: measured}
              # of the next one
              lm-eval/wikitext:4096: {word_perplexity: 8.0}
        """
    assert spliced(old) == dedent(
        """\
        # the house rules
        schema: 1
        model: m
        checkpoints:
          dense:
            recorded:
              wanda/wikitext2:4096:  # the paper's window
                # accepted in review 12
                units:   {tokens: 12}
                token_perplexity: 5.5   # was 5.2
                # long ago
                first: {token_perplexity: 5.5, date: 2026-11-23}  # by hand
                # gone
                # the end of it
                source: {kind: measured}
              # of the next one
              lm-eval/wikitext:4096: {word_perplexity: 8.0}
        """
    )


def test_a_gate_and_an_entry_are_added_before_comments_of_what_follows() -> None:
    old = """\
        schema: 1
        model: m
        checkpoints:

            dense:
                gates:
                    weights: any  # for now
                        # still about weights

                    # wanda/c4:2048: later
                path: out/x
            # pruned
            wanda-50:
        ...
        """
    new = spliced(old, an_entry(default_gates={"wanda/wikitext2:4096": GATE}))
    assert new == dedent(
        """\
        schema: 1
        model: m
        checkpoints:

            dense:
                gates:
                    weights: any  # for now
                        # still about weights
                    wanda/wikitext2:4096: {token_perplexity: {rel: 0.005}}

                    # wanda/c4:2048: later
                path: out/x
                recorded:
                    wanda/wikitext2:4096:
                        token_perplexity: 5.5
                        units: {tokens: 12}
                        source: {kind: measured}
                        first: {token_perplexity: 5.5, date: 2026-11-23}
            # pruned
            wanda-50:
        ...
        """
    )


RECORD = """\
wanda/wikitext2:4096:
  token_perplexity: 5.5
  units: {tokens: 12}
  source: {kind: measured}
  first: {token_perplexity: 5.5, date: 2026-11-23}
"""


def indented(text: str, columns: int) -> str:
    return "".join(" " * columns + line for line in text.splitlines(True))


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("checkpoints: {}  # none", "checkpoints:  # none\n  dense:\n    recorded:\n"),
        ("checkpoints:", "checkpoints:\n  dense:\n    recorded:\n"),
        ("checkpoints: ~", "checkpoints:\n  dense:\n    recorded:\n"),
        ("# end", "checkpoints:\n  dense:\n    recorded:\n"),
        (
            "checkpoints:\n  dense: null # d",
            "checkpoints:\n  dense: # d\n    recorded:\n",
        ),
        (
            "checkpoints:\n  dense:\n    recorded: {  # why\n    }",
            "checkpoints:\n  dense:\n    recorded:\n      # why\n",
        ),
        (
            'checkpoints:\n  "dense":\n    "recorded":',
            'checkpoints:\n  "dense":\n    "recorded":\n',
        ),
    ],
)
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_empty_parents(before: str, after: str, newline: str) -> None:
    head = "schema: 1\nmodel: m\n"
    old = (head + before + "\n").replace("\n", newline)
    new = splice(old, [an_entry()], file=FILE)
    if before == "# end":
        expected = head + after + indented(RECORD, 6) + before + "\n"
    else:
        expected = head + after + indented(RECORD, 6)
    assert new == expected.replace("\n", newline)


def test_no_final_newline_byte_order_mark_and_document_marks() -> None:
    head = "\ufeff---\nschema: 1\nmodel: m\ncheckpoints:\n  a:\n    path: x"
    new = splice(head, [an_entry("a")], file=FILE)
    assert new == head + "\n    recorded:\n" + indented(RECORD, 6).rstrip("\n")


def test_a_flow_entry_becomes_a_block() -> None:
    old = """\
        schema: 1
        model: m
        checkpoints:
          dense:
            recorded:
              'wanda/wikitext2:4096': {token_perplexity: 5.0,  # old
                  source: {kind: published, reference: "a # b", digits: 2}}  # paper
          next:
        """
    assert spliced(old) == dedent(
        """\
        schema: 1
        model: m
        checkpoints:
          dense:
            recorded:
              'wanda/wikitext2:4096':  # paper
                # old
                token_perplexity: 5.5
                units: {tokens: 12}
                source: {kind: measured}
                first: {token_perplexity: 5.5, date: 2026-11-23}
          next:
        """
    )


def test_removed_fields_at_both_ends() -> None:
    old = """\
        schema: 1
        model: m
        checkpoints:
          dense:
            recorded:
              wanda/wikitext2:4096:
                zzz: 1
                source: {kind: published}
                last: {
                  # why
                  a: 1}
                environment: {a: 1}"""
    assert spliced(old) == dedent(
        """\
        schema: 1
        model: m
        checkpoints:
          dense:
            recorded:
              wanda/wikitext2:4096:
                token_perplexity: 5.5
                units: {tokens: 12}
                source: {kind: measured}
                first: {token_perplexity: 5.5, date: 2026-11-23}
                # why"""
    )


def test_block_texts_keep_the_blank_lines_behind_them() -> None:
    old = """\
        schema: 1
        checkpoints:
          dense:
            path: |
              # text

          next:
            recorded:
              wanda/wikitext2:4096:
                source: >-
                  old

                # the end
        """
    new = spliced(old, an_entry(), an_entry("next"))
    record = indented(RECORD, 6).rstrip("\n").replace("\n", "\n        ")
    assert new == dedent(
        f"""\
        schema: 1
        checkpoints:
          dense:
            path: |
              # text
            recorded:
        {record}

          next:
            recorded:
              wanda/wikitext2:4096:
                token_perplexity: 5.5
                units: {{tokens: 12}}
                source: {{kind: measured}}
                first: {{token_perplexity: 5.5, date: 2026-11-23}}

                # the end
        """
    )


def test_a_list_of_several_lines_is_replaced() -> None:
    old = """\
        schema: 1
        checkpoints:
          dense:
            recorded:
              wanda/wikitext2:4096:
                source: {kind: measured}
                names:
                  # first
                  - a
                  - "# b"  # second
                windows: 2
        """
    names = Entry(
        checkpoint="dense",
        key="wanda/wikitext2:4096",
        recorded={"source": {"kind": "measured"}, "names": ["a", "2:4"], "windows": 2},
    )
    assert spliced(old, names) == dedent(
        """\
        schema: 1
        checkpoints:
          dense:
            recorded:
              wanda/wikitext2:4096:
                source: {kind: measured}
                # first
                names: [a, "2:4"]  # second
                windows: 2
        """
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "{schema: 1, model: m}",
            "baselines/m.yaml:1: is in flow style, {...}: write it in block style, "
            "one 'name: value' a line",
        ),
        (
            "schema: 1\ncheckpoints: {a: {path: x}}",
            "baselines/m.yaml:2: checkpoints is not in block style and cannot be "
            "added to: write it in block style, one 'name: value' a line",
        ),
        (
            "schema: 1\ncheckpoints:\n  dense: {path: x}",
            "baselines/m.yaml:3: dense is not in block style and cannot be added to: "
            "write it in block style, one 'name: value' a line",
        ),
        (
            "schema: 1\ncheckpoints:\n  dense:\n    recorded: {a/b:1: {m: 1.0}}",
            "baselines/m.yaml:4: recorded is not in block style and cannot be added "
            "to: write it in block style, one 'name: value' a line",
        ),
        (
            "schema: 1\ncheckpoints:\n  dense:\n    recorded:\n"
            "      wanda/wikitext2:4096:\n        other: 1",
            "baselines/m.yaml:5: wanda/wikitext2:4096 holds no field that stays and "
            "cannot be added to: write it in block style, one 'name: value' a line",
        ),
    ],
)
def test_layouts_that_cannot_be_spliced(text: str, message: str) -> None:
    with pytest.raises(BaselineError) as caught:
        splice(text, [an_entry()], file=FILE)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    "text",
    [
        "schema: 1\n? checkpoints\n: dense:\n    path: |+\n     x\n\n",
        "schema: 1\ncheckpoints:\n  dense: {recorded: {}}\n",
        "schema: 1\ncheckpoints:\n  dense: {recorded: {wanda/wikitext2:4096: {}}}\n",
    ],
)
def test_a_splice_that_would_change_something_else_is_refused(text: str) -> None:
    with pytest.raises(BaselineError) as caught:
        splice(text, [an_entry()], file=FILE)
    assert str(caught.value) == (
        "baselines/m.yaml:3: checkpoint dense, recorded, wanda/wikitext2:4096: cannot "
        "be edited in this layout, nothing was written: put it in block style, one "
        "'name: value' a line with two more spaces for each level"
    )


# ------------------------------------------------------------------------- any layout


class Line(Struct):
    text: str
    owner: tuple[str, str] | None = None
    section: str | None = None


NAMES = ("dense", "wanda-50", "sparsegpt-2.4", "no", "2026-11-23")
KEYS = (
    "wanda/wikitext2:4096",
    "wanda/c4:128:first3",
    "lm-eval/wikitext+demo:256",
    "fingerprint",
)
PLACEHOLDERS = ("", " {}", " null", " ~", " { }")


class Layout:
    """Draws the text of a file line by line, and remembers whose line it is."""

    def __init__(self, draw: st.DrawFn) -> None:
        self.draw = draw
        self.step = draw(st.sampled_from([2, 3, 4, 7]))
        self.lines: list[Line] = []
        self.count = 0

    def maybe(self) -> bool:
        return self.draw(st.booleans())

    def put(self, level: int, text: str, **whose: Any) -> None:
        note = ""
        if self.draw(st.integers(0, 3)) == 0:
            note = f"  # note {self.count}"
            self.count += 1
        self.lines.append(Line(" " * self.step * level + text + note, **whose))

    def noise(self, level: int, **whose: Any) -> None:
        kind = self.draw(st.integers(0, 5))
        if kind == 0:
            self.lines.append(Line(self.draw(st.sampled_from(["", "  "])), **whose))
        elif kind == 1:
            text = " " * self.step * level + f"# noise {self.count}: a: {{"
            self.count += 1
            self.lines.append(Line(text, **whose))

    def name(self, text: str) -> str:
        quotes = ["'", '"']
        if text not in ("no", "2026-11-23"):
            quotes.append("")
        quote = self.draw(st.sampled_from(quotes))
        return f"{quote}{text}{quote}"

    def file(self) -> None:
        if self.maybe():
            self.lines.append(Line("--- # first"))
        self.noise(0)
        self.put(0, "schema: 1")
        self.noise(0)
        self.put(0, "model: 'a # b'")
        self.put(0, "checkpoints:")
        names = self.draw(st.lists(st.sampled_from(NAMES), min_size=1, unique=True))
        for name in names:
            self.noise(1)
            self.checkpoint(name)
        self.noise(0)
        if self.maybe():
            self.lines.append(Line("..."))

    def checkpoint(self, name: str) -> None:
        self.put(1, self.name(name) + ":")
        sections = self.draw(
            st.lists(
                st.sampled_from(["path", "gates", "recorded"]), min_size=1, unique=True
            )
        )
        for section in sections:
            self.noise(2)
            if section == "path":
                self.put(2, 'path: "out/x: #y"')
            elif section == "gates":
                self.put(2, "gates:")
                self.put(3, "weights: any")
                self.noise(3)
            else:
                self.recorded(name)

    def recorded(self, name: str) -> None:
        keys = self.draw(st.lists(st.sampled_from(KEYS), unique=True))
        if not keys:
            empty = self.draw(st.sampled_from(PLACEHOLDERS))
            self.put(2, "recorded:" + empty, section=name)
            return
        self.put(2, "recorded:")
        for key in keys:
            self.noise(3)
            self.entry(name, key)

    def entry(self, name: str, key: str) -> None:
        owner = (name, key)
        if self.maybe():
            text = "{token_perplexity: 5.5, source: {kind: measured}}"
            self.put(3, f"{self.name(key)}:   {text}", owner=owner)
            return
        self.put(3, f"{self.name(key)}:", owner=owner)
        fields = [
            "token_perplexity: " + self.draw(st.sampled_from(["5.5", "1.0e-05"])),
            "source: {kind: measured}",
            self.draw(st.sampled_from(["environment: {a: b}", "windows: 3"])),
            self.draw(st.sampled_from(["units: {a: 1}", "stderr: {acc: 1.0e-05}"])),
        ]
        for field in self.draw(st.permutations(fields)):
            self.noise(4, owner=owner)
            self.put(4, field, owner=owner)


@st.composite
def layouts(draw: st.DrawFn) -> Layout:
    layout = Layout(draw)
    layout.file()
    return layout


def loaded(text: str) -> Any:
    """What PyYAML's own loader makes of it, dates as texts."""

    def texts(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: texts(item) for name, item in value.items()}
        return value.isoformat() if isinstance(value, datetime.date) else value

    return texts(yaml.safe_load(text))


def comments(text: str) -> list[str]:
    return sorted(
        line[line.index("# n") :] for line in text.splitlines() if "# n" in line
    )


def is_in_order(part: list[str], whole: list[str]) -> bool:
    rest = iter(whole)
    return all(line in rest for line in part)


@settings(max_examples=400, deadline=None)
@given(
    layouts(),
    st.sampled_from(NAMES),
    st.sampled_from(KEYS),
    st.sampled_from(["\n", "\r\n"]),
    st.booleans(),
    st.booleans(),
)
def test_any_layout_keeps_every_other_byte(
    layout: Layout, name: str, key: str, newline: str, final: bool, gate: bool
) -> None:
    old = newline.join(line.text for line in layout.lines) + newline * final
    entry = an_entry(
        name, key, 1e-7, default_gates={key: GATE} if gate else {}, path="p"
    )
    expected = loaded(old)
    checkpoint = expected["checkpoints"].setdefault(name, {"path": "p"})
    checkpoint["recorded"] = {**(checkpoint.get("recorded") or {}), key: entry.recorded}
    if gate:
        checkpoint["gates"] = {key: GATE, **(checkpoint.get("gates") or {})}

    new = splice(old, [entry], file=FILE)

    assert loaded(new) == expected
    others = [
        line.text.replace("recorded: {}", "recorded:")
        .replace("recorded: null", "recorded:")
        .replace("recorded: ~", "recorded:")
        .replace("recorded: { }", "recorded:")
        if line.section == name
        else line.text
        for line in layout.lines
        if line.owner != (name, key)
    ]
    assert is_in_order(others, new.split(newline))
    assert comments(new) == comments(old)
    assert new.endswith(newline) == old.endswith(newline)
    assert new.count("\n") == new.count(newline)
    assert splice(new, [entry], file=FILE) == new


def outcome(text: str, *batches: list[Entry]) -> str:
    """The text after all batches, or the words of a refusal."""
    try:
        for entries in batches:
            text = splice(text, entries, file=FILE)
    except BaselineError as error:
        return f"refused: {error}"
    return text


@st.composite
def several(draw: st.DrawFn) -> list[Entry]:
    """Entries for known and new checkpoints and keys, some of them twice."""
    places = st.tuples(st.sampled_from(NAMES), st.sampled_from(KEYS))
    entries = []
    for number, (name, key) in enumerate(
        draw(st.lists(places, min_size=2, max_size=6))
    ):
        gates: dict[str, Any] = {key: GATE} if draw(st.booleans()) else {}
        if draw(st.integers(0, 3)) == 0:
            gates["sparsity"] = {"fraction": number / 64}
        path = draw(st.sampled_from([None, "p"]))
        entry = an_entry(name, key, number + 0.5, default_gates=gates, path=path)
        entries.append(entry)
    return entries


@settings(max_examples=100, deadline=None)
@given(layouts(), several(), st.booleans())
def test_entries_together_give_what_they_give_one_by_one(
    layout: Layout, entries: list[Entry], final: bool
) -> None:
    old = "\n".join(line.text for line in layout.lines) + "\n" * final
    together = outcome(old, entries)
    one_by_one = outcome(old, *([entry] for entry in entries))
    if one_by_one.startswith("refused: "):
        assert together.startswith("refused: ")
    else:
        assert together == one_by_one
        assert comments(together) == comments(old)


def test_of_entries_together_the_one_that_cannot_be_placed_is_named() -> None:
    old = "schema: 1\ncheckpoints:\n  a:\n  b: {path: x}\n  c:\n"
    entries = [an_entry(name) for name in "abc"]
    assert outcome(old, entries) == (
        "refused: baselines/m.yaml:4: b is not in block style and cannot be added to: "
        "write it in block style, one 'name: value' a line"
    )


def test_many_entries_are_not_read_back_one_by_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Reading takes as long as all that is there: 500 would take minutes."""
    read: list[int] = []

    def reading(text: str, *, file: str) -> Any:
        read.append(len(text))
        return parse_tree(text, file=file)

    def entries(value: float) -> list[Entry]:
        return [
            an_entry(name, f"wanda/t{number}:512", value, path="p")
            for number in range(20)
            for name in ("a", "b")
        ]

    monkeypatch.setattr(sys.modules[splice.__module__], "parse_tree", reading)
    half = new_file("m", entries(5.0)[::2], file=FILE)
    assert len(read) == 2  # an empty file, and what was written
    read.clear()
    whole = splice(half, entries(6.0), file=FILE)
    assert len(read) == 3  # what is there, what was replaced, what was added
    monkeypatch.undo()
    assert whole == outcome(half, *([entry] for entry in entries(6.0)))


# ------------------------------------------------------------------------------ values

TRICKY = (
    "|2:4|yes|no|y|null|~|1e-3|1.0|.nan|NaN|2026-11-23|0x1f|0o7|010|1_000|12e4567"
    "| a|a |a: b|a #b|a:|sha256:ab|-|- a|<<|=|C:\\x|caf\u00e9|\U0001f600|\x85|\ufeff"
)
TEXTS = st.text(max_size=20) | st.sampled_from(TRICKY.split("|"))
VALUES = (
    TEXTS
    | st.integers(-(10**15), 10**15)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.booleans()
    | st.none()
)


@settings(max_examples=500, deadline=None)
@given(st.dictionaries(TEXTS, VALUES | st.dictionaries(TEXTS, VALUES, max_size=4)))
def test_emitted_values_read_back_the_same(data: dict[str, Any]) -> None:
    lines = field_lines("root", data, column=0, step=2)
    text = "\n".join(lines) + "\n"
    tree = plain(parse_tree(text, file=FILE))
    assert repr(tree) == repr({"root": data})  # 1, 1.0 and True differ here
    assert loaded(text) == loaded(flow({"root": data}))


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (1e-05, "1.0e-05"),
        (1e16, "1.0e+16"),
        (1.5e300, "1.5e+300"),
        (6.3062154, "6.3062154"),
        (5.0, "5.0"),
        ("2:4", '"2:4"'),
        ("yes", '"yes"'),
        ("2026-11-23", '"2026-11-23"'),
        ("2.12.0", '"2.12.0"'),
        ("NVIDIA H100 80GB HBM3", "NVIDIA H100 80GB HBM3"),
        ("sha256:0a1b", "sha256:0a1b"),
        ("lm-eval/wikitext+demo:256", "lm-eval/wikitext+demo:256"),
        ("x", "x"),
        (True, "true"),
        (None, "null"),
    ],
)
def test_scalars_are_quoted_only_where_needed(value: Any, text: str) -> None:
    assert scalar(value) == text


def test_numbers_that_are_not_finite_are_never_written() -> None:
    with pytest.raises(ValueError, match=r"^nan cannot be written$"):
        scalar(math.nan)
