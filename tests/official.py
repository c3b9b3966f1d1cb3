"""Where tests find official texts, which are not in this project."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

_BESIDE = Path(__file__).parents[2] / "shared" / "data" / "wikitext-2-raw"


def official_wikitext2() -> Path:
    """Path of ``wiki.test.raw``; skips the test where it is absent."""
    path = Path(os.environ.get("PPLGUARD_WIKITEXT2", _BESIDE / "wiki.test.raw"))
    if not path.is_file():
        pytest.skip(f"needs the WikiText-2 raw test file (PPLGUARD_WIKITEXT2): {path}")
    return path


def official_ptb() -> Path:
    """Path of ``ptb.test.txt``; skips the test where it is absent."""
    path = Path(os.environ.get("PPLGUARD_PTB", "ptb.test.txt"))
    if not path.is_file():
        pytest.skip("needs the Penn Treebank test file (PPLGUARD_PTB)")
    return path
