"""Which replicas are used together, by a Ray that is made up."""

from __future__ import annotations

import pickle
import sys
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest
from msgspec.structs import replace

from pytest_pplguard.errors import CheckpointError, ExecutorError
from pytest_pplguard.executors.pool import Pool, cause
from pytest_pplguard.executors.replica import Failure, Hello, Ready, installed
from pytest_pplguard.measure import Facts
from pytest_pplguard.measure.identity import own_code
from pytest_pplguard.options import Execution, Options, Target

FACTS = Facts("float32", "cuda", "NVIDIA H100", "sdpa", versions={})
READY = Ready(
    facts=FACTS,
    digest="sha256:one",
    from_files=True,
    notices=(),
    seconds=1.0,
    kernels={},
    tokenizer=pickle.dumps("the tokenizer"),
)
HELLO = Hello(
    node="gpu", address="", pid=1, python="3.11", code=own_code(), versions=installed()
)


class Ref:
    def __init__(self, answer: object) -> None:
        self.answer = answer


class Method:
    def __init__(self, answer: object) -> None:
        self._answer = answer

    def remote(self, *_: object) -> Ref:
        return Ref(self._answer)


class Made:
    """Actors that answer at once, each with the next of what they are to say."""

    def __init__(self, *said: tuple[Hello, Ready | Failure]) -> None:
        self._said = iter(said)

    def remote(self, *_: object) -> Any:
        hello, ready = next(self._said)
        return SimpleNamespace(hello=Method(hello), load=Method(ready))


@pytest.fixture(autouse=True)
def made_up(monkeypatch: pytest.MonkeyPatch) -> None:
    def wait(refs: Sequence[Any], **_: object) -> tuple[Sequence[Any], list[Any]]:
        return refs, []

    ray = SimpleNamespace(
        remote=lambda **_: lambda kind: None,
        wait=wait,
        get=lambda ref: ref.answer,
        kill=lambda actor: None,
        is_initialized=lambda: True,
        exceptions=SimpleNamespace(RayError=RuntimeError),
    )
    monkeypatch.setitem(sys.modules, "ray", ray)


class Cluster:
    """A pool of as many replicas as are given, and what the user was told."""

    def __init__(self, *said: tuple[Hello, Ready | Failure]) -> None:
        self.told: list[str] = []
        self.pool = Pool(
            SimpleNamespace(  # type: ignore[arg-type]
                address="at head", check_alive=lambda **_: None
            ),
            Options(execution=Execution("ray", replicas=len(said))),
            Target("it", "/models/it"),
            (),
            cpus=1,
            gpus=1,
            tell=lambda *lines: self.told.extend(lines),
        )
        self.pool._actor = Made(*said)

    def join(self, hello: Hello, ready: Ready | Failure) -> None:
        """A replica comes when the others have begun."""
        self.pool._actor = Made((hello, ready))
        self.pool._add(0)
        for _ in range(2):
            self.pool.look(0)


def on(name: str, **kernels: str) -> Ready:
    facts = replace(FACTS, device_name=name)
    return replace(READY, facts=facts, kernels=dict(kernels))


def test_hardware_is_told_at_the_start_and_when_it_joins() -> None:
    cluster = Cluster((HELLO, READY), (HELLO, READY))
    cluster.pool.start()
    assert cluster.told == []
    cluster.join(HELLO, READY)
    assert cluster.told == []
    cluster.join(HELLO, on("NVIDIA A100"))
    [told] = cluster.told
    assert told == (
        "it: its replicas run on different hardware (NVIDIA A100, NVIDIA H100): the "
        "last digits of a number depend on which has scored what"
    )
    cluster.join(HELLO, on("NVIDIA A100"))
    assert len(cluster.told) == 1


def test_processors_that_compute_in_other_ways_are_different_hardware() -> None:
    cluster = Cluster(
        (HELLO, on("x86_64", capability="AVX2")),
        (HELLO, on("x86_64", capability="AVX512")),
    )
    cluster.pool.start()
    [told] = cluster.told
    assert "(x86_64 (AVX2), x86_64 (AVX512))" in told


def test_what_joins_is_hardware_that_may_score() -> None:
    cluster = Cluster((HELLO, READY))
    cluster.pool.start()
    assert cluster.pool.facts.device_name == "NVIDIA H100"
    cluster.join(HELLO, on("NVIDIA A100", capability="sm_80"))
    assert cluster.pool.hardware() == {
        "NVIDIA H100": "NVIDIA H100",
        "NVIDIA A100 (sm_80)": "NVIDIA A100",
    }
    assert cluster.pool.facts.device_name == "NVIDIA A100, NVIDIA H100"


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"digest": "sha256:one"}, {"digest": "sha256:other"}),
        # What a quantiser makes of weights has no digest of its own.
        ({"digest": None, "state": "one"}, {"digest": None, "state": "other"}),
    ],
)
def test_a_stale_copy_on_a_node_is_refused(
    one: dict[str, Any], other: dict[str, Any]
) -> None:
    cluster = Cluster((HELLO, replace(READY, **one)), (HELLO, replace(READY, **other)))
    with pytest.raises(CheckpointError, match="is not the same model everywhere"):
        cluster.pool.start()


def test_a_stale_tokenizer_on_a_node_is_refused() -> None:
    one = replace(READY, tokenizer_digest="sha256:" + "1" * 64)
    other = replace(READY, tokenizer_digest="sha256:" + "2" * 64)
    cluster = Cluster(
        (replace(HELLO, node="a"), one), (replace(HELLO, node="b"), other)
    )
    with pytest.raises(CheckpointError) as caught:
        cluster.pool.start()
    assert str(caught.value) == (
        "/models/it has not the same tokenizer everywhere: node a () has loaded "
        "sha256:111111111111 and node b () sha256:222222222222; one of them has a "
        "stale copy"
    )


def test_a_stale_tokenizer_that_comes_later_is_not_used() -> None:
    cluster = Cluster((HELLO, READY))
    cluster.pool.start()
    cluster.join(HELLO, replace(READY, tokenizer_digest="sha256:other"))
    assert len(cluster.pool.members) == 1
    [told] = cluster.told
    assert told.startswith(
        "a replica that came later is not used: /models/it has not the same tokenizer"
    )


def test_another_torch_is_not_used_even_if_nobody_else_is_left() -> None:
    cluster = Cluster((HELLO, READY))
    cluster.pool.start()
    for member in cluster.pool.members:
        cluster.pool.lose(member, "", again=False)
    other = replace(HELLO, versions=HELLO.versions | {"torch": "2.0"})
    cluster.join(other, READY)
    assert cluster.pool.members == []
    [told] = cluster.told
    assert told.startswith("a replica that came later is not used: node gpu () has ")


GONE = Failure("CheckpointError", "/models/it does not exist")


def test_a_replica_that_comes_later_and_cannot_load_is_told_of() -> None:
    cluster = Cluster((HELLO, READY))
    cluster.pool.start()
    cluster.join(HELLO, GONE)
    assert cluster.told == [
        "a replica that came later is not used: /models/it does not exist "
        "(on node gpu ())"
    ]


def test_where_no_replica_is_left_the_last_says_why() -> None:
    """Not one that could not load at the start, while others did."""
    cluster = Cluster((HELLO, READY), (replace(HELLO, node="other"), GONE))
    cluster.pool.start()
    assert cluster.told == [
        "it: not loaded on node other (), the others go on: /models/it does not exist",
        "it: 1 of 2 replicas are ready; others join when they are",
    ]
    (first,) = cluster.pool.members
    cluster.pool.lose(first, "its node burns", again=False)
    assert repr(cluster.pool.exhausted()) == repr(
        ExecutorError(
            "no replica of it is left, after 1 loss: node gpu (): its node burns"
        )
    )
    # The one that was started in its place has found other files.
    cluster.join(HELLO, replace(READY, digest="sha256:two"))
    assert repr(cluster.pool.exhausted()) == repr(
        CheckpointError(
            "/models/it is not the same model everywhere: node gpu () has loaded "
            "sha256:one and node gpu () sha256:two; its files were replaced in between"
        )
    )
    cluster.join(HELLO, GONE)
    assert repr(cluster.pool.exhausted()) == repr(
        CheckpointError("/models/it does not exist (on node gpu ())")
    )


def test_a_tokenizer_that_cannot_be_read_here() -> None:
    cluster = Cluster((HELLO, replace(READY, tokenizer=b"cnowhere\nTokenizer\n.")))
    cluster.pool.start()
    with pytest.raises(ExecutorError) as caught:
        cluster.pool.tokenizer()
    assert str(caught.value) == (
        "the tokenizer of it, as a replica has loaded it, cannot be read in this "
        "process, which cuts the windows (ModuleNotFoundError: No module named "
        "'nowhere'): measure it with the executor local"
    )


class OutOfMemoryError(Exception):
    """By the name of Ray's own, which says a page."""


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        (
            "1 worker(s) were killed due to the node running low on memory. Memory on "
            "the node (IP: 10.0.0.7, ID: 320cdd) was 8.39GB used / 23.54GB limit "
            "(0.356532)\nOOM kill reason: Memory usage exceeded\nRefer to the "
            "documentation on how to address the out of memory issue: https://docs",
            "Ray killed it, as node 10.0.0.7 ran low on memory: 8.39GB of 23.54GB used",
        ),
        (
            "Task was killed due to the node running low on memory.\nMemory on the "
            "node (IP: 10.0.0.7, ID: e5d9) where the task (actor ID: 5d, name=it, "
            "pid=1, memory used=5.1GB) was running was 6.94GB / 7.28GB (0.953461), "
            "which exceeds the memory usage threshold of 0.95.",
            "Ray killed it, as node 10.0.0.7 ran low on memory: 6.94GB of 7.28GB used",
        ),
        ("of another Ray", "Ray killed it, as its node ran low on memory"),
    ],
)
def test_a_replica_that_ray_has_killed_for_memory(said: str, expected: str) -> None:
    assert cause(OutOfMemoryError(said)) == expected
