"""Settings that all tests share."""

from __future__ import annotations

import os

from hypothesis import settings

# For models of this size a second thread costs more than it brings, and the
# subprocesses and workers of some tests share the cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# Shared machines are slow now and then, and first calls import large packages.
settings.register_profile("no-deadline", deadline=None)
settings.load_profile("no-deadline")
