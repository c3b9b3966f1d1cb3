"""Gates that compare with a reference: both in one run, and each loaded once."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import pytest

from pytest_pplguard.baselines import read_baseline

from .project import Project, failure, section

KEY = "kl/tiny:16"
GATES = """
dense:
  gates:
    wanda/tiny:16: {token_perplexity: {}}
w50:
  gates:
    wanda/tiny:16: {token_perplexity: {}}
    kl/tiny:16: {kl_divergence: {rel: 0.05}, top1_agreement: {min: 0.9}}
"""
TITLE = f"llama/w50 {KEY} kl_divergence"
ITEM = f"baselines/llama.yaml::w50::{KEY}"


def divergence(reference: float, model: float) -> float:
    """Of two stubs by hand: four tokens of probability 1/ppl, and all others."""
    p, q = 4 / reference, 4 / model
    return p * math.log(p / q) + (1 - p) * math.log((1 - p) / (1 - q))


def recorded(project: Project, body: str = GATES, **specs: str) -> Path:
    path = project.baseline(body)
    specs = specs or {"dense": "ppl:8", "w50": "ppl:9"}
    result = project.run(*project.give(**specs), "--ppl-update")
    assert result.ret == 0, result.stdout.str()
    (project.path / "loads.txt").unlink()
    return path


def test_within(project: Project, plugin_args: tuple[str, ...]) -> None:
    path = recorded(project)
    entry = read_baseline(path).checkpoints["w50"].recorded[KEY]
    assert entry.metrics == {
        "kl_divergence": pytest.approx(divergence(8, 9), rel=1e-9),
        "top1_agreement": 1.0,
    }
    assert entry.evidence is not None
    evidence = json.loads((path.parent / entry.evidence).read_text())
    assert evidence["protocol"]["reference"] == "dense"
    result = project.run(*project.give(dense="ppl:8", w50="ppl:9"), *plugin_args)
    result.assert_outcomes(passed=4)
    assert section(result) == (
        "llama/dense  baseline  measured  change  outcome\n"
        "  wanda/tiny:16\n"
        "  token_perplexity  8  8  +0.00 %  within\n"
        "llama/w50  baseline  measured  change  outcome\n"
        "  kl/tiny:16\n"
        "  kl_divergence  0.00621126 0.00621126  +0.00 %  within\n"
        "  top1_agreement  1  1  +0.00 %  within\n"
        "  wanda/tiny:16\n"
        "  token_perplexity  9  9  +0.00 %  within\n"
        "4 within tolerance\n"
    )
    assert project.loads() == ["llama/dense after 0", "llama/w50 after 0"]


def test_regressed(project: Project, local_args: tuple[str, ...]) -> None:
    recorded(project)
    given = project.give(dense="ppl:8", w50="ppl:9.1")
    result = project.run(*given, ITEM, *local_args)
    result.assert_outcomes(passed=1, failed=1)
    text = failure(result, TITLE)
    assert text[text.index("llama/w50 kl") :] == (
        f"llama/w50 {KEY}: kl_divergence regressed by 18.49 %\n"
        "  baseline     0.00621126 (measured)\n"
        "  measured     0.00735978\n"
        "  allowed      0.00591549 .. 0.00652182 (rel 0.05, baselines/llama.yaml:32)\n"
        "  recorded in  baselines/llama.yaml:34\n"
        "  where        the whole text moved: 11 of 11 windows are worse, by 0.0011 +- "
        "0 nats of divergence a token\n"
        "  where        window 1 of 11 moved most: +0.0011 nats of divergence a token, "
        'at "?"\n'
        f"  to accept    pytest {ITEM} --ppl-model llama/w50=ppl:9.1 --ppl-model "
        "llama/dense=ppl:8 --ppl-update\n"
    )


def test_nearer_to_the_reference_should_be_looked_at(project: Project) -> None:
    recorded(project)
    result = project.run(*project.give(dense="ppl:8", w50="ppl:8.9"), ITEM)
    result.assert_outcomes(passed=1, failed=1)
    text = failure(result, TITLE)
    assert "kl_divergence improved by " in text
    assert "11 of 11 windows are better, by " in text


def test_where_it_is_further_though_its_losses_are_lower(project: Project) -> None:
    """A divergence has its own windows: a better perplexity is no comfort."""
    recorded(project)
    result = project.run(*project.give(dense="ppl:8", w50="ppl:6.9"), ITEM)
    result.assert_outcomes(passed=1, failed=1)
    text = failure(result, TITLE)
    moved = divergence(8, 6.9) - divergence(8, 9)
    assert moved > 0
    assert "kl_divergence regressed by " in text
    assert f"11 of 11 windows are worse, by {moved:.2g} +- 0 nats of div" in text


def test_lost_agreement(project: Project) -> None:
    """Below a perplexity of 5 the stub's first choice is another token."""
    recorded(project)
    result = project.run(*project.give(dense="ppl:8", w50="ppl:4.5"), ITEM)
    result.assert_outcomes(failed=2)
    text = failure(result, f"llama/w50 {KEY} top1_agreement")
    assert text[text.index("llama/w50 kl") :].splitlines()[:4] == [
        f"llama/w50 {KEY}: top1_agreement regressed by 100.00 %",
        "  baseline     1.0 (measured)",
        "  measured     0.0",
        "  allowed      at least 0.9 (min 0.9, baselines/llama.yaml:32)",
    ]


def test_a_reference_that_is_not_given(project: Project) -> None:
    recorded(project)
    result = project.run(*project.give(w50="ppl:9"))
    result.assert_outcomes(passed=1, errors=2)
    text = failure(result, f"ERROR at setup of {TITLE}")
    assert text[text.index("llama/w50 kl") :] == (
        f"llama/w50 {KEY}: kl_divergence could not be measured\n"
        "  because      kl compares llama/w50 with llama/dense, which is not measured "
        "in this run: add --ppl-model llama/dense=PATH\n"
    )
    assert project.loads() == ["llama/w50 after 0"]


def test_an_entry_without_a_reference(project: Project) -> None:
    project.baseline("w50:\n  gates:\n    kl/tiny:16: {kl_divergence: {}}\nwhole: {}\n")
    result = project.run(*project.give(w50="ppl:9"))
    result.assert_outcomes(errors=1)
    text = failure(result, f"ERROR at setup of {TITLE}")
    assert text.endswith(
        "because      llama/w50 has no reference for kl: write `reference: NAME`, "
        "another checkpoint of llama.yaml, into its entry\n"
    )


def test_another_model_behind_the_references_name(project: Project) -> None:
    recorded(project)
    result = project.run(*project.give(dense="ppl:8.01", w50="ppl:9"), ITEM)
    result.assert_outcomes(failed=2)
    assert failure(result, TITLE).splitlines()[-2] == (
        "  because      the reference is another model (perplexity 8.01, baseline 8)"
    )


def test_another_reference(project: Project) -> None:
    path = recorded(project)
    text = path.read_text().replace("  w50:\n", "  w50:\n    reference: other\n")
    path.write_text(text + "  other: {}\n")
    result = project.run(*project.give(other="ppl:8", w50="ppl:9"), ITEM)
    result.assert_outcomes(failed=2)
    assert "  because      reference other, baseline dense\n" in failure(result, TITLE)


def test_a_reference_without_gates_was_measured_all_the_same(project: Project) -> None:
    body = GATES.replace("dense:\n  gates:\n    wanda/tiny:16: {token_", "dense: {x_")
    body = re.sub(r"dense: .*\n", "dense: {}\n", body)
    recorded(project, body)
    result = project.run(*project.give(dense="ppl:8", w50="ppl:9"))
    result.assert_outcomes(passed=3)
    assert result.ret == 0


def test_a_window_that_is_nan_is_invalid(project: Project) -> None:
    recorded(project)
    result = project.run(*project.give(dense="ppl:8", w50="ppl:9,nan:3"), ITEM)
    result.assert_outcomes(failed=2)
    text = failure(result, TITLE)
    assert text.endswith("because      the loss of window 3 of 11 is nan\n")


def test_one_reference_of_several_is_loaded_once(
    project: Project, local_args: tuple[str, ...]
) -> None:
    """Whatever the names: its gates go before those of the checkpoints it is for."""
    gates = "gates:\n    wanda/tiny:16: {token_perplexity: {}}\n"
    more = f"{gates}    kl/tiny:16: {{kl_divergence: {{}}}}\n"
    body = "".join(f"{name}:\n  {more}" for name in ("a", "z"))
    recorded(
        project,
        f"{body}dense:\n  {gates}b:\n  {gates}",
        a="ppl:9",
        z="ppl:7",
        b="ppl:6",
        dense="ppl:8",
    )
    given = project.give(a="ppl:9", b="ppl:6", dense="ppl:8", z="ppl:7")
    result = project.run(*given, *local_args)
    result.assert_outcomes(passed=6)
    assert project.loads() == [
        f"llama/{name} after 0" for name in ("b", "dense", "a", "z")
    ]


# ---------------------------------------------------------------------- tests in Python


def test_marker_and_check(project: Project) -> None:
    recorded(project)
    project.test(
        """
        from tests.plugin.stub import make

        @pytest.mark.ppl("kl", checkpoint="llama/w50")
        def test_the_checkpoint():
            pass

        @pytest.mark.ppl("kl", checkpoint="llama/w50", max=0.007)
        def test_returned():
            return make("ppl:9.05")

        def test_check(ppl_guard):
            model, tokenizer = make("ppl:9")
            verdicts = ppl_guard.check(
                model, "kl/tiny:16", checkpoint="llama/w50", tokenizer=tokenizer
            )
            assert [verdict.outcome for verdict in verdicts] == ["within"] * 2

        @pytest.mark.ppl("kl", checkpoint="llama/w50")
        def test_regressed():
            return make("ppl:10")
        """
    )
    given = project.give(dense="ppl:8", w50="ppl:9")
    result = project.run(*given, "test_it.py")
    result.assert_outcomes(passed=3, failed=1)
    assert "kl_divergence regressed by " in failure(result, "test_regressed")


def test_marker_without_the_reference(project: Project) -> None:
    recorded(project)
    project.test(
        """
        @pytest.mark.ppl("kl", checkpoint="llama/w50")
        def test_it():
            pass
        """
    )
    result = project.run(*project.give(w50="ppl:9"), "test_it.py")
    result.assert_outcomes(failed=1)
    assert (
        "kl compares llama/w50 with llama/dense, which is not measured in this run: "
        "add --ppl-model llama/dense=PATH"
    ) in failure(result, "test_it")


def test_a_shared_reference_that_a_test_has_changed(project: Project) -> None:
    """It is dropped and loaded anew, never compared with under its old name."""
    recorded(project)
    project.test(
        """
        @pytest.mark.ppl("wanda", checkpoint="llama/dense")
        def test_prunes_in_place(ppl_model, ppl_guard):
            ppl_model.weight.data.fill_(-3.0)
            ppl_guard.check(ppl_model, "kl", checkpoint="llama/w50")
        """
    )
    result = project.run(*project.give(dense="ppl:8", w50="ppl:9"), "test_it.py")
    result.assert_outcomes(failed=1)
    text = failure(result, "test_prunes_in_place")
    expected = divergence(8, math.exp(3.0))
    assert f"  measured     {expected:.6g}\n" in text
