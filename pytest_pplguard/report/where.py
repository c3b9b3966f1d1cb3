"""Says where in the text a change is, a fact a line."""

from __future__ import annotations

from collections.abc import Mapping

from ..gates import Paired, WindowChange
from ..gates.paired import EQUAL
from ..values import WindowPlace

_NATS = {"nll_sum": "nats a token", "kl_sum": "nats of divergence a token"}


def where_lines(change: Paired, places: Mapping[int, WindowPlace]) -> tuple[str, ...]:
    """How much of the text moved, how far the predictions did, and which windows most.

    ``places`` has those of the windows whose place is known.
    """
    nats = _NATS[change.of]
    if change.extent == "nothing":
        return (f"no window moved: {_all(change)} as recorded, to {EQUAL:g} {nats}",)
    # Of a whole text one example is enough.
    shown = change.moved_most[: 1 if change.extent == "whole" else None]
    return (
        _extent(change),
        *_divergence(change),
        *(
            _window(moved, change, places.get(moved.index), first=not rank)
            for rank, moved in enumerate(shown)
            if abs(moved.change) > EQUAL
        ),
    )


def place_line(index: int, place: WindowPlace) -> str:
    """Where one window is: ``window 3 of 11, page 2 "= Title =", at "..."``."""
    return f"window {index + 1} of {place.windows}{_of_page(place.page, place)}"


def _extent(change: Paired) -> str:
    worse, better, count = change.worse, change.better, change.windows
    size = f"{_size(abs(change.mean), change.error)} {_NATS[change.of]}"
    mean = f"the mean moved by {'-' if change.mean < 0 else '+'}{size}"
    counts = f"{worse} of {count} windows {_are(worse)} worse, {better} better"
    if change.extent == "few":
        carry = "carries" if change.half == 1 else "carry"
        return (
            f"a few windows moved: {change.half} of {count} {carry} more than half of "
            f"the change ({counts}); {mean}"
        )
    if change.extent == "whole":
        same = max(worse, better)
        way = "worse" if worse >= better else "better"
        return (
            f"the whole text moved: {same} of {count} windows {_are(same)} {way}, by "
            f"{size}"
        )
    return f"the text moved both ways: {counts}; {mean}"


def _divergence(change: Paired) -> tuple[str, ...]:
    if change.divergence is None or change.divergence <= EQUAL:
        return ()
    more = " more than the mean," if change.divergence > 2 * abs(change.mean) else ""
    size = _roughly(change.divergence)
    return (
        f"the predictions moved{more} by roughly {size} nats a token "
        "(KL divergence, told from how the windows scatter)",
    )


def _window(
    moved: WindowChange, change: Paired, place: WindowPlace | None, *, first: bool
) -> str:
    number = moved.index + 1
    which = f"window {number}"
    if first:
        which += f" of {change.windows} moved most"
    page = moved.page if place is None else place.page
    return f"{which}: {moved.change:+.2g} {_NATS[change.of]}{_of_page(page, place)}"


def _of_page(page: int | None, place: WindowPlace | None) -> str:
    text = "" if page is None else f", page {page + 1}"
    if place is not None and place.title:
        text += f' "{place.title}"'
    if place is not None and place.words:
        text += f', at "{place.words}"'
    return text


def _roughly(value: float) -> str:
    """One digit; ``20``, not ``2e+01``."""
    return f"{float(f'{value:.1g}'):.6g}"


def _size(value: float, error: float | None) -> str:
    if error is None:
        return f"{value:.2g}"
    return f"{value:.2g} +- {error if error > EQUAL else 0:.1g}"


def _all(change: Paired) -> str:
    return "the only one is" if change.windows == 1 else f"all {change.windows} are"


def _are(count: int) -> str:
    return "is" if count == 1 else "are"
