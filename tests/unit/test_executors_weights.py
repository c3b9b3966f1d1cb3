"""What replicas say of their weights: who is asked, and what if one is lost."""

from __future__ import annotations

import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from msgspec.structs import replace

from pytest_pplguard.checkpoints import Sparsity, Survivors, Zeros
from pytest_pplguard.errors import (
    CheckpointError,
    ExecutorError,
    NoDenseError,
    PplguardError,
)
from pytest_pplguard.executors import pool as pool_room
from pytest_pplguard.executors import ray as ray_room
from pytest_pplguard.executors.ray import RayExecutor
from pytest_pplguard.executors.replica import Failure, Ready
from pytest_pplguard.executors.weights import RayWeights
from pytest_pplguard.measure import Dense
from pytest_pplguard.options import Execution, Options, Target

from .diffing import decoder, taken
from .test_executors_pool import (
    HELLO,
    READY,
    Cluster,
    Method,
    Ref,
    made_up,  # noqa: F401 - a fixture
)

FOUND = taken(decoder())
LOST = RuntimeError("The actor died because its node has died.")


class Look:
    """What a replica is asked, in order, and what it answers."""

    def __init__(self, *answers: object) -> None:
        self._answers = iter(answers)
        self.asked: list[tuple[object, ...]] = []

    def remote(self, *asked: object) -> Ref:
        self.asked.append(asked)
        return Ref(next(self._answers))


class Telling:
    """Actors that come up at once, each with what it says of its weights."""

    def __init__(self, *looks: Look) -> None:
        self._looks = iter(looks)

    def remote(self, *_: object) -> Any:
        look = next(self._looks)
        return SimpleNamespace(hello=Method(HELLO), load=Method(READY), look=look)


@pytest.fixture(autouse=True)
def raising(made_up: None, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    """Answers that are errors are Ray's; those that are None do not come."""
    import ray

    def get(ref: Ref) -> object:
        if isinstance(ref.answer, Exception):
            raise ref.answer
        return ref.answer

    def wait(refs: list[Ref], **_: object) -> tuple[list[Ref], list[Ref]]:
        done = [ref for ref in refs if ref.answer is not None]
        return done, [ref for ref in refs if ref.answer is None]

    monkeypatch.setattr(ray, "get", get)
    monkeypatch.setattr(ray, "wait", wait)


def opened(*looks: Look, replicas: int = 1) -> tuple[RayWeights, Cluster]:
    cluster = Cluster(*[(HELLO, READY)] * replicas)
    made: Any = cluster.pool
    made._actor = Telling(*looks)
    cluster.pool.start()
    return RayWeights(cluster.pool, timeout=10.0), cluster


def test_one_replica_is_asked() -> None:
    sparsity = Sparsity({"w": Zeros(1, 2)}, (2, 4))
    survivors = Survivors({}, {}, ("w",), ("w",))
    one, other = Look(FOUND, sparsity, survivors), Look()
    weights, cluster = opened(one, other, replicas=2)
    dense = Dense(Target("m/dense", "/models/dense"), given=False)
    assert weights.fingerprint() == FOUND
    assert weights.sparsity((2, 4)) == sparsity
    assert weights.survivors(dense) == survivors
    assert one.asked == [("fingerprint",), ("sparsity", (2, 4)), ("survivors", dense)]
    assert other.asked == []
    assert cluster.told == []


def test_a_dense_path_means_the_same_on_every_node(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "dense").mkdir()
    monkeypatch.chdir(tmp_path)
    one = Look(Survivors({}, {}, (), ()))
    weights, _ = opened(one)
    weights.survivors(Dense(Target("m/dense", "dense"), given=True, allow_keys=("a*",)))
    there = Target("m/dense", str(tmp_path / "dense"))
    assert one.asked == [("survivors", Dense(there, given=True, allow_keys=("a*",)))]


@pytest.mark.parametrize("kind", [CheckpointError, NoDenseError])
def test_what_is_wrong_is_told_with_its_node(kind: type[PplguardError]) -> None:
    weights, _ = opened(Look(Failure.of(kind("/models/it cannot be read"))))
    with pytest.raises(PplguardError) as caught:
        weights.fingerprint()
    assert type(caught.value) is kind
    assert str(caught.value) == "/models/it cannot be read (on node gpu ())"


def test_another_one_does_it_if_one_is_lost() -> None:
    one, other, again = Look(LOST), Look(FOUND), Look()
    weights, cluster = opened(one, other, again, replicas=2)
    assert weights.fingerprint() == FOUND
    assert other.asked == [("fingerprint",)]
    assert cluster.told == [
        "it: a replica on node gpu () was lost (The actor died because its node has "
        "died); it is started again"
    ]


def test_the_one_that_is_started_again_does_it_if_it_is_alone() -> None:
    again = Look(FOUND)
    weights, _ = opened(Look(LOST), again)
    assert weights.fingerprint() == FOUND
    assert again.asked == [("fingerprint",)]


def test_three_losses_are_enough() -> None:
    looks = [Look(LOST) for _ in range(5)]
    weights, _ = opened(*looks)
    with pytest.raises(ExecutorError) as caught:
        weights.fingerprint()
    assert str(caught.value) == (
        "it: 3 replicas were lost while they looked at its weights (node gpu (): The "
        "actor died because its node has died)"
    )
    assert [len(look.asked) for look in looks] == [1, 1, 1, 0, 0]


def test_none_is_left() -> None:
    weights, cluster = opened(Look())
    for member in cluster.pool.members:
        cluster.pool.lose(member, "its node is gone", again=False)
    with pytest.raises(ExecutorError) as caught:
        weights.sparsity()
    assert str(caught.value) == (
        "no replica of it is left, after 1 loss: node gpu (): its node is gone"
    )


def advancing(monkeypatch: pytest.MonkeyPatch) -> Callable[[], float]:
    """A clock on which each look takes a second."""
    now = 0.0

    def monotonic() -> float:
        nonlocal now
        now += 1.0
        return now

    monkeypatch.setattr(time, "monotonic", monotonic)
    return monotonic


def test_one_that_hangs_is_given_up_after_as_long_as_loading_may_take(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = advancing(monkeypatch)
    hanging, other = Look(None), Look(FOUND)
    weights, cluster = opened(hanging, other, Look(), replicas=2)
    started = clock()
    assert weights.fingerprint() == FOUND
    assert pool_room.LOADING * 10 < clock() - started < pool_room.LOADING * 30
    assert cluster.told == [
        "it: a replica on node gpu () was lost (an answer took more than 60 s); it is "
        "started again"
    ]


def test_one_that_hangs_at_a_measurement_before_is_waited_for_no_longer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It counts for nothing: it was not asked for weights."""
    advancing(monkeypatch)
    again = Look(FOUND)
    weights, cluster = opened(Look(), again)
    [member] = cluster.pool.members
    cluster.pool.ask(member, Ref(None), ("score", 1))
    assert weights.fingerprint() == FOUND
    assert again.asked == [("fingerprint",)]


def test_answers_to_a_measurement_before_are_left_alone() -> None:
    one = Look(FOUND)
    weights, cluster = opened(one)
    [member] = cluster.pool.members
    cluster.pool.ask(member, Ref("scores of before"), ("score", 1))
    assert weights.fingerprint() == FOUND


# --------------------------------------------------------------------- opened again


class Opening:
    """An executor whose replicas load what is next, again and again."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *ready: Ready) -> None:
        self.closed = 0
        loaded = iter(ready)

        def pool(
            _: object, __: object, target: Target, *___: object, **____: Any
        ) -> Any:
            cluster = Cluster((HELLO, next(loaded)))
            made: Any = cluster.pool
            made._target = target
            close = made.close

            def closing() -> None:
                self.closed += 1
                close()

            made.close = closing
            return made

        monkeypatch.setattr(ray_room, "Pool", pool)
        monkeypatch.setattr(ray_room, "gpus_of", lambda *_: 0)
        self.executor = RayExecutor(
            Options(execution=Execution("ray")), tell=lambda *_: None
        )
        connection: Any = SimpleNamespace(
            address="at head",
            check=lambda *_, **__: None,
            check_alive=lambda **_: None,
            close=lambda: None,
        )
        self.executor._connection = connection

    def open(self, spec: str = "/models/it") -> None:
        self.executor.open(Target("it", spec)).close()


def test_a_checkpoint_may_be_opened_again_as_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    again = replace(READY, seconds=2.0, notices=("another notice",))
    other = replace(READY, digest="sha256:other")
    opening = Opening(monkeypatch, READY, again, other)
    opening.open()
    opening.open()
    opening.open("/models/other")


@pytest.mark.parametrize(
    ("what", "other"),
    [
        ("model", {"digest": "sha256:other"}),
        ("model", {"digest": None, "state": "other"}),
        ("tokenizer", {"tokenizer_digest": "sha256:other"}),
    ],
)
def test_another_one_under_the_name_of_before_is_refused(
    monkeypatch: pytest.MonkeyPatch, what: str, other: dict[str, Any]
) -> None:
    opening = Opening(monkeypatch, READY, replace(READY, **other))
    opening.open()
    closed = opening.closed
    with pytest.raises(CheckpointError) as caught:
        opening.open()
    assert str(caught.value) == (
        f"/models/it is another {what} than before in this run: its files were "
        "replaced after its replicas had been given back; run again, so that all "
        "numbers are of one checkpoint"
    )
    assert opening.closed == closed + 1
