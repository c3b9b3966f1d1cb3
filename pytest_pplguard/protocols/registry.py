"""All methods by name: those of this package, and those that others register."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from ..errors import UsageError
from .base import Protocol

GROUP = "pytest_pplguard.protocols"
"""The entry points' group: a method's name, and its class or an instance of it."""


class Registry(Mapping[str, Protocol]):
    """Methods by name; one from outside is imported when it is asked for.

    What is installed is looked through when the first method is asked for. Looking a
    method up raises :class:`UsageError` if it is there but cannot be used.
    """

    def __init__(self, *own: Protocol) -> None:
        self._own = {protocol.name: protocol for protocol in own}
        self._loaded: dict[str, Protocol] = {}

    @cached_property
    def _others(self) -> dict[str, list[EntryPoint]]:
        found: dict[str, list[EntryPoint]] = {}
        for point in entry_points(group=GROUP):
            found.setdefault(point.name, []).append(point)
        return found

    def __getitem__(self, name: str) -> Protocol:
        if name in self._loaded:
            return self._loaded[name]
        points = self._others.get(name, [])
        if name in self._own and points:
            raise UsageError(
                f"{_source(points[0])} registers the method {name!r}, which is a name "
                f"of pytest-pplguard's own: rename its entry point in {GROUP}, or "
                "uninstall the package"
            )
        if len(points) > 1:
            raise UsageError(
                f"the method {name!r} is registered by "
                f"{' and by '.join(map(_source, points))}: uninstall one of them"
            )
        self._loaded[name] = _load(points[0]) if points else self._own[name]
        return self._loaded[name]

    def __contains__(self, name: object) -> bool:
        return name in self._own or name in self._others

    def __iter__(self) -> Iterator[str]:
        """The names, this package's first; nothing is imported."""
        return iter(dict.fromkeys([*self._own, *sorted(self._others)]))

    def __len__(self) -> int:
        return len(list(iter(self)))


def listed(names: Sequence[str]) -> str:
    """``wanda, lm-eval and kl``."""
    return " and ".join([*filter(None, [", ".join(names[:-1])]), *names[-1:]])


def _source(point: EntryPoint) -> str:
    package = point.dist.name if point.dist is not None else "a package"
    return f"{package} ({point.value})"


def _load(point: EntryPoint) -> Protocol:
    what = f"the method {point.name!r} of {_source(point)}"
    # Code of others raises anything, on import and on being called.
    try:
        found: Any = point.load()
    except Exception as error:
        raise UsageError(f"{what} cannot be imported: {_brief(error)}") from error
    if isinstance(found, type) and issubclass(found, Protocol):
        try:
            found = found()
        except Exception as error:
            raise UsageError(f"{what} cannot be made: {_brief(error)}") from error
    if not isinstance(found, Protocol):
        raise UsageError(
            f"{what} is no pytest_pplguard.protocols.Protocol, but {found!r}"
        )
    if getattr(found, "name", None) != point.name:
        raise UsageError(
            f"{what} calls itself {getattr(found, 'name', None)!r}: its name and that "
            "of its entry point must be the same"
        )
    return found


def _brief(error: Exception) -> str:
    first = next(iter(str(error).splitlines()), "")
    return f"{type(error).__name__}: {first}".removesuffix(": ")
