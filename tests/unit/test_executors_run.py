"""One measurement on replicas of a made-up Ray, whose answers come together."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest

from pytest_pplguard.executors.portions import Pace
from pytest_pplguard.executors.ray import RayExecutor, _Run
from pytest_pplguard.executors.replica import Answer, Failure, Job
from pytest_pplguard.options import Execution, Options, Target
from pytest_pplguard.values import Window, WindowScore

from .test_executors_pool import (
    HELLO,
    READY,
    Cluster,
    Method,
    Ref,
    made_up,  # noqa: F401 - a fixture
)


class Scoring:
    """Actors that score batches of a window each; the first fails at the first."""

    def __init__(self) -> None:
        self.given: list[tuple[int, list[int]]] = []
        self._made = 0

    def remote(self, *_: object) -> Any:
        self._made += 1
        number = self._made

        def score(_: object, batches: list[int]) -> Ref:
            self.given.append((number, batches))
            fails = number == 1 and batches[0] == 0
            scored = [] if fails else batches
            return Ref(
                Answer(
                    scores=[{batch: WindowScore(float(batch), 3)} for batch in scored],
                    seconds=1.0,
                    proof=0.0,
                    failure=Failure("DeviceError", "out of memory") if fails else None,
                    notices=[],
                    packs=True,
                )
            )

        return SimpleNamespace(
            hello=Method(HELLO),
            load=Method(READY),
            begin=Method(None),
            score=SimpleNamespace(remote=score),
        )


def test_one_that_is_given_up_for_an_answer_that_came_with_its_own(
    made_up: None,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import ray

    def newest_first(
        refs: Sequence[Ref], **_: object
    ) -> tuple[Sequence[Ref], list[Ref]]:
        return refs[::-1], []

    monkeypatch.setattr(ray, "wait", newest_first)
    monkeypatch.setattr(ray, "put", Ref, raising=False)
    cluster = Cluster((HELLO, READY), (HELLO, READY))
    actors = cluster.pool._actor = Scoring()
    cluster.pool.start()
    windows = [Window((1, 2, 3), (2, 3, 4)) for _ in range(3)]
    job = Job(
        windows=windows,
        windows_digest="",
        cut=[[0], [1], [2]],
        proving=[],
        batch_size=1,
        compile=False,
        answers=False,
    )
    run = _Run(cluster.pool, Pace(), job, None, None, None, timeout=60.0)
    scores = run.scores()
    # The first has answered for window 3 when the second scored what it had failed at.
    assert actors.given[:4] == [(1, [0]), (2, [1]), (1, [2]), (2, [0])]
    assert scores == {number: WindowScore(float(number), 3) for number in range(3)}
    [lost] = cluster.told
    assert "(it failed at windows that another replica scored)" in lost


@pytest.mark.parametrize(("replicas", "on"), [(1, "1 replica"), (2, "2 replicas")])
def test_what_is_said_while_replicas_load(replicas: int, on: str) -> None:
    options = Options(execution=Execution("ray", replicas=replicas))
    executor = RayExecutor(options, tell=lambda *_: None)
    label = executor.label(Target("it", "demo/dense"))
    assert label == f"loading it (2.14 MB) on {on}"
