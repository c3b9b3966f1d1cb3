"""The marker's help text follows its signature."""

from __future__ import annotations

import inspect

from pytest_pplguard import plugin
from pytest_pplguard.protocols import METHODS
from pytest_pplguard.session.marker import ppl


def test_the_help_text_names_every_argument() -> None:
    parameters = ", ".join(
        f"*{parameter.name}"
        if parameter.kind is inspect.Parameter.VAR_POSITIONAL
        else f"{parameter.name}={parameter.default}"
        for parameter in inspect.signature(ppl).parameters.values()
    )
    assert plugin._MARKER.startswith(f"ppl({parameters}): ")
    assert f"methods are {METHODS}," in plugin._MARKER
