"""As users see it: ``pplguard`` and pytest on a cluster, and what is left behind."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest

from pytest_pplguard.baselines import read_baseline, read_evidence
from pytest_pplguard.executors.ray import RayExecutor
from pytest_pplguard.journal import Journals
from pytest_pplguard.measure import Store
from pytest_pplguard.options import Target
from pytest_pplguard.report import watch_lines
from pytest_pplguard.values import Key, Measurement
from tests.model.commands import ENVIRONMENT, pplguard, run_pytest
from tests.model.local_tasks import write_task
from tests.zygote import programs

from .nodes import (
    Local,
    Told,
    TwoNodes,
    is_of_ray,
    open_text,
    options,
    recorded,
    replicas_alive,
    title,
    wait_for,
    where,
    with_pid,
)

DEMO = ["--corpus", "demo", "--window", "128", "--threads", "1", "--journal", "off"]


def without_time(document: dict[str, Any]) -> dict[str, Any]:
    """All of ``measure --json`` that has to be the same here and there."""
    for measurement in document["measurements"]:
        del measurement["seconds"]
        measurement["environment"].pop("executor", None)
    return document


@pytest.fixture(scope="module")
def measured_here(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("here")
    words = ["measure", "demo/dense", *DEMO, "--limit", "3", "--json", "it.json"]
    done = pplguard(*words, cwd=folder)
    assert done.returncode == 0, done.stderr
    return without_time(json.loads((folder / "it.json").read_text()))


@pytest.mark.parametrize("way", ["address", "client"])
def test_measure_on_two_replicas(
    cluster: TwoNodes,
    alone: None,
    measured_here: dict[str, Any],
    tmp_path: Path,
    way: str,
) -> None:
    """``client`` is Ray's own, at an address that begins with ``ray://``."""
    words = ["measure", "demo/dense", *DEMO, "--limit", "3", "--json", "it.json"]
    done = pplguard(*words, *where(getattr(cluster, way)), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    there = json.loads((tmp_path / "it.json").read_text())
    assert {one["environment"]["executor"] for one in there["measurements"]} == {"ray"}
    assert without_time(there) == measured_here
    assert not is_of_ray(done.stderr), done.stderr
    wait_for(lambda: not replicas_alive(), 10)


def test_a_replica_that_is_killed_from_outside(
    cluster: TwoNodes, alone: None, local: Local, tmp_path: Path
) -> None:
    """Through Ray's client. What programs read stays JSON, the loss is one line."""
    process = subprocess.Popen(
        [str(programs() / "pplguard"), "measure", "demo/dense", "--method", "wanda",
         "--corpus", "demo", "--window", "128", "--json", "-", "--threads", "1",
         "--journal", "off", *where(cluster.client)],
        cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env=os.environ | ENVIRONMENT,
    )  # fmt: skip

    def at_it() -> Any:
        assert process.poll() is None, process.communicate()
        return [one for one in replicas_alive() if "score" in title(one)]

    wait_for(at_it)[0].kill()
    output, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    (measured,) = json.loads(output)["measurements"]
    assert measured["metrics"] == local("wanda/demo:128").metrics
    [line] = [line for line in errors.splitlines() if "was lost" in line]
    assert line.endswith("; it is started again")
    assert "raylet" not in errors


# ------------------------------------------------------------------- other commands


def test_compare(cluster: TwoNodes, alone: None, tmp_path: Path) -> None:
    words = ["compare", "demo", *DEMO, "--limit", "3", "--json", "it.json"]
    tables = []
    for more in ([], where(cluster.address)):
        done = pplguard(*words, *more, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        tables.append((tmp_path / "it.json").read_text())
    assert '"executor": "ray"' not in tables[0]
    assert tables[1].count('"executor": "ray"') == 4  # two models, two methods
    assert numbers(tables[0]) == numbers(tables[1])


def numbers(text: str) -> list[str]:
    """All numbers with a fraction, but for seconds."""
    return re.findall(r"(?<!seconds\": )\b\d+\.\d+\b", text)


def test_explain(cluster: TwoNodes, alone: None, tmp_path: Path) -> None:
    words = ["explain", "demo/dense", *DEMO, "--limit", "3", "--json", "it.json"]
    found = []
    for more in ([], where(cluster.address)):
        done = pplguard(*words, *more, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        found.append(json.loads((tmp_path / "it.json").read_text()))
    here, there = found
    assert there["environment"] == here["environment"] | {"executor": "ray"}
    assert there["steps"] == here["steps"]


def test_update_and_its_gate(cluster: TwoNodes, alone: None, tmp_path: Path) -> None:
    words = ["update", "demo/dense", "--checkpoint", "it/dense", "--base", "demo",
             "--method", "wanda", "--limit", "20", *DEMO]  # fmt: skip
    done = pplguard(*words, *where(cluster.address), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    path = tmp_path / "baselines" / "it.yaml"
    there = read_baseline(path).checkpoints["dense"].recorded["wanda/demo:128:first20"]
    assert there.environment["executor"] == "ray"
    evidence = read_evidence(path.parent, there, where="it").windows
    shutil.rmtree(path.parent)
    done = pplguard(*words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    here = read_baseline(path).checkpoints["dense"].recorded["wanda/demo:128:first20"]
    assert evidence == read_evidence(path.parent, here, where="it").windows
    assert there.metrics == here.metrics


# --------------------------------------------------------------------------- gates


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two checkpoints, gated by perplexity and by the answers of a task."""
    folder = tmp_path_factory.mktemp("project")
    (folder / "pytest.ini").write_text("[pytest]\nppl_include_path = tasks\n")
    write_task(folder / "tasks", "piqa")
    for name, *what in (
        ("dense", "--method", "wanda", "--corpus", "demo", "--limit", "120"),
        ("dense", "--task", "piqa", "--include-path", "tasks"),
        ("wanda-50", "--method", "wanda", "--corpus", "demo", "--limit", "20"),
    ):
        done = pplguard(
            "update", f"demo/{name}", "--checkpoint", f"some/{name}", "--base", "demo",
            "--window", "128", "--threads", "1", "--journal", "off", *what,
            cwd=folder,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
    return folder


def gate(
    project: Path, cluster: TwoNodes | None, *more: str, regressed: bool = False
) -> tuple[str, dict[str, Any]]:
    """What pytest says, and its report.

    ``regressed``: the pruned model stands in for the dense one, the only one given.
    """
    words = ["pytest", "baselines/some.yaml", "-p", "no:asyncio", "--ppl-journal=off"]
    words += ["--ppl-threads=1", "--ppl-report=it.json", *more]
    given = {"dense": "wanda-50"} if regressed else {"dense": "dense"}
    if not regressed:
        given["wanda-50"] = "wanda-50"
    for name, model in given.items():
        words += ["--ppl-model", f"some/{name}=demo/{model}"]
    if cluster is not None:
        words += ["--ppl-executor=ray", "--ppl-ray-address", cluster.address]
        words += ["--ppl-replicas=2"]
    done = run_pytest(" ".join(words), project)
    assert done.returncode == int(regressed), done.stdout + done.stderr
    assert done.stderr == ""
    return done.stdout, json.loads((project / "it.json").read_text())


def verdicts(report: dict[str, Any]) -> list[dict[str, Any]]:
    """Without what is of the run: how long it took, and how to repeat it."""
    return [
        {
            name: value
            for name, value in verdict.items()
            if name not in ("seconds", "command")
        }
        for verdict in report["verdicts"]
    ]


def test_gates_on_two_replicas(cluster: TwoNodes, alone: None, project: Path) -> None:
    """Perplexities, and answers of a task of lm-eval."""
    said, there = gate(project, cluster)
    assert not is_of_ray(said), said
    _, here = gate(project, None)
    assert verdicts(there) == verdicts(here)
    assert {one["key"].partition(":")[0] for one in verdicts(there)} >= {
        "wanda/demo",
        "lm-eval/piqa",
    }
    wait_for(lambda: not replicas_alive(), 10)


def test_early_verdicts_on_two_replicas(
    cluster: TwoNodes, alone: None, project: Path
) -> None:
    more = ["--ppl-early", "--ppl-early-cap=0.1", "-k", "first120"]
    _, there = gate(project, cluster, *more, regressed=True)
    _, here = gate(project, None, *more, regressed=True)
    assert verdicts(there) == verdicts(here)
    [verdict] = verdicts(there)
    assert verdict["outcome"] == "regressed"
    seen = re.search(r"\b(\d+) of 120 windows", verdict["early"])
    assert seen is not None
    assert int(seen[1]) < 120


def test_two_workers_share_the_cluster(
    cluster: TwoNodes, alone: None, project: Path
) -> None:
    _, there = gate(project, cluster, "-n2")
    assert {one["checkpoint"] for one in verdicts(there)} == {
        "some/dense",
        "some/wanda-50",
    }
    wait_for(lambda: not replicas_alive(), 10)


# ------------------------------------------------------------------- what is killed


def test_a_driver_that_is_killed_goes_on_from_its_journal(
    cluster: TwoNodes, alone: None, local: Local, tmp_path: Path
) -> None:
    """With the real command; what goes on is in this process, to be looked at."""
    folder, pid = tmp_path / "journals", tmp_path / "pid"
    text = "wanda/demo:128"
    words = ["measure", "demo/dense", "--method", "wanda", "--corpus", "demo"]
    words += ["--window", "128", "--threads", "1", "--journal", str(folder)]
    process = subprocess.Popen(
        with_pid(pid, *words, *where(cluster.address)),
        cwd=tmp_path, env=os.environ | ENVIRONMENT,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip

    def some() -> bool:
        assert process.poll() is None, process.communicate()
        return len(recorded(folder)) > 5

    wait_for(some)
    os.kill(int(pid.read_text()), signal.SIGKILL)
    process.communicate(timeout=30)
    known = recorded(folder)
    expected = local(text)
    assert 5 < len(known) < expected.windows

    executor = RayExecutor(options(cluster), tell=Told())
    store = Store(
        {"it": Target("it", "demo/dense")},
        load=lambda target: pytest.fail(f"{target.name} was loaded here"),
        open_corpus=open_text,
        watch=lambda label, **_: watch_lines(label, lambda line: None),
        threads=1,
        journals=Journals(folder),
        executor=executor,
    )
    try:
        measured: Measurement = store.measurement("it", Key.parse(text))
    finally:
        store.close()
    assert measured.evidence == expected.evidence
    assert measured.metrics == expected.metrics
    # Each window has one record: none was scored again.
    assert sorted(recorded(folder)) == [*range(expected.windows)]
    assert recorded(folder)[: len(known)] == known
    assert measured.notices[0].startswith(
        f"it {text}: {len(known)} of {expected.windows} windows were scored already"
    )


def test_ctrl_c_leaves_no_replica(
    cluster: TwoNodes, alone: None, tmp_path: Path
) -> None:
    (tmp_path / "text.txt").write_text("a long text of many words\n" * 40_000)
    pid = tmp_path / "pid"
    words = ["measure", "demo/dense", "--method", "wanda", "--corpus", "text=text.txt"]
    words += ["--window", "256", *where(cluster.address)]
    process = subprocess.Popen(
        with_pid(pid, *words), cwd=tmp_path, env=os.environ | ENVIRONMENT,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip

    def at_it() -> bool:
        assert process.poll() is None, process.communicate()
        return any("score" in title(one) for one in replicas_alive())

    wait_for(at_it)
    os.kill(int(pid.read_text()), signal.SIGINT)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 130, output
    wait_for(lambda: not replicas_alive(), 10)
