"""Brings a target into memory: where it is, on which device, in which dtype."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

from ..checkpoints import (
    Hardware,
    Loaded,
    Located,
    Placement,
    check_max_memory,
    choose_dtype,
    choose_placement,
    free_memory,
    is_quantised,
    layer_weights,
    load,
    locate,
    main_device,
    probe,
    read_config,
    saved_dtype,
    stored_streams,
)
from ..checkpoints.locate import DEMO as DEMO_FOLDER
from ..errors import UsageError
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
    located: Located | None = None,
) -> Loaded:
    """Locate a checkpoint, choose device and dtype, and load it strictly.

    ``located`` says where it is, if that is known already.

    With ``options.max_memory``, and where it does not fit one of several GPUs, its
    layers are placed on several devices.

    Raises:
        CheckpointError: it is not there, or not whole.
        DeviceError: the device is not there, or too small.
        UsageError: options contradict each other.
    """
    hardware = probe()
    device = main_device(
        options.device, options.max_memory, hardware, worker_index=worker
    )
    located = located or locate_target(target, options)
    dtype = choose_dtype(options.dtype, device.device, saved_dtype(located))
    loaded = load(
        located,
        device=place(
            located,
            options,
            device=device.device,
            dtype=dtype.dtype,
            hardware=hardware,
            worker=worker,
        ),
        dtype=dtype.dtype,
        attention=options.attention,
        allow_pickle=options.allow_pickle,
        trust_remote_code=options.trust_remote_code,
        allow_keys=allow_keys,
    )
    tell(*filter(None, (device.notice, dtype.notice)), *loaded.notices)
    return loaded


def place(
    located: Located,
    options: Options,
    *,
    device: str,
    dtype: str,
    hardware: Hardware,
    worker: int | None = None,
) -> Placement:
    """Where a checkpoint's layers go, known from its files' headers.

    Args:
        located: the checkpoint.
        options: how it is to be placed.
        device: from :func:`main_device`.
        dtype: that it is loaded in, by torch's name.
        hardware: what is there.
        worker: number of the xdist worker, None outside one.

    Raises:
        CheckpointError: it is not whole, or cannot be placed that way.
        DeviceError: there is no room for it.
        UsageError: ``--ppl-compile`` does not go with several devices.
    """
    if device == "cpu" and not options.max_memory:
        return Placement(device)
    whole = located.model
    quantised = whole.gguf is None and is_quantised(read_config(whole))
    layers = layer_weights(
        stored_streams(whole, allow_pickle=options.allow_pickle),
        dtype,
        quantised=quantised,
    )

    def free(index: int) -> int | None:
        return free_memory(hardware, index)

    if options.max_memory:
        found = check_max_memory(
            located.spec,
            layers,
            options.max_memory,
            device=device,
            dtype=dtype,
            free=free,
            offloads=_why_not_offloaded(located, quantised=quantised),
        )
    else:
        found = choose_placement(
            located.spec,
            layers,
            dtype=dtype,
            device=device,
            hardware=hardware,
            free=free,
            spread=options.device == "auto",
            worker_index=worker,
        )
    if found.max_memory and options.compile:
        raise UsageError(
            "--ppl-compile and a model on several devices do not go together: "
            "torch.compile gives up on what brings its layers' weights and inputs to "
            "their device; leave --ppl-compile out"
        )
    return found


def _why_not_offloaded(located: Located, *, quantised: bool) -> str:
    if located.gguf:
        return "is a GGUF file, which is unpacked as a whole"
    if located.base is not None:
        return "is an adapter, which is merged into weights that are in memory"
    if quantised:
        return "is quantised, and its kernels read weights where they are stored"
    return ""
