"""Runs in continuous integration: GitHub's annotations and summary, and a red log."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from .project import Project, section, shorten

ONE = """
w50:
  gates:
    wanda/tiny:16: {token_perplexity: {rel: 0.005}}
"""
TWO = """
w50:
  gates:
    wanda/tiny:16: {token_perplexity: {rel: 0.005}}
broken:
  gates:
    wanda/tiny:16:
      token_perplexity: {}
"""
BY_GITHUB = "pytest_github_actions_annotate_failures"
"""A plugin of others, which this project's tests have installed."""


@pytest.fixture
def summary(project: Project, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file of the job's summary; the run is in a job of GitHub Actions."""
    file = project.path / "summary.md"
    for name, value in {
        "CI": "true",
        "GITHUB_ACTIONS": "true",
        "GITHUB_WORKSPACE": str(project.path),
        "GITHUB_STEP_SUMMARY": str(file),
        # In this job nothing else annotates.
        "PYTEST_ADDOPTS": f"-p no:{BY_GITHUB}",
    }.items():
        monkeypatch.setenv(name, value)
    return file


def commands(result: pytest.RunResult) -> list[str]:
    """The workflow commands that the runner would find."""
    return [shorten(line) for line in result.stdout.lines if line.startswith("::")]


def escaped(text: str) -> str:
    return text.replace("%", "%25")


def line_of(file: Path, text: str) -> int:
    """The only line that ``text`` stands on, from 1."""
    lines = file.read_text().splitlines()
    (number,) = [i for i, line in enumerate(lines, 1) if line.strip() == text]
    return number


REGRESSED = (
    "llama/w50 wanda/tiny:16: token_perplexity regressed by 12.50 %: measured 9, "
    "allowed 7.9602 .. 8.04"
)


def test_a_red_run(
    project: Project, summary: Path, plugin_args: tuple[str, ...]
) -> None:
    file = project.baseline(TWO, w50="ppl:8")
    given = project.give(w50="ppl:9", broken="broken")
    result = project.run(*given, *plugin_args)
    assert result.ret == 1
    gate = line_of(file, "wanda/tiny:16: {token_perplexity: {rel: 0.005}}")
    other = line_of(file, "token_perplexity: {}")
    prefix = "::error file=baselines/llama.yaml,line"
    # Workers finish in any order.
    assert sorted(commands(result)) == [
        f"{prefix}={other},title=perplexity::llama/broken wanda/tiny:16: "
        "token_perplexity could not be measured: llama/broken is broken on purpose",
        f"{prefix}={gate},title=perplexity::{escaped(REGRESSED)}",
    ]
    text = shorten(summary.read_text(encoding="utf-8"))
    assert text.startswith(
        "## ❌ Perplexity: 1 regressed, 1 error\n"
        "\n"
        "### ❌ `llama/broken` = `broken`\n"
        "\n"
        "| key | metric | baseline | measured | change | allowed | outcome |\n"
        "| --- | --- | ---: | ---: | ---: | --- | --- |\n"
        "| `wanda/tiny:16` | `token_perplexity` | - | - | - | - | ❌ **error** |\n"
        "\n"
        "### ❌ `llama/w50` = `ppl:9`\n"
        "\n"
        "| key | metric | baseline | measured | change | allowed | outcome |\n"
        "| --- | --- | ---: | ---: | ---: | --- | --- |\n"
        "| `wanda/tiny:16` | `token_perplexity` | 8 | 9 | +12.50 % "
        "| 7.9602 .. 8.04 | ❌ **regressed** |\n"
    )
    assert (
        "token_perplexity regressed by 12.50 %\n  baseline     8 (measured)\n" in text
    )


def test_a_green_run_has_a_summary_and_no_annotation(
    project: Project, summary: Path
) -> None:
    project.baseline(ONE, w50="ppl:8")
    result = project.run(*project.give(w50="ppl:8"))
    assert result.ret == 0
    assert commands(result) == []
    assert summary.read_text(encoding="utf-8").startswith(
        "## ✅ Perplexity: 1 within tolerance\n"
    )


def test_elsewhere_nothing_is_written_and_nothing_is_annotated(
    project: Project, summary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GITHUB_ACTIONS", "false")
    project.baseline(ONE, w50="ppl:8")
    result = project.run(*project.give(w50="ppl:9"))
    assert commands(result) == []
    assert not summary.exists()


def test_a_run_that_measures_nothing_leaves_the_job_alone(
    project: Project, summary: Path
) -> None:
    project.baseline(ONE, w50="ppl:8")
    project.test("def test_mine():\n    assert 0\n")
    result = project.run("--ppl-report=r.json")
    result.assert_outcomes(failed=1, deselected=1)
    assert commands(result) == []
    assert not summary.exists()
    assert json.loads((project.path / "r.json").read_text())["verdicts"] == []


@pytest.mark.parametrize("below", ["repository", "start"])
def test_files_are_told_from_the_root_of_the_repository(
    project: Project, summary: Path, monkeypatch: pytest.MonkeyPatch, below: str
) -> None:
    file = project.baseline(ONE, w50="ppl:8")
    expected = "baselines/llama.yaml"
    if below == "repository":  # pytest's rootdir is a folder of it
        monkeypatch.setenv("GITHUB_WORKSPACE", str(project.path.parent))
        expected = f"{project.path.name}/{expected}"
    else:  # pytest is started in a folder below rootdir
        (project.path / "sub").mkdir()
        monkeypatch.chdir(project.path / "sub")
    result = project.run(*project.give(w50="ppl:9"))
    line = line_of(file, "wanda/tiny:16: {token_perplexity: {rel: 0.005}}")
    assert commands(result) == [
        f"::error file={expected},line={line},title=perplexity::{escaped(REGRESSED)}"
    ]


def test_a_gate_in_a_test_is_annotated_there(
    project: Project, summary: Path, plugin_args: tuple[str, ...]
) -> None:
    project.baseline(ONE, w50="ppl:8")
    project.test(
        """
        @pytest.mark.ppl("wanda", rel=0.01)
        def test_it():
            pass

        @pytest.mark.xfail
        @pytest.mark.ppl("wanda", rel=0.01)
        def test_known():
            pass
        """,
        file="tests/test_it.py",
    )
    args = [*project.give(w50="ppl:9"), "--ppl-report=r.json", *plugin_args]
    result = project.run("tests", *args)
    result.assert_outcomes(failed=1, xfailed=1)
    assert commands(result) == [
        "::error file=tests/test_it.py,line=4,title=perplexity::llama/w50 "
        "wanda/tiny:16: token_perplexity regressed by 12.50 %25: measured 9, allowed "
        "7.92079 .. 8.08"
    ]
    verdicts = json.loads((project.path / "r.json").read_text())["verdicts"]
    places = sorted((verdict["file"], verdict["line"]) for verdict in verdicts)
    assert places == [("tests/test_it.py", 4), ("tests/test_it.py", 8)]


def test_a_run_that_measured_too_little(project: Project, summary: Path) -> None:
    project.baseline(ONE, w50="ppl:8")
    project.test("def test_mine():\n    pass\n")
    result = project.run("test_it.py", *project.give(w50="ppl:8"))
    problem = (
        "--ppl-model llama/w50=ppl:8: no gate was measured (its gates were not among "
        "the tests that ran; run `pytest baselines --ppl-model llama/w50=ppl:8`)"
    )
    assert section(result) == (
        f"FAILED {problem}\n::error title=perplexity::{problem}\n"
    )
    assert summary.read_text(encoding="utf-8") == (
        "## ❌ Perplexity: no gate reached a verdict\n"
        "\n"
        "### Problems of the run\n"
        "\n"
        f"```text\n{problem}\n```\n"
    )


def test_a_published_value_is_a_warning_if_the_ini_says_so(
    project: Project, summary: Path
) -> None:
    project.baseline(
        ONE
        + """\
  recorded:
    wanda/tiny:16:
      token_perplexity: 7.26
      source: {kind: published, reference: "Wanda, table 3", digits: 2}
"""
    )
    project.ini("ppl_published = warn")
    result = project.run(*project.give(w50="ppl:7.27"))
    assert result.ret == 0
    text = (
        "llama/w50 wanda/tiny:16 token_perplexity: published, no evidence: Wanda, "
        "table 3"
    )
    assert commands(result) == [
        f"::warning file=baselines/llama.yaml,line=7,title=perplexity::{text}"
    ]
    assert f"```text\nwarning: {text}\n```\n" in summary.read_text(encoding="utf-8")


def test_a_summary_that_cannot_be_written_is_a_note(
    project: Project, summary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(project.path / "no" / "summary.md"))
    project.baseline(ONE, w50="ppl:8")
    result = project.run(*project.give(w50="ppl:8"))
    assert result.ret == 0
    assert section(result).splitlines()[-1] == (
        "note: the job summary could not be written: [Errno 2] No such file or "
        f"directory: '{project.path}/no/summary.md'"
    )


def test_no_summary_is_asked_for(
    project: Project, summary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("GITHUB_STEP_SUMMARY")
    project.baseline(ONE, w50="ppl:8")
    result = project.run(*project.give(w50="ppl:9"))
    assert len(commands(result)) == 1
    assert "note:" not in section(result)


def test_what_another_plugin_annotates_is_not_annotated_twice(
    project: Project,
    summary: Path,
    monkeypatch: pytest.MonkeyPatch,
    local_args: tuple[str, ...],
) -> None:
    monkeypatch.delenv("PYTEST_ADDOPTS")
    file = project.baseline(TWO, w50="ppl:8")
    project.test("def test_mine():\n    pass\n")
    given = project.give(w50="ppl:9", broken="broken")
    result = project.run(*given, *local_args)
    gate = line_of(file, "wanda/tiny:16: {token_perplexity: {rel: 0.005}}")
    other = line_of(file, "token_perplexity: {}")
    # Failures of the call phase are its, errors of the setup phase are left to us.
    (theirs,) = [line for line in result.stderr.lines if line.startswith("::")]
    assert shorten(theirs) == (
        f"::error file=baselines/llama.yaml,line={gate}::llama/w50 wanda/tiny:16 "
        f"token_perplexity%0A%0A{escaped(REGRESSED)}"
    )
    (ours,) = commands(result)
    assert ours.startswith(f"::error file=baselines/llama.yaml,line={other},")


# ------------------------------------------------------------------ without a verdict


@pytest.mark.parametrize("args", [("--timeout=0.2",), ("-n1",)], ids=["slow", "crash"])
def test_a_gate_without_a_verdict(
    project: Project, summary: Path, args: tuple[str, ...]
) -> None:
    project.baseline(ONE, w50="ppl:8")
    ends = "os._exit(3)" if args == ("-n1",) else "time.sleep(60)"
    (project.path / "conftest.py").write_text(
        f"import os, time\ndef pytest_pplguard_load_model(checkpoint):\n    {ends}\n"
    )
    given = project.give(w50="ppl:8")
    result = project.run(*given, *args, "--ppl-report=r.json")
    assert result.ret == 1
    gate = "baselines/llama.yaml::w50::wanda/tiny:16::token_perplexity"
    why = {
        "-n1": f"worker 'gw0' crashed while running '{gate}'",
        "--timeout=0.2": "Failed: Timeout (>0.2s) from pytest-timeout.",
    }[args[0]]
    document = json.loads((project.path / "r.json").read_text())
    assert document["verdicts"] == []
    unmeasured, lost = [problem["text"] for problem in document["problems"]]
    assert unmeasured == (
        "--ppl-model llama/w50=ppl:8: no gate was measured (its gates ended without a "
        "verdict)"
    )
    assert lost == f"{gate}: no verdict: {why}"
    assert len(commands(result)) == 2
    assert commands(result)[-1].endswith(f"::{lost}")
    assert lost in summary.read_text(encoding="utf-8")


def test_a_malformed_baseline_file(
    project: Project, summary: Path, plugin_args: tuple[str, ...]
) -> None:
    file = project.baseline(ONE)
    file.write_text(file.read_text() + "  typo: {gates: 3}\n")
    project.baseline(ONE, file="baselines/other.yaml", w50="ppl:8")
    args = ["--ppl-model=other/w50=ppl:8", "--ppl-report=r.json", *plugin_args]
    result = project.run(*args)
    assert result.ret in (pytest.ExitCode.INTERRUPTED, pytest.ExitCode.TESTS_FAILED)
    document = json.loads((project.path / "r.json").read_text())
    (problem,) = document["problems"]
    assert problem["file"] == "baselines/llama.yaml"
    assert problem["text"].startswith(f"{project.path}/baselines/llama.yaml:")
    (command,) = commands(result)
    assert command.startswith(
        "::error file=baselines/llama.yaml,title=perplexity::"
        f"{project.path}/baselines/llama.yaml:"
    )
    assert "checkpoint typo" in command
    assert "checkpoint typo" in summary.read_text(encoding="utf-8")


def test_a_run_that_is_interrupted_keeps_what_it_has(
    project: Project, summary: Path
) -> None:
    project.baseline(ONE, w50="ppl:8")
    project.test("def test_it():\n    raise KeyboardInterrupt\n", file="z/test_it.py")
    args = ["baselines", "z", *project.give(w50="ppl:9")]
    reports = ["--ppl-report=r.json", "--ppl-report=r.md", "--ppl-report=r.csv"]
    result = project.run(*args, *reports)
    assert result.ret == pytest.ExitCode.INTERRUPTED
    document = json.loads((project.path / "r.json").read_text())
    (verdict,) = document["verdicts"]
    assert (verdict["outcome"], document["complete"]) == ("regressed", False)
    text = summary.read_text(encoding="utf-8")
    assert text == (project.path / "r.md").read_text(encoding="utf-8")
    assert text.splitlines()[2] == (
        "**The run was stopped before its end: what is not listed was not measured.**"
    )
    assert len((project.path / "r.csv").read_text().splitlines()) == 2
    assert len(commands(result)) == 1


@pytest.mark.parametrize(
    "args",
    [["-p", "no:terminal"], ["-q"], ["-v"], ["-s"], ["--color=yes"]],
    ids=" ".join,
)
def test_options_do_not_disturb_it(
    project: Project, summary: Path, args: list[str]
) -> None:
    project.baseline(ONE, w50="ppl:8")
    result = project.run(*project.give(w50="ppl:9"), *args)
    assert result.ret == 1
    assert len(commands(result)) == (args != ["-p", "no:terminal"])
    assert summary.read_text(encoding="utf-8").startswith("## ❌ Perplexity: 1 regr")


# ------------------------------------------------------------------------------ the log


def test_a_red_log(project: Project, summary: Path) -> None:
    project.baseline(TWO, w50="ppl:8", broken="ppl:8")
    project.test("def test_mine():\n    pass\n", file="a/test_it.py")
    given = project.give(w50="ppl:9", broken="broken")
    result = project.run("a", "baselines", *given)
    log = "\n".join(result.stdout.lines)
    log = re.sub(r"windows in [\d.]+ s( \(.*\))?", "windows in 0.1 s", shorten(log))
    log = re.sub(r"\n(platform|rootdir|configfile|plugins|asyncio).*", "", log)
    gate = "baselines/llama.yaml::w50::wanda/tiny:16"
    command = f"pytest {gate} --ppl-model llama/w50=ppl:9 --ppl-update"
    errors = commands(result)
    assert (
        log.rpartition("\n")[0]
        == f"""\
============================= test session starts ==============================
pplguard: llama/w50 (ppl:9), llama/broken (broken)
collected 3 items

a/test_it.py .                                                           [ 33%]
baselines/llama.yaml E
pplguard: llama/w50 wanda/tiny:16: 11 windows in 0.1 s
baselines/llama.yaml F                                                   [100%]

==================================== ERRORS ====================================
________ ERROR at setup of llama/broken wanda/tiny:16 token_perplexity _________
llama/broken wanda/tiny:16: token_perplexity could not be measured
  because      llama/broken is broken on purpose
=================================== FAILURES ===================================
___________________ llama/w50 wanda/tiny:16 token_perplexity ___________________
llama/w50 wanda/tiny:16: token_perplexity regressed by 12.50 %
  baseline     8 (measured)
  measured     9
  allowed      7.9602 .. 8.04 (rel 0.005, baselines/llama.yaml:7)
  recorded in  baselines/llama.yaml:9
  where        the whole text moved: 11 of 11 windows are worse, by 0.12 +- 0 nats a \
token
  where        window 1 of 11 moved most: +0.12 nats a token, at "?"
  to accept    {command}
================================== perplexity ==================================
llama/broken                   baseline   measured     change  outcome
  wanda/tiny:16
    token_perplexity                  -          -          -  ERROR
llama/w50                      baseline   measured     change  outcome
  wanda/tiny:16
    token_perplexity                  8          9   +12.50 %  REGRESSED
1 regressed, 1 error
{errors[0]}
{errors[1]}
=========================== short test summary info ============================
FAILED {gate}::token_perplexity - {REGRESSED}
ERROR baselines/llama.yaml::broken::wanda/tiny:16::token_perplexity - llama/broken \
wanda/tiny:16: token_perplexity could not be measured: llama/broken is broken on \
purpose"""
    )
