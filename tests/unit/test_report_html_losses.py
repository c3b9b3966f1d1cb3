"""Losses on the page: the same numbers as gates have, and what is missing."""

from __future__ import annotations

import json
import math
import statistics
from typing import Any

import pytest
from msgspec.structs import replace

from pytest_pplguard.report.html.losses import Losses, losses_of
from pytest_pplguard.values import LossDetail, Outcome, Verdict, WindowPlace

COUNT = 20
CHANGES = [
    0.3 + 0.01 * (index % 7) - (0.5 if index == 4 else 0) for index in range(COUNT)
]
DETAIL = LossDetail(
    checkpoint="m/w50",
    key="wanda/tiny:16",
    of="nll_sum",
    total=COUNT,
    windows=tuple(range(COUNT)),
    scored=(10,) * COUNT,
    measured=tuple(20 + change for change in CHANGES),
    baseline=(20.0,) * COUNT,
    places=tuple(
        WindowPlace(COUNT, index // 5, f"= Page {index // 5} =", f"words of {index}")
        for index in range(COUNT)
    ),
)


def shown(**changes: Any) -> Losses:
    return losses_of(replace(DETAIL, **changes), (), "losses-1")


def test_mean_and_interval_are_those_of_the_windows() -> None:
    found = shown()
    assert found.change is not None
    means = [change / 10 for change in CHANGES]
    # Windows are equally long: the usual standard error of a mean.
    error = statistics.stdev(means) / math.sqrt(COUNT)
    assert found.change.mean == pytest.approx(statistics.fmean(means), rel=1e-9)
    assert found.half == pytest.approx(1.96 * error, rel=1e-9)
    assert (found.change.worse, found.change.better) == (19, 1)
    data = found.data["histogram"]
    assert data["mean"] == found.change.mean
    assert data["half"] == found.half
    assert sum(data["counts"]) == COUNT
    assert found.missing == ()
    assert found.where[0] == (
        "the whole text moved: 19 of 20 windows are worse, by 0.03 +- 0.002 nats a "
        "token"
    )


def test_rows_and_data_say_where_a_window_is() -> None:
    found = shown()
    row = found.rows[7]
    assert (row.number, row.place) == (8, "page 2, Page 1")
    assert row.change == pytest.approx(CHANGES[7] / 10)
    # The window that adds most to the change is the first; 6 and 13 add the same.
    assert [row.number for row in found.moved[:2]] == [7, 14]
    assert found.data["number"][7] == 8
    assert found.data["words"][7] == "words of 7"
    assert found.data["measured"][7] == pytest.approx((20 + CHANGES[7]) / 10)
    assert not found.data["drawn"]
    json.dumps(found.data, allow_nan=False)


def test_a_loss_that_is_not_finite() -> None:
    lost = list(DETAIL.measured)
    lost[3], lost[9] = None, math.inf
    found = shown(measured=tuple(lost))
    assert found.missing == (
        "2 of 20 windows have no finite loss (window 4, 10): what follows is of the "
        "others.",
    )
    assert found.change is not None
    assert found.change.windows == 18
    assert found.where == ()
    assert {row.number for row in found.moved[:2]} == {4, 10}
    assert found.data["measured"][3] is None
    json.dumps(found.data, allow_nan=False)


def test_without_a_baseline() -> None:
    found = shown(baseline=())
    assert found.change is None
    assert found.half is None
    assert "histogram" not in found.data
    assert found.missing == (
        "There are no recorded losses of these windows to compare with.",
    )
    found = shown(baseline=(), places=(), problem="the evidence is gone")
    assert found.missing == ("The evidence is gone.",)
    assert found.rows[0].place == ""


def test_an_early_verdict_keeps_the_order_in_which_windows_were_drawn() -> None:
    found = shown(
        windows=(7, 2, 11),
        scored=(10, 10, 10),
        measured=(20.0, 21.0, 19.0),
        baseline=(20.0, 20.0, 20.0),
        places=DETAIL.places[:3],
    )
    assert [row.number for row in found.rows] == [8, 3, 12]
    assert found.data["drawn"]
    assert found.where == ()
    assert found.missing == ("Shown are the 3 of 20 windows that were scored.",)
    assert found.change is not None
    assert found.change.mean == pytest.approx(0.0)


def test_nothing_moved_and_nothing_scored() -> None:
    found = shown(measured=DETAIL.baseline)
    assert "histogram" not in found.data
    assert found.where == (
        "no window moved: all 20 are as recorded, to 1e-06 nats a token",
    )
    task = shown(windows=(), scored=(), measured=(), baseline=(), places=(),
                 problem="answers of a task are no windows of a text")  # fmt: skip
    assert task.missing == ("Answers of a task are no windows of a text.",)
    nothing = shown(windows=(), scored=(), measured=(), baseline=(), places=())
    assert nothing.missing == ("No window was scored.",)
    assert nothing.rows == ()


def test_a_divergence_and_one_window() -> None:
    found = shown(of="kl_sum")
    assert found.name == "KL divergence"
    assert "nats of divergence a token" in found.where[0]
    one = shown(
        total=1,
        windows=(0,),
        scored=(10,),
        measured=(21.0,),
        baseline=(20.0,),
        places=(),
    )
    assert one.half is None
    assert one.data["histogram"]["half"] is None


def test_gates_on_it_make_it_red() -> None:
    verdict = Verdict(
        checkpoint="m/w50",
        key="wanda/tiny:16",
        metric="token_perplexity",
        outcome=Outcome.REGRESSED,
        passed=False,
    )
    assert losses_of(DETAIL, [verdict], "a").failed
    told = replace(verdict, documents=("2 of 9 moved",))
    assert losses_of(DETAIL, [told, told], "a").documents == ("2 of 9 moved",)
    assert not losses_of(DETAIL, [replace(verdict, key="wanda/tiny:32")], "a").failed
    assert not losses_of(DETAIL, [replace(verdict, passed=True)], "a").failed
