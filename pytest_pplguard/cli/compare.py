"""``pplguard compare``: several models by both methods, and whose the gap is."""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

from msgspec import Struct

from ..baselines import baseline_paths, read_baseline, read_evidence
from ..comparison import Comparison, Number, Row
from ..errors import CheckpointError, ExecutorError, PplguardError, UsageError
from ..options import DEMO, DEMO_CHECKPOINTS, Options, Target
from ..protocols import USUAL_METHODS, check_key, get_protocol
from ..report import comparison_document, comparison_lines
from ..safetext import shell_join
from ..values import USUAL_REFERENCE, CheckpointEntry, Key, Scalar, near_matches
from .diff import named_entry
from .output import say, show_table, terminal_width, text_width, write_json

if TYPE_CHECKING:
    from ..checkpoints import Loaded, Located
    from ..measure import Store, WeightsReader

LONGEST_DEFAULT_WINDOW = 4096
DEMO_WINDOW = 256

_TOKEN, _WORD = USUAL_METHODS
_USUAL_TEXT = get_protocol(_TOKEN).default_text
_WORD_TASK = get_protocol(_WORD).default_text


class How(Struct, frozen=True):
    """What is read, in which windows: the same for all models of a comparison."""

    corpus: str
    window: int
    first: int | None = None

    @classmethod
    def of(cls, key: Key) -> How:
        """How a recorded key was measured."""
        return cls(get_protocol(key.method).corpus(key), key.window, key.first)

    def key(self, method: str) -> Key:
        """What one of the two methods measures."""
        return get_protocol(method).key_for(self.corpus, self.window, self.first)

    def __str__(self) -> str:
        return f"{self.key(_TOKEN)} and {self.key(_WORD)}"


class Model(Struct, frozen=True):
    """A checkpoint that is measured; ``located`` is None where that is elsewhere."""

    spec: str
    located: Located | None

    @property
    def name(self) -> str:
        """As it was typed."""
        return self.spec


class Baseline(Struct, frozen=True):
    """A recorded entry that stands in for a model; ``path`` is its file.

    ``base`` is the model that the file is about.
    ``named``: by its name, and not because all of the file was asked for.
    """

    path: Path
    entry: CheckpointEntry
    named: bool
    base: str

    @property
    def name(self) -> str:
        """``FILE/NAME``."""
        return f"{self.path.stem}/{self.entry.name}"

    @property
    def hows(self) -> dict[How, set[str]]:
        """How it was measured, and by which of the two methods."""
        found: dict[How, set[str]] = {}
        for key in map(Key.parse, self.entry.recorded):
            perplexity = key.method == _TOKEN or key.text == _WORD_TASK
            if key.method in USUAL_METHODS and perplexity:
                found.setdefault(How.of(key), set()).add(key.method)
        return found


Side = Model | Baseline


class Asked(Struct, frozen=True):
    """What the options say of text and windows; None for what nobody said."""

    corpus: str | None = None
    window: int | None = None
    first: int | None = None

    def fits(self, how: How) -> bool:
        """Whether ``how`` is what was asked for."""
        return (
            self.corpus in (None, how.corpus)
            and self.window in (None, how.window)
            and self.first == how.first
        )


def compare_models(
    specs: Sequence[str],
    options: Options,
    asked: Asked,
    *,
    folder: Path,
    json_path: str | None,
) -> bool:
    """Measure or look up every model by both methods; print a table and what it means.

    Returns whether all of them could be measured.

    Raises:
        UsageError: fewer than two models, one twice, no such baseline, or baselines
            that were not recorded in the way that is asked for.
        CorpusError: the text is not there.
        BaselineError: a baseline file, or its evidence, is broken.
    """
    sides = [side for spec in specs for side in _sides(spec, folder, options)]
    _check(sides)
    if tuple(specs) == (DEMO,) and asked.corpus is None:
        asked = Asked(DEMO, asked.window or DEMO_WINDOW, asked.first)
        say(f"the demo's own text, as with --corpus demo --window {asked.window}")
    how = _how(sides, asked, options)
    for method in USUAL_METHODS:
        check_key(how.key(method))
    baselines = [side for side in sides if isinstance(side, Baseline)]
    models = [side for side in sides if isinstance(side, Model)]
    rows = {side.name: _recorded_row(side, how) for side in baselines}
    measured = _Measured(models, options, how) if models else None
    if measured is not None:
        with closing(measured):
            rows |= {model.name: measured.row(model) for model in models}
    comparison = Comparison.of([rows[side.name] for side in sides])
    write_json(comparison_document(comparison), json_path)
    if json_path != "-":
        columns = terminal_width(sys.stdout)
        show_table(comparison_lines(comparison, width=text_width(), columns=columns))
    if measured is not None:
        measured.discard_journals()
    return comparison.complete


# ------------------------------------------------------------------- models, baselines


def _sides(spec: str, folder: Path, options: Options) -> Iterator[Side]:
    """The models or entries that an argument means.

    A path that exists and a name of the demo are models, else what the baselines hold.
    """
    if spec == DEMO:
        for name in DEMO_CHECKPOINTS:
            yield _model(name, options)
        return
    path = Path(os.path.expanduser(spec))
    if path.suffix in (".yaml", ".yml") and os.path.isfile(path):
        yield from _entries(path, spec)
        return
    if os.path.exists(path) or spec.startswith(f"{DEMO}/"):
        yield _model(spec, options)
        return
    stems = {file.stem: file for file in baseline_paths(folder)}
    if spec in stems:
        yield from _entries(stems[spec], spec)
        return
    found = named_entry(spec, folder)
    if found is None:
        if "/" not in spec and (near := near_matches(spec, stems)):
            raise UsageError(f"{spec} is no model and no file of {folder}{near}")
        yield _model(spec, options)
        return
    file, name = found
    content = read_baseline(file)
    entries = content.checkpoints
    if name not in entries:
        raise UsageError(
            f"{file} has no {name}{near_matches(name, entries)}; it has: "
            f"{', '.join(entries)}"
        )
    yield Baseline(file, entries[name], named=True, base=content.model)


def _model(spec: str, options: Options) -> Model:
    from ..checkpoints import locate

    if options.execution.sees_weights:  # nodes of a cluster may see what this does not
        return Model(spec, None)
    located = locate(
        spec,
        allow_pickle=options.allow_pickle,
        trust_remote_code=options.trust_remote_code,
    )
    return Model(spec, located)


def _entries(path: Path, spec: str) -> Iterator[Baseline]:
    """All entries of a file that have a number, the dense one first.

    ``spec`` is what was typed for the file.
    """
    content = read_baseline(path)
    found = [
        Baseline(path, entry, named=False, base=content.model)
        for entry in content.checkpoints.values()
    ]
    found = [baseline for baseline in found if baseline.hows]
    if not found:
        raise UsageError(
            f"{path} has no number by {_TOKEN} or {_WORD}: record one with "
            f"`pplguard update MODEL --checkpoint {path.stem}/NAME`"
        )
    _refuse_family(path, spec, [baseline.entry.name for baseline in found])
    yield from sorted(found, key=lambda one: one.entry.name != USUAL_REFERENCE)


def _refuse_family(path: Path, spec: str, names: Sequence[str]) -> None:
    """A file of several sizes: what pruning one did, the dense one of another hides.

    Raises:
        UsageError: no entry is the dense one, and several are called ``SIZE-dense``.
    """
    dense = [name for name in names if name.endswith(f"-{USUAL_REFERENCE}")]
    if USUAL_REFERENCE in names or len(dense) < 2:
        return
    size = dense[0].removesuffix(USUAL_REFERENCE)
    of_size = [name for name in names if name.startswith(size) and name != dense[0]]
    words = [f"{spec}/{name}" for name in (dense[0], *of_size)]
    raise UsageError(
        f"{path} has several dense models, {', '.join(dense)}, and models are compared "
        f"with one: name those of one size, `pplguard compare {shell_join(words)}`"
    )


def _check(sides: Sequence[Side]) -> None:
    names = Counter(side.name for side in sides)
    twice = [name for name, count in names.items() if count > 1]
    if twice:
        raise UsageError(f"{twice[0]} is given twice; give each model once")
    if len(sides) < 2:
        only = f"only {sides[0].name} is given" if sides else "nothing is given"
        raise UsageError(
            f"{only}: compare needs two models or more, the dense one first, or "
            "baselines in place of them: FILE, or FILE/NAME"
        )


# ------------------------------------------------------------------ text and windows


def _how(sides: list[Side], asked: Asked, options: Options) -> How:
    """One text and window for all: what was asked for, else what the baselines have.

    Of several ways in which baselines were recorded the one that most of them have,
    by both methods if possible; then WikiText-2, then the longest window. Entries that
    were not named and were recorded otherwise are left out of ``sides``.
    """
    models = [side for side in sides if isinstance(side, Model)]
    baselines = [side for side in sides if isinstance(side, Baseline)]
    if not baselines:
        return How(
            asked.corpus or _USUAL_TEXT,
            asked.window or _default_window(models, options),
            asked.first,
        )
    limit = None
    if models and asked.window is None:
        limit = _longest_window(models, options)
    counts: Counter[How] = Counter()
    for baseline in baselines:
        counts.update({how: len(by) for how, by in baseline.hows.items()})
    named = [baseline for baseline in baselines if baseline.named]
    fitting = [
        how
        for how in counts
        if asked.fits(how)
        and (limit is None or how.window <= limit)
        and all(how in baseline.hows for baseline in named)
    ]
    if not fitting:
        raise UsageError(_nothing_fits(baselines, asked, limit))
    how = max(
        fitting,
        key=lambda how: (counts[how], how.corpus == _USUAL_TEXT, how.window),
    )
    sides[:] = [side for side in sides if isinstance(side, Model) or how in side.hows]
    _check(sides)
    if models and asked.window is None:
        say(f"as the baselines were recorded: {how} (--window and --corpus change it)")
    return how


def _nothing_fits(
    baselines: Iterable[Baseline], asked: Asked, limit: int | None
) -> str:
    wishes = [
        f"corpus {asked.corpus}" if asked.corpus else "",
        f"window {asked.window}" if asked.window else "",
        f"the first {asked.first}" if asked.first else "",
        f"no window beyond the model's {limit}" if limit else "",
    ]
    wished = ", ".join(filter(None, wishes))
    recorded = [
        f"{baseline.name}: {', '.join(baseline.entry.recorded) or 'nothing'}"
        for baseline in baselines
    ]
    return (
        "no baseline that all of these models could be compared by"
        + (f" (asked for: {wished})" if wished else "")
        + f"; recorded are {'; '.join(recorded)}"
    )


def _default_window(models: Sequence[Model], options: Options) -> int:
    longest = _longest_window(models, options)
    window = min(longest, LONGEST_DEFAULT_WINDOW)
    say(
        f"window {window} for all models (the shortest maximum is {longest}; --window "
        "changes it)"
    )
    return window


def _longest_window(models: Sequence[Model], options: Options) -> int:
    """The longest window that every model was made for.

    Of those that are measured elsewhere, by a config that is here; a window that is too
    long for the one there is refused when it is measured.
    """
    limits = {}
    for model in models:
        limit = _positions(model, options)
        if limit is None:
            raise UsageError(
                f"{model.name}: its config has no max_position_embeddings; give "
                "--window TOKENS"
            )
        limits[model.name] = limit
    return min(limits.values())


def _positions(model: Model, options: Options) -> int | None:
    from ..checkpoints import locate, positions

    trust = options.trust_remote_code
    if model.located is not None:
        return positions(model.located, trust_remote_code=trust)
    try:
        here = locate(model.spec, trust_remote_code=trust, config_only=True)
    except CheckpointError as error:
        raise UsageError(
            f"{model.name}: how long its windows may be is read from a config that is "
            f"not on this machine ({error}); give --window TOKENS"
        ) from error
    return positions(here, trust_remote_code=trust)


# ------------------------------------------------------------------------------- rows


def _recorded_row(baseline: Baseline, how: How) -> Row:
    entry = baseline.entry
    sparsity = entry.fingerprint
    counted = sparsity is not None and sparsity.linear > 0
    return Row(
        name=baseline.name,
        token=_recorded_number(baseline, how.key(_TOKEN)),
        word=_recorded_number(baseline, how.key(_WORD)),
        sparsity=sparsity.share if sparsity is not None and counted else None,
        sparsity_source=f"recorded {sparsity.date}"
        if sparsity is not None and counted
        else "",
        base=baseline.base,
    )


def _recorded_number(baseline: Baseline, key: Key) -> Number | None:
    recorded = baseline.entry.recorded.get(str(key))
    if recorded is None:
        return None
    protocol: Mapping[str, Scalar] = {}
    if recorded.evidence is not None:  # a published value has none
        where = f"{baseline.name}, {key}"
        evidence = read_evidence(baseline.path.parent, recorded, where=where)
        protocol = evidence.protocol
    return Number.recorded(str(key), recorded, dict(protocol))


class _Measured:
    """Models that are measured now, one after the other, each loaded once."""

    def __init__(self, models: Sequence[Model], options: Options, how: How) -> None:
        from ..corpora import open_corpus
        from ..executors import make_executor
        from ..measure import (
            SameFiles,
            Store,
            journals_of,
            load_target,
            locate_target,
        )
        from .measure import watching

        self._options, self._how = options, how
        self._told: set[str] = set()
        self._same = SameFiles(allow_pickle=options.allow_pickle)

        def load(target: Target) -> Loaded:
            located = locate_target(target, options)
            with self._same.loading(located):
                return load_target(target, options, tell=self._tell, located=located)

        self._store: Store = Store(
            {model.name: Target(model.name, model.spec) for model in models},
            load=load,
            open_corpus=lambda corpus: open_corpus(corpus, options.corpora),
            watch=watching,
            batch_size=options.batch_size,
            compile=options.compile,
            threads=options.threads,
            journals=journals_of(options),
            executor=make_executor(
                options, tell=self._tell, names=[model.name for model in models]
            ),
        )
        self._store.corpus(how.corpus)  # without a text there is nothing to load for

    def _tell(self, *notices: str) -> None:
        """Say what holds for several models, such as the device, once."""
        new = [notice for notice in notices if notice not in self._told]
        self._told.update(new)
        say(*new)

    def row(self, model: Model) -> Row:
        """One model by both methods; what fails is said in its row."""
        numbers: dict[str, Number] = {}
        failures: list[str] = []
        for method in USUAL_METHODS:
            key = self._how.key(method)
            try:
                measured = self._store.measurement(model.name, key)
            except PplguardError as error:
                failures.append(f"{key}: {error}")
                continue
            self._tell(*measured.notices)
            numbers[method] = Number.measured(measured)
        sparsity, note = self._sparsity(model) if numbers else (None, "")
        return Row(
            name=model.name,
            token=numbers.get(_TOKEN),
            word=numbers.get(_WORD),
            sparsity=sparsity,
            sparsity_source="counted now" if sparsity is not None else "",
            failures=tuple(dict.fromkeys(failures)),
            notes=(note,) if note else (),
        )

    def _sparsity(self, model: Model) -> tuple[float | None, str]:
        """The share of zeros, or why it cannot be counted."""
        try:
            return self._weights(model).sparsity().fraction, ""
        except (CheckpointError, ExecutorError) as error:
            return None, f"zeros not counted: {error}"

    def _weights(self, model: Model) -> WeightsReader:
        from ..measure import StoredWeights

        if model.located is None:
            return self._store.weights(model.name)
        return StoredWeights(
            model.located,
            model=lambda: self._store.loaded(model.name).model,
            allow_pickle=self._options.allow_pickle,
            same=self._same,
        )

    def close(self) -> None:
        """Give back what it holds, here and elsewhere."""
        self._store.close()

    def discard_journals(self) -> None:
        """The numbers have reached the user: a further run measures anew."""
        from ..journal import discard

        for journal in self._store.take_complete_journals():
            discard(journal)
