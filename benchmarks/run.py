"""Measure the numbers that this project promises; print them beside their limits."""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

if not __package__:  # run as a file
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.cluster import measure_cluster
from benchmarks.figures import MB, Figure, render
from benchmarks.gates import measure_gate
from benchmarks.page import PAGE, RESULTS, figures_of, read_results, write_page
from benchmarks.plan import measure_plan
from benchmarks.processes import HERE, run_python
from benchmarks.report import measure_report
from benchmarks.scoring import (
    measure_growth,
    measure_limit,
    measure_scoring,
    why_no_proc,
    why_not,
)
from benchmarks.settings import Settings, say

IMPORT_RUNS = 11
_PACKAGES = ("pytest", "torch", "transformers", "lm_eval", "pytest-pplguard")
_TIME_IMPORT = """
import pytest, time
started = time.perf_counter()
import pytest_pplguard.plugin
print(time.perf_counter() - started)
"""
_SAVE_SMOLLM2 = """
import sys
from pathlib import Path
import torch
from safetensors.torch import save_file
from benchmarks.models import make_model
folder, dtype = Path(sys.argv[1]), getattr(torch, sys.argv[2])
folder.mkdir()
model = make_model("smollm2")
weights = {name: w.detach().to(dtype) for name, w in model.named_parameters()}
save_file(weights, folder / "model.safetensors")
(folder / "config.json").write_text("{}")
"""

# ------------------------------------------------------------------------- measurements


def measure_import(_: Settings) -> list[Figure]:
    """Import of the plugin after pytest, in fresh processes with cached byte code."""
    with tempfile.TemporaryDirectory() as cache:
        environment = {"PYTHONPYCACHEPREFIX": cache, "PYTHONDONTWRITEBYTECODE": ""}

        def once() -> float:
            return float(run_python("-c", _TIME_IMPORT, extra=environment))

        once()  # compiles, as installing does
        seconds = [once() for _ in range(IMPORT_RUNS)]
    median = 1e3 * statistics.median(seconds)
    note = f"median of {IMPORT_RUNS} processes"
    return [Figure("plugin import", median, "ms", 5, note)]


def measure_streams(_: Settings) -> list[Figure]:
    """Fingerprint and sparsity beside reading and hashing the same files.

    The model is SmolLM2 in float32 and in bfloat16, and for the memory one tensor of
    2 GiB.
    """
    head = "rate, SHA-256 of the files = 1"
    if absent := why_not("smollm2") or why_no_proc():
        return [Figure(head, None, "x", 0.5, absent)]
    figures = []
    with tempfile.TemporaryDirectory() as temporary:
        for dtype in ("float32", "bfloat16"):
            folder = Path(temporary, dtype)
            run_python("-c", _SAVE_SMOLLM2, str(folder), dtype)
            for name, threads in (
                *(("fingerprint", ""), ("fingerprint", "1")),
                *(("sparsity", ""), ("2:4", "")),
            ):
                seconds = run_streams(name, "time", folder, threads)
                pairs = zip(seconds["hash"], seconds["ours"], strict=True)
                ratio = statistics.median(one / two for one, two in pairs)
                label = f"{name}, {dtype}" + (", one thread" if threads else "")
                note = f"{head}; median of {len(seconds['ours'])} pairs"
                figures.append(Figure(label, ratio, "x", 0.5, note, least=True))
        large = Path(temporary, "large")
        large.mkdir()
        run_streams("large", "write", large, "")
        bare = run_streams("fingerprint", "peak", Path(temporary, "float32"), "")
        for name in ("fingerprint", "2:4"):
            peak = run_streams(name, "peak", large, "")
            note = f"whole process, one tensor of 2 GiB; {bare / MB:.0f} MB for SmolLM2"
            figures.append(Figure(f"peak memory, {name}", peak / MB, "MB", 300, note))
    return figures


def run_streams(name: str, what: str, folder: Path, threads: str) -> Any:
    script = str(HERE / "streams_process.py")
    arguments = [name, what, str(folder), *([threads] if threads else [])]
    return json.loads(run_python(script, *arguments))


# --------------------------------------------------------------------------------- main


def as_raw(
    measure: Callable[[Settings], list[Figure]],
) -> Callable[[Settings], dict[str, Any]]:
    """Store figures as they are."""
    return lambda settings: {"figures": [asdict(one) for one in measure(settings)]}


def run_early(settings: Settings) -> dict[str, Any]:
    """The calibration of early verdicts, a command of its own."""
    options = ["--repeats", "1"] if settings.quick else []
    if settings.write_docs:
        options += ["--docs", str(PAGE.parent)]
    print(run_python("-m", "benchmarks.early", *options), end="")
    return {"figures": []}


MEASUREMENTS: dict[str, Callable[[Settings], dict[str, Any]]] = {
    "import": as_raw(measure_import),
    "scoring": measure_scoring,
    "limit": measure_limit,
    "gate": measure_gate,
    "growth": measure_growth,
    "streams": as_raw(measure_streams),
    "report": as_raw(measure_report),
    "plan": as_raw(measure_plan),
    "cluster": measure_cluster,
}
if find_spec("benchmarks.early"):
    MEASUREMENTS["early"] = run_early
ON_A_DEVICE = ("scoring", "limit", "growth")
"""Parts that ``--device`` changes; the others are about processes and files."""


def machine(settings: Settings) -> dict[str, str]:
    """Where it was measured, for the page."""
    found = {
        "machine": platform.machine(),
        "cores": str(os.cpu_count()),
        "threads": os.environ.get("OMP_NUM_THREADS", "all"),
        "python": platform.python_version(),
    }
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "none"
    if settings.device != "cpu":
        import torch

        found["device"] = torch.get_device_module(settings.device).get_device_name(0)
    return found


def device_of(text: str) -> str:
    """``auto`` is the accelerator if there is one."""
    if text != "auto":
        return text
    import torch

    found = torch.accelerator.current_accelerator(check_available=True)
    return "cpu" if found is None else found.type


def read_arguments() -> tuple[Settings, argparse.Namespace]:
    parser = argparse.ArgumentParser(description=__doc__, prog="python -m benchmarks")
    add = parser.add_argument
    add("--only", choices=MEASUREMENTS, action="append", help="measure only this part")
    add("--quick", action="store_true", help="small and few: does everything run?")
    add("--device", default="cpu", help="of scoring, limit and growth; or auto")
    add("--dtype", default="float32", help="of the same parts")
    add("--batch-size", type=int, default=1, help="of scoring and limit")
    add("--model", action="append", help="measure only this model; see models.py")
    add("--window", type=int, action="append", help="measure only this window")
    add("--pairs", type=int, help="pairs of each comparison")
    add("--json", metavar="PATH", type=Path, help="write figures here")
    add("--results", metavar="DIR", type=Path, help="keep raw results here")
    add("--write-docs", action="store_true", help="keep results, and write the page")
    add("--redraw", action="store_true", help="write the page from the kept results")
    options = parser.parse_args()
    chosen: dict[str, Any] = {}
    if options.model:
        chosen["models"] = tuple(options.model)
    if options.window or options.quick:
        chosen["windows"] = tuple(options.window or (256, 512))
    settings = Settings(
        quick=options.quick,
        device=device_of(options.device),
        dtype=options.dtype,
        batch_size=options.batch_size,
        wanted_pairs=options.pairs,
        write_docs=options.write_docs,
        **chosen,
    )
    return settings, options


def main() -> int:
    settings, options = read_arguments()
    if options.redraw:
        write_page(read_results())
        return 0
    where = machine(settings)
    print(", ".join(f"{name} {value}" for name, value in where.items()), flush=True)
    results = options.results or (RESULTS if options.write_docs else None)
    figures: list[Figure] = []
    for part in options.only or MEASUREMENTS:
        say(f"{part}:")
        raw = MEASUREMENTS[part](settings)
        figures += figures_of(part, raw)
        if results is not None and part != "early":
            keep(results, part, raw, where, settings)
    print(render(figures))
    if options.json:
        rows = [asdict(one) | {"verdict": one.verdict} for one in figures]
        write_json(options.json, {"machine": where, "figures": rows})
    if options.write_docs:
        write_page(read_results())
    return int(any(one.verdict == "not met" for one in figures))


def keep(
    folder: Path, part: str, raw: Any, where: dict[str, str], settings: Settings
) -> None:
    """Raw results, from which tables and pictures are made."""
    kind = settings.device.partition(":")[0]
    suffix = f"-{kind}" if part in ON_A_DEVICE and kind != "cpu" else ""
    folder.mkdir(parents=True, exist_ok=True)
    content = {"machine": where, "settings": asdict(settings), "raw": raw}
    write_json(folder / f"{part}{suffix}.json", content)


def write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
