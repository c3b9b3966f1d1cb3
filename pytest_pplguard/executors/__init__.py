"""Where models run, if not in this process: replicas of a Ray cluster, or a server."""

from __future__ import annotations

from collections.abc import Callable, Collection
from importlib.util import find_spec

from ..errors import UsageError
from ..measure import Executor
from ..options import Execution, Options

__all__ = ["check_execution", "check_options", "make_executor"]


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


def check_options(options: Options, names: Collection[str]) -> None:
    """Refuse what the executor cannot do for the checkpoints ``names``.

    Nothing is asked and nothing large is imported for it.

    Raises:
        UsageError: an option does not go with the executor.
    """
    if options.execution.where == "server":
        from .server.settings import check_options

        check_options(options, names)


def make_executor(
    options: Options, *, tell: Callable[..., None], names: Collection[str] = ()
) -> Executor | None:
    """What measures the checkpoints ``names``; None where this process does.

    ``tell`` gets lines for the user.

    Raises:
        UsageError: as :func:`check_execution`.
    """
    check_execution(options.execution)
    if options.execution.where == "ray":
        from .ray import RayExecutor

        return RayExecutor(options, tell=tell)
    if options.execution.where == "server":
        from .server.executor import ServerExecutor

        return ServerExecutor(options, tell=tell, names=names)
    return None
