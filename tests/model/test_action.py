"""action.yml: linted, and its shell steps run on the demo, green, red and hostile."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
import yaml

from pytest_pplguard.cli.demo import copy_demo
from tests.zygote import programs

from .action import ROOT, Run, load_action, run_action

SCRIPTS = Path(sysconfig.get_path("scripts"))
DOCS = (ROOT / "docs" / "ci.md").read_text(encoding="utf-8")
WORKFLOWS = ("github-action", "github-workflow", "review-workflow")
TOKENS = "-k\ntoken_perplexity\n-p\nno:cacheprovider"
"""Further arguments, one a line: two gates are enough."""
NASTY = "w 50 'x' \"y\" $(touch pwned) `touch pwned`; touch pwned"


def tool(name: str) -> str:
    found = shutil.which(name, path=SCRIPTS) or shutil.which(name)
    if found is None:
        pytest.skip(f"{name} is not installed: python -m pip install -e '.[test]'")
    return found


def passes(*command: str, cwd: Path = ROOT) -> None:
    done = subprocess.run(
        command, cwd=cwd, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def block(name: str) -> str:
    """The YAML behind a comment of docs/ci.md."""
    found = re.search(rf"<!-- {name} -->\n```yaml\n(.*?)```", DOCS, re.S)
    assert found is not None
    return found[1]


# ------------------------------------------------------------------------------- lints


@pytest.fixture
def written(tmp_path: Path) -> Path:
    """What the docs have, and the action, as files of a repository."""
    workflows = tmp_path / ".github" / "workflows"
    workflows.mkdir(parents=True)
    for name in WORKFLOWS:
        # The place of the action is the reader's; a commit is what is advised.
        text = block(name).replace("pytest-pplguard@TAG", f"pytest-pplguard@{'0' * 40}")
        (workflows / f"{name}.yml").write_text(text, encoding="utf-8")
    (tmp_path / ".gitlab-ci.yml").write_text(block("gitlab-job"), encoding="utf-8")
    for name in ("action.yml", "zizmor.yml"):
        shutil.copy(ROOT / name, tmp_path)
    return tmp_path


def test_they_are_what_their_schemas_want(written: Path) -> None:
    check = (tool("check-jsonschema"), "--builtin-schema")
    passes(*check, "vendor.github-actions", "action.yml", cwd=written)
    workflows = [f".github/workflows/{name}.yml" for name in WORKFLOWS]
    passes(*check, "vendor.github-workflows", *workflows, cwd=written)
    passes(*check, "vendor.gitlab-ci", ".gitlab-ci.yml", cwd=written)


def test_zizmor_finds_nothing(written: Path) -> None:
    command = (tool("zizmor"), "--offline", "--no-progress", "--persona", "pedantic")
    passes(*command, ".", cwd=written)
    # It would have found a template in a script.
    path = written / "action.yml"
    text = path.read_text(encoding="utf-8")
    path.write_text(text.replace('"$PPLGUARD_MODEL"', '"${{ inputs.model }}"'))
    done = subprocess.run(
        [*command, "."], cwd=written, capture_output=True, text=True, check=False
    )
    assert "error[template-injection]" in done.stdout


def scripts() -> list[tuple[str, str]]:
    found = [
        (f"action {step['name']}", step["run"])
        for step in load_action()["runs"]["steps"]
        if "run" in step
    ]
    for name in WORKFLOWS:
        workflow = yaml.load(block(name), Loader=yaml.BaseLoader)
        for job in workflow["jobs"].values():
            found += [
                (f"{name} {step['name']}", step["run"])
                for step in job["steps"]
                if "run" in step
            ]
    return found


@pytest.mark.parametrize(
    "script", [pytest.param(text, id=name) for name, text in scripts()]
)
def test_shellcheck_finds_nothing(script: str, tmp_path: Path) -> None:
    path = tmp_path / "step.sh"
    path.write_text(script, encoding="utf-8")
    passes(
        tool("shellcheck"), "--shell=bash", "--enable=quote-safe-variables", str(path)
    )


def test_the_docs_have_every_input_and_output() -> None:
    action = load_action()
    inputs, _, outputs = DOCS.partition("| input |")[2].partition("| output |")
    outputs = outputs.partition("\n\n")[0]
    listed = re.findall(r"^\| `([\w-]+)` \| ([^|]*)\|", inputs, re.M)
    assert [name for name, _ in listed] == list(action["inputs"])
    for name, default in listed:
        written = action["inputs"][name].get("default", "")
        if name == "extra-index-url":
            assert default.strip() == "torch's CPU wheels"
            assert written == "https://download.pytorch.org/whl/cpu"
        else:
            assert default.strip().strip("`") == written
    assert re.findall(r"^\| `([\w-]+)` \|", outputs, re.M) == list(action["outputs"])


# -------------------------------------------------------------------------------- runs


@pytest.fixture
def folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    """A project made of the demo, in a folder with a blank."""
    project = tmp_path / "a project"
    copy_demo(project)
    capsys.readouterr()
    for name in ("dense", "wanda-50"):
        shutil.copytree(ROOT / "pytest_pplguard/demo" / name, project / "out" / name)
    return project


def run(folder: Path, model: str, *, gates: str = "", **inputs: str) -> Run:
    """The action, with pip noted in ``pip.json``, and ``gates`` in pytest's place."""
    python = str(programs() / "python")
    stubs = folder.parent / "stubs"
    stubs.mkdir(exist_ok=True)
    (stubs / "python").write_text(
        f"#!{sys.executable}\n"
        "import json, os, sys\n"
        "words = sys.argv[1:]\n"
        "if words[:2] == ['-m', 'pip']:\n"
        f"    json.dump(words[2:], open({str(folder.parent / 'pip.json')!r}, 'w'))\n"
        "else:\n"
        f"    {gates}\n"
        f"    os.execv({python!r}, [{python!r}, *words])\n"
    )
    (stubs / "python").chmod(0o755)
    environment = {
        "PATH": os.pathsep.join([str(stubs), str(programs()), os.environ["PATH"]]),
        "PYTHONPATH": str(ROOT),
        "GITHUB_WORKSPACE": str(folder),
        "HF_HUB_OFFLINE": "1",
    }
    return run_action(folder, {"model": model, "args": TOKENS} | inputs, environment)


def by_action(done: Run) -> dict[str, dict[str, str]]:
    return {name.partition("@")[0]: options for name, options in done.used}


def test_green(folder: Path) -> None:
    """Several models, a path with everything in it, blanks and empty lines."""
    (folder / "out/wanda-50").rename(folder / "out" / NASTY)
    done = run(
        folder,
        f"\n  demo/dense=out/dense  \r\n\ndemo/wanda-50=out/{NASTY}\n",
        corpus=f"demo={ROOT / 'pytest_pplguard/demo/demo.txt'}",
        device="cpu",
    )
    assert not done.failed, done.log
    assert done.ran == ["Install", "Gates"]
    assert done.values["outputs.outcome"] == "passed"
    assert "2 passed" in done.log
    assert not list(folder.rglob("pwned"))
    report = Path(done.values["outputs.report"])
    temp = folder.parent / "runner" / "temp"
    assert report == temp / "pplguard-report" / "perplexity.html"
    assert sorted(path.name for path in report.parent.iterdir()) == [
        "perplexity.html", "perplexity.json", "perplexity.md", "perplexity.xml",
    ]  # fmt: skip
    verdicts = json.loads(report.with_suffix(".json").read_text())["verdicts"]
    assert {v["path"] for v in verdicts} == {"out/dense", f"out/{NASTY}"}
    assert ET.parse(report.with_suffix(".xml")).getroot()[0].get("tests") == "2"
    summary = (folder.parent / "runner" / "github_step_summary").read_text()
    assert summary.startswith(
        "## \N{WHITE HEAVY CHECK MARK} Perplexity: 2 within tolerance\n"
    )
    # Journals of finished windows were in the folder that is saved.
    cache = folder.parent / "runner/home/.cache/pplguard-action"
    assert cache.is_dir()
    used = by_action(done)
    assert list(used) == [
        "actions/setup-python", "actions/cache/restore", "actions/cache/save",
        "actions/upload-artifact",
    ]  # fmt: skip
    assert used["actions/cache/save"] == {
        "path": "~/.cache/pplguard-action",
        "key": "pplguard-Linux-17-2",
    }
    assert used["actions/cache/restore"] == used["actions/cache/save"] | {
        "restore-keys": "pplguard-Linux-"
    }
    assert used["actions/setup-python"] == {"python-version": "3.12"}
    assert used["actions/upload-artifact"] == {
        "name": "perplexity",
        "path": str(report.parent),
        "if-no-files-found": "warn",
    }
    words = json.loads((folder.parent / "pip.json").read_text())
    assert words == [
        "install", "--extra-index-url", "https://download.pytorch.org/whl/cpu", "--",
        str(ROOT),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("inputs", "package"),
    [
        ({"extras": "gguf,peft"}, f"{ROOT}[gguf,peft]"),
        ({"extras": " ray,\n  gguf\n"}, f"{ROOT}[ray,gguf]"),
        ({"extras": "ray", "version": "1.2"}, "pytest-pplguard[ray]==1.2"),
        ({"extras": " \n", "version": "1.2"}, "pytest-pplguard==1.2"),
    ],
)
def test_extras(folder: Path, inputs: dict[str, str], package: str) -> None:
    done = run(folder, "demo", gates="sys.exit(0)", **inputs)
    assert not done.failed, done.log
    words = json.loads((folder.parent / "pip.json").read_text())
    assert words[-2:] == ["--", package]


@pytest.mark.parametrize(
    "extras", ["ray]", "ray; touch pwned", "$(touch pwned)", "`touch pwned`", "a' \"b"]
)
def test_extras_that_are_no_names(folder: Path, extras: str) -> None:
    done = run(folder, "demo", gates="sys.exit(0)", extras=extras)
    assert done.failed
    assert done.log == (
        "::error::the input 'extras' is a list of names, such as gguf,peft\n"
    )
    assert not (folder.parent / "pip.json").exists()
    assert not list(folder.rglob("pwned"))


def test_red_and_without_what_can_be_left_out(folder: Path) -> None:
    inputs = {
        "version": "none", "python-version": "", "cache": "false",
        "report-name": "mine", "baselines": "baselines/demo.yaml",
    }  # fmt: skip
    left_over = folder.parent / "runner/temp/pplguard-report/old.html"
    left_over.parent.mkdir(parents=True)
    left_over.write_text("of an earlier step")
    done = run(folder, "demo/dense=out/wanda-50", **inputs)
    assert done.failed
    assert done.ran == ["Gates"]
    assert done.values["outputs.outcome"] == "failed"
    assert "token_perplexity regressed by 5.37 %" in done.log
    assert not left_over.exists()
    # The report of a red run is the one that people need.
    assert [name.partition("@")[0] for name, _ in done.used] == [
        "actions/upload-artifact"
    ]
    assert by_action(done)["actions/upload-artifact"]["name"] == "mine"
    report = Path(done.values["outputs.report"])
    assert "regressed" in report.with_suffix(".md").read_text()


def test_what_cannot_be_run(folder: Path) -> None:
    done = run(folder, "demo/dense=out/dense", args="--ppl-no-such-option")
    assert done.failed
    assert done.values["outputs.outcome"] == "error"
    assert "unrecognized arguments: --ppl-no-such-option" in done.log
    assert "actions/cache/save" in by_action(done)


def test_a_job_that_is_cancelled(folder: Path) -> None:
    done = run(folder, "demo", gates="os.kill(os.getppid(), 9)")
    assert done.failed
    assert done.values["outputs.outcome"] == "error"
    # What was written until then is uploaded.
    report = Path(done.values["outputs.report"])
    assert by_action(done)["actions/upload-artifact"]["path"] == str(report.parent)


def test_no_model(folder: Path) -> None:
    done = run(
        folder, " \n\t\n", version="1.2.3; touch pwned", **{"extra-index-url": ""}
    )
    assert done.failed
    assert done.values["outputs.outcome"] == "error"
    assert done.values["outputs.report"] == ""
    assert done.log == (
        "::error::the input 'model' is empty: give a checkpoint, for example demo\n"
    )
    assert "actions/upload-artifact" not in by_action(done)
    words = json.loads((folder.parent / "pip.json").read_text())
    assert words == ["install", "--", "pytest-pplguard==1.2.3; touch pwned"]
    assert not list(folder.rglob("pwned"))
