"""Prune a Hugging Face decoder for an example or a test; saves a checkpoint.

For serious use take llm-compressor or the Wanda code; see scripts/prune/README.md.
"""

from __future__ import annotations

import argparse
import json
import platform
import shutil
import sys
import time
from collections.abc import Sequence
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any

from pytest_pplguard.checkpoints import (
    Located,
    choose_device,
    choose_dtype,
    digest,
    load,
    locate,
    probe,
    read_config,
    tensor_index,
)
from pytest_pplguard.checkpoints.locate import TOKENIZER_PATTERNS
from pytest_pplguard.errors import CheckpointError, PplguardError, UsageError

_TOKENIZER_FILES = (
    *TOKENIZER_PATTERNS,
    "merges.txt",
    "added_tokens.json",
    "special_tokens_map.json",
    "tokenizer_config.json",
    "chat_template*",
)
_FLOATS = {"F32": "float32", "F16": "float16", "BF16": "bfloat16", "F64": "float64"}
_CALIBRATION: dict[str, Any] = {
    "calibration": "pydoc-topics",
    "samples": 128,
    "length": 2048,
    "seed": 0,
}
"""Defaults of what only Wanda has a use for."""


def main(argv: Sequence[str] | None = None) -> None:
    """Read the command line, prune, save; an error is one line and exit status 1."""
    try:
        prune(_parser().parse_args(argv))
    except PplguardError as error:
        # The package's messages name pytest's options.
        sys.exit(f"error: {error}".replace("--ppl-", "--"))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("python -m scripts.prune", description=__doc__)
    add = parser.add_argument
    add("model", metavar="MODEL", help="a folder, demo/dense or a Hub id")
    add("out", metavar="OUT", type=Path, help="folder to make")
    add("--method", choices=("wanda", "magnitude"), required=True)
    add("--sparsity", metavar="SHARE", help="share of the weights that go: 0.5")
    add("--pattern", metavar="N:M", help="N weights stay of every M: 2:4")
    add(
        "--scope",
        choices=("row", "layer"),
        help="with --sparsity: what is ranked together, each output row or the whole "
        "matrix (default: row for wanda, layer for magnitude, as in the Wanda code)",
    )
    add(
        "--calibration",
        metavar="TEXT",
        help="a UTF-8 text file, or pydoc-topics: Python's own help texts (default)",
    )
    add("--samples", type=int, help="calibration samples (default: 128)")
    add(
        "--length",
        type=int,
        help="tokens a sample (default: the model's maximum, at most 2048)",
    )
    add("--seed", type=int, help="of the places where samples start (default: 0)")
    add("--device", default="auto", help="auto, cpu, cuda, ... (default: auto)")
    add(
        "--dtype",
        default="float32",
        help="what to compute in: float32 (default), or the checkpoint's own dtype, "
        "in which it is saved in any case",
    )
    add("--allow-pickle", action="store_true", help="load weights from pickle files")
    return parser


def prune(arguments: argparse.Namespace) -> None:
    """Do what the command line says.

    Raises:
        PplguardError: something in it is wrong, or the model cannot be pruned; OUT is
            an empty folder then, or not there.
    """
    from . import prune_magnitude, prune_wanda
    from .calibration import draw_samples, open_text

    rule, described = _rule(arguments)
    how = _calibration(arguments)
    pickle: bool = arguments.allow_pickle
    located = _located(arguments.model, allow_pickle=pickle)
    saved, dtype = _dtypes(located, arguments.dtype, allow_pickle=pickle)
    device = choose_device(arguments.device, probe()).device
    text = open_text(how.pop("calibration")) if how else None
    out: Path = arguments.out
    _make(out)

    loaded = load(located, device=device, dtype=dtype, allow_pickle=pickle)
    record: dict[str, Any] = {
        "model": _name(located),
        "digest": digest(located, allow_pickle=pickle),
        "method": arguments.method,
        **described,
    }
    progress = partial(_say, time.perf_counter())
    if text is None:
        prune_magnitude(loaded.model, rule, progress=progress)
    else:
        how["length"] = _length(arguments.length, loaded.model.config)
        record["calibration"] = {"text": text.name, "digest": text.digest, **how}
        batches = draw_samples(text, loaded.tokenizer, **how)
        prune_wanda(loaded.model, batches, rule, progress=progress)
    record["computed"] = {"dtype": dtype, "device": device}
    record["versions"] = _versions()
    _save(located, loaded.model, saved, out, record)
    print(f"saved {out}")


# ------------------------------------------------------------------------ command line


def _rule(arguments: argparse.Namespace) -> tuple[Any, dict[str, str]]:
    """The rule, and how it is recorded."""
    from .criteria import Pattern, Scope, Unstructured

    if (arguments.sparsity is None) == (arguments.pattern is None):
        raise UsageError("give either --sparsity or --pattern")
    if arguments.pattern is not None:
        if arguments.scope is not None:
            raise UsageError("--scope goes with --sparsity: a pattern ranks each group")
        kept, _, group = arguments.pattern.partition(":")
        if not (kept.isdecimal() and group.isdecimal() and 0 < int(kept) < int(group)):
            raise UsageError(
                f"--pattern {arguments.pattern!r} is no N:M with 0 < N < M, like 2:4"
            )
        return Pattern(int(kept), int(group)), {"pattern": arguments.pattern}
    try:
        sparsity = Fraction(arguments.sparsity)
    except (ValueError, ZeroDivisionError):
        sparsity = Fraction(0)
    if not 0 < sparsity < 1:
        raise UsageError(
            f"--sparsity {arguments.sparsity!r} is no share between 0 and 1, like 0.5"
        )
    usual: Scope = "row" if arguments.method == "wanda" else "layer"
    scope: Scope = arguments.scope or usual
    return Unstructured(sparsity, scope), {
        "sparsity": arguments.sparsity,
        "scope": scope,
    }


def _calibration(arguments: argparse.Namespace) -> dict[str, Any]:
    """What was asked of Wanda, or its defaults; empty for magnitude."""
    asked = {
        name: getattr(arguments, name)
        for name in _CALIBRATION
        if getattr(arguments, name) is not None
    }
    if arguments.method == "magnitude":
        if asked:
            raise UsageError(
                f"--{next(iter(asked))} goes with --method wanda: magnitude looks at "
                "weights only"
            )
        return {}
    for name in ("samples", "length"):
        if asked.get(name, 1) < 1:
            raise UsageError(f"--{name} must be at least 1, not {asked[name]}")
    return _CALIBRATION | asked


def _length(asked: int | None, config: Any) -> int:
    text_config = config.get_text_config()
    maximum: int | None = getattr(text_config, "max_position_embeddings", None)
    usual: int = _CALIBRATION["length"]
    if maximum is None:
        return asked or usual
    if asked is not None and asked > maximum:
        raise UsageError(f"--length {asked} is more than the model's {maximum} tokens")
    return asked or min(usual, maximum)


def _located(spec: str, *, allow_pickle: bool) -> Located:
    located = locate(spec, allow_pickle=allow_pickle)
    if located.gguf:
        raise CheckpointError(
            f"{spec} is a GGUF file: load it with transformers (gguf_file=...), save "
            "model and tokenizer as a folder, and prune that"
        )
    if "quantization_config" in read_config(located):
        raise CheckpointError(
            f"{spec} is quantised: prune the model as it was before, then quantise it"
        )
    return located


def _name(located: Located) -> str:
    """A Hub id, or the name of a folder; its path is nobody's business."""
    is_hub = not Path(located.spec).expanduser().is_dir()
    return located.spec if is_hub else located.folder.resolve().name


def _make(out: Path) -> None:
    """Make the folder now: to fail later would lose the work."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        if any(out.iterdir()):
            raise UsageError(f"{out} is not empty: give a new folder")
    except OSError as error:
        raise UsageError(f"{out} cannot be made: {error.strerror}") from error


def _dtypes(located: Located, asked: str, *, allow_pickle: bool) -> tuple[str, str]:
    """In which dtype to save and to compute; neither rounds a weight."""
    tensors = tensor_index(located.folder, allow_pickle=allow_pickle).values()
    floats = {_FLOATS[tensor.dtype] for tensor in tensors if tensor.dtype in _FLOATS}
    # Pickles do not tell before they are loaded.
    widest = "float64" if "float64" in floats else "float32"
    own = floats.pop() if len(floats) == 1 else widest
    dtype = choose_dtype(asked, "cpu", own).dtype
    if dtype not in (own, widest):
        exact = " or ".join(dict.fromkeys((widest, own)))
        raise UsageError(f"--dtype {asked} would round {own} weights: give {exact}")
    return own, dtype


def _say(started: float, number: int, count: int) -> None:
    seconds = time.perf_counter() - started
    print(f"block {number}/{count} pruned, {seconds:.0f} s", file=sys.stderr)


# ------------------------------------------------------------------------------ saving


def _versions() -> dict[str, str]:
    import torch
    import transformers

    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


def _save(
    located: Located, model: Any, dtype: str, out: Path, record: dict[str, Any]
) -> None:
    """Weights and config by transformers, the tokenizer's files as they are."""
    import torch
    import transformers.utils.logging

    transformers.utils.logging.disable_progress_bar()
    model.to("cpu", getattr(torch, dtype)).save_pretrained(out)
    for file in out.glob("*.safetensors"):
        file.chmod(0o644)  # safetensors writes for its owner alone
    for pattern in _TOKENIZER_FILES:
        for file in located.folder.glob(pattern):
            if file.is_file():
                shutil.copyfile(file, out / file.name)
    text = json.dumps(record, indent=2, ensure_ascii=False) + "\n"
    (out / "pruning.json").write_text(text, encoding="utf-8", newline="\n")


if __name__ == "__main__":
    main()
