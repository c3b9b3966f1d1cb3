"""When Ray counts as gone, by a clock and ports that are made up."""

from __future__ import annotations

import socket

import pytest

from pytest_pplguard.executors.lifeline import HEAD_SECONDS, Ends, Lifeline, listens

NODE, HEAD = ("10.0.0.7", 40000), ("10.0.0.1", 6379)
BOTH = Ends(NODE, HEAD)


class World:
    """The ports that answer, a clock, and a lifeline that sees both."""

    def __init__(self, ends: Ends = BOTH) -> None:
        self.now = 100.0
        self.up = {NODE, HEAD}
        self.asked = 0
        self.lifeline = Lifeline(ends, clock=lambda: self.now, answers=self.answers)

    def answers(self, place: tuple[str, int]) -> bool:
        self.asked += 1
        return place in self.up

    def after(self, seconds: float, *, now: bool = False) -> str | None:
        self.now += seconds
        return self.lifeline.broken(now=now)


GONE = "Ray's own process on this machine, at 10.0.0.7:40000, is gone"
SILENT = "the head of the cluster, at 10.0.0.1:6379, has not answered for 50 s"


def test_all_is_well() -> None:
    world = World()
    assert [world.after(10) for _ in range(20)] == [None] * 20


def test_a_node_is_gone_at_once() -> None:
    world = World()
    world.up.remove(NODE)
    assert world.after(3) == GONE


def test_it_is_looked_at_every_two_seconds_or_when_asked() -> None:
    world = World()
    world.up.remove(NODE)
    asked = world.asked
    assert world.after(0.1) is None
    assert world.asked == asked
    assert world.after(0.1, now=True) == GONE


def test_a_head_may_be_away_for_a_while() -> None:
    world = World()
    world.after(3)
    world.up.remove(HEAD)
    assert world.after(HEAD_SECONDS - 2) is None
    assert world.after(2) == SILENT


def test_a_head_that_came_back_counts_anew() -> None:
    world = World()
    world.up.remove(HEAD)
    assert world.after(HEAD_SECONDS - 1) is None
    world.up.add(HEAD)
    assert world.after(3) is None
    world.up.remove(HEAD)
    assert world.after(HEAD_SECONDS - 1) is None


@pytest.mark.parametrize("ends", [Ends(None, None), Ends(("10.0.0.9", 1), None)])
def test_what_never_answered_is_not_watched(ends: Ends) -> None:
    world = World(ends)
    world.up.clear()
    assert world.after(3) is None
    assert world.after(10 * HEAD_SECONDS) is None


def test_a_port() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        place = ("127.0.0.1", server.getsockname()[1])
        assert listens(place)
    assert not listens(place)
