"""Measures one loaded model by one key."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch

from ..checkpoints import Loaded
from ..corpora import Corpus
from ..errors import (
    CorpusError,
    InvalidLossError,
    MeasurementError,
    PplguardError,
    UsageError,
)
from ..journal import Journal
from ..protocols import PROTOCOLS, LmEval, Protocol, check_key, windows_digest
from ..scoring import BatchSize, Progress, Scorer
from ..startup import importing
from ..values import Key, Measurement, Scalar, Window, WindowScore
from .environment import environment, kernels, using_threads
from .texts import text_notice

if TYPE_CHECKING:
    from ..lm_eval_tasks import Task, TaskSource

OpenCorpus = Callable[[str], Corpus]
OpenJournal = Callable[[str, dict[str, Scalar], Sequence[Window]], Journal]
"""Gets the windows' digest, what else decides their losses, and the windows."""

CutWindows = Callable[[Sequence[str], Callable[[], list[Window]]], list[Window]]
"""Gets texts that windows are cut from beside the corpus, and what cuts them.

It may know the windows already.
"""


def measure_loaded(
    loaded: Loaded,
    key: Key,
    open_corpus: OpenCorpus,
    *,
    batch_size: BatchSize = 1,
    compile: bool = False,
    threads: int | None = None,
    progress: Progress | None = None,
    open_journal: OpenJournal | None = None,
    cut: CutWindows | None = None,
    tasks: TaskSource | None = None,
) -> Measurement:
    """Measure a loaded checkpoint by ``key``.

    Args:
        loaded: model and tokenizer on their device.
        key: what to measure.
        open_corpus: gives the text of a name.
        batch_size: windows that the model reads at once, or ``auto``.
        compile: run the model through torch.compile; not over a task's answers.
        threads: of torch while it measures on a CPU; None: as many as there are.
        progress: told how many windows are done.
        open_journal: gives the journal that keeps finished windows; None: none does.
        cut: gives windows that may be known already; None: they are cut anew.
        tasks: where tasks of lm-eval come from.

    Raises:
        UsageError: the key's method or task is unknown, cannot do what the key says, or
            needs a reference (see :func:`.measure_divergence`).
        CorpusError: the text is not there or too short.
        InvalidLossError: a loss is not finite.
        MeasurementError: the model cannot be measured this way.
        DeviceError: out of memory.
    """
    check_key(key)
    protocol = PROTOCOLS[key.method]
    if protocol.needs_reference:
        raise UsageError(f"key {key}: needs a reference to compare with")
    task = open_task(key, tasks) if protocol.runs_task(key) else None
    corpus = open_corpus(protocol.corpus(key)) if task is None else None
    check_positions(loaded.model, key)
    started = time.perf_counter()
    compile = compile and task is None
    run = _Run(
        protocol,
        key,
        loaded,
        Scorer(loaded.model, batch_size=batch_size, progress=progress, compile=compile),
        environment=environment(
            loaded, key, batch_size=batch_size, compile=compile, threads=threads
        ),
        open_journal=open_journal,
        cut=cut,
    )
    with using_threads(threads):
        if task is not None:
            return run.of_task(task, started)
        assert corpus is not None
        metrics, units = run.of(corpus)
    return Measurement(
        key=str(key),
        metrics=metrics,
        units=units,
        windows=len(run.windows),
        windows_digest=run.windows_digest,
        corpus_digest=corpus.digest,
        protocol=protocol.properties(corpus, loaded.tokenizer, key)
        | {"official text": corpus.official},
        evidence=tuple(run.scores),
        environment=run.environment,
        seconds=time.perf_counter() - started,
        notices=(*text_notice(corpus), *run.notices),
    )


def open_task(key: Key, source: TaskSource | None = None) -> Task:
    """The task of lm-eval that ``key`` measures, its data at hand.

    Raises:
        UsageError: there is none, or not as the key says.
        CorpusError: its data cannot be reached.
    """
    with importing():
        from ..lm_eval_tasks import Task, TaskSource

    return Task(key, source or TaskSource())


class _Run:
    """One measurement on its way: the windows that were cut, and their scores."""

    def __init__(
        self,
        protocol: Protocol,
        key: Key,
        loaded: Loaded,
        scorer: Scorer,
        *,
        environment: dict[str, Scalar],
        open_journal: OpenJournal | None,
        cut: CutWindows | None = None,
    ) -> None:
        self.environment = environment
        self.windows: list[Window] = []
        self.windows_digest = ""
        self.scores: list[WindowScore] = []
        self.notices: list[str] = []
        self._open_journal = open_journal
        self._cut: CutWindows = cut or (lambda _, anew: anew())
        self._protocol = protocol
        self._key = key
        self._loaded = loaded
        self._scorer = scorer

    def of(self, corpus: Corpus) -> tuple[dict[str, float], dict[str, int]]:
        """Metrics, and the units that they were divided by."""
        if isinstance(self._protocol, LmEval):
            return self._lm_eval(corpus, self._protocol)
        protocol, key = self._protocol, self._key
        with _in_words(protocol, key):
            windows = self._cut(
                (),
                lambda: list(protocol.windows(corpus, self._loaded.tokenizer, key)),
            )
            _check_windows(protocol, key, windows)
        self._score(windows)
        with _in_words(protocol, key):
            units = protocol.units(self.scores, key)
            metrics = protocol.recompute(self.scores, units)
        for name in protocol.metrics:
            if name not in metrics:
                raise MeasurementError(
                    f"key {key}: the method {protocol.name} gave no {name}, which it "
                    "says it yields"
                )
        for name, value in metrics.items():
            if not math.isfinite(value):
                raise InvalidLossError(
                    f"key {key}: the method {protocol.name} makes {name} {value} of "
                    "losses that are all finite"
                )
        return metrics, units

    def _lm_eval(
        self, corpus: Corpus, protocol: LmEval
    ) -> tuple[dict[str, float], dict[str, int]]:
        with importing():
            from ..lm_eval_bridge import evaluate_wikitext

        def loglikelihoods(texts: list[str]) -> list[float]:
            windows = self._cut(
                texts,
                lambda: protocol.rolling(texts, self._loaded.tokenizer, self._key),
            )
            self._score(windows)
            totals = [0.0] * len(texts)
            for score in self.scores:
                assert score.page is not None
                totals[score.page] -= score.nll_sum
            return totals

        result = evaluate_wikitext(protocol.pages(corpus, self._key), loglikelihoods)
        return result.metrics, result.units

    def of_task(self, task: Task, started: float) -> Measurement:
        """The measurement of a task of lm-eval."""
        windows: list[Window] = []
        scores: list[WindowScore] = []

        def score(some: list[Window]) -> list[WindowScore]:
            # Once, but for a group whose tasks ask for answers and for whole texts.
            self._score(some, answers=True)
            windows.extend(some)
            scores.extend(self.scores)
            return self.scores

        result = task.evaluate(self._loaded.tokenizer, score)
        return Measurement(
            key=str(self._key),
            metrics=result.metrics,
            units={"documents": len(result.documents)},
            windows=len(windows),
            windows_digest=windows_digest(windows),
            corpus_digest=result.corpus_digest,
            protocol=result.protocol,
            evidence=tuple(scores),
            environment=self.environment,
            seconds=time.perf_counter() - started,
            notices=(*result.notices, *self.notices),
            documents=result.documents,
            stderr=result.stderr,
            higher_is_better=result.higher_is_better,
        )

    def _score(self, windows: list[Window], *, answers: bool = False) -> None:
        if not windows:
            raise CorpusError(
                f"key {self._key}: the method {self._protocol.name} cuts the text into "
                "no windows"
            )
        self.windows = windows
        self.windows_digest = windows_digest(self.windows)
        check_ids(self._loaded.model, self.windows)
        if self._open_journal is None:
            self.scores = self._scorer(self.windows, answers=answers)
        else:
            deciding = self.environment | kernels(self._loaded)
            with self._open_journal(
                self.windows_digest, deciding, self.windows
            ) as journal:
                self.scores = self._scorer(self.windows, journal, answers=answers)
            self.notices += journal.notices
        self.notices += [n for n in self._scorer.notices if n not in self.notices]


@contextlib.contextmanager
def _in_words(protocol: Protocol, key: Key) -> Iterator[None]:
    """Methods from outside raise anything."""
    try:
        yield
    except PplguardError:
        raise
    except Exception as error:
        raise MeasurementError(
            f"key {key}: the method {protocol.name} ({type(protocol).__module__}) "
            f"failed: {type(error).__name__}: "
            f"{next(iter(str(error).splitlines()), '')}"
        ) from error


def _check_windows(protocol: Protocol, key: Key, windows: Sequence[Window]) -> None:
    """Refuse what would be scored at other positions than the method says.

    Raises:
        MeasurementError: a window scores positions that it does not have.
    """
    for number, window in enumerate(windows, 1):
        if window.start < 0 or window.start + len(window.targets) > len(window.ids):
            raise MeasurementError(
                f"key {key}: the method {protocol.name} scores {len(window.targets)} "
                f"tokens from position {window.start} of its window {number}, which "
                f"has {len(window.ids)}"
            )


def max_positions(model: torch.nn.Module) -> int | None:
    """How many positions the model was made for, None where its config does not say."""
    config: Any = getattr(model, "config", None)
    if hasattr(config, "get_text_config"):
        config = config.get_text_config()
    limit = getattr(config, "max_position_embeddings", None)
    return limit if isinstance(limit, int) else None


def check_positions(model: torch.nn.Module, key: Key) -> None:
    """Refuse a window that the model was not made for."""
    limit = max_positions(model)
    if limit is not None and key.window > limit:
        raise MeasurementError(
            f"key {key}: the window is longer than the {limit} positions that the "
            "model was made for (max_position_embeddings); measure at a shorter window"
        )


def check_ids(model: torch.nn.Module, windows: Sequence[Window]) -> None:
    """An id without an embedding would be an assertion deep inside a GPU kernel."""
    get = getattr(model, "get_input_embeddings", None)
    rows = getattr(get() if get is not None else None, "num_embeddings", None)
    if rows is None:
        return
    largest = max(id_ for window in windows for id_ in (*window.ids, *window.targets))
    if largest >= rows:
        raise MeasurementError(
            f"the tokenizer yields the id {largest}, but the model embeds {rows} ids: "
            "model and tokenizer do not belong together"
        )
