"""What the page says of environments: then and now, and what differs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from msgspec import Struct

from ...values import LossDetail, Scalar

Environment = Mapping[str, Scalar]


class Difference(Struct, frozen=True):
    """One property then and now; None where it is not known."""

    name: str
    recorded: str | None
    now: str | None

    @property
    def differs(self) -> bool:
        """Whether both are known, and are not the same."""
        known = self.recorded is not None and self.now is not None
        return known and self.recorded != self.now


class Surroundings(Struct, frozen=True):
    """An environment, and the measurements that were made in it."""

    measurements: tuple[str, ...]
    rows: tuple[Difference, ...]
    known: bool

    @property
    def differing(self) -> tuple[Difference, ...]:
        """Rows that differ."""
        return tuple(row for row in self.rows if row.differs)


def surroundings(details: Iterable[LossDetail]) -> tuple[Surroundings, ...]:
    """The environments of measurements, equal ones together, different ones first."""
    groups: dict[tuple[tuple[Difference, ...], bool], list[str]] = {}
    for detail in details:
        rows = _rows(detail.baseline_environment, detail.environment)
        key = (rows, bool(detail.baseline_environment))
        groups.setdefault(key, []).append(f"{detail.checkpoint} {detail.key}")
    found = [
        Surroundings(tuple(names), rows, known)
        for (rows, known), names in groups.items()
    ]
    return tuple(sorted(found, key=lambda one: not one.differing))


def _rows(recorded: Environment, now: Environment) -> tuple[Difference, ...]:
    rows = [
        Difference(name, _text(recorded, name), _text(now, name))
        for name in dict.fromkeys([*now, *recorded])
    ]
    return tuple(sorted(rows, key=lambda row: not row.differs))


def _text(environment: Environment, name: str) -> str | None:
    value = environment.get(name)
    return None if value is None else str(value)
