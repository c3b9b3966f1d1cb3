"""A real cluster of two nodes on this machine: results, faults, and bad input."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from pytest_pplguard.checkpoints import Loaded, load, locate
from pytest_pplguard.corpora import open_corpus
from pytest_pplguard.errors import (
    CheckpointError,
    ExecutorError,
    InvalidLossError,
    PplguardError,
)
from pytest_pplguard.executors import ray as ray_executor
from pytest_pplguard.executors.connection import Connection
from pytest_pplguard.executors.ray import RayExecutor, RaySubject
from pytest_pplguard.measure import measure_loaded
from pytest_pplguard.options import Execution, Options, Target
from pytest_pplguard.values import Key, Measurement, Window, WindowScore

from .commands import run
from .faulty_replica import FOLDER, Faulty

pytest.importorskip("ray")
pytestmark = pytest.mark.skipif(
    sys.platform != "linux", reason="other loopback addresses are Linux's"
)

KEYS = (
    "wanda/demo:128:first30",
    "lm-eval/wikitext+demo:128:first3",
    "strided/demo:128:stride64:first20",
)
MEMORY = 80_000_000
ENVIRONMENT = {
    "RAY_AUTH_MODE": "disabled",  # on loopback addresses alone
    "RAY_DISABLE_IMPORT_WARNING": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "PYTHONPATH": str(Path(__file__).parents[2]),
    "HF_HUB_OFFLINE": "1",
}


class TwoNodes:
    """A head with a node beside it, both with room for one replica."""

    def __init__(self, faults: Path) -> None:
        from ray.cluster_utils import Cluster

        self.faults = faults
        # 127.0.0.1 would be taken for the machine's address in the network.
        self._cluster: Any = Cluster(
            initialize_head=True, head_node_args=self._node("127.0.0.2")
        )
        self.address: str = self._cluster.address
        self.second: Any = None
        self.add()

    @staticmethod
    def _node(address: str) -> dict[str, Any]:
        return {
            "node_ip_address": address,
            "num_cpus": 1,
            "object_store_memory": MEMORY,
            "include_dashboard": False,
        }

    def add(self) -> None:
        self.second = self._cluster.add_node(**self._node("127.0.0.3"))
        self._cluster.wait_for_nodes()

    def remove(self) -> None:
        self._cluster.remove_node(self.second, allow_graceful=False)

    def fault(self, name: str, text: str = "") -> None:
        (self.faults / name).write_text(text)

    def close(self) -> None:
        self._cluster.shutdown()


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TwoNodes]:
    faults = tmp_path_factory.mktemp("faults")
    with pytest.MonkeyPatch.context() as patch:
        for name, text in (ENVIRONMENT | {FOLDER: str(faults)}).items():
            patch.setenv(name, text)
        nodes = TwoNodes(faults)
        yield nodes
        nodes.close()


@pytest.fixture(autouse=True)
def no_faults(request: pytest.FixtureRequest) -> Iterator[None]:
    yield
    if "cluster" in request.fixturenames:
        for file in request.getfixturevalue("cluster").faults.iterdir():
            file.unlink()


class Told(list[str]):
    def __call__(self, *lines: str) -> None:
        self.extend(lines)


def options(cluster: TwoNodes, **execution: Any) -> Options:
    asked = {"replicas": 2, "address": cluster.address, "timeout": 60.0} | execution
    return Options(execution=Execution(where="ray", **asked), threads=1)


class Opened:
    """The demo on two replicas, for all tests of this file that score."""

    def __init__(self, cluster: TwoNodes) -> None:
        self.told = Told()
        self.executor = RayExecutor(options(cluster), tell=self.told, kind=Faulty)
        subject = self.executor.open(Target("it", "demo/dense"))
        assert isinstance(subject, RaySubject)
        self.subject = subject

    @property
    def pool(self) -> Any:
        return self.subject._pool

    def measure(self, key: str, **how: Any) -> Measurement:
        return measure_loaded(
            self.subject, Key.parse(key), lambda name: open_corpus(name, {}), **how
        )

    def wait(self) -> None:
        """Until two replicas are ready again."""
        end = time.monotonic() + 60
        while sum(one.state == "ready" for one in self.pool.members) < 2:
            assert time.monotonic() < end, self.told
            self.pool.look(0.5)


@pytest.fixture(scope="module")
def opened(cluster: TwoNodes) -> Iterator[Opened]:
    opened = Opened(cluster)
    yield opened
    opened.executor.close()


@pytest.fixture(scope="module")
def loaded() -> Loaded:
    torch.set_num_threads(1)
    return load(locate("demo/dense"), device="cpu", dtype="float32")


class Local:
    """What this process alone measures, each once."""

    def __init__(self, loaded: Loaded) -> None:
        self._loaded = loaded
        self._known: dict[tuple[str, int], Measurement] = {}

    def __call__(self, key: str, batch_size: int = 1) -> Measurement:
        if (key, batch_size) not in self._known:
            self._known[key, batch_size] = measure_loaded(
                self._loaded,
                Key.parse(key),
                lambda name: open_corpus(name, {}),
                batch_size=batch_size,
                threads=1,
            )
        return self._known[key, batch_size]


@pytest.fixture(scope="module")
def local(loaded: Loaded) -> Local:
    return Local(loaded)


# ----------------------------------------------------------------------------- results


@pytest.mark.parametrize("batch_size", [1, 3])
@pytest.mark.parametrize("key", KEYS)
def test_every_method_gives_the_bits_of_one_process(
    opened: Opened, local: Local, key: str, batch_size: int
) -> None:
    measured = opened.measure(key, batch_size=batch_size, threads=1)
    expected = local(key, batch_size)
    assert measured.evidence == expected.evidence
    assert measured.metrics == expected.metrics
    assert measured.environment == expected.environment | {"executor": "ray"}


def test_both_replicas_have_worked(opened: Opened) -> None:
    opened.measure(KEYS[0])
    assert len(opened.pool.members) == 2
    assert {one.hello.address for one in opened.pool.members} == {
        "127.0.0.2",
        "127.0.0.3",
    }


class Keeping:
    """Counts what a journal is given."""

    def __init__(self, finished: Mapping[int, WindowScore]) -> None:
        self.finished = finished
        self.added: list[int] = []

    def add(self, scores: Mapping[int, WindowScore]) -> None:
        self.added += scores


def windows_of(opened: Opened, key: str) -> list[Window]:
    from pytest_pplguard.protocols import PROTOCOLS

    parsed = Key.parse(key)
    protocol = PROTOCOLS[parsed.method]
    corpus = open_corpus(protocol.corpus(parsed), {})
    return list(protocol.windows(corpus, opened.subject.tokenizer, parsed))


def test_finished_windows_are_not_scored_again(opened: Opened, local: Local) -> None:
    windows = windows_of(opened, KEYS[0])
    expected = local(KEYS[0]).evidence
    kept = Keeping({index: expected[index] for index in (0, 1, 2, 7)})
    done: list[tuple[int, int]] = []
    scorer = opened.subject.scorer(
        progress=lambda now, all_, _: done.append((now, all_))
    )
    assert tuple(scorer(windows, kept)) == expected
    assert sorted(kept.added) == sorted({*range(30)} - {0, 1, 2, 7})
    assert done[0] == (4, 30)
    assert done[-1] == (30, 30)


def test_an_early_end_does_not_depend_on_the_replicas(
    opened: Opened, loaded: Loaded
) -> None:
    from pytest_pplguard.scoring import Scorer

    windows = windows_of(opened, KEYS[0])
    order = [*range(29, -1, -1)]

    def enough(scores: Mapping[int, WindowScore]) -> bool:
        return len(scores) == 11

    here = Scorer(loaded.model).until(windows, order=order, stop=enough)
    there = opened.subject.scorer().until(windows, order=order, stop=enough)
    assert there == here
    assert len(there) == 11


# ------------------------------------------------------------------------------ faults


def test_a_replica_that_is_killed(
    cluster: TwoNodes, opened: Opened, local: Local
) -> None:
    opened.wait()
    cluster.fault("kill")
    kept = Keeping({})
    scores = opened.subject.scorer()(windows_of(opened, KEYS[0]), kept)
    assert tuple(scores) == local(KEYS[0]).evidence
    assert sorted(kept.added) == [*range(30)]
    assert [*cluster.faults.glob("kill.*")]
    lines = [line for line in opened.told if "was lost" in line]
    assert len(lines) == 1
    assert lines[0].endswith("; it is started again")


def test_a_replica_that_hangs(
    cluster: TwoNodes,
    opened: Opened,
    local: Local,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    opened.wait()
    opened.measure(KEYS[0])
    monkeypatch.setattr(opened.subject, "_timeout", 4.0)
    cluster.fault("hang")
    assert opened.measure(KEYS[0]).evidence == local(KEYS[0]).evidence
    assert [*cluster.faults.glob("hang.*")]


def test_a_replica_that_answers_nan_for_healthy_windows(
    cluster: TwoNodes, opened: Opened, local: Local
) -> None:
    opened.wait()
    cluster.fault("nan")
    assert opened.measure(KEYS[0]).evidence == local(KEYS[0]).evidence
    assert "(it failed at windows that another replica scored)" in opened.told[-1]


def test_nan_that_a_second_replica_confirms(cluster: TwoNodes, opened: Opened) -> None:
    opened.wait()
    cluster.fault("all-nan")
    with pytest.raises(InvalidLossError) as caught:
        opened.measure(KEYS[0])
    assert str(caught.value) == "the loss of window 1 of 30 is nan"
    assert (caught.value.window, caught.value.windows) == (0, 30)
