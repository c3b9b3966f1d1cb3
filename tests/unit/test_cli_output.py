"""Every line of a command passes the place that makes it safe, coloured and whole."""

from __future__ import annotations

import ast
import io
import sys
from pathlib import Path

import pytest

from pytest_pplguard import cli
from pytest_pplguard.cli.output import (
    say,
    show,
    show_prose,
    show_table,
    style_of,
    write_anything,
)

FOLDER = Path(cli.__file__).parent


class Stream(io.TextIOWrapper):
    """A stream in memory that may be a terminal."""

    def __init__(self, encoding: str = "utf-8", *, terminal: bool = False) -> None:
        self.raw_bytes = io.BytesIO()
        super().__init__(self.raw_bytes, encoding=encoding, newline="\n")
        self._terminal = terminal

    def isatty(self) -> bool:
        return self._terminal

    def text(self) -> str:
        self.flush()
        return self.raw_bytes.getvalue().decode(self.encoding)


@pytest.mark.parametrize(
    "path", sorted(FOLDER.glob("*.py")), ids=lambda path: str(path.name)
)
def test_commands_print_through_one_module(path: Path) -> None:
    calls = (
        node.func.id
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
    )
    # The error that ends a command has its colour.
    assert "print" not in set(calls) or path.name in ("output.py", "__init__.py")


def test_results_are_printable(capsys: pytest.CaptureFixture[str]) -> None:
    show("a\x1b[31mb", "\u202ec")
    show_table(["head\x07", "  cell\x9b"])
    say("--ppl-window\x1b is wrong")
    out, err = capsys.readouterr()
    assert out == "a\\x1b[31mb\n\\u202ec\nhead\\x07\n  cell\\x9b\n"
    assert err == "pplguard: --window\\x1b is wrong\n"


def test_a_terminal_has_bold_headings_and_whole_words(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    terminal = Stream(terminal=True)
    monkeypatch.setattr(sys, "stdout", terminal)
    monkeypatch.setenv("COLUMNS", "40")
    monkeypatch.setenv("TERM", "xterm")
    for name in ("NO_COLOR", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)
    show_table(["head", "  " + "word " * 10])
    show_prose("one two three four five six seven eight nine ten", rest="    ")
    assert terminal.text() == (
        "\x1b[1mhead\x1b[0m\n"
        "  word word word word word word word\n"
        "    word word word\n"
        "one two three four five six seven eight\n"
        "    nine ten\n"
    )


@pytest.mark.parametrize(
    ("environment", "terminal", "coloured"),
    [
        ({}, True, True),
        ({}, False, False),
        ({"NO_COLOR": "1"}, True, False),
        ({"TERM": "dumb"}, True, False),
        ({"FORCE_COLOR": "1"}, False, True),
        ({"FORCE_COLOR": "1", "NO_COLOR": "1"}, True, False),
    ],
)
def test_when_there_are_colours(
    environment: dict[str, str],
    terminal: bool,
    coloured: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("NO_COLOR", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    text = style_of(Stream(terminal=terminal))("x", "bold red")
    assert text == ("\x1b[1;31mx\x1b[0m" if coloured else "x")


@pytest.mark.parametrize(
    ("encoding", "shown"),
    [
        ("ascii", "Gj\\xf8vik ... \\u6587 \\udcff\n"),
        ("cp1252", "Gj\xf8vik \u2026 \\u6587 \\udcff\n"),
        ("utf-8", "Gj\xf8vik \u2026 \u6587 \\udcff\n"),
    ],
)
def test_a_console_of_any_encoding(
    encoding: str, shown: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = Stream(encoding)
    monkeypatch.setattr(sys, "stdout", stream)
    monkeypatch.setattr(sys, "stderr", Stream(encoding))
    write_anything()
    print("Gj\xf8vik \u2026 \u6587 \udcff")
    assert stream.text() == shown
