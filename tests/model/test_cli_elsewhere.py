"""Commands whose checkpoints are where this process sees no file of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from pytest_pplguard import executors
from pytest_pplguard.baselines import read_baseline
from pytest_pplguard.checkpoints import fingerprint, load, locate
from pytest_pplguard.cli.compare import Asked, compare_models
from pytest_pplguard.cli.measure import Wanted
from pytest_pplguard.cli.update import update_fingerprint
from pytest_pplguard.errors import ExecutorError, UsageError
from pytest_pplguard.executors import make_executor
from pytest_pplguard.measure import Executor, StoredWeights, Subject
from pytest_pplguard.measure.subject import LocalModel
from pytest_pplguard.options import Execution, Options, Target

ELSEWHERE = {"/nodes/dense": "demo/dense", "/nodes/wanda-50": "demo/wanda-50"}
RAY = Options(device="cpu", execution=Execution("ray"), journal="off", threads=1)


class Elsewhere(Executor):
    """Has the demo under paths that are nowhere."""

    def __init__(self) -> None:
        self.opened: list[str] = []
        self.closed = False
        self.error: ExecutorError | None = None

    def open(self, target: Target, allow_keys: Sequence[str] = ()) -> Subject:
        self.opened.append(target.spec)
        located = locate(ELSEWHERE[target.spec])
        loaded = load(located, device="cpu", dtype="float32")
        subject = LocalModel(loaded)
        subject.weights = Weights(located, self.error)
        return subject

    def close(self) -> None:
        self.closed = True


class Weights(StoredWeights):
    def __init__(self, located: Any, error: ExecutorError | None) -> None:
        super().__init__(located, model=None, allow_pickle=False)
        self._error = error

    def sparsity(self, pattern: tuple[int, int] | None = None) -> Any:
        if self._error is not None:
            raise self._error
        return super().sparsity(pattern)


@pytest.fixture
def elsewhere(monkeypatch: pytest.MonkeyPatch) -> Elsewhere:
    made = Elsewhere()

    def make(options: Options, **_: Any) -> Executor | None:
        return made if options.execution.where == "ray" else make_executor(options, **_)

    for place in ("cli.measure", "executors"):
        monkeypatch.setattr(f"pytest_pplguard.{place}.make_executor", make)
    assert executors.make_executor is make
    return made


@pytest.fixture
def table(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Callable[..., str]:
    def run(*specs: str, options: Options, window: int | None = 128) -> str:
        asked = Asked("demo", window, 3)
        assert compare_models(specs, options, asked, folder=tmp_path, json_path=None)
        return capsys.readouterr().out

    return run


def test_models_are_compared(elsewhere: Elsewhere, table: Callable[..., str]) -> None:
    there = table(*ELSEWHERE, options=RAY)
    assert elsewhere.opened == [*ELSEWHERE]
    assert elsewhere.closed
    here = table(
        *ELSEWHERE.values(), options=Options(device="cpu", journal="off", threads=1)
    )
    assert there.replace("/nodes/", "").split() == here.replace("demo/", "").split()
    assert "50.00 %" in there


def test_zeros_that_nobody_can_count_any_more(
    elsewhere: Elsewhere, table: Callable[..., str]
) -> None:
    elsewhere.error = ExecutorError("no replica is left")
    there = table(*ELSEWHERE, options=RAY)
    assert "50.00 %" not in there
    assert "zeros not counted: no replica is left" in there


def test_a_window_must_be_typed(
    elsewhere: Elsewhere, table: Callable[..., str]
) -> None:
    with pytest.raises(UsageError) as caught:
        table(*ELSEWHERE, options=RAY, window=None)
    text = str(caught.value)
    start = (
        "/nodes/dense: how long its windows may be is read from a config that is not "
        "on this machine (/nodes/dense does not exist"
    )
    assert text.startswith(start)
    assert text.endswith("); give --window TOKENS")
    assert elsewhere.opened == []


def test_a_fingerprint_is_recorded(elsewhere: Elsewhere, tmp_path: Path) -> None:
    update_fingerprint(
        "/nodes/wanda-50",
        Wanted(),
        RAY,
        folder=tmp_path,
        checkpoint="m/w50",
        base="m",
    )
    recorded = read_baseline(tmp_path / "m.yaml").checkpoints["w50"].fingerprint
    assert recorded is not None
    assert recorded.digest == fingerprint(locate("demo/wanda-50")).digest
    assert elsewhere.closed
