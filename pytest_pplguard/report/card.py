"""Recorded numbers as a model card's evaluation results, each with its method."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from msgspec import Struct

from ..baselines import Evidence
from ..corpora import NAMED, WIKITEXT2
from ..errors import UsageError
from ..protocols import get_protocol
from ..values import Key, MetricName, Recorded

if TYPE_CHECKING:
    from huggingface_hub import EvalResult

TOOL = "pytest-pplguard"
_MARK = "measured_with"
"""The argument of a metric that says that it is ours."""
_INDEX = "model-index"

_METRICS = {
    "token_perplexity": "Perplexity per token",
    "word_perplexity": "Perplexity per word",
    "byte_perplexity": "Perplexity per byte",
    "bits_per_byte": "Bits per byte",
    "kl_divergence": "KL divergence in nats per token",
    "top1_agreement": "Agreement on the most likely token",
}
_TYPES = {"token_perplexity": "perplexity"}
"""The Hub's names for metrics; else a metric's own."""
_METHODS = {
    "wanda": "the Wanda code's method",
    "gptq": "the GPTQ code's method",
    "strided": "the sliding window of Hugging Face's documentation",
    "llama-cpp": "llama.cpp's method",
    "lora-ft": "the method of Wanda's LoRA fine-tuning code",
    "vllm": "the method of vLLM's tests",
    "kl": "text cut as in the Wanda code",
}
_EMPTY = re.compile(r"\s*---(?P<end>\r?\n)(?=---[ \t]*(?:\r?\n|\Z))")
"""The first line of metadata that hold nothing."""
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)


class Published(Struct, frozen=True, kw_only=True):
    """A measured record on its way into a card.

    ``checkpoint`` is the full name.
    """

    checkpoint: str
    key: Key
    recorded: Recorded
    evidence: Evidence


def eval_results(records: Sequence[Published]) -> list[EvalResult]:
    """Each metric of each record, with all that makes it comparable."""
    return [
        _result(record, metric, value)
        for record in records
        for metric, value in record.recorded.metrics.items()
    ]


def _result(record: Published, metric: MetricName, value: float) -> EvalResult:
    from huggingface_hub import EvalResult

    official = record.evidence.protocol.get("official text") is not False
    name, kind, config, split = _dataset(record.key, official=official)
    return EvalResult(
        task_type="text-generation",
        task_name="Text generation",
        dataset_type=kind,
        dataset_name=name,
        dataset_config=config,
        dataset_split=split,
        dataset_revision=record.recorded.corpus_digest,
        metric_type=_TYPES.get(metric, metric),
        metric_name=metric_name(metric, record.key, record.evidence.protocol),
        metric_value=value,
        metric_args=_arguments(record, metric),
    )


def metric_name(metric: MetricName, key: Key, protocol: Mapping[str, Any]) -> str:
    """``Perplexity per token, the Wanda code's method, windows of 4096 tokens``."""
    what = _METRICS.get(metric, metric)
    if (reference := protocol.get("reference")) and metric in _METRICS:
        what += f" with {reference}" if metric == "top1_agreement" else (
            f" from {reference}"
        )  # fmt: skip
    parts = [what]
    if key.method == "lm-eval":
        parts.append(f"lm-eval's task {key.text}")
        if key.shots is not None:
            parts.append(f"{key.shots} shots")
    else:
        parts.append(_METHODS.get(key.method, f"the method {key.method}"))
    parts.append(f"windows of {key.window} tokens")
    if key.stride is not None:
        parts.append(f"stride {key.stride}")
    if key.first is not None:
        task = get_protocol(key.method).runs_task(key)
        unit = "windows" if key.method != "lm-eval" else "pages"
        parts.append(f"the first {key.first} {'documents' if task else unit} only")
    return ", ".join(parts)


def _dataset(key: Key, *, official: bool) -> tuple[str, str, str | None, str | None]:
    """A text's name, its id on the Hub (else its own name), config and split."""
    protocol = get_protocol(key.method)
    if protocol.runs_task(key):
        return key.text, key.text, None, None
    corpus = protocol.corpus(key)
    if not official:  # a text of somebody's own by that name
        return f"{corpus} (another text than the official one)", corpus, None, None
    if corpus == "wikitext2":
        repository, config, split = WIKITEXT2
        return "WikiText-2 (raw)", repository, config, split
    if corpus in NAMED:
        named = NAMED[corpus]
        return named.title, named.repository, None, named.split
    return corpus, corpus, None, None


def _arguments(record: Published, metric: MetricName) -> dict[str, Any]:
    recorded, environment = record.recorded, dict(record.recorded.environment)
    version = environment.pop("pytest_pplguard", None)
    arguments: dict[str, Any] = {
        _MARK: f"{TOOL} {version}" if version else TOOL,
        "baseline": record.checkpoint,
        "key": str(record.key),
        "window": record.key.window,
        "windows": recorded.windows,
        "units": dict(recorded.units),
        "windows_digest": recorded.windows_digest,
        "corpus_digest": recorded.corpus_digest,
        **_weights(recorded),
        "protocol": {
            name: value
            for name, value in record.evidence.protocol.items()
            if value is not None
        },
        "environment": environment,
    }
    if metric in recorded.stderr:
        arguments["stderr"] = recorded.stderr[metric]
    return arguments


def _weights(recorded: Recorded) -> dict[str, str]:
    """The weights that were measured; nothing where the record does not know them."""
    digest = recorded.weights_digest
    return {} if digest is None else {"weights_digest": digest}


# ------------------------------------------------------------------------------- cards


def new_card(
    name: str,
    results: list[EvalResult],
    *,
    base: str,
    pruned: bool,
    library: str | None,
) -> str:
    """A card that says what is known, and nothing else.

    Args:
        name: of the model, for people.
        results: from :func:`eval_results`.
        base: the base model of the baseline file; taken if it is a Hub id.
        pruned: whether a part of the weights is zero.
        library: what loads the model, if it is known.
    """
    from huggingface_hub import ModelCardData

    data = ModelCardData(
        base_model=base if _HUB_ID.fullmatch(base) else None,
        library_name=library,
        pipeline_tag="text-generation",
        tags=["pruned"] if pruned else None,
        model_name=name,
        eval_results=results,
    )
    return f"---\n{data.to_yaml()}\n---\n\n# {name}\n"


def with_results(text: str, results: list[EvalResult], *, name: str, place: str) -> str:
    """A card with our results in its metadata, and every other byte as it was.

    Only the block ``model-index`` is written anew: huggingface_hub's own round trip
    loses comments, quotes and the fields that it does not know. Results of others in it
    stay, as they are; those of an earlier run are replaced.

    Args:
        text: the card.
        results: from :func:`eval_results`.
        name: of the model, where the card has no results yet.
        place: the card's path, for messages.

    Raises:
        UsageError: its metadata is not what the Hub reads.
    """
    from huggingface_hub.repocard import REGEX_YAML_BLOCK
    from huggingface_hub.repocard_data import eval_results_to_model_index

    if text.startswith("\ufeff"):
        raise UsageError(
            f"{place} starts with a byte order mark, which hides its metadata from the "
            "Hub: save it without one"
        )
    if (empty := _EMPTY.match(text)) is not None:
        # To the Hub's reader it would end at the next rule of the text.
        new = eval_results_to_model_index(name, results)
        written = _yaml({_INDEX: _merged([], new[0])})
        written = written.replace("\n", empty["end"])
        inside_at = empty.end()
        return f"{text[:inside_at]}{written}{empty['end']}{text[inside_at:]}"
    match = REGEX_YAML_BLOCK.search(text)
    block = match[2] if match is not None else ""
    above = 0 if match is None else text.count("\n", 0, match.start(2))
    metadata, span = _metadata(block, place, above=above)
    old = _elements(metadata.get(_INDEX), place)
    new = eval_results_to_model_index(old[0]["name"] if old else name, results)
    index = _merged(old, new[0])
    if old == index:
        return text
    written = _yaml({_INDEX: index})
    if match is None:
        return f"---\n{written}\n---\n{text}"
    line_break = "\r\n" if match[1].endswith("\r\n") else "\n"
    written = written.replace("\n", line_break)
    start, end = span or (len(block), len(block))
    end -= block[:end].endswith("\r")  # half of a line's end
    before = block[:start] + (line_break if not span and block.strip() else "")
    inside = before + written + block[end:]
    _refuse_others(metadata, inside, index, place)
    return text[: match.start(2)] + inside + text[match.end(2) :]


def _refuse_others(
    old: dict[str, Any], block: str, index: list[dict[str, Any]], place: str
) -> None:
    """Refuse a ``block`` that does not read as the ``old`` metadata with our results.

    Anchors, tags and what is indented as a whole are more than a splice can keep.
    """
    import yaml

    try:
        new = yaml.safe_load(block)
    except yaml.YAMLError:
        new = None
    # The Hub's own writer leaves out what is null.
    if _without_nulls(new) != _without_nulls({**old, _INDEX: index}):
        raise UsageError(
            f"{place}: {_INDEX} cannot be written into its metadata without changing "
            f"the rest: write the fields without anchors, from the first column, and "
            f"{_INDEX} as a block of its own"
        )


def _without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _without_nulls(v) for k, v in value.items() if v is not None}
    return [*map(_without_nulls, value)] if isinstance(value, list) else value


def results_of(text: str) -> list[EvalResult]:
    """What huggingface_hub reads from a card.

    Raises:
        ValueError: its metadata is not what the Hub reads.
    """
    from huggingface_hub import ModelCard

    return list(ModelCard(text).data.get("eval_results") or [])


def _metadata(
    block: str, place: str, *, above: int
) -> tuple[dict[str, Any], tuple[int, int] | None]:
    """A card's metadata, and where ``model-index`` begins and ends in its text.

    ``above`` counts the lines of the card before that.
    """
    import yaml

    try:
        node: Any = yaml.compose(block, yaml.SafeLoader)
        data = yaml.safe_load(block)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = "" if mark is None else f":{above + mark.line + 1}"
        problem = getattr(error, "problem", None) or "cannot be read"
        raise UsageError(
            f"{place}{line}: its metadata is no YAML: {problem}"
        ) from error
    if data is None:
        return {}, None
    if not isinstance(data, dict) or node.flow_style:
        raise UsageError(
            f"{place}: its metadata is no block of `name: value` lines: write it as one"
        )
    found = [(key, value) for key, value in node.value if key.value == _INDEX]
    if len(found) > 1:
        raise UsageError(f"{place}: {_INDEX} is there twice: keep one")
    for key, value in found:
        return data, (key.start_mark.index, max(_ends(value)))
    return data, None


def _ends(node: Any) -> Iterator[int]:
    """Where a node's text ends: a block's own mark is after the comments below it."""
    children = node.value if isinstance(node.value, list) else []
    if not children or node.flow_style:
        # Of text behind a `|` or `>` the mark stands on the next line.
        block = isinstance(node.value, str) and node.style in ("|", ">")
        yield node.end_mark.index - block
        return
    for child in children:
        for part in child if isinstance(child, tuple) else (child,):
            yield from _ends(part)


def _elements(index: Any, place: str) -> list[dict[str, Any]]:
    from huggingface_hub.repocard_data import model_index_to_eval_results

    if not index:
        return []
    try:
        model_index_to_eval_results(index)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UsageError(
            f"{place}: its {_INDEX} is not what the Hub reads ({type(error).__name__}: "
            f"{error}): correct it, or remove it"
        ) from error
    elements: list[dict[str, Any]] = index
    return elements


def _merged(old: list[dict[str, Any]], new: dict[str, Any]) -> list[dict[str, Any]]:
    """The elements with the results of others, and ours at the end of the first."""
    elements = [
        {**element, "results": [*_of_others(element["results"])]} for element in old
    ]
    if not elements:
        return [new]
    first = elements[0]
    elements[0] = {**first, "results": [*first["results"], *new["results"]]}
    return elements


def _of_others(results: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    for result in results:
        metrics = [metric for metric in result["metrics"] if not _is_ours(metric)]
        if metrics:
            yield {**result, "metrics": metrics}


def _is_ours(metric: Mapping[str, Any]) -> bool:
    arguments = metric.get("args")
    mark = arguments.get(_MARK) if isinstance(arguments, dict) else None
    return isinstance(mark, str) and mark.split(" ")[0] == TOOL


def _yaml(data: dict[str, Any]) -> str:
    from huggingface_hub import CardData

    return CardData(**data).to_yaml()
