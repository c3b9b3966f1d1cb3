"""Numbers from run to run: what is compared with what, and what is left out."""

from __future__ import annotations

from typing import Any

import pytest

from pytest_pplguard.history import HistoryRun, Point, WeightsPoint, all_series

KEY = "wanda/tiny:16"


def run(number: int, *points: Point, zeros: float | None = None) -> HistoryRun:
    return HistoryRun(
        id=f"run{number}",
        time=f"2026-11-{number:02}T12:00:00.000Z",
        commit=f"{number}" * 40,
        points=points,
        weights=(WeightsPoint(checkpoint="m/w50", sparsity=zeros),),
    )


def point(measured: float | None, digest: str = "sha256:a", **changes: Any) -> Point:
    fields: dict[str, Any] = {
        "checkpoint": "m/w50", "key": KEY, "metric": "token_perplexity",
        "outcome": "within", "passed": True,
    }  # fmt: skip
    return Point(**fields | changes, measured=measured, windows_digest=digest)


def test_changes_since_the_last_number() -> None:
    runs = [
        run(1, point(4.0), zeros=0.5),
        run(2, point(5.0)),
        run(3, point(None, outcome="error", passed=False)),
        run(4, point(6.0), zeros=0.25),
    ]
    (series,) = all_series(runs)
    assert (series.checkpoint, series.key) == ("m/w50", KEY)
    assert [one.since_last for one in series.points] == [
        None, 0.25, None, pytest.approx(0.2)
    ]  # fmt: skip
    assert [one.sparsity for one in series.points] == [0.5, None, None, 0.25]
    assert [one.run.id for one in series.points] == ["run1", "run2", "run3", "run4"]
    assert series.values == [4.0, 5.0, 6.0]


def test_other_windows_are_a_break() -> None:
    runs = [
        run(1, point(4.0)),
        run(2, point(5.0, "")),  # not known: taken for the same
        run(3, point(None, "sha256:b")),
        run(4, point(6.0, "sha256:b")),
        run(5, point(9.0, "sha256:b")),
        run(6, point(4.0, "sha256:a")),
    ]
    (series,) = all_series(runs)
    assert [one.breaks for one in series.points] == [
        False, False, True, False, False, True
    ]  # fmt: skip
    assert [one.since_last for one in series.points] == [
        None, 0.25, None, None, 0.5, None
    ]  # fmt: skip
    assert series.values == [4.0]


def test_each_number_once_and_gates_first() -> None:
    own, gate = point(1.0), point(2.0, path="models/w50")
    for points in ((own, gate), (gate, own)):
        (series,) = all_series([run(1, *points)])
        assert [one.point for one in series.points] == [gate]
    (series,) = all_series([run(1, own, point(3.0))])
    assert series.values == [3.0]


def test_by_checkpoint_then_as_they_came() -> None:
    runs = [
        run(1, point(1, checkpoint="m/b"), point(1, checkpoint="m/a")),
        run(2, point(1, checkpoint="m/b", metric="z"), point(1, checkpoint="m/b")),
    ]
    found = [(one.checkpoint, one.metric, len(one.points)) for one in all_series(runs)]
    assert found == [
        ("m/b", "token_perplexity", 2), ("m/b", "z", 1), ("m/a", "token_perplexity", 1)
    ]  # fmt: skip


def test_only_what_is_wanted() -> None:
    other = point(1.0, checkpoint="m/dense", key="kl/tiny:16", metric="kl_divergence")
    runs = [run(1, point(1.0)), run(2, other), run(3, point(3.0), other)]

    def found(**wanted: Any) -> list[tuple[str, list[str]]]:
        return [
            (one.checkpoint, [p.run.id for p in one.points])
            for one in all_series(runs, **wanted)
        ]

    assert found(checkpoints=["m/w50"]) == [("m/w50", ["run1", "run3"])]
    assert found(keys=["kl/tiny:16"]) == [("m/dense", ["run2", "run3"])]
    assert found(metrics=["kl_divergence"]) == [("m/dense", ["run2", "run3"])]
    # Of the runs that have it, and not of all.
    assert found(checkpoints=["m/w50"], last=2) == [("m/w50", ["run1", "run3"])]
    assert found(last=1) == [("m/w50", ["run3"]), ("m/dense", ["run3"])]
    assert found(checkpoints=["m/w50"], keys=["kl/tiny:16"]) == []
