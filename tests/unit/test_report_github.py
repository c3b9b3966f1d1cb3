"""Workflow commands as GitHub's runner parses them, and the summary's limit."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_pplguard.report import annotation_commands, append_step_summary
from pytest_pplguard.report.github import SUMMARY_BYTES, fit
from pytest_pplguard.values import Remark

SENTENCE = (
    "**The report is cut here: GitHub shows no more than 1 MiB.** "
    "The section `perplexity` of the log has every verdict.\n"
)


def test_errors_and_warnings() -> None:
    remarks = [
        Remark("llama/w50: regressed", "baselines/llama.yaml", 7),
        Remark("no gate was measured"),
    ]
    assert annotation_commands("error", remarks) == [
        "::error file=baselines/llama.yaml,line=7,title=perplexity"
        "::llama/w50: regressed",
        "::error title=perplexity::no gate was measured",
    ]
    assert annotation_commands("warning", remarks[1:]) == [
        "::warning title=perplexity::no gate was measured"
    ]


def test_what_would_end_a_command_is_escaped() -> None:
    (command,) = annotation_commands(
        "error", [Remark("100 %\r\na, b: c", "a,b:c%.y", 1)]
    )
    assert command == (
        "::error file=a%2Cb%3Ac%25.y,line=1,title=perplexity::100 %25%0D%0Aa, b: c"
    )


def parse(command: str) -> tuple[dict[str, str], str]:
    """As the runner does: actions/runner, ActionCommand.TryParseV2."""
    head, _, data = command.removeprefix("::").partition("::")
    pairs = (pair.partition("=") for pair in head.partition(" ")[2].split(","))
    return (
        {name: unescape(value, "\r\n:,%") for name, _, value in pairs},
        unescape(data, "\r\n%"),
    )


def unescape(text: str, characters: str) -> str:
    for character in characters:
        text = text.replace(f"%{ord(character):02X}", character)
    return text


SEEN = st.text(
    st.one_of(
        st.characters(exclude_categories=("Cc", "Cf", "Cs", "Zl", "Zp")),
        st.sampled_from("\r\n%:,"),
    ),
)


@given(text=SEEN, file=SEEN.filter(bool))
def test_the_runner_reads_what_was_meant(text: str, file: str) -> None:
    (command,) = annotation_commands("error", [Remark(text, file, 3)])
    properties, data = parse(command)
    assert "\n" not in command
    assert "\r" not in command
    assert data == text
    assert properties == {"file": file, "line": "3", "title": "perplexity"}


def test_a_log_that_shows_the_command_is_not_coloured_by_it() -> None:
    (command,) = annotation_commands("error", [Remark("a\x1b[31m\u202eb", "c\x9bd", 1)])
    assert command == (
        "::error file=c\\x9bd,line=1,title=perplexity::a\\x1b[31m\\u202eb"
    )


@pytest.mark.parametrize(("count", "last"), [(10, "9"), (11, "and 2 more"), (30, "21")])
def test_no_more_than_github_shows(count: int, last: str) -> None:
    commands = annotation_commands(
        "error", [Remark(str(number)) for number in range(count)]
    )
    assert len(commands) == 10
    assert last in commands[-1]
    assert [parse(command)[1] for command in commands[:9]] == list("012345678")


def test_the_last_one_says_how_many_more() -> None:
    commands = annotation_commands("error", [Remark("x", "f", 1)] * 12)
    assert commands[-1] == (
        "::error title=perplexity::and 3 more: the job summary and the section "
        "perplexity of this log have them all"
    )


def test_a_summary_is_added_to_what_is_there(tmp_path: Path) -> None:
    file = tmp_path / "summary.md"
    append_step_summary(str(file), ["## a\n", "é\n"])
    assert file.read_text(encoding="utf-8") == "## a\n\né\n"
    file.write_text("made by a step")
    append_step_summary(str(file), ["## a\n"])
    assert file.read_text(encoding="utf-8") == "made by a step\n\n## a\n"


def test_a_summary_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No such file or directory"):
        append_step_summary(str(tmp_path / "no" / "summary.md"), ["## a\n"])


def test_a_long_summary_is_cut_between_blocks_and_says_so(tmp_path: Path) -> None:
    file = tmp_path / "summary.md"
    file.write_text("x" * 1000)
    blocks = [
        "## first\n",
        *(f"{number} " + "é" * 5000 + "\n" for number in range(200)),
    ]
    append_step_summary(str(file), blocks)
    content = file.read_bytes()
    assert SUMMARY_BYTES - 20_000 < len(content) <= SUMMARY_BYTES
    text = content.decode()[1000:]
    assert text.startswith("\n\n## first\n\n0 ")
    assert text.endswith(SENTENCE)
    kept = text.count("é\n")
    assert text == "\n\n" + "\n".join([*blocks[: kept + 1], SENTENCE])


def test_a_name_that_is_no_text_is_written_all_the_same(tmp_path: Path) -> None:
    file = tmp_path / "summary.md"
    append_step_summary(str(file), ["a\udce9\n"])
    assert file.read_text(encoding="utf-8") == "a\\udce9\n"


def test_a_summary_without_room_stays_as_it_is(tmp_path: Path) -> None:
    file = tmp_path / "summary.md"
    file.write_text("x" * SUMMARY_BYTES)
    append_step_summary(str(file), ["## first\n"])
    assert file.stat().st_size <= SUMMARY_BYTES + 2


@given(
    blocks=st.lists(st.text(max_size=200).map(lambda text: text + "\n"), min_size=1),
    room=st.integers(0, 1000),
)
def test_what_fits_is_a_beginning(blocks: list[str], room: int) -> None:
    fitting = fit(blocks, room)
    assert len(fitting) <= room
    text = fitting.decode()
    if text and text != "\n".join(blocks):
        assert "\n".join(blocks).startswith(text.removesuffix(SENTENCE))
        assert text.endswith(SENTENCE)
