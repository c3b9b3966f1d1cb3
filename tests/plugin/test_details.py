"""What is behind verdicts: gathered only where a report shows it, once, by gates."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any

import pytest

from pytest_pplguard.report import files, plain
from pytest_pplguard.session.details import Gatherer
from pytest_pplguard.values import Details, Results

from .project import LM_EVAL, TEXT, WANDA, Project

GATES = f"""
w50:
  gates:
    {WANDA}: {{token_perplexity: {{rel: 0.005}}}}
    {LM_EVAL}: {{word_perplexity: {{rel: 0.005}}, byte_perplexity: {{rel: 0.005}}}}
"""
WINDOWS = len(TEXT) // 16


@pytest.fixture(autouse=True)
def page(monkeypatch: pytest.MonkeyPatch) -> None:
    """The page holds what it is given, so that tests can read it."""

    def html(results: Results, details: Details) -> str:
        return json.dumps(plain(details))

    monkeypatch.setitem(files._KINDS, ".html", html)


Run = Callable[..., dict[str, Any]]


@pytest.fixture
def run(project: Project) -> Run:
    """Run tests with a page, and give the details by checkpoint and key."""

    def running(*args: str) -> dict[str, Any]:
        project.run("--ppl-report=page.html", *args)
        details = json.loads((project.path / "page.html").read_text())
        found = {f"{one['checkpoint']} {one['key']}": one for one in details["losses"]}
        assert len(found) == len(details["losses"])
        weights = {one["checkpoint"]: one for one in details["weights"]}
        return found | weights

    return running


def test_losses_and_places(
    project: Project, run: Run, plugin_args: tuple[str, ...]
) -> None:
    project.baseline(GATES, w50="ppl:8")
    found = run(*project.give(w50="ppl:8.02"), *plugin_args)
    assert set(found) == {f"llama/w50 {WANDA}", f"llama/w50 {LM_EVAL}", "llama/w50"}
    wanda = found[f"llama/w50 {WANDA}"]
    assert wanda["windows"] == list(range(WINDOWS))
    assert wanda["total"] == WINDOWS
    assert wanda["scored"] == [15] * WINDOWS
    assert wanda["measured"] == pytest.approx([15 * math.log(8.02)] * WINDOWS)
    assert wanda["baseline"] == pytest.approx([15 * math.log(8)] * WINDOWS)
    assert wanda["metrics"] == {"token_perplexity": pytest.approx(8.02)}
    assert wanda["recorded"] == {"token_perplexity": pytest.approx(8)}
    assert [place["windows"] for place in wanda["places"]] == [WINDOWS] * WINDOWS
    assert {place["words"] for place in wanda["places"]} == {"?", "...?"}
    assert wanda["environment"]["device"] == "cpu"
    assert wanda["baseline_environment"]["dtype"] == wanda["environment"]["dtype"]
    assert wanda["problem"] == ""
    assert found["llama/w50"]["spec"] == "ppl:8.02"
    assert found["llama/w50"]["problem"] == (
        "the model was brought by a hook or a test, not by files"
    )


def test_nothing_is_gathered_where_nobody_asked(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no(*args: Any, **options: Any) -> None:
        raise AssertionError("nobody asked")

    for name in ("_beside_baseline", "_placed", "_weights_detail"):
        monkeypatch.setattr(Gatherer, name, no)
    project.baseline(GATES, w50="ppl:8")
    result = project.run(*project.give(w50="ppl:8"), "--ppl-report=r.json")
    result.assert_outcomes(passed=3)


def test_recorded_measurements_have_details(project: Project, run: Run) -> None:
    project.baseline(GATES, w50="ppl:8")
    found = run(*project.give(w50="ppl:9"), "--ppl-update")[f"llama/w50 {WANDA}"]
    assert found["measured"] == pytest.approx([15 * math.log(9)] * WINDOWS)
    assert found["baseline"] == pytest.approx([15 * math.log(8)] * WINDOWS)


RELATIVE = f"""
dense: {{}}
w50:
  gates:
    relative: {{to: dense, key: "{WANDA}", max_ratio: 1.2}}
"""


def test_both_sides_of_a_relative_gate(project: Project, run: Run) -> None:
    project.baseline(RELATIVE)
    found = run(*project.give(dense="ppl:8", w50="ppl:9"))
    assert set(found) == {
        f"llama/dense {WANDA}", f"llama/w50 {WANDA}", "llama/dense", "llama/w50"
    }  # fmt: skip
    for name, value in (("dense", 8), ("w50", 9)):
        loss = found[f"llama/{name} {WANDA}"]
        assert loss["measured"] == pytest.approx([15 * math.log(value)] * WINDOWS)
        assert len(loss["places"]) == WINDOWS
        assert loss["problem"] == ""


def test_a_checkpoint_that_was_not_loaded_has_no_weights(
    project: Project, run: Run
) -> None:
    project.baseline(RELATIVE)
    found = run(*project.give(dense="ppl:8,nan:3", w50="ppl:9"))
    assert set(found) == {f"llama/dense {WANDA}", "llama/dense"}


def test_an_invalid_loss(
    project: Project, run: Run, plugin_args: tuple[str, ...]
) -> None:
    project.baseline(
        f"w50:\n  gates:\n    {WANDA}: {{token_perplexity: {{}}}}\n", w50="ppl:8"
    )
    found = run(*project.give(w50="ppl:8,nan:4"), *plugin_args)[f"llama/w50 {WANDA}"]
    # One window was read twice, to prove the head.
    fine = [15 * math.log(8)] * (len(found["windows"]) - 1)
    assert found["measured"] == [*map(pytest.approx, fine), None]
    assert found["windows"] == list(range(len(found["windows"])))
    assert found["baseline"] == pytest.approx([*fine, 15 * math.log(8)])
    assert found["total"] == WINDOWS
    assert len(found["places"]) == len(found["windows"])
    assert found["problem"] == (
        f"the loss of window {len(fine) + 1} of {WINDOWS} is nan"
    )


def test_broken_evidence_is_a_problem_of_the_detail(project: Project, run: Run) -> None:
    path = project.baseline(GATES, w50="ppl:8")
    for evidence in path.parent.glob("llama/w50/wanda-*.json"):
        evidence.unlink()
    found = run(*project.give(w50="ppl:8"), "--ppl-update")[f"llama/w50 {WANDA}"]
    assert found["baseline"] == []
    assert found["measured"] == pytest.approx([15 * math.log(8)] * WINDOWS)
    assert found["problem"].startswith(
        f"no baseline losses: llama/w50 {WANDA}: evidence "
    )
    assert "the file does not exist" in found["problem"]


OWN = f"""
from tests.plugin import stub

def test_own(ppl_guard):
    with pytest.raises(pytest.fail.Exception, match="regressed"):
        ppl_guard.check(stub.make("ppl:9"), "{WANDA}", checkpoint="llama/w50")
"""


@pytest.mark.parametrize("order", ["gates first", "tests first"])
def test_a_gate_wins_over_a_model_of_a_test(
    project: Project, run: Run, order: str
) -> None:
    project.baseline(GATES, w50="ppl:8")
    project.test(OWN)
    files = ["baselines", "test_it.py"]
    if order == "tests first":
        files.reverse()
    found = run(*files, *project.give(w50="ppl:8"))[f"llama/w50 {WANDA}"]
    assert found["measured"] == pytest.approx([15 * math.log(8)] * WINDOWS)


def test_a_model_of_a_test_alone(project: Project, run: Run) -> None:
    project.baseline(GATES, w50="ppl:8")
    project.test(OWN)
    found = run("test_it.py")
    assert found[f"llama/w50 {WANDA}"]["measured"] == pytest.approx(
        [15 * math.log(9)] * WINDOWS
    )
    assert len(found[f"llama/w50 {WANDA}"]["places"]) == WINDOWS
    assert (found["llama/w50"]["spec"], found["llama/w50"]["digest"]) == ("", "")
