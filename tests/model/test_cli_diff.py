"""``pplguard diff`` as a user runs it: real processes on real files."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from pytest_pplguard.checkpoints.locate import DEMO
from tests.model.commands import pplguard
from tests.model.tiny import save_tiny

Weights = dict[str, torch.Tensor]
DOCS = (Path(__file__).parents[2] / "docs" / "diff.md").read_text(encoding="utf-8")
Q, UP = "self_attn.q_proj", "mlp.up_proj"


def at(layer: int, kind: str) -> str:
    return f"model.layers.{layer}.{kind}.weight"


def copy(path: Path, change: Callable[[Weights], Any]) -> Weights:
    """A copy of the pruned demo with changed weights; returns those of the demo."""
    shutil.copytree(DEMO / "wanda-50", path)
    weights = load_file(path / "model.safetensors")
    before = {name: values.clone() for name, values in weights.items()}
    change(weights)
    save_file(weights, path / "model.safetensors")
    return before


def test_the_demos_two_checkpoints(tmp_path: Path) -> None:
    done = pplguard("diff", "demo/wanda-50", "demo/dense", cwd=tmp_path)
    pruned = load_file(DEMO / "wanda-50" / "model.safetensors")
    zeros = sum(int((w == 0).sum()) for name, w in pruned.items() if "proj" in name)
    assert (done.returncode, done.stderr) == (1, "")
    assert f"$ pplguard diff demo/wanda-50 demo/dense\n{done.stdout}```" in DOCS
    assert done.stdout == (
        "demo/wanda-50 -> demo/dense\n"
        "  all 28 linear weights: mask lost, 50.0 % -> 0.0 % "
        f"(the dense checkpoint, or mixed with it?); {zeros:,} zeros lost, no other "
        "weight moved\n"
        "  all other weights (10 tensors), the config and the tokenizer are the same\n"
    )
    same = pplguard("diff", "demo/dense", "demo/dense", cwd=tmp_path)
    assert (same.returncode, same.stdout) == (
        0,
        "demo/dense -> demo/dense\n"
        "  weights, config and tokenizer are those of demo/dense to the bit: look at "
        "the environment (dtype, device, versions, attention)\n",
    )


def test_defects_are_named_and_counted(tmp_path: Path) -> None:
    def change(weights: Weights) -> None:
        weights[at(0, "mlp.down_proj")][1, 2] = 6e4
        weights[at(1, Q)][32:64] = 0
        weights[at(1, UP)][5] *= 3
        weights[at(2, UP)].view(torch.int16)[3, 7] ^= 1 << 9
        weights[at(3, "self_attn.v_proj")][0, 0] = float("nan")
        weights[at(3, Q)] *= -1
        del weights["model.norm.weight"]
        one, other = at(3, "mlp.gate_proj"), at(2, "mlp.gate_proj")
        weights[one], weights[other] = weights[other], weights[one]

    before = copy(tmp_path / "m", change)
    settings = json.loads((tmp_path / "m" / "config.json").read_text())
    settings["rope_parameters"]["rope_theta"] = 500000.0
    (tmp_path / "m" / "config.json").write_text(json.dumps(settings))
    done = pplguard("diff", "demo/wanda-50", "m", "--json", "x.json", cwd=tmp_path)

    down, row = before[at(0, "mlp.down_proj")], before[at(1, UP)][5]
    q, head = before[at(3, Q)], before[at(1, Q)][32:64]
    up, flipped = before[at(1, UP)], before[at(1, UP)].clone()
    flipped[5] *= 3
    assert before[at(2, UP)][3, 7] == 0
    assert down[1, 2] == 0
    peak = down.abs().max()
    assert flipped.abs().max() > 1.2 * up.abs().max()
    zeros = int((before[at(2, UP)] == 0).sum())
    ratio = float(flipped.float().norm() / up.float().norm())
    share = (
        100 * (float((before[at(1, Q)] == 0).sum()) + int((head != 0).sum())) / 16384
    )
    expected = [
        "layer 0, mlp.down_proj: one weight is 6e+04 in magnitude, the largest was "
        f"{peak:.2g}; 1 zero lost at [1, 2], no other weight moved",
        "layer 3, self_attn.v_proj: 1 weight is NaN or infinite at [0, 0]",
        "model.norm.weight: gone",
        "layers 2 and 3 are swapped: mlp.gate_proj only",
        "config: rope_theta 10000.0 -> 500000.0",
        f"layer 1, self_attn.q_proj: more zeros, 50.0 % -> {share:.1f} %; "
        f"{int((head != 0).sum()):,} zeros gained in rows 32-63 (head 1), no other "
        "weight moved",
        f"layer 2, mlp.up_proj: zeros lost, {zeros:,} -> {zeros - 1:,}; "
        "1 zero lost at [3, 7], no other weight moved",
        f"layer 1, mlp.up_proj: values moved, norm x{ratio:.4g}, largest "
        f"{up.abs().max():.3g} -> {flipped.abs().max():.3g}; "
        f"{int((row != 0).sum())} weights moved by up to {2 * row.abs().max():.3g} "
        "in row 5",
        "layer 3, self_attn.q_proj: values moved, norm x1 (scaled by -1?); "
        f"{int((q != 0).sum()):,} weights moved by up to {2 * q.abs().max():.3g}",
        "all other weights (29 tensors) and the tokenizer are the same",
    ]
    assert done.stdout.splitlines() == [
        "demo/wanda-50 -> m",
        *(f"  {line}" for line in expected),
    ]
    document = json.loads((tmp_path / "x.json").read_text())
    assert (document["one"], document["other"]) == ("demo/wanda-50", "m")
    assert (document["differs"], document["lines"]) == (True, expected)
    assert document["config"] == [
        {
            "name": "rope_theta",
            "before": 10000.0,
            "now": 500000.0,
            "decides": "yes",
        }
    ]
    kinds = {change["name"]: change["kind"] for change in document["changes"]}
    assert kinds[at(3, "self_attn.v_proj")] == "bad"
    assert len(kinds) == 9


def test_more_than_a_screen(tmp_path: Path) -> None:
    def change(weights: Weights) -> None:
        for number, name in enumerate(weights):
            weights[name] *= 1 + 0.1 * (number + 1)

    copy(tmp_path / "m", change)
    short = pplguard("diff", "demo/wanda-50", "m", cwd=tmp_path).stdout.splitlines()
    command = "pplguard diff demo/wanda-50 m --all"
    assert len(short) == 21
    full = pplguard(*command.split()[1:], cwd=tmp_path).stdout.splitlines()
    assert short[:-1] == full[:20]
    assert short[-1] == f"  and {len(full) - 20} more: {command}"
    only_json = pplguard("diff", "demo/wanda-50", "m", "--json", "-", cwd=tmp_path)
    assert json.loads(only_json.stdout)["lines"] == [line[2:] for line in full[1:]]


def test_a_recorded_baseline(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("The ship sailed at noon. " * 40)
    done = pplguard(
        "update", "demo/wanda-50", "--checkpoint", "mine/w50", "--base", "x",
        "--corpus", "mine=mine.txt", "--window", "32", "--limit", "1",
        "--method", "wanda", cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    same = pplguard("diff", "mine/w50", "demo/wanda-50", cwd=tmp_path)
    assert (same.returncode, same.stdout) == (
        0,
        "mine/w50 -> demo/wanda-50\n"
        "  weights, config and tokenizer are those of mine/w50 to the bit: look at "
        "the environment (dtype, device, versions, attention)\n",
    )

    def change(weights: Weights) -> None:
        weights[at(2, Q)] *= 1.25

    copy(tmp_path / "m", change)
    for baseline in ("mine/w50", "baselines/mine.yaml/w50"):
        done = pplguard("diff", baseline, "m", cwd=tmp_path)
        assert (done.returncode, done.stdout) == (
            1,
            f"{baseline} -> m\n"
            "  layer 2, self_attn.q_proj: values moved, norm x1.25 (scaled by 1.25?)\n"
            "  all other weights (37 tensors), the config and the tokenizer are the "
            "same\n",
        )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["demo/dense", "nope"],
            "nope does not exist (looked at {cwd}/nope). Give a folder, a .gguf file, "
            "demo/dense, demo/wanda-50, or a Hub id like org/name",
        ),
        (
            ["demo/dense", "x.gguf"],
            "one is a folder and the other is a GGUF file: their tensors have other "
            "names and other layouts; compare two of one kind",
        ),
        (["b/other", "demo/dense"], "baselines/b.yaml has no other; it has: w50"),
        (
            ["b/w50", "demo/dense"],
            "b/w50 has no recorded fingerprint (baselines/b.yaml): record it with "
            "`pplguard update MODEL --checkpoint b/w50`, or give the checkpoint itself",
        ),
        (
            ["demo/dense", "demo/dense", "--json", "no/x.json"],
            "--json: no/x.json cannot be written: [Errno 2] No such file or "
            "directory: 'no/x.json'",
        ),
    ],
)
def test_trouble_is_status_2(
    tmp_path: Path, arguments: list[str], message: str
) -> None:
    (tmp_path / "x.gguf").write_bytes(b"GGUF")
    (tmp_path / "baselines").mkdir()
    (tmp_path / "baselines" / "b.yaml").write_text(
        "schema: 1\nmodel: x\ncheckpoints:\n  w50: {}\n"
    )
    done = pplguard("diff", *arguments, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (
        2,
        f"pplguard: error: {message.format(cwd=tmp_path)}\n",
    )


def test_an_adapter_is_merged_and_its_settings_are_told(tmp_path: Path) -> None:
    import peft

    tiny = save_tiny(tmp_path / "tiny")
    config = peft.LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_pretrained(tiny)
        peft.get_peft_model(model, config).save_pretrained(tmp_path / "lora")
    done = pplguard("diff", "tiny", "lora+tiny", cwd=tmp_path)
    shown = done.stdout.splitlines()
    assert (done.returncode, shown[0]) == (1, "tiny -> lora+tiny")
    assert shown[1] == (
        "  config: an adapter is merged in (bias none, lora_alpha 8, peft_type LORA, "
        'r 2, target_modules ["q_proj"], base tiny)'
    )
    moved = [line for line in shown if "moved" in line]
    assert len(moved) == 1
    assert moved[0].startswith("  all 2 layers, self_attn.q_proj: values moved, norm x")
    assert (
        shown[-1] == "  all other weights (19 tensors) and the tokenizer are the same"
    )


def test_no_torch_is_imported_for_two_folders(tmp_path: Path) -> None:
    script = (
        "import sys\n"
        "from pytest_pplguard.cli.app import app\n"
        "try:\n    app(['diff', 'demo/dense', 'demo/wanda-50'])\n"
        "except SystemExit:\n    pass\n"
        "print('torch' in sys.modules, 'transformers' in sys.modules)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.splitlines()[-1] == "False False"
