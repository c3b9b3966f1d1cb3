"""Any task or group of lm-eval that scores, our scorer behind its evaluator.

lm-eval keeps its definition of documents, prompts, answers and metrics; only the
log-likelihoods come from here. What its ``hf`` model does with a request
(``lm_eval/models/huggingface.py``, 0.4.10 to 0.4.13) is done the same way: prefix,
encoding, truncation from the left.
"""

from __future__ import annotations

import ast
import contextlib
import hashlib
import inspect
import io
import json
import math
import numbers
import random
import re
import textwrap
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets
import lm_eval
import lm_eval.api.metrics
import lm_eval.api.model
import lm_eval.api.registry
import lm_eval.api.task
import lm_eval.evaluator
import lm_eval.tasks
import numpy
from msgspec import Struct

from .errors import (
    CorpusError,
    InvalidLossError,
    MeasurementError,
    PplguardError,
    UsageError,
)
from .lm_eval_names import (
    TASKS,
    defined_names,
    folders_of,
    is_mentioned,
    quiet,
)
from .protocols import LmEval, Tokenizer, aggregation
from .protocols.cut import encode_page, prefix_token
from .values import (
    AGGREGATION,
    DocumentResult,
    Key,
    MetricName,
    Scalar,
    Window,
    WindowScore,
    near_matches,
)

Score = Callable[[list[Window]], Sequence[WindowScore]]
"""Scores answers: each with ``greedy``."""

_SEED, _RANDOM_SEED = 1234, 0
"""Of few-shot sampling and numpy, and of random: ``simple_evaluate``'s, where nobody
says others."""

_NO_NUMBER = "lm-eval gives none for the whole"
_OF_DATA = frozenset({"dataset_path", "dataset_kwargs", "custom_dataset"})
_OF_RUN = frozenset({"metadata", "num_fewshot", "task", "task_alias", "tag", "group"})
_SCORED = ("loglikelihood", "loglikelihood_rolling", "multiple_choice")


class TaskSource(Struct, frozen=True):
    """Where tasks come from: folders of YAML that win over lm-eval's own.

    ``trust_remote_code`` lets datasets run the code that they bring.
    """

    folders: tuple[str, ...] = ()
    trust_remote_code: bool = False


class TaskResult(Struct, frozen=True):
    """What lm-eval made of a task; see :class:`.values.Measurement`."""

    metrics: dict[MetricName, float]
    stderr: dict[MetricName, float]
    higher_is_better: tuple[MetricName, ...]
    documents: tuple[DocumentResult, ...]
    corpus_digest: str
    protocol: dict[str, Scalar]
    notices: tuple[str, ...] = ()


class Task:
    """A task or group that was loaded, its data at hand.

    Args:
        key: what to measure; the text is the name of the task or group.
        source: where it comes from.

    Raises:
        UsageError: there is no such task, it cannot be scored, or not with the shots
            of the key.
        CorpusError: its data cannot be reached, or is fewer than the key asks for.
    """

    def __init__(self, key: Key, source: TaskSource) -> None:
        self.key = key
        self.notices: list[str] = []
        self._draws = _Draws()
        with quiet(), self._in_words("cannot be loaded", UsageError):
            with _guarding_downloads(key, source), self._draws.lent():
                self._loaded = self._find(source)
            self.tasks = _leaves(self._loaded)
            # Asking for documents may shuffle them once more, unlike in stock lm-eval.
            with self._draws.lent(for_good=False):
                for name, task in self.tasks.items():
                    self._set_shots(name, task)
                self._check_documents()

    @contextlib.contextmanager
    def _in_words(self, what: str, kind: type[PplguardError]) -> Iterator[None]:
        """A task's YAML, templates and code are anybody's, and raise anything."""
        try:
            yield
        except PplguardError:
            raise
        except Exception as error:
            raise kind(
                f"key {self.key}: the task {self.key.text} {what}: lm-eval "
                f"{lm_eval.__version__}: {type(error).__name__}: "
                f"{next(iter(str(error).splitlines()), '')}"
            ) from error

    def _find(self, source: TaskSource) -> Any:
        name = self.key.text
        if source.folders:
            for folder in source.folders:
                if not Path(folder).is_dir():
                    raise UsageError(
                        f"--ppl-include-path {folder}: there is no such folder"
                    )
            own = _manager(list(source.folders), defaults=False)
            if name in own.all_tasks:
                return self._load(own, source)
        if folders := folders_of(name):
            few = _manager([*folders, *source.folders], defaults=False)
            if name in few.all_tasks:
                return self._load(few, source)
        if not is_mentioned(name):
            known = {*defined_names()}
            if source.folders:
                known |= {*own.all_tasks}
            raise self._unknown(known)
        return self._load(_manager(list(source.folders)), source)

    def _unknown(self, known: Iterable[str]) -> UsageError:
        name = self.key.text
        return UsageError(
            f"key {self.key}: lm-eval {lm_eval.__version__} has no task or group "
            f"{name!r}{near_matches(name, known)}; a YAML of your own is found in the "
            "folder of --ppl-include-path, a text of your own is "
            f"lm-eval/wikitext+{name}:{self.key.window}"
        )

    def _load(self, manager: Any, source: TaskSource) -> Any:
        name = self.key.text
        if name not in manager.all_tasks:
            raise self._unknown(manager.all_tasks)
        if name not in {*manager.all_subtasks, *manager.all_groups}:
            raise UsageError(
                f"key {self.key}: {name} is a tag of lm-eval, a list of tasks: "
                f"{_NO_NUMBER}; measure its tasks one by one"
            )
        try:
            if hasattr(manager, "load"):
                return manager.load([name])
            return lm_eval.tasks.get_task_dict([name], manager)  # before 0.4.10
        except KeyError:  # a group of tasks from elsewhere
            if getattr(manager, "pplguard_whole", False):
                raise
            self.notices.append(
                f"{self.key}: all tasks of lm-eval are read to find those of {name} "
                "(this takes some seconds)"
            )
            return self._load(_manager(list(source.folders)), source)

    def _set_shots(self, name: str, task: Any) -> None:
        """As ``simple_evaluate`` does; what it would leave out silently is refused."""
        own, asked = task.config.num_fewshot, self.key.shots
        if asked is None:
            if own is None:
                task.set_config(key="num_fewshot", value=0)
        elif own == 0 and asked != 0:
            raise UsageError(
                f"key {self.key}: the task {name} is defined with no shots, whatever "
                f"is asked for; leave :shots{asked} out"
            )
        else:
            task.set_config(key="num_fewshot", value=asked)
        task.set_fewshot_seed(seed=_SEED)
        shots = task.config.num_fewshot
        if shots:
            known, of = len(list(task.fewshot_docs())), ""
            if task.config.fewshot_split == task.config.test_split:
                known, of = known - 1, " beside the one that is asked"
            if shots > known:
                raise UsageError(
                    f"key {self.key}: {shots} shots, but the task {name} has "
                    f"{known} examples to show{of}"
                )

    def _check_documents(self) -> None:
        counts = {name: len(task.eval_docs) for name, task in self.tasks.items()}
        most = max(counts.values())
        if self.key.first is not None and self.key.first > most:
            raise CorpusError(
                f"key {self.key}: the task {self.key.text} has {most} documents, "
                f"fewer than the {self.key.first} asked for"
            )

    # ------------------------------------------------------------------------- running

    def evaluate(self, tokenizer: Tokenizer, score: Score) -> TaskResult:
        """Run lm-eval's evaluator. ``page`` of a window counts documents, from 0.

        Raises:
            InvalidLossError: a number of a document or of the whole is not finite.
            MeasurementError: an answer does not fit the window, or lm-eval gives no
                number.
        """
        model = _ScoringLM(self.key, tokenizer, score)
        for task in self.tasks.values():
            _silence(task)
        with (
            quiet(),
            self._in_words("cannot be evaluated", MeasurementError),
            self._draws.lent(),
        ):
            try:
                results = lm_eval.evaluator.evaluate(
                    lm=model,
                    task_dict=self._loaded,
                    limit=self.key.first,
                    bootstrap_iters=0,
                    log_samples=True,
                )
            except OverflowError as error:
                raise InvalidLossError(
                    f"{self.key}: the losses are beyond any finite number of "
                    f"lm-eval's: {error}"
                ) from error
        samples = results["samples"]
        documents = _documents(samples, [*self.tasks])
        for document in documents:
            for metric, value in document.values.items():
                if not all(map(math.isfinite, _numbers(value))):
                    raise InvalidLossError(
                        f"{self.key}: {metric} of document {document.document} of "
                        f"{document.task} is {value}"
                    )
        values = results["results"].get(self.key.text, {})
        metrics = self._metrics(values)
        return TaskResult(
            metrics=metrics,
            stderr=self._stderr(samples, metrics),
            higher_is_better=tuple(
                name for name in metrics if self._is_higher_better(name)
            ),
            documents=documents,
            corpus_digest=_corpus_digest(samples, [*self.tasks]),
            protocol=self._properties(tokenizer, metrics),
            notices=tuple(self.notices),
        )

    def _metrics(self, values: Mapping[str, Any]) -> dict[MetricName, float]:
        metrics = {}
        for name, value in values.items():
            metric, comma, filter_ = name.partition(",")
            if not comma or metric.endswith("_stderr") or not _is_number(value):
                continue
            number = float(value)
            if not math.isfinite(number):
                raise InvalidLossError(
                    f"{self.key}: lm-eval gives {number} for {metric}"
                )
            metrics[metric_name(metric, filter_)] = number
        if not metrics:
            raise UsageError(
                f"key {self.key}: {self.key.text} has no number of its own, "
                f"{_NO_NUMBER}; measure its tasks: {_listed(self.tasks)}"
            )
        return metrics

    def _named(self, task: Any) -> dict[MetricName, str]:
        """lm-eval's names of a task's metrics, by ours."""
        filters = [filter_.name for filter_ in task._filters]
        known = [*task.aggregation()]
        return {metric_name(m, f): m for m in known for f in filters}

    def _is_higher_better(self, name: MetricName) -> bool:
        said = [
            task.higher_is_better().get(metric)
            for task in self.tasks.values()
            if (metric := self._named(task).get(name)) is not None
        ]
        return bool(said) and all(said)

    def _stderr(
        self, samples: Mapping[str, Any], metrics: Iterable[MetricName]
    ) -> dict[MetricName, float]:
        """Standard errors that have a closed form; lm-eval's bootstrap takes minutes.

        A group's is pooled as lm-eval pools it since 0.4.13; before, it pooled by size
        also where the mean is of all tasks alike.
        """
        closed = {
            lm_eval.api.metrics.mean: lm_eval.api.metrics.mean_stderr,
            lm_eval.api.metrics.acc_all: lm_eval.api.metrics.acc_all_stderr,
        }
        found = {}
        for name in metrics:
            errors, sizes = [], []
            for task_name, task in self.tasks.items():
                metric = self._named(task).get(name)
                if metric is None:
                    continue
                values = [
                    sample[metric]
                    for sample in samples[task_name]
                    if metric in sample
                    and metric_name(metric, sample["filter"]) == name
                ]
                function = closed.get(task.aggregation()[metric])
                error = function(values) if function and len(values) > 1 else math.nan
                errors.append(float(error))
                sizes.append(len(values))
            if not errors:
                continue
            weighted = self._weighted(name)
            if weighted is None:
                error = errors[0]
            elif weighted:
                error = lm_eval.api.metrics.pooled_sample_stderr(errors, sizes)
            else:
                error = math.hypot(*errors) / len(errors)
            if math.isfinite(error):
                found[name] = float(error)
        return found

    def _weighted(self, name: MetricName) -> bool | None:
        """Whether a group weights its tasks by size; None of a single task."""
        if self.key.text in self.tasks:
            return None
        group = _group(self._loaded, self.key.text)
        for metric in group or ():
            of = metric if isinstance(metric, dict) else vars(metric)
            filters = of.get("filter_list") or ["none"]
            filters = [filters] if isinstance(filters, str) else filters
            if name in [metric_name(of["metric"], f) for f in filters]:
                return bool(of.get("weight_by_size", True))
        return True

    def _properties(
        self, tokenizer: Tokenizer, metrics: Iterable[MetricName]
    ) -> dict[str, Scalar]:
        tasks = self.tasks.values()
        prefix = prefix_token(tokenizer)
        twice = encode_page("a", tokenizer, prefix)[:1] == [prefix]
        found: dict[str, Scalar] = {
            "window": self.key.window,
            "task": self.key.text,
            "task version": _said(task.VERSION for task in tasks),
            "task definition": _definition(self.tasks),
            "shots": _said(task.config.num_fewshot for task in tasks),
            "output type": _said(task.OUTPUT_TYPE for task in tasks),
            "first token": f"BOS {prefix}" if twice else "none",
            "empty context": f"prefix {prefix}",
            "too long": "cut from the left",
        }
        names = {
            function: name
            for name, function in lm_eval.api.registry.AGGREGATION_REGISTRY.items()
        }
        for name in metrics:
            functions = {
                names.get(task.aggregation()[metric], "code of the task")
                for task in tasks
                if (metric := self._named(task).get(name)) is not None
            }
            if len(functions) == 1:
                how = aggregation(functions.pop(), self._weighted(name))
                found[f"{AGGREGATION}{name}"] = how
        return found


class _ScoringLM(lm_eval.api.model.TemplateLM):  # type: ignore[misc]
    """lm-eval's view of our scorer. Encodes, cuts and scores as its ``hf`` model."""

    def __init__(self, key: Key, tokenizer: Tokenizer, score: Score) -> None:
        super().__init__()
        self.tokenizer = tokenizer
        self._key = key
        self._score = score
        self._prefix = prefix_token(tokenizer)
        self._pages: dict[tuple[str, int], int] = {}
        self._requests: list[Any] = []

    @property
    def eot_token_id(self) -> int:
        eos = self.tokenizer.eos_token_id
        return self._prefix if eos is None else eos

    @property
    def prefix_token_id(self) -> int:
        return self._prefix

    def tok_encode(
        self, string: str, add_special_tokens: bool | None = None, **_: Any
    ) -> list[int]:
        if add_special_tokens is None:
            return encode_page(string, self.tokenizer, self._prefix)
        options = {"add_special_tokens": add_special_tokens, "verbose": False}
        return list(self.tokenizer.encode(string, **options))

    def loglikelihood(self, requests: list[Any], **_: Any) -> list[tuple[float, bool]]:
        self._requests = requests
        for request in requests:
            context, answer = request.args
            if not context and not self.tok_encode(answer, add_special_tokens=False):
                raise self._without_token(request)
        answers: list[tuple[float, bool]] = super().loglikelihood(
            requests, disable_tqdm=True
        )
        return answers

    def _loglikelihood_tokens(
        self, requests: list[tuple[Any, list[int], list[int]]], **_: Any
    ) -> list[tuple[float, bool]]:
        windows = [
            self._window(context, answer, request)
            for (_, context, answer), request in zip(
                requests, self._requests, strict=True
            )
        ]
        return [
            (-score.nll_sum, score.greedy is True) for score in self._score(windows)
        ]

    def _window(
        self, context: Sequence[int], answer: Sequence[int], request: Any
    ) -> Window:
        where = f"{self._key}: an answer of document {request.doc_id} of"
        if not answer:
            raise self._without_token(request)
        if not context:
            raise MeasurementError(
                f"{where} {request.task_name} stands behind {request.args[0]!r}, which "
                "leaves no token to begin with: this tokenizer puts none before a "
                "text, and only an empty question gets one"
            )
        if len(answer) > self._key.window:
            raise MeasurementError(
                f"{where} {request.task_name} has {len(answer)} tokens, more than the "
                f"window of {self._key.window}; choose a longer one"
            )
        ids = tuple([*context, *answer][-(self._key.window + 1) :][:-1])
        return Window(
            ids, tuple(answer), len(ids) - len(answer), page=self._page(request)
        )

    def _without_token(self, request: Any) -> MeasurementError:
        return MeasurementError(
            f"{self._key}: an answer of document {request.doc_id} of "
            f"{request.task_name} has no token of its own: {request.args[1]!r} behind "
            "its question"
        )

    def _page(self, request: Any) -> int:
        document = (request.task_name, request.doc_id)
        return self._pages.setdefault(document, len(self._pages))

    def loglikelihood_rolling(self, requests: list[Any], **_: Any) -> list[float]:
        texts = [request.args[0] for request in requests]
        pages = [self._page(request) for request in requests]
        windows = LmEval().rolling(texts, self.tokenizer, self._key)
        totals = [0.0] * len(texts)
        numbered = [
            Window(w.ids, w.targets, w.start, page=pages[w.page])
            for w in windows
            if w.page is not None
        ]
        for window, score in zip(windows, self._score(numbered), strict=True):
            assert window.page is not None
            totals[window.page] -= score.nll_sum
        return totals

    def generate_until(self, requests: list[Any], **_: Any) -> list[str]:
        raise MeasurementError(f"{self._key}: asks for generated text, see `check`")


def metric_name(metric: str, filter_: str) -> MetricName:
    """Our name of a metric of lm-eval: the filter ``none`` is not said."""
    name = metric if filter_ == "none" else f"{metric}_{filter_}"
    name = re.sub(r"[^a-z0-9_]+", "_", name.lower()).strip("_")
    return name if name[:1].isalpha() else f"metric_{name}"


# ------------------------------------------------------------------------------ loading


def _manager(folders: Sequence[str | Path], *, defaults: bool = True) -> Any:
    manager = lm_eval.tasks.TaskManager(
        include_path=[str(folder) for folder in folders] or None,
        include_defaults=defaults,
    )
    manager.pplguard_whole = defaults
    return manager


def _leaves(loaded: Any) -> dict[str, Any]:
    """All tasks by name, from what any version of lm-eval loads."""
    if isinstance(loaded, dict) and "group_map" in loaded:
        return dict(loaded["tasks"])
    tasks: dict[str, Any] = {}
    for name, value in loaded.items():
        if isinstance(value, dict):
            tasks |= _leaves(value)
        else:
            tasks[str(name)] = value
    return tasks


def _group(loaded: Any, name: str) -> Any:
    """How a group aggregates, None where it does not say."""
    if "group_map" in loaded:
        return getattr(loaded["groups"].get(name), "aggregate_metric_list", None)
    # Before lm-eval 0.4.12, where a group's config is a plain dict.
    config: Mapping[str, Any] = next(
        (g.config for g in loaded if getattr(g, "group", None) == name), {}
    )
    return config.get("aggregate_metric_list")


@contextlib.contextmanager
def _guarding_downloads(key: Key, source: TaskSource) -> Iterator[None]:
    """Before a task's data is fetched: refuse it; where that fails: say what to do."""
    kind = lm_eval.api.task.ConfigurableTask
    download = kind.download

    def guarded(self: Any, dataset_kwargs: Any = None, **options: Any) -> None:
        if self.OUTPUT_TYPE not in _SCORED:
            raise UsageError(
                f"key {key}: the task {self.config.task} needs generated text "
                f"({self.OUTPUT_TYPE}), and this plugin scores only"
            )
        asks = bool((dataset_kwargs or {}).get("trust_remote_code"))
        if asks and not source.trust_remote_code and int(datasets.__version__[0]) < 4:
            raise UsageError(
                f"key {key}: the dataset {self.config.dataset_path} runs code of its "
                "own; --ppl-trust-remote-code lets it"
            )
        try:
            download(self, dataset_kwargs, **options)
        except Exception as error:
            raise CorpusError(
                f"key {key}: the data of the task {self.config.task} cannot be "
                f"reached: dataset {self.config.dataset_path}: "
                f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')}; "
                "fetch it where there is a network (then HF_DATASETS_OFFLINE=1 uses "
                "the cache), or write a YAML with `dataset_path: json` and "
                "`dataset_kwargs: {data_files: ...}` into the folder of "
                "--ppl-include-path (docs/tasks.md)"
            ) from error

    kind.download = guarded
    bars = datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        kind.download = download
        if not bars:
            datasets.enable_progress_bars()


class _Draws:
    """What lm-eval draws at random: as under ``simple_evaluate``, the user's untouched.

    Some tasks shuffle the choices of a document when it is read (GPQA). Unseeded, they
    would be other questions in every run.
    """

    def __init__(self) -> None:
        self._states = (
            random.Random(_RANDOM_SEED).getstate(),
            numpy.random.RandomState(_SEED).get_state(),
        )

    @contextlib.contextmanager
    def lent(self, *, for_good: bool = True) -> Iterator[None]:
        """Go on from where it was; ``for_good``: the next one does from here."""
        users = random.getstate(), numpy.random.get_state()
        random.setstate(self._states[0])
        numpy.random.set_state(self._states[1])
        try:
            yield
        finally:
            if for_good:
                self._states = random.getstate(), numpy.random.get_state()
            random.setstate(users[0])
            numpy.random.set_state(users[1])


def _silence(task: Any) -> None:
    """Hide the bar of a task that wraps its documents, a matter of milliseconds."""
    build = task.build_all_requests

    def built(*args: Any, **options: Any) -> None:
        with contextlib.redirect_stderr(io.StringIO()):
            build(*args, **options)

    task.build_all_requests = built


# ------------------------------------------------------------------------------ results


def _documents(
    samples: Mapping[str, Any], tasks: Sequence[str]
) -> tuple[DocumentResult, ...]:
    """What came of each document, task by task."""
    documents = []
    for task in tasks:
        values: dict[int, dict[MetricName, Any]] = {}
        for sample in samples[task]:
            of = values.setdefault(int(sample["doc_id"]), {})
            for metric in sample["metrics"]:
                with contextlib.suppress(TypeError):  # nothing that JSON holds
                    name = metric_name(metric, sample["filter"])
                    of[name] = _plain(sample[metric])
        documents += [DocumentResult(task, *item) for item in values.items()]
    return tuple(documents)


def _corpus_digest(samples: Mapping[str, Any], tasks: Sequence[str]) -> str:
    """``sha256:`` over lm-eval's hashes of the documents, in order, once each."""
    hashes = dict.fromkeys(
        f"{task} {sample['doc_id']} {sample['doc_hash']}\n"
        for task in tasks
        for sample in samples[task]
    )
    return f"sha256:{hashlib.sha256(''.join(hashes).encode()).hexdigest()}"


def _definition(tasks: Mapping[str, Any]) -> str:
    """A digest of the tasks' configs without where data lies.

    Of code only what is not lm-eval's: its own has a version, the task's.
    """
    configs = {
        name: {
            field: _stable(value)
            for field, value in task.config.to_dict(keep_callable=True).items()
            if field not in _OF_DATA | _OF_RUN
        }
        for name, task in sorted(tasks.items())
    }
    text = json.dumps(configs, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _stable(value: Any) -> Any:
    """``value`` in words that are the same in every process and folder."""
    if isinstance(value, dict):
        return {str(key): _stable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [*map(_stable, value)]
    if callable(value):
        return _code(value)
    text = str(value)
    return "" if " at 0x" in text else text


def _code(function: Any) -> str:
    """What a function says, without comments and layout; nothing of lm-eval's own."""
    try:
        file, source = inspect.getfile(function), inspect.getsource(function)
    except (OSError, TypeError):  # no function, or none of a file
        return ""
    if Path(file).resolve().is_relative_to(TASKS.resolve().parent):
        return ""
    return ast.dump(ast.parse(textwrap.dedent(source)))


def _plain(value: Any) -> Any:
    """``value`` as JSON data.

    Raises:
        TypeError: JSON has nothing like it.
    """
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if hasattr(value, "item"):
        value = value.item()
    if isinstance(value, bool):
        return int(value)
    if isinstance(value, int | float):
        return value
    raise TypeError(type(value).__name__)


def _numbers(value: Any) -> Iterator[float]:
    if _is_number(value):
        yield value
    elif isinstance(value, list):
        for item in value:
            yield from _numbers(item)


def _is_number(value: Any) -> bool:
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def _said(values: Iterable[Any]) -> Scalar:
    """The one value of all tasks, or all there are, in words."""
    found = list(dict.fromkeys(values))
    if len(found) == 1 and isinstance(found[0], str | int | float):
        return found[0]
    return ", ".join(map(str, found))


def _listed(names: Iterable[str]) -> str:
    names = list(names)
    return ", ".join(names[:8]) + (f" and {len(names) - 8} more" * (len(names) > 8))
