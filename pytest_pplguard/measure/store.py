"""One process's checkpoints: loaded one at a time, measured once, given back."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from ..checkpoints import Loaded, state_digest
from ..corpora import Corpus
from ..errors import MeasurementError, PplguardError
from ..gates import EarlyPlan
from ..journal import Identity, Journal, Journals
from ..options import Target
from ..protocols import Tokenizer, check_key, get_protocol
from ..values import Key, Ladder, Measurement, Scalar, Window, WindowPlace
from .environment import using_threads
from .loading import loading_label
from .places import window_places
from .subject import Executor, LocalModel, Subject
from .weights import WeightsReader

# A measurement that is in the cache needs no torch, which takes seconds to import.
if TYPE_CHECKING:
    from ..divergence import Reference
    from ..lm_eval_tasks import TaskSource
    from ..scoring import BatchSize, Progress
    from .divergence import Side
    from .results import Results
    from .run import CutWindows, OpenJournal


class Watch(Protocol):
    """Shows progress: gets a label, gives what the scorer calls."""

    def __call__(
        self, label: str, /, *, unit: str = "windows", early: bool = False
    ) -> AbstractContextManager[Progress]:
        """``unit`` is what the scorer counts, empty for loading, which has no count.

        ``early``: it may be over before the last one.
        """


class Store:
    """Loads checkpoints and remembers what was measured of them.

    At most one checkpoint is resident. Measurements and failures are kept, so that a
    checkpoint that cannot be loaded is tried once. A model that was lent to the user's
    code is only measured again if nobody changed it: see :meth:`reclaim`.

    Args:
        targets: the checkpoints that may be asked for, by name.
        load: brings a checkpoint into memory.
        open_corpus: gives the text of a name.
        watch: shows loading and scoring to whoever waits.
        batch_size: windows that the model reads at once, or ``auto``.
        compile: run models through torch.compile while they are measured.
        threads: of torch while it loads and measures; None: as many as there are.
        journals: keep the finished windows of checkpoints; None: nothing does.
        results: keep whole measurements for other runs; None: nothing does. Not with an
            executor: what is measured elsewhere is not known before it is asked.
        task_folders: of YAML that defines tasks of lm-eval.
        trust_remote_code: whether a task's dataset may run code that it brings.
        executor: where checkpoints are measured; None: in this process. What is lent
            to code of the user's is always loaded here.
        allow_keys: of a checkpoint by name, tensors that its model need not have.
    """

    def __init__(
        self,
        targets: Mapping[str, Target],
        *,
        load: Callable[[Target], Loaded],
        open_corpus: Callable[[str], Corpus],
        watch: Watch,
        batch_size: BatchSize = 1,
        compile: bool = False,
        threads: int | None = None,
        journals: Journals | None = None,
        results: Results | None = None,
        task_folders: Sequence[str] = (),
        trust_remote_code: bool = False,
        executor: Executor | None = None,
        allow_keys: Callable[[str], Sequence[str]] = lambda name: (),
    ) -> None:
        self._targets = targets
        self._executor = executor
        self._allow_keys = allow_keys
        self._opened: tuple[str, Subject] | None = None
        self._load = load
        self._open_corpus = open_corpus
        self._watch = watch
        self._batch_size = batch_size
        self._compile = compile
        self._threads = threads
        self._journals = journals
        self._results = results
        self._task_folders = tuple(task_folders)
        self._trust_remote_code = trust_remote_code
        self._resident: tuple[str, Loaded] | None = None
        self._from_files: set[str] = set()
        self._digest: str | None = None
        self._shared = False
        self._model_digest: str | None = None
        self._corpora: dict[str, Corpus] = {}
        self._lost_corpora: dict[str, PplguardError] = {}
        self._found_tasks: set[tuple[str, int | None, int | None]] = set()
        self._measured: dict[tuple[str, Key], Measurement] = {}
        self._stopped: dict[tuple[str, Key], Measurement] = {}
        self._failed: dict[tuple[str, Key | None], PplguardError] = {}
        self._heard: tuple[str, Key, Reference] | None = None

    @property
    def resident(self) -> str | None:
        """Name of the checkpoint in this process's memory."""
        return self._resident[0] if self._resident is not None else None

    @property
    def ready(self) -> frozenset[str]:
        """Names of the checkpoints that are loaded, here or where they are measured."""
        both = (self._resident, self._opened)
        return frozenset(one[0] for one in both if one is not None)

    def tokenizer(self, name: str) -> Tokenizer:
        """Of a checkpoint that is ready."""
        if self._opened is not None and self._opened[0] == name:
            return self._opened[1].tokenizer
        found: Tokenizer = self.loaded(name).tokenizer
        return found

    def loaded(self, name: str) -> Loaded:
        """The checkpoint, loaded now if it is not resident; evicts another one.

        Raises:
            PplguardError: it cannot be loaded; the same error every time.
        """
        if self._resident is not None and self._resident[0] == name:
            return self._resident[1]
        self._evict_here()
        if (name, None) in self._failed:
            raise self._failed[name, None]
        if self._results is not None:
            self._results.loads(self._targets[name])
        try:
            loaded = self.load(self._targets[name])
        except PplguardError as error:
            self._failed[name, None] = _untraced(error)
            raise
        self._resident = (name, loaded)
        if loaded.from_files:
            self._from_files.add(name)
        return loaded

    def subject(self, name: str) -> Subject:
        """The checkpoint where it is measured; another one there is given up for it.

        Raises:
            PplguardError: it cannot be loaded; the same error every time.
        """
        if self._executor is None:
            return LocalModel(self.loaded(name))
        if self._opened is not None and self._opened[0] == name:
            return self._opened[1]
        self._close_opened()
        if (name, None) in self._failed:
            raise self._failed[name, None]
        target = self._targets[name]
        try:
            with self._watch(self._executor.label(target), unit=""):
                opened = self._executor.open(target, self._allow_keys(name))
        except PplguardError as error:
            self._failed[name, None] = _untraced(error)
            raise
        self._opened = (name, opened)
        if opened.from_files:
            self._from_files.add(name)
        return opened

    def weights(self, name: str) -> WeightsReader:
        """What tells of a checkpoint's weights where it is measured, made ready for it.

        Only where the executor sees weights.

        Raises:
            PplguardError: it cannot be loaded; the same error every time.
        """
        found = self.subject(name).weights
        assert found is not None
        return found

    def check(self, key: Key) -> None:
        """Refuse what cannot be measured where checkpoints are.

        Raises:
            UsageError: the executor has not what the key's method needs.
        """
        if self._executor is not None:
            self._executor.check(key)

    def came_from_files(self, name: str) -> bool:
        """Whether the checkpoint was loaded from its files, and not by a hook."""
        return name in self._from_files

    def load(self, target: Target) -> Loaded:
        """Load any checkpoint; it does not become the resident one."""
        with (
            using_threads(self._threads),
            self._watch(loading_label(target), unit=""),
        ):
            return self._load(target)

    def share(self, name: str) -> Loaded:
        """As :meth:`loaded`, for code of the user's: what comes after is not cached.

        What it does to a tokenizer, or to a model beyond its state, shows nowhere.
        """
        loaded = self.loaded(name)
        self._shared = True
        return loaded

    def lend(self, name: str) -> Loaded:
        """As :meth:`loaded`, for code that may change the model."""
        loaded = self.share(name)
        if self._digest is None:
            self._digest = state_digest(loaded.model)
        self.forget_reference()  # its output head may be this model's
        return loaded

    def reclaim(self) -> str | None:
        """After the model was lent: name of the checkpoint if its state was changed.

        A changed model is evicted, so that it is never measured under its old name.
        """
        if self._resident is None or self._digest is None:
            return None
        name, loaded = self._resident
        if state_digest(loaded.model) == self._digest:
            return None
        self.evict()
        return name

    def is_pristine(self, model: Any) -> bool:
        """Whether ``model`` is the resident one, unchanged since it was loaded."""
        if self._resident is None or self._resident[1].model is not model:
            return False
        return self._digest is None or self._digest == state_digest(model)

    def measurement(
        self,
        name: str,
        key: Key,
        *,
        reference: str | None = None,
        early: EarlyPlan | None = None,
    ) -> Measurement:
        """The checkpoint measured by ``key``, now or earlier.

        ``reference`` is the checkpoint that it is compared with, by a method that
        compares; always the same one. ``early`` may end the measurement before its
        last window; also always the same one. Whoever asks without it gets all windows.

        Raises:
            PplguardError: it cannot be loaded or measured; the same error every time.
        """
        if (name, key) in self._measured:
            return self._measured[name, key]
        if early is not None and (name, key) in self._stopped:
            return self._stopped[name, key]
        if (name, key) in self._failed:
            raise self._failed[name, key]
        try:
            check_key(key)
            self.check(key)
            self.check_text(key)
            if reference is not None and self._executor is not None:
                measured = self._divergence_elsewhere(name, key, reference)
            elif reference is not None:
                from .divergence import Side

                model = Side(name, lambda: self.loaded(name))
                measured = self.divergence(model, key, reference)
            else:
                measured = self._recalled(name, key) or self._measured_now(
                    name, key, early
                )
        except PplguardError as error:
            self._failed[name, key] = _untraced(error)
            raise
        kept = self._measured if measured.early is None else self._stopped
        kept[name, key] = measured
        return measured

    def _recalled(self, name: str, key: Key) -> Measurement | None:
        """The measurement of an earlier run, None where it has to be made."""
        if self._results is None:
            return None
        found = self._results.recall(self._targets[name], key, self.corpus)
        if found is not None:
            self._from_files.add(name)
        return found

    def _measured_now(
        self, name: str, key: Key, early: EarlyPlan | None
    ) -> Measurement:
        subject = self.subject(name)
        label = f"{name} {key}"
        journal = self._journal_of(subject, str(key), label, unit=_unit(key))
        results = None if self._shared else self._results
        measured = self.measure(
            subject,
            key,
            label=label,
            open_journal=journal,
            cut=None if results is None else results.cut(self._targets[name], key),
            early=early,
        )
        # In another order a window was read beside others than usual.
        drawn = early is not None and not early.remark and self._batch_size != 1
        if results is not None and not drawn:
            results.keep(self._targets[name], key, measured, self.loaded(name))
        return measured

    def ladder(
        self, name: str, start: Key, goal: Key, *, pages: int | None = None
    ) -> Ladder:
        """The way of a checkpoint from one method's number to another's.

        ``pages`` cuts the text to its first. Nothing is remembered.

        Raises:
            PplguardError: it cannot be loaded or measured.
        """
        from .ladder import climb, ends_of

        ends = ends_of(start, goal)
        corpus = self.corpus(get_protocol(start.method).corpus(start))
        if pages is not None:
            corpus = corpus.first_pages(pages)
        subject = self.subject(name)
        label = f"{name} {start} to {goal}"
        with self._watch(label) as progress:
            return climb(
                subject,
                ends,
                corpus,
                limit=pages,
                batch_size=self._batch_size,
                compile=self._compile,
                threads=self._threads,
                progress=progress,
                open_journal=self._journal_of(subject, f"{start} to {goal}", label),
            )

    def check_text(self, key: Key) -> None:
        """Find the text or task of ``key``, whatever its window is.

        One that is not there should not cost the loading of a model.

        Raises:
            CorpusError: it is not there.
            UsageError: there is no such text or task, or not as the key says.
        """
        protocol = get_protocol(key.method)
        if not protocol.runs_task(key):
            self.corpus(protocol.corpus(key))
            return
        task = (key.text, key.shots, key.first)
        if task not in self._found_tasks:
            from .run import open_task

            open_task(key, self._tasks)
            self._found_tasks.add(task)

    @property
    def _tasks(self) -> TaskSource:
        from ..lm_eval_tasks import TaskSource

        return TaskSource(self._task_folders, self._trust_remote_code)

    def _journal_of(
        self, subject: Subject, key: str, label: str, *, unit: str = "windows"
    ) -> OpenJournal | None:
        """Opens the journal of the checkpoint that is ready.

        None for a model that a hook has brought, and for one that is not its files and
        config alone: losses of two runs may not belong together.
        """
        if self._journals is None or not subject.from_files:
            return None
        if self._model_digest is None:
            self._model_digest = subject.digest()
        if self._model_digest is None:
            return None
        model, journals = self._model_digest, self._journals

        def open_journal(
            windows_digest: str,
            environment: dict[str, Scalar],
            windows: Sequence[Window],
        ) -> Journal:
            identity = Identity(model, key, windows_digest, environment)
            return journals.open(identity, windows, label=label, unit=unit)

        return open_journal

    def take_complete_journals(self) -> list[Path]:
        """Journals whose measurements are complete, each given once.

        They may go as soon as nothing that was measured can be lost any more.
        """
        return [] if self._journals is None else self._journals.take_complete()

    def measure(
        self,
        model: Loaded | Subject,
        key: Key,
        *,
        label: str,
        open_journal: OpenJournal | None = None,
        cut: CutWindows | None = None,
        early: EarlyPlan | None = None,
    ) -> Measurement:
        """Measure any model that is ready; nothing is remembered."""
        from .run import measure_loaded

        runs_task = get_protocol(key.method).runs_task(key)
        with self._watch(label, unit=_unit(key), early=early is not None) as progress:
            return measure_loaded(
                model,
                key,
                self.corpus,
                batch_size=self._batch_size,
                compile=self._compile,
                threads=self._threads,
                progress=progress,
                open_journal=open_journal,
                cut=cut,
                tasks=self._tasks if runs_task else None,
                early=early,
            )

    def _divergence_elsewhere(self, name: str, key: Key, reference: str) -> Measurement:
        from .divergence import measure_divergence_elsewhere

        return measure_divergence_elsewhere(
            key,
            name=name,
            subject=self.subject(name),
            reference=self._targets[reference],
            allow_keys=self._allow_keys(reference),
            open_corpus=self.corpus,
            watch=self._watch,
            batch_size=self._batch_size,
            compile=self._compile,
            threads=self._threads,
        )

    def divergence(self, model: Side, key: Key, reference: str) -> Measurement:
        """Compare any model with the checkpoint ``reference``; nothing is remembered.

        But what the reference says is kept for the next model, until another reference
        or key is asked for, or :meth:`forget_reference`.
        """
        from .divergence import Side, measure_divergence

        lent = False

        def recall(start: int) -> Reference | None:
            known = self._heard
            if known is None or known[:2] != (reference, key):
                return None
            return known[2] if known[2].start == start else None

        def keep(heard: Reference) -> None:
            nonlocal lent
            lent = self._digest is not None
            self.forget_reference()
            self._heard = (reference, key, heard)

        try:
            return measure_divergence(
                key,
                model=model,
                reference=Side(reference, lambda: self.loaded(reference)),
                recall=recall,
                keep=keep,
                open_corpus=self.corpus,
                watch=self._watch,
                batch_size=self._batch_size,
                compile=self._compile,
                threads=self._threads,
            )
        finally:
            # Whoever has a model that was lent may yet change its output head.
            if lent:
                self.forget_reference()

    def forget_reference(self) -> None:
        """Give back what is kept of a reference: a temporary file, an output head."""
        if self._heard is not None:
            self._heard[2].close()
            self._heard = None

    def corpus(self, name: str) -> Corpus:
        """The text called ``name``, read once."""
        if name in self._lost_corpora:
            raise self._lost_corpora[name]
        if name not in self._corpora:
            try:
                self._corpora[name] = self._open_corpus(name)
            except PplguardError as error:
                # Asking the Hub in vain takes half a minute, for each key.
                self._lost_corpora[name] = _untraced(error)
                raise
        return self._corpora[name]

    def places(
        self,
        indices: Iterable[int],
        tokenizer: Tokenizer,
        key: Key,
        *,
        digest: str | None = None,
    ) -> dict[int, WindowPlace]:
        """Where some windows of a measurement by ``key`` are in the text.

        Raises:
            PplguardError: the text cannot be cut as it was.
        """
        protocol = get_protocol(key.method)
        if protocol.runs_task(key):
            raise MeasurementError(
                f"windows of {key} are answers: they have a document, and no place"
            )
        corpus = self.corpus(protocol.corpus(key))
        return window_places(indices, tokenizer, corpus, key, digest=digest)

    def evict(self) -> None:
        """Give the memory of the checkpoints that are ready back."""
        self._close_opened()
        self._evict_here()

    def close(self) -> None:
        """Give everything back, also what runs elsewhere; nothing is asked any more."""
        self.evict()
        if self._executor is not None:
            self._executor.close()

    def _close_opened(self) -> None:
        if self._opened is not None:
            self._opened[1].close()
            self._opened = self._model_digest = None

    def _evict_here(self) -> None:
        if self._resident is None:
            return
        device = self._resident[1].device
        in_cycles = hasattr(self._resident[1].model, "hf_device_map")
        self._resident = self._digest = None
        if self._executor is None:
            self._model_digest = None
        self._shared = False
        if in_cycles:  # accelerate's hooks on its modules refer to them
            gc.collect()
        if not device.startswith("cpu"):
            import torch

            torch.accelerator.empty_cache()


def _unit(key: Key) -> str:
    """What a measurement by ``key`` counts."""
    return "answers" if get_protocol(key.method).runs_task(key) else "windows"


def _untraced(error: PplguardError) -> PplguardError:
    """The error without its frames, which would keep the model in memory."""
    untraced = type(error)(str(error))
    vars(untraced).update(vars(error))
    return untraced
