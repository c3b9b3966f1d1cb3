"""Where models run, if not in this process: replicas of a Ray cluster, or a server."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec

from ..errors import UsageError
from ..measure import Executor
from ..options import Execution, Options

__all__ = ["check_execution", "make_executor"]


def check_execution(execution: Execution) -> None:
    """Refuse an executor whose packages are not there, before anything is loaded.

    Raises:
        UsageError: they are not installed.
    """
    if execution.where == "ray" and find_spec("ray") is None:
        raise UsageError(
            "the executor ray needs the package ray, which is not installed: "
            "pip install 'pytest-pplguard[ray]'"
        )


def make_executor(options: Options, *, tell: Callable[..., None]) -> Executor | None:
    """What measures checkpoints; None where this process does.

    ``tell`` gets lines for the user.

    Raises:
        UsageError: as :func:`check_execution`.
    """
    check_execution(options.execution)
    if options.execution.where == "ray":
        from .ray import RayExecutor

        return RayExecutor(options, tell=tell)
    if options.execution.where == "server":
        from .server import ServerExecutor

        return ServerExecutor(options, tell=tell)
    return None
