"""Brings a target into memory: where it is, on which device, in which dtype."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

from ..checkpoints import (
    Loaded,
    Located,
    choose_device,
    choose_dtype,
    load,
    locate,
    probe,
    saved_dtype,
)
from ..checkpoints.locate import DEMO as DEMO_FOLDER
from ..journal import Journals, default_folder
from ..options import JOURNAL_OFF, Options, Target


def journals_of(options: Options) -> Journals | None:
    """Where finished windows are kept; None where the user wants none kept."""
    if options.journal == JOURNAL_OFF:
        return None
    return Journals(
        default_folder() if options.journal is None else Path(options.journal)
    )


def locate_target(target: Target, options: Options) -> Located:
    """Where a checkpoint's files are; fetches them from the Hub if need be.

    But no weights where a server has them.

    Raises:
        CheckpointError: it is not there.
    """
    return locate(
        target.spec,
        allow_pickle=options.allow_pickle,
        trust_remote_code=options.trust_remote_code,
        weights=options.execution.where != "server",
    )


def weights_size(spec: str) -> str:
    """``13.5 GB`` of weights that will be read; nothing where that is not known yet.

    Of a Hub id it is known only when it is here.
    """
    whole = Path(os.path.expanduser(spec))
    parts = [whole] if os.path.exists(whole) else [*map(_path, spec.split("+"))]
    try:
        size = sum(file.stat().st_size for part in parts for file in _weights(part))
    except OSError:  # whoever loads it will say so
        return ""
    for unit, name in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if size >= unit:
            return f"{size / unit:.3g} {name}"
    return ""


def loading_label(target: Target) -> str:
    """``loading NAME (13.5 GB)``, for whoever waits."""
    size = weights_size(target.spec)
    return f"loading {target.name}{f' ({size})' if size else ''}"


def _path(spec: str) -> Path:
    name = spec.removeprefix("demo/")
    return Path(os.path.expanduser(spec)) if name == spec else DEMO_FOLDER / name


def _weights(path: Path) -> list[Path]:
    if os.path.isfile(path):
        return [path]
    return sorted(path.glob("*.safetensors")) or sorted(path.glob("*.bin"))


def load_target(
    target: Target,
    options: Options,
    *,
    allow_keys: Sequence[str] = (),
    worker: int | None = None,
    tell: Callable[..., None],
) -> Loaded:
    """Locate a checkpoint, choose device and dtype, and load it strictly.

    Raises:
        CheckpointError: it is not there, or not whole.
        DeviceError: the device is not there.
    """
    hardware = probe()
    device = choose_device(options.device, hardware, worker_index=worker)
    located = locate_target(target, options)
    dtype = choose_dtype(options.dtype, device.device, saved_dtype(located))
    loaded = load(
        located,
        device=device.device,
        dtype=dtype.dtype,
        attention=options.attention,
        allow_pickle=options.allow_pickle,
        trust_remote_code=options.trust_remote_code,
        allow_keys=allow_keys,
    )
    tell(*filter(None, (device.notice, dtype.notice)), *loaded.notices)
    return loaded
