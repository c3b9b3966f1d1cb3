"""Where a run came from, told by real repositories and by the CI's variables."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from pytest_pplguard.history import Origin, run_origin
from pytest_pplguard.history import origin as room

GITHUB = {
    "GITHUB_SHA": "a" * 40,
    "GITHUB_REF_NAME": "12/merge",
    "GITHUB_HEAD_REF": "topic",
    "GITHUB_SERVER_URL": "https://github.com",
    "GITHUB_REPOSITORY": "me/it",
    "GITHUB_RUN_ID": "77",
}
GITLAB = {
    "CI_COMMIT_SHA": "b" * 40,
    "CI_COMMIT_REF_NAME": "main",
    "CI_JOB_URL": "https://gitlab.com/me/it/-/jobs/9",
}


def git(folder: Path, *words: str) -> str:
    settings = {
        "GIT_CONFIG_GLOBAL": os.devnull,
        "GIT_AUTHOR_NAME": "A", "GIT_AUTHOR_EMAIL": "a@b",
        "GIT_COMMITTER_NAME": "A", "GIT_COMMITTER_EMAIL": "a@b",
    }  # fmt: skip
    return subprocess.run(
        ["git", *words], cwd=folder, capture_output=True, text=True, check=True,
        env=os.environ | settings,
    ).stdout.strip()  # fmt: skip


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    git(tmp_path, "init", "-q", "-b", "trunk")
    (tmp_path / "file").write_text("one")
    git(tmp_path, "add", "file")
    git(tmp_path, "commit", "-q", "-m", "one")
    (tmp_path / "untracked").write_text("a history, for example")
    (tmp_path / "sub").mkdir()
    return tmp_path


def test_a_repository(repository: Path) -> None:
    commit = git(repository, "rev-parse", "HEAD")
    for folder in (repository, repository / "sub"):
        assert run_origin(folder, {}) == Origin(commit=commit, branch="trunk")
    (repository / "file").write_text("two")
    assert run_origin(repository, GITHUB) == Origin(
        commit=commit,
        branch="trunk",
        dirty=True,
        job="https://github.com/me/it/actions/runs/77",
    )


def test_a_detached_head_has_the_branch_of_the_ci(repository: Path) -> None:
    git(repository, "checkout", "-q", "--detach")
    commit = git(repository, "rev-parse", "HEAD")
    assert run_origin(repository, {}) == Origin(commit=commit)
    assert run_origin(repository, GITHUB).branch == "topic"
    assert run_origin(repository, GITHUB | {"GITHUB_HEAD_REF": ""}).branch == "12/merge"
    assert run_origin(repository, GITLAB).branch == "main"
    assert run_origin(repository, GITLAB).commit == commit


def test_a_repository_without_commits(tmp_path: Path) -> None:
    git(tmp_path, "init", "-q", "-b", "trunk")
    assert run_origin(tmp_path, {}) == Origin(branch="trunk")


def test_no_repository(tmp_path: Path) -> None:
    assert run_origin(tmp_path, {}) == Origin()
    assert run_origin(tmp_path / "nowhere", {}) == Origin()
    assert run_origin(tmp_path, GITLAB) == Origin(
        commit="b" * 40, branch="main", job="https://gitlab.com/me/it/-/jobs/9"
    )
    jenkins = {"BUILD_URL": "https://ci/9/"}
    assert run_origin(tmp_path, jenkins) == Origin(job="https://ci/9/")


def test_no_git(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(repository))
    assert run_origin(repository, {}) == Origin()


def test_git_that_takes_too_long(
    repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow = repository / "git"
    slow.write_text("#!/bin/sh\nexec sleep 60\n")
    slow.chmod(0o700)
    path = f"{repository}{os.pathsep}{os.environ['PATH']}"
    monkeypatch.setenv("PATH", path)
    monkeypatch.setattr(room, "_TIMEOUT", 0.05)
    assert run_origin(repository, {}) == Origin()


def test_in_a_hook_a_folder_below_is_no_top(
    repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = run_origin(repository / "sub", {})
    assert (plain.branch, plain.dirty) == ("trunk", False)
    monkeypatch.setenv("GIT_DIR", f"{repository}/.git")  # as of `git rebase --exec`
    assert run_origin(repository / "sub", {}) == plain
