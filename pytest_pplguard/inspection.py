"""What lm-eval will do with a task: read from its own objects, nothing is scored."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import lm_eval
import lm_eval.api.task
from msgspec import Struct

from .corpora import Corpus
from .errors import MeasurementError, UsageError
from .lm_eval_names import TASKS, quiet, yaml_files
from .protocols import LmEval, Tokenizer, windows_digest
from .values import Key, Scalar, near_matches

PAGES_TASK = LmEval.default_text
"""The task whose documents are pages of a corpus, so that its windows are known."""

_SHOWN = 160
"""Characters of a decoded window."""
_NAME = re.compile(
    rb"^[\"']?(task|group)[\"']?[ \t]*:[ \t]*[\"']?([^\s\"'#\[{]+)", re.M
)
_TAG = re.compile(
    rb"^[\"']?tag[\"']?[ \t]*:[ \t]*([^\n]*)\n((?:[ \t]*-[ \t]*[^\n]*\n)*)", re.M
)
_INCLUDE = re.compile(rb"^include[ \t]*:[ \t]*[\"']?([^\s\"'#\[]+)", re.M)
_SAID_APART = (
    "task", "group", "tag", "dataset_path", "dataset_name", "output_type",
    "training_split", "validation_split", "test_split", "metric_list", "metadata",
    "num_fewshot", "aggregate_metric_list",
)  # fmt: skip


class MetricFacts(Struct, frozen=True):
    """A metric of a task; ``aggregation`` is a function's name, or as it is written."""

    name: str
    aggregation: str
    higher_is_better: bool | None


class TaskFacts(Struct, frozen=True, kw_only=True):
    """What a task's own config says.

    ``file`` is relative to lm-eval's folder of tasks. ``members`` are those of a group
    or tag, which has no data of its own. ``split`` is the one that is scored.
    ``others`` are the config's other entries: functions as ``module.name``, texts as
    they are written. ``documents`` and ``units`` are None and empty where the data was
    not read, ``unreachable`` says why it could not be.
    """

    lm_eval: str
    task: str
    file: str
    kind: str = "task"
    version: Scalar = None
    members: tuple[str, ...] = ()
    dataset_path: str | None = None
    dataset_name: str | None = None
    split: str | None = None
    output_type: str | None = None
    num_fewshot: int | None = None
    metrics: tuple[MetricFacts, ...] = ()
    others: dict[str, Scalar] = {}
    documents: int | None = None
    units: dict[str, int] = {}
    read_from: str = ""
    unreachable: str = ""


class WindowFacts(Struct, frozen=True, kw_only=True):
    """How a tokenizer cuts a task's pages into windows.

    ``lengths`` maps the tokens that the model reads to the number of such windows.
    ``prefix_twice``: the tokenizer adds the prefix token as well. ``first`` is the
    first window decoded, escaped and shortened, ``first_read`` and ``first_scored`` its
    tokens.
    """

    key: str
    prefix: int
    prefix_text: str
    prefix_twice: bool
    windows: int
    lengths: dict[int, int]
    digest: str
    first: str
    first_read: int
    first_scored: int


# ------------------------------------------------------------------------------- tasks


def task_facts(name: str) -> tuple[TaskFacts, Any]:
    """What lm-eval's task, group or tag says of itself, and the task object.

    ``name`` may be the path of a task's YAML file. The object is lm-eval's own, without
    data; None for a group.

    Raises:
        UsageError: lm-eval knows no such task, or its config cannot be read.
    """
    path = _file_of(name)
    if path is None:
        return _tag(name), None
    config = _config(path)
    common = {"lm_eval": lm_eval.__version__, "file": _relative(path)}
    if "group" in config or isinstance(config.get("task"), list):
        return TaskFacts(
            **common,
            task=str(config.get("group")),
            kind="group",
            version=_version(config),
            members=tuple(map(_member, config.get("task") or ())),
            metrics=tuple(
                map(_group_metric, config.get("aggregate_metric_list") or ())
            ),
            others=_others(config),
        ), None
    if "class" in config:
        return TaskFacts(
            **common,
            task=str(config.get("task")),
            kind="task in Python",
            version=_version(config),
            others=_others(config),
        ), None
    task = _without_data(config, name)
    return TaskFacts(
        **common,
        task=str(task.config.task),
        version=_scalar(task.VERSION),
        dataset_path=task.DATASET_PATH,
        dataset_name=task.DATASET_NAME,
        split=config.get("test_split") or config.get("validation_split"),
        output_type=task.OUTPUT_TYPE,
        num_fewshot=task.config.num_fewshot,
        metrics=tuple(
            MetricFacts(metric, _function(how), task.higher_is_better()[metric])
            for metric, how in task.aggregation().items()
        ),
        others=_others(config),
    ), task


def count_units(task: Any, pages: Sequence[str]) -> dict[str, int]:
    """Words and bytes that lm-eval divides by, as the task itself counts them."""
    counts = [task.process_results({"page": page}, (0.0,)) for page in pages]
    return {
        "words": sum(count["word_perplexity"][1] for count in counts),
        "bytes": sum(count["byte_perplexity"][1] for count in counts),
    }


def count_documents(name: str) -> int:
    """How many documents a task scores; reads its data, from the Hub if need be.

    Raises:
        MeasurementError: the data cannot be reached, or not be read.
    """
    path = _file_of(name)
    assert path is not None
    try:
        with quiet():
            task = lm_eval.api.task.ConfigurableTask(config=_config(path))
            return len(task.eval_docs)
    # What datasets, its HTTP client, file systems and a task's own code raise.
    except Exception as error:
        reason = next(iter(str(error).splitlines()), "") or type(error).__name__
        raise MeasurementError(
            f"the data of lm-eval's task {name} could not be read: {reason}; "
            "fetch it where there is a network (then HF_DATASETS_OFFLINE=1 uses the "
            "cache), or write a YAML with `dataset_path: json` and `dataset_kwargs: "
            "{data_files: ...}` and give its path (docs/tasks.md)"
        ) from error


def _without_data(config: dict[str, Any], name: str) -> Any:
    """The task as lm-eval makes it of its config, stopped before it fetches data."""

    class Stopped(Exception):
        pass

    class Task(lm_eval.api.task.ConfigurableTask):  # type: ignore[misc]
        def download(self, *args: Any, **options: Any) -> None:
            raise Stopped(self)

    try:
        with quiet():
            return Task(config=config)
    except Stopped as stopped:
        return stopped.args[0]
    except Exception as error:  # of metrics and filters that need other packages
        raise UsageError(
            f"lm-eval {lm_eval.__version__} cannot make its task {name}: "
            f"{type(error).__name__}: {error}"
        ) from error


def _config(path: Path) -> dict[str, Any]:
    """A task's YAML with what it includes, its functions imported."""
    try:
        try:
            from lm_eval.tasks._yaml_loader import load_yaml
        except ImportError:  # before lm-eval 0.4.12
            from lm_eval.utils import load_yaml_config

            return dict(load_yaml_config(yaml_path=str(path), mode="full"))
        return dict(load_yaml(path, resolve_func=True))
    except Exception as error:  # a task's own modules may need anything
        raise UsageError(
            f"{path}: lm-eval cannot read this task: {type(error).__name__}: {error}"
        ) from error


# ------------------------------------------------------------------------------- names


def _file_of(name: str) -> Path | None:
    """The YAML file of a task or group; None for a tag.

    Not lm-eval's ``TaskManager``, which parses all 14,000 files in a dozen seconds.
    """
    given = Path(name)
    if given.suffix in (".yaml", ".yml") and given.is_file():
        return given
    likely = TASKS / name / f"{name}.yaml"
    plain = re.fullmatch(r"[\w.+-]+", name) is not None
    if plain and likely.is_file() and _name_in(likely.read_bytes()) == name:
        return likely
    index: dict[str, Path] = {}
    for path in yaml_files():
        if (known := _name_in(path.read_bytes())) is not None:
            index.setdefault(known, path)
    if name in index:
        return index[name]
    if _tagged(name):
        return None
    raise UsageError(
        f"lm-eval {lm_eval.__version__} knows no task {name!r}"
        f"{near_matches(name, index)}; `lm-eval ls tasks` lists them, "
        "and one of your own is given by the path of its YAML: inspect tasks/"
        f"{name}.yaml"
    )


def _name_in(text: bytes) -> str | None:
    """What a file defines: the group where it is one, else the task."""
    found = {kind: name.decode() for kind, name in _NAME.findall(text)}
    return found.get(b"group") or found.get(b"task")


def _tagged(tag: str) -> list[str]:
    """Names of the tasks that carry a tag, their own or that of a file they include."""
    members = []
    for path in yaml_files():
        text = path.read_bytes()
        if tag in _tags_in(path, text) and b"\ngroup:" not in b"\n" + text:
            members += [name] if (name := _name_in(text)) is not None else []
    return members


def _tags_in(path: Path, text: bytes, depth: int = 5) -> set[str]:
    found = _TAG.search(text)
    if found is not None:
        return {
            word.decode()
            for word in re.findall(rb"[\w.+-]+", b" ".join(found.groups()))
        }
    included = _INCLUDE.search(text)
    if included is None or not depth:
        return set()
    other = path.parent / included[1].decode()
    return _tags_in(other, other.read_bytes(), depth - 1) if other.is_file() else set()


def _tag(name: str) -> TaskFacts:
    return TaskFacts(
        lm_eval=lm_eval.__version__,
        task=name,
        file="",
        kind="tag",
        members=tuple(_tagged(name)),
    )


def _relative(path: Path) -> str:
    return str(path.relative_to(TASKS)) if path.is_relative_to(TASKS) else str(path)


# ----------------------------------------------------------------- parts of a config


def _version(config: Mapping[str, Any]) -> Scalar:
    return _scalar((config.get("metadata") or {}).get("version"))


def _member(member: Any) -> str:
    if isinstance(member, dict):
        return str(member.get("task") or member.get("group"))
    return str(member)


def _group_metric(metric: Mapping[str, Any]) -> MetricFacts:
    by_size = metric.get("weight_by_size", _weights_by_size())
    weighted = "by size" if by_size else "unweighted"
    aggregation = str(metric.get("aggregation", "mean"))
    return MetricFacts(str(metric.get("metric")), f"{aggregation}, {weighted}", None)


def _weights_by_size() -> bool:
    """What a group means that does not say; lm-eval changed its mind in 0.4.12."""
    try:
        from lm_eval.config.group import AggMetricConfig
    except ImportError:  # before lm-eval 0.4.12
        from lm_eval.api.group import AggMetricConfig
    return bool(AggMetricConfig.weight_by_size)


def _others(config: Mapping[str, Any]) -> dict[str, Scalar]:
    return {
        name: _scalar(value)
        for name, value in config.items()
        if name not in _SAID_APART and value is not None
    }


def _scalar(value: Any) -> Scalar:
    if value is None or isinstance(value, str | int | float | bool):
        return value
    return _function(value) if callable(value) else str(value)


def _function(function: Any) -> str:
    """``module.name``; of lm-eval's own aggregations the name alone."""
    if function is None:
        return "unknown to lm-eval"
    if isinstance(function, str):
        return function
    name = getattr(function, "__qualname__", None) or repr(function)
    module = _module(function)
    return name if module == "lm_eval.api.metrics" else f"{module}.{name}"


def _module(function: Any) -> str:
    """The function's module; a task's own is named by its file, as new lm-eval does.

    lm-eval before 0.4.12 knows it by the bare name in the YAML, and many are "utils".
    """
    name = str(getattr(function, "__module__", ""))
    scope = getattr(function, "__globals__", {})
    if "__file__" not in scope or vars(sys.modules.get(name, object)) is scope:
        return name
    file, root = Path(scope["__file__"]).with_suffix(""), Path(lm_eval.__file__).parent
    if file.is_relative_to(root):
        return ".".join((root.name, *file.relative_to(root).parts))
    return str(file)


# ----------------------------------------------------------------------------- windows


def window_facts(
    corpus: Corpus, tokenizer: Tokenizer, key: Key, protocol: LmEval
) -> WindowFacts:
    """How a tokenizer cuts the pages of a corpus, as measuring ``key`` does.

    Raises:
        CorpusError: there are fewer pages than the key asks for.
        UsageError: the tokenizer has no token that could be the prefix.
    """
    windows = protocol.windows(corpus, tokenizer, key)
    first = windows[0]
    prefix = first.ids[0]
    lengths: dict[int, int] = {}
    for window in windows:
        lengths[len(window.ids)] = lengths.get(len(window.ids), 0) + 1
    return WindowFacts(
        key=str(key),
        prefix=prefix,
        prefix_text=str(tokenizer.decode([prefix])),
        prefix_twice=first.targets[:1] == (prefix,),
        windows=len(windows),
        lengths=dict(sorted(lengths.items(), reverse=True)),
        digest=windows_digest(windows),
        first=_escaped(str(tokenizer.decode(list(first.ids)))),
        first_read=len(first.ids),
        first_scored=len(first.targets),
    )


def _escaped(text: str) -> str:
    """One line, everything in it to be seen, the middle left out."""
    line = "".join(
        char if char.isprintable() else char.encode("unicode_escape").decode()
        for char in text
    )
    half = _SHOWN // 2
    return line if len(line) <= _SHOWN else f"{line[:half]} [...] {line[-half:]}"
