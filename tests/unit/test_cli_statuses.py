"""Options and exit statuses of the commands that read baselines."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from pytest_pplguard.checkpoints.locate import DEMO
from pytest_pplguard.cli import main

from .recorded import edit, write

BASELINES = Path(__file__).parents[2] / "baselines"


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def status(monkeypatch: pytest.MonkeyPatch, *words: str) -> int | str | None:
    monkeypatch.setattr(sys, "argv", ["pplguard", *words])
    with pytest.raises(SystemExit) as caught:
        main()
    return caught.value.code


@pytest.mark.usefixtures("here")
def test_check(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write(Path("baselines/llama.yaml"))
    write(Path("others/opt.yaml"))
    assert status(monkeypatch, "check") == 0
    assert capsys.readouterr().out.startswith("1 baseline file, ")
    assert status(monkeypatch, "check", "others", "baselines/llama.yaml") == 0
    assert capsys.readouterr().out.startswith("2 baseline files, ")
    assert status(monkeypatch, "check", "--baselines", "others") == 0
    edit(Path("others/opt.yaml"), ("windows: 2", "windows: 3"))
    assert status(monkeypatch, "check", "others") == 1
    assert status(monkeypatch, "check", "nowhere") == 2
    assert capsys.readouterr().err == (
        "pplguard: error: nowhere: no such file or folder\n"
    )


@pytest.mark.skipif(shutil.which("git") is None, reason="git is missing")
def test_review(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(here.parent))
    for name in ("GIT_DIR", "GIT_INDEX_FILE", "GIT_WORK_TREE"):
        monkeypatch.delenv(name, raising=False)
    file = Path("others/llama.yaml")
    write(file)
    assert status(monkeypatch, "review", "--baselines", "others") == 2
    assert "is in no git repository that can be read" in capsys.readouterr().err
    subprocess.run(["git", "init", "--quiet"], check=True)
    identity = ("-c", "user.name=a", "-c", "user.email=a@b")
    subprocess.run(["git", "add", "."], check=True)
    subprocess.run(["git", *identity, "commit", "-qm", "first"], check=True)
    edit(file, ("{rel: 0.005}", "{rel: 0.5}"))
    assert status(monkeypatch, "review", "--baselines", "others") == 0
    text = capsys.readouterr().out
    assert "LOOSENED: 1 gate" in text
    loosened = ("review", "--baselines", "others", "--fail-if-loosened")
    assert status(monkeypatch, *loosened) == 1
    assert status(monkeypatch, *loosened, "--markdown") == 1
    assert "### " in capsys.readouterr().out
    edit(file, ("{rel: 0.5}", "{rel: 0.001}"))
    assert status(monkeypatch, *loosened) == 0


@pytest.mark.usefixtures("here")
def test_card(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(DEMO / "dense", "model")
    options = ("--baselines", str(BASELINES))
    assert status(monkeypatch, "card", "model", *options, "--dry-run") == 0
    assert capsys.readouterr().out.startswith("---\nlibrary_name: transformers\n")
    assert not Path("model/README.md").exists()
    wrong = ("--checkpoint", "demo/wanda-50")
    assert status(monkeypatch, "card", "model", *options, *wrong) == 2
    right = ("--checkpoint", "demo/dense")
    assert status(monkeypatch, "card", "model", *options, *right) == 0
    assert Path("model/README.md").exists()
    assert status(monkeypatch, "card", "nowhere", *options) == 1
