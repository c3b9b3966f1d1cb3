"""Replicas and nodes that are lost, hang, run out of memory or answer nonsense."""

from __future__ import annotations

import re
from contextlib import nullcontext
from typing import Any

import pytest

from pytest_pplguard.errors import DeviceError, InvalidLossError
from pytest_pplguard.executors import pool
from pytest_pplguard.measure import measure_loaded
from pytest_pplguard.values import Key, Scalar

from .nodes import (
    KEYS,
    NODE,
    Keeping,
    Local,
    Opened,
    Told,
    TwoNodes,
    occupied,
    open_text,
    opening,
    refused,
    wait_for,
    windows_of,
)

NO_MEMORY = r"out of memory: demo/dense .*\. Way out: .* --ppl-dtype bfloat16.*"


def test_a_replica_that_is_killed(
    cluster: TwoNodes, opened: Opened, local: Local
) -> None:
    cluster.fault("kill")
    kept = Keeping({})
    scores = opened.subject.scorer()(windows_of(opened.subject, KEYS[0]), kept)
    assert tuple(scores) == local(KEYS[0]).evidence
    assert sorted(kept.added) == [*range(30)]
    assert [*cluster.faults.glob("kill.*")]
    [line] = opened.told.losses()
    assert line.endswith("; it is started again")


def test_a_replica_that_hangs(
    cluster: TwoNodes,
    opened: Opened,
    local: Local,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    opened.measure(KEYS[0])
    monkeypatch.setattr(opened.subject, "_timeout", 2.0)
    cluster.fault("hang")
    assert opened.measure(KEYS[0]).evidence == local(KEYS[0]).evidence
    assert [*cluster.faults.glob("hang.*")]
    [line] = opened.told.losses()
    assert re.search(r" \(windows? \d+( to \d+)? took more than 2 s\)", line)


def test_a_replica_that_answers_nan_for_healthy_windows(
    cluster: TwoNodes, opened: Opened, local: Local
) -> None:
    cluster.fault("nan")
    assert opened.measure(KEYS[0]).evidence == local(KEYS[0]).evidence
    assert "(it failed at windows that another replica scored)" in opened.told[-1]


def test_nan_that_a_second_replica_confirms(cluster: TwoNodes, opened: Opened) -> None:
    cluster.fault("all-nan")
    with pytest.raises(InvalidLossError) as caught:
        opened.measure(KEYS[0])
    assert str(caught.value) == "the loss of window 1 of 30 is nan"
    assert (caught.value.window, caught.value.windows) == (0, 30)
    opened.close_replicas()  # their weights are spoilt


# -------------------------------------------------------------------------- memory


def test_no_memory_for_a_portion(
    cluster: TwoNodes, opened: Opened, local: Local
) -> None:
    """The system gives one replica no page more; the other scores its portion."""
    cluster.fault("memory")
    assert opened.measure(KEYS[0]).evidence == local(KEYS[0]).evidence
    assert [*cluster.faults.glob("memory.*")]
    [line] = opened.told.losses()
    assert "(it failed at windows that another replica scored)" in line


def test_no_memory_for_a_portion_anywhere(cluster: TwoNodes, opened: Opened) -> None:
    """The line is the one of a local run."""
    cluster.fault("all-memory")
    with pytest.raises(DeviceError) as caught:
        opened.measure(KEYS[0])
    assert re.fullmatch(
        r"out of memory on cpu at window 1 of 30 \(128 tokens, float32\): 4\.00 GiB "
        r"more were needed, [\d.]+ of [\d.]+ GiB are free; use a half-precision "
        "--ppl-dtype, a shorter window or another --ppl-device",
        str(caught.value),
    )
    opened.close_replicas()  # they have no memory any more


def test_no_memory_to_load_on_one_of_two(
    cluster: TwoNodes, room: None, local: Local
) -> None:
    cluster.fault("memory-load")
    told = Told()
    with opening(cluster, told) as (_, opens):
        measured = measure_loaded(opens(), Key.parse(KEYS[0]), open_text)
    assert measured.evidence == local(KEYS[0]).evidence
    [line] = [line for line in told if "memory" in line]
    assert re.fullmatch(
        rf"it: not loaded on {NODE}, the others go on: {NO_MEMORY}", line
    )


def test_no_memory_to_load_anywhere(cluster: TwoNodes, room: None) -> None:
    cluster.fault("all-memory-load")
    error, told = refused(cluster)
    assert isinstance(error, DeviceError)
    assert re.fullmatch(rf"{NO_MEMORY} \(on {NODE}, {NODE}\)", str(error))
    assert not told.losses()


def test_a_replica_that_ray_kills_for_its_nodes_memory(
    cluster: TwoNodes, room: None, local: Local
) -> None:
    """On a node that is always short of memory, as its raylet is told.

    Ray kills workers of its own there, and nothing else.
    """
    told = Told()
    with (
        cluster.third(
            {
                "RAY_memory_usage_threshold": "0.0001",
                "RAY_memory_monitor_refresh_ms": "100",
            }
        ),
        opening(cluster, told, replicas=3) as (_, opens),
    ):
        measured = measure_loaded(opens(), Key.parse(KEYS[0]), open_text)
        lines = wait_for(told.losses)
    assert measured.evidence == local(KEYS[0]).evidence
    for line in lines:
        assert re.fullmatch(
            r"it: a replica on .* was lost \(Ray killed it, as node 127\.0\.0\.4 ran "
            r"low on memory: [\d.]+GB of [\d.]+GB used\); it is (not )?started again",
            line,
        )


# -------------------------------------------------------------- hardware, nodes


def test_what_joins_later_on_other_hardware(
    cluster: TwoNodes, room: None, local: Local, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is on record what has scored; a journal holds what its head names."""
    monkeypatch.setitem(pool._LATE_COMERS, "hello", 0.2)
    key = "wanda/demo:128:first60"
    told = Told()
    given: dict[str, Any] = {}
    kept = Keeping({})

    def journal(digest: str, deciding: dict[str, Scalar], windows: object) -> Any:
        given.update(deciding)
        return nullcontext(kept)

    with opening(cluster, told) as (executor, opens):
        with occupied(cluster, executor, 1) as end:
            subject = opens()
            cluster.fault("all-slow", "0.15")
            cluster.fault("hardware", "a newer one")
            end()
            measured = measure_loaded(
                subject, Key.parse(key), open_text, threads=1, open_journal=journal
            )
        names = {one.ready.facts.device_name for one in subject.pool.members}
    usual = local(KEYS[0]).environment["device_name"]
    assert names == {usual, "a newer one"}
    assert measured.evidence == local(key).evidence
    assert measured.environment["device_name"] == f"a newer one, {usual}"
    assert given["device_name"] == usual
    assert 0 < len(kept.added) < 60
    assert told[-1].startswith("it: its replicas run on different hardware (a newer")


def test_a_node_that_is_lost(cluster: TwoNodes, alone: None, local: Local) -> None:
    import ray

    told = Told()
    # Of two nodes on one machine it would take either, and lose that.
    ray.init(address=cluster.address, _node_ip_address="127.0.0.2", log_to_driver=False)
    seen: list[int] = []

    def progress(done: int, total: int, mean: float) -> None:
        seen.append(done)
        if done and cluster.second is not None:
            cluster.remove()

    try:
        with opening(cluster, told) as (_, opens):
            subject = opens()
            cluster.fault("all-slow", "0.2")
            windows = windows_of(subject, KEYS[0])
            scores = subject.scorer(progress=progress)(windows)
    finally:
        ray.shutdown()
        cluster.add()
    assert tuple(scores) == local(KEYS[0]).evidence
    assert seen[-1] == 30
    [line] = told.losses()
    assert "127.0.0.3" in line
