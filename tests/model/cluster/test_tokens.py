"""A real cluster that asks for a token: who has another one is told at once."""

from __future__ import annotations

import os
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.model.commands import run
from tests.zygote import programs

from .nodes import ENVIRONMENT, where

TOKEN = "0123456789abcdef0123456789abcdef"
WITH_TOKEN = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": TOKEN}
WITH_ANOTHER = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": TOKEN[::-1]}
WITHOUT = {"RAY_AUTH_MODE": "disabled"}


class Head:
    """``ways`` are its addresses, without Ray's client and with it."""

    def __init__(self) -> None:
        with socket.socket() as bound:
            bound.bind(("127.0.0.5", 0))
            port = bound.getsockname()[1]
        words = ["-m", "tests.model.cluster.head", "127.0.0.5", str(port)]
        self._process = subprocess.Popen(
            [str(programs() / "python"), *words],
            env=os.environ | ENVIRONMENT | WITH_TOKEN,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        assert self._process.stdout is not None
        address = self._process.stdout.readline().strip()
        self.ways = {"address": address, "client": f"ray://127.0.0.5:{port}"}

    def close(self) -> None:
        self._process.communicate(timeout=60)


@pytest.fixture(scope="module")
def head() -> Iterator[Head]:
    pytest.importorskip("ray")
    made = Head()
    yield made
    made.close()


def measure(address: str, token: dict[str, str], cwd: Path) -> tuple[int, str]:
    """Exit status and standard error of a measurement there."""
    words = [str(programs() / "pplguard"), "measure", "demo/dense", "--method", "wanda"]
    words += ["--corpus", "demo", "--window", "128", *where(address, replicas=1)]
    done = run(words, cwd, ENVIRONMENT | token | {"COLUMNS": "400"})
    assert done.stdout == ""
    # What takes longer than a second is told.
    loading = "pplguard: loading demo/dense (2.14 MB) on 1 replica\n"
    return done.returncode, done.stderr.removeprefix(loading)


@pytest.mark.parametrize("token", [WITH_ANOTHER, WITHOUT], ids=["another", "none"])
@pytest.mark.parametrize("way", ["address", "client"])
def test_another_token_is_one_line(
    head: Head, tmp_path: Path, token: dict[str, str], way: str
) -> None:
    """Ray itself would ask for 20 s, and print a line each time."""
    address = head.ways[way]
    status, errors = measure(address, token, tmp_path)
    assert status == 1
    assert errors == (
        f"pplguard: error: the Ray cluster at {address} takes another token than "
        "this process has, if it has any: set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN "
        "here to what its head was started with\n"
    )


def test_another_token_for_the_cluster_that_is_found(
    head: Head, tmp_path: Path
) -> None:
    """Ray takes ``RAY_ADDRESS`` for ``auto``, else what runs on this machine."""
    address = head.ways["address"]
    other = WITH_ANOTHER | {"RAY_ADDRESS": address}
    status, errors = measure("auto", other, tmp_path)
    assert status == 1
    assert errors == (
        f"pplguard: error: the Ray cluster at {address} takes another token than "
        "this process has, if it has any: set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN "
        "here to what its head was started with\n"
    )


@pytest.mark.parametrize("way", ["address", "client"])
def test_the_same_token_is_let_in(head: Head, tmp_path: Path, way: str) -> None:
    address = head.ways[way]
    status, errors = measure(address, WITH_TOKEN, tmp_path)
    assert status == 1
    assert errors == (
        f"pplguard: error: Ray (at {address}) has 1 node, 0 CPUs and 0 GPUs; of 1 "
        "replica, each of 1 CPU, 0 fit: lower --replicas, --gpus-per-replica or "
        "--threads, or add nodes\n"
    )
