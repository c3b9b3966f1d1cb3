"""Measures one loaded model by one key."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from msgspec.structs import replace

from ..checkpoints import Loaded
from ..corpora import Corpus
from ..errors import (
    CorpusError,
    InvalidLossError,
    MeasurementError,
    PplguardError,
    UsageError,
)
from ..gates import EarlyPlan
from ..journal import Journal
from ..protocols import PROTOCOLS, LmEval, Protocol, check_key, windows_digest
from ..scoring import BatchSize, Kept, Progress, Stop
from ..startup import importing
from ..values import Key, Measurement, Scalar, Window, WindowScore
from .environment import environment, scored_on, using_threads
from .subject import Subject, WindowScorer, check_ids, check_positions, subject_of
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
    model: Loaded | Subject,
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
    early: EarlyPlan | None = None,
) -> Measurement:
    """Measure a loaded checkpoint by ``key``.

    Args:
        model: model and tokenizer on their device, or what stands for them.
        key: what to measure.
        open_corpus: gives the text of a name.
        batch_size: windows that the model reads at once, or ``auto``.
        compile: run the model through torch.compile; not over a task's answers.
        threads: of torch while it measures on a CPU; None: as many as there are.
        progress: told how many windows are done.
        open_journal: gives the journal that keeps finished windows; None: none does.
        cut: gives windows that may be known already; None: they are cut anew.
        tasks: where tasks of lm-eval come from.
        early: ends the measurement when it knows the verdicts of the key's gates; None
            for a task of lm-eval.

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
    subject = subject_of(model)
    check_positions(subject.facts, key)
    started = time.perf_counter()
    compile = compile and task is None
    run = _Run(
        protocol,
        key,
        subject,
        subject.scorer(batch_size=batch_size, progress=progress, compile=compile),
        environment=environment(
            subject.facts, key, batch_size=batch_size, compile=compile, threads=threads
        ),
        open_journal=open_journal,
        cut=cut,
    )
    with using_threads(threads):
        if task is not None:
            return run.of_task(task, started)
        assert corpus is not None
        measured = None if early is None else run.early(corpus, early)
        if measured is None:
            measured = run.measurement(corpus, *run.of(corpus))
    return replace(
        measured,
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
        subject: Subject,
        scorer: WindowScorer,
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
        self._subject = subject
        self._scorer = scorer
        self._finished: tuple[str, Mapping[int, WindowScore]] = ("", {})

    def measurement(
        self, corpus: Corpus, metrics: dict[str, float], units: dict[str, int]
    ) -> Measurement:
        """Of what was scored: all but the time that it took, and notices."""
        tokenizer = self._subject.tokenizer
        return Measurement(
            key=str(self._key),
            metrics=metrics,
            units=units,
            windows=len(self.windows),
            windows_digest=self.windows_digest,
            corpus_digest=corpus.digest,
            protocol=self._protocol.properties(corpus, tokenizer, self._key)
            | {"official text": corpus.official},
            evidence=tuple(self.scores),
            environment=scored_on(self.environment, self._scorer.device_name),
            seconds=0.0,
        )

    def early(self, corpus: Corpus, plan: EarlyPlan) -> Measurement | None:
        """A measurement that ends before its last window, if ``plan`` ends it.

        None if not: then :meth:`of` goes on with what was scored.
        """
        protocol, key = self._protocol, self._key
        with _in_words(protocol, key):
            windows = list(protocol.windows(corpus, self._subject.tokenizer, key))
            _check_windows(protocol, key, windows)
        self._take(windows)
        if self._subject.facts.rotates_by_length:
            plan.remark = plan.remark or (
                "the model's rotary positions depend on what it has read before"
            )
            return None
        if [len(window.targets) for window in windows] != plan.sizes:
            plan.remark = plan.remark or "its windows are not those of its baseline"
            return None
        with _in_words(protocol, key):
            units = self._units(corpus, plan.windows)
        # All but the losses is known now: what is not comparable to its baseline must
        # not pass by some of its windows.
        test = plan.start(self.measurement(corpus, dict(plan.metrics), units))
        if test is None:
            return None

        def is_enough(scores: Mapping[int, WindowScore]) -> bool:
            return test(scores) and plan.estimate(test, units) is not None

        scores = self._until(is_enough, plan.order)
        plan.finish(test)
        if len(scores) == len(windows):
            self._finished = self.windows_digest, scores
            return None
        estimate = plan.estimate(test, units)
        assert estimate is not None
        self.scores = [scores[index] for index in plan.order[: test.seen]]
        measured = self.measurement(corpus, estimate, units)
        return replace(measured, early=test.stopped())

    def _units(self, corpus: Corpus, scores: Sequence[WindowScore]) -> dict[str, int]:
        """What a full run would divide by."""
        if isinstance(self._protocol, LmEval):
            from ..lm_eval_bridge import units_of_wikitext

            return units_of_wikitext(self._protocol.pages(corpus, self._key))
        return self._protocol.units(scores, self._key)

    def _until(self, stop: Stop, order: Sequence[int]) -> Mapping[int, WindowScore]:
        """Scores of the windows that were cut, in ``order`` until ``stop`` says so."""
        with self._keeping(order) as kept:
            return self._scorer.until(self.windows, kept, order=order, stop=stop)

    def of(self, corpus: Corpus) -> tuple[dict[str, float], dict[str, int]]:
        """Metrics, and the units that they were divided by."""
        if isinstance(self._protocol, LmEval):
            return self._lm_eval(corpus, self._protocol)
        protocol, key = self._protocol, self._key
        with _in_words(protocol, key):
            windows = self._cut(
                (),
                lambda: list(protocol.windows(corpus, self._subject.tokenizer, key)),
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
                lambda: protocol.rolling(texts, self._subject.tokenizer, self._key),
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

        result = task.evaluate(self._subject.tokenizer, score)
        return Measurement(
            key=str(self._key),
            metrics=result.metrics,
            units={"documents": len(result.documents)},
            windows=len(windows),
            windows_digest=windows_digest(windows),
            corpus_digest=result.corpus_digest,
            protocol=result.protocol,
            evidence=tuple(scores),
            environment=scored_on(self.environment, self._scorer.device_name),
            seconds=time.perf_counter() - started,
            notices=(*result.notices, *self.notices),
            documents=result.documents,
            stderr=result.stderr,
            higher_is_better=result.higher_is_better,
        )

    def _score(self, windows: list[Window], *, answers: bool = False) -> None:
        self._take(windows)
        of, scores = self._finished
        if of == self.windows_digest:
            self.scores = [scores[index] for index in range(len(windows))]
            return
        with self._keeping() as kept:
            self.scores = self._scorer(self.windows, kept, answers=answers)

    def _take(self, windows: list[Window]) -> None:
        if not windows:
            raise CorpusError(
                f"key {self._key}: the method {self._protocol.name} cuts the text into "
                "no windows"
            )
        self.windows = windows
        self.windows_digest = windows_digest(self.windows)
        check_ids(self._subject.facts, self.windows)

    @contextlib.contextmanager
    def _keeping(self, order: Sequence[int] | None = None) -> Iterator[Kept | None]:
        """The journal of the windows, if there is one; what it and the scorer tell."""
        if self._open_journal is None:
            yield None
        else:
            deciding = self.environment | self._subject.kernels()
            if order is not None and deciding.get("batch_size") != 1:
                # In another order windows are read beside other windows.
                deciding["order"] = "drawn"
            with self._open_journal(
                self.windows_digest, deciding, self.windows
            ) as journal:
                yield journal
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
