"""The register of cases: what a defect or a harmless change is called and fits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from .site import Base, Names, Site

Fits = Callable[[Base], bool]
Defect = Callable[[Site], Names]
Change = Callable[[Site], None]


@dataclass(frozen=True)
class Case:
    """A change of a checkpoint.

    ``apply`` makes it and answers with the patterns that name the culprit. ``what``
    says in words what it is, ``fits`` whether a base can have it.
    """

    name: str
    kind: str
    what: str
    harmless: bool
    apply: Defect
    fits: Fits

    def __str__(self) -> str:
        return self.name


DEFECTS: dict[str, Case] = {}
HARMLESS: dict[str, Case] = {}


def defect(kind: str, fits: Fits = lambda base: True) -> Callable[[Defect], Defect]:
    """Register a function as a defect; its docstring says what it is."""

    def register(function: Defect) -> Defect:
        _add(DEFECTS, kind, fits, function, harmless=False)
        return function

    return register


def harmless(kind: str, fits: Fits = lambda base: True) -> Callable[[Change], Change]:
    """Register a function as a harmless change; it names no culprit."""

    def register(function: Change) -> Change:
        def apply(site: Site) -> Names:
            function(site)
            return ()

        apply.__name__, apply.__doc__ = function.__name__, function.__doc__
        _add(HARMLESS, kind, fits, apply, harmless=True)
        return function

    return register


def _add(
    register: dict[str, Case],
    kind: str,
    fits: Fits,
    function: Defect,
    *,
    harmless: bool,
) -> None:
    name = function.__name__.strip("_").replace("_", "-")
    assert name not in DEFECTS | HARMLESS, name
    what = (function.__doc__ or "").partition("\n")[0].rstrip(".")
    register[name] = Case(name, kind, what, harmless, function, fits)


def is_pruned(base: Base) -> bool:
    return base.pruned


def is_dense(base: Base) -> bool:
    return not base.pruned


def has_biases(base: Base) -> bool:
    return bool(base.family.biases)


def has_rope(base: Base) -> bool:
    return base.kind != "gpt2"


def has_other(base: Base) -> bool:
    return base.other is not None


def is_tied(base: Base) -> bool:
    return base.tied


def is_untied(base: Base) -> bool:
    return not base.tied


def is_kind(*kinds: str) -> Fits:
    """Whether the architecture is one of ``kinds``."""
    return lambda base: base.kind in kinds
