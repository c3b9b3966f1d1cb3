"""Real replicas on this machine; prints what was measured as JSON.

``cluster_process.py speed PAIRS WINDOWS``: one replica on a core beside two on two.
``cluster_process.py faults N``: one of two replicas is killed, N times.
``cluster_process.py driver MODEL``: this process's memory, of ``demo`` or ``smollm2``.
"""

from __future__ import annotations

import json
import os
import random
import resource
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ray

from benchmarks.cluster_replica import CORES, Pinned
from benchmarks.processes import smollm2_file
from pytest_pplguard.executors.ray import RayExecutor, RaySubject
from pytest_pplguard.executors.replica import Replica
from pytest_pplguard.options import Execution, Options, Target
from pytest_pplguard.values import Key, Window

WINDOW = 512
_A_LOAD = 3
"""Replicas are killed so often before others are loaded."""


def start(cpus: int) -> None:
    # Ray's workers give way to others; a process of one's own does not.
    os.environ.setdefault("RAY_worker_niceness", "0")
    ray.init(
        address="local",
        num_cpus=cpus,
        include_dashboard=False,
        log_to_driver=False,
        logging_level="ERROR",
        _node_ip_address="127.0.0.1",
    )


def opened(
    replicas: int, spec: str, kind: Any, tell: Callable[..., None] = lambda *_: None
) -> RaySubject:
    execution = Execution(where="ray", replicas=replicas, gpus_per_replica=0)
    options = Options(execution=execution, threads=1)
    subject = RayExecutor(options, tell=tell, kind=kind).open(Target("it", spec))
    assert isinstance(subject, RaySubject)
    return subject


def random_windows(
    count: int, words: int, seed: int, length: int = WINDOW
) -> list[Window]:
    made = random.Random(seed)
    windows = []
    for _ in range(count):
        ids = tuple(made.randrange(words) for _ in range(length))
        windows.append(Window(ids, ids[1:]))
    return windows


def speed(pairs: int, count: int) -> dict[str, Any]:
    """Seconds of the same windows by one replica and by two, in turns."""
    file = smollm2_file()
    assert file is not None
    subjects = {}
    with tempfile.TemporaryDirectory() as folder:
        os.environ[CORES] = folder
        start(cpus=3)
        for replicas in (1, 2):
            for core in range(replicas):
                Path(folder, str(core)).touch()
            subjects[replicas] = opened(replicas, str(file), Pinned)
    words = subjects[1].facts.embeddings
    assert words is not None
    runs = []
    for subject in subjects.values():
        subject.scorer()(random_windows(2, words, seed=0))  # warm, its speed known
    for turn in range(pairs):
        windows = random_windows(count, words, seed=turn + 1)
        found = {}
        for replicas in (1, 2) if turn % 2 == 0 else (2, 1):
            pool = subjects[replicas].pool
            before = pool.worked, pool.proved, pool.portions
            started = time.perf_counter()
            found[replicas] = subjects[replicas].scorer()(windows)
            runs.append(
                {
                    "turn": turn,
                    "replicas": replicas,
                    "windows": count,
                    "seconds": time.perf_counter() - started,
                    "worked": pool.worked - before[0],
                    "proved": pool.proved - before[1],
                    "portions": pool.portions - before[2],
                }
            )
        if found[1] != found[2]:
            raise SystemExit("two replicas give other losses than one")
    ray.shutdown()
    return {"window": WINDOW, "runs": runs}


def faults(times: int) -> dict[str, Any]:
    """Kill a replica of the demo at a random moment, and compare with one process."""
    from pytest_pplguard.corpora import open_corpus
    from pytest_pplguard.measure import load_target, measure_loaded

    key = Key.parse("wanda/demo:256")
    options = Options(threads=1)
    local = load_target(Target("it", "demo/dense"), options, tell=lambda *_: None)

    def measure(model: Any) -> Any:
        return measure_loaded(model, key, lambda name: open_corpus(name, {}), threads=1)

    expected = measure(local)
    start(cpus=2)
    moments = random.Random(1)
    found: list[dict[str, Any]] = []
    subject, usual = None, 0.0
    for number in range(times):
        if number % _A_LOAD == 0:
            if subject is not None:
                subject.close()
            subject = opened(2, "demo/dense", Replica)
            started = time.perf_counter()
            measure(subject)
            usual = time.perf_counter() - started
        assert subject is not None
        while sum(one.state == "ready" for one in subject.pool.members) < 2:
            subject.pool.look(0.5)
        after = moments.uniform(0, usual)
        victim = moments.choice(subject.pool.members)
        assert victim.hello is not None
        timer = threading.Timer(after, os.kill, (victim.hello.pid, signal.SIGKILL))
        timer.start()
        started = time.perf_counter()
        measured = measure(subject)
        took = time.perf_counter() - started
        timer.join()
        same = measured.evidence == expected.evidence
        found.append({"after": after, "seconds": took, "usual": usual, "equal": same})
        # What was killed after the last answer is found out now.
        measure(subject)
    ray.shutdown()
    return {"windows": expected.windows, "kills": found}


def driver(model: str) -> dict[str, Any]:
    """Peak memory of this process, whose one replica has the model, and its weights."""
    spec = str(smollm2_file()) if model == "smollm2" else "demo/dense"
    start(cpus=1)
    subject = opened(1, spec, Replica)
    words = subject.facts.embeddings
    assert words is not None
    subject.scorer()(random_windows(4, words, seed=0, length=128))
    # In KiB, as Linux has it.
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    ray.shutdown()
    return {"peak": peak}


def main() -> None:
    """One measurement."""
    what, *rest = sys.argv[1:]
    if what == "driver":
        found = driver(*rest)
    else:
        measures: dict[str, Callable[..., dict[str, Any]]]
        measures = {"speed": speed, "faults": faults}
        found = measures[what](*map(int, rest))
    # Before it come lines of Ray.
    print("\n" + json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
