"""Details of the demo's gates: against evidence files, under xdist, cached, early."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

# As in tests/plugin/conftest.py: pytester forgets every module that a run imported.
import datasets  # noqa: F401
import lm_eval.evaluator
import lm_eval.tasks
import lm_eval.utils  # noqa: F401
import numpy
import pytest
import rich.progress  # noqa: F401
import torch
import transformers
from safetensors.numpy import load_file, save_file

import pytest_pplguard.items
import pytest_pplguard.lifetime
import pytest_pplguard.lm_eval_bridge
import pytest_pplguard.measure.results
import pytest_pplguard.plugin
import pytest_pplguard.session.setup
import pytest_pplguard.session.xdist  # noqa: F401
from pytest_pplguard.corpora import open_corpus
from pytest_pplguard.gates import scoring_order
from pytest_pplguard.measure.places import window_places
from pytest_pplguard.report import files, plain
from pytest_pplguard.values import Details, Key, Results
from tests.zygote import forked_workers

from .commands import run_pytest_anew

ROOT = Path(__file__).parents[2]
DEMO = ROOT / "pytest_pplguard" / "demo"
KEYS = ("wanda/demo:256", "lm-eval/wikitext+demo:256")
KL = "kl/demo:256:first16"
CHECKPOINTS = ("demo/dense", "demo/wanda-50")
UP = "model.layers.1.mlp.up_proj.weight"


@pytest.fixture(scope="module", autouse=True)
def _imported() -> None:
    """What transformers imports for a model, for the same reason as above."""
    transformers.AutoModelForCausalLM.from_pretrained(DEMO / "dense")
    transformers.AutoTokenizer.from_pretrained(DEMO / "dense")


class Page:
    """A project with the demo's baselines; its page holds what it is given."""

    def __init__(self, pytester: pytest.Pytester) -> None:
        self.pytester = pytester
        self.path = pytester.path
        (self.path / "pytest.ini").write_text(
            "[pytest]\naddopts = -p no:cacheprovider "
            "-o asyncio_default_fixture_loop_scope=function\n"
        )
        shutil.copytree(ROOT / "baselines/demo", self.path / "baselines/demo")
        shutil.copy(ROOT / "baselines/demo.yaml", self.path / "baselines")

    def run(self, *args: str, passes: bool = True) -> dict[str, Any]:
        with forked_workers(args):
            result = self.pytester.runpytest_inprocess("--ppl-report=page.html", *args)
        assert (result.ret == 0) is passes, result.stdout.str()
        details: dict[str, Any] = json.loads((self.path / "page.html").read_text())
        return details

    def evidence(self, checkpoint: str, key: str) -> dict[str, Any]:
        """What a baseline's evidence file says, read without this package."""
        slug = re.sub(r"[^\w.-]+", "-", key)
        (path,) = (self.path / "baselines" / checkpoint).glob(f"{slug}-*.json")
        evidence: dict[str, Any] = json.loads(path.read_text())
        assert evidence["key"] == key
        return evidence


@pytest.fixture
def page(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> Page:
    def html(results: Results, details: Details) -> str:
        return json.dumps(plain(details))

    monkeypatch.setitem(files._KINDS, ".html", html)
    monkeypatch.delenv("CI", raising=False)
    return Page(pytester)


def by_key(details: dict[str, Any]) -> dict[tuple[str, str], dict[str, Any]]:
    return {(one["checkpoint"], one["key"]): one for one in details["losses"]}


def without_time(details: dict[str, Any]) -> dict[str, Any]:
    """Workers share the cores, and are as quick as they are."""

    def timeless(one: dict[str, Any]) -> dict[str, Any]:
        return {name: value for name, value in one.items() if name != "seconds"}

    return {
        kind: sorted((timeless(one) for one in details[kind]), key=str)
        for kind in ("losses", "weights")
    }


def sums(windows: Sequence[dict[str, Any]], name: str) -> list[Any]:
    return [window[name] for window in windows]


def test_the_demo(page: Page) -> None:
    details = page.run("baselines/demo.yaml", "--ppl-model=demo")
    found = by_key(details)
    assert set(found) == {
        *((checkpoint, key) for checkpoint in CHECKPOINTS for key in KEYS),
        ("demo/wanda-50", KL),
    }
    for (checkpoint, key), loss in found.items():
        evidence = page.evidence(checkpoint, key)
        of = "kl_sum" if key == KL else "nll_sum"
        assert loss["of"] == of
        assert loss["baseline"] == sums(evidence["windows"], of)
        assert loss["measured"] == pytest.approx(loss["baseline"], rel=1e-4)
        assert loss["scored"] == sums(evidence["windows"], "scored")
        assert loss["windows"] == list(range(len(evidence["windows"])))
        assert loss["total"] == len(loss["places"]) == len(loss["windows"])
        assert loss["recorded"] == evidence["metrics"]
        assert loss["windows_digest"] == evidence["windows_digest"]
        assert loss["protocol"].items() >= evidence["protocol"].items() - {"reference"}
        assert loss["environment"]["torch"] == torch.__version__
        assert loss["baseline_environment"]["torch"] == "2.13.0+cpu"
        assert loss["seconds"] > 0
        assert (loss["cached"], loss["problem"]) == ("", "")
    places = found["demo/dense", KEYS[0]]["places"]
    text = (DEMO / "demo.txt").read_text(encoding="utf-8")
    lines = [line.strip() for line in text.splitlines()]
    assert {place["title"] for place in places} <= set(lines)
    assert len({place["page"] for place in places}) > 10
    assert [one["checkpoint"] for one in details["weights"]] == list(CHECKPOINTS)
    for weights in details["weights"]:
        _, _, name = weights["checkpoint"].partition("/")
        tensors = load_file(DEMO / name / "model.safetensors")
        assert len(weights["zeros"]) == 28
        for tensor, (zeros, size) in weights["zeros"].items():
            assert zeros == int((tensors[tensor] == 0).sum())
            assert size == tensors[tensor].size
        assert weights["recorded_zeros"] == weights["zeros"]
        assert weights["digest"] == weights["recorded_digest"] != ""
        assert (weights["changes"], weights["lines"], weights["problem"]) == (
            [],
            [],
            "",
        )

    workers = page.run("baselines/demo.yaml", "--ppl-model=demo", "-n2")
    assert without_time(workers) == without_time(details)


def damaged(folder: Path) -> Path:
    """The pruned demo, one matrix of it scaled by 4."""
    shutil.copytree(DEMO / "wanda-50", folder)
    tensors = load_file(folder / "model.safetensors")
    tensors[UP] *= 4
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def test_a_damaged_checkpoint_early(page: Page) -> None:
    folder = damaged(page.path / "bad")
    baseline = page.path / "baselines/demo.yaml"
    gates = re.sub(r"\n +relative: .*", "", baseline.read_text())
    baseline.write_text(gates.replace("rel: 0.005, drift: 0.002", "rel: 0.005"))
    details = page.run(
        "baselines/demo.yaml", f"--ppl-model=demo/wanda-50={folder}",
        "-k", KEYS[0], "--ppl-early", "--ppl-early-cap=1",
        passes=False,
    )  # fmt: skip
    (loss,) = details["losses"]
    evidence = page.evidence("demo/wanda-50", KEYS[0])
    order = scoring_order(
        evidence["windows_digest"], sums(evidence["windows"], "scored")
    )
    seen = len(loss["windows"])
    assert loss["windows"] == order[:seen]
    assert 0 < seen < loss["total"] == 64
    recorded = sums(evidence["windows"], "nll_sum")
    assert loss["baseline"] == [recorded[index] for index in order[:seen]]
    tokenizer = transformers.AutoTokenizer.from_pretrained(DEMO / "dense")
    corpus = open_corpus("demo", {})
    known = window_places(loss["windows"], tokenizer, corpus, Key.parse(KEYS[0]))
    assert loss["places"] == [plain(known[index]) for index in loss["windows"]]

    (weights,) = details["weights"]
    tensors = load_file(DEMO / "wanda-50" / "model.safetensors")
    norm = float(numpy.linalg.norm(tensors[UP].astype("f8")))
    (change,) = weights["changes"]
    assert change == {
        "name": UP,
        "kind": "values",
        "looks": "scaled",
        "size": tensors[UP].size,
        "before_zeros": 0.5,
        "zeros": 0.5,
        "before_norm": pytest.approx(norm, rel=1e-5),
        "norm": pytest.approx(4 * norm, rel=1e-5),
    }
    assert weights["lines"][0] == (
        "layer 1, mlp.up_proj: values moved, norm x4 (scaled by 4?)"
    )
    assert weights["digest"] != weights["recorded_digest"]


def test_nan_in_a_tensor(page: Page) -> None:
    folder = page.path / "bad"
    shutil.copytree(DEMO / "dense", folder)
    tensors = load_file(folder / "model.safetensors")
    tensors[UP][0, 0] = numpy.nan
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    details = page.run(
        "baselines/demo.yaml", f"--ppl-model=demo/dense={folder}", "-k", KEYS[0],
        passes=False,
    )  # fmt: skip
    (loss,), (weights,) = details["losses"], details["weights"]
    assert (loss["windows"], loss["measured"]) == ([0], [None])
    assert loss["places"][0]["title"] == "= Bilrminster ="
    assert loss["problem"] == "the loss of window 1 of 64 is nan"
    assert [change["kind"] for change in weights["changes"]] == ["bad"]


CONFTEST = """
import json, sys
from pytest_pplguard.report import files, plain

files._KINDS[".html"] = lambda results, details: json.dumps(
    {"modules": sorted(sys.modules), **plain(details)}
)
"""


def test_from_the_cache_without_a_model(page: Page) -> None:
    (page.path / "conftest.py").write_text(CONFTEST)
    command = (
        "pytest baselines/demo.yaml --ppl-model demo/dense "
        "--ppl-cache --ppl-cache-dir cache --ppl-report page.html"
    )
    runs = []
    for _ in range(2):
        done = run_pytest_anew(command, page.path)
        assert done.returncode == 0, done.stdout
        runs.append(json.loads((page.path / "page.html").read_text()))
    first, second = runs
    assert "transformers.models.llama.modeling_llama" in first["modules"]
    assert "transformers.models.llama.modeling_llama" not in second["modules"]
    for loss in second["losses"]:
        assert loss["cached"] != ""
        assert len(loss["places"]) == loss["total"]
        loss["cached"] = ""
    assert without_time(second) == without_time(first)
