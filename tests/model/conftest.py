"""What several files of tests share, and what is started once for all of them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from pytest_pplguard.checkpoints import Loaded, load, locate
from pytest_pplguard.executors.server import patience

from .completions_server import Served, serving

DEMO = Path(__file__).parents[2] / "pytest_pplguard/demo"


@pytest.fixture(scope="session")
def server() -> Iterator[Served]:
    """A server of both demo models, ``dense`` and ``pruned``."""
    with serving(dense=DEMO / "dense", pruned=DEMO / "wanda-50") as served:
        yield served


@pytest.fixture
def as_it_was(server: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """The server's switches back, no key of whoever runs this, and short pauses."""
    server.revive()
    server.switch(offered=["dense"])
    for name in ("PPL_SERVER_API_KEY", "OPENAI_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(patience, "FIRST_WAIT", 0.01)


@pytest.fixture(scope="session")
def dense() -> Loaded:
    """The dense demo, here."""
    return load(locate("demo/dense"), device="cpu", dtype="float32")
