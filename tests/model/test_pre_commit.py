"""The hook of pre-commit: run by pre-commit itself, from a repository of hooks."""

from __future__ import annotations

import os
import shutil
import subprocess
import sysconfig
from pathlib import Path

import pytest
import yaml

from pytest_pplguard.cli.demo import copy_demo

ROOT = Path(__file__).parents[2]
SCRIPTS = sysconfig.get_path("scripts")
DOCS = (ROOT / "docs" / "ci.md").read_text(encoding="utf-8")
IDENTITY = {
    "GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_SYSTEM": os.devnull,
    "GIT_AUTHOR_NAME": "a", "GIT_AUTHOR_EMAIL": "a@b",
    "GIT_COMMITTER_NAME": "a", "GIT_COMMITTER_EMAIL": "a@b",
}  # fmt: skip


def hook() -> dict[str, object]:
    text = (ROOT / ".pre-commit-hooks.yaml").read_text(encoding="utf-8")
    (only,) = yaml.safe_load(text)
    return dict(only)


def test_the_docs_and_this_project_have_the_same_hook() -> None:
    fields = ("id", "name", "entry", "args", "language", "pass_filenames", "always_run")
    expected = {name: hook()[name] for name in fields}
    (_, _, shown) = DOCS.partition("<!-- pre-commit -->\n```yaml\n")
    documented = yaml.safe_load(shown.partition("```")[0])
    own = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))
    for config in (documented, own):
        hooks = [hook for repo in config["repos"] for hook in repo["hooks"]]
        assert expected in hooks


def run(*words: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("GIT_")}
    return subprocess.run(
        words,
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env=environment
        | IDENTITY
        | {
            "PRE_COMMIT_HOME": str(cwd.parent / "pre-commit"),
            "PATH": f"{SCRIPTS}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),
        },
    )


def commit(folder: Path, message: str) -> subprocess.CompletedProcess[str]:
    assert run("git", "add", "--all", cwd=folder).returncode == 0
    return run("git", "commit", "--message", message, cwd=folder)


@pytest.mark.skipif(
    not Path(SCRIPTS, "pre-commit").exists() or shutil.which("git") is None,
    reason="pre-commit and git are needed: python -m pip install -e '.[dev]'",
)
def test_commits_are_held_up(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hooks, project = tmp_path / "hooks", tmp_path / "project"
    hooks.mkdir()
    shutil.copy(ROOT / ".pre-commit-hooks.yaml", hooks)
    copy_demo(project)
    capsys.readouterr()
    for folder in (hooks, project):
        assert run("git", "init", "--quiet", cwd=folder).returncode == 0
    assert commit(hooks, "hooks").returncode == 0
    revision = run("git", "rev-parse", "HEAD", cwd=hooks).stdout.strip()
    config = {
        "repos": [
            {"repo": str(hooks), "rev": revision, "hooks": [{"id": "pplguard-check"}]}
        ]
    }
    (project / ".pre-commit-config.yaml").write_text(yaml.safe_dump(config))
    assert run("pre-commit", "install", cwd=project).returncode == 0

    done = commit(project, "sound")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "pplguard check" in done.stderr
    assert "Passed" in done.stderr

    file = project / "baselines" / "demo.yaml"
    text = file.read_text()
    value = "token_perplexity: 3.1327331589094136\n"
    assert value in text
    file.write_text(text.replace(value, "token_perplexity: 3.0\n"))
    done = commit(project, "edited")
    assert done.returncode == 1
    assert "baselines/demo.yaml:77: demo/wanda-50, wanda/demo:256: " in done.stderr
    assert "token_perplexity 3.0 is recorded, but its evidence " in done.stderr
    file.write_text(text)

    # The evidence of what is recorded anew is there, and nobody adds it.
    (project / ".gitignore").write_text("new/\n")
    new = text.replace("demo/dense/wanda-", "new/dense/wanda-")
    shutil.copytree(project / "baselines/demo", project / "baselines/new")
    file.write_text(new)
    done = commit(project, "evidence forgotten")
    assert done.returncode == 1
    assert ": git has this record and not its evidence: add baselines/new/dense/" in (
        done.stderr
    )
    file.write_text(text)

    # Nothing that is left has changed, so no file could be given to the hook.
    next((project / "baselines/demo/dense").glob("wanda-*.json")).unlink()
    done = commit(project, "evidence removed")
    assert done.returncode == 1
    assert ": the file does not exist: " in done.stderr
