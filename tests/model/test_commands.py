"""Commands of these tests are forks, unless the interpreter would start otherwise."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.zygote import programs

from .commands import run


def is_a_fork(folder: Path) -> bool:
    """Whether a command finds torch imported."""
    code = "import sys; print('torch' in sys.modules)"
    done = run([str(programs() / "python"), "-c", code], folder)
    assert done.stdout in ("True\n", "False\n"), done.stderr
    return done.stdout == "True\n"


def test_what_libraries_set_while_tests_run_has_no_part(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """scikit-learn, torch, lm-eval and Ray set them in whoever uses them."""
    assert is_a_fork(tmp_path)
    monkeypatch.setenv("KMP_DUPLICATE_LIB_OK", "again")
    monkeypatch.setenv("KMP_INIT_AT_FORK", "again")
    monkeypatch.setenv("PYTHONBREAKPOINT", "again")
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    monkeypatch.setenv("HF_XET_HIGH_PERFORMANCE", "again")
    assert is_a_fork(tmp_path)


def test_what_is_read_at_the_start_needs_a_new_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONHASHSEED", "7")
    assert not is_a_fork(tmp_path)
