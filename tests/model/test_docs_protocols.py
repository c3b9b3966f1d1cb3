"""A method from outside, added exactly as ``docs/protocols.md`` says."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from pytest_pplguard.baselines import read_baseline
from pytest_pplguard.corpora import open_corpus
from pytest_pplguard.corpora.corpus import Corpus
from pytest_pplguard.protocols import _OWN as OWN_METHODS
from tests.zygote import programs

from .commands import run as run_command

ROOT = Path(__file__).parents[2]
DEMO = ROOT / "pytest_pplguard" / "demo" / "dense"
PAGE = (ROOT / "docs" / "protocols.md").read_text(encoding="utf-8")
OWN = PAGE[PAGE.index("## Add your own") :]


def block(language: str) -> str:
    found = re.findall(rf"```{language}\n(.*?)```", OWN, re.S)
    assert len(found) == 1, language
    return str(found[0])


def install(site: Path, code: str, project: str) -> None:
    """What pip would put into ``site`` for a package of one module."""
    settings = tomllib.loads(project)
    about = settings["project"]
    (module,) = settings["tool"]["setuptools"]["py-modules"]
    folder = site / f"{about['name'].replace('-', '_')}-{about['version']}.dist-info"
    folder.mkdir(parents=True)
    (site / f"{module}.py").write_text(code, encoding="utf-8")
    (folder / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: {about['name']}\nVersion: {about['version']}\n"
    )
    lines = [
        line
        for group, points in about["entry-points"].items()
        for line in [f"[{group}]", *(f"{k} = {v}" for k, v in points.items())]
    ]
    (folder / "entry_points.txt").write_text("\n".join(lines) + "\n")


@pytest.fixture
def site(tmp_path: Path) -> Path:
    folder = tmp_path / "site"
    install(folder, block("python"), block("toml"))
    return folder


def run(words: list[str], *, site: Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [str(programs() / words[0]), *words[1:]]
    if words[0] == "pytest":
        command = [str(programs() / "python"), "-m", *words, "-p", "no:cacheprovider"]
    path = os.pathsep.join([str(site), os.environ.get("PYTHONPATH", str(ROOT))])
    return run_command(command, cwd, {"PYTHONPATH": path, "XDG_CACHE_HOME": str(cwd)})


def nll(model: Any, ids: list[int], first: int) -> float:
    """Of the tokens from ``first`` on, from full logits."""
    with torch.no_grad():
        logits = model(torch.tensor([ids])).logits[0]
    losses = torch.nn.functional.cross_entropy(
        logits[first - 1 : -1].double(), torch.tensor(ids[first:]), reduction="sum"
    )
    return float(losses)


def expected(corpus: Corpus, method: str) -> float:
    tokenizer = AutoTokenizer.from_pretrained(DEMO)
    if method == "halves":
        ids = tokenizer("\n\n".join(corpus.rows)).input_ids
        windows = [(ids[i * 64 : (i + 1) * 64], 33) for i in range(3)]
    else:
        windows = [(tokenizer(page).input_ids[:64], 1) for page in corpus.pages[:3]]
    model = AutoModelForCausalLM.from_pretrained(DEMO, dtype=torch.float32)
    total = sum(nll(model, ids, first) for ids, first in windows)
    scored = sum(len(ids) - first for ids, first in windows)
    return float(torch.exp(torch.tensor(total / scored)))


def test_the_example_measures_records_and_gates(site: Path, tmp_path: Path) -> None:
    measure, update, gate = block("sh").splitlines()
    corpus = open_corpus("demo", {})

    done = run([*shlex.split(measure), "--json", "out.json"], site=site, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    document = json.loads((tmp_path / "out.json").read_text(encoding="utf-8"))
    found = {
        entry["key"]: entry["metrics"]["token_perplexity"]
        for entry in document["measurements"]
    }
    assert found == {
        "halves/demo:64:first3": pytest.approx(expected(corpus, "halves"), rel=1e-5),
        "openings/demo:64:first3": pytest.approx(
            expected(corpus, "openings"), rel=1e-5
        ),
    }

    done = run(shlex.split(update), site=site, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    baseline = read_baseline(tmp_path / "baselines" / "mine.yaml")
    recorded = baseline.checkpoints["dense"].recorded
    assert set(recorded) == {"halves/demo:64:first3"}

    done = run(shlex.split(gate), site=site, cwd=tmp_path)
    assert done.returncode == 0, done.stdout
    assert "1 within tolerance" in done.stdout

    # Without the package the gate is an error, which lists what there is.
    done = run(shlex.split(gate), site=tmp_path / "empty", cwd=tmp_path)
    assert done.returncode == 1
    assert (
        "unknown method 'halves': this version measures wanda, lm-eval, kl, strided, "
        "llama-cpp, lora-ft, gptq and vllm\n"
    ) in done.stdout


def test_a_method_that_is_no_cut_gates_too(site: Path, tmp_path: Path) -> None:
    _, update, gate = block("sh").splitlines()
    words = shlex.split(update.replace("--method halves", "--method openings"))
    done = run(words, site=site, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    path = tmp_path / "baselines" / "mine.yaml"
    done = run(shlex.split(gate), site=site, cwd=tmp_path)
    assert done.returncode == 0, done.stdout
    key = "openings/demo:64:first3"
    value = read_baseline(path).checkpoints["dense"].recorded[key].metrics
    # A model of which the number is another fails the gate.
    pruned = gate.replace("=demo/dense", "=demo/wanda-50")
    done = run(shlex.split(pruned), site=site, cwd=tmp_path)
    assert done.returncode == 1
    assert f"baseline     {value['token_perplexity']!r} (measured)" in done.stdout


def test_names_are_listed_without_an_import(site: Path, tmp_path: Path) -> None:
    (site / "ppl_methods.py").write_text("raise SystemExit('imported')\n")
    done = run(
        ["pplguard", "measure", "demo/dense", "--method", "havles"],
        site=site,
        cwd=tmp_path,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        "pplguard: error: unknown method 'havles' (did you mean 'halves'?): this "
        "version measures wanda, lm-eval, kl, strided, llama-cpp, lora-ft, gptq, vllm, "
        "halves and openings\n"
    )


def test_the_page_has_every_method() -> None:
    tables = PAGE.partition("## strided")[0].split("What they do differently")
    own = [protocol.name for protocol in OWN_METHODS]
    listed = [set(re.findall(r"^\| `([a-z-]+)` \|", part, re.M)) for part in tables]
    assert listed == [set(own), set(own) - {"kl"}]
    assert set(re.findall(r"`([a-z-]+)/wikitext2?:", tables[0])) == set(own)
