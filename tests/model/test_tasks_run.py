"""Tasks of lm-eval on the command line and in gates: real processes, a tiny model."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from pytest_pplguard.baselines import read_baseline

from .commands import pplguard, run_pytest
from .local_tasks import stock_run, write_group, write_task
from .tiny import save_tiny

ROOT = Path(__file__).parents[2]
KEY = "lm-eval/piqa:256:shots1:first4"
OTHER_SEED = 1
"""Of weights that answer otherwise."""


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model, a task over local data, and a recorded baseline."""
    tmp_path = tmp_path_factory.mktemp("recorded")
    save_tiny(tmp_path / "out")
    write_task(tmp_path / "tasks", "piqa")
    done = pplguard(
        "update", "out", "--checkpoint", "tiny/dense", "--base", "org/tiny",
        "--task", "piqa", "--shots", "1", "--limit", "4", "--window", "256",
        "--include-path", "tasks", "--journal", "off", cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert (
        f"added the default gate {KEY}: "
        "{acc_norm: {sigma: 2.0, direction: no-worse}}\n"
    ) in done.stdout
    assert done.stdout.endswith(
        "recorded in baselines/tiny.yaml; review it, then gate with:\n"
        "  pytest baselines/tiny.yaml --ppl-model tiny/dense=out "
        "--ppl-include-path tasks\n"
    )
    return tmp_path


@pytest.fixture
def project(recorded: Path, tmp_path: Path) -> Path:
    """A copy of it for one test."""
    return shutil.copytree(recorded, tmp_path / "project")


def run(project: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    words = ["pytest", "--ppl-journal=off", "--ppl-model=tiny/dense=out", *arguments]
    return run_pytest(shlex.join(words), project, {"COLUMNS": "100"})


def write_gates(project: Path, gates: str) -> None:
    """Gates of the recorded key, in place of those that are there."""
    path = project / "baselines" / "tiny.yaml"
    before, recorded = path.read_text().split("    recorded:\n")
    before = re.sub(r"    gates:\n(      .*\n)*", "", before)
    block = f"    gates:\n      {KEY}: {gates}\n" if gates else ""
    path.write_text(f"{before}{block}    recorded:\n{recorded}")


def test_a_recorded_task_is_gated(project: Path) -> None:
    entry = read_baseline(project / "baselines" / "tiny.yaml").checkpoints["dense"]
    found = entry.recorded[KEY]
    stock = stock_of(project)
    assert found.metrics == pytest.approx(
        {"acc": stock["acc,none"], "acc_norm": stock["acc_norm,none"]}, rel=1e-9
    )
    assert found.units == {"documents": 4}
    assert found.windows == 8
    assert found.evidence is not None
    evidence = json.loads((project / "baselines" / found.evidence).read_text())
    assert [line["document"] for line in evidence["documents"]] == [0, 1, 2, 3]
    shown = pplguard("show", "tiny", cwd=project).stdout.splitlines()
    assert f"  {KEY} (8 answers, first recorded {found.first['date']})" in shown
    write_gates(project, "{acc_norm: {abs: 0.02}, acc: {abs: 0.02}}")
    done = run(project, "baselines", "--ppl-include-path", "tasks")
    assert "2 passed" in done.stdout, done.stdout


def stock_of(project: Path) -> dict[str, float]:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    result = stock_run(
        AutoModelForCausalLM.from_pretrained(project / "out"),
        AutoTokenizer.from_pretrained(project / "out"),
        project / "tasks",
        "piqa",
        window=256,
        shots=1,
        limit=4,
    )
    stock: dict[str, float] = result["results"]["piqa"]
    return stock


def test_the_marker_is_about_acc_norm(project: Path) -> None:
    (project / "pytest.ini").write_text("[pytest]\nppl_include_path = tasks\n")
    (project / "test_tasks.py").write_text(
        "import pytest\n\n"
        f'@pytest.mark.ppl("{KEY}", abs=0.02)\n'
        "def test_accuracy():\n"
        "    pass\n"
    )
    write_gates(project, "{acc: {abs: 0.02}}")
    done = run(project, "test_tasks.py")
    assert "1 passed" in done.stdout, done.stdout
    write_gates(project, "")
    done = run(project, "test_tasks.py", "--ppl-report", "report.json")
    assert "1 passed" in done.stdout, done.stdout
    (verdict,) = json.loads((project / "report.json").read_text())["verdicts"]
    assert verdict["metric"] == "acc_norm"
    assert verdict["outcome"] == "within"


def test_a_value_that_was_edited_is_no_measurement(project: Path) -> None:
    path = project / "baselines" / "tiny.yaml"
    text = path.read_text()
    edited = re.sub(r"(\n        acc_norm: )[\d.]+", r"\g<1>0.875", text, count=1)
    assert edited != text
    path.write_text(edited)
    write_gates(project, "{acc_norm: {abs: 0.9}}")
    done = run(project, "baselines", "--ppl-include-path", "tasks")
    assert "acc_norm 0.875 is recorded, but its evidence" in done.stdout
    assert done.returncode == 1


def test_a_metric_that_the_task_lacks(project: Path) -> None:
    write_gates(project, "{acc_nrom: {abs: 0.02}}")
    done = run(project, "baselines", "--ppl-include-path", "tasks")
    assert done.returncode == 1
    assert "it yields acc, acc_norm" in done.stdout
    done = run(project, "baselines", "--ppl-include-path", "tasks", "--ppl-update")
    assert done.returncode == 1
    assert (
        f"{KEY} has no metric acc_nrom (did you mean 'acc_norm'?); it yields acc, "
        "acc_norm" in done.stdout.replace("\n", " ")
    )


def test_a_task_that_fails_names_documents_and_no_windows(project: Path) -> None:
    save_tiny(project / "out", seed=OTHER_SEED)
    write_gates(project, "{acc_norm: {abs: 0.02}}")
    done = run(project, "baselines", "--ppl-include-path", "tasks", "-rN")
    assert done.returncode == 1
    shown = re.sub(r"in [\d.]+ s", "in T s", done.stdout)
    assert f"pplguard: tiny/dense {KEY}: 8 answers in T s\n" in shown
    assert "  documents    " in shown
    for word in ("window", "per token", "the text", "page"):
        assert word not in shown, shown


def test_an_include_path_that_is_not_there(project: Path) -> None:
    done = run(project, "--ppl-include-path", "gone")
    assert done.returncode == 4
    assert done.stderr == (
        f"ERROR: --ppl-include-path: {project / 'gone'} is no folder\n\n"
    )


def test_measure_prints_and_writes_what_a_task_has(tmp_path: Path) -> None:
    save_tiny(tmp_path / "out")
    write_task(tmp_path / "tasks", "piqa")
    write_task(tmp_path / "tasks", "boolq")
    write_group(tmp_path / "tasks", "mine", ["piqa", "boolq"], by_size=True)
    done = pplguard(
        "measure", "out", "--task", "mine", "--include-path", "tasks", "--window",
        "256", "--journal", "off", "--json", "out.json", cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (found,) = json.loads((tmp_path / "out.json").read_text())["measurements"]
    assert found["key"] == "lm-eval/mine:256"
    assert found["higher_is_better"] == ["acc"]
    assert len(found["documents"]) == 12
    accuracy, error = found["metrics"]["acc"], found["stderr"]["acc"]
    printed = re.sub(r"[\d.]+ s", "? s", done.stdout)
    assert printed == (
        "out\n"
        "  lm-eval/mine:256: 24 answers, 12 documents, ? s\n"
        f"    acc                  {accuracy:>12.6g}  +- {error:.6g}\n"
    )


def test_a_task_that_lm_eval_does_not_know(tmp_path: Path) -> None:
    import lm_eval

    save_tiny(tmp_path / "out")
    done = pplguard(
        "measure", "out", "--task", "helaswag", "--window", "64", cwd=tmp_path
    )
    assert done.returncode == 2
    said = done.stderr.splitlines()[-1]
    assert re.fullmatch(
        r"pplguard: error: key lm-eval/helaswag:64: lm-eval "
        + re.escape(lm_eval.__version__)
        + r" has no task or group 'helaswag' \(did you mean 'hellaswag'.*\?\); a YAML "
        r"of your own is found in the folder of --include-path, a text of your own is "
        r"lm-eval/wikitext\+helaswag:64",
        said,
    )


def test_shots_without_a_task(tmp_path: Path) -> None:
    done = pplguard("measure", "out", "--shots", "2", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr == (
        "pplguard: error: --shots is for tasks of lm-eval: add --task NAME\n"
    )


def test_the_yaml_in_the_docs_is_lm_evals_task(tmp_path: Path) -> None:
    """Taken out of the page, over PIQA's fields, by the page's own command."""
    text = (ROOT / "docs" / "tasks.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"```yaml\n# (tasks/piqa_local.yaml\n.*?)```", text, re.S)
    (command,) = re.findall(r"^pplguard (measure .*--include-path .*)$", text, re.M)
    for folder in ("tasks", "data"):
        (tmp_path / folder).mkdir()
    name, _, task = block.partition("\n")
    (tmp_path / name).write_text(task, encoding="utf-8")
    write_task(tmp_path / "stock", "piqa")
    for split, file in (("train", "piqa-train.jsonl"), ("test", "piqa.jsonl")):
        shutil.copy(tmp_path / f"stock/piqa-{split}.jsonl", tmp_path / "data" / file)
    save_tiny(tmp_path / "out/wanda-50")
    done = pplguard(
        *command.split(), "--window", "256", "--json", "out.json", cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    (found,) = json.loads((tmp_path / "out.json").read_text())["measurements"]
    stock = stock_run(
        AutoModelForCausalLM.from_pretrained(tmp_path / "out/wanda-50"),
        AutoTokenizer.from_pretrained(tmp_path / "out/wanda-50"),
        tmp_path / "stock",
        "piqa",
        window=256,
    )["results"]["piqa"]
    assert found["metrics"] == pytest.approx(
        {"acc": stock["acc,none"], "acc_norm": stock["acc_norm,none"]}, rel=1e-12
    )
