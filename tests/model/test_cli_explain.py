"""``pplguard explain`` as a user runs it: printed, written, drawn and refused."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from tests.model.commands import pplguard
from tests.model.test_cli import ROOT, options_of

DEMO = ("--corpus", "demo", "--window", "256")
DOCS = (ROOT / "docs/two-methods.md").read_text(encoding="utf-8")
REFERENCE = (ROOT / "docs/reference.md").read_text(encoding="utf-8")


def fields(value: Any) -> Any:
    """The names of a document, as deep as they are the same for every model."""
    if isinstance(value, dict):
        return {
            name: fields(item) for name, item in value.items() if name != "environment"
        }
    if isinstance(value, list):
        return fields(value[-1]) if value else None
    return None


@pytest.mark.parametrize("model", ["demo/dense", "demo/wanda-50"])
def test_the_ladders_in_the_docs_are_what_the_demo_prints(
    model: str, tmp_path: Path
) -> None:
    options = ("--json", "out.json", "--plot", "out.svg")
    done = pplguard("explain", model, *DEMO, *options, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    shown = re.search(rf"```text\n({model} on demo\n.*?)```", DOCS, re.S)
    assert shown is not None
    assert done.stdout == shown[1]
    document = json.loads((tmp_path / "out.json").read_text(encoding="utf-8"))
    block = re.search(r'```json\n(\{"schema": 1, "model": "demo/dense".*?)```',
                      REFERENCE, re.S)  # fmt: skip
    assert block is not None
    documented = json.loads(block[1])
    assert fields(document) == fields(documented)
    steps = document["steps"]
    assert steps[0]["log_change"] == 0
    assert sum(step["share"] for step in steps) == pytest.approx(1, abs=1e-9)
    assert sum(step["log_change"] for step in steps) == pytest.approx(
        document["gap"], abs=1e-9
    )
    svg = (tmp_path / "out.svg").read_text(encoding="utf-8")
    assert f"{document['to']['value']:.6g}" in svg


def test_json_to_stdout_and_only_some_pages(tmp_path: Path) -> None:
    done = pplguard(
        "explain", "demo/dense", *DEMO, "--limit", "2", "--from", "lm-eval", "--to",
        "wanda", "--json", "-", cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert (document["pages"], document["limit"]) == (2, 2)
    assert document["from"]["key"] == "lm-eval/wikitext+demo:256"
    assert document["conclusion"][-1] == (
        "Both ends are of the first 2 pages alone: they are not the numbers of the "
        "whole text."
    )


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (
            ["llama-2-7b/dense", "--baselines", str(ROOT / "baselines")],
            2,
            f"llama-2-7b/dense is a recorded baseline ({ROOT}/baselines/"
            "llama-2-7b.yaml): it holds numbers and no model, and every step of an "
            "explanation is measured. Give the checkpoint itself: pplguard explain "
            "PATH",
        ),
        (
            ["demo", "--baselines", str(ROOT / "baselines")],
            2,
            "demo is two models, and one is explained at a time: give demo/dense or "
            "demo/wanda-50",
        ),
        (
            ["nowhere", "--plot", "ladder.jpg"],
            2,
            "--plot ladder.jpg: the suffix says what to write: .png, .svg, .pdf",
        ),
        (
            ["demo/dense", "--corpus", "demo", "--window", "4096"],
            1,
            "key wanda/demo:4096: the window is longer than the 512 positions that the "
            "model was made for (max_position_embeddings); measure at a shorter window",
        ),
        (
            ["demo/dense", *DEMO, "--limit", "99"],
            1,
            "the text demo has 18 pages, fewer than the 99 asked for",
        ),
    ],
)
def test_what_cannot_be_explained(
    tmp_path: Path, arguments: list[str], status: int, message: str
) -> None:
    done = pplguard("explain", *arguments, cwd=tmp_path)
    assert done.returncode == status
    errors = [line for line in done.stderr.splitlines() if "error:" in line]
    assert errors == [f"pplguard: error: {message}"]
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


def test_explain_takes_what_measure_takes(tmp_path: Path) -> None:
    measure = options_of(pplguard("measure", "--help", cwd=tmp_path).stdout)
    explain = options_of(pplguard("explain", "--help", cwd=tmp_path).stdout)
    other = {"--method", "--reference", "--task", "--shots", "--include-path"}
    assert measure - explain == other
    assert explain - measure == {"--from", "--to", "--plot", "--baselines"}
