"""The cluster that is started on this machine where no address is given."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

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
