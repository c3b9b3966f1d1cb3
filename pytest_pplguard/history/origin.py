"""Where a run came from: what git and the CI's variables say."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping
from pathlib import Path

from msgspec import Struct

_TIMEOUT = 10.0
"""Seconds. A repository on a slow disk is no reason to keep people waiting."""

_STATUS = ("status", "--porcelain=v2", "--branch", "--untracked-files=no")
_HARMLESS = ("--no-optional-locks", "-c", "core.fsmonitor=false")


class Origin(Struct, frozen=True):
    """Where a run came from: the commit that was checked out, and the CI job.

    ``dirty`` says whether tracked files differ from the commit; ``job`` is a URL.
    """

    commit: str = ""
    branch: str = ""
    dirty: bool = False
    job: str = ""


def run_origin(folder: Path, environ: Mapping[str, str]) -> Origin:
    """What git and the CI's variables say of a run in ``folder``.

    Git knows best which commit is checked out. Where there is no repository, or no git,
    it is what the CI says; anything that nobody knows is empty.
    """
    commit, branch, dirty = _git(folder)
    return Origin(
        commit=commit or _first(environ, "GITHUB_SHA", "CI_COMMIT_SHA"),
        branch=branch
        or _first(
            environ,
            "GITHUB_HEAD_REF",
            "GITHUB_REF_NAME",
            "CI_MERGE_REQUEST_SOURCE_BRANCH_NAME",
            "CI_COMMIT_REF_NAME",
        ),
        dirty=dirty,
        job=_job(environ),
    )


def _git(folder: Path) -> tuple[str, str, bool]:
    """Commit, branch, and whether tracked files were changed."""
    environ = dict(os.environ)
    if "GIT_WORK_TREE" not in environ:
        # Of a hook: git would take the folder for the top of its repository.
        environ.pop("GIT_DIR", None)
    try:
        done = subprocess.run(
            ["git", *_HARMLESS, "-C", str(folder), *_STATUS],
            capture_output=True,
            stdin=subprocess.DEVNULL,
            timeout=_TIMEOUT,
            env=environ,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return "", "", False
    if done.returncode != 0:
        return "", "", False
    lines = done.stdout.decode("utf-8", "backslashreplace").splitlines()
    headers = dict(
        line.removeprefix("# ").split(" ", 1) for line in lines if line.startswith("# ")
    )
    commit, branch = headers.get("branch.oid", ""), headers.get("branch.head", "")
    return (
        "" if commit == "(initial)" else commit,
        "" if branch == "(detached)" else branch,
        any(line and not line.startswith("# ") for line in lines),
    )


def _job(environ: Mapping[str, str]) -> str:
    names = ("GITHUB_SERVER_URL", "GITHUB_REPOSITORY", "GITHUB_RUN_ID")
    server, repository, run = (environ.get(name, "") for name in names)
    if server and repository and run:
        return f"{server}/{repository}/actions/runs/{run}"
    return _first(environ, "CI_JOB_URL", "BUILD_URL")


def _first(environ: Mapping[str, str], *names: str) -> str:
    return next(filter(None, (environ.get(name) for name in names)), "")
