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
_SAVED = {"F32": "float32", "F16": "float16", "BF16": "bfloat16", "F64": "float64"}
_DEFAULT_LENGTH = 2048


def main() -> None:
    """Read the command line, prune, save; an error is one line and exit status 1."""
    try:
        prune(_parser().parse_args())
    except PplguardError as error:
        sys.exit(f"error: {error}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("python -m scripts.prune", description=__doc__)
    add = parser.add_argument
    add("model", metavar="MODEL", help="a folder, or a Hub id that is in the cache")
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
        default="pydoc-topics",
        help="a UTF-8 text file, or pydoc-topics: Python's own help texts (default)",
    )
    add("--samples", type=int, default=128, help="calibration samples (default: 128)")
    add(
        "--length",
        type=int,
        help="tokens a sample (default: the model's maximum, at most 2048)",
    )
    add("--seed", type=int, default=0, help="where samples start (default: 0)")
    add("--device", default="auto", help="auto, cpu, cuda, ... (default: auto)")
    add(
        "--dtype",
        default="float32",
        help="what to compute in: float32 (default), or the checkpoint's own dtype, "
        "in which it is saved in any case",
    )
    return parser


def prune(arguments: argparse.Namespace) -> None:
    """Do what the command line says.

    Raises:
        PplguardError: something in it is wrong; nothing was written.
    """
    from . import prune_magnitude, prune_wanda
    from .calibration import draw_samples, open_text

    rule, described = _rule(arguments)
    _check_numbers(arguments)
    out: Path = arguments.out
    _check_out(out)
    located = locate(arguments.model)
    if located.gguf:
        raise CheckpointError(
            f"{arguments.model} is a GGUF file: load it with transformers "
            "(gguf_file=...), save_pretrained it as a folder, and prune that"
        )
    saved, dtype = _dtypes(located, arguments.dtype)
    device = choose_device(arguments.device, probe()).device
    text = open_text(arguments.calibration) if arguments.method == "wanda" else None

    loaded = load(located, device=device, dtype=dtype)
    model = loaded.model
    if hasattr(model, "set_experts_implementation"):
        # Other implementations multiply by all experts at once.
        model.set_experts_implementation("eager")
    progress = partial(_say, time.perf_counter())
    record: dict[str, Any] = {
        "model": located.folder.name if Path(located.spec).is_dir() else located.spec,
        "digest": digest(located),
        "method": arguments.method,
        **described,
    }
    if text is None:
        prune_magnitude(model, rule, progress=progress)
    else:
        length = _length(arguments.length, model.config)
        how = {
            "samples": arguments.samples,
            "length": length,
            "seed": arguments.seed,
        }
        batches = draw_samples(text, loaded.tokenizer, **how)
        record["calibration"] = {"text": text.name, "digest": text.digest, **how}
        prune_wanda(model, batches, rule, progress=progress)
    record["computed"] = {"dtype": dtype, "device": device}
    record["versions"] = _versions()
    _save(located, model, saved, out, record)
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


def _check_numbers(arguments: argparse.Namespace) -> None:
    for name in ("samples", "length"):
        value = getattr(arguments, name)
        if value is not None and value < 1:
            raise UsageError(f"--{name} must be at least 1, not {value}")


def _check_out(out: Path) -> None:
    if out.is_dir() and not any(out.iterdir()):
        return
    if out.exists():
        raise UsageError(f"{out} exists: give a folder that is new or empty")


def _length(asked: int | None, config: Any) -> int:
    maximum = getattr(config.get_text_config(), "max_position_embeddings", None)
    if asked is None:
        return min(_DEFAULT_LENGTH, maximum or _DEFAULT_LENGTH)
    if maximum is not None and asked > maximum:
        raise UsageError(f"--length {asked} is more than the model's {maximum} tokens")
    return asked


def _dtypes(located: Located, asked: str) -> tuple[str, str]:
    """In which dtype to save and to compute; neither rounds a weight."""
    found = {tensor.dtype for tensor in tensor_index(located.folder).values()}
    floats = {_SAVED[name] for name in found if name in _SAVED}
    own = floats.pop() if len(floats) == 1 else "float32"
    dtype = choose_dtype(asked, "cpu", own).dtype
    if dtype not in (own, "float32") or (own, dtype) == ("float64", "float32"):
        raise UsageError(
            f"--dtype {asked} would round the weights, which are {own}: "
            f"give {own}" + ("" if own == "float64" else " or float32")
        )
    return own, dtype


def _say(started: float, number: int, count: int, inside: list[Any]) -> None:
    seconds = time.perf_counter() - started
    print(
        f"block {number}/{count}: {len(inside)} matrices pruned, {seconds:.0f} s",
        file=sys.stderr,
        flush=True,
    )


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
