"""Text of others' making: printed, on one line, in a shell, in any encoding."""

from __future__ import annotations

import subprocess
import sys
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_pplguard.safetext import encodable, one_line, printable, shell_join


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b[31mred\x1b[0m", "\\x1b[31mred\\x1b[0m"),
        ("\x1b]8;;http://x\x1b\\link\x07", "\\x1b]8;;http://x\\x1b\\link\\x07"),
        ("a\rb\bc\x00", "a\\rb\\x08c\\x00"),
        ("\x9b31m", "\\x9b31m"),
        ("\u202egpj.exe\u2066", "\\u202egpj.exe\\u2066"),
        ("a\u2028b\x85c", "a\\u2028b\\x85c"),
        ("\udcff \ud83d", "\\udcff \\ud83d"),
        ("\U000e0041", "\\U000e0041"),
        ("two\nlines\tand a tab, é 文 😀", "two\nlines\tand a tab, é 文 😀"),
    ],
)
def test_what_cannot_be_seen_is_written_out(text: str, shown: str) -> None:
    assert printable(text) == shown


@given(st.text())
def test_nothing_printed_moves_a_terminal_or_cannot_be_written(text: str) -> None:
    shown = printable(text)
    shown.encode("utf-8")
    categories = {unicodedata.category(c) for c in shown if c not in "\n\t"}
    assert categories.isdisjoint({"Cc", "Cs", "Zl", "Zp"})
    bidirectional = {"LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI"}
    assert bidirectional.isdisjoint(map(unicodedata.bidirectional, shown))
    assert printable(shown) == shown


def test_a_name_is_one_line_and_of_a_length() -> None:
    assert one_line("a\nb\tc\x1b") == "a\\nb\\tc\\x1b"
    assert one_line("w" * 4096) == "w" * 4096
    assert one_line("start" + "w" * 4096 + "end", most=21) == "startwww[...]wwwwwend"


@pytest.mark.parametrize(
    ("encoding", "shown"),
    [
        ("utf-8", "Gjøvik … → 文"),
        ("cp1252", "Gjøvik … -> \\u6587"),
        ("ascii", "Gj\\xf8vik ... -> \\u6587"),
        ("no-such-encoding", "Gjøvik … → 文"),
        (None, "Gjøvik … → 文"),
    ],
)
def test_any_encoding(encoding: str | None, shown: str) -> None:
    assert encodable("Gjøvik … → 文", encoding) == shown


WORDS = ["pytest", "a b", "it's", "\x1b[31m\n'\\x", "\udcff", "\u202eé", "文"]


@pytest.mark.skipif(sys.platform == "win32", reason="needs bash")
def test_a_command_says_the_very_words_to_a_shell() -> None:
    line = shell_join(WORDS)
    assert line.startswith("pytest 'a b' ")
    assert printable(line) == line
    assert "\n" not in line
    script = f"printf '%s\\0' {line}"
    result = subprocess.run(
        ["bash", "-c", script], capture_output=True, check=True, env={"LC_ALL": "C"}
    )
    told = result.stdout.split(b"\0")[:-1]
    assert told == [word.encode("utf-8", "surrogateescape") for word in WORDS]
