"""What the user asked for: options checked and checkpoints matched to names. Pure."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Literal

from msgspec import Struct

from .errors import UsageError
from .values import LadderDetail, near_matches

DEMO = "demo"
DEMO_CHECKPOINTS = ("demo/dense", "demo/wanda-50")
JOURNAL_OFF = "off"
BATCH_AUTO: Literal["auto"] = "auto"
EXECUTORS = ("local", "ray", "server")
RAY_CLIENT = "ray://"
_INI = "ini "
PUBLISHED_POLICIES = ("accept", "warn", "fail")
_LISTED = 8


class Target(Struct, frozen=True):
    """A checkpoint to measure: its name in the baseline files, and where it is.

    ``spec`` is a folder, a GGUF file, a Hub id with ``@revision`` or ``demo/...``.
    """

    name: str
    spec: str


class Early(Struct, frozen=True):
    """When a gate may stop before its last window.

    ``cap`` is what no unseen window is assumed to have moved by, in nats a token; None:
    nothing is assumed, and only a failure can be known early. ``error`` is the largest
    probability of a verdict that the whole run would not have given.
    """

    cap: float | None = None
    error: float = 0.001


class Execution(Struct, frozen=True):
    """Where windows are scored.

    ``local`` is this process. ``ray``: ``replicas`` of a checkpoint on a cluster at
    ``address`` (None: RAY_ADDRESS, else one on this machine), each with
    ``gpus_per_replica`` (None: 1 where the cluster has GPUs). ``server``: the endpoint
    at ``address`` offers the checkpoint as ``model`` (None: the only one), and is sent
    ``replicas`` requests at once. A portion of windows is given up after ``timeout``
    seconds, and scored elsewhere; a server that is away is waited for that long.
    """

    where: Literal["local", "ray", "server"] = "local"
    replicas: int = 1
    gpus_per_replica: int | None = None
    address: str | None = None
    model: str | None = None
    timeout: float = 600.0

    @property
    def sees_weights(self) -> bool:
        """Whether those who score windows tell of the weights, too.

        Then nobody looks at files here, which may be older ones, or not there. A server
        tells nobody of its weights.
        """
        return self.where == "ray"


class Options(Struct, frozen=True):
    """Everything that the user set, checked, from command line and ini file.

    ``typed`` are the words of the command line that a further run needs to measure in
    the same way; the ini file speaks for itself: ``from_ini`` are the options, such as
    ``dtype``, whose values are its. ``journal`` is a folder,
    :data:`JOURNAL_OFF`, or None for the usual folder. ``cache`` is the folder of
    results, None where none are kept. ``early`` is None where every window is scored.
    ``threads`` of torch are left as they are where it is None. ``include_path`` are
    folders of YAML that defines tasks of lm-eval. ``ladders`` are what
    ``pplguard explain --json`` had measured, for reports. ``history`` is the address
    of a database, None where results are not added to any. ``max_memory`` are bytes by
    device (``0``, ``cpu``); empty where the model is on one device.
    """

    models: tuple[str, ...] = ()
    baselines: str = "baselines"
    corpora: dict[str, str] = {}
    device: str = "auto"
    max_memory: dict[str, int] = {}
    execution: Execution = Execution()
    dtype: str = "auto"
    attention: str | None = None
    batch_size: int | Literal["auto"] = 1
    compile: bool = False
    threads: int | None = None
    allow_pickle: bool = False
    trust_remote_code: bool = False
    include_path: tuple[str, ...] = ()
    update: Literal["no", "new", "all"] = "no"
    reports: tuple[str, ...] = ()
    ladders: tuple[LadderDetail, ...] = ()
    history: str | None = None
    journal: str | None = None
    cache: str | None = None
    early: Early | None = None
    published: str = "accept"
    require: bool = False
    typed: tuple[str, ...] = ()
    from_ini: frozenset[str] = frozenset()

    def where(self, name: str) -> str:
        """How the user gave an option: ``--ppl-dtype``, or ``ini ppl_dtype``."""
        if name in self.from_ini:
            return f"{_INI}ppl_{name}"
        return f"--ppl-{name.replace('_', '-')}"


def parse_batch_size(text: str, *, option: str) -> int | Literal["auto"]:
    """A whole number of windows, at least 1, or ``auto``.

    Raises:
        UsageError: it is neither.
    """
    if text == BATCH_AUTO:
        return BATCH_AUTO
    if not text.isdecimal() or int(text) < 1:
        raise UsageError(
            f"{option}: {text!r} is not a batch size; give a whole number from 1, or "
            "auto"
        )
    return int(text)


def parse_given(text: str, *, option: str, what: str) -> str:
    """``text``, unless it is empty, as ``--option=$VARIABLE`` without the variable is.

    ``what`` is a word for what is to be given, such as ``DIR``.

    Raises:
        UsageError: it is empty.
    """
    if not text:
        raise UsageError(f"{option}: empty; give {what}, or leave it out")
    return text


def parse_threads(text: str, *, option: str) -> int:
    """A whole number of threads, at least 1.

    Raises:
        UsageError: it is not.
    """
    if not text.isdecimal() or int(text) < 1:
        raise UsageError(
            f"{option}: {text!r} is no number of threads; give a whole number from 1"
        )
    return int(text)


def parse_execution(values: Mapping[str, tuple[str, str]]) -> Execution:
    """Where windows are scored.

    Args:
        values: by ``executor``, ``replicas``, ``gpus_per_replica``, ``ray_address``,
            ``portion_timeout``, ``server`` and ``server_model``: what was given, empty
            where nothing was, and the option or ini key that it was given by.

    Raises:
        UsageError: a value is none of its kind, or belongs to another executor.
    """
    where, option = values["executor"]
    if where:
        parse_choice(where, EXECUTORS, option=option)
    where = where or "local"
    values = _of_executor(where, values)
    if where == "server" and not values["server"][0]:
        raise UsageError(
            f"{values['executor'][1]} server: no server is given; add "
            f"{values['server'][1]} http://HOST:PORT/v1"
        )
    if values["ray_address"][0]:
        parse_ray_address(values["ray_address"][0], option=values["ray_address"][1])
    usual = Execution()
    replicas, gpus, timeout = (
        values[name] for name in ("replicas", "gpus_per_replica", "portion_timeout")
    )
    return Execution(
        where=where,  # type: ignore[arg-type]
        replicas=_whole(replicas, 1) if replicas[0] else usual.replicas,
        gpus_per_replica=_whole(gpus, 0) if gpus[0] else None,
        address=values["server" if where == "server" else "ray_address"][0] or None,
        model=values["server_model"][0] or None,
        timeout=_seconds(timeout) if timeout[0] else usual.timeout,
    )


def _of_executor(
    where: str, values: Mapping[str, tuple[str, str]]
) -> dict[str, tuple[str, str]]:
    """The values without those of other executors.

    What the ini file says for its own executor is no mistake of whoever types another.

    Raises:
        UsageError: such a value was typed, or is beside its executor in one place.
    """
    text, flag = values["executor"]
    is_typed = bool(text) and not _is_ini(flag)
    kept = dict(values)
    for name, (text, option) in values.items():
        needed = _EXECUTORS_OF.get(name)
        if not text or needed is None or where in needed:
            continue
        if not (is_typed and _is_ini(option)):
            raise UsageError(
                f"{option} is for {flag} {' or '.join(needed)}: add that, or leave it "
                "out"
            )
        kept[name] = "", option
    return kept


def _is_ini(option: str) -> bool:
    return option.startswith(_INI)


_EXECUTORS_OF = {
    "replicas": ("ray", "server"),
    "gpus_per_replica": ("ray",),
    "ray_address": ("ray",),
    "portion_timeout": ("ray", "server"),
    "server": ("server",),
    "server_model": ("server",),
}
"""Options that are for some executors only."""


def parse_ray_address(text: str, *, option: str) -> str:
    """``HOST:PORT``, ``ray://HOST:PORT``, ``auto`` or ``local``.

    Raises:
        UsageError: it is none of them.
    """
    host, _, port = text.removeprefix(RAY_CLIENT).rpartition(":")
    if text not in ("auto", "local") and not (
        host and "/" not in host and port.isdecimal()  # http://HOST:8265 is for jobs
    ):
        raise UsageError(
            f"{option}: {text!r} is no address of a Ray cluster; give HOST:6379, "
            "ray://HOST:10001 or auto"
        )
    return text


def _whole(given: tuple[str, str], least: int) -> int:
    text, option = given
    if not text.isdecimal() or int(text) < least:
        raise UsageError(f"{option}: {text!r} is no whole number from {least}")
    return int(text)


def _seconds(given: tuple[str, str]) -> float:
    text, option = given
    seconds = _number(text)
    if not 0 < seconds < math.inf:
        raise UsageError(
            f"{option}: {text!r} is no time; give seconds above 0, for example 600"
        )
    return seconds


def parse_max_memory(values: Sequence[str], *, option: str) -> dict[str, int]:
    """``DEVICE=SIZE`` of every value, in bytes.

    Raises:
        UsageError: no device, no size, or a device twice.
    """
    sizes: dict[str, int] = {}
    for value in values:
        device, _, size = value.partition("=")
        match = _SIZE.fullmatch(size)
        if match is None or not (device == "cpu" or device.isdecimal()):
            raise UsageError(
                f"{option}: {value!r} is not DEVICE=SIZE, for example 0=20GiB for the "
                "first GPU or cpu=60GiB"
            )
        if device in sizes:
            raise UsageError(f"{option}: {device} is given twice")
        sizes[device] = int(float(match["number"]) * _UNITS[match["unit"].lower()])
    return sizes


_SIZE = re.compile(r"(?P<number>\d+(\.\d+)?)(?P<unit>[kmgt]i?b)", re.I | re.A)
_UNITS = {
    "kb": 1e3, "mb": 1e6, "gb": 1e9, "tb": 1e12,
    "kib": 2**10, "mib": 2**20, "gib": 2**30, "tib": 2**40,
}  # fmt: skip


def parse_cap(text: str, *, option: str) -> float:
    """Nats a token, above 0.

    Raises:
        UsageError: it is not.
    """
    cap = _number(text)
    if not 0 < cap < math.inf:
        raise UsageError(
            f"{option}: {text!r} is no cap; give nats a token above 0, for example 0.05"
        )
    return cap


def parse_error(text: str, *, option: str) -> float:
    """A probability above 0 and of at most a half.

    Raises:
        UsageError: it is not.
    """
    error = _number(text)
    if not 0 < error <= 0.5:
        raise UsageError(
            f"{option}: {text!r} is no probability of a wrong verdict; give one above "
            "0 and of at most 0.5, for example 0.001"
        )
    return error


def _number(text: str) -> float:
    """The number that ``text`` spells, NaN where it spells none."""
    try:
        return float(text)
    except ValueError:
        return math.nan


def parse_corpora(values: Sequence[str], *, option: str) -> dict[str, str]:
    """``NAME=PATH`` of every value.

    Raises:
        UsageError: no ``=``, an empty side, or one name twice.
    """
    corpora: dict[str, str] = {}
    for value in values:
        name, equals, path = value.partition("=")
        if not (name and equals and path):
            raise UsageError(
                f"{option}: {value!r} is not NAME=PATH, "
                "for example wikitext2=data/wiki.test.raw"
            )
        if name in corpora and corpora[name] != path:
            raise UsageError(
                f"{option}: {name} is given twice, as {corpora[name]} and {path}"
            )
        corpora[name] = path
    return corpora


def parse_choice(value: str, choices: Sequence[str], *, option: str) -> str:
    """``value`` if it is one of ``choices``.

    Raises:
        UsageError: it is not.
    """
    if value not in choices:
        raise UsageError(
            f"{option}: {value!r}{near_matches(value, choices)} is not one of "
            f"{', '.join(choices)}"
        )
    return value


class Known(Struct, frozen=True):
    """What is known of the baseline files when targets are matched.

    ``paths`` maps each checkpoint name to its ``path:`` (None: it has none).
    ``candidates`` are the names that a bare path may mean: those of the files that
    will be collected. ``same_path`` compares a typed path with a recorded one.
    """

    paths: Mapping[str, str | None]
    candidates: tuple[str, ...]
    exists: Callable[[str], bool]
    same_path: Callable[[str, str], bool]
    folder: str = "baselines"


def parse_targets(values: Sequence[str], known: Known) -> tuple[Target, ...]:
    """Match every ``--ppl-model`` value to a checkpoint name.

    ``NAME=PATH`` is split at the first ``=`` only if NAME is known and the whole is no
    existing path. A known NAME alone stands for its recorded ``path:``. ``demo`` is
    both demo checkpoints, also beside a folder of that name. A bare path fits the only
    candidate, else the one whose ``path:`` equals it.

    Raises:
        UsageError: nothing or several fit, or two values mean one checkpoint.
    """
    targets: list[Target] = []
    for value in values:
        for target in _expand(value, known):
            double = next((t for t in targets if t.name == target.name), None)
            if double is not None and double != target:
                raise UsageError(
                    f"--ppl-model: {double.spec} and {target.spec} both stand for the "
                    f"checkpoint {target.name}; say which is which: "
                    f"--ppl-model NAME={target.spec}{_among(known.paths)}"
                )
            if double is None:
                targets.append(target)
    return tuple(targets)


def _expand(value: str, known: Known) -> list[Target]:
    if not value:
        raise UsageError("--ppl-model: empty; give [NAME=]PATH")
    if value == DEMO and all(name in known.paths for name in DEMO_CHECKPOINTS):
        return [Target(name=name, spec=name) for name in DEMO_CHECKPOINTS]
    if known.exists(value):
        return [_bare(value, known)]
    if value == DEMO:
        raise UsageError(
            f"--ppl-model demo: no baseline file demo.yaml in {known.folder}; "
            "run `pplguard demo DIR` and use the command that it prints"
        )
    name, equals, path = value.partition("=")
    if equals:
        if name not in known.paths:
            raise UsageError(
                f"--ppl-model: {value!r} is no existing path, and {name!r} is no "
                f"recorded checkpoint{near_matches(name, known.paths)}"
                f"{_among(known.paths)}"
            )
        if not path:
            raise UsageError(f"--ppl-model: no path behind {value!r}")
        return [Target(name=name, spec=path)]
    if value in known.paths:
        recorded = known.paths[value]
        if recorded is None:
            raise UsageError(
                f"--ppl-model {value}: its baseline records no `path:`; "
                f"say where it is: --ppl-model {value}=PATH"
            )
        return [Target(name=value, spec=recorded)]
    return [_bare(value, known)]


def _bare(path: str, known: Known) -> Target:
    if not known.candidates:
        raise UsageError(
            f"--ppl-model {path}: no baseline file in {known.folder}; record one with "
            f"`pplguard update {path} --checkpoint FILE/NAME --base MODEL`"
        )
    if len(known.candidates) == 1:
        return Target(name=known.candidates[0], spec=path)
    fitting = [
        name
        for name in known.candidates
        if (recorded := known.paths[name]) is not None
        and known.same_path(path, recorded)
    ]
    if len(fitting) == 1:
        return Target(name=fitting[0], spec=path)
    names = fitting or list(known.candidates)
    raise UsageError(
        f"--ppl-model {path}: {'several' if fitting else 'no'} checkpoints have this "
        f"`path:`; say which it is, for example --ppl-model {names[0]}={path} "
        f"(candidates: {_listed(names)})"
    )


def _among(names: Mapping[str, object]) -> str:
    return f" (known: {_listed(names)})" if names else " (no baseline file is known)"


def _listed(names: Iterable[str]) -> str:
    names = list(names)
    more = len(names) - _LISTED
    tail = f" and {more} more, see `pplguard show`" if more > 1 else ""
    return ", ".join(names[: _LISTED if tail else None]) + tail
