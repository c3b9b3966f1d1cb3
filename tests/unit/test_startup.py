"""The collector of cycles rests while libraries are imported."""

from __future__ import annotations

import gc
import importlib
from collections.abc import Iterator

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
