"""``pplguard --version``: what is installed, as a report of a fault needs it."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version

from .output import show

_MEASURE = ("torch", "transformers", "lm-eval")


def show_versions() -> None:
    """Print versions of this package, Python and what measures; nothing is imported."""
    show(
        f"pytest-pplguard {version('pytest-pplguard')}",
        f"Python {platform.python_version()}",
        *(f"{name} {_version(name)}" for name in _MEASURE),
    )


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:  # without it nothing runs: that is what to report
        return "is not installed"
