"""``pplguard doctor`` as a user runs it: output, files, exit codes."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from pytest_pplguard.checkpoints import Examination, Finding
from pytest_pplguard.cli import doctor

from .commands import pplguard
from .tiny import save_tiny


def test_a_healthy_checkpoint(tmp_path: Path) -> None:
    done = pplguard(
        "doctor", "demo/wanda-50", "--window", "512", "--json", "out.json", "--heatmap",
        "zeros.svg", cwd=tmp_path,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == (
        "demo/wanda-50: LlamaForCausalLM, 4 layers\n"
        "  form     safetensors, one file\n"
        "  weights  1,066,112, F16\n"
        "  files    model.safetensors 2.14 MB, tokenizer.json 127 kB, config.json "
        "718 B, generation_config.json 195 B, 1 more 137 B\n"
        "\n"
        "healthy: nothing found\n"
        "\n"
        "zeros in %  q_proj  k_proj  v_proj  o_proj  gate_proj  up_proj  down_proj     "
        "all\n"
        "0-3           50.0    50.0    50.0    50.0       50.0     50.0       50.0    "
        "50.0\n"
        "all           50.0    50.0    50.0    50.0       50.0     50.0       50.0    "
        "50.0\n"
        "401,408 of 802,816 weights of the decoder layers are zero\n"
    )
    assert json.loads((tmp_path / "out.json").read_text())["healthy"] is True
    assert "gate_proj" in (tmp_path / "zeros.svg").read_text()


def test_an_ill_checkpoint(tmp_path: Path) -> None:
    path = save_tiny(tmp_path / "m", shard="40KB")
    shard = max(path.glob("*.safetensors"))
    shard.unlink()
    done = pplguard("doctor", "m", "--window", "4096", "--json", "-", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (1, "")
    document = json.loads(done.stdout)
    assert document["healthy"] is False
    assert document["findings"] == [
        {
            "grade": "error",
            "code": "missing-shard",
            "where": shard.name,
            "text": f"{tmp_path / 'm'} lacks the shard {shard.name} that "
            "model.safetensors.index.json names: copy or download it again",
        },
        {
            "grade": "error",
            "code": "window",
            "where": "config.json: max_position_embeddings",
            "text": "m: a window of 4096 tokens is longer than the 2048 positions that "
            "the model was made for: measure with --window 2048 or less",
        },
    ]


def test_nothing_there_and_wrong_arguments(tmp_path: Path) -> None:
    done = pplguard("doctor", "nothing", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("pplguard: error: nothing does not exist")
    done = pplguard("doctor", "demo/dense", "--heatmap", "a.jpg", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (
        2,
        "pplguard: error: --heatmap a.jpg: the suffix says what to write: .png, .svg, "
        ".pdf\n",
    )


def test_options_are_named_as_the_command_has_them(tmp_path: Path) -> None:
    path = save_tiny(tmp_path / "m")
    (path / "model.safetensors").rename(path / "pytorch_model.bin")
    done = pplguard("doctor", "m", cwd=tmp_path)
    assert done.returncode == 1
    assert "trust them with --allow-pickle (weights)" in done.stdout


def test_colours_on_a_terminal_and_every_character(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    finding = Finding("error", "adapter", "w", "m: pip install 'pytest-pplguard[peft]'")
    examined = Examination("m", "pickle", "", 0, 0, {}, {}, (finding,), None)
    monkeypatch.setattr(doctor, "examine", lambda spec, **options: examined)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    assert not doctor.doctor_model(
        "m",
        window=None,
        json_path=None,
        heatmap=None,
        everything=False,
        allow_pickle=False,
        trust_remote_code=False,
    )
    shown = capsys.readouterr().out
    assert (
        "\x1b[1;31merror   \x1b[0m pip install 'pytest-pplguard[peft]' (adapter)"
        in (shown)
    )
    assert "\x1b[1;31mill\x1b[0m: 1 error" in shown
