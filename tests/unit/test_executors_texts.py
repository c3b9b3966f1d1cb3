"""A text that is not there is found before a model is made ready elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from pytest_pplguard import executors
from pytest_pplguard.cli import measure
from pytest_pplguard.cli.compare import Asked, compare_models
from pytest_pplguard.cli.explain import explain_model
from pytest_pplguard.cli.measure import Wanted, measure_model
from pytest_pplguard.cli.update import update_checkpoint
from pytest_pplguard.corpora import open_corpus
from pytest_pplguard.errors import CorpusError
from pytest_pplguard.gates import EarlyPlan
from pytest_pplguard.measure import Executor, Store, Subject
from pytest_pplguard.options import Execution, Options, Target
from pytest_pplguard.report import watch_lines
from pytest_pplguard.values import Key

OPTIONS = Options(
    execution=Execution("ray"), corpora={"text": "/nowhere/text.txt"}, journal="off"
)
MODEL = "demo/dense"
ENTRY = """\
schema: 1
model: demo
checkpoints:
  dense:
    gates:
      wanda/text:128: {token_perplexity: {rel: 0.01}}
"""


class Opening(Executor):
    """Remembers what it was asked to make ready."""

    def __init__(self) -> None:
        self.opened: list[str] = []

    def open(self, target: Target, allow_keys: Sequence[str] = ()) -> Subject:
        self.opened.append(target.name)
        raise AssertionError(f"{target.name} is made ready")

    def close(self) -> None:
        """Nothing is held."""


@pytest.fixture
def executor(monkeypatch: pytest.MonkeyPatch) -> Opening:
    opening = Opening()

    def make(options: Options, **_: Any) -> Opening:
        assert options.execution.where == "ray"
        return opening

    monkeypatch.setattr(measure, "make_executor", make)
    monkeypatch.setattr(executors, "make_executor", make)
    return opening


def wanted(*methods: str, window: int | None = None, **more: Any) -> Wanted:
    return Wanted.parse(
        [*methods] or None, window=window, limit=None, corpora=["text"], **more
    )


def update(folder: Path, *, known: bool) -> None:
    (folder / "it.yaml").write_text(ENTRY)
    update_checkpoint(
        MODEL,
        Wanted() if known else wanted(),
        OPTIONS,
        folder=folder,
        checkpoint="it/dense",
        base=None,
    )


WAYS: dict[str, Callable[[Path], object]] = {
    "measure": lambda _: measure_model(MODEL, wanted(), OPTIONS, json_path=None),
    "measure, window": lambda _: measure_model(
        MODEL, wanted(window=128), OPTIONS, json_path=None
    ),
    "measure kl": lambda _: measure_model(
        MODEL, wanted("kl", reference="demo/wanda-50"), OPTIONS, json_path=None
    ),
    "explain": lambda folder: explain_model(
        MODEL,
        wanted("wanda", "lm-eval"),
        OPTIONS,
        pages=None,
        json_path=None,
        plot=None,
        folder=folder,
    ),
    "compare": lambda folder: compare_models(
        [MODEL, "demo/wanda-50"],
        OPTIONS,
        Asked(corpus="text"),
        folder=folder,
        json_path=None,
    ),
    "update": lambda folder: update(folder, known=False),
    "update, known keys": lambda folder: update(folder, known=True),
}


@pytest.mark.parametrize("way", WAYS)
def test_commands(executor: Opening, tmp_path: Path, way: str) -> None:
    with pytest.raises(CorpusError, match=r"/nowhere/text\.txt"):
        WAYS[way](tmp_path)
    assert executor.opened == []


def store(executor: Executor) -> Store:
    return Store(
        {name: Target(name, name) for name in (MODEL, "demo/wanda-50")},
        load=lambda target: pytest.fail(f"{target.name} is loaded"),
        open_corpus=lambda name: open_corpus(name, OPTIONS.corpora),
        watch=lambda label, **_: watch_lines(label, lambda line: None),
        executor=executor,
    )


@pytest.mark.parametrize(
    ("key", "reference"),
    [("wanda/text:128", None), ("kl/text:128", "demo/wanda-50")],
)
@pytest.mark.parametrize("early", [False, True])
def test_gates(
    executor: Opening, key: str, reference: str | None, *, early: bool
) -> None:
    """As a gate asks the store; an early one has a plan, which is not looked at."""
    plan = EarlyPlan.__new__(EarlyPlan) if early else None
    with pytest.raises(CorpusError, match=r"/nowhere/text\.txt"):
        store(executor).measurement(
            MODEL, Key.parse(key), reference=reference, early=plan
        )
    assert executor.opened == []


def test_a_ladder(executor: Opening) -> None:
    ends = Key.parse("wanda/text:128"), Key.parse("lm-eval/wikitext+text:128")
    with pytest.raises(CorpusError, match=r"/nowhere/text\.txt"):
        store(executor).ladder(MODEL, *ends)
    assert executor.opened == []
