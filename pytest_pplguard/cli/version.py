"""``pplguard --version``: what is installed, as a report of a fault needs it."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version

from .output import show

_MEASURE = ("torch", "transformers", "tokenizers", "lm-eval")
_EXTRA = ("ray",)


def show_versions() -> None:
    """Print versions of this package, Python and what measures; nothing is imported."""
    show(
        f"pytest-pplguard {version('pytest-pplguard')}",
        f"Python {platform.python_version()}",
        *(f"{name} {_version(name) or 'is not installed'}" for name in _MEASURE),
        *(f"{name} {found}" for name in _EXTRA if (found := _version(name))),
    )


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
