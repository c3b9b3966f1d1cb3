"""What lm-eval will do with a task, for people and as a JSON document."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from ..values import SCHEMA, Scalar
from .json import plain

if TYPE_CHECKING:  # it imports lm-eval, which reports of gates do not need
    from ..inspection import MetricFacts, TaskFacts, WindowFacts

_LABEL = 16
_SHOWN = 200
"""Characters of an entry of a config."""

_OUTPUT = {"generate_until": ": needs generated text, so it cannot be measured here"}

_DETOKENISER = "doc_to_target"
"""The entry of ``wikitext`` that makes the text that is scored."""


def inspection_document(task: TaskFacts, windows: WindowFacts | None) -> dict[str, Any]:
    """``{"schema": 1, "task": {...}, "windows": {...} or None}``."""
    facts = plain(windows) if windows is not None else None
    return {"schema": SCHEMA, "task": plain(task), "windows": facts}


def inspection_lines(
    task: TaskFacts, windows: WindowFacts | None, *, model: str | None
) -> list[str]:
    """One fact a line: of the task, and of the windows of ``model``."""
    lines = [f"{task.task}: what lm-eval {task.lm_eval} does with this {task.kind}"]
    lines += [_line(label, value) for label, value in _task(task)]
    if windows is not None:
        lines.append(f"with the tokenizer of {model}, {windows.key}")
        lines += [_line(label, value) for label, value in _windows(windows)]
    return lines


def _line(label: str, value: object) -> str:
    return f"  {label:<{_LABEL}} {value}"


def _task(task: TaskFacts) -> Iterator[tuple[str, object]]:
    if task.file:
        yield "task file", task.file
    if task.version is not None:
        yield "version", task.version
    if task.members:
        yield "members", _few(task.members)
    if task.dataset_path is not None:
        name = f", {task.dataset_name}" if task.dataset_name else ""
        split = f", split {task.split}" if task.split else ""
        yield "data", f"{task.dataset_path}{name}{split}"
    if task.read_from:
        yield "read from", task.read_from
    if task.documents is not None:
        yield "documents", task.documents
    if task.units:
        counts = (f"{count} {unit}" for unit, count in task.units.items())
        yield "divided by", ", ".join(counts)
    if task.output_type is not None:
        yield "output type", task.output_type + _OUTPUT.get(task.output_type, "")
        shots = task.num_fewshot
        yield "num_fewshot", "0, as the task sets none" if shots is None else shots
    for metric in task.metrics:
        yield "metric", _metric(metric)
    for name, value in task.others.items():
        comment = ""
        if name == _DETOKENISER and task.output_type == "loglikelihood_rolling":
            comment = " (what is scored: the detokeniser)"
        yield name, f"{_entry(value)}{comment}"
    if task.unreachable:
        yield "not reached", task.unreachable


def _metric(metric: MetricFacts) -> str:
    better = {True: ", higher is better", False: ", lower is better", None: ""}
    return f"{metric.name}: {metric.aggregation}{better[metric.higher_is_better]}"


def _entry(value: Scalar) -> str:
    text = repr(value) if value == "" or not isinstance(value, str) else value
    text = text.replace("\n", "\\n")
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]} [...]"


def _few(names: tuple[str, ...]) -> str:
    shown = ", ".join(names[:8])
    return shown if len(names) <= 8 else f"{shown} and {len(names) - 8} more"


def _windows(windows: WindowFacts) -> Iterator[tuple[str, str]]:
    prefix = f"{windows.prefix}, {windows.prefix_text!r}, before each page"
    if windows.prefix_twice:
        prefix += (
            "; the tokenizer adds it too, so it stands twice and is scored once (since "
            "lm-eval 0.4.9.2)"
        )
    yield "prefix token", prefix
    (longest, count), *shorter = windows.lengths.items()
    text = f"{windows.windows}, {count} of {longest} tokens"
    if shorter:
        least, most = shorter[-1][0], shorter[0][0]
        rest = sum(count for _, count in shorter)
        text += f", {rest} of {least if least == most else f'{least} to {most}'}"
    yield "windows", text
    yield "digest", windows.digest
    scored = f"{windows.first_read} tokens read, {windows.first_scored} scored: "
    yield "first window", scored + windows.first
