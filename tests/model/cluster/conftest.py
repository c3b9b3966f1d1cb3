"""One cluster for all tests of this folder; each leaves it as it was."""

from __future__ import annotations

import socket
import sys
from collections.abc import Iterator

import pytest
import torch

from pytest_pplguard.checkpoints import Loaded, load, locate

from .nodes import Local, Opened, TwoNodes, cluster_environment


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Other loopback addresses than 127.0.0.1 are there on Linux alone."""
    if sys.platform != "linux":
        skip = pytest.mark.skip(reason="other loopback addresses are Linux's")
        for item in items:
            if __package__ in item.nodeid.replace("/", "."):
                item.add_marker(skip)


@pytest.fixture(scope="package")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TwoNodes]:
    pytest.importorskip("ray")
    faults = tmp_path_factory.mktemp("faults")
    with socket.socket() as bound:
        bound.bind(("127.0.0.2", 0))
        port = bound.getsockname()[1]
    with cluster_environment(faults):
        nodes = TwoNodes(faults, port)
        yield nodes
        nodes.close()


@pytest.fixture(scope="package")
def shared(cluster: TwoNodes) -> Iterator[Opened]:
    opened = Opened(cluster)
    yield opened
    opened.close()


@pytest.fixture
def opened(cluster: TwoNodes, shared: Opened) -> Iterator[Opened]:
    """Two replicas that are ready."""
    shared.make_ready()
    yield shared
    no_faults(cluster)


@pytest.fixture
def room(cluster: TwoNodes, shared: Opened) -> Iterator[None]:
    """Both nodes have room for a replica; this process may be connected."""
    shared.close_replicas()
    yield
    no_faults(cluster)


@pytest.fixture
def alone(cluster: TwoNodes, shared: Opened) -> Iterator[None]:
    """This process is not connected to the cluster."""
    shared.close()
    yield
    no_faults(cluster)


def no_faults(cluster: TwoNodes) -> None:
    for file in cluster.faults.iterdir():
        file.unlink()


@pytest.fixture(scope="package")
def loaded() -> Loaded:
    torch.set_num_threads(1)
    return load(locate("demo/dense"), device="cpu", dtype="float32")


@pytest.fixture(scope="package")
def local(loaded: Loaded) -> Local:
    return Local(loaded)
