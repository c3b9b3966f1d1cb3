"""Takes measurements of unchanged checkpoints from the cache, and keeps new ones there.

A measurement comes from the cache if its whole identity is the asked one's and its
numbers follow from its own evidence. What is not sure to be the same in another run is
never kept: see :meth:`Results.keep`.
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import datetime
from typing import TYPE_CHECKING, Any

import msgspec
from msgspec import UNSET, Raw, Struct
from msgspec.structs import replace

from ..cache import RESULT, WINDOWS, Cache, Wrong
from ..checkpoints import Contents, Loaded, Located, contents, files_state
from ..corpora import Corpus, rows_digest
from ..errors import PplguardError
from ..options import Options, Target
from ..protocols import LmEval, get_protocol
from ..safetext import printable
from ..values import Key, Measurement, Scalar, Window, WindowScore
from .environment import device_name
from .identity import Place, identity, now, place_of, variables, versions
from .texts import text_notice

if TYPE_CHECKING:
    from .run import CutWindows

_SAME = 1e-12
"""Relative: evidence is exact, and sums of it differ by their order alone."""

_MOST_IDS = 1 << 31
"""More than any vocabulary; the digest of windows has four bytes for each."""

_OWN = "pytest_pplguard.protocols."


class _Asked(Struct, frozen=True):
    """What was asked for before it was measured; ``text`` is what is tokenised."""

    identity: dict[str, Any]
    text: dict[str, Any]
    place: Place
    state: object
    corpus_digest: str


class Results:
    """The measurements that a process takes from the cache and keeps in it.

    Args:
        cache: where they are.
        options: what the user asked for; with ``update`` nothing is taken.
        locate: finds the files of a checkpoint.
        allow_keys: tensors that a checkpoint's model need not have.
        tell: called with notices for the user.
        worker: number of the xdist worker, None outside one.
        threads: that torch will be told to use; None: it is left alone.
    """

    def __init__(
        self,
        cache: Cache,
        options: Options,
        *,
        locate: Callable[[str], Located],
        allow_keys: Callable[[str], tuple[str, ...]],
        tell: Callable[[str], None],
        worker: int | None = None,
        threads: int | None = None,
    ) -> None:
        self._cache = cache
        self._options = options
        self._locate = locate
        self._allow_keys = allow_keys
        self._tell = tell
        self._worker = worker
        self._threads = threads
        self._contents: dict[object, Contents] = {}
        self._loaded: dict[str, object] = {}
        self._asked: dict[tuple[str, Key], _Asked] = {}

    def loads(self, target: Target) -> None:
        """Called right before a checkpoint is loaded: notes what its files are.

        A model stays in memory over several keys, and its files may be replaced
        between two of them: what is measured then is of the files before.
        """
        self._loaded.pop(target.name, None)
        with suppress(PplguardError):  # loading it says so
            self._loaded[target.name] = files_state(self._locate(target.name))

    def recall(
        self, target: Target, key: Key, open_corpus: Callable[[str], Corpus]
    ) -> Measurement | None:
        """The measurement of an earlier run, ``cached`` set; None: measure it.

        Raises:
            CorpusError: the text is not there.
        """
        why = self._left_out(key)
        if why:
            self._tell(f"results are not cached {why}")
            return None
        corpus = open_corpus(get_protocol(key.method).corpus(key))
        try:
            asked = self._ask(target, key, corpus)
        except PplguardError:  # loading it says so
            return None
        self._asked[target.name, key] = asked
        if self._options.update != "no":
            return None
        found = self._cache.get(
            RESULT,
            asked.identity,
            functools.partial(_read, key, corpus, asked.place),
            label=f"{target.name} {key}",
        )
        if found is not None:  # as loading would have
            for notice in asked.place.notices:
                self._tell(notice)
        return found

    def cut(self, target: Target, key: Key) -> CutWindows | None:
        """Gives the windows of what :meth:`recall` did not have, cut once for all runs.

        None where they are to be cut anew: a baseline is evidence, its windows too. A
        verdict holds their digest to the baseline's, wherever they come from.
        """
        asked = self._asked.get((target.name, key))
        if asked is None or self._options.update != "no":
            return None
        label = f"{target.name} {key}"

        def windows(
            texts: Sequence[str], anew: Callable[[], list[Window]]
        ) -> list[Window]:
            about = asked.text | {"texts": rows_digest(texts)}
            read = functools.partial(_read_windows, len(texts))
            known = self._cache.get(WINDOWS, about, read, label=label)
            if known is not None:
                return known
            found = anew()
            # What others look up must be what the files give, and nothing else.
            if not self._were_changed(target, asked):
                self._cache.put(WINDOWS, about, found, label=label)
            return found

        return windows

    def keep(
        self, target: Target, key: Key, measured: Measurement, loaded: Loaded
    ) -> None:
        """Keep what :meth:`recall` did not have.

        Only if it is of the whole text and of a model that is its files and nothing
        else, and if nothing that decides has changed while it was measured.
        """
        asked = self._asked.pop((target.name, key), None)
        if asked is None or measured.early is not None or not loaded.from_files:
            return
        place = asked.place
        label = f"{target.name} {key}"
        try:
            changed = list(self._changed(target, asked, measured))
            problem = _problem(measured, key, asked.corpus_digest, place)
        except PplguardError as error:
            changed, problem = [str(error)], ""
        if changed or problem:
            self._tell(
                f"{label}: not cached: {', '.join([*changed, problem]).strip(', ')}"
            )
            return
        # What was remarkable about the checkpoint still will be. Other notices are of
        # this run: that it went on from a journal, say.
        content = replace(measured, notices=loaded.notices)
        self._cache.put(
            RESULT, asked.identity, content, label=f"{label} ({target.spec})"
        )

    def _left_out(self, key: Key) -> str:
        """Why nothing measured by ``key`` is kept, as the end of a sentence."""
        protocol = get_protocol(key.method)
        if protocol.needs_reference:
            return f"for {key.method}, which compares two checkpoints"
        if protocol.runs_task(key):
            return "for tasks of lm-eval, whose data and code cannot be told beforehand"
        if not type(protocol).__module__.startswith(_OWN):
            return f"for the method {key.method}, which another package brings"
        if self._options.trust_remote_code:
            return "with --ppl-trust-remote-code: such code may do anything"
        if "/" in (self._options.attention or ""):
            return f"with attention {self._options.attention}, which is from the Hub"
        return ""

    def _ask(self, target: Target, key: Key, corpus: Corpus) -> _Asked:
        located = self._locate(target.name)
        state = files_state(located)
        if (target, state) not in self._contents:
            self._contents[target, state] = contents(
                located, allow_pickle=self._options.allow_pickle
            )
        place = place_of(located, self._options, worker=self._worker)
        about = identity(
            located,
            key,
            corpus,
            self._options,
            files=msgspec.to_builtins(self._contents[target, state]),
            place=place,
            allow_keys=self._allow_keys(target.name),
            threads=self._threads,
            cache=self._cache,
        )
        text = {name: about[name] for name in ("key", "corpus", "versions", "code")}
        text["tokenizer"] = self._contents[target, state].texts
        return _Asked(about, text, place, state, corpus.digest)

    def _were_changed(self, target: Target, asked: _Asked) -> bool:
        """Whether the files are others than when they were loaded, or asked about."""
        state = files_state(self._locate(target.name))
        return not state == asked.state == self._loaded.get(target.name)

    def _changed(
        self, target: Target, asked: _Asked, measured: Measurement
    ) -> list[str]:
        """What is not as it was before the checkpoint was loaded."""
        found = []
        if self._were_changed(target, asked):
            found.append("the checkpoint's files were changed meanwhile")
        kernels: dict[str, Scalar] = asked.identity["kernels"]
        different = [
            name
            for name, value in now(asked.place.device).items()
            if kernels.get(name) != value
        ]
        if different:
            found.append(f"torch was changed meanwhile ({', '.join(different)})")
        if variables() != asked.identity["variables"]:
            found.append("environment variables were changed meanwhile")
        attention, size = self._options.attention, self._options.batch_size
        for name, wanted in (("attention", attention), ("batch_size", size)):
            used = measured.environment.get(name)
            if wanted not in (None, "auto") and used != wanted:
                found.append(f"{name} is {used}, and {wanted} was asked for")
        return found


def _read(
    key: Key, corpus: Corpus, place: Place, content: Raw, made: datetime
) -> Measurement:
    """A measurement that follows from its evidence.

    Raises:
        Wrong: it does not.
    """
    measured = msgspec.json.decode(content, type=Measurement)
    try:
        problem = _not_the_text(measured, key, corpus)
        problem = problem or _problem(measured, key, corpus.digest, place)
    except (PplguardError, ArithmeticError) as error:
        raise Wrong(f"is not sound ({error})") from error
    if problem:  # in words of the file
        raise Wrong(f"is not sound ({printable(problem)})")
    return replace(
        measured,
        cached=f"{made:%Y-%m-%dT%H:%MZ}",
        notices=(*text_notice(corpus), *map(printable, measured.notices)),
    )


def _read_windows(pages: int, content: Raw, _: datetime) -> list[Window]:
    """Windows that can be scored; of ``pages`` pages, 0 where they run across them.

    Raises:
        Wrong: they cannot.
    """
    windows = msgspec.json.decode(content, type=list[Window])
    if not windows or not all(_can_be_scored(window, pages) for window in windows):
        raise Wrong("are none that can be scored")
    return windows


def _can_be_scored(window: Window, pages: int) -> bool:
    end = window.start + len(window.targets)
    return (
        0 <= window.start < end <= len(window.ids)
        and all(0 <= id_ < _MOST_IDS for id_ in (*window.ids, *window.targets))
        and (pages == 0 or (window.page is not None and 0 <= window.page < pages))
    )


def _problem(measured: Measurement, key: Key, corpus_digest: str, place: Place) -> str:
    """What is wrong with a measurement, in words; empty where nothing is.

    Raises:
        PplguardError: no metric follows from its evidence.
    """
    protocol = get_protocol(key.method)
    scores = measured.evidence
    environment = measured.environment
    if measured.key != str(key):
        return f"it is of {measured.key}"
    of_others = measured.documents or measured.stderr or measured.higher_is_better
    if measured.early is not None or measured.cached or of_others:
        return "it is no whole measurement of a text"
    if measured.corpus_digest != corpus_digest:
        return "it is of another text"
    for name, known in (
        ("dtype", place.dtype),
        ("device", place.device.partition(":")[0]),
        ("device_name", device_name(place.device)),
        *((name, versions().get(name)) for name in ("torch", "transformers")),
    ):
        if environment.get(name) != known:
            return f"its {name} is {environment.get(name)}"
    if not scores or len(scores) != measured.windows:
        return f"it has evidence of {len(scores)} of {measured.windows} windows"
    if not all(_is_sound(score, key) for score in scores):
        return "its evidence holds a loss that cannot be"
    tokens = protocol.units(scores, key)
    if not isinstance(protocol, LmEval) and dict(measured.units) != tokens:
        return "its units do not follow from its evidence"
    if not all(count > 0 for count in measured.units.values()):
        return "its units cannot be"
    again = protocol.recompute(scores, measured.units)
    if again.keys() != measured.metrics.keys():
        return f"it holds {', '.join(measured.metrics) or 'no metric'}"
    for name, value in measured.metrics.items():
        if not math.isfinite(value) or not math.isclose(
            value, again[name], rel_tol=_SAME, abs_tol=0
        ):
            return f"{name} is {value!r}, and {again[name]!r} by its evidence"
    return ""


def _is_sound(score: WindowScore, key: Key) -> bool:
    return (
        math.isfinite(score.nll_sum)
        and score.nll_sum >= 0
        and 0 < score.scored <= key.window
        and score.kl_sum is UNSET
        and score.greedy is UNSET
    )


def _not_the_text(measured: Measurement, key: Key, corpus: Corpus) -> str:
    """Whether words, bytes and pages are the text's, as lm-eval's wikitext counts."""
    protocol = get_protocol(key.method)
    if not isinstance(protocol, LmEval):
        return ""
    pages = protocol.pages(corpus, key)
    counted = {
        "words": sum(len(re.split(r"\s+", page)) for page in pages),
        "bytes": sum(len(page.encode()) for page in pages),
    }
    if dict(measured.units) != counted:
        return "its units are not the text's"
    found = [-1 if score.page is None else score.page for score in measured.evidence]
    if found != sorted(found) or not set(found) <= set(range(len(pages))):
        return "its windows are of pages that the text has not"
    return ""
