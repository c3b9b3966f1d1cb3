"""``--ppl-history``: what a run leaves in the database, and what if it cannot."""

from __future__ import annotations

import sqlite3
import subprocess
from pathlib import Path

import pytest

from pytest_pplguard.history import HistoryRun, database, read_runs

from .project import LM_EVAL, WANDA, Project, section

GATES = f"""
dense: {{}}
w50:
  gates:
    {WANDA}: {{token_perplexity: {{rel: 0.005}}}}
    {LM_EVAL}: {{word_perplexity: {{rel: 0.005}}}}
    relative: {{to: dense, key: "{WANDA}", max_ratio: 1.2}}
"""
ONE = f"w50:\n  gates:\n    {WANDA}: {{token_perplexity: {{rel: 0.005}}}}\n"
URL = "--ppl-history=sqlite:///h.db"


def only(project: Project) -> HistoryRun:
    (run,) = read_runs(project.path / "h.db")
    return run


def test_the_only_worker_adds_no_run_of_its_own(project: Project) -> None:
    project.baseline(ONE, w50="ppl:8")
    result = project.run(*project.give(w50="ppl:8"), URL, "-n1")
    result.assert_outcomes(passed=1)
    assert only(project).complete


def test_a_run_is_added(
    project: Project,
    plugin_args: tuple[str, ...],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("GITHUB_SHA", "GITHUB_HEAD_REF", "CI_COMMIT_REF_NAME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("CI_COMMIT_SHA", "c" * 40)
    monkeypatch.setenv("GITHUB_REF_NAME", "topic")
    project.baseline(GATES, w50="ppl:8")
    models = project.give(dense="ppl:8", w50="ppl:8.8")
    result = project.run(*models, URL, *plugin_args)
    result.assert_outcomes(failed=2, passed=1)
    run = only(project)
    assert (run.commit, run.branch, run.dirty) == ("c" * 40, "topic", False)
    assert (run.complete, run.passed) == (True, False)
    found = {(p.key, p.metric): p for p in run.points}
    assert set(found) == {
        (WANDA, "token_perplexity"),
        (LM_EVAL, "word_perplexity"),
        (WANDA, "token_perplexity / dense"),
    }
    wanda = found[WANDA, "token_perplexity"]
    assert (wanda.outcome, wanda.passed) == ("regressed", False)
    assert wanda.measured == pytest.approx(8.8)
    assert wanda.baseline == pytest.approx(8)
    assert wanda.change == pytest.approx(0.1)
    assert wanda.allowed_high == pytest.approx(8 * 1.005)
    assert wanda.path == "ppl:8.8"
    recorded = (project.path / "baselines/llama.yaml").read_text()
    assert wanda.windows_digest.startswith("sha256:")
    assert wanda.windows_digest in recorded
    assert run.environment["llama/w50"][WANDA]["device"] == "cpu"
    assert set(run.environment) == {"llama/w50", "llama/dense"}
    assert {one.checkpoint: one.spec for one in run.weights} == {
        "llama/dense": "ppl:8",
        "llama/w50": "ppl:8.8",
    }


def test_runs_add_up_from_the_ini_file(project: Project) -> None:
    project.ini("ppl_history = sqlite:///h.db\n")
    project.baseline(ONE, w50="ppl:8")
    for value in ("8", "8.01"):
        assert project.run(*project.give(w50=f"ppl:{value}")).ret == 0
    runs = read_runs(project.path / "h.db")
    assert [run.passed for run in runs] == [True, True]
    assert [run.points[0].measured for run in runs] == [
        pytest.approx(8), pytest.approx(8.01)
    ]  # fmt: skip


def test_tests_of_something_else_leave_nothing(project: Project) -> None:
    project.ini("ppl_history = sqlite:///h.db\n")
    project.test("def test_it():\n    pass\n")
    project.run().assert_outcomes(passed=1)
    project.run("--collect-only")
    assert not (project.path / "h.db").exists()


def test_an_error_has_no_number(project: Project) -> None:
    project.baseline(GATES, w50="ppl:8")
    project.run(*project.give(w50="broken"), URL, "-k", "word_perplexity")
    (point,) = only(project).points
    assert (point.outcome, point.passed, point.measured) == ("error", False, None)


def test_a_run_that_is_stopped_is_not_complete(project: Project) -> None:
    project.baseline(GATES, w50="ppl:8")
    project.run(*project.give(dense="ppl:8", w50="ppl:9"), URL, "-x")
    run = only(project)
    assert (run.complete, len(run.points)) == (False, 1)


def test_the_commit_of_a_repository(project: Project) -> None:
    project.baseline(GATES, w50="ppl:8")

    def git(*words: str) -> str:
        done = subprocess.run(
            ["git", "-c", "user.name=A", "-c", "user.email=a@b", *words],
            cwd=project.path, capture_output=True, text=True, check=True,
        )  # fmt: skip
        return done.stdout.strip()

    git("init", "-q", "-b", "trunk")
    git("add", "baselines")
    git("commit", "-q", "-m", "Baselines")
    project.run(*project.give(dense="ppl:8", w50="ppl:9"), URL)
    run = only(project)
    assert run.commit == git("rev-parse", "HEAD")
    assert (run.branch, run.dirty) == ("trunk", False)


def test_a_mistake_is_told_before_anything_is_measured(project: Project) -> None:
    project.baseline(GATES, w50="ppl:8")
    models = project.give(w50="ppl:8")
    result = project.run(*models, "--ppl-history=mysql://me:pass@host/db")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(
        [
            "ERROR: --ppl-history: a history is a file of SQLite, not of mysql; write "
            "sqlite:///FILE (a path from here) or sqlite:////FOLDER/FILE"
        ]
    )
    assert project.loads() == []


def test_a_history_that_cannot_be_written_makes_the_run_red(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    project.baseline(ONE, w50="ppl:8")
    monkeypatch.setattr(database, "_PATIENCE", 0.05)
    models = project.give(w50="ppl:8")
    assert project.run(*models, URL).ret == 0
    path: Path = project.path / "h.db"
    holder = sqlite3.connect(path, isolation_level=None)
    holder.execute("BEGIN IMMEDIATE")
    result = project.run(*models, URL)
    holder.execute("ROLLBACK")
    holder.close()
    result.assert_outcomes(passed=1)
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    assert section(result).splitlines()[-1] == (
        f"FAILED --ppl-history: {path} cannot be written: another process has held it "
        "for 0.05 s; try again, or look for a program that has it open"
    )
    assert len(read_runs(path)) == 1
