"""What is refused in one line: other code, other windows, no room, no cluster."""

from __future__ import annotations

import http.server
import re
import socket
import threading
from typing import Any

import pytest

from pytest_pplguard.errors import CheckpointError, ExecutorError
from pytest_pplguard.measure import measure_loaded
from pytest_pplguard.values import Key
from tests.model.faulty_replica import Faulty

from .nodes import (
    KEYS,
    NODE,
    Keeping,
    Local,
    Told,
    TwoNodes,
    occupied,
    open_text,
    opening,
    refused,
    windows_of,
)


def test_another_version_is_refused_before_anything_is_loaded(
    cluster: TwoNodes, room: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Faulty, "load", None)
    cluster.fault("version", "pytest-pplguard=0.0.9")
    error, _ = refused(cluster)
    assert isinstance(error, ExecutorError)
    assert re.fullmatch(
        NODE + r" has pytest-pplguard 0\.0\.9, and this process 0\.1\.0: nothing was "
        "scored; install the same on all nodes",
        str(error),
    )


def test_other_code_of_the_same_version_is_refused(
    cluster: TwoNodes, room: None
) -> None:
    cluster.fault("code", "sha256:0123456789abcdef")
    error, _ = refused(cluster)
    assert re.fullmatch(
        r"the code of pytest-pplguard 0\.1\.0 on "
        + NODE
        + r" \(sha256:0123456789ab\) is not that of this process \(sha256:[0-9a-f]{12}"
        r"\): nothing was scored; install the same on all nodes",
        str(error),
    )


def test_replicas_with_different_torch_are_refused(
    cluster: TwoNodes, room: None
) -> None:
    cluster.fault("version", "torch=2.6.0")
    error, _ = refused(cluster)
    assert re.fullmatch(
        NODE + r" has torch \S+, and " + NODE + r" \S+: nothing was scored; install "
        "the same on all nodes",
        str(error),
    )
    assert "2.6.0" in str(error)


def test_a_checkpoint_that_no_node_sees(cluster: TwoNodes, room: None) -> None:
    error, told = refused(cluster, "/nowhere/model")
    assert isinstance(error, CheckpointError)
    assert str(error).startswith("/nowhere/model does not exist")
    assert re.search(r" \(on " + NODE + ", " + NODE + r"\)$", str(error))
    assert not told


def test_more_gpus_than_there_are(cluster: TwoNodes, room: None) -> None:
    error, _ = refused(cluster, gpus_per_replica=2)
    assert str(error) == (
        f"Ray (at {cluster.address}) has 2 nodes, 2 CPUs and 0 GPUs; of 2 replicas, "
        "each of 2 GPUs and 1 CPU, 0 fit: lower --ppl-replicas, "
        "--ppl-gpus-per-replica or --ppl-threads, or add nodes"
    )


def test_a_cluster_that_is_busy(cluster: TwoNodes, room: None) -> None:
    with (
        opening(cluster, Told(), timeout=1.5) as (executor, opens),
        occupied(cluster, executor, 2),
        pytest.raises(ExecutorError) as caught,
    ):
        opens()
    assert str(caught.value) == (
        "no replica of it came up in 1.5 s: each needs 1 CPU, and Ray "
        f"(at {cluster.address}) has 2 nodes, 2 CPUs and 0 GPUs, all of them busy or "
        "not for us (ray status says by whom)"
    )


def test_one_that_cannot_load_says_so_once_and_the_other_goes_on(
    cluster: TwoNodes, room: None, local: Local
) -> None:
    cluster.fault("load", "the disk is gone")
    told = Told()
    with opening(cluster, told) as (_, opens):
        measured = measure_loaded(opens(), Key.parse(KEYS[0]), open_text)
    assert measured.evidence == local(KEYS[0]).evidence
    [line] = [line for line in told if "disk" in line]
    assert re.fullmatch(
        "it: not loaded on " + NODE + ", the others go on: the disk is gone", line
    )


def test_none_can_load(cluster: TwoNodes, room: None) -> None:
    cluster.fault("all-load", "the disk is gone")
    error, told = refused(cluster)
    assert isinstance(error, CheckpointError)
    assert re.fullmatch(rf"the disk is gone \(on {NODE}, {NODE}\)", str(error))
    assert not told


def test_other_windows_are_refused(cluster: TwoNodes, room: None) -> None:
    kept = Keeping({})
    with opening(cluster, Told(), replicas=1) as (_, opens):
        subject = opens()
        cluster.fault("windows")
        with pytest.raises(
            ExecutorError, match=r"have the digest sha256:other, and"
        ) as caught:
            subject.scorer()(windows_of(subject, KEYS[0]), kept)
    assert not kept.added
    assert re.match(NODE, str(caught.value))


def test_an_address_where_nobody_is(cluster: TwoNodes, alone: None) -> None:
    import ray

    assert not ray.is_initialized()
    with socket.socket() as bound:  # a port that nobody listens on
        bound.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{bound.getsockname()[1]}"
        error, _ = refused(cluster, address=address)
    assert str(error) == (
        f"no Ray cluster answers at {address}: Connection refused; is the head node up "
        "(ray status), is this its address, and may this machine reach it?"
    )


def test_an_address_where_somebody_else_is(cluster: TwoNodes, alone: None) -> None:
    class Web(http.server.BaseHTTPRequestHandler):
        pass

    with http.server.HTTPServer(("127.0.0.1", 0), Web) as server:
        thread = threading.Thread(target=server.handle_request)
        thread.start()
        address = f"127.0.0.1:{server.server_port}"
        error, _ = refused(cluster, address=address)
        thread.join()
    assert str(error).startswith(f"what answers at {address} is no Ray cluster; is the")


def test_a_variable_that_is_no_address(
    cluster: TwoNodes, alone: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "cluster")
    error, _ = refused(cluster, address="")
    assert str(error) == (
        "RAY_ADDRESS: 'cluster' is no address of a Ray cluster; give HOST:6379, "
        "ray://HOST:10001 or auto"
    )


def test_no_cluster_on_this_machine(
    cluster: TwoNodes, alone: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    import ray
    from ray._private import services

    def nothing_runs(address: str, **options: Any) -> None:
        assert address == "auto"
        raise ConnectionError("Could not find any running Ray instance. Please ...")

    monkeypatch.setattr(services, "canonicalize_bootstrap_address", nothing_runs)
    monkeypatch.setattr(ray, "init", nothing_runs)
    error, _ = refused(cluster, address="auto")
    assert str(error) == (
        "no Ray cluster runs on this machine (address auto): start one or join one "
        "with `ray start`, or give --ppl-ray-address HOST:6379"
    )


def test_a_cluster_that_does_not_let_us_in(
    cluster: TwoNodes, alone: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray says as much of a wrong token as of no cluster at all."""
    import ray

    def refuse(**options: Any) -> None:
        raise ConnectionError(f"Failed to connect to Ray cluster at {cluster.address}")

    monkeypatch.setattr(ray, "init", refuse)
    error, _ = refused(cluster)
    assert str(error) == (
        f"the Ray cluster at {cluster.address} answers, but not to this process: set "
        "RAY_AUTH_MODE=token and RAY_AUTH_TOKEN here to what its head was started "
        f"with, and let Ray be the same there and here ({ray.__version__})"
    )
