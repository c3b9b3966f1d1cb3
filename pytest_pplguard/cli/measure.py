"""``pplguard measure``: a checkpoint's numbers, without a baseline."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, closing
from typing import Any

from msgspec import Struct
from msgspec.structs import replace

from ..checkpoints import Loaded, Located, Sparsity, to_record
from ..corpora import open_corpus
from ..errors import UsageError
from ..executors import make_executor
from ..journal import discard
from ..measure import (
    SameFiles,
    Store,
    StoredWeights,
    WeightsReader,
    journals_of,
    load_target,
    locate_target,
)
from ..options import Options, Target
from ..protocols import PROTOCOLS, USUAL_METHODS, check_key, get_protocol
from ..report import (
    can_be_redrawn,
    counted,
    measurements_document,
    number,
    watch_lines,
    watch_live,
)
from ..report.progress import ScorerProgress
from ..values import Fingerprint, Key, Ladder, Measurement
from .output import complain, say, show, write_json

_LONGEST_DEFAULT_WINDOW = 4096


class Wanted(Struct, frozen=True):
    """What the options of the command line ask to be measured."""

    methods: tuple[str, ...] = ()
    window: int | None = None
    stride: int | None = None
    limit: int | None = None
    corpora: tuple[str, ...] = ()
    files: list[str] = []
    reference: str | None = None
    tasks: tuple[str, ...] = ()
    shots: int | None = None

    @classmethod
    def parse(
        cls,
        methods: list[str] | None,
        *,
        window: int | None,
        limit: int | None,
        corpora: list[str] | None,
        stride: int | None = None,
        reference: str | None = None,
        tasks: list[str] | None = None,
        shots: int | None = None,
    ) -> Wanted:
        """Check method names; ``NAME=PATH`` names a corpus and its file.

        Raises:
            UsageError: unknown method, a stride for methods that have none, or shots
                without a task.
        """
        asked = [get_protocol(method) for method in methods or USUAL_METHODS]
        if stride is not None and not any(protocol.has_stride for protocol in asked):
            raise UsageError(
                f"--stride {stride}: {' and '.join(each.name for each in asked)} "
                f"ha{'s' if len(asked) == 1 else 've'} no stride; give the method "
                "strided, or leave it out"
            )
        if shots is not None and not tasks:
            raise UsageError("--shots is for tasks of lm-eval: add --task NAME")
        names = dict.fromkeys(value.partition("=")[0] for value in corpora or ())
        return cls(
            methods=tuple(dict.fromkeys(methods or ())),
            window=window,
            stride=stride,
            limit=limit,
            corpora=tuple(names),
            files=[value for value in corpora or () if "=" in value],
            reference=reference,
            tasks=tuple(dict.fromkeys(tasks or ())),
            shots=shots,
        )

    def check_reference(self) -> None:
        """A reference and a method that needs one go together.

        Raises:
            UsageError: one is there without the other.
        """
        compares = any(PROTOCOLS[method].needs_reference for method in self.methods)
        if compares and self.reference is None:
            raise UsageError(
                "--method kl compares with another checkpoint: give --reference MODEL, "
                "usually the dense one"
            )
        if self.reference is not None and not compares:
            raise UsageError(
                "--reference is for --method kl; add that, or leave it out"
            )

    def again(self, known: list[Key]) -> list[Key]:
        """The ``known`` keys if nothing else is asked for, else none.

        ``--corpus NAME=PATH`` of a text that they read only says where it is.
        """
        limits = (self.window, self.limit, self.shots)
        if self.methods or self.tasks or any(limit is not None for limit in limits):
            return []
        read = {get_protocol(key.method).corpus(key) for key in known}
        return known if set(self.corpora) <= read else []

    def keys(self, default_window: Callable[[str], int]) -> list[Key]:
        """One key for every method and corpus, and for every task of lm-eval.

        With tasks the usual methods are not meant, and lm-eval's task ``wikitext`` only
        where a corpus is named.

        Args:
            default_window: of a method, asked where none was typed; once for methods
                that are not usually measured at a window of their own.

        Raises:
            UsageError: a method cannot measure what is asked for.
        """
        windows: dict[int | None, int] = {}

        def window_of(method: str) -> int:
            usual = PROTOCOLS[method].usual_window
            if usual not in windows:
                windows[usual] = self.window or default_window(method)
            return windows[usual]

        methods = self.methods or (() if self.tasks else USUAL_METHODS)
        if self.tasks and not self.corpora:
            methods = tuple(method for method in methods if method != "lm-eval")
        keys = []
        for method in methods:
            protocol = PROTOCOLS[method]
            for corpus in self.corpora or (None,):
                key = protocol.key_for(corpus, window_of(method), self.limit)
                if self.stride is not None and protocol.has_stride:
                    key = replace(key, stride=self.stride)
                keys.append(key)
        for task in self.tasks:
            key = Key(
                "lm-eval",
                task,
                window_of("lm-eval"),
                first=self.limit,
                shots=self.shots,
            )
            keys.append(Key.parse(str(key)))  # the name may be none
        for key in keys:
            check_key(key)
        return keys

    def check_keys(self) -> list[Key]:
        """Refuse what no model could measure, before one is loaded.

        Returns:
            The keys as they would be with the longest window that is ever chosen.

        Raises:
            UsageError: as :meth:`keys`.
        """
        return self.keys(lambda _: _LONGEST_DEFAULT_WINDOW)

    def tell_strides(self, keys: Iterable[Key]) -> None:
        """Which strides were taken where none was typed."""
        if self.stride is None:
            strides = {key.method: key.stride for key in keys if key.stride}
            for method, stride in strides.items():
                say(f"{method}: stride {stride} (--stride changes it)")


class Checkpoint:
    """A checkpoint that a command works with: loaded at most once, told about.

    To be closed. ``reference`` is what ``kl`` compares it with, a
    checkpoint or another entry of its baseline file.
    """

    def __init__(
        self,
        spec: str,
        options: Options,
        *,
        name: str = "",
        allow_keys: tuple[str, ...] = (),
        reference: Target | None = None,
        reference_keys: tuple[str, ...] = (),
    ) -> None:
        self._name = name or spec
        self._spec = spec
        self._options = options
        target = Target(name=self._name, spec=spec)
        self._target = target
        targets = {self._name: target}
        # Nodes of a cluster may see what this machine does not.
        if not options.execution.sees_weights:
            # Before anything else is read: a path with a slip in it is found at once.
            _ = self.located
            if reference is not None:
                locate_target(reference, options)
        if reference is not None:
            targets.setdefault(reference.name, reference)
        self._reference = reference

        def load(wanted: Target) -> Loaded:
            keys = allow_keys if wanted is target else reference_keys
            located = locate_target(wanted, options)
            with self._same.loading(located):
                return load_target(
                    wanted, options, allow_keys=keys, tell=say, located=located
                )

        self._same = SameFiles(allow_pickle=options.allow_pickle)
        self._store = Store(
            targets,
            load=load,
            open_corpus=lambda corpus: open_corpus(corpus, options.corpora),
            watch=watching,
            batch_size=options.batch_size,
            compile=options.compile,
            threads=options.threads,
            journals=journals_of(options),
            task_folders=options.include_path,
            trust_remote_code=options.trust_remote_code,
            executor=make_executor(options, tell=say, names=[self._name]),
            allow_keys=lambda wanted: (
                allow_keys if wanted == self._name else reference_keys
            ),
        )

    @functools.cached_property
    def located(self) -> Located:
        """Where it is on this machine.

        Raises:
            CheckpointError: it is not there.
        """
        return locate_target(self._target, self._options)

    def close(self) -> None:
        """Give back what it holds, here and elsewhere."""
        self._store.close()

    def keys(self, wanted: Wanted) -> list[Key]:
        """What is wanted of it, and on stderr what was chosen for the user.

        Raises:
            UsageError: it cannot be measured so, or nobody knows at which window.
            CorpusError: a text is not there.
        """
        self.check(wanted.check_keys())
        return wanted_keys(
            self._name,
            wanted,
            lambda: self._store.subject(self._name).facts.max_positions,
        )

    def check(self, keys: Iterable[Key]) -> None:
        """Refuse what cannot be measured where it is, before it is made ready.

        Raises:
            UsageError: there is such a key.
            CorpusError: a key's text is not there.
        """
        keys = list(keys)
        for check in (self._store.check, self._store.check_text):
            for key in keys:
                check(key)

    def measure(self, key: Key) -> Measurement:
        """One measurement."""
        reference = None
        if get_protocol(key.method).needs_reference:
            assert self._reference is not None
            reference = self._reference.name
        measured = self._store.measurement(self._name, key, reference=reference)
        say(*measured.notices)
        return measured

    def ladder(self, start: Key, goal: Key, *, pages: int | None) -> Ladder:
        """The way from one method's number to another's."""
        climbed = self._store.ladder(self._name, start, goal, pages=pages)
        say(*climbed.notices)
        return climbed

    def discard_journals(self) -> None:
        """The measurements have reached the user: a further run measures anew."""
        for journal in self._store.take_complete_journals():
            discard(journal)

    def sparsity(self, pattern: tuple[int, int] | None = None) -> Sparsity:
        """Zeros in the linear weights of the decoder layers."""
        return self._weights.sparsity(pattern)

    def fingerprint(self) -> Fingerprint:
        """What its weights are, to be recorded.

        Raises:
            CheckpointError: it cannot be told, or there is NaN or infinity among them.
            ExecutorError: nobody is left who could tell.
        """
        return to_record(self._weights.fingerprint(), self._spec)

    @property
    def _weights(self) -> WeightsReader:
        """Who looks at its weights."""
        if self._options.execution.sees_weights:
            return self._store.weights(self._name)
        return StoredWeights(
            self.located,
            model=self._model,
            allow_pickle=self._options.allow_pickle,
            same=self._same,
        )

    def _model(self) -> Any:
        return self._store.loaded(self._name).model


def wanted_keys(
    name: str, wanted: Wanted, max_positions: Callable[[], int | None]
) -> list[Key]:
    """The keys, their windows and strides chosen where none were typed, and told.

    ``max_positions`` of the checkpoint are asked for where they are needed.
    """
    keys = wanted.keys(lambda method: default_window(name, max_positions(), method))
    wanted.tell_strides(keys)
    return keys


def default_window(name: str, limit: int | None, method: str) -> int:
    """The method's usual window, else the model's maximum; never silently.

    At most 4,096 tokens, and no more than ``limit``, the positions that the model was
    made for.

    Raises:
        UsageError: the model's config does not say.
    """
    usual = get_protocol(method).usual_window
    if usual is not None and (limit is None or usual <= limit):
        say(f"{method}: window {usual} (usual for this method; --window changes it)")
        return usual
    if limit is None:
        raise UsageError(
            f"{name}: its config has no max_position_embeddings; give --window TOKENS"
        )
    window = min(limit, _LONGEST_DEFAULT_WINDOW)
    whose = "" if usual is None else f"{method}: "
    say(f"{whose}window {window} (the model's maximum is {limit}; --window changes it)")
    return window


def measure_model(
    spec: str, wanted: Wanted, options: Options, *, json_path: str | None
) -> None:
    """Measure everything that is wanted of one checkpoint, and print it."""
    wanted.check_keys()
    reference = None
    if wanted.reference is not None:
        reference = Target(name=wanted.reference, spec=wanted.reference)
    with closing(Checkpoint(spec, options, reference=reference)) as checkpoint:
        measurements = [checkpoint.measure(key) for key in checkpoint.keys(wanted)]
        print_measurements(spec, measurements, json_path=json_path)
        checkpoint.discard_journals()


def print_measurements(
    model: str, measurements: list[Measurement], *, json_path: str | None
) -> None:
    """The values as a table, and as JSON where a path was given (``-``: only JSON)."""
    write_json(measurements_document(measurements), json_path)
    if json_path == "-":
        return
    show(model, style="bold")
    for measurement in measurements:
        read = "answers" if measurement.documents else "windows"
        counts = {read: measurement.windows} | measurement.units
        units = ", ".join(counted(count, unit) for unit, count in counts.items())
        show(f"  {measurement.key}: {units}, {measurement.seconds:.1f} s")
        for metric, value in measurement.metrics.items():
            error = measurement.stderr.get(metric)
            tail = f"  +- {number(error)}" if error is not None else ""
            show(f"    {metric:<20} {number(value):>12}{tail}")


def watching(
    label: str, *, unit: str = "windows", early: bool = False
) -> AbstractContextManager[ScorerProgress]:
    """Show progress on stderr: a bar on a terminal, else a line now and then."""
    if sys.stderr.isatty() and can_be_redrawn():
        return watch_live(label, unit=unit, early=early, stderr=True)
    return watch_lines(label, complain, unit=unit, early=early)
