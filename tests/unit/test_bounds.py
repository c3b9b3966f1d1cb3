"""Lower bounds of pyproject.toml are the versions that were tried."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parents[2]
SETTINGS: dict[str, Any] = tomllib.loads(
    (ROOT / "pyproject.toml").read_text(encoding="utf-8")
)
NEEDED: list[str] = SETTINGS["project"]["dependencies"]
EXTRAS: dict[str, list[str]] = SETTINGS["project"]["optional-dependencies"]

UNTRIED = {
    "torch": Version("2.13.0"),  # releases before it have no small CPU build on PyPI
}
"""What is pinned to something newer than its bound: docs/start.md says so."""


def pins(name: str) -> dict[str, Version]:
    lines = (ROOT / name).read_text(encoding="utf-8").splitlines()
    named = [line.split("==") for line in lines if line and not line.startswith("#")]
    found: dict[str, Version] = {
        canonicalize_name(package): Version(version) for package, version in named
    }
    assert len(found) == len(named), "a package is pinned twice"
    return found


LOWEST, NEWEST = pins("constraints-lowest.txt"), pins("constraints.txt")

# "dev" has what checks this project's code and runs none of it.
REQUIREMENTS: list[Requirement] = [
    Requirement(line)
    for lines in (NEEDED, *(EXTRAS[extra] for extra in sorted(EXTRAS.keys() - {"dev"})))
    for line in lines
    if not line.startswith("pytest-pplguard[")
]


def by_name(requirement: Requirement) -> str:
    return canonicalize_name(requirement.name)


@pytest.mark.parametrize(
    "requirement", REQUIREMENTS, ids=[one.name for one in REQUIREMENTS]
)
def test_a_lower_bound_is_what_was_tried(requirement: Requirement) -> None:
    name = by_name(requirement)
    (lower,) = [one for one in requirement.specifier if one.operator == ">="]
    tried = LOWEST[name]
    if name in UNTRIED:
        assert Version(lower.version) < tried == UNTRIED[name]
    else:
        assert Version(lower.version) == tried
    # And both ends are inside of what is promised.
    assert tried in requirement.specifier
    assert NEWEST.get(name, tried) in requirement.specifier


def test_no_requirement_has_two_bounds() -> None:
    names = [by_name(requirement) for requirement in REQUIREMENTS]
    assert sorted(names) == sorted(set(names))


def test_the_page_says_what_was_tried() -> None:
    """The table of docs/start.md, for what people install."""
    page = (ROOT / "docs" / "start.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| ([\w-]+) \| ([\d.]+) \| ([\d.]+) \|$", page, re.M)
    assert {name: Version(low) for name, low, _ in rows} == {
        name: LOWEST[name] for name, *_ in rows
    }
    assert {name: Version(new) for name, _, new in rows} == {
        name: NEWEST[name] for name, *_ in rows
    }
    # Each that the package needs, or an extra of users, and that CI pins.
    for_people = {
        by_name(Requirement(line))
        for extra in ("gguf", "peft", "plots", "mlflow", "ray")
        for line in (*NEEDED, *EXTRAS[extra])
    }
    assert {name for name, *_ in rows} == for_people & NEWEST.keys()
