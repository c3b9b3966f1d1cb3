"""A green run means that every checkpoint given was measured."""

from __future__ import annotations

import pytest

from .project import Project, section

TWO = """
w50:
  gates:
    wanda/tiny:16: {token_perplexity: {}}
dense:
  gates:
    wanda/tiny:16: {token_perplexity: {}}
bare: {}
"""


@pytest.fixture(autouse=True)
def _files(project: Project) -> None:
    project.baseline(TWO, w50="ppl:8", dense="ppl:7")
    project.test("def test_mine():\n    pass\n")


def unmeasured(name: str, spec: str) -> str:
    given = f"llama/{name}={spec}"
    return (
        f"FAILED --ppl-model {given}: no gate was measured (its gates were not among "
        f"the tests that ran; run `pytest baselines --ppl-model {given}`)\n"
    )


def test_deselected_by_keyword(project: Project, local_args: tuple[str, ...]) -> None:
    given = project.give(w50="ppl:8", dense="ppl:7")
    result = project.run(*given, "-k", "w50 or mine", *local_args)
    result.assert_outcomes(passed=2, deselected=1)
    assert result.ret == 1
    assert section(result) == (
        "llama/w50  baseline  measured  change  outcome\n"
        "  wanda/tiny:16\n"
        "  token_perplexity  8  8  +0.00 %  within\n"
        "1 within tolerance\n" + unmeasured("dense", "ppl:7")
    )


def test_no_path_to_it_was_typed(project: Project) -> None:
    result = project.run("test_it.py", *project.give(w50="ppl:8"))
    result.assert_outcomes(passed=1)
    assert result.ret == 1
    assert section(result) == unmeasured("w50", "ppl:8")


def test_a_checkpoint_without_gates(project: Project) -> None:
    result = project.run(*project.give(bare="ppl:8"))
    result.assert_outcomes(passed=1, deselected=2)
    assert result.ret == 1
    assert section(result) == (
        "FAILED --ppl-model llama/bare=ppl:8: no gate was measured (llama.yaml has no "
        "gate for it; record one with `pplguard update ppl:8 --checkpoint llama/bare`)"
        "\n"
    )


def test_only_marked_tests_of_another_one(project: Project) -> None:
    project.test(
        """
        @pytest.mark.ppl("wanda", checkpoint="llama/w50")
        def test_it():
            pass
        """
    )
    given = project.give(w50="ppl:8", dense="ppl:7")
    result = project.run("test_it.py", *given)
    result.assert_outcomes(passed=1)
    assert result.ret == 1
    assert section(result).endswith(unmeasured("dense", "ppl:7"))


def test_a_marked_test_is_enough(project: Project) -> None:
    project.test("@pytest.mark.ppl('wanda')\ndef test_it():\n    pass\n")
    assert project.run("test_it.py", *project.give(w50="ppl:8")).ret == 0


@pytest.mark.parametrize("quiet", ["-q", "--tb=short", "-s", "-v"])
def test_it_is_said_under_all_options(project: Project, quiet: str) -> None:
    result = project.run("test_it.py", *project.give(w50="ppl:8"), quiet)
    assert result.ret == 1
    assert section(result) == unmeasured("w50", "ppl:8")


def test_collect_only_stays_green(project: Project) -> None:
    result = project.run("test_it.py", *project.give(w50="ppl:8"), "--collect-only")
    assert result.ret == 0


def test_nothing_collected_stays_what_it_is(project: Project) -> None:
    result = project.run(*project.give(w50="ppl:8"), "-k", "nothing")
    assert result.ret == pytest.ExitCode.NO_TESTS_COLLECTED
    assert section(result) == unmeasured("w50", "ppl:8")


@pytest.mark.parametrize(
    "stop", ["raise KeyboardInterrupt", "pytest.exit('enough')"], ids=["ctrl-c", "exit"]
)
def test_an_interrupted_run_stays_interrupted(project: Project, stop: str) -> None:
    project.test(f"def test_it():\n    {stop}\n")
    result = project.run("test_it.py", *project.give(w50="ppl:8"))
    assert result.ret == pytest.ExitCode.INTERRUPTED
    assert "no gate was measured" not in "\n".join(result.stdout.lines)


def test_a_run_that_stops_at_the_first_failure_says_nothing_more(
    project: Project,
) -> None:
    project.test("def test_it():\n    assert 0\n")
    result = project.run("test_it.py", "baselines", "-x", *project.give(w50="ppl:8"))
    assert result.ret == 1
    assert section(result) == ""


def test_usage_errors_stay_usage_errors(project: Project) -> None:
    result = project.run("test_it.py", "no/such/file", *project.give(w50="ppl:8"))
    assert result.ret == pytest.ExitCode.USAGE_ERROR
