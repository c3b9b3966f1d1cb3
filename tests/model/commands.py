"""Runs commands as a user does: real processes, without a network."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
from collections.abc import Sequence
from pathlib import Path

ENVIRONMENT = {"COLUMNS": "80", "HF_HUB_OFFLINE": "1"}


def run(command: Sequence[str], cwd: Path) -> subprocess.CompletedProcess[str]:
    """What came of a command in a folder; its exit status is for the test to judge."""
    return subprocess.run(
        command,
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        env=os.environ | ENVIRONMENT,
    )


def pplguard(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """The command ``pplguard`` of this environment."""
    return run([str(Path(sysconfig.get_path("scripts"), "pplguard")), *arguments], cwd)


def run_pytest(command: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """A command line that begins with ``pytest``, in a process of its own."""
    words = [sys.executable, "-m", *command.split(), "-p", "no:cacheprovider"]
    return run(words, cwd)
