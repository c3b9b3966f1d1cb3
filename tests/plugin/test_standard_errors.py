"""Gates in standard errors, from the first record to the failure that names documents.

The documents are put on what the stub measures, as a task of lm-eval would.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from msgspec.structs import replace

from pytest_pplguard.baselines import read_baseline
from pytest_pplguard.measure import Store
from pytest_pplguard.protocols import Wanda
from pytest_pplguard.values import DocumentResult, Measurement

from .project import WANDA, Project, section

GATED = f"""
w50:
  gates:
    {WANDA}: {{acc: {{sigma: 2, direction: no-worse}}}}
"""
Answer = Callable[[Sequence[int]], None]


@pytest.fixture
def answer(monkeypatch: pytest.MonkeyPatch) -> Answer:
    """Says which documents are answered right from now on."""
    right: list[int] = []
    measure = Store.measurement

    def measurement(self: Store, *args: Any, **options: Any) -> Measurement:
        mean = sum(right) / len(right)
        measured = measure(self, *args, **options)
        return replace(
            measured,
            metrics={"acc": mean},
            protocol=measured.protocol | {"aggregation of acc": "mean"},
            documents=tuple(
                DocumentResult("quiz", index, {"acc": value})
                for index, value in enumerate(right)
            ),
            stderr={"acc": math.sqrt(mean * (1 - mean) / (len(right) - 1))},
            higher_is_better=("acc",),
        )

    monkeypatch.setattr(Store, "measurement", measurement)
    monkeypatch.setattr(Wanda, "metrics", ("acc",))  # it is known before measuring

    def set_right(values: Sequence[int]) -> None:
        right[:] = values

    return set_right


def test_from_the_record_to_the_failure(project: Project, answer: Answer) -> None:
    path = project.baseline(GATED)
    given = ["baselines/llama.yaml", *project.give(w50="ppl:8")]
    answer([1] * 15 + [0] * 5)
    project.run(*given, "--ppl-update").assert_outcomes(passed=1)
    recorded = read_baseline(path).checkpoints["w50"].recorded[WANDA]
    assert recorded.stderr == {"acc": math.sqrt(0.75 * 0.25 / 19)}

    project.run(*given).assert_outcomes(passed=1)

    answer([0] * 9 + [1] * 6 + [1] + [0] * 4)
    result = project.run(*given)
    result.assert_outcomes(failed=1)
    assert section(result) == (
        "llama/w50  baseline  measured  change  outcome\n"
        "  wanda/tiny:16\n"
        "  acc  0.75  0.35  -53.33 %  REGRESSED\n"
        "  documents: 9 of 20 got worse, 1 better (exact McNemar p = 0.021)\n"
        "1 regressed\n"
    )
    text = "\n".join(result.stdout.lines)
    assert "  documents    worse: quiz 0, quiz 1, quiz 2 and 6 more\n" in text
    assert "paired by document\n" in text

    answer([1] * 20)
    result = project.run(*given)
    result.assert_outcomes(passed=1)
    assert "  acc  0.75  1  +33.33 %  improved\n" in section(result)


def test_the_marker_takes_sigma(project: Project, answer: Answer) -> None:
    project.baseline(GATED)
    given = ["test_it.py", *project.give(w50="ppl:8")]
    project.test("@pytest.mark.ppl('wanda', sigma=4)\ndef test_it():\n    pass\n")
    answer([1] * 15 + [0] * 5)
    project.run("baselines/llama.yaml", *given[1:], "--ppl-update").assert_outcomes(
        passed=1
    )
    answer([0] * 9 + [1] * 6 + [1] + [0] * 4)
    # The file would allow two.
    assert 2 < 0.4 / (math.sqrt(9 + 1 - 8 * 8 / 20) / 20) < 4
    project.run(*given).assert_outcomes(failed=0, passed=1)
