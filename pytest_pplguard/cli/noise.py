"""``pplguard noise``: how far numbers move without any change, and a tolerance."""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from msgspec import Struct
from msgspec.structs import asdict, replace

from ..checkpoints import Loaded
from ..corpora import open_corpus
from ..errors import MeasurementError, PplguardError, UsageError
from ..measure import (
    Store,
    load_target,
    locate_target,
    max_positions,
    measure_loaded,
)
from ..measure.environment import using_threads
from ..measure.places import cut_windows
from ..options import BATCH_AUTO, Options, Target
from ..protocols import get_protocol
from ..report import counted, number, plain
from ..values import SCHEMA, Key, Measurement
from .measure import Wanted, wanted_keys, watching
from .output import say, show_table, write_json

LEAST = 1e-5
"""The narrowest ``rel`` that is proposed: float32 sums of another build of torch."""

MARGIN = 3
"""How many times the largest movement a tolerance must cover."""

PLAN = (
    (),
    ("threads",),
    ("batch size",),
    ("attention",),
    ("dtype",),
    ("larger batch size",),
    ("attention", "threads"),
    ("attention", "batch size"),
    ("threads", "batch size"),
    ("attention", "larger batch size"),
    ("threads", "larger batch size"),
    ("attention", "threads", "batch size"),
)
"""What each variation changes, in this order; the first changes nothing."""

_MINUTE = 60.0
_FEWEST_WINDOWS = 8
_SLOWER_IN_FLOAT64 = 2.0


# ------------------------------------------------------------------------- what to vary


class Settings(Struct, frozen=True):
    """What a run is made with, beside the model and the text."""

    threads: int
    batch_size: int
    attention: str
    dtype: str


class Machine(Struct, frozen=True):
    """What can be varied on it: a torch device, cores, and whether bfloat16 is fast."""

    device: str
    cores: int
    native_bfloat16: bool


def varied(parts: Sequence[str], first: Settings, machine: Machine) -> Settings | str:
    """The settings of a variation of the ``first`` run, or why there are none."""
    settings = first
    for part in parts:
        if part == "threads":
            if machine.device != "cpu":
                return f"the CPU's threads compute nothing on {machine.device}"
            threads = 1 if first.threads > 1 else machine.cores
            if threads == first.threads:
                return "this machine has one core"
            settings = replace(settings, threads=threads)
        elif part.endswith("batch size"):
            others = [size for size in (2, 4, 1) if size != first.batch_size]
            size = others[1 if part.startswith("larger") else 0]
            settings = replace(settings, batch_size=size)
        elif part == "attention":
            other = "sdpa" if first.attention != "sdpa" else "eager"
            settings = replace(settings, attention=other)
        else:
            settings = replace(settings, dtype=other_dtype(first.dtype, machine))
    return settings


def other_dtype(dtype: str, machine: Machine) -> str:
    """Another dtype that the machine computes natively.

    A CPU without bfloat16 products is 200 times slower in it, so never that.
    """
    half = "bfloat16" if machine.native_bfloat16 else "float16"
    if machine.device == "cpu":
        if dtype != "float32":
            return "float32"
        return half if machine.native_bfloat16 else "float64"
    if dtype == "float16":
        return half if machine.native_bfloat16 else "float32"
    return "float16" if dtype == half else half


def label(parts: Sequence[str], settings: Settings | None) -> str:
    """A variation as people read it: ``1 thread, batch size 2``."""
    if not parts:
        return "the same again"
    if settings is None:
        return ", ".join(f"other {part}" for part in parts)
    words = {
        "threads": f"{settings.threads} thread{'s' * (settings.threads > 1)}",
        "attention": f"attention {settings.attention}",
        "dtype": f"dtype {settings.dtype}",
    }
    return ", ".join(
        words.get(part, f"batch size {settings.batch_size}") for part in parts
    )


# --------------------------------------------------------------------- what came of it


class Run(Struct, frozen=True):
    """One measurement of a key, and what it was made with."""

    variation: str
    settings: Settings
    measurement: Measurement


class NotRun(Struct, frozen=True):
    """A variation that cannot be measured here."""

    variation: str
    reason: str


class Noise(Struct, frozen=True):
    """How far a key's metrics moved over its runs, the first of them unchanged.

    ``movement`` is ``highest / lowest - 1`` of the metric that moved most, among the
    runs in the first one's dtype: a baseline may be recorded in any of them, and
    measured in any other. ``between`` are the two. ``dtype_movement`` is how far
    another dtype is from the first run. ``rel`` is the proposed tolerance.
    """

    movement: float
    between: tuple[str, str]
    dtype_movement: float | None
    rel: float
    reason: str


def judge_noise(runs: Sequence[Run]) -> Noise:
    """What a tolerance must cover, and which one does; see :func:`propose`."""
    first = runs[0]
    same = [run for run in runs if run.settings.dtype == first.settings.dtype]
    movement, between = _spread(same)
    other = [
        _spread([first, run])[0]
        for run in runs
        if run.settings.dtype != first.settings.dtype
    ]
    rel, reason = propose(movement)
    return Noise(movement, between, max(other, default=None), rel, reason)


def propose(movement: float) -> tuple[float, str]:
    """A ``rel`` of the series 1, 2, 5 that is :data:`MARGIN` movements, and why."""
    needed = MARGIN * movement
    rel = next(
        value
        for power in itertools.count(-5)
        for value in (float(f"{digit}e{power}") for digit in (1, 2, 5))
        if value >= max(needed, LEAST)
    )
    if movement == 0:
        return rel, f"nothing moved, and {decimal(LEAST)} is the least that is proposed"
    if needed <= LEAST:
        return rel, (
            f"{MARGIN} times the largest movement is {needed:.1e}, and "
            f"{decimal(LEAST)} is the least that is proposed"
        )
    return rel, (
        f"{MARGIN} times the largest movement is {needed:.1e}, rounded up to 1, 2 or 5"
    )


def decimal(rel: float) -> str:
    """Without an exponent: YAML takes ``1e-05`` for a text."""
    return f"{rel:.5f}".rstrip("0").rstrip(".")


def _spread(runs: Sequence[Run]) -> tuple[float, tuple[str, str]]:
    """The widest ``highest / lowest - 1`` of any metric, and the two runs."""
    found = []
    for metric in runs[0].measurement.metrics:
        values = [run.measurement.metrics[metric] for run in runs]
        low, high = values.index(min(values)), values.index(max(values))
        ends = [runs[index].variation for index in sorted((low, high))]
        found.append((max(values) / min(values) - 1, (ends[0], ends[1])))
    return max(found, key=lambda pair: pair[0])


def _change(run: Run, first: Run, metric: str) -> float:
    return run.measurement.metrics[metric] / first.measurement.metrics[metric] - 1


def _largest_window(run: Run, first: Run) -> float:
    """How far the window that moved most did, in nats a token."""
    return max(
        abs(new.nll_sum - old.nll_sum) / old.scored
        for new, old in zip(
            run.measurement.evidence, first.measurement.evidence, strict=True
        )
    )


# ---------------------------------------------------------------------------- measuring


class _Bench:
    """Measures one checkpoint under different settings; one copy is in memory.

    ``reads`` are keys of the texts that will be read: without one nothing is loaded.
    """

    def __init__(self, spec: str, options: Options, reads: Sequence[Key]) -> None:
        if options.batch_size == BATCH_AUTO:
            raise UsageError(
                "--batch-size auto may be another one in each run, and noise varies it "
                "itself: give a number"
            )
        self._spec = spec
        self._options = options
        self._targets: dict[str, Target] = {}
        self._loading: dict[str, Options] = {}
        self._told: set[str] = set()
        self._store = Store(
            self._targets,
            load=self._load,
            open_corpus=lambda corpus: open_corpus(corpus, options.corpora),
            watch=watching,
        )
        locate_target(Target(name=spec, spec=spec), options)
        for key in reads:
            self._store.check_text(key)
        # The model is not kept: it has to make room for its other versions.
        loaded = self.loaded()
        self._tokenizer = loaded.tokenizer
        self.machine = Machine(
            device=loaded.device.partition(":")[0],
            cores=os.cpu_count() or 1,
            native_bfloat16=_native_bfloat16(loaded.device),
        )
        self.first = Settings(
            threads=options.threads or _get_threads(),
            batch_size=options.batch_size,
            attention=loaded.attention,
            dtype=loaded.dtype,
        )

    def loaded(self) -> Loaded:
        """The checkpoint as the first run measures it."""
        return self._get(self._options)

    def windows(self, key: Key) -> list[int]:
        """The windows of ``key``, as the number of the unit that ``:firstN`` counts."""
        corpus = self._store.corpus(get_protocol(key.method).corpus(key))
        return [
            index if window.page is None else window.page
            for index, window in enumerate(cut_windows(self._tokenizer, corpus, key))
        ]

    def measure(self, key: Key, settings: Settings, what: str) -> Measurement:
        """One measurement, nothing of it remembered.

        Raises:
            PplguardError: it cannot be made under these settings.
        """
        options = self._options
        if settings.attention != self.first.attention:
            options = replace(options, attention=settings.attention)
        if settings.dtype != self.first.dtype:
            options = replace(options, dtype=settings.dtype)
        loaded = self._get(options)
        if (loaded.attention, loaded.dtype) != (settings.attention, settings.dtype):
            raise MeasurementError(
                f"the model runs with attention {loaded.attention} in {loaded.dtype}, "
                f"not {settings.attention} in {settings.dtype}"
            )
        with (
            using_threads(settings.threads),
            watching(f"{key} {what}") as progress,
        ):
            measured = measure_loaded(
                loaded,
                key,
                self._store.corpus,
                batch_size=settings.batch_size,
                compile=options.compile,
                progress=progress,
            )
        self._tell(*measured.notices)
        return measured

    def _get(self, options: Options) -> Loaded:
        # Other versions of the model are told apart by what differs in them.
        other = [options.attention or "", options.dtype]
        name = " ".join(
            [self._spec, *(filter(None, other) if options is not self._options else ())]
        )
        self._targets[name] = Target(name=name, spec=self._spec)
        self._loading[name] = options
        return self._store.loaded(name)

    def _load(self, target: Target) -> Loaded:
        options = self._loading[target.name]
        # What is to be said of the other versions, the table says.
        tell = self._tell if options is self._options else _say_nothing
        return load_target(target, options, tell=tell)

    def _tell(self, *notices: str) -> None:
        new = [notice for notice in notices if notice not in self._told]
        self._told.update(new)
        say(*new)


def _say_nothing(*notices: str) -> None:
    """Where notices are of no use."""


def measure_noise(
    spec: str,
    wanted: Wanted,
    options: Options,
    *,
    variations: int,
    json_path: str | None,
) -> None:
    """Measure ``spec`` once, then under ``variations`` other settings; print it all.

    Raises:
        UsageError: a method needs a second checkpoint.
    """
    if any(get_protocol(method).needs_reference for method in wanted.methods):
        raise UsageError(
            "--method kl compares two checkpoints, and noise is that of one: leave it "
            "out (docs/divergence.md says what moves a divergence)"
        )
    bench = _Bench(spec, options, wanted.check_keys())
    keys = wanted_keys(spec, wanted, lambda: max_positions(bench.loaded().model))
    if wanted.limit is None:
        keys = _limited(bench, keys, variations)
    runs, not_run = _measure_all(bench, keys, variations)
    write_json(_document(spec, runs, not_run), json_path)
    if json_path != "-":
        show_table(_report(spec, runs, not_run))


def _measure_all(
    bench: _Bench, keys: Sequence[Key], variations: int
) -> tuple[dict[Key, list[Run]], list[NotRun]]:
    """The first run, then variations until enough of them could be made."""
    first = bench.first
    runs = {
        key: [Run("first run", first, bench.measure(key, first, "first run"))]
        for key in keys
    }
    not_run: list[NotRun] = []
    for parts in PLAN:
        settings = varied(parts, first, bench.machine)
        if isinstance(settings, str):
            not_run.append(NotRun(label(parts, None), settings))
            continue
        name = label(parts, settings)
        try:
            new = [bench.measure(key, settings, name) for key in keys]
        except PplguardError as error:
            not_run.append(NotRun(name, str(error)))
            continue
        for key, measured in zip(keys, new, strict=True):
            runs[key].append(Run(name, settings, measured))
        if len(runs[keys[0]]) > variations:
            break
    return runs, not_run


def _limited(bench: _Bench, keys: Sequence[Key], variations: int) -> list[Key]:
    """Keys of so many windows, or pages, that all runs take about a minute."""
    settings = (varied(parts, bench.first, bench.machine) for parts in PLAN)
    possible = [each for each in settings if not isinstance(each, str)][:variations]
    costs = 1 + sum(_cost(each, bench.first) for each in possible)
    budget = _MINUTE / len(keys) / costs
    limited = []
    for key in keys:
        started = time.perf_counter()
        units = bench.windows(key)
        cutting = time.perf_counter() - started
        taken = bench.measure(replace(key, first=1), bench.first, "is timed")
        # The first window's proof costs about two more.
        each = max(taken.seconds - cutting, 1e-3) / (taken.windows + 2)
        affordable = max(0, int((budget - cutting) / each))
        limit = choose_limit(units, affordable)
        if limit is None:
            limited.append(key)
            continue
        limited.append(replace(key, first=limit))
        say(
            f"{limited[-1]}: so many that all runs take about a minute "
            "(--limit changes it)"
        )
    return limited


def choose_limit(units: Sequence[int], affordable: int) -> int | None:
    """How many units (windows, or pages) to measure; None for all of them.

    ``units`` has each window's unit, counted from 0. At least :data:`_FEWEST_WINDOWS`
    windows are taken, whatever is affordable: few say little.
    """
    if max(affordable, _FEWEST_WINDOWS) >= len(units):
        return None
    # Units that are whole within the affordable windows, and those of the fewest.
    limit = max(units[affordable], units[_FEWEST_WINDOWS - 1] + 1)
    return limit if limit <= units[-1] else None


def _cost(settings: Settings, first: Settings) -> float:
    """How many times longer a run takes, at the most."""
    slower = max(1.0, first.threads / settings.threads)
    return slower * (_SLOWER_IN_FLOAT64 if settings.dtype == "float64" else 1.0)


def _get_threads() -> int:
    import torch

    return torch.get_num_threads()


def _native_bfloat16(device: str) -> bool:
    """Whether the device multiplies bfloat16 itself; a CPU that is not known does not.

    The names are those of torch's ``cpuinfo``; before torch 2.11 there was no list.
    """
    import torch

    kind = device.partition(":")[0]
    if kind == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if kind != "cpu":
        return False
    ask = getattr(torch.cpu, "get_capabilities", None)
    if ask is not None:
        known: Mapping[str, Any] = ask()
        return bool(known.get("avx512_bf16") or known.get("amx_bf16"))
    older = getattr(torch.cpu, "_is_avx512_bf16_supported", None)
    return bool(older is not None and older())


# ------------------------------------------------------------------------------ reports


def _document(
    spec: str, runs: Mapping[Key, Sequence[Run]], not_run: Sequence[NotRun]
) -> dict[str, Any]:
    return {
        "schema": SCHEMA,
        "model": spec,
        "noise": [_entry(key, of_key) for key, of_key in runs.items()],
        "not_run": plain(not_run),
    }


def _entry(key: Key, runs: Sequence[Run]) -> dict[str, Any]:
    first = runs[0]
    return {
        "key": str(key),
        "windows": first.measurement.windows,
        "environment": first.measurement.environment,
        "runs": [
            {
                "variation": run.variation,
                **asdict(run.settings),
                "metrics": run.measurement.metrics,
                "change": {
                    metric: _change(run, first, metric)
                    for metric in run.measurement.metrics
                },
                "largest_window": _largest_window(run, first),
                "seconds": run.measurement.seconds,
            }
            for run in runs
        ],
        **asdict(judge_noise(runs)),
    }


def _report(
    spec: str, runs: Mapping[Key, Sequence[Run]], not_run: Sequence[NotRun]
) -> list[str]:
    lines = [spec]
    for key, of_key in runs.items():
        lines += _of_key(key, of_key)
    if not_run:
        lines += ["not run here:"]
        lines += [f"  {each.variation}: {each.reason}" for each in not_run]
    return [
        *lines,
        "largest window: how far the window that moved most did, in nats a token",
        "not seen here: other machines, and other versions of torch and transformers; "
        "the default, rel 0.005, covers these",
    ]


def _of_key(key: Key, runs: Sequence[Run]) -> list[str]:
    first, noise = runs[0], judge_noise(runs)
    metric = get_protocol(key.method).metrics[0]
    settings = first.settings
    lines = [
        f"  {key}: {counted(first.measurement.windows, 'windows')}; "
        f"{settings.dtype} on {first.measurement.environment['device']}, "
        f"attention {settings.attention}, batch size {settings.batch_size}, "
        f"{settings.threads} thread{'s' * (settings.threads > 1)}",
        f"    {'':<32} {metric:>17} {'change':>9} {'largest window':>15}",
    ]
    for run in runs:
        value = number(run.measurement.metrics[metric])
        line = f"    {run.variation:<32} {value:>17}"
        if run is not first:
            window = _largest_window(run, first)
            change = _change(run, first, metric)
            line += f" {_signed(change):>9} {_short(window):>15}"
        lines.append(line)
    return [*lines, *(f"    {name:<14} {text}" for name, text in _facts(key, noise))]


def _facts(key: Key, noise: Noise) -> Iterator[tuple[str, str]]:
    one, other = noise.between
    which = "" if noise.movement == 0 else f' (between "{one}" and "{other}")'
    yield "must cover", f"{_short(noise.movement)}, the dtype unchanged{which}"
    if key.first is not None:
        yield (
            "",
            "an upper estimate: a mean over fewer windows than the whole text moves "
            "more",
        )
    yield "proposed", f"{{rel: {decimal(noise.rel)}}}"
    yield "because", noise.reason
    if noise.dtype_movement is not None:
        yield (
            "another dtype",
            f"moves it by {_short(noise.dtype_movement)}, told apart: a failure in "
            "another dtype than the baseline's begins with that",
        )


def _short(value: float) -> str:
    return "0" if value == 0 else f"{value:.1e}"


def _signed(value: float) -> str:
    return "0" if value == 0 else f"{value:+.1e}"
