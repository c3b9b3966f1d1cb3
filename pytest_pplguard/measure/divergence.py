"""Measures how far a model is from a reference: one after the other, in rounds."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager

from msgspec import Struct
from msgspec.structs import replace

from ..checkpoints import Loaded
from ..corpora import Corpus
from ..divergence import Reference, compare, listen
from ..errors import MeasurementError
from ..options import BATCH_AUTO, Target
from ..protocols import Tokenizer, check_key, get_protocol, windows_digest
from ..scoring import BatchSize, Progress, Scorer
from ..values import Key, Measurement, Window, WindowScore
from .environment import environment, scored_on, using_threads
from .subject import Subject, check_ids, check_positions, subject_of
from .texts import text_notice


class Side(Struct, frozen=True):
    """A model by name, and what brings it into memory; it may take another's place."""

    name: str
    load: Callable[[], Loaded]


def measure_divergence(
    key: Key,
    *,
    model: Side,
    reference: Side,
    recall: Callable[[int], Reference | None],
    keep: Callable[[Reference], None],
    open_corpus: Callable[[str], Corpus],
    watch: Callable[[str], AbstractContextManager[Progress]],
    batch_size: BatchSize = 1,
    compile: bool = False,
    threads: int | None = None,
) -> Measurement:
    """Compare a model with a reference by ``key``.

    Both are loaded once a round, the reference first; one round is enough for what
    fits into the temporary file (see :mod:`pytest_pplguard.divergence`).

    Args:
        key: what to measure.
        model: what is measured.
        reference: what it is compared with.
        recall: gives what the reference has said about the windows from the one of a
            number on, None if it has to be run.
        keep: takes what the reference has said; whoever keeps it closes it.
        open_corpus: gives the text of a name.
        watch: shows the progress of what it is told.
        batch_size: windows that a model reads at once; ``auto`` is one, as two models
            would find two sizes.
        compile: run the models through torch.compile.
        threads: of torch while it measures on a CPU; None: as many as there are.

    Raises:
        UsageError: the method cannot do what the key says.
        CorpusError: the text is not there or too short.
        InvalidLossError: a loss or a divergence is not finite.
        MeasurementError: tokenizers or vocabularies differ, the disk is full, or a
            model cannot be measured this way.
        DeviceError: out of memory.
    """
    check_key(key)
    protocol = get_protocol(key.method)
    size = 1 if batch_size == BATCH_AUTO else batch_size
    run = _Run(key, open_corpus(protocol.corpus(key)), size, compile, threads)
    while run.total is None or len(run.scores) < run.total:
        start = len(run.scores)
        heard = recall(start)
        if heard is None:
            loaded = reference.load()
            label = _label(f"{reference.name} {key}, the reference", start)
            with watch(label) as progress, using_threads(threads):
                heard = run.listen(loaded, reference.name, progress)
            del loaded  # its memory is needed
            keep(heard)
        loaded = model.load()
        label = _label(f"{model.name} {key}", start)
        with watch(label) as progress, using_threads(threads):
            run.compare(loaded, model.name, heard, progress)
        finished = run.describe(loaded)
        del loaded
    return finished


def measure_divergence_elsewhere(
    key: Key,
    *,
    name: str,
    subject: Subject,
    reference: Target,
    allow_keys: Sequence[str],
    open_corpus: Callable[[str], Corpus],
    watch: Callable[[str], AbstractContextManager[Progress]],
    batch_size: BatchSize = 1,
    compile: bool = False,
    threads: int | None = None,
) -> Measurement:
    """As :func:`measure_divergence`, of models that are not in this process.

    Both are in memory where the ``subject`` is, and no temporary file is needed.

    Raises:
        UsageError: as there, or models cannot be compared there.
        PplguardError: as there.
    """
    check_key(key)
    protocol = get_protocol(key.method)
    size = 1 if batch_size == BATCH_AUTO else batch_size
    run = _Run(key, open_corpus(protocol.corpus(key)), size, compile, threads)
    with watch(_label(f"{name} {key}", 0)) as progress:
        run.compare_there(subject, name, reference, allow_keys, progress)
    return run.describe(subject)


def naming_reference(measured: Measurement, entry: str) -> Measurement:
    """A divergence from another ``entry`` of its baseline file, which is on record."""
    return replace(measured, protocol=measured.protocol | {"reference": entry})


def _label(label: str, start: int) -> str:
    return label if start == 0 else f"{label}, from window {start + 1}"


class _Run:
    """A measurement on its way: the windows so far, in one round or several."""

    def __init__(
        self,
        key: Key,
        corpus: Corpus,
        batch_size: int,
        compile: bool,
        threads: int | None,
    ) -> None:
        self.scores: list[WindowScore] = []
        self.total: int | None = None
        self._key = key
        self._corpus = corpus
        self._batch_size = batch_size
        self._compile = compile
        self._threads = threads
        self._digest = ""
        self._seconds = 0.0
        self._notices: dict[str, None] = dict.fromkeys(text_notice(corpus))
        self._reference_dtype = ""
        self._device_name: str | None = None

    def listen(self, loaded: Loaded, name: str, progress: Progress) -> Reference:
        """Run the reference over the windows that come next, as many as fit."""
        started = time.perf_counter()
        windows = self._cut(loaded)
        scorer = Scorer(loaded.model, compile=self._compile)
        heard = listen(
            scorer,
            windows,
            name=name,
            windows_digest=windows_digest(windows),
            dtype=loaded.dtype,
            start=len(self.scores),
            batch_size=self._batch_size,
            progress=progress,
        )
        self._notices |= dict.fromkeys(f"{name}: {note}" for note in scorer.notices)
        self._seconds += time.perf_counter() - started
        return heard

    def compare(
        self, loaded: Loaded, name: str, heard: Reference, progress: Progress
    ) -> None:
        """Run the model over what the reference has read."""
        started = time.perf_counter()
        windows = self._cut(loaded)
        self._digest = windows_digest(windows)
        self._check_windows(name, heard.name, heard.windows_digest)
        scorer = Scorer(loaded.model, compile=self._compile)
        self.scores += compare(
            scorer,
            windows,
            heard,
            name=name,
            batch_size=self._batch_size,
            progress=progress,
        )
        self.total = len(windows)
        self._reference_dtype = heard.dtype
        self._notices |= dict.fromkeys(f"{name}: {note}" for note in scorer.notices)
        self._seconds += time.perf_counter() - started

    def compare_there(
        self,
        subject: Subject,
        name: str,
        reference: Target,
        allow_keys: Sequence[str],
        progress: Progress,
    ) -> None:
        """Run both models over all windows, where the subject is."""
        started = time.perf_counter()
        windows = self._cut(subject)
        self._digest = windows_digest(windows)

        def check(tokenizer: Tokenizer) -> None:
            protocol = get_protocol(self._key.method)
            theirs = protocol.windows(self._corpus, tokenizer, self._key)
            self._check_windows(name, reference.name, windows_digest(theirs))

        compared = subject.compared(
            windows,
            reference,
            name=name,
            allow_keys=allow_keys,
            batch_size=self._batch_size,
            compile=self._compile,
            progress=progress,
            check=check,
        )
        self.scores = list(compared.scores)
        self.total = len(windows)
        self._reference_dtype = compared.dtype
        self._device_name = compared.device_name
        self._notices |= dict.fromkeys(compared.notices)
        self._seconds += time.perf_counter() - started

    def _check_windows(self, name: str, reference: str, theirs: str) -> None:
        if self._digest != theirs:
            raise MeasurementError(
                f"{name} and its reference {reference} cut the text into different "
                "token windows: their tokenizers differ, so there is no divergence"
            )

    def _cut(self, model: Loaded | Subject) -> list[Window]:
        subject = subject_of(model)
        check_positions(subject.facts, self._key)
        windows = get_protocol(self._key.method).windows(
            self._corpus, subject.tokenizer, self._key
        )
        check_ids(subject.facts, windows)
        return windows

    def describe(self, model: Loaded | Subject) -> Measurement:
        """All that there is so far, as a measurement of a model."""
        subject = subject_of(model)
        protocol = get_protocol(self._key.method)
        units = {"tokens": sum(score.scored for score in self.scores)}
        properties = protocol.properties(self._corpus, subject.tokenizer, self._key)
        return Measurement(
            key=str(self._key),
            metrics=protocol.recompute(self.scores, units),
            units=units,
            windows=len(self.scores),
            windows_digest=self._digest,
            corpus_digest=self._corpus.digest,
            protocol=properties | {"official text": self._corpus.official},
            evidence=tuple(self.scores),
            environment=scored_on(
                environment(
                    subject.facts,
                    self._key,
                    batch_size=self._batch_size,
                    compile=self._compile,
                    threads=self._threads,
                ),
                self._device_name,
            )
            | {"reference_dtype": self._reference_dtype},
            seconds=self._seconds,
            notices=tuple(self._notices),
        )
