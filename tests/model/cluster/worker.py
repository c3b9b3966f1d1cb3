"""Started by a raylet in place of Ray's ``setup_worker.py``: a worker that is a fork.

A worker as Ray starts it imports torch and transformers anew, for seconds, and there
is one for each replica. This one is a fork of the tests' zygote, which has both; Ray
itself and this package are imported as always. See :mod:`tests.zygote`.
"""

from __future__ import annotations

import os
import runpy
import sys

PROGRAM = "PPLGUARD_TEST_PYTHON"
"""The variable with the path of the zygote's ``python``."""

_WORKER = "ray._private.workers.default_worker"


def main() -> None:
    """Ask for the fork; in it, be the worker."""
    if sys.argv[1:2] == ["fork"]:
        os.setpgrp()  # a raylet kills the groups of its workers, not the zygote's
        del sys.argv[1]
        runpy.run_module(_WORKER, run_name="__main__", alter_sys=True)
        return
    # The path of the worker, and what it is given; the rest is for Ray's own setup.
    words = ["-m", "tests.model.cluster.worker", "fork"]
    words += [
        word
        for word in sys.argv[1:]
        if not word.startswith(("--serialized-runtime-env-context", "--language"))
        and not word.endswith("default_worker.py")
    ]
    python = os.environ[PROGRAM]
    os.execv(python, [python, *words])


if __name__ == "__main__":
    main()
