"""The model through torch.compile: the same numbers, or a clear error."""

from __future__ import annotations

import gc
import warnings
import weakref
from typing import Any

import pytest
import torch
from torch import nn

from pytest_pplguard.errors import MeasurementError
from pytest_pplguard.scoring import Scorer
from tests.model.test_scoring_batches import VOCAB, Small, nats, windows
from tests.model.tiny import build_model


def compile_with(monkeypatch: pytest.MonkeyPatch, backend: Any) -> None:
    """Have torch.compile trace as usual, and make what runs by ``backend``."""
    whole = torch.compile
    monkeypatch.setattr(torch, "compile", lambda module: whole(module, backend=backend))


@pytest.mark.parametrize(
    ("arch", "backend"),
    [
        ("llama", "eager"),
        ("gemma2", "eager"),  # its whole model is compiled
        pytest.param("llama", "inductor", marks=pytest.mark.slow),
    ],
)
def test_a_compiled_model_has_the_same_losses_and_stays_as_it_is(
    arch: str, backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    compile_with(monkeypatch, backend)
    model = build_model(arch, vocab=VOCAB)
    names = list(model.state_dict())
    cut = windows((48, 48, 30))
    scores = Scorer(model, compile=True)(cut)
    assert [score.nll_sum for score in scores] == pytest.approx(
        nats(model, cut), rel=2e-6
    )
    assert list(model.state_dict()) == names
    assert not any("forward" in vars(module) for module in model.modules())


@pytest.mark.slow
def test_a_compiled_model_can_be_forgotten() -> None:
    model = build_model("llama", vocab=VOCAB)
    known = weakref.ref(model)
    Scorer(model, compile=True)(windows((20,)))
    del model
    gc.collect()
    assert known() is None


def test_the_model_really_is_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    graphs = []

    def backend(graph: Any, example: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    compile_with(monkeypatch, backend)
    Scorer(build_model("llama", vocab=VOCAB), compile=True)(windows((20, 20)))
    assert graphs


def test_what_the_compiler_deprecates_is_no_error_of_the_users_tests(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def backend(graph: Any, example: Any) -> Any:
        warnings.warn("torch.jit is old", DeprecationWarning, stacklevel=1)
        return graph.forward

    compile_with(monkeypatch, backend)
    cut, model = windows((20,)), build_model("llama", vocab=VOCAB)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        (score,) = Scorer(model, compile=True)(cut)
    assert [score.nll_sum] == pytest.approx(nats(model, cut), rel=2e-6)


def test_answers_of_tasks_are_not_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", None)
    model = build_model("llama", vocab=VOCAB)
    assert len(Scorer(model, compile=True)(windows((20, 20)), answers=True)) == 2


# ---------------------------------------------------------------------- what goes wrong


def test_a_compiler_that_fails_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def backend(graph: Any, example: Any) -> Any:
        raise FileNotFoundError("no C++ compiler: g++")

    compile_with(monkeypatch, backend)
    with pytest.raises(MeasurementError) as caught:
        Scorer(build_model("llama", vocab=VOCAB), compile=True)(windows((20,)))
    assert str(caught.value) == (
        "torch.compile fails here: backend='backend' raised: FileNotFoundError: no C++ "
        "compiler: g++; leave --ppl-compile out (the measurement is the same, and may "
        "be slower)"
    )


def test_a_platform_without_a_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    def compile(module: nn.Module) -> Any:
        raise RuntimeError("Dynamo is not supported on Python 3.99+")

    monkeypatch.setattr(torch, "compile", compile)
    with pytest.raises(MeasurementError) as caught:
        Scorer(Small(10**9), compile=True)(windows((20,)))
    assert str(caught.value) == (
        "torch.compile fails here: Dynamo is not supported on Python 3.99+; leave "
        "--ppl-compile out (the measurement is the same, and may be slower)"
    )


def test_other_losses_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    class Wrong(nn.Module):
        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, **inputs: Any) -> Any:
            output = self.inner(**inputs)
            output.last_hidden_state = output.last_hidden_state * 1.001
            return output

    monkeypatch.setattr(torch, "compile", Wrong)
    with pytest.raises(
        MeasurementError,
        match=r"torch.compile changes this model's losses, from [\d.]+ to [\d.]+ nats "
        r"over 19 tokens: leave --ppl-compile out",
    ):
        Scorer(build_model("llama", vocab=VOCAB), compile=True)(windows((20,)))


def test_errors_of_the_model_stay_its_own() -> None:
    model = build_model("opt", vocab=VOCAB, max_position_embeddings=16)
    with pytest.raises(MeasurementError, match=r"^the model failed on window 1 of 1"):
        Scorer(model, compile=True)(windows((48,)))
