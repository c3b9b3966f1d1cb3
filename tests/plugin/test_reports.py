"""What programs read (JSON, JUnit), and how loud the run is."""

from __future__ import annotations

import csv
import io
import json
from typing import Any
from xml.etree import ElementTree

import pytest

from pytest_pplguard.values import Verdict

from .project import Project, section, shorten

KEYS = """
w50:
  gates:
    wanda/tiny:16: {token_perplexity: {rel: 0.005}}
    wanda/tiny:32: {token_perplexity: {rel: 0.005}}
broken:
  gates:
    wanda/tiny:16: {token_perplexity: {}}
"""


def strict(text: str) -> Any:
    def refuse(name: str) -> None:
        raise AssertionError(name)

    return json.loads(text, parse_constant=refuse)


def test_json_and_junit(project: Project, plugin_args: tuple[str, ...]) -> None:
    project.baseline(KEYS, w50="ppl:8")
    # The third window of tiny:16 is the first that is read; tiny:32 comes after.
    given = project.give(w50="ppl:9", broken="broken")
    result = project.run(
        *given, "--ppl-report=r.json", "--junitxml=j.xml", *plugin_args
    )
    result.assert_outcomes(failed=2, errors=1)
    document = strict((project.path / "r.json").read_text())
    assert document["schema"] == 1
    by_place = {
        (verdict["checkpoint"], verdict["key"]): verdict
        for verdict in document["verdicts"]
    }
    assert len(by_place) == len(document["verdicts"]) == 3
    verdict = by_place["llama/w50", "wanda/tiny:16"]
    assert set(verdict) == set(Verdict.__struct_fields__)
    assert verdict["metric"] == "token_perplexity"
    assert verdict["outcome"] == "regressed"
    assert verdict["passed"] is False
    assert verdict["baseline"] == pytest.approx(8)
    assert verdict["measured"] == pytest.approx(9)
    assert verdict["change"] == pytest.approx(0.125)
    assert verdict["allowed"] == pytest.approx([8 / 1.005, 8 * 1.005])
    assert by_place["llama/broken", "wanda/tiny:16"]["outcome"] == "error"
    assert by_place["llama/broken", "wanda/tiny:16"]["measured"] is None

    cases = list(ElementTree.parse(project.path / "j.xml").iter("testcase"))
    seen = {
        (str(case.get("classname")), case[-1].tag): {
            str(one.get("name")): str(one.get("value")) for one in case.iter("property")
        }
        for case in cases
    }
    properties = seen["baselines.llama.yaml.w50.wanda/tiny:16", "failure"]
    place = "ppl.llama/w50.wanda/tiny:16.token_perplexity"
    assert properties.pop(f"{place}.outcome") == "regressed"
    assert properties[f"{place}.measured"] == repr(verdict["measured"])
    assert float(properties.pop(f"{place}.seconds")) >= 0
    assert {name: float(value) for name, value in properties.items()} == {
        f"{place}.baseline": pytest.approx(8),
        f"{place}.measured": pytest.approx(9),
        f"{place}.change": pytest.approx(0.125),
        f"{place}.allowed_low": pytest.approx(8 / 1.005),
        f"{place}.allowed_high": pytest.approx(8 * 1.005),
        f"{place}.first": pytest.approx(8),
        f"{place}.windows": 11,  # of 16 tokens, in 177 bytes of text
    }
    properties = seen["baselines.llama.yaml.broken.wanda/tiny:16", "error"]
    assert properties == {
        "ppl.llama/broken.wanda/tiny:16.token_perplexity.outcome": "error"
    }
    messages = {case[-1].tag: case[-1].get("message") for case in cases}
    assert shorten(str(messages["error"])) == (
        'failed on setup with "llama/broken wanda/tiny:16: token_perplexity could not '
        'be measured: llama/broken is broken on purpose"'
    )
    assert str(messages["failure"]).startswith(
        "llama/w50 wanda/tiny:32: token_perplexity regressed by 12.50 %: measured "
    )


def test_reports_of_every_kind(project: Project, plugin_args: tuple[str, ...]) -> None:
    file = project.baseline(KEYS, w50="ppl:8")
    lines = [line.strip() for line in file.read_text().splitlines()]
    broken = 1 + lines.index("wanda/tiny:16: {token_perplexity: {}}")
    given = project.give(w50="ppl:9", broken="broken")
    names = ("r.md", "a.csv", "r.json", "b.csv")
    result = project.run(*given, *(f"--ppl-report={x}" for x in names), *plugin_args)
    assert result.ret == 1
    text = {name: (project.path / name).read_text(encoding="utf-8") for name in names}
    assert text["r.md"].startswith("## ❌ Perplexity: 2 regressed, 1 error\n")
    assert text["a.csv"] == text["b.csv"]
    document = strict(text["r.json"])
    rows = list(csv.DictReader(io.StringIO(text["a.csv"])))
    assert [
        (row["checkpoint"], row["key"], row["outcome"], row["file"], int(row["line"]))
        for row in rows
    ] == [
        tuple(
            verdict[name] for name in ("checkpoint", "key", "outcome", "file", "line")
        )
        for verdict in document["verdicts"]
    ]
    assert {(row["checkpoint"], row["line"]) for row in rows} == {
        ("llama/w50", "7"),
        ("llama/w50", "8"),
        ("llama/broken", str(broken)),
    }


def test_another_suffix_is_a_mistake(project: Project) -> None:
    result = project.run("--ppl-report=x.xml")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(
        ["ERROR: --ppl-report: */x.xml must end in .html, .json, .md or .csv"]
    )


def test_a_report_that_cannot_be_written_makes_the_run_red(project: Project) -> None:
    project.baseline(KEYS, w50="ppl:8")
    (project.path / "r.csv").mkdir()
    reports = ("--ppl-report=r.csv", "--ppl-report=r.md")
    result = project.run(*project.give(w50="ppl:8"), *reports)
    assert result.ret == 1
    problem = f"[Errno 21] Is a directory: '{project.path}/r.csv'"
    assert section(result).splitlines()[-1] == f"FAILED {problem}"
    # The other one is written, and says so too.
    text = (project.path / "r.md").read_text(encoding="utf-8")
    assert text.startswith("## ❌ Perplexity: 2 within tolerance\n")
    assert f"```text\n{problem}\n```\n" in text


def test_nan_is_null(project: Project) -> None:
    project.baseline(KEYS, w50="ppl:8")
    given = project.give(w50="ppl:8,nan:3")
    project.run(*given, "--ppl-report=r.json", "--ppl-report=s.json", "-k", "16")
    document = strict((project.path / "r.json").read_text())
    (verdict,) = document["verdicts"]
    assert (verdict["outcome"], verdict["measured"]) == ("invalid", None)
    assert strict((project.path / "s.json").read_text()) == document


@pytest.mark.parametrize(
    "args",
    [
        ["-q"],
        ["-qq"],
        ["-vv"],
        ["--tb=short"],
        ["--tb=no"],
        ["--tb=native"],
        ["-s"],
        ["--capture=sys"],
        ["--capture=tee-sys"],
        ["--no-summary"],
        ["-p", "no:terminal"],
        ["-p", "no:logging"],
        ["--setup-show"],
        ["--durations=1"],
        ["-rA"],
        ["--color=yes"],
        ["--full-trace"],
        ["--pdbcls=a:b"],
    ],
    ids=" ".join,
)
def test_no_option_disturbs_it(project: Project, args: list[str]) -> None:
    project.baseline(KEYS, w50="ppl:8")
    result = project.run(*project.give(w50="ppl:9"), *args)
    assert result.ret == 1
    everything = str(result.stdout) + str(result.stderr)
    assert "INTERNALERROR" not in everything
    assert "Traceback" not in everything


def test_silent_where_nothing_was_measured(
    project: Project, plugin_args: tuple[str, ...]
) -> None:
    project.test("def test_mine():\n    pass\n")
    result = project.run("-o", "ppl_corpus=", *plugin_args)
    result.assert_outcomes(passed=1)
    text = str(result.stdout)
    assert section(result) == ""
    assert "pplguard:" not in text
    assert "ppl" not in text.replace("pplguard-", "").replace("test_silent", "")


def test_notes_of_verdicts_are_shown_when_verbose(project: Project) -> None:
    path = project.baseline(KEYS, w50="ppl:8")
    path.write_text(path.read_text().replace("batch_size: 1", "batch_size: 3"))
    given = project.give(w50="ppl:8")
    quiet, loud = project.run(*given), project.run(*given, "-v")
    note = "note: llama/w50 wanda/tiny:16: batch_size 1, baseline 3\n"
    assert note not in section(quiet)
    assert note in section(loud)
