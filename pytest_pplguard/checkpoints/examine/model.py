"""Checks what transformers makes of it: the model's class, its keys, its tokenizer."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from ...values import TensorFacts
from ..load import fit, load_tokenizer
from ..locate import Located
from ..streams import Stream
from .result import Findings

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_HEAD = re.compile(r"(^|\.)(lm_head|embed_out)\.weight$")
_EMBEDDING = re.compile(r"(^|\.)(embed_tokens|embed_in|wte|word_embeddings)\.weight$")
_PADDED, _LEAST_PADDING = 1.25, 1024
"""More rows than this for each token, and so many too many, is no padding."""


def check_keys(
    located: Located,
    streams: Iterable[Stream],
    found: Findings,
    *,
    trust_remote_code: bool,
) -> PreTrainedModel | None:
    """Whether the tensors are those of the model's class, by transformers itself.

    Returns:
        The model without weights; None if it cannot be built.
    """
    model: PreTrainedModel | None = None
    with found.collect("architecture", "config.json"):
        model, problems = fit(located, streams, trust_remote_code=trust_remote_code)
        if found.has("file", "index", "missing-shard", "files"):
            # What a missing file holds is missing, masks are unexpected: that was said.
            problems.pop("missing", None)
        if found.has("files"):
            problems.pop("unexpected", None)
        for code, problem in problems.items():
            found.error(
                code,
                "weights",
                f"{located.spec} does not fit its architecture "
                f"{type(model).__name__}: {problem}{_way_out(code, model, problem)}",
            )
    return model


def _way_out(code: str, model: PreTrainedModel, problem: str) -> str:
    lost = problem.partition("(")[2].partition(")")[0]
    if code != "missing" or not _HEAD.search(lost) or model.config.tie_word_embeddings:
        return ""
    return (
        "; if the base model ties its embeddings, set tie_word_embeddings to true in "
        "config.json"
    )


def check_head(
    spec: str,
    model: PreTrainedModel,
    facts: Mapping[str, TensorFacts],
    found: Findings,
) -> None:
    """Whether a head that the config ties to the embedding is the embedding."""
    if not model.config.get_text_config().tie_word_embeddings:
        return
    embeddings = {f.values for name, f in facts.items() if _EMBEDDING.search(name)}
    for name, head in facts.items():
        if _HEAD.search(name) and embeddings and head.values not in embeddings:
            found.warning(
                "tied-head",
                name,
                f"{spec}: config.json ties the head to the embedding "
                f"(tie_word_embeddings), but {name} holds other weights: transformers "
                "5 runs them, version 4 the embedding; set tie_word_embeddings to "
                "false, or delete the head",
            )


# --------------------------------------------------------------------------- tokenizer


def check_tokenizer(
    located: Located,
    config: Mapping[str, Any],
    rows: int | None,
    found: Findings,
    *,
    window: int | None,
    trust_remote_code: bool,
) -> None:
    """Whether the tokenizer fits the embedding and the config.

    Args:
        located: the checkpoint.
        config: its ``config.json``; of a GGUF file empty.
        rows: of the embedding.
        found: takes the findings.
        window: in tokens, if the user has one in mind.
        trust_remote_code: run Python code that the checkpoint brings along.
    """
    with found.collect("tokenizer", "tokenizer"):
        tokenizer = load_tokenizer(located, trust_remote_code=trust_remote_code)
        largest = max(tokenizer.get_vocab().values(), default=-1)
        if rows is not None:
            _check_size(located.spec, largest, rows, found)
            _check_special_ids(located.spec, config, rows, found)
        _check_first_and_last(located.spec, tokenizer, config, found)
        limit = tokenizer.model_max_length
        if window is not None and window > limit:
            found.note(
                "tokenizer-length",
                "tokenizer_config.json: model_max_length",
                f"{located.spec}: the tokenizer says that texts have at most {limit} "
                f"tokens, the window has {window}; texts are not cut by it",
            )


def _check_size(spec: str, largest: int, rows: int, found: Findings) -> None:
    if largest < 0:
        found.error("vocabulary", "tokenizer", f"{spec}: its tokenizer is empty")
    elif largest >= rows:
        found.error(
            "vocabulary",
            "tokenizer",
            f"{spec}: its tokenizer has ids up to {largest}, but the embedding has "
            f"{rows} rows: tokenizer and weights do not belong together; take the "
            "tokenizer of the base model",
        )
    elif rows > max(_PADDED * (largest + 1), largest + 1 + _LEAST_PADDING):
        found.warning(
            "vocabulary",
            "tokenizer",
            f"{spec}: the embedding has {rows} rows, the tokenizer ids up to "
            f"{largest}: is it another model's?",
        )


def _check_special_ids(
    spec: str, config: Mapping[str, Any], rows: int, found: Findings
) -> None:
    for name in ("bos", "eos", "pad"):
        for id_ in _ids(config.get(f"{name}_token_id")):
            if id_ >= rows:
                found.warning(
                    "special-id",
                    f"config.json: {name}_token_id",
                    f"{spec}: {name}_token_id is {id_} in config.json, but the "
                    f"embedding has {rows} rows: compare it with the base model's "
                    "config",
                )


def _check_first_and_last(
    spec: str,
    tokenizer: PreTrainedTokenizerBase,
    config: Mapping[str, Any],
    found: Findings,
) -> None:
    for name in ("bos", "eos"):
        wanted = _ids(config.get(f"{name}_token_id"))
        has = getattr(tokenizer, f"{name}_token_id")
        if wanted and has is not None and has not in wanted:
            found.note(
                f"{name}-differs",
                f"config.json: {name}_token_id",
                f"{spec}: {name.upper()} is {' or '.join(map(str, wanted))} in "
                f"config.json and {has} in the tokenizer: the tokenizer's is used",
            )
    bos = tokenizer.bos_token_id
    if bos is None:
        if _ids(config.get("bos_token_id")):
            found.note(
                "no-bos",
                "tokenizer",
                f"{spec}: config.json has a BOS, the tokenizer has none: windows begin "
                "without it, and lm-eval takes EOS for a prefix",
            )
    elif list(tokenizer("a")["input_ids"])[:1] != [bos]:
        found.note(
            "no-bos",
            "tokenizer",
            f"{spec}: the tokenizer has a BOS ({tokenizer.bos_token}) and does not put "
            "it before a text: Wanda's numbers are without it, lm-eval's with it; if "
            "the base model's tokenizer does, take that one",
        )


def _ids(value: object) -> list[int]:
    """Ids of a config field: a number, a list of them, or nothing. -1 means none."""
    values = value if isinstance(value, list) else [value]
    return [id_ for id_ in values if isinstance(id_, int) and id_ >= 0]
