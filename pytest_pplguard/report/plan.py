"""What a measurement takes, for people in 80 columns and as a JSON document."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from ..planning import Place, Plan, Timing
from ..values import SCHEMA
from .json import plain
from .terminal import wrapped

_WIDTH = 80
_LABEL = 13

_KNOWN = {
    "files": "",
    "index": ", by the index of its shards, which are not all here",
    "estimated": ", by its parameters: no weights are here",
}
_PREFIXES = ("", "k", "M", "G", "T", "P", "E")
_NUMBERS = ("", "k", "M", "B", "T")
"""As people count parameters."""


def plan_document(plan: Plan) -> dict[str, Any]:
    """``{"schema": 1, "model": ..., "memory": {...}, "keys": [...]}``."""
    shape, where = plan.shape, plan.place
    return {
        "schema": SCHEMA,
        "model": plan.model,
        "architecture": shape.architecture,
        "parameters": {
            "total": shape.parameters,
            "active": shape.active,
            "embedding": shape.embedding,
            "head": shape.head,
            "tied": shape.tied,
            "layers": len(shape.layers),
        },
        "disk": plain(plan.disk),
        "device": plan.device,
        "dtype": plan.dtype,
        "window": plan.window,
        "batch_size": plan.batch,
        "memory": plain(plan.memory) | {"total": plan.memory.total},
        "pool": plain(plan.pool),
        "place": plain(where) | {"fits": where.fits},
        "options": options(plan),
        "replicas": plan.replicas,
        "possible_replicas": plan.possible_replicas,
        "keys": [plain(work) for work in plan.keys],
        "flops": plan.flops,
        "seconds": plan.seconds,
        "timing": None if plan.timing is None else plain(plan.timing),
        "notices": list(plan.notices),
    }


def plan_lines(plan: Plan) -> list[str]:
    """A heading, facts, and a table of what is measured."""
    shape = plan.shape
    lines = [
        f"{plan.model}: {shape.architecture}, {len(shape.layers)} layers of width "
        f"{shape.hidden}"
    ]
    for label, text in _facts(plan):
        first = f"{label:<{_LABEL}}"
        lines += wrapped(text, _WIDTH, first=first, rest=" " * _LABEL)
    if plan.keys:
        lines += ["", *_table(plan)]
    return lines


def _facts(plan: Plan) -> Iterator[tuple[str, str]]:
    yield "parameters", _parameters(plan)
    yield "on disk", f"{size(plan.disk.size)}{_KNOWN[plan.disk.known]}"
    memory = plan.memory
    at_once = f", {plan.batch} at once" if plan.batch > 1 else ""
    yield (
        "in memory",
        f"{size(memory.total)} in {plan.dtype}, windows of {plan.window:,} "
        f"tokens{at_once}",
    )
    yield "", f"weights {size(memory.weights)}, activations {size(memory.activations)}"
    yield "", f"logits {size(memory.logits)}, margin {size(memory.margin)}"
    yield ("fits" if plan.place.fits else "does not fit"), _place(plan)
    for line in options(plan):
        yield "", line
    yield "time", _time(plan)


def _parameters(plan: Plan) -> str:
    shape = plan.shape
    layers = sum(layer.parameters for layer in shape.layers)
    head = "tied to it" if shape.tied else parameters(shape.head)
    text = (
        f"{parameters(shape.parameters)}: layers {parameters(layers)}, embedding "
        f"{parameters(shape.embedding)}, head {head}"
    )
    if shape.active != shape.parameters:
        text += f"; {parameters(shape.active)} active for each token"
    return text


# --------------------------------------------------------------------------- the place


def _place(plan: Plan) -> str:
    where, pool = plan.place, plan.pool
    gpus = _gpus(plan)
    if where.verdict == "CPU":
        return f"the memory of this machine, {size(where.left)} of it to spare"
    if where.verdict == "one GPU":
        on = gpus if pool.count == 1 else f"one of {gpus}"
        return f"{on}, {size(where.left)} of it to spare"
    if where.verdict == "several GPUs":
        return (
            f"{where.gpus} of {gpus}, {_split(where)}, {size(where.left)} to spare on "
            "the fullest"
        )
    if where.verdict == "offloaded":
        return (
            f"{gpus} with {size(where.offloaded)} of the weights in CPU memory, which "
            "is slow"
        )
    if where.verdict == "several machines":
        return (
            f"all of {gpus}, {_split(where)}; layers are placed on one machine only, "
            "so a server has to span them (vLLM with pipeline parallelism)"
        )
    if not pool.gpus:
        return f"{size(where.short)} more memory is needed than is free here"
    least = (
        f"{where.least} such GPUs in one machine would do"
        if where.least
        else "one layer alone is larger than such a GPU"
    )
    return f"{size(where.short)} too much for {gpus}: {least}"


def _gpus(plan: Plan) -> str:
    """``8 GPUs with 80 GB each``, ``2 x 8 GPUs ...`` on two machines."""
    pool = plan.pool
    if not pool.gpus:
        return ""
    free = "" if pool.given else " free"
    each = f"{size(min(pool.gpus))}{free}"
    machines = f"{pool.machines} x " if pool.machines > 1 else ""
    if pool.count == 1:
        text = f"1 GPU with {each}"
    else:
        noun = "GPU" if len(pool.gpus) == 1 else "GPUs"
        text = f"{machines}{len(pool.gpus)} {noun} with {each} each"
    return text + (f" ({pool.name})" if pool.name else "")


def _split(where: Place) -> str:
    """``40 layers each`` or ``8 on each of 14, 7 on each of 2``."""
    counts = Counter(where.layers)
    if len(counts) == 1:
        return f"{where.layers[0]} layers each"
    parts = [
        f"{layers} on {'one' if gpus == 1 else f'each of {gpus}'}"
        for layers, gpus in sorted(counts.items(), reverse=True)
    ]
    return f"layers: {', '.join(parts)}"


def options(plan: Plan) -> list[str]:
    """What to type: options of pytest; ``pplguard measure`` has them without ``ppl-``.

    Empty where nothing need be typed.
    """
    where = plan.place
    if where.verdict == "several machines":
        return ["--ppl-executor server --ppl-server http://HOST:8000/v1"]
    if where.verdict == "nowhere" and not plan.pool.gpus:
        room = int(0.9 * (plan.pool.cpu or 0))
        return [f"or, slowly, partly from disk: --ppl-max-memory cpu={_gib(room)}"]
    if where.verdict == "nowhere":
        sizes = [f"--ppl-max-memory {gpu}={_gib(r)}" for gpu, r in where.room.items()]
        some = [*sizes[:1], *(["..."] if len(sizes) > 1 else [])]
        rest = f"or, slowly: {' '.join(some)} --ppl-max-memory cpu=SIZE"
        return [rest]
    lines = []
    if where.typed:
        sizes = [f"--ppl-max-memory {on}={_gib(r)}" for on, r in where.room.items()]
        lines.append(" ".join(sizes))
    if plan.possible_replicas > 1:
        replicas = plan.replicas if plan.replicas > 1 else plan.possible_replicas
        lines.append(
            f"--ppl-executor ray --ppl-replicas {replicas} "
            f"--ppl-gpus-per-replica {where.gpus}"
        )
    return lines


def _gib(room: int) -> str:
    return f"{max(1, room // 2**30)}GiB"


# ---------------------------------------------------------------------------- the time


def _time(plan: Plan) -> str:
    timing, took = plan.timing, plan.seconds
    if timing is None or took is None:
        if plan.pool.given and plan.place.fits:
            return "not estimated: say what one of these GPUs reaches, --tflops X"
        return "not estimated"
    text = f"about {duration(took)} of scoring, {_how(timing)}"
    if plan.replicas > 1:
        text += f", {plan.replicas} replicas"
    if plan.place.verdict == "several machines":
        text += f", {plan.place.gpus} at once"
    if plan.place.gpus > 1 and plan.place.verdict in ("several GPUs", "offloaded"):
        text += "; the GPUs of one model work one after the other"
    return text


def _how(timing: Timing) -> str:
    rate = amount(timing.rate, "FLOP/s")
    return {
        "given": f"at {rate}, as given",
        "window": f"as windows of random tokens took here ({rate})",
        "layers": (
            f"as {timing.layers} layer{'' if timing.layers == 1 else 's'} and the head "
            f"took here for {timing.tokens:,} random tokens ({rate})"
        ),
        "products": f"at least: only its matrix products were timed here ({rate})",
    }[timing.how]


# --------------------------------------------------------------------------- the table


def _table(plan: Plan) -> list[str]:
    rows = [("key", "windows", "tokens", "FLOP", "time")]
    for work in plan.keys:
        about = "~" if work.counted == "estimated" else ""
        rows.append(
            (
                work.key,
                f"{about}{work.count.windows:,}",
                f"{about}{work.count.read:,}",
                amount(work.flops),
                "" if work.seconds is None else duration(work.seconds),
            )
        )
    if len(plan.keys) > 1:
        took = plan.seconds
        rows.append(
            ("all", "", "", amount(plan.flops), "" if took is None else duration(took))
        )
    return list(_aligned(rows))


def _aligned(rows: Sequence[tuple[str, ...]]) -> Iterator[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for key, *others in rows:
        cells = [
            f"{cell:>{width}}" for cell, width in zip(others, widths[1:], strict=True)
        ]
        yield "  ".join([f"{key:<{widths[0]}}", *cells]).rstrip()


def amount(count: float, unit: str = "") -> str:
    """``4.9 PFLOP/s``, with SI prefixes."""
    return _scaled(count, _PREFIXES, unit)


def parameters(count: int) -> str:
    """``6.74 B``, a thousand million."""
    return _scaled(count, _NUMBERS, "")


def _scaled(count: float, prefixes: Sequence[str], unit: str) -> str:
    power = 0
    while abs(count) >= 999.5 and power < len(prefixes) - 1:
        count, power = count / 1000, power + 1
    return f"{count:.3g} {prefixes[power]}{unit}".rstrip()


def size(count: float) -> str:
    """``13.5 GB``, a thousand million bytes."""
    return amount(count, "B")


def duration(seconds: float) -> str:
    """``0.4 s``, ``12 min``, ``3.5 h``, ``2.1 days``."""
    if seconds < 99.5:
        return f"{seconds:.2g} s"
    if seconds < 99.5 * 60:
        return f"{seconds / 60:.2g} min"
    if seconds < 48 * 3600:
        return f"{seconds / 3600:.2g} h"
    return f"{seconds / 86_400:.3g} days"
