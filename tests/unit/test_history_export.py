"""What is sent to MLflow, with a client that only takes notes."""

from __future__ import annotations

import importlib.util
from typing import Any

import pytest

from pytest_pplguard.errors import PplguardError, UsageError
from pytest_pplguard.history import HistoryRun, Point, export
from pytest_pplguard.history.export import export_runs


def test_without_mlflow(monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda name, *rest: None if name == "mlflow" else find(name, *rest),
    )
    with pytest.raises(UsageError) as caught:
        export_runs([], "http://127.0.0.1:1", experiment="x")
    assert str(caught.value) == (
        "--mlflow needs the package mlflow-skinny: "
        "pip install 'pytest-pplguard[mlflow]'"
    )


def test_no_server() -> None:
    with pytest.raises(PplguardError) as caught:
        export_runs([], "http://127.0.0.1:9", experiment="x")
    message = str(caught.value)
    assert message.startswith("--mlflow http://127.0.0.1:9: ")
    assert message.endswith("(0 runs were sent; the next export sends the others)")
    assert "\n" not in message


@pytest.mark.parametrize(
    ("given", "sent"),
    [
        (["wanda/demo:256/token_perplexity"], ["wanda/demo_256/token_perplexity"]),
        (
            ["lm-eval/wikitext+demo:64/x", "lm-eval/wikitext_demo:64/x"],
            ["lm-eval/wikitext_demo_64/x", "lm-eval/wikitext_demo_64/x_2"],
        ),
        (["a//b/../c / ."], ["a/_/b/_../c /_."]),
        (["<b>é\n"], ["_b___"]),
        (["x" * 300, "x" * 300], ["x" * 246, "x" * 246 + "_2"]),
    ],
)
def test_names_that_mlflow_takes(given: list[str], sent: list[str]) -> None:
    names = export._Names()
    assert [names.of(name) for name in given] == sent


def test_environment_by_key_where_keys_differ() -> None:
    by_key: dict[str, dict[str, Any]] = {
        "wanda/a:8": {"torch": "2.13", "lm_eval": None, "dtype": "float32"},
        "lm-eval/b:8": {"torch": "2.13", "lm_eval": "0.4", "dtype": "float32"},
    }
    assert export._environment(by_key) == {
        "environment/torch": "2.13",
        "environment/dtype": "float32",
        "wanda/a:8/lm_eval": None,
        "lm-eval/b:8/lm_eval": "0.4",
    }


def test_what_failed_is_a_tag() -> None:
    point = Point(checkpoint="c", key="k", metric="m", outcome="within", passed=True)
    run = HistoryRun(id="1", time="2026-11-26T12:00:00.000Z", commit="abc")
    assert export._tags(run, [point]) == {
        "commit": "abc",
        "dirty": "false",
        "outcome": "passed",
        "complete": "true",
        "mlflow.source.git.commit": "abc",
    }
    bad = Point(checkpoint="c", key="k", metric="m", outcome="invalid", passed=False)
    worse = Point(checkpoint="c", key="k", metric="m", outcome="error", passed=False)
    assert export._tags(run, [point, bad, worse, bad])["outcome"] == "invalid, error"
