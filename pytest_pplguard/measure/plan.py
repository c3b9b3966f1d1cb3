"""Plans a measurement: what it takes, without the checkpoint's weights.

The arithmetic is that of :mod:`pytest_pplguard.planning`; here are the tokenizer, the
text and this machine asked.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

from msgspec import Struct
from msgspec.structs import replace

from ..checkpoints import (
    Hardware,
    Located,
    choose_device,
    choose_dtype,
    load_tokenizer,
    saved_dtype,
)
from ..checkpoints.device import free_memory
from ..checkpoints.locate import has_tokenizer
from ..corpora import Corpus, open_corpus
from ..errors import CorpusError, UsageError
from ..options import BATCH_AUTO, Options
from ..planning import (
    ITEMSIZE,
    WIKITEXT2_PAGES,
    Count,
    KeyWork,
    Memory,
    Plan,
    Pool,
    Skeleton,
    Timing,
    bytes_a_token,
    disk_of,
    estimate_windows,
    is_packed,
    key_flops,
    place,
    seconds,
    stored_parameters,
)
from ..protocols import Tokenizer, get_protocol
from ..values import Key
from .environment import using_threads

_OFFLOADED = (
    "weights in CPU memory are sent to the GPU for every batch, which no time here has"
)


class Asked(Struct, frozen=True):
    """What the user said of the machine.

    ``gpus`` of each of ``machines``, with ``gpu_memory`` bytes each and ``cpu_memory``
    of the machine, None for this machine's own. ``per_replica`` bounds the GPUs of a
    replica. ``tflops`` is what a GPU reaches, in 1e12 FLOPs a second. ``calibrate``:
    whether time may be estimated by running something.
    """

    gpus: int | None = None
    machines: int = 1
    gpu_memory: int | None = None
    cpu_memory: int | None = None
    per_replica: int | None = None
    replicas: int = 1
    tflops: float | None = None
    calibrate: bool = True


def plan(
    located: Located,
    skeleton: Skeleton,
    keys: Sequence[Key],
    options: Options,
    asked: Asked,
    *,
    hardware: Hardware,
    recorded: Mapping[str, int] | None = None,
) -> Plan:
    """What measuring ``keys`` takes, and where.

    Args:
        located: the checkpoint, or its config alone.
        skeleton: from its config.
        keys: what is to be measured.
        options: as for a measurement.
        asked: what the user said of the machine.
        hardware: of this machine.
        recorded: windows by key, as a baseline has them.

    Raises:
        UsageError: a replica of more GPUs than a machine has, or more replicas than
            fit.
        DeviceError: the device that was asked for is not there.
        CheckpointError: the tokenizer cannot be read.
        CorpusError: the text is not there or too short.
    """
    notices = list(skeleton.notices)
    device, pool = _pool(options, asked, hardware)
    on_cpu = device.partition(":")[0] == "cpu"
    saved = saved_dtype(located)
    choice = choose_dtype(options.dtype, device, saved)
    itemsize = ITEMSIZE[choice.dtype]
    notices += filter(None, (choice.notice,))
    batch = 1 if options.batch_size == BATCH_AUTO else options.batch_size
    counted = _Counting(located, skeleton, options)
    work = [counted.work(key, (recorded or {}).get(str(key))) for key in keys]
    notices += counted.notices
    shape = skeleton.shape
    window = max((key.window for key in keys), default=0)
    memory = Memory.of(
        shape, itemsize=itemsize, batch=batch, window=window, on_cpu=on_cpu,
        eager=options.attention == "eager",
    )  # fmt: skip
    where = place(shape, memory, pool, itemsize, most=asked.per_replica)
    made = Plan(
        model=located.spec,
        shape=shape,
        disk=disk_of(located, shape, ITEMSIZE.get(saved or choice.dtype, itemsize)),
        device=device,
        dtype=choice.dtype,
        window=window,
        batch=batch,
        memory=memory,
        pool=pool,
        place=where,
        keys=tuple(work),
        replicas=asked.replicas,
    )
    if asked.replicas > made.possible_replicas and where.fits and where.gpus:
        raise UsageError(
            f"--replicas {asked.replicas}: each takes {where.gpus} of {pool.count} "
            f"GPUs, so that at most {made.possible_replicas} fit"
        )
    notices += _of_weights(located, skeleton, choice.dtype)
    timing = None
    if asked.tflops is not None and where.fits:
        # A server works on all of its GPUs at once; layers on several GPUs do not.
        at_once = where.gpus if where.verdict == "several machines" else 1
        timing = Timing("given", asked.tflops * 1e12 * at_once)
    elif asked.calibrate and where.fits and not pool.given:
        timing = _timing(skeleton, options, device, choice.dtype, batch, work, pool)
    if timing is not None:
        if where.verdict == "offloaded":
            notices.append(_OFFLOADED)
        work = [_with_seconds(one, timing.rate, asked.replicas) for one in work]
    return replace(made, keys=tuple(work), timing=timing, notices=tuple(notices))


# ----------------------------------------------------------------------- the machine


def _pool(options: Options, asked: Asked, hardware: Hardware) -> tuple[str, Pool]:
    """The device that a model would run on, and the memory that there is."""
    if asked.gpus is not None:
        assert asked.gpu_memory is not None
        if asked.per_replica is not None and asked.per_replica > asked.gpus:
            raise UsageError(
                f"--gpus-per-replica {asked.per_replica}: a replica is on one machine, "
                f"and each has {asked.gpus}"
            )
        gpus = (asked.gpu_memory,) * asked.gpus
        return "cuda", Pool(gpus, asked.machines, asked.cpu_memory, given=True)
    from ..scoring.memory import available

    device = choose_device(options.device, hardware).device
    cpu = asked.cpu_memory or available()
    kind, _, index = device.partition(":")
    if kind == "cpu":
        return device, Pool(cpu=cpu)
    # Only where the user leaves the choice to us are layers placed on several.
    spread = options.device == "auto"
    numbers = range(hardware.count) if spread else [int(index or 0)]
    if asked.per_replica is not None and asked.per_replica > len(numbers):
        raise UsageError(
            f"--gpus-per-replica {asked.per_replica}: this machine has {len(numbers)}"
        )
    free = [free_memory(hardware, number) for number in numbers]
    known = tuple(size for size in free if size is not None)
    if len(known) < len(free):  # it shares the machine's memory, and cannot say
        known = (cpu,)
    return device, Pool(known, cpu=cpu, name=hardware.names[0])


def _timing(
    skeleton: Skeleton,
    options: Options,
    device: str,
    dtype: str,
    batch: int,
    work: Iterable[KeyWork],
    pool: Pool,
) -> Timing:
    from .calibrate import calibrate

    tokens = max((_tokens(one.count) for one in work), default=0)
    with using_threads(options.threads):
        return calibrate(
            skeleton, tokens, device=device, dtype=dtype, batch=batch,
            attention=options.attention, trust_remote_code=options.trust_remote_code,
            room=max(pool.gpus or (pool.cpu or 0,)),
        )  # fmt: skip


def _with_seconds(work: KeyWork, rate: float, replicas: int) -> KeyWork:
    took = seconds(work.flops, work.count.windows, rate, replicas=replicas)
    return KeyWork(work.key, work.counted, work.count, work.flops, took)


def _tokens(count: Count) -> int:
    """Of a window, in the mean."""
    return max(2, round(count.read / max(1, count.windows)))


# ------------------------------------------------------------------------ the weights


def _of_weights(located: Located, skeleton: Skeleton, dtype: str) -> list[str]:
    """What the files say otherwise than the config, or in another form."""
    notices = []
    shape = skeleton.shape
    if located.base is not None:
        notices.append(
            f"{located.spec} is an adapter: it is merged, and takes what its base does"
        )
    if is_packed(located):
        notices.append(
            f"{located.spec} is quantised: its weights are counted as {dtype}, which "
            "they take where they are unpacked; less where this device has kernels "
            "for them"
        )
    stored = stored_parameters(located)
    if stored is not None and stored != shape.parameters:
        twice = stored - shape.parameters == shape.embedding and shape.tied
        if not twice:  # a tied head that was saved beside the embedding
            notices.append(
                f"the files hold {stored:,} parameters, and config.json makes a model "
                f"of {shape.parameters:,}: `pplguard doctor` says what differs"
            )
    return notices


# ------------------------------------------------------------------------ the windows


class _Counting:
    """Counts windows, with the tokenizer and the text where both are at hand."""

    def __init__(self, located: Located, skeleton: Skeleton, options: Options) -> None:
        self.notices: list[str] = []
        self._located = located
        self._shape = skeleton.shape
        self._options = options
        self._texts: dict[str, Corpus | None] = {}
        self._tokenizer: Tokenizer | None = None
        whole = located.model
        self._has_tokenizer = (
            whole.gguf is not None
            or has_tokenizer(located.folder)
            or has_tokenizer(whole.folder)
        )

    def work(self, key: Key, recorded: int | None) -> KeyWork:
        """What one key takes."""
        text = self._text(get_protocol(key.method).corpus(key))
        if text is not None and self._has_tokenizer:
            if self._tokenizer is None:
                self._tokenizer = load_tokenizer(
                    self._located, trust_remote_code=self._options.trust_remote_code
                )
            windows = get_protocol(key.method).windows(text, self._tokenizer, key)
            count = Count(
                len(windows),
                sum(len(window.ids) for window in windows),
                sum(len(window.targets) for window in windows),
            )
            return KeyWork(str(key), "exact", count, key_flops(self._shape, count))
        if recorded is not None:
            read = recorded * key.window
            count = Count(recorded, read, read)
            return KeyWork(str(key), "recorded", count, key_flops(self._shape, count))
        count = self._estimate(key, text)
        return KeyWork(str(key), "estimated", count, key_flops(self._shape, count))

    def _text(self, name: str) -> Corpus | None:
        """A text; None for WikiText-2 where it cannot be had: its size is known."""
        if name not in self._texts:
            try:
                self._texts[name] = open_corpus(name, self._options.corpora)
            except CorpusError:
                if name != "wikitext2" or name in self._options.corpora:
                    raise
                self._texts[name] = None
                self.notices.append(
                    "WikiText-2 is not here: counted by the size of its test file; "
                    "--ppl-corpus wikitext2=PATH counts it"
                )
        return self._texts[name]

    def _estimate(self, key: Key, text: Corpus | None) -> Count:
        per_token = bytes_a_token(self._shape.vocabulary)
        by_page = key.method == "lm-eval"
        if text is None:
            pages = [*WIKITEXT2_PAGES]
        else:
            pages = [len(page.encode()) for page in text.pages]
        pages = pages[: key.first] if by_page else [sum(pages)]
        tokens = [math.ceil(size / per_token) for size in pages]
        limit = None if by_page else key.first
        if text is not None and text.recipe.max_windows and not by_page:
            limit = min(limit or text.recipe.max_windows, text.recipe.max_windows)
        count = estimate_windows(
            tokens, key.window, stride=key.stride, whole=key.method == "wanda"
        )
        why = f"{per_token} bytes of text a token, as there is no tokenizer"
        if self._has_tokenizer:
            why = f"{per_token} bytes of text a token"
        note = f"windows are estimated by {why}: some 10 % more or less"
        if note not in self.notices:
            self.notices.append(note)
        if limit is None or limit >= count.windows:
            return count
        share = limit / count.windows
        return Count(limit, round(count.read * share), round(count.scored * share))
