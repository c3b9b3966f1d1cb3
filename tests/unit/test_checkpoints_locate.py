"""What a user types is found, or the message says what is there instead."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import huggingface_hub
import pytest
from huggingface_hub.errors import LocalEntryNotFoundError

from pytest_pplguard.checkpoints import Located, locate
from pytest_pplguard.errors import CheckpointError


def make(folder: Path, *names: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).write_text("{}")
    return folder


def refused(spec: str, cwd: Path, **options: bool) -> str:
    with pytest.raises(CheckpointError) as caught:
        locate(spec, cwd=cwd, **options)
    return str(caught.value)


def test_import_needs_no_torch() -> None:
    code = (
        "import sys, pytest_pplguard.checkpoints\n"
        "print({'torch', 'transformers', 'numpy', 'gguf', 'huggingface_hub'} "
        "& set(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert done.stdout == "set()\n"


def test_folder_relative_to_cwd(tmp_path: Path) -> None:
    make(tmp_path / "out" / "pruned", "config.json", "tokenizer.json")
    located = locate("out/pruned", cwd=tmp_path)
    assert located == Located("out/pruned", tmp_path / "out" / "pruned")


def test_gguf_file(tmp_path: Path) -> None:
    (tmp_path / "m.gguf").write_bytes(b"GGUF....")
    assert locate("m.gguf", cwd=tmp_path) == Located("m.gguf", tmp_path, gguf="m.gguf")


def test_path_that_does_not_exist(tmp_path: Path) -> None:
    assert refused("./pruned", tmp_path) == (
        f"./pruned does not exist (looked at {tmp_path / 'pruned'}). Give a folder, a "
        ".gguf file, demo/dense, demo/wanda-50, or a Hub id like org/name"
    )


def test_empty_path(tmp_path: Path) -> None:
    assert refused(" ", tmp_path) == "the path of a checkpoint is empty"


def test_no_config(tmp_path: Path) -> None:
    make(tmp_path / "a", *(f"{i}.txt" for i in range(10)))
    assert refused("a", tmp_path) == (
        "a has no config.json, so it is no checkpoint: it holds 0.txt, 1.txt, 2.txt, "
        "3.txt, 4.txt, 5.txt, 6.txt, 7.txt and 2 more. "
        "Save one with model.save_pretrained and tokenizer.save_pretrained"
    )
    make(tmp_path / "b")
    assert refused("b", tmp_path) == (
        "b has no config.json, so it is no checkpoint: it is empty. "
        "Save one with model.save_pretrained and tokenizer.save_pretrained"
    )


def test_checkpoints_one_folder_deeper(tmp_path: Path) -> None:
    for step in (100, 200):
        make(tmp_path / "run" / f"step-{step}", "config.json")
    assert refused("run", tmp_path) == (
        "run has no config.json, but its subfolders do: "
        "give run/step-100 or run/step-200"
    )


def test_folder_of_gguf_files(tmp_path: Path) -> None:
    make(tmp_path / "q", "a.gguf", "b.gguf")
    assert refused("q/", tmp_path) == (
        "q/ has no config.json, but GGUF files: give q/a.gguf or q/b.gguf"
    )


def test_no_tokenizer(tmp_path: Path) -> None:
    make(tmp_path / "m", "config.json", "tokenizer_config.json")
    assert refused("m", tmp_path) == (
        "m has no tokenizer (none of tokenizer.json, tokenizer.model, vocab.json, "
        "vocab.txt, spiece.model, sentencepiece.bpe.model, tekken.json, *.tiktoken): "
        "save it beside the weights with tokenizer.save_pretrained; "
        "it holds config.json, tokenizer_config.json"
    )


def test_adapter(tmp_path: Path) -> None:
    make(tmp_path / "m", "adapter_config.json", "adapter_model.safetensors")
    message = (
        "m is a LoRA/PEFT adapter: merge it first (PeftModel.merge_and_unload), save "
        "the merged model with save_pretrained and its tokenizer, and give that folder"
    )
    assert refused("m", tmp_path) == message
    make(tmp_path / "m", "config.json", "tokenizer.json")
    assert refused("m", tmp_path) == f"{message} (or take adapter_config.json away)", (
        "transformers would put the adapter on top of the weights"
    )


def test_file_that_is_no_gguf(tmp_path: Path) -> None:
    (tmp_path / "m.gguf").write_bytes(b"version https://git-lfs")
    assert refused("m.gguf", tmp_path) == (
        "m.gguf is not a GGUF file: it starts with b'vers', not b'GGUF' "
        "(a broken download, or a Git LFS pointer?)"
    )
    make(tmp_path, "model.safetensors")
    assert refused("model.safetensors", tmp_path) == (
        "model.safetensors is a file, but not a GGUF file: give the folder that holds "
        "config.json, tokenizer and weights"
    )


@pytest.fixture
def demo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("dense", "wanda-50"):
        make(tmp_path / "package" / name, "config.json", "tokenizer.json")
    module = sys.modules["pytest_pplguard.checkpoints.locate"]
    monkeypatch.setattr(module, "DEMO", tmp_path / "package")
    return tmp_path / "package"


def test_demo_comes_from_the_package(tmp_path: Path, demo: Path) -> None:
    located = locate("demo/wanda-50", cwd=tmp_path)
    assert located == Located("demo/wanda-50", demo / "wanda-50")


def test_local_folder_wins_over_demo(tmp_path: Path, demo: Path) -> None:
    own = make(tmp_path / "demo" / "dense", "config.json", "tokenizer.json")
    assert locate("demo/dense", cwd=tmp_path).folder == own


@pytest.mark.usefixtures("demo")
def test_unknown_demo(tmp_path: Path) -> None:
    assert refused("demo/dens", tmp_path) == (
        "there is no demo checkpoint 'demo/dens' (did you mean 'demo/dense'?); "
        "there are: demo/dense, demo/wanda-50"
    )


def test_hub_snapshot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    snapshot = make(tmp_path / "cache", "config.json", "tokenizer.json")
    asked = []

    def download(repo: str, **options: object) -> str:
        asked.append((repo, options))
        return str(snapshot)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    located = locate("org/name@v1.0", cwd=tmp_path, offline=False)
    assert located == Located("org/name@v1.0", snapshot, revision="v1.0")
    locate("org/name", cwd=tmp_path, offline=True, allow_pickle=True)
    (first, options), (second, more) = asked
    assert (first, second) == ("org/name", "org/name")
    assert options["revision"] == "v1.0"
    assert options["local_files_only"] is False
    assert "pytorch_model*.bin" not in str(options["allow_patterns"])
    assert "*.py" not in str(options["allow_patterns"])
    assert more["local_files_only"] is True
    assert "pytorch_model*.bin" in str(more["allow_patterns"])


def test_hub_switched_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert refused("org/name", tmp_path) == (
        f"there is no {tmp_path / 'org' / 'name'}, and the Hub id org/name could not "
        "be fetched from the Hub: it is not in the cache and the Hub is switched off "
        "(HF_HUB_OFFLINE). Give a local folder, or run `hf download org/name` where "
        "there is a network"
    )


def test_hub_unreachable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def download(repo: str, **options: object) -> str:
        raise LocalEntryNotFoundError("Got: ConnectError: no route\nPlease check ...")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert refused("org/name", tmp_path, offline=False) == (
        f"there is no {tmp_path / 'org' / 'name'}, and the Hub id org/name could not "
        "be fetched from the Hub: ConnectError: no route. Give a local folder, or run "
        "`hf download org/name` where there is a network"
    )
