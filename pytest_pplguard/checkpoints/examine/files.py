"""Checks files: shards and their index, leftovers, what is never read."""

from __future__ import annotations

import re
from pathlib import Path

from ...errors import CheckpointError
from ..files import (
    TensorInfo,
    check_shard,
    index_notices,
    named_shards,
    read_header,
    tensor_index,
)
from ..locate import PICKLE, PICKLE_INDEX, SAFETENSORS, SAFETENSORS_INDEX, Located
from .result import Findings

_SHARD = re.compile(r"model-[0-9]+-of-[0-9]+\.safetensors")
_LEFT_BY_TRAINING = re.compile(
    r"optimizer\.(pt|bin)|scheduler\.pt|scaler\.pt|rng_state(_[0-9]+)?\.pth|"
    r"training_args\.bin|trainer_state\.json|global_step[0-9]+|zero_to_fp32\.py"
)
_SECONDS_APART = 3600
"""A copy made beside the weights is written within an hour of them."""


def file_sizes(located: Located) -> dict[str, int]:
    """Bytes of each file of a checkpoint; subfolders are not entered."""
    if located.gguf:
        return {located.gguf: (located.folder / located.gguf).stat().st_size}
    files = sorted(path for path in located.folder.iterdir() if path.is_file())
    return {path.name: path.stat().st_size for path in files}


def readable_tensors(
    folder: Path, found: Findings, *, allow_pickle: bool
) -> dict[str, TensorInfo]:
    """The tensors of all safetensors files that can be read; what cannot is found."""
    tensors: dict[str, TensorInfo] = {}
    for file in _shards(folder, found):
        with found.collect("file", file.name):
            for name, info in read_header(file).items():
                tensors.setdefault(name, info)
    if tensors and not found.has("file", "index", "missing-shard"):
        # What is about several files: stale entries, tensors held twice, masks.
        with found.collect("files", folder.name):
            tensor_index(folder, allow_pickle=allow_pickle)
    return tensors


def _shards(folder: Path, found: Findings) -> list[Path]:
    if (folder / SAFETENSORS).is_file():
        return [folder / SAFETENSORS]
    index = folder / SAFETENSORS_INDEX
    if not index.is_file():
        return []
    names: set[str] = set()
    with found.collect("index", index.name):
        names = set(named_shards(index).values())
    there = []
    for name in sorted(names):
        try:
            check_shard(index, name)
        except CheckpointError as error:
            found.error("missing-shard", name, str(error))
        else:
            there.append(folder / name)
    return there


def check_files(located: Located, found: Findings) -> None:
    """Look for what is left over, and for sizes that contradict the index."""
    if located.gguf:
        return
    folder, spec = located.folder, located.spec
    if not found.has("file", "index", "missing-shard", "files"):
        for notice in index_notices(located):
            found.warning("total-size", SAFETENSORS_INDEX, notice)
    names = sorted(path.name for path in folder.iterdir())
    _check_unread(located, names, found)
    if left := [name for name in names if _LEFT_BY_TRAINING.fullmatch(name)]:
        found.note(
            "leftover",
            left[0],
            f"{spec} holds what training left behind ({', '.join(left)}): it is not "
            "read, and can be deleted",
        )


def _check_unread(located: Located, names: list[str], found: Findings) -> None:
    """Weights in the folder that are never read."""
    folder, spec = located.folder, located.spec
    single, index = folder / SAFETENSORS, folder / SAFETENSORS_INDEX
    if not single.is_file() and not index.is_file():
        return
    read = {SAFETENSORS}
    if not single.is_file() and not found.has("index"):
        read = set(named_shards(index).values())
    shards = [name for name in names if _SHARD.fullmatch(name) and name not in read]
    if shards or (single.is_file() and index.is_file()):
        what = f"shards ({len(shards)}, like {shards[0]})" if shards else index.name
        by = SAFETENSORS if single.is_file() else index.name
        found.warning(
            "unread-shards",
            shards[0] if shards else index.name,
            f"{spec} holds {what} beside {by}, which alone decides what is read: two "
            "saves in one folder? Save again into an empty folder",
        )
    others = [
        name
        for name in names
        if name.endswith(".safetensors") and name not in read and name not in shards
    ]
    if others:
        found.note("unread", others[0], f"{spec}: {', '.join(others)}: not read")
    pickles = [name for name in (PICKLE, PICKLE_INDEX) if name in names]
    if not pickles:
        return
    weights = single if single.is_file() else index
    age = (folder / pickles[0]).stat().st_mtime - weights.stat().st_mtime
    if age > _SECONDS_APART:
        found.warning(
            "newer-pickle",
            pickles[0],
            f"{spec}: {pickles[0]} is {_duration(age)} newer than {weights.name}, "
            "which is read: if it holds the model that you mean, save that one as "
            "safetensors into an empty folder",
        )
    else:
        found.note(
            "unread", pickles[0], f"{spec}: {pickles[0]} beside safetensors: not read"
        )


def _duration(seconds: float) -> str:
    hours = seconds / 3600
    return f"{hours / 24:.0f} days" if hours >= 48 else f"{hours:.0f} hours"
