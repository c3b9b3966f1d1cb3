"""``pplguard measure`` and ``update`` with ``--method kl``: said and written."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest

from pytest_pplguard.baselines import read_baseline
from pytest_pplguard.cli import main
from pytest_pplguard.values import Tolerance
from tests.model.tiny import save_tiny

KEY = "kl/mine:32:first2"
OPTIONS = ("--corpus", "mine=mine.txt", "--window", "32", "--limit", "2")


class Command:
    """``pplguard`` in this process, in a folder with a text and tiny checkpoints."""

    def __init__(
        self,
        folder: Path,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        self.folder = folder
        self._patch = monkeypatch
        self._capsys = capsys
        monkeypatch.chdir(folder)
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")
        Path("mine.txt").write_text("The ship sailed at noon. " * 40, encoding="utf-8")

    def __call__(self, *words: str) -> tuple[int, list[str], list[str]]:
        """Exit code, lines of stdout, lines of stderr."""
        self._patch.setattr(sys, "argv", ["pplguard", *words])
        with pytest.raises(SystemExit) as caught:
            main()
        said = self._capsys.readouterr()
        code = caught.value.code
        assert code is None or isinstance(code, int)
        return code or 0, said.out.splitlines(), said.err.splitlines()


@pytest.fixture
def pplguard(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Command:
    return Command(tmp_path, monkeypatch, capsys)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["measure", "m", "--method", "kl"],
            "--method kl compares with another checkpoint: give --reference MODEL, "
            "usually the dense one",
        ),
        (
            ["measure", "m", "--reference", "r"],
            "--reference is for --method kl; add that, or leave it out",
        ),
        (
            ["update", "m", "--checkpoint", "x/m", "--base", "b", "--method", "kl"],
            "--method kl compares with another checkpoint: give --reference MODEL, "
            "usually the dense one",
        ),
        (
            ["update", "m", "--checkpoint", "x/m", "--base", "b", "--reference", "r"],
            "--reference is for --method kl; add that, or leave it out",
        ),
    ],
)
def test_a_reference_and_the_method_go_together(
    pplguard: Command, words: list[str], message: str
) -> None:
    assert pplguard(*words) == (2, [], [f"pplguard: error: {message}"])


def test_measure(pplguard: Command) -> None:
    save_tiny(Path("out/dense"))
    save_tiny(Path("out/w50"), seed=1)
    code, out, err = pplguard(
        "measure", "out/w50", "--method", "kl", "--reference", "out/dense", *OPTIONS,
        "--json", "out.json",
    )  # fmt: skip
    assert code == 0, err
    (measured,) = json.loads(Path("out.json").read_text())["measurements"]
    metrics = measured["metrics"]
    assert [re.sub(r"[\d.]+ s$", "T s", line) for line in out] == [
        "out/w50",
        f"  {KEY}: 2 windows, 62 tokens, T s",
        f"    kl_divergence        {metrics['kl_divergence']:>12.6g}",
        f"    top1_agreement       {metrics['top1_agreement']:>12.6g}",
    ]
    assert list(measured["evidence"][0]) == [
        "nll_sum", "scored", "page", "kl_sum", "top1", "reference_nll",
    ]  # fmt: skip
    code, _, err = pplguard(
        "measure", "out/w50", "--method", "kl", "--reference", "./out/dnse", *OPTIONS
    )
    assert code == 1
    assert err[-1].startswith("pplguard: error: ./out/dnse does not exist")


def test_the_reference_is_an_entry_of_the_file(pplguard: Command) -> None:
    """By its name, by its path, and by itself where the entry compares already."""
    save_tiny(Path("out/dense"))
    save_tiny(Path("out/w50"), seed=1)
    update = ("update", "out/w50", "--checkpoint", "tiny/w50")
    code, _, err = pplguard(
        "update", "out/dense", "--checkpoint", "tiny/dense", "--base", "me/tiny",
        "--method", "wanda", *OPTIONS,
    )  # fmt: skip
    assert code == 0, err
    found = []
    for given in (["dense"], ["tiny/dense"], ["out/dense"], None):
        reference = ["--reference", *given] if given else []
        code, out, err = pplguard(*update, "--method", "kl", *reference, *OPTIONS)
        assert code == 0, err
        entry = read_baseline(Path("baselines/tiny.yaml")).checkpoints["w50"]
        record = entry.recorded[KEY]
        assert record.evidence is not None
        evidence = json.loads((Path("baselines") / record.evidence).read_text())
        assert evidence["protocol"]["reference"] == "dense"
        found.append(record.metrics)
    assert found == found[:1] * 4
    assert entry.gates.metrics[KEY] == {
        "kl_divergence": Tolerance(rel=0.02),
        "top1_agreement": Tolerance(abs=0.005),
    }
    assert out[-2:] == [
        "recorded in baselines/tiny.yaml; review it, then gate with:",
        "  pytest baselines/tiny.yaml --ppl-model tiny/w50=out/w50 --ppl-model "
        "tiny/dense=out/dense --ppl-corpus mine=mine.txt",
    ]
    code, _, err = pplguard(*update, "--corpus", "mine=mine.txt")
    assert code == 0
    assert f"pplguard: measuring what tiny/w50 gates or records: {KEY}" in err


def test_what_is_left_to_write_is_said(pplguard: Command) -> None:
    for seed, name in enumerate(("dense", "other", "w50")):
        save_tiny(Path("out") / name, seed=seed)
    update = ("update", "out/w50", "--checkpoint", "tiny/w50", "--method", "kl")
    code, out, err = pplguard(
        *update, "--base", "me/tiny", "--reference", "out/dense", *OPTIONS
    )
    assert code == 0, err
    assert out[-2:] == [
        "  pytest baselines/tiny.yaml --ppl-model tiny/w50=out/w50 --ppl-model "
        "tiny/dense=out/dense --ppl-corpus mine=mine.txt",
        "first record the reference as another entry of baselines/tiny.yaml: pplguard "
        "update out/dense --checkpoint tiny/dense",
    ]
    _, _, err = pplguard("update", "out/w50", "--checkpoint", "tiny/w50")
    assert f"pplguard: left alone, they need --reference MODEL: {KEY}" in err
    file = Path("baselines/tiny.yaml")
    file.write_text(file.read_text() + "  other: {path: out/other}\n  bare: {}\n")
    code, out, err = pplguard(*update, "--reference", "other", *OPTIONS)
    assert code == 0, err
    assert out[-1] == "first write `reference: other` into the entry w50"
    assert pplguard(*update, "--reference", "bare", *OPTIONS)[2] == [
        "pplguard: error: --reference bare: that entry has no path; give where it is"
    ]
