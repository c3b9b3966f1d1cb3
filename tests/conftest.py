"""Settings that all tests share."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Iterator

import pytest
from hypothesis import settings

# For models of this size a second thread costs more than it brings, and the
# subprocesses and workers of some tests share the cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# Without bytecode each process compiles this package anew, and pytest rewrites its and
# all plugins' assertions: seconds, some thousand times.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False

# Runs inside of tests are no part of the job that runs these tests: no annotations for
# failures that are meant, nothing in its summary.
os.environ.pop("GITHUB_ACTIONS", None)
os.environ.pop("GITHUB_STEP_SUMMARY", None)

# Shared machines are slow now and then, and first calls import large packages.
settings.register_profile("no-deadline", deadline=None)
settings.load_profile("no-deadline")


def pytest_collection_finish() -> None:
    """What is imported by now stays: half a million objects to look through no more.

    Many tests, and what they test, collect cycles to see what has been given back.
    """
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Journals of tests do not lie in the cache of whoever runs them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield
