"""A checkpoint that a server offers, and what scores windows with it."""

from __future__ import annotations

import math
import queue
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Any, TypeVar

from msgspec import UNSET

from ...errors import (
    ExecutorError,
    InvalidLossError,
    MeasurementError,
    ServerChangedError,
)
from ...measure import Facts, ScorerElsewhere, Subject, WindowScorer
from ...options import BATCH_AUTO
from ...protocols import Tokenizer
from ...scoring import (
    BatchSize,
    Kept,
    Loss,
    Progress,
    Speaking,
    Stop,
    Tally,
    place,
    refuse_empty,
    tell_of_others,
    window_score,
)
from ...values import Scalar, Window, WindowScore
from .answers import Told, Unreadable
from .client import Refused
from .patience import Patience
from .witness import Witness

T = TypeVar("T")
R = TypeVar("R")

_AHEAD = 4
"""Requests that wait for each that is under way: none of these is ever idle."""


class ServerSubject(Subject):
    """A checkpoint that a server offers.

    Args:
        witness: of the server that scores it.
        tokenizer: of its files here: windows are cut with it.
        facts: what is known of it.
        at_once: requests under way.
        notices: lines for the user.
    """

    from_files = False

    def __init__(
        self,
        witness: Witness,
        tokenizer: Tokenizer,
        facts: Facts,
        *,
        at_once: int,
        notices: tuple[str, ...],
    ) -> None:
        self.tokenizer = tokenizer
        self.notices = notices
        self._witness = witness
        self._facts = facts
        self._at_once = at_once

    @property
    def facts(self) -> Facts:
        return self._facts

    def kernels(self) -> dict[str, Scalar]:
        return {}

    def digest(self) -> None:
        """Nobody here knows which weights the server has."""

    def scorer(
        self,
        *,
        batch_size: BatchSize = 1,
        compile: bool = False,
        progress: Progress | None = None,
    ) -> WindowScorer:
        return ServerScorer(
            self._witness,
            at_once=self._at_once,
            # Servers put requests together themselves.
            together=1 if batch_size == BATCH_AUTO else batch_size,
            progress=progress,
        )

    def close(self) -> None:
        """Nothing: no request is under way between two scorings."""


class ServerScorer(ScorerElsewhere):
    """Scores windows by asking a server.

    Args:
        witness: of the server that is asked.
        at_once: requests under way.
        together: windows in a request.
        progress: told how far it is, and for whom the server is waited for.
    """

    def __init__(
        self,
        witness: Witness,
        *,
        at_once: int,
        together: int = 1,
        progress: Progress | None = None,
    ) -> None:
        self.notices: list[str] = []
        self._witness = witness
        self._offer = witness.offer
        self._at_once = at_once
        self._together = together
        self._progress = progress

    def until(
        self,
        windows: Sequence[Window],
        kept: Kept | None = None,
        *,
        answers: bool = False,
        order: Sequence[int] | None = None,
        stop: Stop | None = None,
    ) -> Mapping[int, WindowScore]:
        """Evidence of windows by index: of all, or until ``stop`` says so.

        See :meth:`pytest_pplguard.scoring.Scorer.until`. Answers are taken in the order
        in which they were asked for, whichever comes first.

        Raises:
            InvalidLossError: a loss is NaN or infinite, or a window scores nothing.
            MeasurementError: the server cannot be asked for a window.
            ExecutorError: the server fails for longer than it is waited for, answers
                something else, or is not what it was before.
        """
        refuse_empty(windows, answers=answers)
        prompts = [
            self._prompt(index, windows, answers) for index in range(len(windows))
        ]
        self._check_context(prompts)
        scores = {} if kept is None else dict(kept.finished)
        tell = Tally(len(windows), self._progress)
        tell(scores)
        left = [i for i in order or range(len(windows)) if i not in scores]
        size = self._together
        portions = [left[at : at + size] for at in range(0, len(left), size)]

        leave = threading.Event()
        patience = Patience(
            self._offer.client,
            prove=self._prove,
            leave=leave,
            say=self._progress.say if isinstance(self._progress, Speaking) else _quiet,
        )

        def ask(portion: list[int]) -> list[Mapping[str, Any]]:
            chosen = [prompts[index] for index in portion]
            return patience.ask(lambda: self._offer.ask(chosen))

        with _asked(ask, portions, self._at_once, leave) as answered:
            while not (stop is not None and stop(scores)):
                if (found := next(answered, None)) is None:
                    break
                portion, get = found
                with _failing(portion, windows, answers):
                    said = get()
                new: dict[int, WindowScore] = {}
                for index, choice in zip(portion, said, strict=True):
                    window = windows[index]
                    with _failing([index], windows, answers):
                        told = self._witness.told(
                            choice, prompts[index], len(window.targets)
                        )
                        loss = _loss(told, answers=answers)
                    try:
                        new[index] = window_score(loss, index, windows)
                    except InvalidLossError as error:
                        tell_of_others(error, scores | new, windows)
                        raise
                if not self._witness.is_window:
                    first = portion[0]
                    where = place(first, windows, answers=answers)
                    with _failing([first], windows, answers):
                        self._witness.take(
                            prompts[first], said[0], where, is_window=True
                        )
                scores |= new
                if kept is not None:
                    kept.add(new)
                tell(new)
            if portions:
                patience.ask(self._witness.check)
        self.notices += patience.notices
        return scores

    def _prove(self) -> None:
        """Whether a server that was away is back, and is what it was.

        Raises:
            NoAnswer: it is not back.
            ServerChangedError: it has another model.
        """
        self._offer.check_listed()
        self._witness.check(came_back=True)

    def _prompt(
        self, index: int, windows: Sequence[Window], answers: bool
    ) -> tuple[int, ...]:
        """The tokens to send: the window's, up to and with its last target.

        Raises:
            MeasurementError: what it scores is not what it reads next, so that no
                server tells of it.
        """
        window = windows[index]
        end = window.start + len(window.targets)
        read = (*window.ids[:end], window.targets[-1])
        where = place(index, windows, answers=answers)
        if read[window.start + 1 :] != window.targets:
            raise MeasurementError(
                f"{where} scores other tokens than those that it reads next, and a "
                "server tells of no others: measure it with --ppl-executor local"
            )
        return read

    def _check_context(self, prompts: Sequence[Sequence[int]]) -> None:
        """Refuse windows that are too long for the server, before the first is asked.

        Raises:
            MeasurementError: there is one.
        """
        written, context = self._offer.dialect.written, self._offer.served.context
        longest = max(map(len, prompts), default=0)
        needed = longest + written
        if context is None or needed <= context:
            return
        more = f" and {written} that it writes behind them" if written else ""
        raise MeasurementError(
            f"the longest window needs a context of {needed} tokens ({longest} that "
            f"are read or scored{more}), and the server has {context}: start it with "
            f"--max-model-len {needed} (docs/server.md), or measure at a shorter window"
        )


def _quiet(line: str) -> None:
    """Nobody is there who could read it now."""


def _loss(told: Told, *, answers: bool) -> Loss:
    if answers and told.greedy is None:
        raise Unreadable(
            "it does not say which token is the most likely, which answers need"
        )
    total = math.fsum(told.losses)
    return Loss(total, bool(told.greedy)) if answers else Loss(total, UNSET)


@contextmanager
def _failing(
    portion: Sequence[int], windows: Sequence[Window], answers: bool
) -> Iterator[None]:
    """Say of an error at which window it was."""
    where = place(portion[0], windows, answers=answers)
    if len(portion) > 1:
        where += f" and {len(portion) - 1} more"
    try:
        yield
    except ServerChangedError:  # whichever window is asked for
        raise
    except Unreadable as error:
        raise ExecutorError(
            f"the server's answer for {where} is not about it: {error}"
        ) from error
    except Refused as error:
        if error.is_no_number:
            raise _no_number(portion, where, error) from error
        raise ExecutorError(f"{error} (at {where})") from error
    except ExecutorError as error:
        raise ExecutorError(f"{error} (at {where})") from error


def _no_number(portion: Sequence[int], where: str, error: Refused) -> InvalidLossError:
    why = f"NaN or infinite: the server cannot write it as JSON ({error.words})"
    if len(portion) > 1:
        return InvalidLossError(
            f"a loss of {where} is {why}; --ppl-batch-size 1 tells which"
        )
    return InvalidLossError.at(portion[0], f"the loss of {where} is {why}")


# --------------------------------------------------------------------- requests at once


@contextmanager
def _asked(
    ask: Callable[[T], R],
    portions: Sequence[T],
    at_once: int,
    leave: threading.Event,
) -> Iterator[Iterator[tuple[T, Callable[[], R]]]]:
    """Every portion and what gives its answer, in order; some are asked ahead.

    ``leave`` is set at the end: no try is made after it.

    Threads are daemons: whoever leaves early, by Ctrl-C or an error, does not wait for
    answers that nobody needs.
    """
    todo: queue.SimpleQueue[tuple[Future[R], T] | None] = queue.SimpleQueue()

    def work() -> None:
        while (one := todo.get()) is not None:
            future, portion = one
            if not future.set_running_or_notify_cancel():
                continue
            try:
                future.set_result(ask(portion))
            except BaseException as error:
                future.set_exception(error)

    count = min(at_once, len(portions))
    for number in range(count):
        name = f"pplguard-server-{number}"
        threading.Thread(target=work, name=name, daemon=True).start()
    under_way: deque[tuple[Future[R], T]] = deque()
    rest = iter(portions)

    def fill() -> None:
        while len(under_way) < count * _AHEAD:
            if (portion := next(rest, None)) is None:
                return
            under_way.append((Future(), portion))
            todo.put(under_way[-1])

    def answered() -> Iterator[tuple[T, Callable[[], R]]]:
        fill()
        while under_way:
            future, portion = under_way.popleft()
            fill()
            yield portion, future.result

    try:
        yield answered()
    finally:
        leave.set()
        for future, _ in under_way:
            future.cancel()
        for _ in range(count):
            todo.put(None)
