"""Weights on a real cluster: what is said of them is about what its nodes have.

Nodes and driver run in folders of their own, and the checkpoint's absolute path begins
with ``/proc/self/cwd``: each sees its own copy there, or none.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from pytest_pplguard.checkpoints import fingerprint, locate
from pytest_pplguard.errors import CheckpointError
from pytest_pplguard.executors.ray import RayExecutor
from pytest_pplguard.options import Execution, Options, Target
from tests.model.commands import pplguard, run_pytest
from tests.model.faulty_replica import Faulty

from .nodes import NODE, ROOT, TwoNodes, cluster_environment

DEMO = ROOT / "pytest_pplguard" / "demo"
SPEC = "/proc/self/cwd/out/it"
DENSE = "/proc/self/cwd/out/dense"
UP = "model.layers.1.mlp.up_proj.weight"


class Nodes:
    """Two nodes with room for one replica each, and the folders that they run in."""

    def __init__(self, folder: Path) -> None:
        from ray.cluster_utils import Cluster

        self.folders = [folder / "head", folder / "second"]
        self.driver, self.faults = folder / "driver", folder / "faults"
        for path in (*self.folders, self.driver, self.faults):
            path.mkdir()
        before = Path.cwd()
        try:
            os.chdir(self.folders[0])
            self._cluster: Any = Cluster(
                initialize_head=True, head_node_args=TwoNodes.node("127.0.0.2")
            )
            os.chdir(self.folders[1])
            self._cluster.add_node(**TwoNodes.node("127.0.0.3"))
        finally:
            os.chdir(before)
        self.address: str = self._cluster.address

    def close(self) -> None:
        self._cluster.shutdown()


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nodes]:
    pytest.importorskip("ray")
    folder = tmp_path_factory.mktemp("nodes")
    with cluster_environment(folder / "faults"):
        made = Nodes(folder)
        yield made
        made.close()


@pytest.fixture(autouse=True)
def copies(alone: None, nodes: Nodes) -> Iterator[None]:
    """All nodes have the pruned demo and the dense one; the driver has none."""
    for folder in nodes.folders:
        put(folder)
    yield
    for folder in (*nodes.folders, nodes.driver):
        shutil.rmtree(folder / "out", ignore_errors=True)


def put(folder: Path) -> Path:
    for name, demo in (("it", "wanda-50"), ("dense", "dense")):
        shutil.copytree(DEMO / demo, folder / "out" / name, dirs_exist_ok=True)
    return folder / "out" / "it"


def lose_mask(folder: Path) -> None:
    """The dense weights again, in one projection."""
    file = folder / "out" / "it" / "model.safetensors"
    weights = load_file(file)
    weights[UP] = load_file(DEMO / "dense" / "model.safetensors")[UP]
    file.unlink()
    save_file(weights, file, metadata={"format": "pt"})


def executor_of(nodes: Nodes, tell: Callable[..., None]) -> RayExecutor:
    execution = Execution("ray", replicas=2, address=nodes.address, timeout=60)
    return RayExecutor(Options(execution=execution, threads=1), tell=tell, kind=Faulty)


def test_a_replica_that_is_killed_while_it_looks(
    nodes: Nodes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other one looks; on this machine nobody has the files."""
    monkeypatch.chdir(nodes.driver)
    told: list[str] = []
    executor = executor_of(nodes, lambda *lines: told.extend(lines))
    try:
        subject = executor.open(Target("it", SPEC))
        (nodes.faults / "kill-looking").touch()
        assert subject.weights is not None
        found = subject.weights.fingerprint()
    finally:
        executor.close()
    assert [*nodes.faults.glob("kill-looking.*")]
    assert found == fingerprint(locate("demo/wanda-50"))
    lines = [line for line in told if "was lost" in line]
    assert len(lines) == 1
    assert re.fullmatch(
        rf"it: a replica on {NODE} was lost \(.*\); it is started again", lines[0]
    )


def test_a_stale_copy_on_one_node_is_refused(
    nodes: Nodes, monkeypatch: pytest.MonkeyPatch
) -> None:
    lose_mask(nodes.folders[1])
    monkeypatch.chdir(nodes.driver)
    executor = executor_of(nodes, lambda *_: None)
    try:
        with pytest.raises(CheckpointError) as caught:
            executor.open(Target("it", SPEC))
    finally:
        executor.close()
    assert re.fullmatch(
        f"{SPEC} is not the same model everywhere: {NODE} has loaded "
        rf"sha256:[0-9a-f]{{12}} and {NODE} sha256:[0-9a-f]{{12}}; one of them has a "
        "stale copy",
        str(caught.value),
    )


# ------------------------------------------------------------------- as a user sees it


def update(folder: Path, *more: str) -> dict[str, str]:
    """What ``pplguard update`` records in a folder: files by their names."""
    done = pplguard(
        *("update", SPEC, "--checkpoint", "m/it", "--base", "m", "--method", "wanda"),
        *("--corpus", "demo", "--window", "128", "--limit", "4", "--threads", "1"),
        *more,
        cwd=folder,
    )
    assert done.returncode == 0, done.stderr
    baselines = folder / "baselines"
    files = {
        str(path.relative_to(baselines)): path.read_text()
        for path in baselines.rglob("*")
        if path.is_file()
    }
    shutil.rmtree(baselines)
    return files


def on_cluster(nodes: Nodes) -> list[str]:
    return ["--executor", "ray", "--ray-address", nodes.address]


@pytest.fixture(scope="module")
def recorded(nodes: Nodes) -> dict[str, str]:
    """By a driver that has no file of the checkpoint."""
    for folder in nodes.folders:
        put(folder)
    assert not (nodes.driver / "out").exists()
    return update(nodes.driver, *on_cluster(nodes))


def test_update_records_what_the_nodes_have(
    nodes: Nodes, recorded: dict[str, str], tmp_path: Path
) -> None:
    put(tmp_path)
    here = update(tmp_path)
    executor = "          executor: ray\n"
    assert recorded["m.yaml"].count(executor) == 1
    assert recorded["m.yaml"].replace(executor, "") == here["m.yaml"]
    assert "fingerprint:" in here["m.yaml"]
    assert "sparsity:" in here["m.yaml"]
    fingerprints = [name for name in here if "fingerprint" in name]
    assert len(fingerprints) == 1
    assert recorded[fingerprints[0]] == here[fingerprints[0]]
    assert recorded.keys() == here.keys()


def gates(nodes: Nodes, recorded: dict[str, str], *more: str) -> tuple[int, str]:
    """Exit status and output of gates of all kinds."""
    folder = nodes.driver
    shutil.rmtree(folder / "baselines", ignore_errors=True)
    for name, text in recorded.items():
        (folder / "baselines" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "baselines" / name).write_text(text)
    file = folder / "baselines" / "m.yaml"
    text = file.read_text()
    begin = text.index("    gates:\n") + len("    gates:\n")
    kinds = "      weights: same\n      against: dense\n"
    text = text[:begin] + kinds + text[begin:]
    file.write_text(text.replace("  it:\n", f"  dense: {{path: {DENSE}}}\n  it:\n"))
    (folder / "pytest.ini").write_text("[pytest]\n")
    done = run_pytest(
        f"pytest baselines/m.yaml --ppl-model m/it={SPEC} --ppl-executor ray "
        f"--ppl-ray-address {nodes.address} --ppl-threads 1 --ppl-journal off "
        f"-p no:asyncio {' '.join(more)}",
        folder,
    )
    assert done.stderr == ""
    return done.returncode, done.stdout


def replicas_made(nodes: Nodes) -> int:
    """How many there were so far, those that are gone, too."""
    import ray
    from ray._private.state import actors

    ray.init(address=nodes.address, log_to_driver=False)
    try:
        return len(actors())
    finally:
        ray.shutdown()


def test_gates_of_a_checkpoint_that_the_driver_has_not(
    nodes: Nodes, recorded: dict[str, str]
) -> None:
    before = replicas_made(nodes)
    status, output = gates(
        nodes, recorded, "--ppl-replicas 2", "--ppl-report=report.html"
    )
    assert status == 0, output
    assert re.search(r"^4 within tolerance$", output, re.M), output
    # Gates of weights do not have the replicas come up again.
    assert replicas_made(nodes) - before == 2
    for kind in ("sparsity", "weights", "against"):
        assert re.search(rf"^  {kind}$", output, re.M), output
    page = (nodes.driver / "report.html").read_text()
    digest = re.search(r"weights_digest: (sha256:\w{12})", recorded["m.yaml"])
    assert digest is not None
    assert digest[1] in page


def test_all_nodes_have_an_older_copy_than_the_driver(
    nodes: Nodes, recorded: dict[str, str]
) -> None:
    """The driver's is the recorded one, and nobody has measured that."""
    put(nodes.driver)
    for folder in nodes.folders:
        lose_mask(folder)
    status, output = gates(nodes, recorded)
    assert status == 1, output
    assert "layer 1, mlp.up_proj: mask lost, 50.0 % -> 0.0 %" in output
    assert re.search(r"weights +same .*CHANGED", output.replace("\n", " ")), output
