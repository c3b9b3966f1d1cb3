"""What a user types is found, or the message says what is there instead."""

from __future__ import annotations

import json
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


def adapter(folder: Path, base: object, *names: str, **settings: object) -> Path:
    make(folder, "adapter_model.safetensors", *names)
    config = {"base_model_name_or_path": base} | settings
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize("start", ["", "out/lora"])
def test_adapter_finds_the_base_that_its_config_names(
    tmp_path: Path, start: str
) -> None:
    adapter(tmp_path / "out" / "lora", "models/base")
    base = make(tmp_path / start / "models" / "base", "config.json", "tokenizer.json")
    located = locate("out/lora", cwd=tmp_path)
    assert located == Located(
        "out/lora", tmp_path / "out" / "lora", base=Located(str(base), base)
    )
    assert located.model == located.base
    assert locate(str(base)).model == Located(str(base), base)


def test_base_behind_the_adapter_wins(tmp_path: Path) -> None:
    adapter(tmp_path / "lora", "base")
    for name in ("base", "c++"):
        make(tmp_path / name, "config.json", "tokenizer.json")
    adapter(tmp_path / "c++" / "lora", "gone")
    for typed, folder in (("lora", "lora"), ("c++/lora", "c++/lora")):
        assert locate(f"{typed}+c++", cwd=tmp_path) == Located(
            typed, tmp_path / folder, base=Located("c++", tmp_path / "c++")
        )
    assert locate("c++", cwd=tmp_path) == Located("c++", tmp_path / "c++")


def test_adapter_with_a_tokenizer_needs_none_in_its_base(tmp_path: Path) -> None:
    make(tmp_path / "base", "config.json")
    adapter(tmp_path / "bare", "base")
    assert refused("bare", tmp_path).startswith(f"{tmp_path / 'base'} has no tokenizer")
    adapter(tmp_path / "lora", "base", "tokenizer.json", "config.json")
    assert locate("lora", cwd=tmp_path).model.folder == tmp_path / "base"


@pytest.mark.parametrize("base", [None, "", 7])
def test_adapter_that_names_no_base(tmp_path: Path, base: object) -> None:
    adapter(tmp_path / "lora", base)
    assert refused("lora", tmp_path) == (
        "the adapter lora does not say what its base is (base_model_name_or_path in "
        "adapter_config.json): name it behind the adapter: lora+BASE"
    )


def test_base_that_is_not_there(tmp_path: Path) -> None:
    adapter(tmp_path / "lora", "/scratch/base")
    assert refused("lora", tmp_path) == (
        "the base /scratch/base of the adapter lora was not found: /scratch/base does "
        "not exist (looked at /scratch/base). Give a folder, a .gguf file, demo/dense, "
        "demo/wanda-50, or a Hub id like org/name. Or name it behind the adapter: "
        "lora+BASE"
    )
    assert refused("lora+./base", tmp_path) == (
        "the base of the adapter lora: ./base does not exist (looked at "
        f"{tmp_path / 'base'}). Give a folder, a .gguf file, demo/dense, "
        "demo/wanda-50, or a Hub id like org/name"
    )
    assert refused("lora+", tmp_path) == (
        "lora+: no base behind the plus sign; write lora+BASE, or lora alone for the "
        "base that adapter_config.json names"
    )


def test_two_bases_of_one_name(tmp_path: Path) -> None:
    adapter(tmp_path / "lora", "base")
    for folder in (tmp_path / "base", tmp_path / "lora" / "base"):
        make(folder, "config.json", "tokenizer.json")
    assert refused("lora", tmp_path) == (
        f"the adapter lora names the base base, and there are two: {tmp_path / 'base'} "
        f"and {tmp_path / 'lora' / 'base'}. Say which: lora+BASE"
    )


def test_base_on_the_hub_in_its_revision(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def snapshot(repo: str, *, revision: str | None, **_: object) -> str:
        asked.append((repo, revision))
        return str(make(tmp_path / "cache", "config.json", "tokenizer.json"))

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    adapter(tmp_path / "lora", "org/base", revision="v2")
    base = locate("lora", cwd=tmp_path).base
    assert base == Located("org/base@v2", tmp_path / "cache", revision="v2")
    assert asked == [("org/base", "v2")]


def test_base_that_is_no_whole_model(tmp_path: Path) -> None:
    adapter(tmp_path / "lora", "other")
    adapter(tmp_path / "other", "base")
    (tmp_path / "m.gguf").write_bytes(b"GGUF....")
    for base, kind in (("other", "an adapter itself"), ("m.gguf", "a GGUF file")):
        assert refused(f"lora+{base}", tmp_path) == (
            f"the base {base} of the adapter lora is {kind}: give the folder of the "
            "whole model: lora+BASE"
        )


def test_base_behind_something_else(tmp_path: Path) -> None:
    make(tmp_path / "m", "config.json", "tokenizer.json")
    assert refused("m+base", tmp_path) == (
        "m is no adapter (it has no adapter_config.json), so it takes no base: write "
        "ADAPTER+BASE, or m alone"
    )


def test_adapter_beside_a_whole_model(tmp_path: Path) -> None:
    adapter(tmp_path / "m", "base", "config.json", "tokenizer.json")
    make(tmp_path / "m", "model.safetensors")
    assert refused("m", tmp_path) == (
        "m holds both an adapter (adapter_config.json) and a whole model "
        "(model.safetensors): move one of them to a folder of its own"
    )


def test_adapter_config_that_is_no_json(tmp_path: Path) -> None:
    make(tmp_path / "lora")
    (tmp_path / "lora" / "adapter_config.json").write_text("{")
    assert refused("lora", tmp_path).startswith(
        f"{tmp_path / 'lora' / 'adapter_config.json'} is not valid JSON: "
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


def test_a_home_that_nobody_has(tmp_path: Path) -> None:
    assert refused("~no-such-user/x", tmp_path).startswith(
        "~no-such-user/x does not exist (looked at "
    )
