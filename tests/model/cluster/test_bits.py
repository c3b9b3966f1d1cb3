"""Two replicas give the bits of one process, by every method."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from pytest_pplguard.checkpoints import Loaded, load, locate
from pytest_pplguard.measure import Store
from pytest_pplguard.measure.divergence import measure_divergence_elsewhere
from pytest_pplguard.options import Target
from pytest_pplguard.report import watch_lines
from pytest_pplguard.values import Key, WindowScore

from .nodes import KEYS, Keeping, Local, Opened, open_text, windows_of


@pytest.mark.parametrize("batch_size", [1, 3])
@pytest.mark.parametrize("key", KEYS)
def test_every_method_gives_the_bits_of_one_process(
    opened: Opened, local: Local, key: str, batch_size: int
) -> None:
    measured = opened.measure(key, batch_size=batch_size, threads=1)
    expected = local(key, batch_size)
    assert measured.evidence == expected.evidence
    assert measured.metrics == expected.metrics
    assert measured.environment == expected.environment | {"executor": "ray"}


@pytest.mark.parametrize("batch_size", [1, 3])
def test_a_divergence_has_the_bits_of_one_process(
    opened: Opened, loaded: Loaded, batch_size: int
) -> None:
    """On replicas both models are in memory at once; here one after the other."""
    key = Key.parse("kl/demo:128:first10")
    pruned = load(locate("demo/wanda-50"), device="cpu", dtype="float32")
    here = Store(
        {name: Target(name, name) for name in ("pruned", "it")},
        load=lambda target: {"pruned": pruned, "it": loaded}[target.name],
        open_corpus=open_text,
        watch=lambda label, **_: watch_lines(label, lambda line: None),
        batch_size=batch_size,
        threads=1,
    )
    expected = here.measurement("it", key, reference="pruned")
    measured = measure_divergence_elsewhere(
        key,
        name="it",
        subject=opened.subject,
        reference=Target("pruned", "demo/wanda-50"),
        allow_keys=(),
        open_corpus=open_text,
        watch=lambda label: watch_lines(label, lambda line: None),
        batch_size=batch_size,
        threads=1,
    )
    assert measured.evidence == expected.evidence
    assert measured.metrics == expected.metrics
    assert measured.environment == expected.environment | {"executor": "ray"}


def test_both_replicas_have_worked(opened: Opened) -> None:
    opened.measure(KEYS[0])
    assert len(opened.pool.members) == 2
    assert {one.hello.address for one in opened.pool.members} == {
        "127.0.0.2",
        "127.0.0.3",
    }


def test_this_process_never_has_the_model(opened: Opened) -> None:
    """Its memory cannot depend on a model of which it has no part."""
    assert opened.modules_made_here == []


def test_finished_windows_are_not_scored_again(opened: Opened, local: Local) -> None:
    windows = windows_of(opened.subject, KEYS[0])
    expected = local(KEYS[0]).evidence
    kept = Keeping({index: expected[index] for index in (0, 1, 2, 7)})
    done: list[tuple[int, int]] = []
    scorer = opened.subject.scorer(
        progress=lambda now, all_, _: done.append((now, all_))
    )
    assert tuple(scorer(windows, kept)) == expected
    assert sorted(kept.added) == sorted({*range(30)} - {0, 1, 2, 7})
    assert done[0] == (4, 30)
    assert done[-1] == (30, 30)


def test_an_early_end_does_not_depend_on_the_replicas(
    opened: Opened, loaded: Loaded
) -> None:
    from pytest_pplguard.scoring import Scorer

    windows = windows_of(opened.subject, KEYS[0])
    order = [*range(29, -1, -1)]

    def enough(scores: Mapping[int, WindowScore]) -> bool:
        return len(scores) == 11

    here = Scorer(loaded.model).until(windows, order=order, stop=enough)
    there = opened.subject.scorer().until(windows, order=order, stop=enough)
    assert there == here
    assert len(there) == 11
