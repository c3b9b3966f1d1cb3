"""Which gates are collected, selected and ordered; what is not ours is left alone."""

from __future__ import annotations

import pytest

from .project import Project

MANY = """
w50:
  gates:
    wanda/tiny:16: {token_perplexity: {}}
    lm-eval/wikitext+tiny:64: {word_perplexity: {}, byte_perplexity: {}}
dense:
  gates:
    wanda/tiny:16: {token_perplexity: {}}
"""
FILE = "baselines/llama.yaml"
W50_WANDA = f"{FILE}::w50::wanda/tiny:16::token_perplexity"
W50_WORD = f"{FILE}::w50::lm-eval/wikitext+tiny:64::word_perplexity"
W50_BYTE = f"{FILE}::w50::lm-eval/wikitext+tiny:64::byte_perplexity"
DENSE = f"{FILE}::dense::wanda/tiny:16::token_perplexity"


@pytest.fixture
def both(project: Project) -> list[str]:
    """Two checkpoints, both given."""
    project.baseline(MANY)
    return project.give(w50="ppl:8", dense="ppl:7")


def collected(result: pytest.RunResult) -> list[str]:
    return [line for line in result.stdout.lines if "::" in line]


def test_all_items_by_checkpoint_and_in_the_order_of_the_file(
    project: Project, both: list[str]
) -> None:
    result = project.run("--collect-only", "-q", *both)
    assert result.ret == 0
    assert collected(result) == [DENSE, W50_WANDA, W50_WORD, W50_BYTE]


@pytest.mark.parametrize(
    ("words", "items"),
    [
        ([f"{FILE}::w50"], [W50_WANDA, W50_WORD, W50_BYTE]),
        ([f"{FILE}::w50::lm-eval/wikitext+tiny:64"], [W50_WORD, W50_BYTE]),
        ([W50_BYTE], [W50_BYTE]),
        (["-k", "wanda"], [DENSE, W50_WANDA]),
        (["-k", "lm-eval/wikitext+tiny:64"], [W50_WORD, W50_BYTE]),
        (["-k", "w50 and not byte_perplexity"], [W50_WANDA, W50_WORD]),
        (["-m", "ppl"], [DENSE, W50_WANDA, W50_WORD, W50_BYTE]),
        (["-m", "not ppl"], []),
    ],
)
def test_selection(
    project: Project, both: list[str], words: list[str], items: list[str]
) -> None:
    result = project.run("--collect-only", "-q", *both, *words)
    assert collected(result) == items


def test_node_ids_run(project: Project, local_args: tuple[str, ...]) -> None:
    project.baseline(MANY, w50="ppl:8")
    result = project.run(W50_WORD, *project.give(w50="ppl:8"), *local_args)
    result.assert_outcomes(passed=1)


def test_testpaths_do_not_hide_the_gates(
    project: Project, plugin_args: tuple[str, ...]
) -> None:
    project.baseline(MANY, w50="ppl:8")
    project.ini("testpaths = tests")
    project.test("def test_mine():\n    pass\n", file="tests/test_mine.py")
    given = project.give(w50="ppl:8")
    result = project.run(*given, *plugin_args)
    result.assert_outcomes(passed=4, deselected=0 if "-n2" in plugin_args else 1)
    assert result.ret == 0


def test_a_typed_path_is_all_that_is_collected(
    project: Project, both: list[str]
) -> None:
    project.test("def test_mine():\n    pass\n", file="tests/test_mine.py")
    result = project.run("tests", *both)
    result.assert_outcomes(passed=1)
    assert result.ret == 1


def test_a_typed_file_outside_the_folder(project: Project) -> None:
    project.baseline(MANY, file="elsewhere/mine.yaml", w50="ppl:8")
    result = project.run("elsewhere/mine.yaml", "--ppl-model=mine/w50=ppl:8")
    result.assert_outcomes(passed=3, deselected=1)


def test_another_folder(project: Project) -> None:
    project.baseline(MANY, file="elsewhere/mine.yaml", w50="ppl:8")
    given = ["--ppl-model=mine/w50=ppl:8"]
    project.run("--ppl-baselines=x/../elsewhere", *given).assert_outcomes(
        passed=3, deselected=1
    )
    project.ini("ppl_baselines = elsewhere")
    project.run(*given).assert_outcomes(passed=3, deselected=1)


def test_other_yaml_is_left_alone(project: Project, both: list[str]) -> None:
    (project.path / "baselines" / "docker.yaml").write_text("services: {a: [}\n")
    (project.path / "baselines" / "deeper").mkdir()
    (project.path / "baselines" / "deeper" / "x.yaml").write_text("schema: 1\n")
    (project.path / "ci.yaml").write_text("jobs: {}\n")
    (project.path / "schema.yaml").write_text("schema: 1\ncheckpoints: {}\n")
    result = project.run("--collect-only", "-q", *both)
    assert len(collected(result)) == 4
    assert result.ret == 0


def test_all_yaml_is_ours_in_a_folder_that_was_named(
    project: Project, both: list[str]
) -> None:
    (project.path / "baselines" / "docker.yaml").write_text("services: {a: 1}\n")
    result = project.run("--ppl-baselines=baselines", *both)
    assert result.ret == pytest.ExitCode.INTERRUPTED
    result.assert_outcomes(errors=1)


@pytest.mark.parametrize("given", [True, False])
def test_a_malformed_file_is_a_collection_error(project: Project, given: bool) -> None:
    project.baseline(MANY)
    broken = project.path / "baselines" / "broken.yaml"
    broken.write_text("schema: 1\nmodel: x\ncheckpoints:\n  a: {}\n  a: {}\n")
    result = project.run(*(project.give(w50="ppl:8") if given else []))
    assert result.ret == pytest.ExitCode.INTERRUPTED
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["*broken.yaml:5: *"])
    result.stdout.no_fnmatch_line("*Traceback*")


def test_a_checkpoint_of_a_malformed_file(project: Project) -> None:
    project.baseline("a: {}\na: {}\n")
    result = project.run("--ppl-model=llama/a=ppl:8")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["ERROR: *llama.yaml:5: *"])
    # What follows from it would only hide it.
    result.stderr.no_fnmatch_line("*--ppl-model*")


def test_two_files_of_one_name(project: Project, both: list[str]) -> None:
    project.baseline(MANY, file="elsewhere/llama.yaml")
    result = project.run("elsewhere/llama.yaml", *both)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(
        [
            "ERROR: *baselines/llama.yaml and *elsewhere/llama.yaml would both name "
            "their checkpoints llama/...: rename one of the two, or give "
            "--ppl-baselines"
        ]
    )
    # Where no option is given, nobody looks before files are collected.
    result = project.run("elsewhere/llama.yaml", "-o", "ppl_corpus=")
    assert result.ret == pytest.ExitCode.INTERRUPTED
    result.assert_outcomes(errors=1)


def test_without_a_checkpoint_gates_are_deselected_with_one_line(
    project: Project, plugin_args: tuple[str, ...]
) -> None:
    project.baseline(MANY)
    project.test("def test_mine():\n    pass\n")
    result = project.run(*plugin_args)
    result.assert_outcomes(passed=1, deselected=0 if "-n2" in plugin_args else 4)
    assert result.ret == 0
    line = "pplguard: 4 gates deselected: no checkpoint given (--ppl-model)"
    assert result.stdout.lines.count(line) == 1


def test_gates_alone_without_a_checkpoint_are_no_tests(project: Project) -> None:
    project.baseline(MANY)
    result = project.run("baselines")
    assert result.ret == pytest.ExitCode.NO_TESTS_COLLECTED


def test_gates_that_are_required_fail_without_a_checkpoint(
    project: Project, local_args: tuple[str, ...]
) -> None:
    project.baseline(MANY)
    project.ini("ppl_require = true\ntestpaths = tests")
    project.test("def test_mine():\n    pass\n", file="tests/test_mine.py")
    result = project.run(*local_args)
    result.assert_outcomes(passed=1, errors=4)
    result.stdout.fnmatch_lines(
        [
            "  because      ppl_require is set, and no checkpoint was given: add "
            "--ppl-model llama/w50=PATH"
        ]
    )
