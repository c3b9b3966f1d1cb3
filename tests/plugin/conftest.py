"""What all tests of the pytest surface share."""

from __future__ import annotations

# pytester forgets every module that a run in this process imported, and torch cannot be
# imported twice: all that a run may import is imported here.
import datasets  # noqa: F401
import lm_eval.evaluator
import lm_eval.tasks
import lm_eval.utils  # noqa: F401
import pytest
import rich.progress  # noqa: F401
import transformers  # noqa: F401

import pytest_pplguard.items
import pytest_pplguard.lifetime
import pytest_pplguard.lm_eval_bridge
import pytest_pplguard.measure
import pytest_pplguard.plugin
import pytest_pplguard.session.returning
import pytest_pplguard.session.setup
import pytest_pplguard.session.xdist  # noqa: F401

from .project import Project


@pytest.fixture
def project(pytester: pytest.Pytester) -> Project:
    """An empty project with the stub, and a corpus called ``tiny``."""
    return Project(pytester)


_LOCAL = {"plain": (), "n0": ("-n0",), "no": ("-p", "no:xdist")}


@pytest.fixture(params=_LOCAL)
def local_args(request: pytest.FixtureRequest) -> tuple[str, ...]:
    """Arguments for each way in which xdist may be there without workers."""
    return _LOCAL[request.param]


@pytest.fixture(params=[*_LOCAL, "n2"])
def plugin_args(request: pytest.FixtureRequest) -> tuple[str, ...]:
    """As ``local_args``, and with workers, which cost seconds: where they matter."""
    return _LOCAL.get(request.param, ("-n2",))
