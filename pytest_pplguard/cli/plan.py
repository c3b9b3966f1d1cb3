"""``pplguard plan``: what a measurement takes, before anything large is loaded."""

from __future__ import annotations

import math
import os
import re
from pathlib import Path

from msgspec import Struct

from ..baselines import read_baseline
from ..checkpoints import locate, positions, probe
from ..errors import PplguardError, UsageError
from ..measure.plan import Asked, plan
from ..options import Options, parse_max_memory
from ..planning import Plan, skeleton
from ..protocols import get_protocol
from ..report import plan_document, plan_lines
from ..values import Key
from .diff import named_entry
from .measure import Wanted, wanted_keys
from .output import say, show, write_json

_GPUS = re.compile(r"(?:(?P<machines>[1-9]\d*)x)?(?P<gpus>[1-9]\d*)", re.ASCII)


class Machine(Struct, frozen=True):
    """What was typed of machines that are not here; empty where nothing was."""

    gpus: str = ""
    gpu_memory: str = ""
    cpu_memory: str = ""
    gpus_per_replica: int | None = None
    replicas: int = 1
    tflops: float | None = None
    calibrate: bool = True

    def asked(self) -> Asked:
        """The same, checked.

        Raises:
            UsageError: no number, no size, or one without another that it needs.
        """
        if bool(self.gpus) != bool(self.gpu_memory):
            given, other = ("--gpus", "--gpu-memory 80GiB")
            if not self.gpus:
                given, other = ("--gpu-memory", "--gpus N")
            raise UsageError(f"{given} is of GPUs that are not here: add {other}")
        match = _GPUS.fullmatch(self.gpus) if self.gpus else None
        if self.gpus and match is None:
            raise UsageError(
                f"--gpus: {self.gpus!r} is no number of GPUs; give 8, or 2x8 for two "
                "machines with 8 each"
            )
        if self.tflops is not None and not 0 < self.tflops < math.inf:
            raise UsageError(
                f"--tflops: {self.tflops:g} is no speed; give what a GPU reaches, "
                "above 0, in 1e12 FLOPs a second"
            )
        return Asked(
            gpus=int(match["gpus"]) if match else None,
            machines=int(match["machines"] or 1) if match else 1,
            gpu_memory=_size(self.gpu_memory, "--gpu-memory"),
            cpu_memory=_size(self.cpu_memory, "--cpu-memory"),
            per_replica=self.gpus_per_replica,
            replicas=self.replicas,
            tflops=self.tflops,
            calibrate=self.calibrate,
        )


def _size(text: str, option: str) -> int | None:
    if not text:
        return None
    try:
        (size,) = parse_max_memory([f"cpu={text}"], option=option).values()
    except UsageError:
        size = 0
    if size <= 0:
        raise UsageError(f"{option}: {text!r} is no size; give for example 80GiB")
    return size


def plan_measurement(
    spec: str,
    wanted: Wanted,
    options: Options,
    machine: Machine,
    *,
    folder: Path,
    json_path: str | None,
) -> bool:
    """Print what measuring ``spec`` takes; returns whether it fits somewhere.

    ``spec`` is a checkpoint, its config alone, or ``FILE/NAME`` of the baseline
    ``folder``: then what that has recorded is planned.

    Raises:
        UsageError: it cannot be planned: the checkpoint or the text is not there or
            cannot be read, or an option is wrong.
    """
    try:
        made = _plan(spec, wanted, options, machine.asked(), folder)
    # As of diff: 1 says that it does not fit, and every trouble is 2.
    except PplguardError as error:
        raise UsageError(str(error)) from error
    write_json(plan_document(made), json_path)
    if json_path != "-":
        lines = plan_lines(made)
        show(*lines[:1], style="bold")
        show(*lines[1:])
    say(*made.notices)
    return made.place.fits


def _plan(
    spec: str, wanted: Wanted, options: Options, asked: Asked, folder: Path
) -> Plan:
    keys: list[Key] = []
    recorded: dict[str, int] = {}
    place = spec
    if found := _entry(spec, folder):
        place, known, recorded = found
        keys = wanted.again(known)
        tasks = [key for key in keys if get_protocol(key.method).runs_task(key)]
        keys = [key for key in keys if key not in tasks]
        if tasks:
            say(
                "not planned, as lm-eval brings their texts: "
                + ", ".join(map(str, tasks))
            )
        if keys:
            say(f"planning what {spec} has recorded")
    wanted.check_keys()
    located = locate(
        place,
        allow_pickle=options.allow_pickle,
        trust_remote_code=options.trust_remote_code,
        config_only=True,
    )
    trust = options.trust_remote_code
    made = skeleton(located, trust_remote_code=trust)
    limit = positions(located, trust_remote_code=trust)
    keys = keys or wanted_keys(located.spec, wanted, lambda: limit)
    longest = max(key.window for key in keys)
    if limit is not None and longest > limit:
        raise UsageError(
            f"--window {longest}: {spec} was made for {limit} positions "
            "(max_position_embeddings); give a shorter window"
        )
    return plan(
        located, made, keys, options, asked, hardware=probe(), recorded=recorded
    )


def _entry(spec: str, folder: Path) -> tuple[str, list[Key], dict[str, int]] | None:
    """Where a recorded checkpoint is, its keys and their windows; None for a path."""
    found = named_entry(spec, folder)
    if found is None or os.path.exists(Path(os.path.expanduser(spec))):
        return None
    path, name = found
    entries = read_baseline(path).checkpoints
    if name not in entries:
        if spec.startswith("demo/"):
            return None
        raise UsageError(f"{path} has no {name}; it has: {', '.join(entries)}")
    entry = entries[name]
    place = spec if spec.startswith("demo/") else entry.path
    if place is None:
        raise UsageError(
            f"{spec} records no `path:` ({path}): give the checkpoint itself, or its "
            "config.json"
        )
    windows = {key: one.windows for key, one in entry.recorded.items() if one.windows}
    return place, [Key.parse(key) for key in entry.recorded], windows
