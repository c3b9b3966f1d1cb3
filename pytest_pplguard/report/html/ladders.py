"""What the page shows of a ladder: a waterfall from one method to another."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from msgspec import Struct

from ...values import LadderDetail

_PAD = 0.06
"""Room beside the lowest and the highest number, in parts of their distance."""


class Step(Struct, frozen=True):
    """One step: its bar reaches from ``left`` over ``width`` of 100 units.

    ``kind`` is ``end`` for the two methods' own numbers, else ``up`` or ``down``.
    """

    number: str
    words: str
    perplexity: float
    log_change: float | None
    share: float | None
    kind: str
    left: float
    width: float


class Waterfall(Struct, frozen=True):
    """A ladder on the page; bars are as long as the steps' logarithmic changes."""

    model: str
    text: str
    steps: tuple[Step, ...]
    conclusion: tuple[str, ...]
    notices: tuple[str, ...]


def waterfall(ladder: LadderDetail) -> Waterfall:
    """The picture of a document of ``pplguard explain``."""
    document = ladder.document
    rungs, ends = document["steps"], (document["from"], document["to"])
    values = [rung["perplexity"] for rung in rungs]
    least, most = math.log(min(values)), math.log(max(values))
    span = (most - least) or 1.0
    origin = least - _PAD * span

    def place(value: float) -> float:
        return round((math.log(value) - origin) / (span * (1 + 2 * _PAD)) * 100, 3)

    steps = [_end(ends[0], place)]
    for index, rung in enumerate(rungs[1:], start=1):
        before, after = place(values[index - 1]), place(values[index])
        steps.append(
            Step(
                number=str(index),
                words=rung["change"],
                perplexity=rung["perplexity"],
                log_change=rung["log_change"],
                share=rung["share"],
                kind="down" if after < before else "up",
                left=min(before, after),
                width=round(abs(after - before), 3),
            )
        )
    steps.append(_end(ends[1], place))
    return Waterfall(
        model=ladder.model,
        text=document["text"],
        steps=tuple(steps),
        conclusion=tuple(document["conclusion"]),
        notices=tuple(document["notices"]),
    )


def _end(end: dict[str, Any], place: Callable[[float], float]) -> Step:
    return Step(
        number="",
        words=f"{end['key']} ({end['metric']})",
        perplexity=end["value"],
        log_change=None,
        share=None,
        kind="end",
        left=0.0,
        width=place(end["value"]),
    )
