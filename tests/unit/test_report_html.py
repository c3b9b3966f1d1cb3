"""The page as a text: what it says of every kind of run, and that it is closed."""

from __future__ import annotations

import base64
import datetime
import hashlib
import json
import re
from html.parser import HTMLParser
from typing import Any

import pytest
from msgspec.structs import replace

from benchmarks.made_up import made_up
from pytest_pplguard.report.html import html_report
from pytest_pplguard.report.html.ladders import waterfall
from pytest_pplguard.report.html.surroundings import surroundings
from pytest_pplguard.report.json import results_document
from pytest_pplguard.report.ladder import ladder_document
from pytest_pplguard.values import (
    Details,
    LadderDetail,
    Outcome,
    Remark,
    Results,
    Scalar,
    Verdict,
    WeightsDetail,
)

from .test_report_html_losses import DETAIL
from .test_report_ladder import ladder

NOTHING = Details()
WHEN = datetime.datetime(2026, 11, 26, 9, 5, tzinfo=datetime.UTC)
FAILED = Verdict(
    checkpoint="m/w50",
    key="wanda/tiny:16",
    metric="token_perplexity",
    outcome=Outcome.REGRESSED,
    passed=False,
    baseline=8.0,
    measured=9.123456789012345,
    change=9.123456789012345 / 8 - 1,
    allowed=(8 / 1.005, 8 * 1.005),
    gate="rel 0.005, baselines/m.yaml:3",
    source="measured",
    command="pytest baselines/m.yaml --ppl-update",
    path="out/w50",
    changes=("layer 1: mask lost", "all other weights are the same"),
    where=("the whole text moved",),
)
PASSED = replace(
    FAILED,
    checkpoint="m/dense",
    outcome=Outcome.WITHIN,
    passed=True,
    measured=8.01,
    change=8.01 / 8 - 1,
    path="",
    changes=(),
    where=(),
)
CLOSED = {"meta", "link", "input", "br"}


class Page(HTMLParser):
    """Checks that elements are closed in order; gathers texts, elements, scripts."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.scripts: list[tuple[str | None, str]] = []
        self.style = ""
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in CLOSED:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, (tag, self.getpos())

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "script":
            self.scripts.append((self.elements[-1][1].get("type"), data))
        elif self.open and self.open[-1] == "style":
            self.style += data
        elif data.strip():
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())

    def all(self, name: str) -> list[dict[str, str | None]]:
        return [attributes for tag, attributes in self.elements if tag == name]


def page(results: Results, details: Details = NOTHING) -> Page:
    return Page(html_report(results, details, written=WHEN))


def test_it_is_closed_and_may_run_only_its_own() -> None:
    text = html_report(*made_up(4, 20), written=WHEN)
    assert text == html_report(*made_up(4, 20), written=WHEN)
    found = Page(text)
    policy = next(
        str(one["content"])
        for one in found.all("meta")
        if one.get("http-equiv") == "Content-Security-Policy"
    )
    (own,) = [script for kind, script in found.scripts if kind is None]
    for name, content in (("script-src", own), ("style-src", found.style)):
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert f"{name} 'sha256-{digest}';" in policy
    assert policy.startswith("default-src 'none'; ")
    assert "unsafe" not in policy
    for _, attributes in found.elements:
        assert not any(name.startswith("on") for name in attributes)
        assert "style" not in attributes
        assert "src" not in attributes
        target = attributes.get("href")
        assert target is None or target.startswith(("#", "data:image/svg+xml,"))
    anchors = {attributes.get("id") for _, attributes in found.elements}
    links = [str(one["href"])[1:] for one in found.all("a")]
    assert {*links} <= anchors
    assert len(anchors) == len({*anchors})
    names = [one["id"] for _, one in found.elements if "id" in one]
    assert len(names) == len({*names})
    # What the page's parts are called by.
    for _, attributes in found.elements:
        if "aria-labelledby" in attributes:
            assert attributes["aria-labelledby"] in names


def test_the_data_is_strict_json() -> None:
    def refuse(name: str) -> Any:
        raise AssertionError(name)

    spoilt = replace(FAILED, measured=float("nan"), change=float("inf"))
    lost = replace(DETAIL, measured=(float("nan"), *DETAIL.measured[1:]))
    results = Results(verdicts=(spoilt,))
    found = page(results, Details(losses=(lost,)))
    data = [
        json.loads(script, parse_constant=refuse)
        for kind, script in found.scripts
        if kind == "application/json"
    ]
    assert data[-1] == json.loads(json.dumps(results_document(results)))
    assert data[0]["measured"][0] is None
    shown = [one["value"] for one in found.all("data")]
    assert shown == ["8.0", repr(FAILED.allowed[0]), repr(FAILED.allowed[1])]


def test_a_failing_run_tells_its_cause_first() -> None:
    found = page(Results(verdicts=(PASSED, FAILED)))
    assert found.text.startswith(
        "✗ 1 of 2 gates failed · pplguard Skip to the verdict pplguard Gates Dark ✗ "
        "Failed 1 of 2 gates failed 1 regressed, 1 within tolerance ✗ m/w50 = out/w50 "
        "Most likely cause layer 1: mask lost all other weights are the same Where in "
        "the text the whole text moved 1 of 1 gates failed wanda/tiny:16: "
        "token_perplexity regressed by 14.04 % measured 9.123456789012344, allowed "
        "7.9601990049751254 .. 8.04"
    )
    assert (
        "If this is meant To accept pytest baselines/m.yaml --ppl-update Copy"
        in found.text
    )
    assert "Written 2026-11-26 09:05 UTC by pytest-pplguard" in found.text


def test_every_number_is_there_to_the_last_digit() -> None:
    found = page(Results(verdicts=(FAILED,)))
    shown = [one["value"] for one in found.all("data")]
    low, high = FAILED.allowed
    assert shown == [
        repr(number)
        for number in (FAILED.baseline, FAILED.measured, FAILED.change, low, high)
    ]
    assert [one["title"] for one in found.all("data")] == shown


def title(results: Results) -> str:
    text = html_report(results, Details(), written=WHEN)
    head = re.search(r'class="state">(.*?)</p>\s*<h1>(.*?)</h1>', text, re.S)
    assert head is not None
    return f"{head[1]}: {head[2]}"


@pytest.mark.parametrize(
    ("results", "words"),
    [
        (Results(), "No verdict: Nothing was measured against a baseline"),
        (Results(verdicts=(PASSED,)), "Passed: The gate passed"),
        (Results(verdicts=(PASSED, PASSED)), "Passed: All 2 gates passed"),
        (Results(verdicts=(FAILED,)), "Failed: 1 of 1 gate failed"),
        (Results(problems=(Remark("x"),)), "Failed: Failed: 1 problem of the run"),
        (
            Results(verdicts=(PASSED,), problems=(Remark("x"), Remark("y"))),
            "Failed: Failed: 2 problems of the run",
        ),
        (
            Results(verdicts=(PASSED,), complete=False),
            "Failed: Stopped before its end",
        ),
    ],
)
def test_the_verdict_in_words(results: Results, words: str) -> None:
    assert title(results) == words


def test_problems_warnings_and_notices() -> None:
    found = page(
        Results(
            problems=(Remark("it broke", "baselines/m.yaml", 7),),
            warnings=(Remark("published alone", "t.py"),),
            notices=("on the CPU",),
            complete=False,
        )
    )
    for words in (
        "Stopped. The run was stopped before its end: what is not listed was not",
        "Problems of the run it broke baselines/m.yaml:7",
        "Warning: published alone t.py",
        "Notes of the run Warning: published alone t.py on the CPU",
    ):
        assert words in found.text


@pytest.mark.parametrize(
    ("changes", "causes"),
    [
        ({"reasons": ("window 2048, baseline 4096",)}, "window 2048, baseline 4096"),
        ({}, "Not known: this run has no comparison of the checkpoint with the "
         "recorded one."),
        (
            {
                "reasons": ("dtype float16, baseline float32", "another"),
                "changes": ("layer 1 differs",),
            },
            "dtype float16, baseline float32 layer 1 differs",
        ),
    ],
)  # fmt: skip
def test_where_the_cause_comes_from(changes: dict[str, Any], causes: str) -> None:
    verdict = replace(replace(FAILED, changes=(), where=()), **changes)
    text = page(Results(verdicts=(verdict,))).text
    assert f"Most likely cause {causes} 1 of 1 gates failed" in text


def test_what_is_missing_is_said() -> None:
    text = page(Results(verdicts=(PASSED,))).text
    assert "There are no losses to show: no gate of this run was held to a text" in text
    assert "What the checkpoints’ weights are was not looked at in this run." in text
    bare = Details(
        losses=(replace(DETAIL, baseline=(), places=(), problem="no evidence file"),),
        weights=(WeightsDetail(checkpoint="m/w50", spec="out", problem="a pickle"),),
    )
    text = page(Results(verdicts=(PASSED,)), bare).text
    for words in (
        "No evidence file.",
        "a pickle",
        "What the baseline was recorded with is not known.",
    ):
        assert words in text


def test_early_cached_and_published_values() -> None:
    verdict = replace(
        PASSED,
        early="on 12 of 64 windows",
        cached="2026-11-25T10:00Z",
        published=7.5,
    )
    text = page(Results(verdicts=(verdict,))).text
    assert "~8.01" in text
    assert "early: on 12 of 64 windows" in text
    assert "from cache, measured 2026-11-25 10:00 UTC" in text
    assert "published 7.5" in text


# ------------------------------------------------------------- environments and ladders


def environment(**values: Scalar) -> dict[str, Scalar]:
    return dict(values)


def test_environments_that_differ_come_first() -> None:
    same = replace(
        DETAIL,
        environment=environment(torch="2.13", device="cpu"),
        baseline_environment=environment(torch="2.13", device="cpu", python="3.11"),
    )
    other = replace(same, key="wanda/tiny:32", environment=environment(torch="2.14"))
    third = replace(same, key="wanda/tiny:64")
    found = surroundings((same, other, third))
    assert [one.measurements for one in found] == [
        ("m/w50 wanda/tiny:32",),
        ("m/w50 wanda/tiny:16", "m/w50 wanda/tiny:64"),
    ]
    (row,) = found[0].differing
    assert (row.name, row.recorded, row.now) == ("torch", "2.13", "2.14")
    # What only one side knows is no difference.
    assert found[1].differing == ()
    assert [row.name for row in found[1].rows] == ["torch", "device", "python"]
    text = page(Results(verdicts=(PASSED,)), Details(losses=(same, other))).text
    assert "torch 2.13 2.14 ≠" in text
    assert "✓ The same as recorded." in text


def test_a_ladder_is_a_waterfall() -> None:
    detail = LadderDetail("out/w50", ladder_document("out/w50", ladder()))
    found = waterfall(detail)
    steps = {step.number: step for step in found.steps if step.kind != "end"}
    # Bars are as long as the logarithmic changes, and start where the last one ended.
    sizes = [steps[number].width for number in ("1", "6")]
    changes = [rung.log_change for rung in (ladder().rungs[1], ladder().rungs[6])]
    assert sizes[1] / sizes[0] == pytest.approx(changes[1] / changes[0], rel=1e-3)
    assert steps["2"].left == pytest.approx(steps["1"].left + steps["1"].width)
    assert [steps[n].kind for n in ("1", "3", "5", "6")] == ["up", "down", "down", "up"]
    start, goal = (step for step in found.steps if step.kind == "end")
    assert start.width == pytest.approx(steps["1"].left)
    assert goal.width == pytest.approx(steps["6"].left + steps["6"].width)
    text = page(Results(verdicts=(PASSED,)), Details(ladders=(detail, detail))).text
    assert "2 tail: dropped -> shorter window 12.6" in text
    assert "The divisor alone explains 77.3 % of the gap" in text


def test_a_ladder_without_a_gap() -> None:
    flat = ladder([(None, None, None, 10.0, 990, 9), ("tail", "a", "b", 10.0, 990, 0)])
    found = waterfall(LadderDetail("m", ladder_document("m", flat)))
    assert [step.share for step in found.steps] == [None, None, None]
    assert all(step.width >= 0 for step in found.steps)
