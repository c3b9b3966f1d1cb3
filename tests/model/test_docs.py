"""README and docs say what is: outputs, options and commands are held to the code."""

from __future__ import annotations

import fnmatch
import functools
import json
import math
import os
import re
import shlex
import subprocess
from pathlib import Path
from typing import Any, get_args, get_type_hints

import yaml

from pytest_pplguard.baselines import read_baseline
from pytest_pplguard.cli.demo import copy_demo
from pytest_pplguard.gates import DEFAULT_MEASURED, DEFAULT_PUBLISHED
from pytest_pplguard.protocols import Cut
from pytest_pplguard.report.csv import COLUMNS, figures
from pytest_pplguard.values import Key, Outcome, Results, Verdict
from tests.zygote import programs

from .commands import run, run_pytest

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *ROOT.glob("docs/**/*.md")]


def read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


REFERENCE = read("docs/reference.md")


def test_the_readmes_summary_is_what_the_demo_prints(tmp_path: Path) -> None:
    command = re.search(r"&& (pytest baselines/demo\.yaml .*)\n", read("README.md"))
    assert command is not None
    done = run_pytest(command[1], ROOT)
    assert done.returncode == 0, done.stdout
    printed = done.stdout[done.stdout.index("= perplexity =") :]
    shown = re.search(r"```text\n=+ perplexity =+\n(.*?)```", read("README.md"), re.S)
    assert shown is not None
    # Another number of threads moves the last digits, and the sign of nothing.
    assert shown[1] in printed


@functools.cache
def help_text(*command: str) -> str:
    done = run([str(programs() / "python"), "-m", *command], ROOT)
    assert done.returncode == 0, done.stderr
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


# ------------------------------------------------------------------------------ reports


def test_the_json_report_in_the_reference_has_every_field() -> None:
    block = re.search(r'```json\n(\{"schema": 1, "verdicts".*?)```', REFERENCE, re.S)
    assert block is not None
    document = json.loads(block[1])
    assert list(document) == ["schema", *Results.__struct_fields__]
    assert set(document["verdicts"][0]) == set(Verdict.__struct_fields__)


def test_the_reference_has_every_column_and_property() -> None:
    columns = REFERENCE.partition("`x.csv` has")[2].partition("Later versions")[0]
    assert [
        name
        for name in re.findall(r"`(\w+)`", columns)
        if name not in ("true", "false")
    ] == list(COLUMNS)
    fields = REFERENCE.partition("FIELD is")[2].partition("what is not known")[0]
    verdict = Verdict(
        "f/n", "k", "m", Outcome.WITHIN, True, 1.0, 1.0, 0.0, (1.0, 1.0),
        windows=1, seconds=1.0, first=1.0, published=1.0,
    )  # fmt: skip
    assert re.findall(r"`(\w+)`", fields) == ["outcome", *figures(verdict), "cached"]


# --------------------------------------------------------------- continuous integration


def yaml_block(name: str) -> Any:
    """The YAML behind a comment of docs/ci.md; everything in it a text."""
    block = re.search(rf"<!-- {name} -->\n```yaml\n(.*?)```", read("docs/ci.md"), re.S)
    assert block is not None
    return yaml.load(block[1], Loader=yaml.BaseLoader)


def pytest_line(commands: list[str]) -> list[str]:
    (line,) = [command for command in commands if command.startswith("pytest ")]
    return shlex.split(line)


def written(words: list[str]) -> list[str]:
    """The files that a command line of pytest has written."""
    return [
        word.partition("=")[2]
        for word in words
        if word.startswith(("--junitxml=", "--ppl-report="))
    ]


def steps_of(name: str) -> list[dict[str, Any]]:
    (job,) = yaml_block(name)["jobs"].values()
    steps: list[dict[str, Any]] = job["steps"]
    return steps


def test_the_workflow_for_github_holds_together() -> None:
    workflow = yaml_block("github-workflow")
    assert set(workflow) == {"name", "on", "permissions", "concurrency", "jobs"}
    assert set(workflow["on"]) == {"pull_request", "workflow_dispatch"}
    (job,) = workflow["jobs"].values()
    assert set(job) == {"name", "runs-on", "env", "steps"}
    for step in job["steps"]:
        assert len({"uses", "run"} & set(step)) == 1
        assert set(step) <= {"name", "uses", "run", "with", "if", "timeout-minutes"}
        assert re.fullmatch(r"actions/[\w/-]+@v\d+", step.get("uses", "actions/x@v1"))
    by_action = {step.get("uses", "").partition("@")[0]: step for step in job["steps"]}
    restore, save = (by_action[f"actions/cache/{way}"] for way in ("restore", "save"))
    assert save["with"]["key"] == restore["with"]["key"]
    assert save["with"]["path"] == restore["with"]["path"] == ".cache"
    assert job["env"]["XDG_CACHE_HOME"] == "${{ github.workspace }}/.cache"
    assert restore["with"]["key"].startswith(restore["with"]["restore-keys"])
    upload = by_action["actions/upload-artifact"]
    assert save["if"] == upload["if"] == "always()"
    files = written(pytest_line([step.get("run", "") for step in job["steps"]]))
    assert len(files) == 3
    assert fnmatch.filter(files, upload["with"]["path"]) == files


def test_the_workflow_with_the_action_gives_it_what_it_takes() -> None:
    *_, step = steps_of("github-action")
    assert step["uses"] == "OWNER/pytest-pplguard@TAG"
    action = yaml.safe_load(read("action.yml"))
    required = {name for name, spec in action["inputs"].items() if spec.get("required")}
    assert required <= set(step["with"]) <= set(action["inputs"])
    blocks = re.findall(r"```yaml\n( +- uses: OWNER.*?)```", read("docs/ci.md"), re.S)
    (example,) = (yaml.safe_load(block) for block in blocks)
    assert set(example[0]["with"]) <= set(action["inputs"])


def git(*words: str, cwd: Path) -> str:
    identity = ("-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=no")
    done = subprocess.run(
        ["git", *identity, *words], cwd=cwd, capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


def test_the_steps_of_the_review_work(tmp_path: Path) -> None:
    """On a branch that loosens a gate, checked out as for a pull request."""
    copy_demo(tmp_path)
    git("init", "--quiet", "--initial-branch=main", cwd=tmp_path)
    git("add", "--all", cwd=tmp_path)
    git("commit", "--quiet", "--message=first", cwd=tmp_path)
    base = git("rev-parse", "HEAD", cwd=tmp_path)
    file = tmp_path / "baselines" / "demo.yaml"
    text = file.read_text(encoding="utf-8")
    assert "max_ratio: 1.10" in text
    file.write_text(text.replace("max_ratio: 1.10", "max_ratio: 1.50"), "utf-8")
    git("commit", "--quiet", "--all", "--message=second", cwd=tmp_path)
    steps = {step.get("name"): step for step in steps_of("review-workflow")}
    assert steps["Review"]["env"] == {
        "BASE": "${{ github.event.pull_request.base.sha }}"
    }
    summary = tmp_path / "summary.md"
    summary.write_text("before\n", encoding="utf-8")
    for name in ("Check", "Review"):
        done = subprocess.run(
            ["bash", "-e", "-c", steps[name]["run"]],
            cwd=tmp_path,
            env=os.environ
            | {"BASE": base, "GITHUB_STEP_SUMMARY": str(summary)}
            | {"PATH": f"{programs()}{os.pathsep}{os.environ['PATH']}"}
            | {"PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
    written = summary.read_text(encoding="utf-8")
    assert written == "before\n" + (tmp_path / "review.md").read_text(encoding="utf-8")
    assert "Baselines: 1 gate loosened" in written
    line = "`max_ratio 1.5, to dense, key wanda/demo:256` | `baselines/demo.yaml:71` |"
    assert line in written
    assert "--body-file review.md" in steps["Comment"]["run"]


def test_the_job_for_gitlab_holds_together() -> None:
    ((name, job),) = yaml_block("gitlab-job").items()
    assert name == "perplexity"
    assert set(job) == {
        "image", "timeout", "rules", "variables", "cache", "script", "artifacts",
    }  # fmt: skip
    assert job["variables"]["XDG_CACHE_HOME"] == "$CI_PROJECT_DIR/.cache"
    assert job["cache"]["paths"] == [".cache/"]
    words = pytest_line(job["script"])
    artifacts = job["artifacts"]
    assert job["cache"]["when"] == artifacts["when"] == "always"
    assert [artifacts["reports"]["junit"], *artifacts["paths"]] == written(words)


def run_in_ci(
    words: list[str], folder: Path, **job: str
) -> subprocess.CompletedProcess[str]:
    environment = {"PYTHONPATH": str(ROOT), "CI": "true"} | job
    return run_pytest(shlex.join(words), folder, environment)


def test_the_command_of_the_workflow_for_github_works(tmp_path: Path) -> None:
    copy_demo(tmp_path)
    summary = tmp_path / "summary.md"
    words = pytest_line([step.get("run", "") for step in steps_of("github-workflow")])
    done = run_in_ci(
        words,
        tmp_path,
        GITHUB_ACTIONS="true",
        GITHUB_WORKSPACE=str(tmp_path),
        GITHUB_STEP_SUMMARY=str(summary),
    )
    assert done.returncode == 0, done.stdout
    assert all((tmp_path / file).stat().st_size for file in written(words))
    assert summary.read_text(encoding="utf-8").startswith(
        "## \N{WHITE HEAVY CHECK MARK} Perplexity: 11 within tolerance\n"
    )


def test_the_command_of_the_job_for_gitlab_is_accepted(tmp_path: Path) -> None:
    copy_demo(tmp_path)
    words = pytest_line(yaml_block("gitlab-job")["perplexity"]["script"])
    done = run_in_ci([*words, "--collect-only", "-q"], tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "baselines/demo.yaml::wanda-50::sparsity::fraction" in done.stdout


def test_the_table_of_smollm2_is_what_is_recorded() -> None:
    rows = re.findall(r"^\| `([\w-]+)` \|(.*)\|$", read("docs/smollm2.md"), re.M)
    entries = read_baseline(ROOT / "baselines/smollm2-135m.yaml").checkpoints
    assert {name for name, _ in rows} == entries.keys()
    for name, cells in rows:
        recorded = entries[name].recorded
        token = recorded["wanda/wikitext2:2048"].metrics["token_perplexity"]
        pages = recorded["lm-eval/wikitext:2048"].metrics
        word = pages["word_perplexity"]
        assert [cell.strip() for cell in cells.split("|")] == [
            f"{token:.4g}",
            f"{word:.4g}",
            f"{pages['byte_perplexity']:.4g}",
            f"+{100 * (word / token - 1):.0f} %",
            f"{math.log(word) / math.log(token):.3f}",
        ]


def test_the_docs_list_every_finding() -> None:
    sources = (ROOT / "pytest_pplguard/checkpoints/examine").glob("*.py")
    code = "\n".join(source.read_text(encoding="utf-8") for source in sources)
    used = set(re.findall(r'found\.\w+\(\s*f?"([a-z{}0-9-]+)"', code))
    assert "{name}-differs" in used
    used |= {"bos-differs", "eos-differs", "missing", "shape", "unexpected"}
    used |= {"incomplete", "no-tokenizer", "base"}
    used |= set(re.findall(r'yield "([a-z-]+)", partial', code_of_config()))
    rows = re.findall(r"^\| (`[a-z].*?) \| ", read("docs/doctor.md"), re.M)
    listed = {code for row in rows for code in re.findall(r"`([a-z0-9-]+)`", row)}
    assert used - {"{name}-differs"} == listed


def code_of_config() -> str:
    return read("pytest_pplguard/checkpoints/config.py")


def test_the_words_of_a_cut_in_the_docs() -> None:
    table = read("docs/protocols.md").partition("<!-- cut-words -->")[2]
    shown = {
        name: re.findall(r"`([^`]+)`", words)
        for name, words in re.findall(r"^\| `(\w+)` \| (.*) \|$", table, re.M)
    }
    hints = get_type_hints(Cut)
    known = {
        name: list(get_args(hints[name])) or ["False", "True"]
        for name in Cut.__struct_fields__
    }
    assert shown == known
    assert [words[0] for words in shown.values()] == [
        str(getattr(Cut(), name)) for name in shown
    ]
