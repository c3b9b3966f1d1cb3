"""What is said of a Ray cluster that cannot be used, by a Ray that is made up."""

from __future__ import annotations

import sys
import warnings
from types import SimpleNamespace

import pytest

from pytest_pplguard.errors import ExecutorError
from pytest_pplguard.executors.connection import _init, in_reach


class RayError(Exception):
    pass


@pytest.fixture(autouse=True)
def made_up(monkeypatch: pytest.MonkeyPatch) -> None:
    def init(**options: object) -> None:
        warnings.warn("Ray Client connection timed out.", stacklevel=2)
        raise ConnectionError("ray client connection timeout\nand much more")

    made = SimpleNamespace(init=init, exceptions=SimpleNamespace(RayError=RayError))
    monkeypatch.setitem(sys.modules, "ray", made)


@pytest.mark.filterwarnings("error")
def test_a_client_that_is_not_let_in() -> None:
    where = "ray://head:10001"
    with pytest.raises(ExecutorError) as caught:
        _init(where, address=where)
    assert str(caught.value) == (
        "Ray (ray://head:10001) cannot be used: ray client connection timeout; if the "
        "cluster asks for a token, set RAY_AUTH_MODE=token here and give it "
        "(docs/ray.md)"
    )


@pytest.mark.parametrize("kind", [ConnectionError, RayError])
def test_a_cluster_that_is_lost(kind: type[Exception]) -> None:
    with pytest.raises(ExecutorError) as caught, in_reach("at head:6379"):
        raise kind("the connection is gone\nTraceback")
    assert str(caught.value) == (
        "Ray (at head:6379) cannot be reached any more: the connection is gone; run "
        "again when it can, finished windows are kept"
    )
