"""A real cluster of two nodes on this machine: results, faults, and bad input."""

from __future__ import annotations

import http.server
import json
import re
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from msgspec.structs import replace

from pytest_pplguard.checkpoints import Loaded, load, locate
from pytest_pplguard.corpora import open_corpus
from pytest_pplguard.errors import (
    CheckpointError,
    ExecutorError,
    InvalidLossError,
    PplguardError,
)
from pytest_pplguard.executors.connection import Connection
from pytest_pplguard.executors.ray import RayExecutor, RaySubject
from pytest_pplguard.measure import Store, measure_loaded
from pytest_pplguard.measure.divergence import measure_divergence_elsewhere
from pytest_pplguard.options import Execution, Options, Target
from pytest_pplguard.report import watch_lines
from pytest_pplguard.values import Key, Measurement, Window, WindowScore

from .commands import pplguard, run
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
ROOT = Path(__file__).parents[2]
MEMORY = 80_000_000
ENVIRONMENT = {
    "RAY_AUTH_MODE": "disabled",  # on loopback addresses alone
    "RAY_worker_niceness": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "PYTHONPATH": str(ROOT),
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
    asked = Execution(where="ray", replicas=2, address=cluster.address, timeout=60)
    return Options(execution=replace(asked, **execution), threads=1)


class Opened:
    """The demo on two replicas, for all tests of this file that score."""

    def __init__(self, cluster: TwoNodes) -> None:
        self.told = Told()
        self.executor = RayExecutor(options(cluster), tell=self.told, kind=Faulty)
        subject = self.executor.open(Target("it", "demo/dense"))
        assert isinstance(subject, RaySubject)
        self.subject = subject
        self.modules_made_here: list[str] = []

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
    made: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        make = torch.nn.Module.__init__

        def making(self: torch.nn.Module, *args: Any, **kwargs: Any) -> None:
            made.append(type(self).__name__)
            make(self, *args, **kwargs)

        patch.setattr(torch.nn.Module, "__init__", making)
        opened = Opened(cluster)
        opened.measure(KEYS[0])
    opened.modules_made_here = made
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


@pytest.mark.parametrize("batch_size", [1, 3])
def test_a_divergence_has_the_bits_of_one_process(
    opened: Opened, loaded: Loaded, batch_size: int
) -> None:
    """On replicas both models are in memory at once; here one after the other."""
    key = Key.parse("kl/demo:128:first10")
    pruned = load(locate("demo/wanda-50"), device="cpu", dtype="float32")
    here = Store(
        {name: Target(name, name) for name in ("pruned", "it")},
        load=lambda target: {"pruned": pruned, "it": loaded}[target.name],
        open_corpus=lambda name: open_corpus(name, {}),
        watch=lambda label, **_: watch_lines(label, lambda line: None),
        batch_size=batch_size,
        threads=1,
    )
    expected = here.measurement("it", key, reference="pruned")
    measured = measure_divergence_elsewhere(
        key,
        name="it",
        subject=opened.subject,
        reference=Target("pruned", "demo/wanda-50"),
        allow_keys=(),
        open_corpus=lambda name: open_corpus(name, {}),
        watch=lambda label: watch_lines(label, lambda line: None),
        batch_size=batch_size,
        threads=1,
    )
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


def test_this_process_never_has_the_model(opened: Opened) -> None:
    """Its memory cannot depend on a model of which it has no part."""
    assert opened.modules_made_here == []


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


@pytest.fixture
def room(opened: Opened) -> None:
    """Both nodes have room for a replica; this process stays connected."""
    opened.subject.close()


@pytest.fixture
def alone(opened: Opened) -> None:
    """This process is not connected to the cluster."""
    opened.executor.close()


# --------------------------------------------------------------------------- bad input


def refused(
    cluster: TwoNodes, target: str = "demo/dense", **execution: Any
) -> tuple[PplguardError, Told]:
    """What opening a checkpoint raises."""
    told = Told()
    executor = RayExecutor(options(cluster, **execution), tell=told, kind=Faulty)
    try:
        with pytest.raises(PplguardError) as caught:
            executor.open(Target("it", target))
        return caught.value, told
    finally:
        executor.close()


NODE = r"node \S+ \(127\.0\.0\.[23]\)"


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
    import ray

    class Other:
        def here(self) -> bool:
            return True

    executor = RayExecutor(options(cluster, timeout=3.0), tell=Told(), kind=Faulty)
    executor._connection = Connection(executor._options.execution, cpus=1)
    others = [ray.remote(num_cpus=1)(Other).remote() for _ in range(2)]
    try:
        assert ray.get([other.here.remote() for other in others], timeout=30)
        with pytest.raises(ExecutorError) as caught:
            executor.open(Target("it", "demo/dense"))
    finally:
        for other in others:
            ray.kill(other)
        executor.close()
    assert str(caught.value) == (
        "no replica of it came up in 3 s: each needs 1 CPU, and Ray "
        f"(at {cluster.address}) has 2 nodes, 2 CPUs and 0 GPUs, all of them busy or "
        "not for us (ray status says by whom)"
    )


def test_one_that_cannot_load_says_so_once_and_the_other_goes_on(
    cluster: TwoNodes, room: None, local: Local
) -> None:
    cluster.fault("load", "the disk is gone")
    told = Told()
    executor = RayExecutor(options(cluster), tell=told, kind=Faulty)
    subject = executor.open(Target("it", "demo/dense"))
    measured = measure_loaded(
        subject, Key.parse(KEYS[0]), lambda name: open_corpus(name, {})
    )
    executor.close()
    assert measured.evidence == local(KEYS[0]).evidence
    lines = [line for line in told if "disk" in line]
    assert len(lines) == 1
    assert re.fullmatch(
        "it: not loaded on " + NODE + ", the others go on: the disk is gone", lines[0]
    )


def test_none_can_load(cluster: TwoNodes, room: None) -> None:
    cluster.fault("all-load", "the disk is gone")
    error, told = refused(cluster)
    assert isinstance(error, CheckpointError)
    assert re.fullmatch(rf"the disk is gone \(on {NODE}, {NODE}\)", str(error))
    assert not told


def test_other_windows_are_refused(cluster: TwoNodes, room: None) -> None:
    told = Told()
    executor = RayExecutor(options(cluster, replicas=1), tell=told, kind=Faulty)
    subject = executor.open(Target("it", "demo/dense"))
    cluster.fault("windows")
    kept = Keeping({})
    with pytest.raises(
        ExecutorError, match=r"have the digest sha256:other, and"
    ) as caught:
        subject.scorer()(windows_of_subject(subject, KEYS[0]), kept)
    executor.close()
    assert not kept.added
    assert re.match(NODE, str(caught.value))


def windows_of_subject(subject: Any, key: str) -> list[Window]:
    from pytest_pplguard.protocols import PROTOCOLS

    parsed = Key.parse(key)
    protocol = PROTOCOLS[parsed.method]
    corpus = open_corpus(protocol.corpus(parsed), {})
    return list(protocol.windows(corpus, subject.tokenizer, parsed))


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

    def nothing_runs(**options: Any) -> None:
        assert options["address"] == "auto"
        raise ConnectionError("Could not find any running Ray instance. Please ...")

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


# ------------------------------------------------------------------- as a user sees it


def value_of(output: str) -> list[str]:
    return re.findall(r"token_perplexity +([\d.]+)", output)


def replicas_alive() -> list[psutil.Process]:
    """Of this test's own cluster, whose raylets are children of this process."""
    children = psutil.Process().children(recursive=True)
    return [process for process in children if "ray::Replica" in title(process)]


def title(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.NoSuchProcess:
        return ""


def test_measure_on_two_replicas(
    cluster: TwoNodes, alone: None, tmp_path: Path
) -> None:
    words = ["measure", "demo/dense", "--method", "wanda", "--corpus", "demo"]
    words += ["--window", "128", "--limit", "30", "--threads", "1", "--json", "it.json"]
    where = ["--executor", "ray", "--replicas", "2", "--ray-address", cluster.address]
    done = pplguard(*words, *where, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    there = json.loads((tmp_path / "it.json").read_text())
    here = pplguard(*words, cwd=tmp_path)
    assert here.returncode == 0, here.stderr
    expected = json.loads((tmp_path / "it.json").read_text())
    for one in (there, expected):
        for measurement in one["measurements"]:
            del measurement["seconds"]
            measurement["environment"].pop("executor", None)
    assert there == expected
    assert "pplguard: loading demo/dense (2.14 MB) on 2 replicas: done" in done.stderr
    assert not re.search(r"ray|pid=|raylet|gcs", done.stderr, re.I), done.stderr
    assert not replicas_alive()


def test_a_replica_that_is_killed_from_outside(
    cluster: TwoNodes, alone: None, local: Local, tmp_path: Path
) -> None:
    """What programs read stays JSON; what happened is one line for people."""
    process = subprocess.Popen(
        [str(Path(sysconfig.get_path("scripts"), "pplguard")), "measure", "demo/dense",
         "--method", "wanda", "--corpus", "demo", "--window", "128", "--json", "-",
         "--threads", "1", "--journal", "off", "--executor", "ray", "--replicas", "2",
         "--ray-address", cluster.address],
        cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    end = time.monotonic() + 90
    while not (at_it := [one for one in replicas_alive() if "score" in title(one)]):
        assert time.monotonic() < end
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)
    at_it[0].kill()
    output, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    (measured,) = json.loads(output)["measurements"]
    assert measured["metrics"] == local("wanda/demo:128").metrics
    assert len([line for line in errors.splitlines() if "was lost" in line]) == 1
    assert "raylet" not in errors


def gate(cluster: TwoNodes, *more: str) -> list[str]:
    words = [sys.executable, "-m", "pytest", "baselines/demo.yaml", "-p"]
    words += [
        "no:cacheprovider",
        "-p",
        "no:asyncio",
        "--ppl-model",
        "demo",
        "--ppl-executor",
        "ray",
    ]
    return [*words, "--ppl-ray-address", cluster.address, "--ppl-journal", "off", *more]


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("project")
    shutil.copytree(ROOT / "baselines", folder / "baselines")
    (folder / "pytest.ini").write_text("[pytest]\n")
    return folder


def test_gates_on_two_replicas(cluster: TwoNodes, alone: None, project: Path) -> None:
    done = run(gate(cluster, "--ppl-replicas", "2"), project)
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"\d+ passed", done.stdout)
    assert "failed" not in done.stdout
    assert done.stderr == ""
    assert not re.search(r"\bray\b|pid=|raylet|gcs_", done.stdout, re.I), done.stdout
    assert not replicas_alive()


def test_two_workers_share_the_cluster(
    cluster: TwoNodes, alone: None, project: Path
) -> None:
    done = run(gate(cluster, "--ppl-replicas", "2", "-n", "2"), project)
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"\d+ passed", done.stdout)
    assert not replicas_alive()


def test_ctrl_c_leaves_no_replica(
    cluster: TwoNodes, alone: None, tmp_path: Path
) -> None:
    (tmp_path / "text.txt").write_text("a long text of many words\n" * 40_000)
    process = subprocess.Popen(
        [str(Path(sysconfig.get_path("scripts"), "pplguard")), "measure", "demo/dense",
         "--method", "wanda", "--corpus", "text=text.txt", "--window", "256",
         "--executor", "ray", "--replicas", "2", "--ray-address", cluster.address],
        cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    end = time.monotonic() + 90
    while not any("score" in title(one) for one in replicas_alive()):
        assert time.monotonic() < end
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 130, output
    end = time.monotonic() + 10
    while replicas_alive():
        assert time.monotonic() < end
        time.sleep(0.1)


# -------------------------------------------------------------------- nodes, at the end


def test_a_node_that_is_lost(cluster: TwoNodes, alone: None, local: Local) -> None:
    import ray

    told = Told()
    # Of two nodes on one machine it would take either, and lose that.
    ray.init(address=cluster.address, _node_ip_address="127.0.0.2", log_to_driver=False)
    executor = RayExecutor(options(cluster), tell=told, kind=Faulty)
    subject = executor.open(Target("it", "demo/dense"))
    cluster.fault("all-slow", "0.2")
    seen: list[int] = []

    def progress(done: int, total: int, mean: float) -> None:
        seen.append(done)
        if done and cluster.second is not None:
            cluster.remove()
            cluster.second = None

    windows = windows_of_subject(subject, KEYS[0])
    scores = subject.scorer(progress=progress)(windows)
    executor.close()
    ray.shutdown()
    assert tuple(scores) == local(KEYS[0]).evidence
    assert seen[-1] == 30
    lines = [line for line in told if "was lost" in line]
    assert len(lines) == 1
    assert "127.0.0.3" in lines[0]
