"""A server that dies, comes back, or is another one: real processes are killed."""

from __future__ import annotations

import re
import signal
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from pytest_pplguard.checkpoints import Loaded
from pytest_pplguard.errors import ExecutorError
from pytest_pplguard.values import Measurement

from .completions_server import Served
from .test_server import measured, opened

pytestmark = pytest.mark.usefixtures("as_it_was")


class Disturbing:
    """Does something to the server once three windows are done, and hears lines."""

    def __init__(self, disturb: Callable[[], None]) -> None:
        self.lines: list[str] = []
        self._disturb: Callable[[], None] | None = disturb

    def __call__(self, done: int, total: int, mean_nll: float) -> None:
        if done >= 3 and self._disturb is not None:
            disturb, self._disturb = self._disturb, None
            disturb()

    def say(self, line: str) -> None:
        self.lines.append(line)


class Killed:
    """Kills the server, and starts it again a second later with some switches."""

    def __init__(self, server: Served, **settings: Any) -> None:
        self.asked: list[tuple[int, ...]] = []
        self._server = server
        self._settings = {"offered": ["dense"]} | settings
        self._restart = threading.Timer(1.0, self._start)

    def __call__(self) -> None:
        self.asked = prompts(self._server)
        self._server.kill()
        self._restart.start()

    def _start(self) -> None:
        self._server.start(**self._settings)

    def asked_since(self) -> list[tuple[int, ...]]:
        self._restart.join()
        return prompts(self._server)


def prompts(server: Served) -> list[tuple[int, ...]]:
    return [tuple(payload["prompt"]) for payload in server.completions()]


@pytest.fixture
def undisturbed(server: Served) -> tuple[Measurement, list[tuple[int, ...]]]:
    """What a run without faults gives, and its windows."""
    found = measured(opened(server))
    windows = prompts(server)[1:-1]
    assert len(windows) == 8
    server.switch(offered=["dense"])
    return found, windows


@pytest.mark.parametrize("replicas", [1, 3])
def test_a_server_that_was_killed_and_started_again(
    server: Served,
    undisturbed: tuple[Measurement, list[tuple[int, ...]]],
    replicas: int,
) -> None:
    expected, windows = undisturbed
    killed = Killed(server)
    progress = Disturbing(killed)
    found = measured(opened(server, replicas=replicas), progress=progress)
    assert found.evidence == expected.evidence
    assert found.metrics == expected.metrics
    again = killed.asked_since()
    # The first window proves the server when it is back, and at the end.
    assert again[0] == again[-1] == windows[0]
    assert again.count(windows[0]) == 2
    # Nothing that was finished is asked for again.
    assert not {*windows[1:3]} & {*again}
    assert {*killed.asked[1:], *again} == {*windows}
    assert len({*again}) == len(again) - 1
    assert progress.lines
    assert re.fullmatch(
        re.escape(f"the server at {server.url} does not answer (it cannot be reached: ")
        + r"connection refused\); trying again for (600|599) s",
        progress.lines[0],
    )
    (notice,) = found.notices
    assert re.fullmatch(
        re.escape(f"the server at {server.url} was away for ")
        + r"\d+ s \(it cannot be reached: connection refused\), and came back as it "
        "was",
        notice,
    )


def test_a_server_that_comes_back_with_other_weights(
    server: Served,
    undisturbed: tuple[Measurement, list[tuple[int, ...]]],
    dense: Loaded,
) -> None:
    killed = Killed(server, weights={"dense": "pruned"})
    with pytest.raises(ExecutorError) as caught:
        measured(opened(server, replicas=3), progress=Disturbing(killed))
    assert_changed(
        caught.value, f"the server at {server.url} came back and answers", dense
    )
    _, windows = undisturbed
    assert killed.asked_since() == windows[:1]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"offered": ["pruned"]}, "without the model dense: it offers pruned"),
        (
            {"root": "/models/other"},
            "with another model of that name: dense was {dense}, and is /models/other "
            "now",
        ),
    ],
)
def test_a_server_that_comes_back_with_another_model(
    server: Served, settings: dict[str, Any], words: str
) -> None:
    subject = opened(server)
    killed = Killed(server, **settings)
    with pytest.raises(ExecutorError) as caught:
        measured(subject, progress=Disturbing(killed))
    words = words.format(dense=server.models["dense"])
    assert str(caught.value) == f"the server at {server.url} came back {words}"
    assert killed.asked_since() == []


def test_a_server_that_never_comes_back(server: Served) -> None:
    subject = opened(server, timeout=2.0, replicas=2)
    started = time.monotonic()
    progress = Disturbing(server.kill)
    with pytest.raises(ExecutorError) as caught:
        measured(subject, progress=progress)
    assert 2 <= time.monotonic() - started < 10
    assert re.fullmatch(
        re.escape(f"the server at {server.url}: it cannot be reached: connection ")
        + r"refused for \d s; start it, or mend --ppl-server \(at window [4-8] of 8\)",
        str(caught.value),
    )


def test_ctrl_c_does_not_wait_for_a_server_that_is_away(server: Served) -> None:
    main = threading.main_thread().ident
    assert main is not None
    pressed: list[float] = []

    def disturb() -> None:
        server.kill()
        threading.Timer(1.0, press).start()

    def press() -> None:
        pressed.append(time.monotonic())
        signal.pthread_kill(main, signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        measured(opened(server, replicas=2), progress=Disturbing(disturb))
    assert time.monotonic() - pressed[0] < 1


def test_weights_that_change_in_mid_run(server: Served, dense: Loaded) -> None:
    """As an adapter does that is loaded anew: nothing breaks, and nothing says so."""

    def change() -> None:
        server.switch(offered=["dense"], weights={"dense": "pruned"})

    with pytest.raises(ExecutorError) as caught:
        measured(opened(server), progress=Disturbing(change))
    assert_changed(caught.value, f"the server at {server.url} answers", dense)


def test_weights_that_change_between_two_keys(server: Served, dense: Loaded) -> None:
    subject = opened(server)
    measured(subject)
    server.switch(offered=["dense"], weights={"dense": "pruned"})
    with pytest.raises(ExecutorError) as caught:
        measured(subject, "strided/demo:128:stride64:first6")
    assert_changed(caught.value, f"the server at {server.url} answers", dense)


def test_weights_that_change_before_the_first_window(server: Served) -> None:
    subject = opened(server)
    server.kill()
    server.start(offered=["dense"], weights={"dense": "pruned"}, faults=["reset"])
    with pytest.raises(ExecutorError) as caught:
        measured(subject)
    start = f"the server at {server.url} came back and answers its first question "
    assert str(caught.value).startswith(f"{start}differently: ")


def assert_changed(error: ExecutorError, start: str, dense: Loaded) -> None:
    (first,) = measured(dense, "wanda/demo:256:first1").evidence
    mean = first.nll_sum / first.scored
    assert re.fullmatch(
        re.escape(f"{start} window 1 of 8 differently: {mean:.4f} nats a token before")
        + r", 1\.03\d\d now \(each 0\.1\d? apart, where rounding is below 0\.05\); its "
        "model has changed: measure anew, and leave it as it is until the end",
        str(error),
    )
