"""The marker's help text follows its signature."""

from __future__ import annotations

import inspect

import pytest

from pytest_pplguard import plugin
from pytest_pplguard.errors import UsageError
from pytest_pplguard.protocols import METHODS
from pytest_pplguard.session.marker import parse_request, ppl
from pytest_pplguard.values import Tolerance


def test_the_help_text_names_every_argument() -> None:
    parameters = ", ".join(
        f"*{parameter.name}"
        if parameter.kind is inspect.Parameter.VAR_POSITIONAL
        else f"{parameter.name}={parameter.default}"
        for parameter in inspect.signature(ppl).parameters.values()
    )
    assert plugin._MARKER.startswith(f"ppl({parameters}): ")
    assert f"methods are {METHODS}," in plugin._MARKER


def test_sigma() -> None:
    request = parse_request(
        ("wanda",), {"sigma": 2, "max": 0.9, "direction": "no-worse"}, what="check"
    )
    assert request.tolerance == Tolerance(sigma=2, max=0.9, direction="no-worse")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"sigma": 0}, "sigma=0 must be greater than 0"),
        ({"sigma": -1.0}, "sigma=-1.0 must be a finite number from 0"),
        ({"sigma": float("nan")}, "sigma=nan must be a finite number from 0"),
        (
            {"sigma": 2, "abs": 0.02},
            "mixed units: sigma=2 counts standard errors, abs=0.02 does not; keep one "
            "of them",
        ),
    ],
)
def test_a_sigma_that_cannot_mean_anything(
    arguments: dict[str, float], message: str
) -> None:
    with pytest.raises(UsageError) as caught:
        parse_request(("wanda",), arguments, what="check")
    assert str(caught.value) == f"check: {message}"
