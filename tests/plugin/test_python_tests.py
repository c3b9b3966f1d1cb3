"""The marker, returned models, ``ppl_guard.check`` and the fixtures in test code."""

from __future__ import annotations

import json
import textwrap

import pytest

from .project import Project, failure, section

TWO = """
w50:
  gates:
    wanda/tiny:16: {token_perplexity: {rel: 0.005}}
other:
  gates:
    wanda/tiny:16: {token_perplexity: {rel: 0.005}}
"""
MAKE = "from tests.plugin.stub import make\n"


@pytest.fixture
def given(project: Project) -> list[str]:
    """A recorded checkpoint of perplexity 8, given; gates are not collected."""
    project.baseline(TWO, w50="ppl:8", other="ppl:8")
    return ["test_it.py", *project.give(w50="ppl:8")]


def test_marker_without_a_return_judges_the_checkpoint(
    project: Project, given: list[str], local_args: tuple[str, ...]
) -> None:
    project.test("@pytest.mark.ppl('wanda')\ndef test_it():\n    pass\n")
    result = project.run(*given, *local_args)
    result.assert_outcomes(passed=1)
    assert section(result) == (
        "llama/w50  baseline  measured  change  outcome\n"
        "  wanda/tiny:16\n"
        "  token_perplexity  8  8  +0.00 %  within\n"
        "1 within tolerance\n"
    )


@pytest.mark.parametrize(
    "returned",
    [
        "make('ppl:9')",
        "make('ppl:9')[0]",
        "'ppl:9'",
        "__import__('pathlib').Path('ppl:9')",
    ],
)
def test_what_is_returned_is_judged(
    project: Project, given: list[str], returned: str
) -> None:
    project.test(
        f"{MAKE}\n@pytest.mark.ppl('wanda')\ndef test_it():\n    return {returned}\n"
    )
    result = project.run(*given)
    result.assert_outcomes(failed=1)
    text = failure(result, "test_it")
    assert "llama/w50 wanda/tiny:16: token_perplexity regressed by 12.50 %\n" in text
    assert "  allowed      7.9602 .. 8.04 (rel 0.005, baselines/llama.yaml:7)\n" in text
    assert (
        '  where        window 1 of 11 moved most: +0.12 nats a token, at "?"\n' in text
    )
    assert (
        "to accept    pytest test_it.py::test_it --ppl-model llama/w50=ppl:8 "
        "--ppl-update\n" in text
    )
    assert "Traceback" not in text


def test_what_cannot_be_located_does_not_hide_the_failure(
    project: Project, given: list[str]
) -> None:
    project.test(
        f"""
        {MAKE}
        model, tokenizer = make("ppl:9")

        class Mute(type(tokenizer)):
            def decode(self, ids, **_):
                raise RuntimeError("mute")

        @pytest.mark.ppl("wanda")
        def test_it():
            return model, Mute()
        """
    )
    result = project.run(*given, "--ppl-report=r.json")
    result.assert_outcomes(failed=1)
    lines = [
        "the whole text moved: 11 of 11 windows are worse, by 0.12 +- 0 nats a token",
        "window 1 of 11 moved most: +0.12 nats a token",
        "no place in the text: the text could not be cut again: RuntimeError: mute",
    ]
    assert "".join(f"  where        {line}\n" for line in lines) in failure(
        result, "test_it"
    )
    (verdict,) = json.loads((project.path / "r.json").read_text())["verdicts"]
    assert verdict["where"] == lines


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        ("3", "expected a model, a path or (model, tokenizer), but got int"),
        ("False", "expected a model, a path or (model, tokenizer), but got bool"),
        ("(1, 2, 3)", "expected (model, tokenizer), not a tuple of 3"),
        (
            "__import__('torch').nn.ReLU()",
            "this ReLU has no weights that could be measured",
        ),
    ],
)
def test_anything_else_fails_with_its_type(
    project: Project, given: list[str], returned: str, message: str
) -> None:
    project.test(f"@pytest.mark.ppl('wanda')\ndef test_it():\n    return {returned}\n")
    result = project.run(*given)
    result.assert_outcomes(failed=1)
    assert message in failure(result, "test_it")


def test_an_async_test_that_returns_a_model_is_judged(
    project: Project, given: list[str]
) -> None:
    project.test(
        f"""
        {MAKE}
        @pytest.mark.asyncio
        @pytest.mark.ppl("wanda")
        async def test_it():
            return make("ppl:9")
        """
    )
    result = project.run(*given)
    result.assert_outcomes(failed=1)
    text = failure(result, "test_it")
    assert "token_perplexity regressed by 12.50 %" in text
    result.stdout.no_fnmatch_line("*warning*")


def test_a_body_that_raises_is_its_own_failure(
    project: Project, given: list[str]
) -> None:
    project.test(
        """
        @pytest.mark.ppl("wanda")
        def test_it():
            raise ValueError("mine")
        """
    )
    result = project.run(*given)
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["E       ValueError: mine"])
    assert project.loads() == []
    assert "no gate was measured" in section(result)


def test_skip_and_xfail(project: Project, given: list[str]) -> None:
    project.test(
        f"""
        {MAKE}
        @pytest.mark.ppl("wanda")
        def test_skip():
            pytest.skip("not today")

        @pytest.mark.skip("never")
        @pytest.mark.ppl("wanda")
        def test_skip_mark():
            pass

        @pytest.mark.ppl("wanda")
        def test_xfail():
            pytest.xfail("known")

        @pytest.mark.xfail(strict=True)
        @pytest.mark.ppl("wanda")
        def test_regression_is_expected():
            return make("ppl:9")

        @pytest.mark.xfail(strict=True)
        @pytest.mark.ppl("wanda")
        def test_no_regression_where_one_is_expected():
            return make("ppl:8")
        """
    )
    result = project.run(*given)
    result.assert_outcomes(skipped=2, xfailed=2, failed=1)
    assert "XPASS(strict)" in failure(
        result, "test_no_regression_where_one_is_expected"
    )


def test_unittest_methods_fail_clearly(project: Project, given: list[str]) -> None:
    project.test(
        """
        import unittest

        class TestOld(unittest.TestCase):
            @pytest.mark.ppl("wanda")
            def test_it(self):
                pass
        """
    )
    result = project.run(*given)
    result.assert_outcomes(errors=1)
    assert failure(result, "ERROR at setup of TestOld.test_it") == (
        "@pytest.mark.ppl does not work on methods of unittest.TestCase: pytest does "
        "not run them as functions; use a plain test function\n"
    )


def test_classes_and_parameters(project: Project, given: list[str]) -> None:
    project.test(
        f"""
        {MAKE}
        @pytest.mark.ppl("wanda")
        class TestIt:
            @pytest.mark.parametrize("perplexity", [8, 9])
            def test_it(self, perplexity):
                return make(f"ppl:{{perplexity}}")
        """
    )
    project.run(*given).assert_outcomes(passed=1, failed=1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            "'wanda', tolerence=0.1",
            "unknown argument 'tolerence'; it takes checkpoint, rel, abs, max, "
            "min, drift, sigma, direction, window",
        ),
        (
            "'wanda', windows=4",
            "unknown argument 'windows' (did you mean 'window'?); it takes "
            "checkpoint, rel, abs, max, min, drift, sigma, direction, window",
        ),
        (
            "'wnada'",
            "unknown method 'wnada' (did you mean 'wanda'?): this version measures "
            "wanda, lm-eval, kl, strided, llama-cpp, lora-ft, gptq and vllm",
        ),
        ("'wanda', 0.01", "0.01 is no method or key, but a float"),
        (
            "",
            "name a method; there are wanda, lm-eval, kl, strided, llama-cpp, lora-ft, "
            "gptq and vllm",
        ),
        ("'wanda', rel='1%'", "rel='1%' is no number, but a str"),
        ("'wanda', rel=-1", "rel=-1 must be a finite number from 0"),
        ("'wanda', window=0", "window=0 is no number of tokens"),
        (
            "'wanda', direction='up'",
            "direction='up' is not one of both, no-worse",
        ),
        (
            "'wanda/tiny:16', window=16",
            "wanda/tiny:16 has its window; leave window=16 out",
        ),
    ],
)
def test_bad_marker_arguments_are_collection_errors(
    project: Project, given: list[str], arguments: str, message: str
) -> None:
    project.test(f"@pytest.mark.ppl({arguments})\ndef test_it():\n    pass\n")
    result = project.run(*given)
    assert result.ret == pytest.ExitCode.INTERRUPTED
    result.assert_outcomes(errors=1)
    assert failure(result, "ERROR collecting test_it.py") == (
        f"@pytest.mark.ppl: {message}\n"
    )


def test_bad_marker_arguments_of_a_parameter_set(
    project: Project, given: list[str]
) -> None:
    project.test(
        """
        @pytest.mark.parametrize(
            "x", [pytest.param(1, marks=pytest.mark.ppl("wnada"))]
        )
        def test_it(x):
            pass
        """
    )
    result = project.run(*given)
    result.assert_outcomes(errors=1)
    assert failure(result, "ERROR at setup of test_it[1]") == (
        "@pytest.mark.ppl: unknown method 'wnada' (did you mean 'wanda'?): this "
        "version measures wanda, lm-eval, kl, strided, llama-cpp, lora-ft, gptq and "
        "vllm\n"
    )


def test_marker_wins_over_gate_and_gate_over_default(
    project: Project, given: list[str]
) -> None:
    path = project.baseline(TWO.replace("{rel: 0.005}", "{}"), w50="ppl:8")
    project.test(
        f"""
        {MAKE}
        @pytest.mark.ppl("wanda", rel=0.1)
        def test_marker():
            return make("ppl:9")

        @pytest.mark.ppl("wanda")
        def test_other():
            return make("ppl:9")
        """
    )
    result = project.run(*given)
    assert "(rel 0.1, @pytest.mark.ppl)" in failure(result, "test_marker")
    assert "(rel 0.005, the default)" in failure(result, "test_other")
    path.write_text(path.read_text().replace("{}", "{rel: 0.02}", 1))
    result = project.run(*given)
    assert "(rel 0.1, @pytest.mark.ppl)" in failure(result, "test_marker")
    assert "(rel 0.02, baselines/llama.yaml:7)" in failure(result, "test_other")


def test_a_window_that_is_not_recorded_is_not_comparable(
    project: Project, given: list[str]
) -> None:
    project.test("@pytest.mark.ppl('wanda', window=8)\ndef test_it():\n    pass\n")
    result = project.run(*given)
    result.assert_outcomes(failed=1)
    text = failure(result, "test_it")
    assert "is not comparable to its baseline\n" in text
    assert "because      window 8, baseline 16\n" in text


def test_several_keys_of_a_method_must_be_told_apart(
    project: Project, given: list[str]
) -> None:
    project.baseline(
        """
        w50:
          gates:
            wanda/tiny:16: {token_perplexity: {}}
            wanda/tiny:32: {token_perplexity: {}}
        """,
        w50="ppl:8",
    )
    project.test(
        """
        @pytest.mark.ppl("wanda")
        def test_one():
            pass

        @pytest.mark.ppl("wanda", window=32)
        def test_window():
            pass

        @pytest.mark.ppl("wanda/tiny:16", "wanda/tiny:32")
        def test_keys():
            pass
        """
    )
    result = project.run(*given)
    result.assert_outcomes(failed=1, passed=2)
    assert failure(result, "test_one") == (
        "llama/w50 wanda: perplexity could not be measured\n"
        "  because      llama/w50 has several baselines by the method wanda; name one "
        "of wanda/tiny:16, wanda/tiny:32 instead of 'wanda'\n"
    )


def test_without_a_checkpoint_they_are_skipped(
    project: Project, local_args: tuple[str, ...]
) -> None:
    project.baseline(TWO, w50="ppl:8", other="ppl:8")
    project.test(
        """
        @pytest.mark.ppl("wanda")
        def test_marker():
            assert 0

        def test_fixture(ppl_model):
            assert 0

        def test_check(ppl_guard):
            ppl_guard.check(object(), "wanda")
        """
    )
    result = project.run("test_it.py", "-rs", *local_args)
    result.assert_outcomes(skipped=3)
    assert result.ret == 0
    result.stdout.fnmatch_lines(
        ["SKIPPED * needs a checkpoint: give --ppl-model [[]NAME=[]]PATH"]
    )
    project.ini("ppl_require = true")
    result = project.run("test_it.py", *local_args)
    result.assert_outcomes(errors=2, failed=1)
    assert failure(result, "test_check").splitlines()[-1] == (
        "test_it.py::test_check needs a checkpoint: give --ppl-model [NAME=]PATH "
        "(ppl_require is set)"
    )


def test_of_a_checkpoint_that_is_not_given(project: Project, given: list[str]) -> None:
    project.test(
        f"""
        {MAKE}
        @pytest.mark.ppl("wanda", checkpoint="llama/other")
        def test_marker():
            pass

        @pytest.mark.ppl("wanda", checkpoint="llama/other")
        def test_fixture(ppl_model):
            pass

        @pytest.mark.ppl("wanda", checkpoint="llama/other")
        def test_model_of_its_own():
            return make("ppl:9")

        @pytest.mark.ppl("wanda", checkpoint="llama/othr")
        def test_unknown():
            return make("ppl:9")
        """
    )
    result = project.run(*given, "-rs")
    result.assert_outcomes(skipped=2, failed=2)
    result.stdout.fnmatch_lines(
        [
            "SKIPPED * needs the checkpoint llama/other: give --ppl-model "
            "llama/other=PATH"
        ]
    )
    text = failure(result, "test_model_of_its_own")
    assert "llama/other wanda/tiny:16: token_perplexity regressed" in text
    assert "no checkpoint llama/othr in the baseline files of" in failure(
        result, "test_unknown"
    )


def test_several_checkpoints_must_be_told_apart(
    project: Project, given: list[str]
) -> None:
    project.test(
        """
        @pytest.mark.ppl("wanda")
        def test_marker():
            pass

        def test_fixture(ppl_model):
            pass

        @pytest.mark.ppl("wanda", checkpoint="llama/other")
        def test_named(ppl_model):
            return ppl_model
        """
    )
    result = project.run(*given, *project.give(other="ppl:8"))
    result.assert_outcomes(failed=1, errors=1, passed=1)
    said = (
        "several checkpoints are given (llama/w50, llama/other); say which with "
        "@pytest.mark.ppl(..., checkpoint=NAME)\n"
    )
    assert said in failure(result, "test_marker")
    assert failure(result, "ERROR at setup of test_fixture") == said


def test_check_returns_verdicts_and_works_twice(
    project: Project, given: list[str]
) -> None:
    project.test(
        f"""
        {MAKE}
        def test_it(ppl_guard, ppl_model, ppl_tokenizer):
            (verdict,) = ppl_guard.check(ppl_model, "wanda")
            assert verdict.passed and verdict.outcome == "within"
            assert verdict.measured == pytest.approx(8)
            with pytest.raises(pytest.fail.Exception, match="regressed"):
                ppl_guard.check(make("ppl:9"), "wanda")
            ppl_guard.check(make("ppl:9")[0], "wanda", rel=0.2, tokenizer=ppl_tokenizer)
            assert len(ppl_guard.check("ppl:8", "wanda/tiny:16")) == 1
        """
    )
    result = project.run(*given)
    result.assert_outcomes(passed=1)
    assert section(result).splitlines()[-1] == "1 regressed, 3 within tolerance"


def test_check_without_any_option_needs_all_named(
    project: Project, plugin_args: tuple[str, ...]
) -> None:
    project.baseline(TWO, w50="ppl:8")
    project.test(
        f"""
        {MAKE}
        def test_it(ppl_guard):
            ppl_guard.check(make("ppl:9"), "wanda", checkpoint="llama/w50", rel=0.3)
        """
    )
    result = project.run("test_it.py", *plugin_args)
    result.assert_outcomes(passed=1)
    assert section(result).splitlines()[-1] == "1 within tolerance"


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ("ppl_guard.check(None, 'wanda')", "ppl_guard.check: model is None"),
        (
            "ppl_guard.check('ppl:8', 'wanda', windw=3)",
            "ppl_guard.check: unknown argument 'windw' (did you mean 'window'?); it "
            "takes checkpoint, rel, abs, max, min, drift, sigma, direction, window",
        ),
        (
            "ppl_guard.check('ppl:8')",
            "ppl_guard.check: name a method; there are wanda, lm-eval, kl, strided, "
            "llama-cpp, lora-ft, gptq and vllm",
        ),
    ],
)
def test_bad_calls_of_check(
    project: Project, given: list[str], call: str, message: str
) -> None:
    project.test(f"def test_it(ppl_guard):\n    {call}\n")
    result = project.run(*given)
    result.assert_outcomes(failed=1)
    assert failure(result, "test_it") == f"{message}\n"


def test_check_of_another_checkpoint_measures_the_model_given(
    project: Project, given: list[str]
) -> None:
    project.test(
        """
        def test_it(ppl_guard, ppl_model, ppl_tokenizer):
            ppl_guard.check(
                ppl_model, "wanda", checkpoint="llama/other", tokenizer=ppl_tokenizer
            )
        """
    )
    args = [*given, *project.give(other="ppl:5")]
    project.baseline(TWO, w50="ppl:8", other="ppl:8")
    text = project.test(
        """
        @pytest.mark.ppl("wanda", checkpoint="llama/w50")
        def test_it(ppl_guard, ppl_model):
            (verdict,) = ppl_guard.check(ppl_model, "wanda", checkpoint="llama/other")
            assert verdict.measured == pytest.approx(8)
        """
    )
    assert text.exists()
    project.run(*args).assert_outcomes(passed=1)


def test_device_and_copy(project: Project, given: list[str]) -> None:
    project.test(
        """
        def test_copy(ppl_model_copy, ppl_model, ppl_device, ppl_tokenizer):
            import torch

            assert ppl_device == "cpu"
            assert ppl_model_copy is not ppl_model
            ppl_model_copy.weight.data.zero_()
            assert float(ppl_model.weight.detach()) != 0
            assert ppl_tokenizer.encode("a") == [1]

        @pytest.mark.ppl("wanda")
        def test_after(ppl_model):
            return ppl_model
        """
    )
    result = project.run(*given, "--ppl-device=cpu")
    result.assert_outcomes(passed=2)
    assert project.loads() == ["llama/w50 after 0"]


def test_device_that_is_not_there(project: Project, given: list[str]) -> None:
    project.test("def test_it(ppl_device):\n    pass\n")
    result = project.run(*given, "--ppl-device=xpu:7")
    result.assert_outcomes(errors=1)
    assert "no xpu device here for --ppl-device xpu:7" in failure(
        result, "ERROR at setup of test_it"
    )


def test_subtests(project: Project, given: list[str]) -> None:
    pytest.importorskip("_pytest.subtests", reason="pytest 9 brought subtests")
    project.test(
        f"""
        {MAKE}
        def test_it(ppl_guard, subtests):
            for perplexity in (8, 9):
                with subtests.test(perplexity=perplexity):
                    ppl_guard.check(make(f"ppl:{{perplexity}}"), "wanda")
        """
    )
    result = project.run(*given)
    assert result.ret == 1
    assert section(result).splitlines()[-1] == "1 regressed, 1 within tolerance"


def test_fixtures_say_what_they_are(project: Project) -> None:
    result = project.run("--fixtures", "-v")
    text = "\n".join(result.stdout.lines)
    for line in (
        "ppl_model -- ",
        "The checkpoint given with --ppl-model, loaded once and shared. Read-only.",
        "ppl_model_copy -- ",
        "A deep copy of ``ppl_model`` that the test may change, prune, or train.",
        "ppl_tokenizer -- ",
        "The tokenizer of the checkpoint given with --ppl-model.",
        "ppl_device -- ",
        "The device that checkpoints are loaded to, as torch writes it: ``cuda:0``.",
        "ppl_guard -- ",
        "Hold models of your own to recorded baselines: ``ppl_guard.check(...)``.",
    ):
        assert line in text


def test_docstring_example_of_the_hook(project: Project, given: list[str]) -> None:
    (project.path / "conftest.py").write_text(
        textwrap.dedent(
            """
            from tests.plugin.stub import make

            def pytest_pplguard_load_model(checkpoint):
                if checkpoint.spec.endswith(".mine"):
                    assert checkpoint.name == "llama/w50"
                    return make("ppl:8")
                return 3
            """
        )
    )
    project.test("@pytest.mark.ppl('wanda')\ndef test_it():\n    pass\n")
    mine = ["test_it.py", *project.give(w50="x.mine")]
    project.run(*mine).assert_outcomes(passed=1)
    result = project.run(*given)
    result.assert_outcomes(failed=1)
    assert (
        "pytest_pplguard_load_model returned a int for llama/w50; return (model, "
        "tokenizer), or None to have it loaded" in failure(result, "test_it")
    )
