"""How large the weights are that will be loaded, as far as it is known."""

from __future__ import annotations

from pathlib import Path

import pytest

from pytest_pplguard.measure.loading import weights_size


def write(path: Path, size: int) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(bytes(size))
    return path


def test_weights_of_a_folder_a_file_and_an_adapter(tmp_path: Path) -> None:
    folder = write(tmp_path / "m" / "model-1.safetensors", 1_500_000).parent
    write(folder / "model-2.safetensors", 1_000_000)
    write(folder / "pytorch_model.bin", 9_000_000)  # not read where there are others
    write(folder / "tokenizer.json", 5_000_000)
    assert weights_size(str(folder)) == "2.5 MB"
    file = write(tmp_path / "m.gguf", 4_096)
    assert weights_size(str(file)) == "4.1 kB"
    adapter = write(tmp_path / "a" / "adapter_model.safetensors", 250_000).parent
    assert weights_size(f"{adapter}+{folder}") == "2.75 MB"


@pytest.mark.parametrize(
    "spec", ["org/model@main", "no/such/folder", "w" * 5000, "ppl:8"]
)
def test_what_is_not_here_has_no_size_yet(spec: str) -> None:
    assert weights_size(spec) == ""


def test_the_demo_has_one() -> None:
    assert weights_size("demo/dense") == "2.14 MB"


def test_a_home_that_nobody_has_holds_nothing() -> None:
    assert weights_size("~no-such-user/x") == ""
