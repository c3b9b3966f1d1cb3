"""Hooks that this plugin calls, for conftest files and other plugins."""

from __future__ import annotations

from typing import Any

import pytest


@pytest.hookspec(firstresult=True)
def pytest_pplguard_load_model(checkpoint: Any) -> Any:
    """Load a checkpoint in your own way.

    Called before this plugin loads ``checkpoint`` itself (``checkpoint.name`` is its
    name in the baseline files, ``checkpoint.spec`` what stands behind ``--ppl-model``).
    Return ``(model, tokenizer)``, or None to leave it to the plugin. For example, in
    ``conftest.py``::

        def pytest_pplguard_load_model(checkpoint):
            if checkpoint.spec.endswith(".mine"):
                return my_loader(checkpoint.spec)
    """
