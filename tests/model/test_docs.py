"""README and docs say what is: outputs, options and commands are held to the code."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from pytest_pplguard.gates import DEFAULT_MEASURED, DEFAULT_PUBLISHED
from pytest_pplguard.values import Key, Outcome

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(ROOT.glob("docs/*.md"))]


def read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def test_the_readmes_summary_is_what_the_demo_prints(tmp_path: Path) -> None:
    command = re.search(r"&& (pytest baselines/demo\.yaml .*)\n", read("README.md"))
    assert command is not None
    done = subprocess.run(
        [sys.executable, "-m", *command[1].split(), "-p", "no:cacheprovider"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    printed = done.stdout[done.stdout.index("= perplexity =") :]
    shown = re.search(r"```text\n=+ perplexity =+\n(.*?)```", read("README.md"), re.S)
    assert shown is not None
    assert shown[1] in printed


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_leads_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text("utf-8")):
        assert (page.parent / target).exists(), target


def help_text(*command: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", *command],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    return done.stdout


def test_the_reference_has_every_option_and_ini_key_and_no_other() -> None:
    text = help_text("pytest", "--help")
    options = set(re.findall(r"--ppl-[a-z-]+[a-z]", text))
    keys = set(re.findall(r"^  (ppl_\w+)", text, re.M))
    reference = read("docs/reference.md")
    assert set(re.findall(r"^\| `(--ppl-[a-z-]+)", reference, re.M)) == options
    table = reference.partition("Paths on the command line")[0]
    assert set(re.findall(r"`(ppl_\w+)`", table)) == keys


def test_no_page_names_an_option_that_is_not_there() -> None:
    known = set(re.findall(r"--ppl-[a-z-]+[a-z]", help_text("pytest", "--help")))
    for page in PAGES:
        assert set(re.findall(r"--ppl-[a-z-]+[a-z]", page.read_text("utf-8"))) <= known


def test_the_reference_has_every_outcome() -> None:
    rows = re.findall(
        r"^\| `([a-z ]+)` \| (?:yes|no|only)", read("docs/reference.md"), re.M
    )
    assert sorted(rows) == sorted(Outcome)


def test_the_keys_in_the_docs_are_keys() -> None:
    text = read("docs/baseline-files.md")
    keys = re.findall(r"`((?:wanda|lm-eval)/[^`]+:\d[^`]*)`", text)
    assert len(keys) > 4
    for key in keys:
        Key.parse(key)


def test_the_default_tolerances_in_the_docs() -> None:
    assert (
        f"the default: `rel: {DEFAULT_MEASURED.rel}`, for a published value "
        f"`rel: {DEFAULT_PUBLISHED.rel}`"
    ) in read("docs/baseline-files.md")


def test_ci_runs_the_readmes_commands() -> None:
    readme = read("README.md")
    for name in ("test-command", "main-command"):
        assert re.search(rf"<!-- {name} -->\n```sh\n[^\n]+\n```", readme)
        assert f"$(commands {name})" in read(".ci/run")


def test_the_example_file_in_the_docs_is_yaml_of_schema_1() -> None:
    from pytest_pplguard.baselines import parse_baseline

    block = re.search(r"```yaml\n(.*?)```", read("docs/baseline-files.md"), re.S)
    assert block is not None
    text = block[1].partition("    recorded:")[0] + "  dense: {}\n"
    assert yaml.safe_load(text)["schema"] == 1
    gates = parse_baseline(text, "llama-2-7b.yaml").checkpoints["wanda-50"].gates
    assert gates.relative is not None
    assert gates.sparsity is not None
