"""Batch size, threads and torch.compile, on their way to the scorer and the record."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from pytest_pplguard.checkpoints import Loaded, load, locate
from pytest_pplguard.corpora import Corpus
from pytest_pplguard.journal import Journal
from pytest_pplguard.measure import Facts, Store, measure_loaded
from pytest_pplguard.measure.environment import using_threads
from pytest_pplguard.options import Options, Target
from pytest_pplguard.scoring import Scorer
from pytest_pplguard.session import setup
from pytest_pplguard.session.outbox import Outbox
from pytest_pplguard.values import Key
from tests.model.commands import pplguard
from tests.model.tiny import save_tiny

ROWS = ["", " = Page = \n", "", *[" The ship sailed at noon . \n"] * 20]
CORPUS = Corpus.from_wikitext_rows("mine", ROWS)
KEYS = ("wanda/mine:16", "lm-eval/wikitext+mine:16")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Loaded:
    path = save_tiny(tmp_path_factory.mktemp("tiny") / "m")
    return load(locate(str(path)), device="cpu", dtype="float32")


@pytest.fixture(autouse=True)
def threads() -> Iterator[int]:
    """One more than those that the tests ask for."""
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield 3
    assert torch.get_num_threads() == 3
    torch.set_num_threads(before)


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Threads of torch whenever windows are scored."""
    counts: list[int] = []
    score = Scorer._score

    def counting(*args: Any) -> Any:
        counts.append(torch.get_num_threads())
        return score(*args)

    monkeypatch.setattr(Scorer, "_score", counting)
    return counts


def eager(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Stand in for torch.compile; what was given to it."""
    compiled: list[Any] = []

    def compile(module: Any) -> Any:
        compiled.append(module)
        return module.forward

    monkeypatch.setattr(torch, "compile", compile)
    return compiled


@pytest.mark.parametrize("key", KEYS)
def test_what_is_not_set_is_not_recorded(tiny: Loaded, key: str) -> None:
    measured = measure_loaded(tiny, Key.parse(key), lambda name: CORPUS)
    assert measured.environment["batch_size"] == 1
    assert measured.environment.keys().isdisjoint({"threads", "compile"})


@pytest.mark.parametrize("key", KEYS)
def test_what_is_set_is_recorded_and_decides_the_journal(
    tiny: Loaded, key: str, seen: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled = eager(monkeypatch)
    deciding: list[dict[str, Any]] = []

    def journal(digest: str, environment: dict[str, Any], windows: Any) -> Journal:
        deciding.append(environment)
        return Journal(None, {})

    measured = measure_loaded(
        tiny, Key.parse(key), lambda name: CORPUS, batch_size="auto", compile=True,
        threads=2, open_journal=journal,
    )  # fmt: skip
    expected = {"batch_size": "auto", "compile": True, "threads": 2}
    assert measured.environment.items() >= expected.items()
    assert deciding[0].items() >= expected.items()
    assert set(seen) == {2}
    assert compiled == [tiny.model.base_model]
    usual = measure_loaded(tiny, Key.parse(key), lambda name: CORPUS)
    assert measured.metrics == pytest.approx(usual.metrics, rel=1e-6)


def test_threads_of_a_gpu_are_not_recorded() -> None:
    from pytest_pplguard.measure import environment

    there = Facts("float16", "cuda", "a GPU", "sdpa", environment.python_versions())
    facts = environment.environment(there, Key.parse(KEYS[0]), batch_size=2, threads=2)
    assert "threads" not in facts
    assert facts["device"] == "cuda"


def test_threads_come_back_after_an_error() -> None:
    found: list[int] = []
    with pytest.raises(IndexError), using_threads(2):
        found.pop(torch.get_num_threads())
    with using_threads(2):
        assert torch.get_num_threads() == 2
    with using_threads(None):
        assert torch.get_num_threads() == 3


@contextmanager
def quietly(label: str, **_: object) -> Iterator[Any]:
    yield lambda done, total, mean: None


def test_a_store_loads_and_measures_with_them(tiny: Loaded, seen: list[int]) -> None:
    loading: list[int] = []

    def load(target: Target) -> Loaded:
        loading.append(torch.get_num_threads())
        return tiny

    targets = {name: Target(name, "x") for name in ("one", "other")}
    store = Store(
        targets,
        load=load,
        open_corpus=lambda name: CORPUS,
        watch=quietly,
        batch_size="auto",
        threads=2,
    )
    alone = store.measurement("one", Key.parse(KEYS[0]))
    compared = store.measurement("one", Key.parse("kl/mine:16"), reference="other")
    climbed = store.ladder("one", *map(Key.parse, KEYS))
    assert set(loading) == set(seen) == {2}
    assert alone.environment["threads"] == compared.environment["threads"] == 2
    assert climbed.environment["threads"] == 2
    assert alone.environment["batch_size"] == "auto"
    assert compared.environment["batch_size"] == 1
    assert compared.metrics["kl_divergence"] == 0.0


# ------------------------------------------------------------------- from the options


@pytest.mark.parametrize(("typed", "expected"), [(None, 1), (2, 3)])
def test_a_number_that_was_typed_wins_over_xdists_share(
    tiny: Loaded, typed: int | None, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The store sets it; here it only has to be left alone."""
    monkeypatch.setattr("os.cpu_count", lambda: 4)
    found: list[int] = []

    def hook(checkpoint: Target) -> Loaded:
        found.append(torch.get_num_threads())
        return tiny

    config: Any = SimpleNamespace(
        workerinput={"workerid": "gw1", "workercount": 4},
        hook=SimpleNamespace(pytest_pplguard_load_model=hook),
    )
    guard: Any = SimpleNamespace(options=Options(threads=typed), outbox=Outbox())
    setup._Loader(config, guard)(Target("one", "x"))
    torch.set_num_threads(3)
    assert found == [expected]


def test_the_command_takes_all_three(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("The ship sailed at noon. " * 120)
    save_tiny(tmp_path / "m")
    command = ("measure", "m", "--corpus", "mine=mine.txt", "--window", "32")
    done = pplguard(
        *command, "--method", "wanda", "--batch-size", "auto", "--threads", "1",
        "--json", "-", cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (measured,) = json.loads(done.stdout)["measurements"]
    assert measured["environment"]["batch_size"] == "auto"
    assert measured["environment"]["threads"] == 1


def test_noise_needs_a_number(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("The ship sailed at noon. " * 120)
    save_tiny(tmp_path / "m")
    done = pplguard(
        "noise", "m", "--corpus", "mine=mine.txt", "--batch-size", "auto", cwd=tmp_path
    )
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1] == (
        "pplguard: error: --batch-size auto may be another one in each run, and noise "
        "varies it itself: give a number"
    )
