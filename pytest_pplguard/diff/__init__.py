"""What differs between two checkpoints, and what that looks like: pure.

It works on fingerprints, so that a recorded one will do.
"""

from __future__ import annotations

from ..values import Fingerprint
from .compare import Change, Difference, Exact, compare
from .names import as_recorded
from .settings import SettingChange
from .text import lines

__all__ = [
    "Change",
    "Difference",
    "Exact",
    "SettingChange",
    "as_recorded",
    "compare",
    "explain",
    "lines",
]


def explain(
    recorded: Fingerprint,
    now: Fingerprint,
    *,
    limit: int,
    command: str = "pplguard diff BASELINE MODEL --all",
) -> tuple[str, ...]:
    """What differs from the baseline, in at most ``limit`` lines for people.

    The most likely cause of another number comes first. ``command`` is what shows all
    where that is more.
    """
    return tuple(lines(compare(recorded, now), limit=limit, command=command))
