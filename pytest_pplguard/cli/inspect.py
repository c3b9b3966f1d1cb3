"""``pplguard inspect``: what lm-eval will really do with a task."""

from __future__ import annotations

from msgspec.structs import replace

from ..checkpoints import load_tokenizer, locate, positions
from ..corpora import Corpus, open_corpus
from ..errors import PplguardError, UsageError
from ..inspection import (
    PAGES_TASK,
    TaskFacts,
    count_documents,
    count_units,
    task_facts,
    window_facts,
)
from ..options import Options
from ..protocols import LmEval
from ..report import inspection_document, inspection_lines
from . import own_options
from .compare import LONGEST_DEFAULT_WINDOW
from .output import say, show_table, write_json


def inspect_task(
    name: str,
    model: str | None,
    options: Options,
    *,
    corpus: str | None,
    window: int | None,
    first: int | None,
    json_path: str | None,
) -> bool:
    """Print what lm-eval says of a task, and how ``model`` would read it.

    Returns whether the task's data could be reached.

    Raises:
        UsageError: no such task; options of ``wikitext`` for another task.
        CheckpointError: config or tokenizer of ``model`` cannot be read.
    """
    facts, task = task_facts(name)
    windows = None
    if facts.task == PAGES_TASK:
        protocol = LmEval()
        located = None
        if model is not None:
            located = locate(
                model,
                allow_pickle=options.allow_pickle,
                trust_remote_code=options.trust_remote_code,
            )
        key = protocol.key_for(corpus, window or 1, first)
        try:
            text = open_corpus(protocol.corpus(key), options.corpora)
            pages = protocol.pages(text, key)
        except PplguardError as error:
            facts = replace(facts, unreachable=own_options(str(error)))
        else:
            facts = replace(
                facts,
                documents=len(pages),
                units=count_units(task, pages),
                read_from=_origin(text, options),
            )
            if located is not None:
                trust = options.trust_remote_code
                if window is None:
                    window = _default_window(
                        located.spec, positions(located, trust_remote_code=trust)
                    )
                tokenizer = load_tokenizer(located, trust_remote_code=trust)
                windows = window_facts(
                    text, tokenizer, replace(key, window=window), protocol
                )
    else:
        _refuse_options(facts, model, corpus, window, first)
        if task is not None:
            facts = _with_documents(facts, name)
    write_json(inspection_document(facts, windows), json_path)
    if json_path != "-":
        show_table(inspection_lines(facts, windows, model=model))
    return not facts.unreachable


def _with_documents(facts: TaskFacts, name: str) -> TaskFacts:
    try:
        return replace(facts, documents=count_documents(name))
    except PplguardError as error:
        return replace(facts, unreachable=str(error))


def _origin(text: Corpus, options: Options) -> str:
    file = options.corpora.get(text.name)
    official = {True: ", the official text", False: ", not the official text"}
    return (
        f"the corpus {text.name}"
        + (f" ({file})" if file is not None else "")
        + (official[text.official] if text.official is not None else "")
    )


def _refuse_options(
    facts: TaskFacts,
    model: str | None,
    corpus: str | None,
    window: int | None,
    first: int | None,
) -> None:
    given = {"MODEL": model, "--corpus": corpus, "--window": window, "--limit": first}
    words = [word for word, value in given.items() if value is not None]
    if words:
        raise UsageError(
            f"{', '.join(words)}: only the pages of {PAGES_TASK} are cut into windows; "
            f"{facts.task} scores answers to questions: leave them out"
        )


def _default_window(name: str, limit: int | None) -> int:
    if limit is None:
        raise UsageError(
            f"{name}: its config has no max_position_embeddings; give --window TOKENS"
        )
    window = min(limit, LONGEST_DEFAULT_WINDOW)
    say(f"window {window} (the model's maximum is {limit}; --window changes it)")
    return window
