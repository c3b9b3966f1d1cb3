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
