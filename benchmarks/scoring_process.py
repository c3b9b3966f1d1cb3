"""Score random windows; print seconds, peak memory and losses as JSON.

``scoring_process.py JOBS``: JOBS is a JSON list. A job that measures memory on a CPU
runs in a child of its own, forked before anything has used the heap.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import statistics
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
import transformers.modeling_utils  # noqa: F401

from benchmarks.models import make_model
from benchmarks.variants import VARIANTS, Score, known_variants, work_of

WARM_UP = 64
PAIRS = (("ours", "formula"), ("pages", "hflm"))
EQUAL = 1e-6
"""Relative, of mean losses in float32. Those of random tokens are some 12 nats, and
HFLM adds them up in float32: the perplexities differ by as many parts in a million."""
_SELF = Path("/proc/self")
_SAMPLED_EVERY = 0.005

Job = dict[str, Any]
Answer = dict[str, Any]

# ------------------------------------------------------------------------------ memory


def status(field: str) -> int:
    """Bytes of a field of /proc/self/status."""
    for line in (_SELF / "status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise KeyError(field)


@contextmanager
def peak() -> Iterator[list[int]]:
    """The highest resident memory inside the block, exact where it can be reset."""
    found: list[int] = []
    try:
        (_SELF / "clear_refs").write_text("5")  # resets VmHWM
    except OSError:
        samples, done = [status("VmRSS")], threading.Event()

        def sample() -> None:
            while not done.wait(_SAMPLED_EVERY):
                samples.append(status("VmRSS"))

        thread = threading.Thread(target=sample)
        thread.start()
        try:
            yield found
        finally:
            done.set()
            thread.join()
        found.append(max(samples))
    else:
        yield found
        found.append(status("VmHWM"))


def trim() -> None:
    """Hand freed memory back to the system, where the C library can."""
    gc.collect()
    with suppress(AttributeError, OSError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)


def host_memory(model: Any, job: Job) -> int:
    """Bytes at the peak of scoring above those before it.

    Before: after loading, a warm-up on a short window, and handing freed memory back,
    so that none of the peak hides in what loading left behind. The scorer is new, so
    that the proof of its head counts.
    """
    make = VARIANTS[job["variant"]]
    make(model, job["batch"])(work_of(model, WARM_UP, 1))
    work = work_of(model, job["window"], job["windows"])
    score = make(model, job["batch"])
    trim()
    before = status("VmRSS")
    with peak() as found:
        score(work)
    return int(found[0] - before)


def device_memory(model: Any, job: Job) -> int:
    """Bytes that tensors hold at the peak of scoring above those before it."""
    make = VARIANTS[job["variant"]]
    make(model, job["batch"])(work_of(model, WARM_UP, 1))  # libraries' workspaces
    work = work_of(model, job["window"], job["windows"])
    score = make(model, job["batch"])
    memory = torch.cuda if job["device"].startswith("cuda") else torch.accelerator
    gc.collect()
    memory.synchronize()
    memory.reset_peak_memory_stats()
    before = memory.memory_allocated()
    score(work)
    memory.synchronize()
    return int(memory.max_memory_allocated() - before)


def in_a_child(measure: Callable[[], Answer]) -> Answer:
    """The answer of a forked process, whose heap nothing else has used."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(read)
        status_ = 1
        try:
            with os.fdopen(write, "w") as stream:
                json.dump(measure(), stream)
            status_ = 0
        finally:
            sys.stderr.flush()
            os._exit(status_)  # the child of a benchmark has nothing to clean up
    os.close(write)
    with os.fdopen(read) as stream:
        text = stream.read()
    _, code = os.waitpid(child, 0)
    if code or not text:
        raise SystemExit("the process that measures memory failed")
    answer: Answer = json.loads(text)
    return answer


def measure_memory(job: Job, models: Models) -> Answer:
    if job["device"] == "cpu":

        def measure() -> Answer:
            return {"bytes": host_memory(fresh(job), job)}

        return in_a_child(measure)
    try:
        return {"bytes": device_memory(models(job), job)}
    except torch.OutOfMemoryError:
        return {"bytes": None}


# -------------------------------------------------------------------------------- time


def synchronize(device: str) -> None:
    if device != "cpu":
        torch.accelerator.synchronize()


def seconds_of(score: Score, work: Any, device: str) -> tuple[float, float]:
    """Seconds, and the negative log-likelihood."""
    synchronize(device)
    started = time.perf_counter()
    nll = score(work)
    synchronize(device)
    return time.perf_counter() - started, nll


def measure_time(job: Job, models: Models) -> Answer:
    """Alternating pairs in one process, after each has proven itself and is warm.

    A pair of which one runs out of memory is left out.
    """
    model = models(job)
    seconds: dict[str, list[float]] = {}
    losses: dict[str, float] = {}
    for pair in PAIRS:
        if not {*pair} <= {*job["variants"]}:
            continue
        try:
            found = time_pair(pair, model, job)
        except torch.OutOfMemoryError:
            continue
        seconds |= found[0]
        losses |= found[1]
        check_equal(losses, pair, job)
    return {"seconds": seconds, "losses": losses}


def time_pair(
    pair: tuple[str, ...], model: Any, job: Job
) -> tuple[dict[str, list[float]], dict[str, float]]:
    """Seconds of both in turns, and the mean loss of the first turn's windows."""
    scores = {name: VARIANTS[name](model, job["batch"]) for name in pair}
    for score in scores.values():
        score(work_of(model, min(512, job["window"]), 1))
    if job["window"] <= 512 or job["device"] != "cpu":
        for score in scores.values():  # of this shape, too
            score(work_of(model, job["window"], job["batch"]))
    seconds: dict[str, list[float]] = {name: [] for name in pair}
    losses = {}
    # lm-eval scores the first token of a text, too.
    scored = job["windows"] * (job["window"] - (pair == PAIRS[0]))
    for turn in range(job["pairs"]):
        work = work_of(model, job["window"], job["windows"], seed=turn + 1)
        for name in pair if turn % 2 == 0 else reversed(pair):
            took, nll = seconds_of(scores[name], work, job["device"])
            seconds[name].append(took)
            if turn == 0:
                losses[name] = nll / scored
    return seconds, losses


def check_equal(losses: dict[str, float], pair: tuple[str, ...], job: Job) -> None:
    """A faster number that is another number is no result."""
    one, other = (losses[name] for name in pair)
    apart = abs(one / other - 1)
    if job["dtype"] == "float32" and not apart <= EQUAL:
        raise SystemExit(
            f"{job['model']} at {job['window']}: {pair[0]} gives {one!r}, {pair[1]} "
            f"{other!r}: {apart:.1e} apart, more than {EQUAL:.0e}"
        )


# ------------------------------------------------------------------------------- limit


def operations(model: Any, window: int) -> int:
    """Floating-point operations of one window: matrix products, causal attention.

    A product of [m x k] and [k x n] is 2mkn. Attention counts positions that a token
    sees, half of the square; the head counts scored positions.
    """
    config = model.config
    head = model.get_output_embeddings()
    linear = sum(
        module.weight.numel()
        for module in model.modules()
        if isinstance(module, torch.nn.Linear) and module is not head
    )
    width = config.num_attention_heads * getattr(
        config, "head_dim", config.hidden_size // config.num_attention_heads
    )
    seen = window * (window + 1) // 2
    return int(
        2 * linear * window
        + 2 * head.weight.numel() * (window - 1)
        + 4 * width * seen * config.num_hidden_layers
    )


def product_rate(model: Any, window: int, device: str, dtype: str) -> float:
    """The best rate of matrix products in operations a second, over several shapes.

    Squares, and the model's own: its widest layer, its square one, its head on a part
    of the vocabulary.
    """
    config = model.config
    hidden, inner = config.hidden_size, config.intermediate_size
    side = 2048 if device == "cpu" else 8192
    shapes = {
        (side, side, side),
        (side // 2, side // 2, side // 2),
        (window, hidden, inner),
        (window, inner, hidden),
        (window, hidden, hidden),
        (window, hidden, min(config.vocab_size, 8192)),
    }
    kind = getattr(torch, dtype)
    best = 0.0
    for m, k, n in sorted(shapes):
        one = torch.randn(m, k, device=device, dtype=kind)
        other = torch.randn(n, k, device=device, dtype=kind).t()
        out = one @ other
        synchronize(device)
        work = 2 * m * k * n
        repeats = max(1, int((2e10 if device == "cpu" else 2e13) / work))
        for _ in range(3):
            started = time.perf_counter()
            for _ in range(repeats):
                torch.mm(one, other, out=out)
            synchronize(device)
            best = max(best, repeats * work / (time.perf_counter() - started))
    return best


def measure_limit(job: Job, models: Models) -> Answer:
    """Rates of scoring and of matrix products, taken in turns."""
    model = models(job)
    window, device = job["window"], job["device"]
    score = VARIANTS["ours"](model, job["batch"])
    score(work_of(model, window, job["batch"]))
    rates, products = [], []
    with torch.no_grad():
        for turn in range(job["pairs"]):
            products.append(product_rate(model, window, device, job["dtype"]))
            work = work_of(model, window, job["windows"], seed=turn + 1)
            took, _ = seconds_of(score, work, device)
            rates.append(job["windows"] * operations(model, window) / took)
    return {
        "operations": operations(model, window),
        "rate": statistics.median(rates),
        "product_rate": max(products),
        "threads": torch.get_num_threads(),
    }


# --------------------------------------------------------------------------------- main


def fresh(job: Job) -> Any:
    return make_model(job["model"], device=job["device"], dtype=job["dtype"])


class Models:
    """The model of the job before, if it is asked for again."""

    def __init__(self) -> None:
        self._kept: tuple[tuple[str, str, str], Any] | None = None

    def __call__(self, job: Job) -> Any:
        """The job's model."""
        asked = (job["model"], job["device"], job["dtype"])
        if self._kept is None or self._kept[0] != asked:
            self._kept = None
            gc.collect()
            if job["device"] != "cpu":
                torch.accelerator.empty_cache()
            self._kept = (asked, fresh(job))
        return self._kept[1]


MEASURES: dict[str, Callable[[Job, Models], Answer]] = {
    "memory": measure_memory,
    "time": measure_time,
    "limit": measure_limit,
}


def main() -> None:
    """Children first: a process whose threads have computed must not be forked."""
    jobs: list[Job] = json.loads(sys.argv[1])
    jobs.sort(key=lambda job: job["kind"] != "memory")
    models = Models()
    for job in jobs:
        variants = job.get("variants", [])
        job["variants"] = [name for name in variants if name in known_variants()]
        answer = job | MEASURES[job["kind"]](job, models)
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
