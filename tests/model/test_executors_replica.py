"""A replica without a cluster: what it answers of a portion."""

from __future__ import annotations

import math

import pytest
import torch

from pytest_pplguard.executors.replica import Job, _Job
from pytest_pplguard.protocols import windows_digest
from pytest_pplguard.values import Window

from .tiny import build_model

SPOILT = 7


@pytest.mark.parametrize("batch_size", [1, "auto"])
def test_the_window_at_fault_and_no_other(batch_size: int | str) -> None:
    """Who says it of another one is not trusted any more, as that one is fine."""
    model = build_model("llama")
    with torch.no_grad():
        model.get_input_embeddings().weight[SPOILT] = math.nan
    windows = [Window((1, 2, 3, number), (2, 3, number), 0) for number in (3, 4, 5, 6)]
    windows.insert(3, Window((1, SPOILT, 3, 4), (SPOILT, 3, 4), 0))
    job = Job(
        windows=windows,
        windows_digest=windows_digest(windows),
        cut=[[index] for index in range(len(windows))],
        proving=[0],
        batch_size=batch_size,
        compile=False,
        answers=False,
    )
    answer = _Job(model, job).score(range(1, 5))
    assert [list(scores) for scores in answer.scores] == [[1], [2]]
    assert answer.failure is not None
    assert (answer.failure.kind, answer.failure.window) == ("InvalidLossError", 3)
