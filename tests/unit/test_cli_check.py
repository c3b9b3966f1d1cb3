"""What ``pplguard check`` prints, and for which files."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from pytest_pplguard.cli.check import check_baselines
from pytest_pplguard.errors import UsageError

from .recorded import KEY, edit, perplexity, weights, write


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    write(Path("baselines/llama.yaml"), fingerprint=weights())
    write(Path("baselines/opt.yaml"))
    Path("baselines/other.yaml").write_text("jobs: {}\n")
    return Path("baselines")


def evidence(folder: Path, file: str) -> Path:
    (only,) = folder.glob(f"{file}/dense/wanda-*.json")
    return only


def test_sound(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert check_baselines([folder])
    assert capsys.readouterr().out == (
        "2 baseline files, 2 checkpoints, 2 values computed again, 0 published values, "
        "3 evidence files: sound\n"
    )


def test_one_file_of_two(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    evidence(folder, "opt").unlink()
    assert check_baselines([folder / "llama.yaml"])
    assert capsys.readouterr().out == (
        "1 baseline file, 1 checkpoint, 1 value computed again, 0 published values, 2 "
        "evidence files: sound\n"
    )


def test_problems_and_warnings(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    value = perplexity((4.0, 5.0))
    edit(
        folder / "opt.yaml", (f"token_perplexity: {value!r}\n", "token_perplexity: 1\n")
    )
    (folder / "llama/dense/old-0123456789ab.json").write_text("{}")
    assert not check_baselines([folder])
    name = evidence(folder, "opt").name
    assert capsys.readouterr().out == (
        f"baselines/opt.yaml:8: opt/dense, {KEY}: token_perplexity 1.0 is recorded, "
        f"but its evidence opt/dense/{name} gives {value!r}: a recorded value is never "
        "edited by hand: restore it, or record anew with `pplguard update`\n"
        "2 baseline files, 2 checkpoints, 1 value computed again, 0 published values, "
        "3 evidence files: 1 problem\n"
    )


def test_evidence_that_nobody_names_is_a_warning(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "llama/dense/old-0123456789ab.json").write_text("{}")
    assert check_baselines([folder])
    warning, last = capsys.readouterr().out.splitlines()
    assert warning == (
        "baselines/llama/dense/old-0123456789ab.json:1: warning: no baseline file "
        "names this evidence: remove it"
    )
    assert last.endswith(": sound")
    # Of one file nobody knows what the others name.
    assert check_baselines([folder / "opt.yaml"])
    assert len(capsys.readouterr().out.splitlines()) == 1


def test_evidence_stands_for_its_file(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = evidence(folder, "opt")
    path.write_text("{}")
    assert not check_baselines([path, folder / "opt.yaml", path])
    problem, last = capsys.readouterr().out.splitlines()
    assert problem.startswith(f"baselines/opt.yaml:8: opt/dense, {KEY}: evidence ")
    assert last.endswith("1 evidence file: 1 problem")


def test_what_only_a_terminal_would_see_is_written_out(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = (folder / "opt.yaml").read_text()
    (folder / "opt.yaml").write_text(
        text.replace("  dense:", '  "\\e[31m<b>\\n":\n    gates: {}\n  dense:')
    )
    assert not check_baselines([folder])
    out = capsys.readouterr().out
    assert "\x1b" not in out
    assert out.splitlines()[0].startswith(
        "baselines/opt.yaml:4: '\\x1b[31m<b>\\n' cannot name a checkpoint: "
    )


@pytest.mark.skipif(shutil.which("git") is None, reason="git is missing")
def test_evidence_that_was_not_added(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in os.environ if name.startswith("GIT_")]:
        monkeypatch.delenv(name)
    git("init", "--quiet")
    # Nothing of this is on its way into a commit yet.
    assert check_baselines([folder])
    git("add", "baselines/opt.yaml", "baselines/llama")
    capsys.readouterr()
    assert not check_baselines([folder])
    path = evidence(folder, "opt")
    assert capsys.readouterr().out.splitlines()[0] == (
        f"baselines/opt.yaml:8: opt/dense, {KEY}: git has this record and not its "
        f"evidence: add {path} too (`git add --force`, if .gitignore names it)"
    )
    git("add", str(path))
    assert check_baselines([folder])
    # What is recorded again is no fault before it is added.
    write(folder / "opt.yaml", (7.0, 7.0))
    assert check_baselines([folder])
    git("add", "baselines/opt.yaml")
    assert not check_baselines([folder])


def git(*words: str) -> None:
    subprocess.run(["git", *words], check=True)


@pytest.mark.parametrize(
    ("path", "message"),
    [
        (
            "baselines/lama.yaml",
            "baselines/lama.yaml: no such file or folder (did you mean 'llama.yaml'?)",
        ),
        ("nowhere", "nowhere: no such file or folder"),
        (
            "baselines/llama",
            "baselines/llama: no baseline file in this folder: give another, or record "
            "one with `pplguard update MODEL --checkpoint FILE/NAME --base BASE`",
        ),
        (
            "x.json",
            "x.json: no baseline file to which this evidence belongs: it lies below "
            "its file, FILE/NAME/*.json beside FILE.yaml",
        ),
    ],
)
def test_what_cannot_be_checked(folder: Path, path: str, message: str) -> None:
    assert folder.is_dir()
    with pytest.raises(UsageError) as caught:
        check_baselines([Path(path)])
    assert str(caught.value) == message
