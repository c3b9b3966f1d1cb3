"""Methods on the command line and in gates: windows and strides that nobody typed."""

from __future__ import annotations

import json
import shlex
import subprocess
from pathlib import Path

import pytest

from pytest_pplguard.baselines import read_baseline, read_evidence
from pytest_pplguard.protocols import PROTOCOLS
from pytest_pplguard.values import Key
from tests.model.commands import pplguard, run_pytest
from tests.model.tiny import save_tiny


def gates(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    given = ["--ppl-model", "tiny/dense=m", "--ppl-corpus", "mine=mine.txt"]
    return run_pytest(shlex.join(["pytest", *arguments, *given]), cwd)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_tiny(tmp_path / "m", max_position_embeddings=1024)
    text = "The ship sailed at noon. " * 700
    (tmp_path / "mine.txt").write_text(text, encoding="utf-8")
    return tmp_path


def options(*methods: str) -> list[str]:
    words = [word for method in methods for word in ("--method", method)]
    return [*words, "--corpus", "mine=mine.txt"]


def test_windows_and_strides_that_nobody_typed(folder: Path) -> None:
    methods = ("wanda", "strided", "llama-cpp", "lora-ft", "vllm", "lm-eval")
    done = pplguard(
        "measure", "m", *options(*methods), "--limit", "1", "--json", "-", cwd=folder
    )
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert [entry["key"] for entry in document["measurements"]] == [
        "wanda/mine:1024:first1",
        "strided/mine:1024:stride512:first1",
        "llama-cpp/mine:512:first1",
        "lora-ft/mine:1024:first1",
        "vllm/mine:1023:first1",
        "lm-eval/wikitext+mine:1024:first1",
    ]
    maximum = "window 1024 (the model's maximum is 1024; --window changes it)"
    usual = "(usual for this method; --window changes it)"
    said = [line for line in done.stderr.splitlines() if "changes it" in line]
    assert said == [
        f"pplguard: {maximum}",
        f"pplguard: llama-cpp: window 512 {usual}",
        f"pplguard: lora-ft: {maximum}",  # and not 2,048, as is usual
        f"pplguard: vllm: window 1023 {usual}",
        "pplguard: strided: stride 512 (--stride changes it)",
    ]


def test_a_stride_that_was_typed(folder: Path) -> None:
    done = pplguard(
        "measure", "m", *options("strided"), "--window", "64", "--stride", "48",
        "--limit", "3", "--json", "-", cwd=folder,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (entry,) = json.loads(done.stdout)["measurements"]
    assert entry["key"] == "strided/mine:64:stride48:first3"
    assert [score["scored"] for score in entry["evidence"]] == [63, 48, 48]
    assert entry["units"] == {"tokens": 63 + 47 + 47}
    assert "changes it" not in done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["measure", "m", "--stride", "8"],
            "--stride 8: wanda and lm-eval have no stride; give the method strided, or "
            "leave it out",
        ),
        (
            ["noise", "m", "--method", "vllm", "--stride", "8"],
            "--stride 8: vllm has no stride; give the method strided, or leave it out",
        ),
        (
            ["measure", "m", "--method", "strided", "--stride", "9", "--window", "8"],
            "key strided/wikitext2:8:stride9: with a stride longer than the window, "
            "tokens between windows are never read; take a stride of 1 to 8",
        ),
        (
            [
                *["update", "m", "--checkpoint", "a/b", "--base", "x"],
                *["--method", "llama-cpp", "--window", "2"],
            ],
            "key llama-cpp/wikitext2:2: the second half of a window of two tokens "
            "scores nothing",
        ),
    ],
)
def test_what_no_model_can_measure_is_refused_before_loading(
    folder: Path, arguments: list[str], message: str
) -> None:
    done = pplguard(*arguments, cwd=folder)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"pplguard: error: {message}\n"


@pytest.mark.parametrize(
    "arguments",
    [
        ["measure", "m"],
        ["measure", "m", "--method", "kl", "--reference", "m"],
        ["update", "m", "--checkpoint", "a/b", "--base", "x"],
        ["explain", "m"],
        ["noise", "m"],
    ],
    ids=lambda arguments: " ".join(arguments[::2]),
)
def test_without_the_text_nothing_is_loaded(folder: Path, arguments: list[str]) -> None:
    """Nobody typed a window, for which the model has to be asked."""
    done = pplguard(*arguments, "--corpus", "lost=lost.txt", cwd=folder)
    assert (done.returncode, done.stdout) == (1, "")
    # Loading is told on stderr.
    assert done.stderr == (
        "pplguard: error: corpus lost: lost.txt does not exist (looked at "
        f"{folder / 'lost.txt'})\n"
    )


def test_without_the_text_no_model_of_a_test_is_loaded(folder: Path) -> None:
    (folder / "baselines").mkdir(exist_ok=True)
    (folder / "baselines" / "tiny.yaml").write_text(
        "schema: 1\nmodel: tiny\ncheckpoints:\n  dense: {}\n"
    )
    (folder / "test_it.py").write_text(
        "import pytest\n\n"
        "@pytest.mark.ppl('wanda', window=64, checkpoint='tiny/dense')\n"
        "def test_it():\n    return 'm'\n"
    )
    (folder / "conftest.py").write_text(
        "def pytest_pplguard_load_model(checkpoint):\n"
        "    raise AssertionError('it is loaded')\n"
    )
    (folder / "bad.txt").write_bytes(b"\xff\xfe\xff")
    done = run_pytest(
        "pytest test_it.py --ppl-model tiny/dense=m --ppl-corpus wikitext2=bad.txt",
        folder,
    )
    assert done.returncode == 1
    assert "bad.txt is not UTF-8" in done.stdout, done.stdout
    assert "it is loaded" not in done.stdout


def test_recorded_gated_and_asked_for_by_a_marker(folder: Path) -> None:
    methods = ("strided", "llama-cpp", "lora-ft", "gptq", "vllm")
    done = pplguard(
        "update", "m", "--checkpoint", "tiny/dense", "--base", "tiny",
        *options(*methods), "--window", "64", "--limit", "4", cwd=folder,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    path = folder / "baselines" / "tiny.yaml"
    recorded = read_baseline(path).checkpoints["dense"].recorded
    assert set(recorded) == {
        "strided/mine:64:stride32:first4",
        *(f"{method}/mine:64:first4" for method in methods if method != "strided"),
    }
    for key, entry in recorded.items():
        evidence = read_evidence(path.parent, entry, where=key)
        protocol = PROTOCOLS[Key.parse(key).method]
        again = protocol.recompute(evidence.windows, entry.units)
        assert again == pytest.approx(entry.metrics, rel=1e-12), key

    (folder / "test_it.py").write_text(
        "import pytest\n\n"
        "@pytest.mark.ppl('strided', 'vllm', checkpoint='tiny/dense')\n"
        "def test_it():\n    pass\n"
    )
    done = gates("baselines", "test_it.py", cwd=folder)
    assert done.returncode == 0, done.stdout
    assert "7 within tolerance" in done.stdout

    # A number that was edited is found out, whatever the method's mean.
    value = recorded["strided/mine:64:stride32:first4"].metrics["token_perplexity"]
    text = path.read_text(encoding="utf-8")
    path.write_text(text.replace(repr(value), repr(value * 1.0001)), encoding="utf-8")
    done = gates("baselines", "-k", "strided", cwd=folder)
    assert done.returncode == 1
    assert "a recorded value is never edited by hand" in done.stdout


def test_noise_of_another_method(folder: Path) -> None:
    done = pplguard(
        "noise", "m", "-n", "1", *options("strided"), "--window", "64", "--limit", "2",
        "--json", "-", cwd=folder,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (entry,) = json.loads(done.stdout)["noise"]
    assert entry["key"] == "strided/mine:64:stride32:first2"
    assert "pplguard: strided: stride 32 (--stride changes it)\n" in done.stderr


def test_files_that_are_replaced_in_mid_run_are_an_error(folder: Path) -> None:
    """Else a gate of the old weights and a number of the new ones could both pass."""
    done = pplguard(
        "update", "m", "--checkpoint", "tiny/dense", "--base", "me/tiny", "--method",
        "wanda", "--corpus", "mine=mine.txt", "--window", "64", "--limit", "4",
        cwd=folder,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    file = folder / "baselines" / "tiny.yaml"
    text = file.read_text(encoding="utf-8")
    file.write_text(text.replace("    gates:\n", "    gates:\n      weights: same\n"))
    save_tiny(folder / "other", max_position_embeddings=1024, seed=1)
    (folder / "conftest.py").write_text(
        "import os\n"
        "def pytest_runtest_teardown(item):\n"
        "    if os.path.exists('other'):\n"
        "        os.replace('other/model.safetensors', 'm/model.safetensors')\n"
        "        os.rename('other', 'used')\n"
    )
    done = gates("baselines/tiny.yaml", cwd=folder)
    assert done.returncode == 1, done.stdout
    assert "1 error, 1 within tolerance" in done.stdout, done.stdout
    assert (
        "m: its files were replaced during this run: run again, so that its numbers "
        "and its weights are of one checkpoint"
    ) in " ".join(done.stdout.split()), done.stdout
