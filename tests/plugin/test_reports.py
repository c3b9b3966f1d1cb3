"""What programs read (JSON, JUnit), and how loud the run is."""

from __future__ import annotations

import json
from typing import Any
from xml.etree import ElementTree

import pytest

from pytest_pplguard.values import Verdict

from .project import Project, section

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
    assert properties[f"{place}.outcome"] == "regressed"
    assert float(properties[f"{place}.measured"]) == pytest.approx(9)
    assert float(properties[f"{place}.baseline"]) == pytest.approx(8)
    assert float(properties[f"{place}.change"]) == pytest.approx(0.125)
    properties = seen["baselines.llama.yaml.broken.wanda/tiny:16", "error"]
    assert properties == {
        "ppl.llama/broken.wanda/tiny:16.token_perplexity.outcome": "error"
    }


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
