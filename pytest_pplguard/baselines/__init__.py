"""Finds, reads, checks and updates baseline files and their evidence."""

from __future__ import annotations

from .evidence import Evidence, encode_evidence, read_evidence
from .find import (
    baseline_path,
    baseline_paths,
    looks_like_baseline,
    split_name,
    two_of_a_stem,
)
from .fingerprint import encode_fingerprint, read_fingerprint
from .read import parse_baseline, read_baseline
from .splice import Entry, new_file, splice
from .store import Change, record

__all__ = [
    "Change",
    "Entry",
    "Evidence",
    "baseline_path",
    "baseline_paths",
    "encode_evidence",
    "encode_fingerprint",
    "looks_like_baseline",
    "new_file",
    "parse_baseline",
    "read_baseline",
    "read_evidence",
    "read_fingerprint",
    "record",
    "splice",
    "split_name",
    "two_of_a_stem",
]
