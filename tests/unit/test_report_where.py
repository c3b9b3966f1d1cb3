"""The lines that say where a change is, in full."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec.structs import replace

from pytest_pplguard.gates import Paired, WindowChange
from pytest_pplguard.report import failure_text, place_line, where_lines
from pytest_pplguard.values import Outcome, Verdict, WindowPlace

BOULTER = WindowPlace(64, 2, "= Robert Boulter =", "...he had a role in the play...")
WHOLE = Paired(
    windows=64,
    mean=0.0312,
    error=0.00213,
    worse=64,
    better=0,
    equal=0,
    moved_most=(
        WindowChange(11, None, 0.41, 105.0),
        WindowChange(3, None, 0.052, 13.0),
        WindowChange(60, None, -0.04, -10.0),
    ),
    half=30,
    extent="whole",
    divergence=0.0212,
)
KL = "(KL divergence, told from how the windows scatter)"


def lines(places: dict[int, WindowPlace] | None = None, **changes: Any) -> list[str]:
    return list(where_lines(replace(WHOLE, **changes), places or {}))


def test_the_whole_text_moved() -> None:
    assert lines({11: BOULTER}) == [
        "the whole text moved: 64 of 64 windows are worse, by 0.031 +- 0.002 nats a "
        "token",
        f"the predictions moved by roughly 0.02 nats a token {KL}",
        'window 12 of 64 moved most: +0.41 nats a token, page 3 "= Robert Boulter =", '
        'at "...he had a role in the play..."',
    ]


def test_a_few_windows_moved() -> None:
    assert lines(
        {11: BOULTER, 3: WindowPlace(64, words="It was")},
        extent="few", half=1, worse=30, better=34, mean=-0.0021, divergence=0.4,
    ) == [
        "a few windows moved: 1 of 64 carries more than half of the change (30 of 64 "
        "windows are worse, 34 better); the mean moved by -0.0021 +- 0.002 nats a "
        "token",
        f"the predictions moved more than the mean, by roughly 0.4 nats a token {KL}",
        'window 12 of 64 moved most: +0.41 nats a token, page 3 "= Robert Boulter =", '
        'at "...he had a role in the play..."',
        'window 4: +0.052 nats a token, at "It was"',
        "window 61: -0.04 nats a token",
    ]  # fmt: skip


def test_both_ways_and_without_words() -> None:
    moved = tuple(replace(window, page=4) for window in WHOLE.moved_most[:1])
    assert lines(
        extent="mixed", worse=1, better=60, equal=3, divergence=None, moved_most=moved
    ) == [
        "the text moved both ways: 1 of 64 windows is worse, 60 better; the mean moved "
        "by +0.031 +- 0.002 nats a token",
        "window 12 of 64 moved most: +0.41 nats a token, page 5",
    ]


def test_nothing_moved() -> None:
    """As where a bound was written below the baseline."""
    assert lines(extent="nothing", worse=0, equal=64) == [
        "no window moved: all 64 are as recorded, to 1e-06 nats a token"
    ]
    assert lines(extent="nothing", windows=1, worse=0, equal=1) == [
        "no window moved: the only one is as recorded, to 1e-06 nats a token"
    ]


def test_one_window_has_no_error_and_even_windows_none_to_speak_of() -> None:
    def first(**changes: Any) -> str:
        return lines(divergence=None, **changes)[0]

    assert first(windows=1, worse=1, error=None, mean=0.5) == (
        "the whole text moved: 1 of 1 windows is worse, by 0.5 nats a token"
    )
    assert first(worse=0, better=64, mean=-0.5, error=1e-17) == (
        "the whole text moved: 64 of 64 windows are better, by 0.5 +- 0 nats a token"
    )


@pytest.mark.parametrize(
    ("place", "text"),
    [
        (WindowPlace(11), "window 3 of 11"),
        (WindowPlace(11, 1, "= A ="), 'window 3 of 11, page 2 "= A ="'),
        (WindowPlace(11, words="..."), 'window 3 of 11, at "..."'),
    ],
)
def test_the_place_of_one_window(place: WindowPlace, text: str) -> None:
    assert place_line(2, place) == text


def test_the_lines_stand_behind_where_it_was_recorded() -> None:
    verdict = Verdict(
        "m/x", "wanda/t:8", "token_perplexity", Outcome.REGRESSED, False,
        recorded_in="b/m.yaml:9", reasons=("why",), changes=("what",),
            where=("one", "two"),
    )  # fmt: skip
    assert failure_text(verdict) == (
        "m/x wanda/t:8: token_perplexity regressed\n"
        "  recorded in  b/m.yaml:9\n"
        "  because      why\n"
        "  checkpoint   what\n"
        "  where        one\n"
        "  where        two"
    )


def test_a_divergence() -> None:
    """What moved is no loss, and the lines say so."""
    assert lines({}, of="kl_sum", divergence=None) == [
        "the whole text moved: 64 of 64 windows are worse, by 0.031 +- 0.002 nats of "
        "divergence a token",
        "window 12 of 64 moved most: +0.41 nats of divergence a token",
    ]
    assert lines({}, of="kl_sum", extent="nothing", worse=0, equal=64) == [
        "no window moved: all 64 are as recorded, to 1e-06 nats of divergence a token"
    ]


def test_a_large_divergence_is_written_out() -> None:
    assert lines(mean=6.2, divergence=17.3)[1] == (
        f"the predictions moved more than the mean, by roughly 20 nats a token {KL}"
    )
