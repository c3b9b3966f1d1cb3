"""Beside xdist, pytest-timeout and pytest-rerunfailures."""

from __future__ import annotations

import json

import pytest

from pytest_pplguard.baselines import read_baseline

from .project import WANDA, Project, section

ONE = """
w50:
  gates:
    wanda/tiny:16: {token_perplexity: {}}
"""
FOUR = "".join(
    f"""
{name}:
  gates:
    wanda/tiny:16: {{token_perplexity: {{}}}}
    wanda/tiny:32: {{token_perplexity: {{}}}}
"""
    for name in "ab"
)


def test_a_regression_is_not_retried(
    project: Project, local_args: tuple[str, ...]
) -> None:
    project.baseline(ONE, w50="ppl:8")
    result = project.run(*project.give(w50="ppl:9"), "--reruns=2", *local_args)
    result.assert_outcomes(failed=1)
    assert section(result).splitlines()[-1] == "1 regressed"
    assert project.loads() == ["llama/w50 after 0"]


def test_a_test_that_is_run_again_counts_once(
    project: Project, plugin_args: tuple[str, ...]
) -> None:
    project.baseline(ONE, w50="ppl:8")
    project.test(
        """
        from pathlib import Path
        from tests.plugin.stub import make

        @pytest.mark.ppl("wanda")
        def test_it():
            tried = Path("tried.txt")
            first = not tried.exists()
            tried.touch()
            return make("ppl:9" if first else "ppl:8")
        """
    )
    result = project.run(
        "test_it.py",
        *project.give(w50="ppl:8"),
        *["--reruns=2", "--ppl-report=r.json", "--junitxml=j.xml", *plugin_args],
    )
    result.assert_outcomes(passed=1)
    assert result.ret == 0
    assert section(result).splitlines()[-1] == "1 within tolerance"
    (verdict,) = json.loads((project.path / "r.json").read_text())["verdicts"]
    assert verdict["outcome"] == "within"
    # JUnit has a case for each attempt.
    cases = (project.path / "j.xml").read_text().split("<testcase")[1:]
    assert ['"regressed"' in case for case in cases] == [True, False]
    assert ['"within"' in case for case in cases] == [False, True]


def test_a_gate_that_takes_too_long(project: Project) -> None:
    project.baseline(ONE, w50="ppl:8")
    (project.path / "conftest.py").write_text(
        "import time\ndef pytest_pplguard_load_model(checkpoint):\n    time.sleep(60)\n"
    )
    result = project.run(*project.give(w50="ppl:8"), "--timeout=0.2")
    assert result.ret == 1
    result.stdout.fnmatch_lines(["*Timeout (>0.2s) from pytest-timeout.*"])
    assert "no gate was measured" in section(result)


def test_gates_of_a_checkpoint_stay_on_one_worker(project: Project) -> None:
    project.baseline(FOUR, a="ppl:8", b="ppl:9")
    given = project.give(a="ppl:8", b="ppl:9")
    result = project.run(*given, "-n2", "-v")
    result.assert_outcomes(passed=4)
    assert sorted(project.loads()) == ["llama/a after 0", "llama/b after 0"]
    for name in "ab":
        lines = [line for line in result.stdout.lines if f"yaml::{name}::" in line]
        assert len({line[:5] for line in lines if line.startswith("[gw")}) == 1


GPUS = """
import os
from pathlib import Path

import pytest_pplguard.checkpoints
from pytest_pplguard.checkpoints import Hardware, Loaded, locate
from pytest_pplguard.measure import loading
from tests.plugin import stub

given = []

def locate_target(target, options):
    given.append(target)
    return locate("demo/dense")

def load(located, *, device, **options):
    target = given[-1]
    with Path("loads.txt").open("a") as log:
        worker = os.environ["PYTEST_XDIST_WORKER"]
        log.write(f"{{target.name}} {{worker}} {{device.device}}\\n")
    return Loaded.of(*stub.make(target.spec))

hardware = Hardware("cuda", {gpus}, ("NVIDIA H100",) * {gpus})
pytest_pplguard.checkpoints.probe = loading.probe = lambda: hardware
loading.free_memory = lambda hardware, index: 80 * 2**30
loading.locate_target = locate_target
loading.load = load
"""
"""A conftest of a machine with so many GPUs; notes who loads what, and where to."""


@pytest.mark.parametrize(("gpus", "names"), [(2, "abcd"), (4, "abc")])
def test_each_worker_has_a_gpu_and_no_checkpoint_is_loaded_twice(
    gpus: int, names: str, project: Project
) -> None:
    specs = {name: f"ppl:{8 + place}" for place, name in enumerate(names)}
    body = "".join(
        f"{name}:\n  gates:\n"
        "    wanda/tiny:16: {token_perplexity: {}}\n"
        "    wanda/tiny:32: {token_perplexity: {}}\n"
        for name in names
    )
    project.baseline(body, **specs)
    (project.path / "conftest.py").write_text(GPUS.format(gpus=gpus))
    result = project.run_apart("-p", "xdist.plugin", "-nauto", *project.give(**specs))
    result.assert_outcomes(passed=2 * len(names))
    loads = [line.split() for line in project.loads()]
    assert sorted(name for name, *_ in loads) == [f"llama/{name}" for name in names]
    # Each worker one GPU, and each GPU one worker.
    pairs = {(worker, device) for _, worker, device in loads}
    count = min(gpus, len(names))
    assert pairs == {(f"gw{number}", f"cuda:{number}") for number in range(count)}


def test_no_more_workers_than_checkpoints(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    project.baseline(FOUR, a="ppl:8", b="ppl:9")
    monkeypatch.setenv("PYTEST_XDIST_AUTO_NUM_WORKERS", "5")
    result = project.run(*project.give(a="ppl:8"), "-nauto")
    result.assert_outcomes(passed=2)
    result.stdout.fnmatch_lines(["1 worker [[]2 items[]]*"])
    # A mistake is found before any worker starts.
    mistake = project.run("--ppl-model=x", "-nauto")
    assert mistake.ret == pytest.ExitCode.USAGE_ERROR
    assert "INTERNALERROR" not in str(mistake.stderr)


def test_loadfile(project: Project) -> None:
    project.baseline(FOUR, a="ppl:8", b="ppl:9")
    given = project.give(a="ppl:8", b="ppl:9")
    result = project.run(*given, "-n2", "--dist=loadfile")
    result.assert_outcomes(passed=4)
    assert sorted(project.loads()) == ["llama/a after 0", "llama/b after 0"]


def test_a_worker_that_crashes_loses_its_test_only(project: Project) -> None:
    path = project.baseline(FOUR)
    project.test("import os\n\ndef test_crash():\n    os._exit(3)\n")
    given = project.give(a="ppl:8", b="ppl:9")
    result = project.run("baselines", "test_it.py", *given, "-n2", "--ppl-update")
    assert result.ret == 1
    result.assert_outcomes(passed=4, failed=1)
    file = read_baseline(path)
    for name in "ab":
        assert set(file.checkpoints[name].recorded) == {WANDA, "wanda/tiny:32"}
    assert "4 recorded\n" in section(result)
