"""Every case there is: files of cases register them when they are imported."""

from __future__ import annotations

from . import changes, config_defects, file_defects, weight_defects  # noqa: F401
from .cases import DEFECTS, HARMLESS, Case


def all_cases() -> dict[str, Case]:
    """Every case, defects first."""
    return DEFECTS | HARMLESS
