"""Each checkpoint is loaded once, given back in time, and never measured changed."""

from __future__ import annotations

from .project import Project, section

TWO = """
a:
  gates:
    wanda/tiny:16: {token_perplexity: {}}
    wanda/tiny:32: {token_perplexity: {}}
b:
  gates:
    wanda/tiny:16: {token_perplexity: {}}
    wanda/tiny:32: {token_perplexity: {}}
"""


def test_gates_and_tests_of_two_checkpoints(project: Project) -> None:
    project.baseline(TWO, a="ppl:8", b="ppl:9")
    project.test(
        """
        import weakref

        @pytest.mark.ppl("wanda/tiny:16", checkpoint="llama/a")
        def test_a():
            pass

        def test_mine():
            pass

        @pytest.mark.ppl("wanda/tiny:16", checkpoint="llama/b")
        def test_b(ppl_model):
            pass

        @pytest.mark.ppl("wanda/tiny:16", checkpoint="llama/a")
        def test_a_again(ppl_model):
            pass
        """
    )
    given = project.give(a="ppl:8", b="ppl:9")
    result = project.run(*given, "-v")
    result.assert_outcomes(passed=8)
    assert project.loads() == ["llama/a after 0", "llama/b after 0"]
    order = [
        line.split()[0].partition("::")[2]
        for line in result.stdout.lines
        if " PASSED" in line
    ]
    assert order == [
        "a::wanda/tiny:16::token_perplexity",
        "a::wanda/tiny:32::token_perplexity",
        "test_a",
        "test_mine",
        "test_a_again",
        "b::wanda/tiny:16::token_perplexity",
        "b::wanda/tiny:32::token_perplexity",
        "test_b",
    ]


def test_tests_of_two_modules(project: Project) -> None:
    project.baseline(TWO, a="ppl:8", b="ppl:9")
    body = "".join(
        f"@pytest.mark.ppl('wanda/tiny:16', checkpoint='llama/{name}')\n"
        f"def test_{name}(ppl_model):\n    pass\n\n"
        for name in "ab"
    )
    for file in ("test_one.py", "test_two.py"):
        project.test(body, file=file)
    given = project.give(a="ppl:8", b="ppl:9")
    project.run(*given).assert_outcomes(passed=8)
    # Tests stay in their modules; the second begins with what the first has left.
    assert [line.split()[0] for line in project.loads()] == [
        "llama/a",
        "llama/b",
        "llama/a",
    ]
    assert all(line.endswith("after 0") for line in project.loads())


def test_tests_without_a_checkpoint_keep_their_order(project: Project) -> None:
    project.baseline(TWO)
    names = ["zebra", "apple", "monkey"]
    project.test("".join(f"def test_{name}():\n    pass\n\n" for name in names))
    result = project.run("--collect-only", "-q")
    lines = [line for line in result.stdout.lines if "test_it.py::" in line]
    assert lines == [f"test_it.py::test_{name}" for name in names]


def test_a_failing_test_keeps_no_model(project: Project) -> None:
    project.baseline(TWO, a="ppl:8", b="ppl:9")
    project.test(
        """
        @pytest.mark.ppl("wanda/tiny:16", checkpoint="llama/a")
        def test_a(ppl_model):
            assert ppl_model is None

        @pytest.mark.ppl("wanda/tiny:16", checkpoint="llama/b")
        def test_b(ppl_model):
            pass
        """
    )
    given = project.give(a="ppl:8", b="ppl:9")
    result = project.run_apart("test_it.py", *given)
    result.assert_outcomes(failed=1, passed=1)
    assert project.loads() == ["llama/a after 0", "llama/b after 0"]


def test_a_prune_in_place_never_reaches_a_gate(
    project: Project, local_args: tuple[str, ...]
) -> None:
    project.baseline(
        """
        w50:
          gates:
            wanda/tiny:16: {token_perplexity: {}}
        """,
        w50="ppl:8",
    )
    project.test(
        """
        def test_prune(ppl_model):
            ppl_model.weight.data.sub_(1)

        def test_pristine(ppl_model, ppl_guard):
            ppl_guard.check(ppl_model, "wanda")
        """
    )
    given = project.give(w50="ppl:8")
    # Typed first, so that the gate comes after the prune if nothing moves it.
    args = ["-p", "no:randomly", "test_it.py", "baselines"]
    result = project.run(*args, *given, *local_args)
    result.assert_outcomes(passed=3)
    assert (
        "note: llama/w50: a test changed the shared model in place; it was dropped and "
        "will be loaded anew (use ppl_model_copy for a model to change)\n"
        in section(result)
    )


def test_a_pruned_model_that_is_returned_is_measured_as_it_is(
    project: Project,
) -> None:
    project.baseline(
        """
        w50:
          gates:
            wanda/tiny:16: {token_perplexity: {}}
        """,
        w50="ppl:8",
    )
    project.test(
        """
        import math

        @pytest.mark.ppl("wanda")
        def test_prune(ppl_model):
            ppl_model.weight.data.fill_(-math.log(9))
            return ppl_model

        def test_after(ppl_model, ppl_guard):
            (verdict,) = ppl_guard.check(ppl_model, "wanda")
            assert verdict.measured == pytest.approx(8)
        """
    )
    result = project.run_apart("test_it.py", *project.give(w50="ppl:8"))
    result.assert_outcomes(failed=1, passed=1)
    assert project.loads() == ["llama/w50 after 0", "llama/w50 after 0"]
