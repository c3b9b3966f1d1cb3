"""What is said of a Ray cluster that cannot be used, by a Ray that is made up."""

from __future__ import annotations

import os
import signal
import socket
import sys
import warnings
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from pytest_pplguard.errors import ExecutorError
from pytest_pplguard.executors.connection import (
    Connection,
    _ends,
    _init,
    _is_on_loopback,
    in_reach,
)
from pytest_pplguard.executors.lifeline import Ends
from pytest_pplguard.options import Execution

KEEPS = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"


class RayError(Exception):
    pass


@pytest.fixture(autouse=True)
def made_up(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    def init(**options: object) -> None:
        warnings.warn("Ray Client connection timed out.", stacklevel=2)
        raise ConnectionError("ray client connection timeout\nand much more")

    made = SimpleNamespace(
        __version__="2.60.0",
        _private=SimpleNamespace(
            ray_constants=SimpleNamespace(ENABLE_RAY_CLUSTER=True)
        ),
        exceptions=SimpleNamespace(RayError=RayError),
        init=init,
        is_initialized=lambda: False,
        get_runtime_context=lambda: SimpleNamespace(
            gcs_address="127.0.0.1:1", get_node_id=lambda: "this"
        ),
        nodes=lambda: [
            {"NodeID": "that", "NodeManagerAddress": "no", "NodeManagerPort": 0},
            {"NodeID": "this", "NodeManagerAddress": "yes", "NodeManagerPort": 7},
        ],
        shutdown=lambda: None,
        util=SimpleNamespace(
            get_node_ip_address=lambda: "127.0.0.1",
            client=SimpleNamespace(ray=SimpleNamespace(is_connected=lambda: False)),
        ),
    )
    monkeypatch.setitem(sys.modules, "ray", made)
    monkeypatch.setitem(sys.modules, "ray._private", made._private)
    before = signal.getsignal(signal.SIGTERM)
    yield made
    signal.signal(signal.SIGTERM, before)


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


def test_a_cluster_of_this_machine_keeps_to_loopback(
    made_up: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    constants = made_up._private.ray_constants
    seen: list[object] = []

    def init(**options: object) -> None:
        seen.extend((os.environ[KEEPS], constants.ENABLE_RAY_CLUSTER))

    made_up.init = init
    monkeypatch.delenv(KEEPS, raising=False)
    assert Connection(Execution(where="ray"), cpus=1).address == "on this machine"
    assert seen == ["0", False]
    assert KEEPS not in os.environ
    assert constants.ENABLE_RAY_CLUSTER is True


def test_sigterm_is_an_interrupt_until_the_connection_is_closed(made_up: Any) -> None:
    def init(**options: object) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # Ray takes it for itself

    made_up.init = init
    before = signal.getsignal(signal.SIGTERM)
    connection = Connection(Execution(where="ray"), cpus=1)
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGTERM)
    connection.close()
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_cluster_of_this_machine_that_would_not_is_stopped(made_up: Any) -> None:
    stopped: list[bool] = []
    made_up.init = lambda **options: None
    made_up.shutdown = lambda: stopped.append(True)
    made_up.util.get_node_ip_address = lambda: "10.0.0.7"
    with pytest.raises(ExecutorError) as caught:
        Connection(Execution(where="ray"), cpus=1)
    assert str(caught.value) == (
        "Ray 2.60.0 would let other machines reach the cluster that it starts here, at "
        "10.0.0.7: start one yourself, as docs/ray.md says, and give --ppl-ray-address "
        "HOST:6379"
    )
    assert stopped


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_a_cluster_that_is_on_loopback_alone(made_up: Any, host: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        # Another of this machine's addresses, where nobody listens.
        made_up.util.get_node_ip_address = lambda: "127.0.0.9"
        assert _is_on_loopback(f"{host}:{port}")
        assert not _is_on_loopback(f"127.0.0.9:{port}")
        assert not _is_on_loopback(f"ray://{host}:{port}")
        assert not _is_on_loopback("auto")


def test_a_cluster_that_is_on_all_addresses(made_up: Any) -> None:
    with socket.create_server(("", 0)) as server:
        made_up.util.get_node_ip_address = lambda: "127.0.0.9"
        assert not _is_on_loopback(f"127.0.0.1:{server.getsockname()[1]}")


def test_what_this_process_needs_of_its_cluster(made_up: Any) -> None:
    assert _ends() == Ends(node=("yes", 7), head=("127.0.0.1", 1))
    made_up.util.client.ray.is_connected = lambda: True
    assert _ends() == Ends(node=None, head=None)


def test_once_ray_is_gone_it_stays_so(made_up: Any) -> None:
    made_up.init = lambda **options: None
    connection = Connection(Execution(where="ray"), cpus=1)
    connection.check_alive(now=True)
    why = iter(["the head is gone"])
    connection._lifeline = SimpleNamespace(  # type: ignore[assignment]
        broken=lambda now: next(why)
    )
    stopped: list[bool] = []
    made_up.is_initialized = lambda: True
    made_up.shutdown = lambda: stopped.append(True)
    for _ in range(2):
        with pytest.raises(ExecutorError) as caught:
            connection.check_alive()
        assert str(caught.value) == (
            "Ray (on this machine) is lost: the head is gone; run again, finished "
            "windows are kept"
        )
    assert stopped == [True]
