"""A cluster of two nodes on this machine, and what tests do with it."""

from __future__ import annotations

import json
import re
import secrets
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from msgspec.structs import replace

from pytest_pplguard.checkpoints import Loaded
from pytest_pplguard.corpora import open_corpus
from pytest_pplguard.errors import PplguardError
from pytest_pplguard.executors.connection import Connection
from pytest_pplguard.executors.ray import RayExecutor, RaySubject
from pytest_pplguard.measure import measure_loaded
from pytest_pplguard.options import Execution, Options, Target
from pytest_pplguard.protocols import PROTOCOLS
from pytest_pplguard.values import Key, Measurement, Window, WindowScore
from tests.model.faulty_replica import FOLDER, Faulty
from tests.zygote import programs

from .worker import PROGRAM

KEYS = (
    "wanda/demo:128:first30",
    "lm-eval/wikitext+demo:128:first3",
    "strided/demo:128:stride64:first20",
)
ROOT = Path(__file__).parents[3]
NODE = r"node \S+ \(127\.0\.0\.[23]\)"
MEMORY = 80_000_000
ENVIRONMENT = {
    # Nodes that are not on 127.0.0.1 listen on all addresses of the machine.
    "RAY_AUTH_MODE": "token",
    "RAY_AUTH_TOKEN": secrets.token_hex(32),
    "RAY_worker_niceness": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "PYTHONPATH": str(ROOT),
    "HF_HUB_OFFLINE": "1",
}


class TwoNodes:
    """A head with a node beside it, both with room for one replica.

    Workers are forks, see :mod:`.worker`. ``client`` is the address for Ray's client.
    """

    def __init__(self, faults: Path, client_port: int) -> None:
        from ray.cluster_utils import Cluster

        self.faults = faults
        # 127.0.0.1 would be taken for the machine's address in the network.
        head = self.node("127.0.0.2") | {"ray_client_server_port": client_port}
        self._cluster: Any = Cluster(initialize_head=True, head_node_args=head)
        self.address: str = self._cluster.address
        self.client = f"ray://127.0.0.2:{client_port}"
        self.second: Any = None
        self.add()

    @staticmethod
    def node(address: str) -> dict[str, Any]:
        return {
            "node_ip_address": address,
            "num_cpus": 1,
            "object_store_memory": MEMORY,
            "include_dashboard": False,
            "setup_worker_path": str(Path(__file__).with_name("worker.py")),
        }

    def add(self) -> None:
        """The second node, anew where it was removed."""
        if self.second is None:
            self.second = self._cluster.add_node(**self.node("127.0.0.3"))
            self._cluster.wait_for_nodes()  # also until the lost one is known to be

    def remove(self) -> None:
        """The second node is lost: nothing there says good-bye."""
        self._cluster.remove_node(self.second, allow_graceful=False)
        self.second = None

    @contextmanager
    def third(self, environment: Mapping[str, str]) -> Iterator[None]:
        """A further node for a while, whose raylet has an environment of its own."""
        with pytest.MonkeyPatch.context() as patch:
            for name, text in environment.items():
                patch.setenv(name, text)
            node = self._cluster.add_node(**self.node("127.0.0.4"))
        try:
            yield
        finally:
            self._cluster.remove_node(node, allow_graceful=True)
            self._cluster.wait_for_nodes()

    def fault(self, name: str, text: str = "") -> None:
        """What replicas are to get wrong, see :mod:`tests.model.faulty_replica`."""
        (self.faults / name).write_text(text)

    def close(self) -> None:
        self._cluster.shutdown()


@contextmanager
def cluster_environment(faults: Path) -> Iterator[None]:
    """For a cluster, and for whoever connects to it."""
    more = {FOLDER: str(faults), PROGRAM: str(programs() / "python")}
    with pytest.MonkeyPatch.context() as patch:
        for name, text in (ENVIRONMENT | more).items():
            patch.setenv(name, text)
        _read_token()
        yield
    _read_token()


def _read_token() -> None:
    """Let Ray forget the token that it has read, if it knows of any."""
    with suppress(ImportError):
        from ray._private.authentication_test_utils import reset_auth_token_state

        reset_auth_token_state()


class Told(list[str]):
    """Lines for the user."""

    def __call__(self, *lines: str) -> None:
        self.extend(lines)

    def losses(self) -> list[str]:
        return [line for line in self if "was lost" in line]


def options(cluster: TwoNodes, **execution: Any) -> Options:
    asked = Execution(where="ray", replicas=2, address=cluster.address, timeout=60)
    return Options(execution=replace(asked, **execution), threads=1)


def open_text(name: str) -> Any:
    return open_corpus(name, {})


class Opened:
    """The demo on two replicas, for all tests that score; opened anew when needed."""

    def __init__(self, cluster: TwoNodes) -> None:
        self._cluster = cluster
        self._executor: RayExecutor | None = None
        self.told = Told()
        self.subject: Any = None
        self.modules_made_here: list[str] = []

    @property
    def pool(self) -> Any:
        return self.subject.pool

    def make_ready(self) -> None:
        """Two replicas are up, and nothing was told yet."""
        if self._executor is None:
            self._executor = RayExecutor(
                options(self._cluster), tell=self.told, kind=Faulty
            )
        if self.subject is None or not self.pool.members:
            with self._watching_modules():
                subject = self._executor.open(Target("it", "demo/dense"))
                assert isinstance(subject, RaySubject)
                self.subject = subject
                self.measure(KEYS[0])
        end = time.monotonic() + 60
        while sum(one.state == "ready" for one in self.pool.members) < 2:
            assert time.monotonic() < end, self.told
            self.pool.look(0.5)
        self.told.clear()

    @contextmanager
    def _watching_modules(self) -> Iterator[None]:
        make = torch.nn.Module.__init__

        def making(module: torch.nn.Module, *args: Any, **kwargs: Any) -> None:
            self.modules_made_here.append(type(module).__name__)
            make(module, *args, **kwargs)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(torch.nn.Module, "__init__", making)
            yield

    def measure(self, key: str, **how: Any) -> Measurement:
        return measure_loaded(self.subject, Key.parse(key), open_text, **how)

    def close_replicas(self) -> None:
        """Both nodes have room for a replica; this process stays connected."""
        if self.subject is not None:
            self.subject.close()
            self.subject = None

    def close(self) -> None:
        """This process is not connected to the cluster."""
        self.close_replicas()
        if self._executor is not None:
            self._executor.close()
            self._executor = None


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
                open_text,
                batch_size=batch_size,
                threads=1,
            )
        return self._known[key, batch_size]


class Keeping:
    """Counts what a journal is given."""

    def __init__(self, finished: Mapping[int, WindowScore]) -> None:
        self.finished = finished
        self.notices: list[str] = []
        self.added: list[int] = []

    def add(self, scores: Mapping[int, WindowScore]) -> None:
        self.added += scores


def windows_of(subject: Any, key: str) -> list[Window]:
    parsed = Key.parse(key)
    protocol = PROTOCOLS[parsed.method]
    corpus = open_text(protocol.corpus(parsed))
    return list(protocol.windows(corpus, subject.tokenizer, parsed))


@contextmanager
def opening(
    cluster: TwoNodes, told: Told, **execution: Any
) -> Iterator[tuple[RayExecutor, Callable[[], Any]]]:
    """An executor of a test's own, and what opens the demo by it."""
    executor = RayExecutor(options(cluster, **execution), tell=told, kind=Faulty)
    try:
        yield executor, lambda: executor.open(Target("it", "demo/dense"))
    finally:
        executor.close()


@contextmanager
def occupied(cluster: TwoNodes, executor: RayExecutor, count: int) -> Iterator[Any]:
    """Somebody else has ``count`` CPUs; gives what ends one of them."""
    import ray

    class Other:
        def here(self) -> bool:
            return True

    if executor._connection is None:
        executor._connection = Connection(executor._options.execution, cpus=1)
    others = [ray.remote(num_cpus=1)(Other).remote() for _ in range(count)]
    try:
        assert ray.get([other.here.remote() for other in others], timeout=30)
        yield lambda: ray.kill(others.pop())
    finally:
        for other in others:
            ray.kill(other)


def refused(
    cluster: TwoNodes, target: str = "demo/dense", **execution: Any
) -> tuple[PplguardError, Told]:
    """What opening a checkpoint raises."""
    told = Told()
    with (
        opening(cluster, told, **execution) as (executor, _),
        pytest.raises(PplguardError) as caught,
    ):
        executor.open(Target("it", target))
    return caught.value, told


def replicas_alive() -> list[psutil.Process]:
    """Of this test's own clusters, whose workers are descendants of this process."""
    children = psutil.Process().children(recursive=True)
    return [process for process in children if "ray::Replica" in title(process)]


def title(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.NoSuchProcess:
        return ""


def wait_for(what: Callable[[], Any], seconds: float = 90.0) -> Any:
    """What is true at last."""
    end = time.monotonic() + seconds
    while not (found := what()):
        assert time.monotonic() < end
        time.sleep(0.02)
    return found


def where(address: str, replicas: int = 2) -> list[str]:
    """Options of ``pplguard``."""
    return [
        "--executor", "ray", "--ray-address", address, "--replicas", str(replicas)
    ]  # fmt: skip


def with_pid(path: Path, *words: str) -> list[str]:
    """``pplguard`` as a fork that says in a file which process it is."""
    text = (
        "import os, sys, pathlib\n"
        f"pathlib.Path({str(path)!r}).write_text(str(os.getpid()))\n"
        f"sys.argv = ['pplguard', *{[*words]!r}]\n"
        "from pytest_pplguard.cli import main\n"
        "main()\n"
    )
    return [str(programs() / "python"), "-c", text]


def recorded(folder: Path) -> list[int]:
    """Indices of all windows in the journals of a folder."""
    indices: list[int] = []
    for file in folder.glob("*.jsonl"):
        for line in file.read_text().split("\n")[1:-1]:
            indices += [window[0] for window in json.loads(line[9:])["windows"]]
    return indices


def is_of_ray(text: str) -> bool:
    """Whether Ray itself has said something."""
    return re.search(r"\bray\b|pid=|raylet|gcs_", text, re.I) is not None
