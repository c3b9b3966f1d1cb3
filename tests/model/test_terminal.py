"""Runs on a real terminal of 80 columns, and commands on consoles of other kinds."""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
import unicodedata
from pathlib import Path

import pytest
from safetensors.numpy import load_file, save_file

from pytest_pplguard.checkpoints.locate import DEMO
from pytest_pplguard.cli.app import app
from pytest_pplguard.errors import PplguardError
from tests.zygote import programs

from .commands import pplguard

pty = pytest.importorskip("pty", reason="needs a POSIX system")
fcntl = pytest.importorskip("fcntl", reason="needs a POSIX system")
termios = pytest.importorskip("termios", reason="needs a POSIX system")

COLUMNS = 80
COLOUR = re.compile(r"\x1b\[[\d;]*m")
_TOKEN = re.compile(r"\x1b\[\??([\d;]*)([A-Za-z])|\r|\n|[^\x1b\r\n]+")


class Screen:
    """What a terminal shows in the end, and all that it has shown on the way."""

    def __init__(self, text: str) -> None:
        self.rows: list[str] = [""]
        self.widest = 0
        row = column = 0
        for token in _TOKEN.finditer(text):
            if token[0] == "\n":
                row += 1
                if row == len(self.rows):
                    self.rows.append("")
            elif token[0] == "\r":
                column = 0
            elif token[2] == "A":
                row -= int(token[1] or 1)
            elif token[2] == "K":
                assert token[1] == "2"
                self.rows[row] = ""
            elif token[2] in ("m", "h", "l"):  # colours, and whether a cursor is seen
                continue
            else:
                assert token[2] is None, token[0]
                line = self.rows[row].ljust(column)
                end = column + len(token[0])
                self.rows[row] = line[:column] + token[0] + line[end:]
                column = end

    @property
    def text(self) -> str:
        return "\n".join(row.rstrip() for row in self.rows)


def run(command: list[str], cwd: Path, **environment: str) -> tuple[str, int]:
    """Everything that a command writes to a terminal, and its exit status."""
    child, master = pty.fork()
    if child == 0:
        os.chdir(cwd)
        os.environ.update(
            TERM="xterm-256color", HF_HUB_OFFLINE="1", COLUMNS="80", **environment
        )
        os.environ.pop("NO_COLOR", None)
        os.execvp(command[0], command)
    size = (24).to_bytes(2, sys.byteorder) + COLUMNS.to_bytes(2, sys.byteorder)
    fcntl.ioctl(master, termios.TIOCSWINSZ, size + bytes(4))
    written = b""
    while True:
        try:
            data = os.read(master, 65536)
        except OSError:  # the other end is closed
            break
        if not data:
            break
        written += data
    os.close(master)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return written.decode(), status


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo's baselines."""
    path = tmp_path_factory.mktemp("demo")
    assert pplguard("demo", ".", cwd=path).returncode == 0
    return path


def test_a_red_run_on_a_terminal(folder: Path) -> None:
    command = [str(programs() / "pytest"), "-p", "no:cacheprovider"]
    gate = "baselines/demo.yaml::wanda-50::wanda/demo:256"
    told, status = run([*command, gate, "--ppl-model=demo/wanda-50=demo/dense"], folder)
    assert status == 1
    plain = COLOUR.sub("", told)
    # While it runs: what is loaded, then windows, running perplexity and time left.
    assert re.search(r"[-\\|/] loading demo/wanda-50 \(2\.14 MB\) 0:00:0\d", plain)
    assert re.search(r"\d/64 \d\.\d+ per token about \d+ s left", plain)
    for shown in re.split(r"[\r\n]", re.sub(r"\x1b\[\??[\d;]*[A-Za-z]", "", told)):
        if "/64" in shown or "loading" in shown:
            assert len(shown) <= COLUMNS
    # And afterwards nothing of it is left.
    screen = Screen(told).text
    assert "loading" not in screen
    assert "per token" not in screen
    assert "\u2501" not in screen
    assert "\nbaselines/demo.yaml F  " in screen
    # The failure fits, but for the command, which can be copied.
    end = screen.index("= short test summary info =")
    lines = screen[screen.index("= FAILURES =") : end].splitlines()
    (accept,) = (line for line in lines if line.startswith("  to accept"))
    assert accept == (
        f"  to accept    pytest {gate} --ppl-model demo/wanda-50=demo/dense "
        "--ppl-update"
    )
    assert [line for line in lines if len(line) > COLUMNS and line != accept] == []
    assert (
        "\n  where        the whole text moved: 64 of 64 windows are better, by\n"
        "               0.052 +- 0.003 nats a token\n" in screen
    )
    red = "\x1b[1m\x1b[31mIMPROVED\x1b[0m"
    assert red in told


def test_commands_on_a_terminal(folder: Path) -> None:
    script = str(programs() / "pplguard")
    words = ["measure", "demo/wanda-50", "--method", "wanda", "--corpus", "demo"]
    told, status = run([script, *words, "--window", "256"], folder)
    assert status == 0
    assert "\x1b[1mdemo/wanda-50\x1b[0m\r\n  wanda/demo:256: 64 windows, " in told
    assert re.search(r"\d/64 \d\.\d+ per token", COLOUR.sub("", told))
    assert Screen(told).text.count("per token") == 0
    told, status = run([script, "show", "nothing"], folder, NO_COLOR="1")
    assert status == 2
    told, status = run([script, "show"], folder, FORCE_COLOR="")
    assert status == 0
    assert max(map(len, COLOUR.sub("", told).splitlines())) <= COLUMNS
    told, status = run([script, "diff", "demo/dense", "demo/wanda-50"], folder)
    assert status == 1
    assert max(map(len, COLOUR.sub("", told).splitlines())) <= COLUMNS
    told, status = run([script, "doctor", "demo/wanda-50"], folder)
    assert status == 0
    assert max(map(len, COLOUR.sub("", told).splitlines())) <= COLUMNS
    assert "\x1b[32mhealthy\x1b[0m" in told
    told, status = run([script, "compare", "demo", "--limit", "2"], folder)
    assert status == 0
    assert max(map(len, Screen(told).text.splitlines())) <= COLUMNS


EVIL = "<b>|`\x1b[31m\x9b\u202e\r\x07\n::error::" + "w" * 4096


def unseen(text: str) -> str:
    """What no reader would see in a text of several lines."""
    hidden = {"Cc", "Cf", "Cs", "Zl", "Zp"}
    return "".join(c for c in text if unicodedata.category(c) in hidden and c != "\n")


def test_evil_tensors_configs_and_baselines_in_commands(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = tmp_path / "m"
    shutil.copytree(DEMO / "dense", model)
    config = json.loads((model / "config.json").read_text(encoding="utf-8"))
    config |= {"architectures": [EVIL], "rope_theta": EVIL, EVIL: EVIL}
    (model / "config.json").write_text(json.dumps(config), encoding="utf-8")
    tensors = load_file(model / "model.safetensors")
    first = next(iter(tensors))
    tensors[EVIL] = tensors.pop(first)
    save_file(tensors, model / "model.safetensors")
    baselines = tmp_path / "baselines"
    baselines.mkdir()
    (baselines / "llama.yaml").write_text(
        "schema: 1\nmodel: org/llama\ncheckpoints:\n  w50:\n    recorded:\n"
        "      wanda/wikitext2:4096:\n        token_perplexity: 6.42\n"
        f"        source: {{kind: published, reference: {json.dumps(EVIL[:60])}, "
        "digits: 2}\n",
        encoding="utf-8",
    )
    commands: list[list[str]] = [
        ["diff", "demo/dense", str(model), "--all"],
        ["doctor", str(model), "--all"],
        ["measure", str(model), "--corpus", "demo", "--window", "256"],
        ["show", "--baselines", str(baselines)],
        ["cache", "info", "--cache-dir", str(tmp_path / EVIL[:30])],
    ]
    for words in commands:
        try:
            app(words, standalone_mode=False)
            told = ""
        except PplguardError as error:
            told = str(error)
        out, err = capsys.readouterr()
        said = out + err + told
        assert unseen(said) == "", words
        assert "::error::" not in {line[:9] for line in said.splitlines()}, words
        assert r"\x1b[31m" in said, words
