"""The page that a session writes, in one process and from workers."""

from __future__ import annotations

import html
import json
import re

import pytest

from pytest_pplguard.history import read_runs
from pytest_pplguard.report import files

from .project import Project

KEYS = """
w50:
  gates:
    wanda/tiny:16: {token_perplexity: {rel: 0.005}}
    wanda/tiny:32: {token_perplexity: {rel: 0.005}}
broken:
  gates:
    wanda/tiny:16: {token_perplexity: {}}
"""


def test_the_page_has_the_numbers_of_the_json(
    project: Project, plugin_args: tuple[str, ...]
) -> None:
    project.baseline(KEYS, w50="ppl:8")
    # The third window of tiny:16 is the first that is read; tiny:32 comes after.
    given = project.give(w50="ppl:9", broken="broken")
    result = project.run(
        *given, "--ppl-report=r.json", "--ppl-report=r.html", *plugin_args
    )
    result.assert_outcomes(failed=2, errors=1)
    page = (project.path / "r.html").read_text("utf-8")
    verdicts = json.loads((project.path / "r.json").read_text())["verdicts"]
    assert "<h1>3 of 3 gates failed</h1>" in page
    for verdict in verdicts:
        start = page.index(
            f'data-checkpoint="{verdict["checkpoint"]}" data-key="{verdict["key"]}"'
        )
        row = page[start : page.index("</tr>", start)]
        low, high = verdict["allowed"]
        numbers = (verdict["baseline"], verdict["measured"], verdict["change"])
        expected = [repr(one) for one in (*numbers, low, high) if one is not None]
        assert re.findall('<data value="(.*?)"', row) == expected
        assert f"✗ {verdict['outcome']}</span>" in row
        for reason in verdict["reasons"]:
            assert html.escape(reason, quote=False) in page.replace("&#39;", "'")


def test_a_ladder_for_no_page_and_one_that_is_none(project: Project) -> None:
    project.baseline("w50:\n  gates: {}\n")
    (project.path / "ladder.json").write_text("[]")
    result = project.run("--ppl-ladder=ladder.json", "--ppl-report=r.html")
    assert result.ret == 4
    result.stderr.fnmatch_lines(
        [
            "ERROR: --ppl-ladder: *ladder.json is not a ladder of `pplguard explain "
            "--json`: Expected `object`, got `array`; write it anew with `pplguard "
            "explain MODEL --json FILE`"
        ]
    )


def test_a_page_that_cannot_be_made_costs_nothing_else(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> str:
        raise OverflowError("intermediate overflow in fsum")

    monkeypatch.setitem(files._KINDS, ".html", fail)
    project.baseline(KEYS, w50="ppl:8")
    result = project.run(
        *project.give(w50="ppl:8"),
        "--ppl-report=r.html",
        "--ppl-report=r.json",
        "--ppl-history=sqlite:///h.db",
    )
    assert result.ret == 1
    result.stdout.fnmatch_lines(
        [
            "FAILED --ppl-report: *r.html could not be made (OverflowError: "
            "intermediate overflow in fsum): please report this fault of "
            "pytest-pplguard"
        ]
    )
    assert len(json.loads((project.path / "r.json").read_text())["verdicts"]) == 2
    assert len(read_runs(project.path / "h.db")) == 1
