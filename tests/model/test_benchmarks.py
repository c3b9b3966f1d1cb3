"""The benchmark compares what is equal, and counts what is there; nothing is timed."""

from __future__ import annotations

import json
import signal
import sys
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.models import make_model
from benchmarks.scoring_process import check_equal, operations
from benchmarks.variants import VARIANTS, work_of
from benchmarks.wanda_process import evaluate
from pytest_pplguard.corpora import open_corpus
from tests.model.commands import run

ROOT = Path(__file__).parents[2]
DEMO = ROOT / "pytest_pplguard" / "demo" / "dense"


def test_both_sides_of_a_pair_score_the_same_tokens() -> None:
    model = make_model("vocabulary=1000")
    work = work_of(model, 32, 3)
    losses = {name: make(model, 1)(work) for name, make in VARIANTS.items()}
    # By hand: Wanda's windows score all but the first token of each, lm-eval's all.
    with torch.no_grad():
        ids = torch.tensor([window.ids for window in work.windows])
        logits = model(ids).logits.double().log_softmax(-1)
        wanda = -logits[:, :-1].gather(-1, ids[:, 1:, None]).sum().item()
        text = torch.cat([torch.zeros(1, dtype=torch.long), ids.flatten()])
        read = text[:-1].reshape(3, 32)
        logits = model(read).logits.double().log_softmax(-1)
        lm_eval = -logits.gather(-1, text[1:].reshape(3, 32, 1)).sum().item()
    assert losses["ours"] == pytest.approx(wanda, rel=1e-6)
    assert losses["formula"] == pytest.approx(wanda, rel=1e-6)
    assert losses["pages"] == pytest.approx(lm_eval, rel=1e-6)
    assert losses["hflm"] == pytest.approx(lm_eval, rel=1e-6)


def test_batches_do_not_change_what_is_scored() -> None:
    model = make_model("vocabulary=1000")
    work = work_of(model, 32, 4)
    for make in VARIANTS.values():
        assert make(model, 2)(work) == pytest.approx(make(model, 1)(work), rel=1e-6)


def test_numbers_that_differ_end_the_benchmark() -> None:
    job = {"model": "demo", "window": 8, "dtype": "float32"}
    check_equal({"ours": 3.0, "formula": 3.000002}, ("ours", "formula"), job)
    with pytest.raises(
        SystemExit, match=r"ours gives 3\.0, formula 3\.00001: 3\.3e-06"
    ):
        check_equal({"ours": 3.0, "formula": 3.00001}, ("ours", "formula"), job)
    with pytest.raises(SystemExit):
        check_equal({"ours": float("nan"), "formula": 3}, ("ours", "formula"), job)


def test_operations_are_those_that_torch_counts() -> None:
    """torch counts the whole square of attention, and the head at all positions."""
    model = make_model("demo")
    window = 64
    with torch.no_grad(), FlopCounterMode(display=False) as counted:
        model.set_attn_implementation("eager")
        model(torch.zeros((1, window), dtype=torch.long))
    config = model.config
    width = config.hidden_size
    square = 4 * width * window**2 * config.num_hidden_layers
    causal = 4 * width * window * (window + 1) // 2 * config.num_hidden_layers
    last = 2 * config.vocab_size * config.hidden_size
    assert operations(model, window) == (
        counted.get_total_flops() - square + causal - last
    )


def test_the_first_original_gives_the_demos_number() -> None:
    """Windows of 512 of the start of the text, by the formula in float64."""
    model = make_model("demo")
    ids = torch.randint(0, 2048, (1, 300), generator=torch.manual_seed(1))
    windows = ids[:, :256].reshape(2, 128)
    with torch.no_grad():
        logits = model(windows).logits.double().log_softmax(-1)
    taken = logits[:, :-1].gather(-1, windows[:, 1:, None])
    assert evaluate(model, ids, 128) == pytest.approx(
        torch.exp(-taken.mean()).item(), rel=1e-6
    )


def test_the_first_original_runs_as_a_command(tmp_path: Path) -> None:
    rows = tmp_path / "rows.json"
    rows.write_text(json.dumps(open_corpus("demo", {}).rows))
    script = str(ROOT / "benchmarks" / "wanda_process.py")
    done = run([sys.executable, script, str(DEMO), str(rows), "256"], cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) == pytest.approx(2.9729405060117013, rel=1e-6)


def test_a_run_is_killed_after_so_many_windows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PPLGUARD_BENCHMARK_KILLED_AFTER", "5")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    command = [
        *(sys.executable, "-m", "pytest", str(ROOT / "baselines" / "demo.yaml")),
        *("--ppl-model=demo/dense", f"--ppl-journal={tmp_path}", "-k", "wanda"),
        *("-p", "benchmarks.killed_process", "-p", "no:cacheprovider"),
    ]
    done = run(command, cwd=tmp_path)
    assert done.returncode == -signal.SIGKILL, done.stdout + done.stderr
    journals = [file for file in tmp_path.iterdir() if file.suffix != ".lock"]
    assert journals != []
