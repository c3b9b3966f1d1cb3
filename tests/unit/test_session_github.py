"""Where GitHub finds a file, and which environment is a job of GitHub's."""

from __future__ import annotations

from pathlib import Path

import pytest

from pytest_pplguard.session.github import GitHub
from pytest_pplguard.values import Remark


@pytest.mark.parametrize("value", [None, "", "false", "1"])
def test_no_job(value: str | None) -> None:
    environment = {"GITHUB_WORKSPACE": "/w", "GITHUB_STEP_SUMMARY": "/s"}
    if value is not None:
        environment["GITHUB_ACTIONS"] = value
    assert GitHub.of(environment) is None


def test_a_job() -> None:
    assert GitHub.of({"GITHUB_ACTIONS": "true"}) == GitHub()
    assert GitHub.of(
        {
            "GITHUB_ACTIONS": "true",
            "GITHUB_WORKSPACE": "/w",
            "GITHUB_STEP_SUMMARY": "/s",
        }
    ) == GitHub(workspace="/w", summary="/s")


def file_of(github: GitHub, file: str, start: Path) -> str:
    (command,) = github.commands("error", [Remark("x", file, 1)], start=start)
    return command.partition("file=")[2].partition(",line=1,")[0]


def test_files_of_the_repository(tmp_path: Path) -> None:
    repository = tmp_path / "repository"
    (repository / "sub").mkdir(parents=True)
    link = tmp_path / "link"
    link.symlink_to(repository)
    for workspace in (repository, link):
        github = GitHub(workspace=str(workspace))
        assert file_of(github, "b/m.yaml", repository) == "b/m.yaml"
        assert file_of(github, "b/m.yaml", link) == "b/m.yaml"
        assert file_of(github, "b/m.yaml", repository / "sub") == "sub/b/m.yaml"
        assert file_of(github, f"{repository}/b/m.yaml", tmp_path) == "b/m.yaml"


def test_files_of_nowhere_stay_as_they_are(tmp_path: Path) -> None:
    github = GitHub(workspace=str(tmp_path / "repository"))
    assert file_of(github, "../m.yaml", tmp_path) == "../m.yaml"
    assert file_of(GitHub(), "b/m.yaml", tmp_path) == "b/m.yaml"
