"""The collector of cycles rests while libraries are imported, and at the exit."""

from __future__ import annotations

import gc
import importlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from pytest_pplguard.startup import importing


@pytest.fixture(autouse=True)
def collecting() -> Iterator[None]:
    """Whatever a test does, the next one finds the collector as it should be."""
    yield
    gc.enable()


def test_no_cycle_is_collected_inside_and_they_are_afterwards() -> None:
    with importing():
        assert not gc.isenabled()
        with importing():
            assert not gc.isenabled()
        assert not gc.isenabled()
    assert gc.isenabled()


def test_a_user_who_switched_it_off_finds_it_off() -> None:
    gc.disable()
    with importing():
        pass
    assert not gc.isenabled()


def test_it_is_on_again_after_an_import_that_failed() -> None:
    with pytest.raises(ImportError), importing():
        importlib.import_module("pytest_pplguard.no_such_module")
    assert gc.isenabled()


def exit_of(code: str, folder: Path) -> str:
    """What a fresh process prints, to the end of its exit."""
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=folder,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stderr == ""
    return done.stdout


# Registered before ours, it runs after it.
_COUNT = """
import atexit, gc
atexit.register(lambda: print("frozen", gc.get_freeze_count() > 1000))
"""


def test_a_process_without_imports_of_ours_exits_as_ever(tmp_path: Path) -> None:
    code = f"{_COUNT}\nfrom pytest_pplguard.startup import importing"
    assert exit_of(code, tmp_path) == "frozen False\n"


def test_nothing_is_frozen_before_the_exit(tmp_path: Path) -> None:
    code = (
        f"{_COUNT}\nfrom pytest_pplguard.startup import importing\n"
        "with importing():\n    pass\n"
        "with importing():\n    pass\n"
        "print(gc.get_freeze_count())"
    )
    assert exit_of(code, tmp_path) == "0\nfrozen True\n"


def test_what_was_written_to_a_file_in_a_cycle_is_not_lost(tmp_path: Path) -> None:
    """Only the collections of the exit would have closed these files."""
    code = """
from pytest_pplguard.startup import importing

class Log:
    def __init__(self, name, mode):
        self.me = self
        self.file = open(name, mode)

with importing():
    pass
text, binary, closed = Log("text", "w"), Log("binary", "wb"), Log("closed", "w")
text.file.write("every word")
binary.file.write(b"every byte")
closed.file.close()
"""
    assert exit_of(code, tmp_path) == ""
    assert (tmp_path / "text").read_text() == "every word"
    assert (tmp_path / "binary").read_bytes() == b"every byte"
