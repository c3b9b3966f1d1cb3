"""Ctrl-C is not lost, wherever it comes up."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Any

import pytest

from pytest_pplguard.executors.interrupts import Interrupts, Termination


class Finalised:
    """Ctrl-C while it is forgotten: Python prints what is raised there, no more."""

    def __del__(self) -> None:
        signal.raise_signal(signal.SIGINT)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_an_interrupt_that_was_swallowed_is_raised_at_the_next_look() -> None:
    before = signal.getsignal(signal.SIGINT)
    with Interrupts() as interrupts:
        interrupts.check()
        Finalised()
        with pytest.raises(KeyboardInterrupt):
            interrupts.check()
    assert signal.getsignal(signal.SIGINT) is before


def test_it_is_raised_at_once_as_ever() -> None:
    with Interrupts(), pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)


def test_what_is_ignored_stays_ignored() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with Interrupts() as interrupts:
            signal.raise_signal(signal.SIGINT)
            interrupts.check()
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


def test_another_thread_leaves_the_handler_alone() -> None:
    found: list[object] = []

    def enter() -> None:
        with Interrupts():
            found.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert found == [signal.getsignal(signal.SIGINT)]


@pytest.fixture
def sigterm() -> Iterator[Any]:
    """What is set by a test is taken back."""
    before = signal.getsignal(signal.SIGTERM)
    yield before
    signal.signal(signal.SIGTERM, before)


def of_ray(number: int, frame: FrameType | None) -> None:
    raise AssertionError("Ray's own handler was called")


of_ray.__module__ = "ray._private.worker"


@pytest.mark.parametrize("before", [signal.SIG_DFL, of_ray])
def test_a_termination_is_an_interrupt(sigterm: Any, before: Any) -> None:
    signal.signal(signal.SIGTERM, before)
    termination = Termination()
    signal.signal(signal.SIGTERM, of_ray)  # what Ray does at its start
    termination.take()
    with Interrupts() as interrupts:
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGTERM)
        with pytest.raises(KeyboardInterrupt):
            interrupts.check()
    termination.give_back()
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_termination_that_the_user_handles_is_the_users(sigterm: Any) -> None:
    seen: list[int] = []

    def mine(number: int, frame: FrameType | None) -> None:
        seen.append(number)

    signal.signal(signal.SIGTERM, mine)
    termination = Termination()
    signal.signal(signal.SIGTERM, of_ray)
    termination.take()
    signal.raise_signal(signal.SIGTERM)
    assert seen == [signal.SIGTERM]


def test_where_ctrl_c_is_ignored_a_termination_is_not(sigterm: Any) -> None:
    """As in a shell's background."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        termination = Termination()
        signal.signal(signal.SIGTERM, of_ray)
        termination.take()
        assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    finally:
        signal.signal(signal.SIGINT, before)


def test_terminations_of_another_thread_are_left_alone(sigterm: Any) -> None:
    termination = Termination()
    signal.signal(signal.SIGTERM, of_ray)
    thread = threading.Thread(target=termination.take)
    thread.start()
    thread.join()
    termination.give_back()
    assert signal.getsignal(signal.SIGTERM) is of_ray
