"""Keeps results of measurements on disk, for runs of the same checkpoint."""

from __future__ import annotations

from pathlib import Path

import platformdirs


def default_folder() -> Path:
    """Where results are kept if the user has not said: in the user's cache folder."""
    return platformdirs.user_cache_path("pytest-pplguard") / "results"
