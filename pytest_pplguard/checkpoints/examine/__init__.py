"""Looks a checkpoint over without running it: is it whole, and is it plausible?

One file for each kind of check. Each adds findings; none stops at the first.
"""

from .result import Examination, Finding, Grade, ZeroTable
from .run import examine

__all__ = ["Examination", "Finding", "Grade", "ZeroTable", "examine"]
