"""Walks from one method's number to another's, one property of the cut at a time."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, get_args, get_type_hints

from msgspec import Struct
from msgspec.structs import asdict, replace

from ..checkpoints import Loaded
from ..corpora import Corpus
from ..errors import CorpusError, InvalidLossError, MeasurementError, UsageError
from ..journal import Journal
from ..protocols import (
    PROTOCOLS,
    Cut,
    Protocol,
    check_key,
    count_words,
    get_protocol,
    windows_digest,
)
from ..scoring import BatchSize, Progress, place
from ..values import Key, Ladder, Measurement, Rung, Scalar, Window, WindowScore
from .environment import environment, scored_on, using_threads
from .run import OpenJournal, measure_loaded
from .subject import Subject, WindowScorer, check_ids, check_positions, subject_of
from .texts import text_notice

_ALLOWED = 1e-12
"""How far, relative, an end may be from its method's own number: sums in other order.
"""


class State(Struct, frozen=True):
    """Everything that a rung is cut by; lengths in tokens."""

    cut: Cut
    window: int
    stride: int | None = None

    def properties(self) -> dict[str, Scalar]:
        """Each decision by its name."""
        return {**asdict(self.cut), "window": self.window, "stride": self.stride}

    def changed(self, name: str, value: Scalar) -> State:
        """The same with one property changed."""
        if name in ("window", "stride"):
            return replace(self, **{name: value})
        return replace(self, cut=replace(self.cut, **{name: value}))

    def windows(self, corpus: Corpus, tokenizer: Any) -> list[Window]:
        """The windows of a text, as many as its recipe wants."""
        return self.cut.windows(corpus, tokenizer, self.window, stride=self.stride)


class End(Struct, frozen=True):
    """A method at one end of the ladder: how it is asked for, and how it cuts."""

    key: Key
    state: State

    @property
    def metric(self) -> str:
        """What people quote of it."""
        return PROTOCOLS[self.key.method].metrics[0]


# ------------------------------------------------------------------------ which rungs

ORDER = (
    "text",
    "tail",
    "window",
    "stride",
    "scored",
    "per_page",
    "first",
    "backfill",
    "mean",
    "divisor",
)
"""What changes first where several properties could.

``tail`` is the step from dropped to kept, ``backfill`` the one from kept to filled
backwards. The tail is kept before pages are cut apart: each page has one, and a page
that is shorter than a window would be dropped whole. The divisor comes last: it is the
same text, counted otherwise. A property that is not named here changes after these.
"""


def path(start: State, goal: State) -> list[State]:
    """The states from ``start`` to ``goal``, both included, one property changed each.

    The way back is the same way. Every state between the ends can be measured: a
    prefix knows neither strides nor halves, means of windows are not divided by words,
    and no page is dropped for being short.

    Raises:
        UsageError: there is no such way.
    """
    backwards = _rank(start) > _rank(goal)
    first, last = (goal, start) if backwards else (start, goal)
    way = _search(first, last, (first, last), set())
    if way is None:
        raise UsageError(
            "these two methods differ in properties that cannot be changed one by one"
        )
    return way[::-1] if backwards else way


def _search(
    here: State, goal: State, ends: tuple[State, State], dead: set[State]
) -> list[State] | None:
    """Depth first; ``dead`` are states from which no way leads to the goal."""
    if here == goal:
        return [here]
    for step in _steps(here, goal):
        if step in dead or (step != goal and not _can_be_measured(step, ends)):
            continue
        rest = _search(step, goal, ends, dead)
        if rest is not None:
            return [here, *rest]
    dead.add(here)
    return None


def _steps(here: State, goal: State) -> Iterator[State]:
    """What can change next towards the goal, the preferred first."""
    now, then = here.properties(), goal.properties()
    steps = {}
    for name in (name for name in now if now[name] != then[name]):
        value, title = then[name], name
        if name == "tail":
            if {now[name], value} == {"dropped", "filled backwards"}:
                value = "kept"
            title = name if "dropped" in (now[name], value) else "backfill"
        steps[title] = here.changed(name, value)
    known = [title for title in ORDER if title in steps]
    yield from (steps[title] for title in [*known, *(steps.keys() - set(known))])


def _can_be_measured(state: State, ends: Sequence[State]) -> bool:
    cut, stride = state.cut, state.stride
    if cut.first == "prefix" and (stride is not None or cut.scored != "all"):
        return False
    if cut.divisor == "words" and cut.mean != "tokens":
        return False
    if stride is not None and stride > state.window:
        return False
    return not _drops_pages(state) or all(map(_drops_pages, ends))


def _drops_pages(state: State) -> bool:
    return state.cut.per_page and state.cut.tail == "dropped"


def _rank(state: State) -> tuple[float, ...]:
    """Orders states, so that a way and the way back are one."""
    hints = get_type_hints(Cut)
    values = asdict(state.cut)
    ranks = (
        float(get_args(hints[name]).index(value))
        if get_args(hints[name])
        else float(value)
        for name, value in values.items()
    )
    return (*ranks, float(state.window), float(state.stride or math.inf))


# ----------------------------------------------------------------------------- the ends


def ends_of(start: Key, goal: Key) -> tuple[End, End]:
    """Both ends of a ladder.

    Raises:
        UsageError: one is no cut, both are of one method, or they read two texts.
    """
    check_ends(start.method, goal.method)
    for key in (start, goal):
        check_key(key)
    texts = [PROTOCOLS[key.method].corpus(key) for key in (start, goal)]
    if texts[0] != texts[1]:
        raise UsageError(
            f"{start} reads the text {texts[0]} and {goal} reads {texts[1]}: give one "
            "for both, --corpus NAME"
        )
    return _end(start), _end(goal)


def check_ends(start: str, goal: str) -> None:
    """Refuse methods between which no ladder can stand.

    Raises:
        UsageError: one is unknown or no cut, or both are the same.
    """
    cuts = [name for name, method in PROTOCOLS.items() if _cut(method) is not None]
    for method in (start, goal):
        if _cut(get_protocol(method)) is None:
            raise UsageError(
                f"the method {method} is more than a way to cut a text, so no steps "
                f"lead to it; explain walks between {', '.join(cuts)}"
            )
    if start == goal:
        raise UsageError(
            f"from {start} to {goal} there are no steps; give two of {', '.join(cuts)}"
        )


def _end(key: Key) -> End:
    cut = _cut(PROTOCOLS[key.method])
    assert cut is not None
    return End(key, State(cut, key.window, key.stride))


def _cut(protocol: Protocol) -> Cut | None:
    """How a method cuts, None where that does not make its number."""
    cut = getattr(protocol, "cut", None)
    return cut if isinstance(cut, Cut) and not protocol.needs_reference else None


# ------------------------------------------------------------------------ the measuring


def climb(
    model: Loaded | Subject,
    ends: tuple[End, End],
    corpus: Corpus,
    *,
    limit: int | None = None,
    batch_size: BatchSize = 1,
    compile: bool = False,
    threads: int | None = None,
    progress: Progress | None = None,
    open_journal: OpenJournal | None = None,
) -> Ladder:
    """Measure every rung from one method to another.

    All windows are cut first, and each is scored once, however many rungs have it: one
    journal holds them. Both ends are measured by their methods themselves, from the
    same scores.

    Args:
        model: model and tokenizer on their device, or what stands for them.
        ends: see :func:`ends_of`.
        corpus: the text of every rung.
        limit: pages that the text was cut to, if it was.
        batch_size: windows that the model reads at once, or ``auto``.
        compile: run the model through torch.compile.
        threads: of torch while it measures on a CPU; None: as many as there are.
        progress: told how many windows are done.
        open_journal: gives the journal that keeps finished windows; None: none does.

    Raises:
        UsageError: no way leads from one to the other, or the tokenizer has no prefix.
        CorpusError: the text is too short for a rung.
        InvalidLossError: a loss is not finite; says at which rung and window.
        MeasurementError: the model cannot be measured this way, or an end is not its
            method's own number.
        DeviceError: out of memory.
    """
    started = time.perf_counter()
    subject = subject_of(model)
    for end in ends:
        check_positions(subject.facts, end.key)
    states = path(ends[0].state, ends[1].state)
    rungs = [
        _cut_rung(number, states, corpus, subject) for number in range(len(states))
    ]
    for end, windows in zip(ends, (rungs[0], rungs[-1]), strict=True):
        own = PROTOCOLS[end.key.method].windows(corpus, subject.tokenizer, end.key)
        if windows_digest(own) != windows_digest(windows):
            raise MeasurementError(
                f"{end.key}: the method's windows are not those of the cut that it "
                "says it is, so no ladder ends at its number"
            )
    scored = _Scored(rungs)
    check_ids(subject.facts, scored.windows)
    facts = environment(
        subject.facts,
        ends[1].key,
        batch_size=batch_size,
        compile=compile,
        threads=threads,
    )
    scorer = subject.scorer(batch_size=batch_size, progress=progress, compile=compile)
    with using_threads(threads):
        notices = scored.score(
            scorer,
            names=[_name(number, states) for number in range(len(states))],
            journal=None
            if open_journal is None
            else open_journal(
                windows_digest(scored.windows),
                facts | subject.kernels(),
                scored.windows,
            ),
        )
    words = count_words(corpus.pages)
    values = [
        state.cut.value(scores, _units(state, scores, words))
        for state, scores in zip(states, map(scored.of, rungs), strict=True)
    ]
    for index, end in ((0, ends[0]), (-1, ends[1])):
        measured = _by_the_method_itself(
            subject, end, corpus, scored, batch_size=batch_size
        )
        values[index] = _same(end, values[index], measured.metrics[end.metric])
    return Ladder(
        start=str(ends[0].key),
        start_metric=ends[0].metric,
        goal=str(ends[1].key),
        goal_metric=ends[1].metric,
        rungs=tuple(_rungs(states, values, rungs, scored.new)),
        corpus=corpus.name,
        corpus_digest=corpus.digest,
        pages=len(corpus.pages),
        words=words,
        limit=limit,
        recipe=corpus.recipe,
        environment=scored_on(facts, scorer.device_name),
        seconds=time.perf_counter() - started,
        notices=(*text_notice(corpus), *notices),
    )


def _cut_rung(
    number: int, states: Sequence[State], corpus: Corpus, subject: Subject
) -> list[Window]:
    try:
        windows = states[number].windows(corpus, subject.tokenizer)
    except CorpusError as error:
        raise CorpusError(f"{_name(number, states)}: {error}") from error
    if not windows:
        raise CorpusError(
            f"{_name(number, states)}: the text {corpus.name} is shorter than one "
            f"window of {states[number].window} tokens; choose a shorter window or a "
            "longer text"
        )
    return windows


def _name(number: int, states: Sequence[State]) -> str:
    """``step 3 (per_page: False -> True)``, for messages."""
    if number == 0:
        return "the start of the ladder"
    name, before, after = _change(states[number - 1], states[number])
    return f"step {number} ({name}: {before} -> {after})"


def _change(before: State, after: State) -> tuple[str, Scalar, Scalar]:
    one, other = before.properties(), after.properties()
    (name,) = (name for name in one if one[name] != other[name])
    return name, one[name], other[name]


class _Scored:
    """The windows of all rungs, each once, and their scores.

    ``new`` counts for each rung the windows that no rung before it has.
    """

    def __init__(self, rungs: Sequence[Sequence[Window]]) -> None:
        self.windows: list[Window] = []
        self.new: list[int] = []
        self._rungs = rungs
        self._index: dict[str, int] = {}
        for rung in rungs:
            known = len(self.windows)
            for window in rung:
                if self._index.setdefault(_content(window), known) == known:
                    self.windows.append(window)
                    known += 1
            self.new.append(known - sum(self.new))
        self._scores: list[WindowScore] = []

    def score(
        self, scorer: WindowScorer, *, names: Sequence[str], journal: Journal | None
    ) -> list[str]:
        """Score each window once; returns what the user should know.

        Raises:
            InvalidLossError: a loss is not finite; says at which rung and window.
        """
        try:
            if journal is None:
                self._scores = scorer(self.windows)
                return scorer.notices
            with journal:
                self._scores = scorer(self.windows, journal)
        except InvalidLossError as error:
            raise self._placed(error, names) from error
        return [*journal.notices, *scorer.notices]

    def of(self, rung: Sequence[Window]) -> list[WindowScore]:
        """The scores of a rung's windows, each with the page that it has there."""
        return [
            replace(self._scores[self._index[_content(window)]], page=window.page)
            for window in rung
        ]

    def finished(self, windows: Sequence[Window]) -> Mapping[int, WindowScore]:
        """As :meth:`of`, by index."""
        return dict(enumerate(self.of(windows)))

    def _placed(
        self, error: InvalidLossError, names: Sequence[str]
    ) -> MeasurementError:
        """The error in words of the first rung that has the window."""
        if error.window is None:
            return error
        wanted = _content(self.windows[error.window])
        for name, rung in zip(names, self._rungs, strict=True):
            for index, window in enumerate(rung):
                if _content(window) == wanted:
                    said = place(error.window, self.windows)
                    text = str(error).replace(said, place(index, rung))
                    return InvalidLossError.at(index, f"{name}: {text}")
        return error


def _content(window: Window) -> str:
    """Equal for windows that the model reads and scores alike, wherever they are."""
    return windows_digest([replace(window, page=None)])


def _units(state: State, scores: Sequence[WindowScore], words: int) -> dict[str, int]:
    """What perplexities are divided by."""
    tokens = state.cut.tokens(scores, state.window, state.stride)
    return {"tokens": tokens, "words": words}


def _by_the_method_itself(
    subject: Subject,
    end: End,
    corpus: Corpus,
    scored: _Scored,
    *,
    batch_size: BatchSize,
) -> Measurement:
    """The method's own measurement, of windows that are scored already."""

    def remembered(
        digest: str, environment: dict[str, Scalar], windows: Sequence[Window]
    ) -> Journal:
        return Journal(None, scored.finished(windows))

    return measure_loaded(
        subject,
        end.key,
        lambda name: corpus,
        batch_size=batch_size,
        open_journal=remembered,
    )


def _same(end: End, climbed: float, own: float) -> float:
    """The method's own number, which the ladder's end must be.

    Raises:
        MeasurementError: it is not.
    """
    if not math.isclose(climbed, own, rel_tol=_ALLOWED, abs_tol=0):
        raise MeasurementError(
            f"{end.key}: the ladder ends at {climbed!r} and the method itself says "
            f"{own!r}; please report this"
        )
    return own


def _rungs(
    states: Sequence[State],
    values: Sequence[float],
    rungs: Sequence[Sequence[Window]],
    new: Sequence[int],
) -> Iterator[Rung]:
    gap = math.log(values[-1]) - math.log(values[0])
    for number, (value, windows) in enumerate(zip(values, rungs, strict=True)):
        name, before, after = (
            _change(states[number - 1], states[number]) if number else (None,) * 3
        )
        change = math.log(value) - math.log(values[number - 1]) if number else 0.0
        yield Rung(
            changed=name,
            before=before,
            after=after,
            perplexity=value,
            log_change=change,
            # Plus 0: no step has a share of minus nothing.
            share=change / gap + 0.0 if gap else None,
            windows=len(windows),
            scored=sum(len(window.targets) for window in windows),
            new_windows=new[number],
        )
