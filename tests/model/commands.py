"""Runs commands as a user does: processes of their own, without a network.

They are forks of a process that has imported what is large, see :mod:`tests.zygote`;
tests of what a command imports ask for a new process.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.zygote import programs

ENVIRONMENT = {"COLUMNS": "80", "HF_HUB_OFFLINE": "1"}


def run(
    command: Sequence[str], cwd: Path, environment: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """What came of a command in a folder; its exit status is for the test to judge."""
    return subprocess.run(
        command,
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        env=os.environ | ENVIRONMENT | dict(environment or {}),
    )


def pplguard(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """The command ``pplguard`` of this environment."""
    return run([str(programs() / "pplguard"), *arguments], cwd)


def run_pytest(
    command: str, cwd: Path, environment: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """A command line that begins with ``pytest``."""
    words = [str(programs() / "python"), "-m", *shlex.split(command)]
    return run([*words, "-p", "no:cacheprovider"], cwd, environment)


def run_pytest_anew(command: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """The same in a new process, which has imported nothing."""
    words = [sys.executable, "-m", *shlex.split(command), "-p", "no:cacheprovider"]
    return run(words, cwd)
