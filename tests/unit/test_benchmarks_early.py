"""The arithmetic of the early verdicts' benchmark, and what the docs quote of it."""

from __future__ import annotations

import math
import random
import re
from pathlib import Path

import pytest

from benchmarks.early import (
    KINDS,
    USUAL,
    USUAL_KINDS,
    Kind,
    fewest,
    kinds_table,
    run_case,
    settings,
    simulate,
    usual_share,
)

PAGE = Path(__file__).parents[2] / "docs" / "early.md"


def test_the_least_that_any_rule_needs() -> None:
    """Drawn one by one: the chance that none of the spoilt windows is among them."""
    for tolerance, cap in settings():
        spoilt = math.floor(USUAL * math.log(1 + tolerance) / cap) + 1
        missed, seen = 1.0, 0
        while missed > 0.001:
            missed *= (USUAL - spoilt - seen) / (USUAL - seen)
            seen += 1
        assert fewest(tolerance, cap) == seen


def test_a_case_is_held_to_the_sum_of_its_windows() -> None:
    same = run_case("", [0.0] * 40, [10] * 40, "a", tolerance=0.02, cap=0.1)
    assert (same.early, same.wrong, same.outcome) == (True, False, "within")
    # One window that is ruined: enough to fail it, and mostly not seen.
    ruined = [
        run_case("", [1.0, *[0.0] * 39], [10] * 40, str(n), tolerance=0.02, cap=0.1)
        for n in range(40)
    ]
    assert {(r.early, r.wrong, r.broke) for r in ruined} == {
        (True, True, True),
        (True, False, False),
    }


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_kinds_are_what_they_are_called(kind: Kind) -> None:
    rng, name = random.Random(1), kind.name
    for tolerance, cap in settings():
        room = math.log1p(tolerance)
        changes = kind.draw(rng, 62, room, cap)
        assert len(changes) == 62
        mean = math.fsum(changes) / 62
        if "outside the upper" in name or "too m" in name:
            assert mean > room
        elif "inside the" in name:
            assert room - 2e-6 < abs(mean) < room
        elif "outside the lower" in name:
            assert mean < -room
        if not name.endswith(" %") and "nat" not in name:
            assert max(map(abs, changes)) <= cap


def test_no_verdict_under_a_cap_that_holds_is_wrong() -> None:
    """With these seeds; 0.1 % of so few is none."""
    results = simulate(1)
    assert len(results) == len(KINDS) * 3 * len(list(settings()))
    assert not any(result.wrong for result in results if not result.broke)
    assert f"| all | {len(results)} | 0 of " in kinds_table(results)


@pytest.mark.parametrize("kind", USUAL_KINDS)
def test_a_fifth_of_the_windows_is_enough(kind: str) -> None:
    """At a cap of 0.1; the orders and the checkpoints are drawn with fixed seeds."""
    assert usual_share(kind, 0.02, 0.1) <= 0.2


def test_the_page_quotes_what_no_rule_needs_less_than() -> None:
    rows = re.findall(
        r"^\| rel ([\d.]+) \| ([\d.]+) \| (\d+) \| (\d+)% \|", PAGE.read_text(), re.M
    )
    assert [(float(tolerance), float(cap)) for tolerance, cap, *_ in rows] == [
        *settings()
    ]
    for tolerance, cap, _, share in rows:
        exact = fewest(float(tolerance), float(cap)) / USUAL
        assert f"{exact:.0%}" == f"{share}%"
