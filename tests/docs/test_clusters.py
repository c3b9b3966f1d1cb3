"""The files for Slurm and Kubernetes in docs/ray.md: what they start, and where.

There is neither here. The script runs with stand-ins for Slurm's and Ray's commands
that write down what they are asked; the image and the job are held to each other and to
the options that the plugin has.
"""

from __future__ import annotations

import os
import re
import shlex
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from .blocks import ROOT, blocks_of

PAGE = ROOT / "docs" / "ray.md"
NODES = ("gpu1", "gpu2", "gpu3")

SRUN = r"""#!/bin/bash
# One task on each node that is named, or on all but one.
echo "srun $*" >> "$LOG"
nodes=($NAMES)
while [[ $1 == -* ]]; do
    case $1 in
        --nodes=*) count=${1#*=} ;;
        --ntasks=*) [ "${1#*=}" = "$count" ] || exit 2 ;;
        -w) nodes=("$2"); shift ;;
        --exclude=*) read -ra nodes <<< "${NAMES//${1#*=}/}" ;;
        --overlap) ;;
        *) echo "srun: $1?" >&2; exit 2 ;;
    esac
    shift
done
[ "$count" = "${#nodes[@]}" ] || exit 2
for node in "${nodes[@]:1}"; do NODE=$node "$@" & done
NODE=${nodes[0]} exec "$@"
"""
RAY = """#!{python}
import os, socket, sys, time
from pathlib import Path
if "--head" in sys.argv:
    time.sleep(0.5)  # the others have to wait
    options = dict(word.split("=") for word in sys.argv if "=" in word)
    head = options["--node-ip-address"], int(options["--port"])
    listens = socket.create_server(head)
elif os.environ["NODE"] == os.environ.get("BROKEN"):
    sys.exit(1)
else:
    host, port = sys.argv[2].removeprefix("--address=").split(":")
    socket.create_connection((host, int(port)))
Path("nodes", os.environ["NODE"]).touch()
assert sys.argv[-1] == "--block"
time.sleep(60)
"""
RAY_MODULE = """
from pathlib import Path
def init(address, logging_level): print("asked", address)
def nodes(): return [{"Alive": True} for _ in Path("nodes").iterdir()]
"""
PYTEST = """#!/bin/bash
printf '%s\\n' "$NODE" "$RAY_AUTH_MODE" "$RAY_AUTH_TOKEN" "$@" > asked
exit 1
"""


def block(language: str, word: str) -> str:
    [found] = [b for b in blocks_of(PAGE) if b.language == language and word in b.text]
    return found.text


class Job:
    """The page's script in a folder of its own, with stand-ins for what it starts."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        with socket.socket() as bound:
            bound.bind(("127.0.0.1", 0))
            self.port = str(bound.getsockname()[1])
        bin_ = folder / "shared" / "venv" / "bin"
        bin_.mkdir(parents=True)
        for name, text in {
            "srun": SRUN,
            "ray": RAY.replace("{python}", sys.executable),
            "pytest": PYTEST,
            "scontrol": "#!/bin/bash\nprintf '%s\\n' $NAMES\n",
            "hostname": "#!/bin/bash\necho '127.0.0.1 fe80::1'\n",
            "openssl": f'#!/bin/bash\n[ "$3" = 32 ] && echo {"5e" * 32}\n',
        }.items():
            (bin_ / name).write_text(text)
            (bin_ / name).chmod(0o755)
        (bin_ / "python").symlink_to(sys.executable)
        (bin_ / "activate").write_text(f"export PATH={shlex.quote(str(bin_))}:$PATH\n")
        (folder / "ray.py").write_text(RAY_MODULE)
        (folder / "nodes").mkdir()
        for name in ("w50", "w 60"):
            (folder / "shared" / "release" / name).mkdir(parents=True)

    def run(self, *, patience: int = 300, **variables: str) -> tuple[int, str]:
        """Exit status and standard error; ``patience`` in seconds, for its nodes."""
        script = block("sh", "#SBATCH")
        for found, there in (
            ("/shared", str(self.folder / "shared")),
            ("6379", self.port),
            ("+ 300", f"+ {patience}"),
        ):
            assert found in script
            script = script.replace(found, there)
        script_file = self.folder / "gate.sh"
        script_file.write_text(script)
        with (self.folder / "stderr").open("w") as errors:
            process = subprocess.Popen(
                ["bash", str(script_file)],
                cwd=self.folder,
                env=os.environ
                | {
                    "LOG": "log",
                    "NAMES": " ".join(NODES),
                    "SLURM_JOB_NODELIST": "gpu[1-3]",
                    "SLURM_JOB_NUM_NODES": "3",
                    "SLURM_CPUS_PER_TASK": "64",
                    "PYTHONPATH": str(self.folder),
                }
                | variables,
                stdout=subprocess.DEVNULL,
                stderr=errors,
                start_new_session=True,
            )
        try:
            status = process.wait(timeout=60)
        finally:
            os.killpg(process.pid, signal.SIGKILL)  # as Slurm ends a job's steps
        return status, (self.folder / "stderr").read_text()


def test_the_slurm_script_starts_a_cluster_and_the_gate(tmp_path: Path) -> None:
    job = Job(tmp_path)
    status, errors = job.run()
    assert (status, errors) == (1, "")  # the gate's
    there = f"127.0.0.1:{job.port}"
    node, mode, token, *arguments = (tmp_path / "asked").read_text().splitlines()
    assert (node, mode, token) == ("gpu1", "token", "5e" * 32)
    release = tmp_path / "shared" / "release"
    assert sorted(arguments) == sorted(
        [
            *["baselines/release.yaml", "-n", "10", "--ppl-executor", "ray"],
            *["--ppl-ray-address", there, "--ppl-replicas", "3"],
            *["--ppl-model", f"release/w 60={release / 'w 60'}"],
            *["--ppl-model", f"release/w50={release / 'w50'}"],
            "--ppl-report=report.html",
        ]
    )
    one = "--nodes=1 --ntasks=1 -w gpu1"
    start = f"--head --node-ip-address=127.0.0.1 --port={job.port} --block"
    steps = (tmp_path / "log").read_text().splitlines()
    assert [step[:120] for step in steps[:4]] == [
        f"srun {one} hostname --ip-address",
        f"srun {one} ray start {start}"[:120],
        f"srun --nodes=2 --ntasks=2 --exclude=gpu1 ray start --address={there} --block",
        f"srun --overlap {one} python - {there} 3",
    ]
    assert steps[4].startswith(f"srun --overlap {one} pytest baselines/release.yaml ")
    assert {path.name for path in (tmp_path / "nodes").iterdir()} == set(NODES)


def test_the_slurm_script_ends_where_a_node_does_not_join(tmp_path: Path) -> None:
    status, errors = Job(tmp_path).run(patience=5, BROKEN="gpu3")
    assert (status, errors) == (1, "2 of 3 nodes have joined in 300 s\n")
    assert not (tmp_path / "asked").exists()


def test_the_slurm_script_asks_for_whole_nodes() -> None:
    words = " ".join(re.findall(r"^#SBATCH (.*)", block("sh", "#SBATCH"), re.M)).split()
    assert {"--exclusive", "--mem=0", "--ntasks-per-node=1"} <= set(words)


# ------------------------------------------------------------------------- Kubernetes


def containers(job: dict[str, Any]) -> list[dict[str, Any]]:
    cluster = job["spec"]["rayClusterSpec"]
    groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    return [group["template"]["spec"] for group in groups]


def test_the_job_and_its_image_are_of_one_ray_and_one_package() -> None:
    job = yaml.safe_load(block("yaml", "kind: RayJob"))
    image = block("dockerfile", "FROM")
    ray = job["spec"]["rayClusterSpec"]["rayVersion"]
    assert f"FROM rayproject/ray:{ray}-py311-gpu\n" in image
    assert f"'ray=={ray}'" in image
    [tag] = {one["image"] for pod in containers(job) for one in pod["containers"]}
    _, _, package = tag.rpartition(":")
    assert f"'pytest-pplguard[ray]=={package}'" in image
    assert block("sh", "docker build").count(tag) == 2


def test_what_the_job_mounts_is_there_and_holds_what_the_gate_reads() -> None:
    job = yaml.safe_load(block("yaml", "kind: RayJob"))
    head, *workers = containers(job)
    mounted = []
    for pod in (head, *workers):
        volumes = {volume["name"] for volume in pod["volumes"]}
        [container] = pod["containers"]
        paths = {one["mountPath"]: one["name"] for one in container["volumeMounts"]}
        assert set(paths.values()) == volumes
        mounted.append(paths)
    entrypoint = shlex.split(job["spec"]["entrypoint"])
    for word in entrypoint:
        for path in re.findall(r"(?:^|=)(/\w+)/", word):
            assert path in mounted[0] or f" {path}/" in block("dockerfile", "COPY")
            if path == "/models" and "corpus" not in word:
                assert all(path in paths for paths in mounted)
    for group in job["spec"]["rayClusterSpec"]["workerGroupSpecs"]:
        assert group["replicas"] == group["minReplicas"] == group["maxReplicas"]


def test_the_replicas_of_the_job_fit_its_gpus() -> None:
    job = yaml.safe_load(block("yaml", "kind: RayJob"))
    gpus = sum(
        group["replicas"] * container["resources"]["limits"]["nvidia.com/gpu"]
        for group in job["spec"]["rayClusterSpec"]["workerGroupSpecs"]
        for container in group["template"]["spec"]["containers"]
    )
    words = shlex.split(job["spec"]["entrypoint"])
    asked = int(words[words.index("-n") + 1])
    assert asked * int(words[words.index("--ppl-replicas") + 1]) <= gpus


@pytest.mark.parametrize("where", ["job", "script"])
def test_the_options_are_the_plugins(where: str) -> None:
    job = yaml.safe_load(block("yaml", "kind: RayJob"))
    text = job["spec"]["entrypoint"] if where == "job" else block("sh", "#SBATCH")
    reference = (ROOT / "docs" / "reference.md").read_text()
    used = set(re.findall(r"--ppl-[a-z-]+", text))
    assert len(used) >= 5
    for option in used:
        assert f"| `{option}" in reference, option
