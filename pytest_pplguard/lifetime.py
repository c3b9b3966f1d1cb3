"""Each checkpoint is loaded once: the order of tests, and when memory is given back."""

from __future__ import annotations

from itertools import groupby

import pytest

from .fixtures import needed_checkpoint, uses_checkpoint
from .items import DivergenceItem, GateItem

_LAST_USE = pytest.StashKey[dict[str, int]]()


def is_needed_after(item: pytest.Item, checkpoint: str) -> bool:
    """Whether any test collected behind ``item`` asks for ``checkpoint``.

    Under xdist a worker runs only some of what it collected, so this may keep a
    checkpoint longer than needed, never shorter.
    """
    session = item.session
    if _LAST_USE not in session.stash:
        session.stash[_LAST_USE] = _last_uses(session.items)
    return session.stash[_LAST_USE].get(checkpoint, -1) > session.items.index(item)


def sort_by_checkpoint(items: list[pytest.Item]) -> None:
    """Bring together what needs one checkpoint.

    Gates keep the places that gates had among other tests; a reference's gates go
    before those that compare with it, and these first among their checkpoint's: what
    the reference says is taken down before it goes, and it is loaded once. Where Python
    tests need checkpoints that have gates, those gates go before the first such test.
    Python tests change places only among themselves, within their module or class.
    """
    gates = [item for item in items if isinstance(item, GateItem)]
    references = {
        gate.checkpoint: gate.checkpoints()[0]
        for gate in gates
        if isinstance(gate, DivergenceItem)
    }

    def place(gate: GateItem) -> tuple[object, ...]:
        reference = references.get(gate.checkpoint, gate.checkpoint)
        compares = isinstance(gate, DivergenceItem)
        shared = (str(gate.path), gate.rank(), reference, gate.checkpoint != reference)
        return (*shared, gate.checkpoint, not compares)

    gates.sort(key=place)
    others = [item for item in items if not isinstance(item, GateItem)]
    _sort_within_parents(others)
    asked = {name for item in others for name in _needs(item)}
    before: dict[str, list[pytest.Item]] = {}
    first: list[pytest.Item] = []
    last: list[pytest.Item] = []
    for gate in gates:
        if gate.rank() and asked:
            last.append(gate)
        elif gate.checkpoint in asked:
            before.setdefault(gate.checkpoint, []).append(gate)
        else:
            first.append(gate)
    rest, places = iter(others), iter(first)
    ordered: list[pytest.Item] = []
    for item in items:
        if isinstance(item, GateItem):
            ordered += filter(None, [next(places, None)])
            continue
        other = next(rest)
        for name in _needs(other):
            ordered += before.pop(name, [])
        ordered.append(other)
    items[:] = [*ordered, *last]


def _sort_within_parents(items: list[pytest.Item]) -> None:
    previous = ""
    for _, run in groupby(range(len(items)), key=lambda place: items[place].parent):
        places = [place for place in run if _needs(items[place])]
        names = [_needs(items[place])[0] for place in places]
        # Begin with what the tests before have left in memory.
        order = list(dict.fromkeys([*(n for n in names if n == previous), *names]))
        tests = sorted(
            (items[place] for place in places),
            key=lambda item: order.index(_needs(item)[0]),
        )
        for place, item in zip(places, tests, strict=True):
            items[place] = item
        previous = order[-1] if order else previous


def _last_uses(items: list[pytest.Item]) -> dict[str, int]:
    return {name: index for index, item in enumerate(items) for name in _needs(item)}


def _needs(item: pytest.Item) -> tuple[str, ...]:
    if isinstance(item, GateItem):
        return item.checkpoints()
    name = needed_checkpoint(item) if uses_checkpoint(item) else None
    return () if name is None else (name,)
