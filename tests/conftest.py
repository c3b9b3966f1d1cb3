"""Settings that all tests share."""

from __future__ import annotations

from hypothesis import settings

# Shared machines are slow now and then, and first calls import large packages.
settings.register_profile("no-deadline", deadline=None)
settings.load_profile("no-deadline")
