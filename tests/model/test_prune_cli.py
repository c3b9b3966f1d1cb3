"""``python -m scripts.prune``: what it saves, and what it says when it cannot."""

from __future__ import annotations

import hashlib
import json
import platform
import random
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file
from torch import Tensor

from pytest_pplguard.checkpoints import digest, load, locate, measure_sparsity
from scripts.prune.__main__ import main
from scripts.prune.calibration import Text, draw_samples, open_text

from .tiny import ARCHITECTURES, save_tiny

ROOT = Path(__file__).parents[2]
TEXT = ROOT / "LICENSE"
SMALL = ("--samples", "8", "--length", "64")
WANDA = ("--method", "wanda", *SMALL, "--calibration", str(TEXT))
MAGNITUDE = ("--method", "magnitude")
HALF = ("--sparsity", "0.5")
TOPICS = "\n\n".join(topics[name] for name in sorted(topics))


def weights(folder: Path) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for file in folder.glob("*.safetensors"):
        found |= load_file(file)
    return found


def in_blocks(name: str, tensor: Tensor) -> bool:
    return ".layers." in name and tensor.dim() == 2


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("dense") / "tiny-llama")


# ---------------------------------------------------------------------- what it saves


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_the_gate_accepts_what_is_saved(tmp_path: Path, arch: str) -> None:
    dense = save_tiny(tmp_path / "dense", arch, dtype="bfloat16", shard="20KB")
    out = tmp_path / "new" / "pruned"
    main([str(dense), str(out), *WANDA, *HALF])
    located = locate(str(out))
    assert load(located, device="cpu", dtype="float32").dtype == "float32"
    assert measure_sparsity(located).fraction == 0.5
    before, after = weights(dense), weights(out)
    assert before.keys() == after.keys()
    for name, values in after.items():
        assert values.dtype == torch.bfloat16
        stays = values != 0 if in_blocks(name, values) else ...
        assert torch.equal(values[stays], before[name][stays]), name


def test_files_beside_the_weights(tmp_path: Path) -> None:
    dense, out = tmp_path / "dense", tmp_path / "out"
    save_tiny(dense)
    (dense / "chat_template.jinja").write_text("{{ messages }}")
    (dense / "README.md").write_text("of the dense model")
    out.mkdir()
    main([str(dense), str(out), "--method", "wanda", *SMALL, *HALF])
    assert sorted(file.name for file in out.iterdir()) == [
        "chat_template.jinja",
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "pruning.json",
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    for name in ("chat_template.jinja", "tokenizer.json", "tokenizer_config.json"):
        assert (out / name).read_bytes() == (dense / name).read_bytes()
    assert (out / "model.safetensors").stat().st_mode & 0o777 == 0o644
    assert json.loads((out / "pruning.json").read_text()) == {
        "model": "dense",
        "digest": digest(locate(str(dense))),
        "method": "wanda",
        "sparsity": "0.5",
        "scope": "row",
        "calibration": {
            "text": "pydoc-topics",
            "digest": f"sha256:{hashlib.sha256(TOPICS.encode()).hexdigest()}",
            "samples": 8,
            "length": 64,
            "seed": 0,
        },
        "computed": {"dtype": "float32", "device": "cpu"},
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        },
    }


def test_magnitude_records_no_calibration(tmp_path: Path, llama: Path) -> None:
    out = tmp_path / "out"
    main([str(llama), str(out), *MAGNITUDE, "--pattern", "1:4"])
    record = json.loads((out / "pruning.json").read_text())
    assert list(record) == [
        "model", "digest", "method", "pattern", "computed", "versions",
    ]  # fmt: skip
    assert (record["method"], record["pattern"]) == ("magnitude", "1:4")
    assert measure_sparsity(locate(str(out))).fraction == 0.75


@pytest.mark.parametrize(
    ("options", "check"),
    [
        pytest.param(
            (*WANDA, "--pattern", "2:4"),
            lambda gone: (gone.view(-1, 4).sum(dim=1) == 2).all(),
            id="wanda-2:4",
        ),
        pytest.param(
            (*MAGNITUDE, "--pattern", "4:8"),
            lambda gone: (gone.view(-1, 8).sum(dim=1) == 4).all(),
            id="magnitude-4:8",
        ),
        pytest.param(
            (*WANDA, "--sparsity", "0.25"),
            lambda gone: (gone.sum(dim=1) * 4 == gone.shape[1]).all(),
            id="wanda-rows",
        ),
        pytest.param(
            (*WANDA, *HALF, "--scope", "layer"),
            lambda gone: gone.sum() * 2 == gone.numel() and uneven(gone),
            id="wanda-layer",
        ),
        pytest.param(
            (*MAGNITUDE, *HALF),
            lambda gone: gone.sum() * 2 == gone.numel() and uneven(gone),
            id="magnitude-layer",
        ),
        pytest.param(
            (*MAGNITUDE, *HALF, "--scope", "row"),
            lambda gone: (gone.sum(dim=1) * 2 == gone.shape[1]).all(),
            id="magnitude-rows",
        ),
    ],
)
def test_structure_of_what_is_saved(
    tmp_path: Path, llama: Path, options: tuple[str, ...], check: Callable[..., Any]
) -> None:
    out = tmp_path / "out"
    main([str(llama), str(out), *options])
    masks = [
        values == 0 for name, values in weights(out).items() if in_blocks(name, values)
    ]
    assert len(masks) == 14
    assert all(check(gone) for gone in masks)


def uneven(gone: Tensor) -> bool:
    return len(set(gone.sum(dim=1).tolist())) > 1


def test_pickles_are_pruned_if_allowed(tmp_path: Path) -> None:
    dense = save_tiny(tmp_path / "dense")
    torch.save(weights(dense), dense / "pytorch_model.bin")
    (dense / "model.safetensors").unlink()
    out = tmp_path / "out"
    main([str(dense), str(out), *MAGNITUDE, *HALF, "--allow-pickle"])
    assert measure_sparsity(locate(str(out))).fraction == 0.5


def test_in_a_process_of_its_own(tmp_path: Path, llama: Path) -> None:
    out = tmp_path / "out"
    command = [sys.executable, "-m", "scripts.prune", str(llama), str(out), *WANDA]
    done = subprocess.run(
        [*command, "--pattern", "2:4", "--seed", "3"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, f"saved {out}\n"), done.stderr
    said = re.sub(r"\d+ s\n", "SECONDS\n", done.stderr)
    assert said == "block 1/2 pruned, SECONDS\nblock 2/2 pruned, SECONDS\n"
    calibration = json.loads((out / "pruning.json").read_text())["calibration"]
    assert calibration == {
        "text": "LICENSE",
        "digest": f"sha256:{hashlib.sha256(TEXT.read_bytes()).hexdigest()}",
        "samples": 8,
        "length": 64,
        "seed": 3,
    }


# ------------------------------------------------------------------------- calibration


class Characters:
    """A tokenizer whose tokens are code points."""

    def __call__(self, text: str, *, verbose: bool) -> Any:
        return transformers.BatchEncoding({"input_ids": [ord(one) for one in text]})


def test_samples_are_drawn_like_wandas() -> None:
    text = "".join(map(chr, range(0x4E00, 0x4E00 + 300)))
    ids = torch.tensor([[ord(one) for one in text]])
    state = random.getstate()
    # get_wikitext2 of the Wanda code's lib/data.py
    random.seed(11)
    expected = []
    for _ in range(20):
        i = random.randint(0, ids.shape[1] - 32 - 1)
        expected.append(ids[:, i : i + 32])
    random.setstate(state)
    drawn = draw_samples(Text("t", text), Characters(), samples=20, length=32, seed=11)
    assert random.getstate() == state
    assert len(drawn) == 20
    for left, right in zip(drawn, expected, strict=True):
        assert torch.equal(left, right)


def test_pydoc_topics_are_the_standard_librarys() -> None:
    assert open_text("pydoc-topics") == Text("pydoc-topics", TOPICS)
    assert len(TOPICS) > 400_000


def test_the_seed_decides(tmp_path: Path, llama: Path) -> None:
    found = []
    for name, seed in (("a", "0"), ("b", "0"), ("c", "1")):
        main([str(llama), str(tmp_path / name), *WANDA, *HALF, "--seed", seed])
        found.append((tmp_path / name / "model.safetensors").read_bytes())
    assert found[0] == found[1] != found[2]


# -------------------------------------------------------------------------- bad input


def refused(capsys: pytest.CaptureFixture[str], *argv: object) -> str:
    with pytest.raises(SystemExit) as caught:
        main([str(argument) for argument in argv])
    printed = capsys.readouterr()
    assert printed.out == printed.err == ""
    return str(caught.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        pytest.param(WANDA, "give either --sparsity or --pattern", id="neither"),
        pytest.param(
            (*WANDA, *HALF, "--pattern", "2:4"),
            "give either --sparsity or --pattern",
            id="both",
        ),
        *(
            pytest.param(
                (*WANDA, "--sparsity", share),
                f"--sparsity '{share}' is no share between 0 and 1, like 0.5",
                id=f"share-{share}",
            )
            for share in ("0", "1", "1.5", "50%", "nan", "1/0")
        ),
        *(
            pytest.param(
                (*WANDA, "--pattern", pattern),
                f"--pattern '{pattern}' is no N:M with 0 < N < M, like 2:4",
                id=f"pattern-{pattern}",
            )
            for pattern in ("4:2", "4:4", "0:4", "2", "2:4:8", "a:b")
        ),
        pytest.param(
            (*WANDA, "--pattern", "2:4", "--scope", "row"),
            "--scope goes with --sparsity: a pattern ranks each group",
            id="scope",
        ),
        pytest.param(
            (*MAGNITUDE, *HALF, "--samples", "8"),
            "--samples goes with --method wanda: magnitude looks at weights only",
            id="magnitude",
        ),
        pytest.param(
            ("--method", "wanda", *HALF, "--samples", "0"),
            "--samples must be at least 1, not 0",
            id="samples",
        ),
        pytest.param(
            ("--method", "wanda", *HALF, "--length", "-5"),
            "--length must be at least 1, not -5",
            id="length",
        ),
        pytest.param(
            ("--method", "wanda", *HALF, "--length", "2049"),
            "--length 2049 is more than the model's 2048 tokens",
            id="too-long",
        ),
        pytest.param(
            (*WANDA, "--pattern", "3:5"),
            "3:5 does not fit model.layers.0.self_attn.q_proj.weight: its rows are 32 "
            "weights wide, which 5 does not divide. Choose another pattern, or "
            "--sparsity",
            id="width",
        ),
        pytest.param(
            (*WANDA, *HALF, "--dtype", "float16"),
            "--dtype float16 would round float32 weights: give float32",
            id="dtype",
        ),
        pytest.param(
            (*WANDA, *HALF, "--device", "cuda:7x"),
            "--device 'cuda:7x' is no device (did you mean 'cuda'?): expected auto, "
            "cpu, cuda, cuda:1, or one of mps, xpu, npu, hpu, mlu, musa",
            id="device",
        ),
        pytest.param(
            (*WANDA, *HALF, "--calibration", "absent.txt"),
            "the calibration text absent.txt cannot be read: No such file or "
            "directory. Give a text file, or pydoc-topics",
            id="no-text",
        ),
    ],
)
def test_a_wrong_option(
    tmp_path: Path,
    llama: Path,
    capsys: pytest.CaptureFixture[str],
    options: tuple[str, ...],
    message: str,
) -> None:
    out = tmp_path / "out"
    assert refused(capsys, llama, out, *options) == f"error: {message}"
    assert not out.exists() or not any(out.iterdir())


def test_a_text_that_is_too_short(
    tmp_path: Path, llama: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = tmp_path / "short.txt"
    text.write_text("\u00a7" * 31 + "\u00a7\u00a7")  # two bytes each, one BOS
    options = (*WANDA, *HALF, "--calibration", text)
    said = refused(capsys, llama, tmp_path / "out", *options, "--length", "67")
    assert said == (
        "error: the calibration text short.txt has 67 tokens, and samples of 67 need "
        "at least 68: give a longer text or a smaller --length"
    )
    main([*map(str, (llama, tmp_path / "out", *options)), "--length", "66"])


def test_a_text_that_is_none(
    tmp_path: Path, llama: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = tmp_path / "latin.txt"
    text.write_bytes("caf\u00e9".encode("latin-1"))
    said = refused(
        capsys, llama, tmp_path / "out", *WANDA, *HALF, "--calibration", text
    )
    assert said == (
        f"error: the calibration text {text} is not UTF-8: unexpected end of data at "
        "byte 3"
    )


def test_a_folder_that_is_not_empty(
    tmp_path: Path, llama: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "precious.txt").write_text("kept")
    said = refused(capsys, llama, tmp_path, *MAGNITUDE, *HALF)
    assert said == f"error: {tmp_path} is not empty: give a new folder"
    file = tmp_path / "precious.txt"
    said = refused(capsys, llama, file, *MAGNITUDE, *HALF)
    assert said == f"error: {file} cannot be made: File exists"
    assert file.read_text() == "kept"


def test_a_checkpoint_that_cannot_be_pruned(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    gguf, out = tmp_path / "model.gguf", tmp_path / "out"
    gguf.write_bytes(b"GGUF" + bytes(60))
    assert refused(capsys, gguf, out, *MAGNITUDE, *HALF) == (
        f"error: {gguf} is a GGUF file: load it with transformers (gguf_file=...), "
        "save model and tokenizer as a folder, and prune that"
    )
    dense = save_tiny(tmp_path / "dense")
    config = json.loads((dense / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "bitsandbytes"}
    (dense / "config.json").write_text(json.dumps(config))
    assert refused(capsys, dense, out, *MAGNITUDE, *HALF) == (
        f"error: {dense} is quantised: prune the model as it was before, then quantise "
        "it"
    )
    (dense / "model.safetensors").rename(dense / "pytorch_model.bin")
    del config["quantization_config"]
    (dense / "config.json").write_text(json.dumps(config))
    assert refused(capsys, dense, out, *MAGNITUDE, *HALF) == (
        f"error: {dense} has pickle weights only (pytorch_model.bin), and unpickling "
        "can run code: convert them (model.save_pretrained writes safetensors), or "
        "trust them with --allow-pickle"
    )
    assert not out.exists()
