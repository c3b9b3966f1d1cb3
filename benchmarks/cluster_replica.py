"""A replica that stays on a core of its own."""

from __future__ import annotations

import os
from pathlib import Path

from pytest_pplguard.executors.replica import Replica
from pytest_pplguard.options import Options

CORES = "PPLGUARD_BENCHMARK_CORES"
"""Names a folder with a file for each core that is free."""


class Pinned(Replica):
    """Takes the first core that is free, and computes nowhere else."""

    def __init__(self, options: Options, threads: int) -> None:
        for file in sorted(Path(os.environ[CORES]).iterdir()):
            try:
                file.unlink()
            except FileNotFoundError:  # another one was faster
                continue
            os.sched_setaffinity(0, {int(file.name)})
            break
        super().__init__(options, threads)
