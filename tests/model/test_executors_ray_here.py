"""The cluster that is started on this machine where no address is given."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

pytest.importorskip("ray")
ROOT = Path(__file__).parents[2]

LISTENING = """
import json
import psutil
from pytest_pplguard.executors.connection import Connection
from pytest_pplguard.options import Execution
for _ in range(2):
    connection = Connection(Execution(where="ray", replicas=1), cpus=1)
    import ray
    ray.get(ray.remote(num_cpus=1)(lambda: 1).remote())
    mine = psutil.Process()
    found = {
        one.laddr.ip
        for process in [mine, *mine.children(recursive=True)]
        for one in process.net_connections("inet")
        if one.status == psutil.CONN_LISTEN
    }
    connection.close()
    print(json.dumps(sorted(found)))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="others' sockets are Linux's")
def test_no_other_machine_reaches_it(tmp_path: Path) -> None:
    """Ray reads what decides it when it is imported: the second time, it was before."""
    done = subprocess.run(
        [sys.executable, "-c", LISTENING],
        cwd=tmp_path,
        env={"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == 2
    for found in map(json.loads, lines):
        assert {address.removeprefix("::ffff:") for address in found} == {"127.0.0.1"}


def test_a_run_whose_ray_dies_says_so(tmp_path: Path) -> None:
    """Ray itself would end pytest without a word."""
    shutil.copytree(ROOT / "baselines", tmp_path / "baselines")
    words = "-m pytest baselines/demo.yaml -p no:cacheprovider --ppl-model demo"
    words += " --ppl-journal off --ppl-executor ray"
    process = subprocess.Popen(
        [sys.executable, *words.split()],
        cwd=tmp_path,
        env={"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    end = time.monotonic() + 120
    while not (found := [*raylets(process.pid)]):
        assert time.monotonic() < end
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.05)
    raylet, replicas = found[0]
    raylet.kill()
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 1, output
    assert "Ray (on this machine) is lost: Ray's own process on this machine" in output
    assert re.search(r"=+ .*\d errors? in ", output.splitlines()[-1])
    psutil.wait_procs(replicas, timeout=30)
    assert not any(one.is_running() for one in replicas)


def raylets(pid: int) -> Iterator[tuple[psutil.Process, list[psutil.Process]]]:
    """Ray's own process below another that has replicas, and these."""
    for child in psutil.Process(pid).children():
        replicas = [one for one in child.children() if "ray::Replica" in one.name()]
        if replicas:
            yield child, replicas
