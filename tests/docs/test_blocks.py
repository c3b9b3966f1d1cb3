"""How commands are found in a page, and which of them do not run."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from .blocks import PAGES, ROOT, Block, Command, blocks_of, matches, shell_blocks

NOT_RUN = {
    "CONTRIBUTING.md": [
        "it installs what is installed where this test runs",
        "these are the tests themselves",
        "it installs other versions than this test runs on",
    ],
    "README.md": [
        "CI runs this very line (.ci/run)",
        "CI runs this very line (.ci/run)",
    ],
    "docs/divergence.md": [
        "it trains and spoils twelve small models, which takes minutes; "
        "tests/unit/test_zoo_rules.py tests its rules"
    ],
    "docs/history.md": [
        "/srv is a runner's own; tests/unit/test_history_url.py tests such paths",
        "it needs an MLflow server; tests/model/test_history.py starts one",
    ],
    "docs/large-models.md": [
        "it needs several GPUs; tests/gpu/test_placement.py is about them",
        "it needs several GPUs; tests/gpu/test_placement.py is about them",
        "it needs several GPUs; tests/plugin/test_other_plugins.py fakes them",
    ],
    "docs/performance.md": [
        "it measures for an hour on a GPU; tests/unit/test_benchmarks.py tests its "
        "parts"
    ],
    "docs/plan.md": [
        "it fetches from the Hub; tests/docs/sandbox.py writes these configs"
    ],
    "docs/protocols.md": [
        "it needs the package of this page; tests/model/test_docs_protocols.py makes "
        "it and runs these lines"
    ],
    "docs/server.md": [
        "it needs a vLLM; tests/model/test_server_commands.py runs these options "
        "against a server of its own",
        "it needs a vLLM",
    ],
    "docs/ray.md": [
        "it needs a cluster; tests/model/cluster runs such lines on one of two nodes",
        "it is for the nodes of a cluster",
        "it is for the nodes of a cluster",
        "it is for a Slurm cluster",
        "it is for a Kubernetes cluster",
        "it is for a Kubernetes cluster",
        "it is for a Kubernetes cluster",
    ],
    "docs/smollm2.md": [
        "it makes 2 GB of checkpoints; tests/model/test_smollm2.py runs the script's "
        "steps",
        "it needs these checkpoints and a quarter of an hour; "
        "tests/model/test_smollm2.py measures a part",
    ],
    "docs/start.md": ["installing is the first step of CI (.ci/run)"],
    "docs/tasks.md": [
        "lm-eval fetches the data of these tasks from the Hub; "
        "tests/model/test_tasks_run.py runs tasks on local data"
    ],
    "docs/two-methods.md": [
        "it needs SmolLM2-135M and half an hour on a CPU; "
        "tests/model/test_cli_explain.py runs it on the demo"
    ],
}
"""Every block that is not run, by page, with its reason: nothing else may be."""

NOT_COMPARED = {
    "docs/doctor.md": ["what is shown is of SmolLM2-135M, spoilt by hand"],
    "docs/plan.md": ["the time and the free memory are another machine's"],
}
"""Every block whose output is not compared."""


def said(word: str) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for page in PAGES:
        for block in shell_blocks(page):
            reason = block.says(word)
            if reason is not None:
                found.setdefault(block.page, []).append(reason)
    return found


def test_what_does_not_run_is_known() -> None:
    assert said("not run") == NOT_RUN


def test_output_that_is_not_compared_is_known() -> None:
    assert said("not compared") == NOT_COMPARED


def test_what_a_reason_names_is_there() -> None:
    for reasons in NOT_RUN.values():
        for name in re.findall(r"[\w./]+\.py|\.ci/run", "\n".join(reasons)):
            assert (ROOT / name).is_file(), name


def test_every_comment_before_a_block_is_understood() -> None:
    known = ("not run: ", "not compared: ", "exit: ", "in a checkout")
    marks = ("main-command", "test-command")  # what .ci/run looks for
    for page in PAGES:
        for block in shell_blocks(page):
            for comment in block.comments:
                assert comment in marks or comment.startswith(known), block.place


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_no_command_stands_outside_of_a_block_that_runs(page: Path) -> None:
    """Indented lines are code too, and a block without a language is not looked at."""
    text = page.read_text(encoding="utf-8")
    for block in blocks_of(page):
        assert block.language, block.place
        if block.language == "text":
            assert not re.search(r"^\$ ", block.text, re.M), block.place
        text = text.replace(block.text, "")
    assert re.findall(r"^ {4}(?:pplguard|pytest|python) .*", text, re.M) == []


# ------------------------------------------------------------------------- the parser


def block(language: str, text: str, *comments: str) -> Block:
    return Block("page.md", 7, language, text, comments)


def test_commands_of_a_script() -> None:
    found = block("sh", "# first\na b \\\n  --c 'd e'  # why\n\nf\n").commands()
    assert found == [Command("a b --c 'd e'  # why"), Command("f")]


def test_commands_with_prompts_have_their_output() -> None:
    text = "$ a\none\n\ntwo\n$ b \\\n    c\n$ d\n...\n"
    assert block("console", text).commands() == [
        Command("a", 0, ("one", "", "two")),
        Command("b c"),
        Command("d", 0, ("...",)),
    ]
    assert block("console", text, "not compared: why").commands()[0] == Command("a")
    with pytest.raises(ValueError, match=r"page.md:7: output before the first command"):
        block("console", "one\n$ a\n").commands()


def test_statuses() -> None:
    assert [c.status for c in block("sh", "a\nb\n", "exit: 1").commands()] == [1, 1]
    assert [c.status for c in block("sh", "a\nb\n", "exit: 1 0").commands()] == [1, 0]
    with pytest.raises(ValueError, match=r"page.md:7: 3 commands, other statuses"):
        block("sh", "a\nb\nc\n", "exit: 1 0").commands()


def test_blocks_of_a_page(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("tests.docs.blocks.ROOT", tmp_path)
    page = tmp_path / "page.md"
    page.write_text(
        "# A\n\n<!-- x -->\n<!-- not run: a: b -->\n```sh\na\n```\n- list\n\n"
        "  ```console\n  $ b\n    c\n  ```\n\n<!-- far -->\n\n```yaml\nd\n```\n"
    )
    first, second, third = blocks_of(page)
    assert first == Block("page.md", 5, "sh", "a\n", ("x", "not run: a: b"))
    assert first.says("not run") == "a: b"
    assert first.says("not") is None
    assert second == Block("page.md", 10, "console", "$ b\n  c\n")
    assert third == Block("page.md", 17, "yaml", "d\n")
    assert shell_blocks(page) == [first, second]


@pytest.mark.parametrize(
    ("shown", "printed", "equal"),
    [
        ("a\nb", "a\nb\n\n", True),
        ("a\nb", "a  \nb", True),
        ("a\n...\nc", "a\nb\nb\nc", True),
        ("a\n...\nc", "a\nc", True),
        ("...\nb\n...", "a\nb", True),
        ("a.c", "abc", False),
        ("a\n...\nc", "a\nc\nd", False),
        ("a\nb", "a\n\nb", False),
        ("b\n...", "a\nb\nc", False),
    ],
)
def test_what_dots_stand_for(shown: str, printed: str, equal: bool) -> None:
    assert matches(tuple(shown.splitlines()), printed.splitlines()) is equal
