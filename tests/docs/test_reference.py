"""What is generated is what is committed, and what the program really says."""

from __future__ import annotations

import re
import subprocess
import sys
import xml.etree.ElementTree as ET
from collections.abc import Callable
from pathlib import Path

import pytest

from pytest_pplguard.baselines import parse_baseline
from pytest_pplguard.checkpoints import locate
from pytest_pplguard.cli.app import app
from pytest_pplguard.corpora import open_corpus
from pytest_pplguard.errors import PplguardError
from pytest_pplguard.options import parse_batch_size
from pytest_pplguard.protocols import get_protocol
from pytest_pplguard.session.marker import parse_request
from pytest_pplguard.values import Key
from scripts.reference.__main__ import generated, main
from scripts.reference.errors import CLASSES, messages

from .blocks import ROOT


def test_the_generated_parts_are_up_to_date() -> None:
    for name, text in generated().items():
        assert (ROOT / name).read_text(encoding="utf-8") == text, (
            f"{name}: run python -m scripts.reference"
        )


def test_what_is_out_of_date_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--check"]) == 0
    fresh = generated() | {"docs/reference/errors.md": "other", "docs/new.md": "new"}
    monkeypatch.setattr("scripts.reference.__main__.generated", lambda: fresh)
    assert main(["--check"]) == 1
    assert capsys.readouterr().out == (
        "docs/reference/errors.md is out of date: python -m scripts.reference\n"
        "docs/new.md is out of date: python -m scripts.reference\n"
    )


# Real mistakes of every room, whose messages must be found on the page.
MISTAKES: dict[str, Callable[[], object]] = {
    "option": lambda: parse_batch_size("none", option="--batch-size"),
    "key": lambda: Key.parse("wanda"),
    "method": lambda: get_protocol("wnda"),
    "marker": lambda: parse_request((), {"relative": 1}, what="@pytest.mark.ppl"),
    "text": lambda: open_corpus("wikitext3", {}),
    "file of a text": lambda: open_corpus("mine", {"mine": "no/such.txt"}),
    "checkpoint": lambda: locate("no/such/folder"),
    "baseline": lambda: parse_baseline("schema: 2\n", "llama.yaml"),
    "gate": lambda: parse_baseline(
        "schema: 1\nmodel: m\ncheckpoints:\n  a:\n    gates:\n      wnda: {}\n",
        "m.yaml",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES.values(), ids=MISTAKES.keys())
def test_a_message_is_found_by_its_words(mistake: Callable[[], object]) -> None:
    with pytest.raises(PplguardError) as caught:
        mistake()
    said = " ".join(str(caught.value).split())
    page = (ROOT / "docs/reference/errors.md").read_text(encoding="utf-8")
    kinds = [kind.__name__ for kind in type(caught.value).__mro__[:-3]]
    fitting = [
        line
        for line in re.findall(r"^- (`+ ?)(.*?)\1?$", page, re.M)
        if re.search(
            ".*".join(map(re.escape, re.split(r"<[\w.]+>", line[1].strip("` ")))), said
        )
    ]
    assert fitting, said
    assert any(kind in page for kind in kinds)


def test_every_class_of_errors_is_on_the_page() -> None:
    page = (ROOT / "docs/reference/errors.md").read_text(encoding="utf-8")
    assert re.findall(r"^\| `(\w+)` \|", page, re.M) == list(CLASSES)
    assert len(messages()) > 300


def test_the_commands_on_the_page_are_the_programs() -> None:
    page = (ROOT / "docs/reference/commands.md").read_text(encoding="utf-8")
    listed = re.findall(r"^## pplguard (\S+(?: \S+)?)$", page, re.M)
    names = {
        command.name or getattr(command.callback, "__name__", "")
        for command in app.registered_commands
    }
    groups = {group.name for group in app.registered_groups}
    assert {name.split()[0] for name in listed} == names | groups


def test_the_options_of_a_command_are_those_of_its_help() -> None:
    done = subprocess.run(
        [
            *(sys.executable, "-c", "from pytest_pplguard.cli import main; main()"),
            *("measure", "--help"),
        ],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    page = (ROOT / "docs/reference/commands.md").read_text(encoding="utf-8")
    section = page.partition("## pplguard measure\n")[2].partition("\n## ")[0]
    helped = set(re.findall(r"^ +(--[a-z-]+)", done.stdout, re.M)) - {"--help"}
    assert len(helped) > 15
    assert set(re.findall(r"^\| `(--[a-z-]+)", section, re.M)) == helped


def test_badges_are_pictures_that_say_what_they_show() -> None:
    for path in sorted(Path(ROOT / "docs/images").glob("badge-*.svg")):
        root = ET.fromstring(path.read_text(encoding="utf-8"))
        words = root.attrib["aria-label"]
        texts = [node.text for node in root.iter("{http://www.w3.org/2000/svg}text")]
        assert words == ": ".join(map(str, texts))
