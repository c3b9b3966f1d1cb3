"""The values that cross rooms, and their wire form.

All are frozen :class:`msgspec.Struct` types; ``msgspec.to_builtins`` of any of them is
plain JSON data (no NaN, no path, no enum), which is what travels on test reports, into
evidence files and into JSON reports.
"""

from __future__ import annotations

import difflib
import enum
import hashlib
import math
import re
from collections.abc import Iterable
from typing import Any, Literal

from msgspec import UNSET, Struct, UnsetType, field

from .errors import KeySyntaxError
from .tensornames import is_derived, is_embedding, is_head

SCHEMA = 1
"""Version of every file that this package writes."""

MetricName = str
"""``token_perplexity``, ``word_perplexity``, ``byte_perplexity``, ``bits_per_byte``;
``kl_divergence`` (nats per token), ``top1_agreement`` (a share)."""

HIGHER_IS_BETTER = frozenset({"top1_agreement"})
"""Metrics of the window methods of which more is better; of all others, less. Of a task
of lm-eval the measurement says it, see :meth:`Measurement.is_higher_better`."""

AGGREGATION = "aggregation of "
"""Opens the names of a protocol's properties that say how a metric of a task follows
from its documents: ``mean``, or ``mean, tasks alike`` of a group."""

ALIKE = "tasks alike"
"""How a group aggregates that gives each of its tasks the same weight."""

Scalar = str | int | float | bool | None

# --------------------------------------------------------------------- what to measure

_KEY = re.compile(
    r"(?P<method>[A-Za-z][\w.-]*)/(?P<text>[A-Za-z][\w.-]*)"
    r"(?:\+(?P<corpus>[A-Za-z][\w.-]*))?"
    r":(?P<window>[1-9][0-9]*)"
    r"(?::stride(?P<stride>[1-9][0-9]*))?"
    r"(?::shots(?P<shots>0|[1-9][0-9]*))?"
    r"(?::first(?P<first>[1-9][0-9]*))?",
    re.ASCII,
)
_NAME = re.compile(r"[A-Za-z0-9][\w.+-]*", re.ASCII)


class Key(Struct, frozen=True, order=True):
    """What a measurement measures.

    ``METHOD/TEXT[+CORPUS]:WINDOW[:strideS][:shotsK][:firstN]``, where TEXT may be a
    task of lm-eval. ``window`` and ``stride`` are in tokens; ``shots`` counts the
    solved examples before each question of a task, None for as many as the task itself
    says; ``first`` counts windows, or pages where the method works page by page, or a
    task's documents (lm-eval).
    """

    method: str
    text: str
    window: int
    corpus: str | None = None
    stride: int | None = None
    first: int | None = None
    shots: int | None = None

    @classmethod
    def parse(cls, text: str) -> Key:
        """Read a key.

        Raises:
            KeySyntaxError: ``text`` is no key; the message says what one looks like.
        """
        match = _KEY.fullmatch(text)
        if match is None:
            raise KeySyntaxError(
                f"{text!r} is not a measurement key: expected "
                "METHOD/TEXT[+CORPUS]:WINDOW[:strideS][:shotsK][:firstN], "
                "for example wanda/wikitext2:4096 or lm-eval/wikitext+demo:256"
            )
        number = {
            name: int(match[name]) if match[name] else None
            for name in ("stride", "shots", "first")
        }
        return cls(
            method=match["method"],
            text=match["text"],
            window=int(match["window"]),
            corpus=match["corpus"],
            stride=number["stride"],
            first=number["first"],
            shots=number["shots"],
        )

    def __str__(self) -> str:
        return (
            f"{self.method}/{self.text}"
            + (f"+{self.corpus}" if self.corpus else "")
            + f":{self.window}"
            + (f":stride{self.stride}" if self.stride else "")
            + (f":shots{self.shots}" if self.shots is not None else "")
            + (f":first{self.first}" if self.first else "")
        )


class Recipe(Struct, frozen=True):
    """How the rows of a text become windows of one token stream.

    ``joiner`` stands between rows, and ``text`` says in words what is read. No more
    tokens are read than fill ``max_windows`` windows, None for all that there are.
    """

    text: str = "all rows joined by a blank line"
    joiner: str = "\n\n"
    max_windows: int | None = None


WIKITEXT_RECIPE = Recipe()
"""How the Wanda code reads WikiText-2; any text without a recipe of its own, too."""


def is_entry_name(text: str) -> bool:
    """Whether ``text`` may name a baseline file's stem or one of its checkpoints."""
    return _NAME.fullmatch(text) is not None


def near_matches(word: str, known: Iterable[str]) -> str:
    """`` (did you mean 'wanda'?)`` where something known is close, else ``""``."""
    close = difflib.get_close_matches(word, list(known), n=2)
    return f" (did you mean {' or '.join(map(repr, close))}?)" if close else ""


# ------------------------------------------------------------------ what was measured


class Window(Struct, frozen=True, gc=False):
    """Token ids that the model reads at once, and the tokens that are scored.

    The model reads ``ids``; its prediction at position ``start + i`` is scored against
    ``targets[i]``. Both are spelled out because the methods differ in it: the Wanda
    code reads its last target too, lm-eval does not. ``page`` is the index of the page
    that the window is cut from, None where windows run across pages.
    """

    ids: tuple[int, ...]
    targets: tuple[int, ...]
    start: int = 0
    page: int | None = None


class WindowScore(Struct, frozen=True, gc=False):
    """Evidence of one window: summed negative log-likelihood (nats) of its tokens.

    Where a reference model read the window too (``kl``): ``kl_sum`` is the sum of
    KL(P_reference || P_model) in nats, ``top1`` the number of positions at which both
    think the same token most likely, ``reference_nll`` the reference's own ``nll_sum``.

    Where the window is an answer of a task (``lm-eval``): ``greedy`` says whether each
    of its tokens is the one that the model thinks most likely.
    """

    nll_sum: float
    scored: int
    page: int | None = None
    kl_sum: float | UnsetType = UNSET
    top1: int | UnsetType = UNSET
    reference_nll: float | UnsetType = UNSET
    greedy: bool | UnsetType = UNSET


class DocumentResult(Struct, frozen=True):
    """What a task of lm-eval made of one of its documents.

    ``task`` is its name (a group has several), ``document`` lm-eval's ``doc_id``.
    ``values`` holds, for each metric, what the task's ``process_results`` gave: a
    number where the metric is a mean over documents, else what the metric's aggregation
    takes, as JSON (a pair, for example).
    """

    task: str
    document: int
    values: dict[MetricName, Any]


class WindowPlace(Struct, frozen=True):
    """Where one of ``windows`` windows is in the text, for people.

    ``page`` (from 0) is where it begins, None where that is not known; ``title`` is
    that page's first line. ``words`` are the first ones of the window.
    """

    windows: int
    page: int | None = None
    title: str = ""
    words: str = ""


class EarlyStop(Struct, frozen=True):
    """Why a measurement ended before its last window: verdicts were known.

    ``seen`` of the ``windows`` were scored, in an order that is fixed by their digest.
    ``cap`` (nats a token) is what no unseen window was assumed to have moved by, None
    where nothing was assumed; ``error`` bounds the probability that the whole run would
    have said something else. ``decided`` holds the outcome of each metric's gate.
    """

    seen: int
    windows: int
    cap: float | None
    error: float
    decided: dict[MetricName, Literal["within", "regressed", "improved"]]


class Measurement(Struct, frozen=True):
    """One checkpoint measured by one key: values, and everything they rest on.

    ``protocol`` holds the properties that decide whether two measurements are
    comparable (window, first token, tail, ...), ``environment`` what may move a number
    a little (versions, device, dtype). ``seconds`` is wall time without loading, and
    without what an interrupted run had spent.

    Of a task of lm-eval: ``evidence`` has a window for each answer that was scored,
    ``documents`` what came of each document, ``stderr`` the standard error of those
    metrics for which lm-eval gives one, and ``higher_is_better`` names the metrics of
    which that is true.

    ``cached`` is the time at which a measurement from the cache was made (ISO 8601, to
    the minute), empty for one of this run. ``early`` says of one that was stopped why;
    its ``metrics`` are estimates, its ``evidence`` what was scored, in that order, and
    it is recorded nowhere.
    """

    key: str
    metrics: dict[MetricName, float]
    units: dict[str, int]
    windows: int
    windows_digest: str
    corpus_digest: str
    protocol: dict[str, Scalar]
    evidence: tuple[WindowScore, ...]
    environment: dict[str, Scalar]
    seconds: float
    notices: tuple[str, ...] = ()
    documents: tuple[DocumentResult, ...] = ()
    stderr: dict[MetricName, float] = {}
    higher_is_better: tuple[MetricName, ...] = ()
    cached: str = ""
    early: EarlyStop | None = None

    def is_higher_better(self, metric: MetricName) -> bool:
        """Whether more of ``metric`` is better."""
        return metric in HIGHER_IS_BETTER or metric in self.higher_is_better

    @property
    def quoted(self) -> MetricName:
        """The metric that people quote: ``acc_norm``, else ``acc``, else the first."""
        known = (name for name in ("acc_norm", "acc") if name in self.metrics)
        return next(known, next(iter(self.metrics)))


class Rung(Struct, frozen=True, kw_only=True):
    """One step of a :class:`Ladder`: what changed, and the perplexity after it.

    The property ``changed`` went from ``before`` to ``after``; the first rung has none:
    it is the first method itself. ``log_change`` is in nats per unit of the perplexity,
    ``share`` its part of the ladder's whole change, None where both ends are equal.
    ``windows`` and ``scored`` count windows, and the tokens scored in them;
    ``new_windows`` of the windows are in no rung before. Without any, the step is
    arithmetic on what was measured already.
    """

    changed: str | None = None
    before: Scalar = None
    after: Scalar = None
    perplexity: float
    log_change: float
    share: float | None
    windows: int
    scored: int
    new_windows: int

    @property
    def measured(self) -> bool:
        """Whether the model had to read something for it."""
        return self.new_windows > 0


class Ladder(Struct, frozen=True, kw_only=True):
    """The way from one method's number to another's, one property at a time.

    ``start`` and ``goal`` are keys, with the metric that each is quoted by. ``pages``
    counts those of the text and ``words`` theirs, as lm-eval counts them; ``limit`` is
    the number of pages that the text was cut to, None where it is whole. ``recipe``
    says how its rows are read.
    """

    start: str
    start_metric: MetricName
    goal: str
    goal_metric: MetricName
    rungs: tuple[Rung, ...]
    corpus: str
    corpus_digest: str
    pages: int
    words: int
    limit: int | None
    recipe: Recipe
    environment: dict[str, Scalar]
    seconds: float
    notices: tuple[str, ...] = ()

    @property
    def gap(self) -> float:
        """Logarithm of the last perplexity over the first, in nats."""
        return math.log(self.rungs[-1].perplexity) - math.log(self.rungs[0].perplexity)


class TensorFacts(Struct, frozen=True, gc=False):
    """What is known of one tensor of a checkpoint.

    ``dtype`` is the stored one, as safetensors names it. ``values`` is a digest of the
    numbers and not of their bytes: the same in any dtype that holds them exactly, with
    -0.0 as 0.0. ``mask`` is a digest of where the zeros are. ``sum``, ``norm``
    (Euclidean) and ``peak`` (largest magnitude) are of the finite values, roughly, in
    float32. ``bad`` counts NaN, infinity, and what float32 takes for it. ``parity`` is
    the exclusive or of the numbers' bits as float32: the same in any order. Of integers
    and packed elements only ``values`` is known, a digest of their bytes.
    """

    dtype: str
    shape: tuple[int, ...]
    values: str
    zeros: int = 0
    mask: str = ""
    sum: float = 0.0
    norm: float = 0.0
    peak: float = 0.0
    bad: int = 0
    parity: int = 0

    @property
    def size(self) -> int:
        """How many elements it has."""
        return math.prod(self.shape)

    @property
    def share(self) -> float:
        """Share of zeros."""
        return self.zeros / self.size if self.size else 0.0


class Fingerprint(Struct, frozen=True):
    """What a checkpoint is: its tensors, and what else decides its number.

    ``config`` holds the fields of the config that decide something, by their dotted
    names; ``tokenizer`` a digest for each part of the tokenizer. ``linear`` names the
    tensors in which sparsity is counted.
    """

    tensors: dict[str, TensorFacts]
    linear: tuple[str, ...] = ()
    config: dict[str, Any] = {}
    tokenizer: dict[str, str] = {}

    @property
    def weights(self) -> dict[str, TensorFacts]:
        """The tensors that decide something.

        Left out are buffers that models compute themselves and old checkpoints hold,
        and a head that repeats the embedding it is tied to.
        """
        embeddings = {
            facts.values for name, facts in self.tensors.items() if is_embedding(name)
        }
        return {
            name: facts
            for name, facts in self.tensors.items()
            if not is_derived(name)
            and not (is_head(name) and facts.values in embeddings)
        }

    @property
    def digest(self) -> str:
        """``sha256:`` over names, shapes and values of :attr:`weights`.

        Two checkpoints with one digest hold the same weights, whatever their dtypes,
        shards and order.
        """
        lines = (
            f"{name} {list(facts.shape)} {facts.values}\n"
            for name, facts in sorted(self.weights.items())
        )
        return f"sha256:{hashlib.sha256(''.join(lines).encode()).hexdigest()}"

    @property
    def broken(self) -> tuple[str, ...]:
        """Those of :attr:`weights` that hold NaN or infinity."""
        return tuple(name for name, facts in self.weights.items() if facts.bad)

    @property
    def zeros(self) -> int:
        """Zeros in the tensors in which sparsity is counted."""
        return sum(self.tensors[name].zeros for name in self.linear)

    @property
    def counted(self) -> int:
        """Elements of the tensors in which sparsity is counted."""
        return sum(self.tensors[name].size for name in self.linear)


# ------------------------------------------------------------------------- baselines


class Source(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """Where a recorded value comes from.

    A published value has a ``reference`` and was printed with ``digits`` decimals;
    there is no evidence for it.
    """

    kind: Literal["measured", "published"]
    reference: str | None = None
    digits: int | None = None


class Recorded(Struct, frozen=True):
    """A baseline: what ``recorded.<key>`` of a baseline file holds.

    ``first`` maps each metric to its first recorded value and holds ``date``.
    ``published`` keeps, after a published value was measured, what had been published:
    metrics plus ``reference`` and ``digits``. ``weights_digest`` is the
    :attr:`Fingerprint.digest` of what was measured. ``stderr`` is the standard error of
    those metrics that have one, see :class:`Measurement`.
    """

    metrics: dict[MetricName, float]
    source: Source
    windows: int | None = None
    units: dict[str, int] = {}
    windows_digest: str | None = None
    corpus_digest: str | None = None
    weights_digest: str | None = None
    evidence: str | None = None
    first: dict[str, Scalar] = {}
    published: dict[str, Scalar] = {}
    environment: dict[str, Scalar] = {}
    stderr: dict[MetricName, float] = {}


class RecordedFingerprint(Struct, frozen=True, forbid_unknown_fields=True):
    """What ``recorded.fingerprint`` of a baseline file holds.

    ``digest`` is :attr:`Fingerprint.digest`, ``tensors`` how many tensors there are,
    ``linear`` in how many of them sparsity is counted; these have ``weights`` elements,
    ``zeros`` of which are zero. ``evidence`` is the file with the whole
    :class:`Fingerprint`, ``date`` the day on which these weights were recorded first.
    """

    digest: str
    tensors: int
    linear: int
    weights: int
    zeros: int
    evidence: str
    date: str

    @property
    def share(self) -> float:
        """Share of zeros where sparsity is counted."""
        return self.zeros / self.weights if self.weights else 0.0


class Tolerance(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """How far a metric may be from its baseline; every bound that is written holds.

    ``rel``: within ``[baseline/(1+rel), baseline*(1+rel)]``. ``abs``: within
    ``baseline -+ abs``. ``max``: never above, whatever the baseline; ``min``: never
    below. ``direction: no-worse`` drops what ``rel`` and ``abs`` say on the better
    side: the lower bound, for a metric of which more is better the upper one.

    ``sigma``: within so many standard errors of the difference from the baseline, by
    itself or with ``max``, ``min`` and ``direction``: it is another unit than ``rel``
    and ``abs``. ``direction`` works on it as on these.

    ``drift`` bounds, in nats a token, how far the predictions are from the recorded
    ones: a perplexity can stay while they move. It is estimated from the windows'
    losses, see :func:`pytest_pplguard.gates.paired`.
    """

    rel: float | None = None
    abs: float | None = None
    max: float | None = None
    min: float | None = None
    drift: float | None = None
    sigma: float | None = None
    direction: Literal["both", "no-worse"] = "both"


def relative_change(value: float, base: float) -> float | None:
    """0.031 for +3.1 %, and more than 0 where it rose; None from 0."""
    return (
        (value - base) / abs(base) if base < 0 else value / base - 1 if base else None
    )


FEWEST_WINDOWS = 9
"""With fewer, one window is no small part of the text, and a variance over windows is
known to no better than a factor: its relative standard error is ``sqrt(2 / (W - 1))``,
a half for nine."""

USUAL_REFERENCE = "dense"
"""The entry of a baseline file that ``kl`` compares with where none is named."""


def divergence_tolerance(metric: MetricName, baseline: float) -> Tolerance | None:
    """Where nothing is written for a metric of ``kl``; None for any other metric.

    docs/divergence.md says why: half precision moves small divergences by a part in ten
    thousand of a nat, so that a share of them would be too little.
    """
    if metric == "kl_divergence":
        return Tolerance(rel=0.02) if baseline >= 0.005 else Tolerance(abs=0.0001)
    return Tolerance(abs=0.005) if metric == "top1_agreement" else None


def task_tolerance(metric: MetricName, measured: Measurement) -> Tolerance | None:
    """Where nothing is written for a metric of a task; None for any other metric.

    Answers are right or wrong, so that an accuracy is as sure as its documents are
    many. A perplexity or a Brier score moves with every document: there rounding alone
    can be many standard errors.
    """
    if not measured.documents:
        return None
    if not measured.is_higher_better(metric) and measured.metrics[metric] > 0:
        return None
    return Tolerance(sigma=2.0, direction="no-worse")


class RelativeGate(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """Bounds the ratio to another checkpoint of the file, measured in the same run."""

    to: str
    key: str
    max_ratio: float
    metric: MetricName | None = None


class SparsityGate(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """Bounds the zeros in the linear weights of the decoder layers.

    ``fraction``: their share is within ``fraction -+ abs``, in all weights together, in
    every layer or in every tensor. Without it, ``scope: layer`` and ``scope: tensor``
    hold each share to the recorded one. ``pattern`` is N:M: of every M weights along
    the input dimension at most N are not zero.
    """

    fraction: float | None = None
    abs: float = 0.001
    pattern: str | None = None
    scope: Literal["total", "layer", "tensor"] = "total"


class Gates(Struct, frozen=True):
    """All gates of one checkpoint, in the file's order."""

    metrics: dict[str, dict[MetricName, Tolerance]] = {}
    relative: RelativeGate | None = None
    sparsity: SparsityGate | None = None
    weights: Literal["same", "mask", "any"] | None = None
    against: str | None = None


class CheckpointEntry(Struct, frozen=True):
    """One checkpoint of a baseline file.

    ``lines`` maps a dotted place (``""``, ``gates``, ``gates.<key>``,
    ``gates.<key>.<metric>``, ``recorded.<key>``) to its 1-based line in the file.
    ``reference`` names the entry that ``kl`` compares with: the one that is written,
    else one called ``dense``.
    """

    name: str
    path: str | None = None
    allow_keys: tuple[str, ...] = ()
    gates: Gates = field(default_factory=Gates)
    recorded: dict[str, Recorded] = {}
    fingerprint: RecordedFingerprint | None = None
    lines: dict[str, int] = {}
    reference: str | None = None


class BaselineFile(Struct, frozen=True):
    """A parsed baseline file; ``path`` is the file as it was named by the caller."""

    path: str
    model: str
    checkpoints: dict[str, CheckpointEntry]


# -------------------------------------------------------------------------- verdicts


class Outcome(enum.StrEnum):
    """What came of a gate. Only ``passed`` of the verdict says whether it is green."""

    WITHIN = "within"
    """yes: inside its bounds."""
    PLAUSIBLE = "plausible"
    """yes: inside the bounds of a published value without evidence."""
    RECORDED = "recorded"
    """yes: this run records it (``--ppl-update``)."""
    REGRESSED = "regressed"
    """no: above the upper bound; of metrics of which more is better, below the lower;
    of sparsity, outside either."""
    IMPROVED = "improved"
    """only with ``no-worse``: below the lower bound; of metrics of which more is
    better, such as ``top1_agreement``, above the upper."""
    CHANGED = "changed"
    """no: weights are not the recorded ones, or not those of the dense checkpoint; or a
    metric stayed and the predictions drifted."""
    MISSING = "missing"
    """no: no baseline; nothing is written, the command to record is printed."""
    NOT_COMPARABLE = "not comparable"
    """no: measured differently; each difference is named."""
    INVALID = "invalid"
    """no: a loss is NaN, infinite or empty; the window is named."""
    ERROR = "error"
    """no: could not be loaded or measured."""


class Verdict(Struct, frozen=True):
    """The outcome of one gate, with everything that a reader of any report needs.

    ``change`` is relative (0.031 is +3.1 %). ``allowed`` is ``(low, high)``, None for
    an open end. ``reasons`` say what is wrong, first the most likely cause; ``notes``
    are facts that change nothing. ``gate`` describes the tolerance and where it comes
    from, ``recorded_in`` is the baseline's ``FILE:LINE``, ``command`` what accepts or
    records. ``published`` is what had been published before the baseline was measured,
    and ``reference`` where, also where the baseline is the published value itself.
    ``file`` and ``line`` (from 1) are where the gate stands: in a baseline file, or a
    test; ``path`` is the checkpoint that a gate of a baseline file measured, as it was
    given. The controller fills these in. ``changes`` says, a fact a line, what differs
    from the recorded checkpoint, and ``where`` where in the text a value has moved.
    Of a task ``documents`` says which of its documents moved, and ``stderr`` what the
    standard error of the difference is and what it comes from. ``cached`` is when a
    value from the cache was measured, ``early`` on which of its windows the verdict
    rests where it was known before the last.
    """

    checkpoint: str
    key: str
    metric: str
    outcome: Outcome
    passed: bool
    baseline: float | None = None
    measured: float | None = None
    change: float | None = None
    allowed: tuple[float | None, float | None] = (None, None)
    gate: str = ""
    source: str = ""
    recorded_in: str = ""
    reasons: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    command: str = ""
    windows: int | None = None
    seconds: float | None = None
    first: float | None = None
    published: float | None = None
    reference: str = ""
    file: str = ""
    line: int | None = None
    path: str = ""
    changes: tuple[str, ...] = ()
    where: tuple[str, ...] = ()
    documents: tuple[str, ...] = ()
    stderr: str = ""
    cached: str = ""
    early: str = ""


class Remark(Struct, frozen=True):
    """One line about a run, and the place in a file that it is about, if there is."""

    text: str
    file: str = ""
    line: int | None = None


class Results(Struct, frozen=True):
    """What came of a run, for every kind of report.

    ``problems`` make the run red beside the verdicts, ``warnings`` and ``notices``
    change nothing. ``complete`` is false where the run was stopped before its end.
    """

    verdicts: tuple[Verdict, ...] = ()
    problems: tuple[Remark, ...] = ()
    warnings: tuple[Remark, ...] = ()
    notices: tuple[str, ...] = ()
    complete: bool = True

    @property
    def passed(self) -> bool:
        """Whether there is nothing red in it."""
        return (
            self.complete
            and not self.problems
            and all(verdict.passed for verdict in self.verdicts)
        )


class LossDetail(Struct, frozen=True, kw_only=True):
    """One measurement window by window, beside its baseline; for reports.

    ``of`` says what :class:`WindowScore` field ``measured`` and ``baseline`` hold, in
    nats summed over a window's ``scored`` tokens: ``nll_sum``, or ``kl_sum`` of a
    divergence. ``windows`` are their indices in the text, from 0: all of them in order,
    or those that an early verdict rests on, as they were drawn; ``total`` counts those
    of the whole text. ``measured`` has None for a loss that is not finite, ``baseline``
    is empty where there is no evidence, or of other windows. ``places`` is empty where
    the text is not known, and ``problem`` says why something is missing.
    ``seconds`` is what measuring took, ``cached`` as in :class:`Measurement`.
    """

    checkpoint: str
    key: str
    of: Literal["nll_sum", "kl_sum"]
    total: int
    windows: tuple[int, ...]
    scored: tuple[int, ...]
    measured: tuple[float | None, ...]
    baseline: tuple[float, ...] = ()
    places: tuple[WindowPlace, ...] = ()
    metrics: dict[MetricName, float] = {}
    recorded: dict[MetricName, float] = {}
    windows_digest: str = ""
    protocol: dict[str, Scalar] = {}
    environment: dict[str, Scalar] = {}
    baseline_environment: dict[str, Scalar] = {}
    seconds: float = 0.0
    cached: str = ""
    problem: str = ""


class TensorChange(Struct, frozen=True, kw_only=True):
    """A tensor that differs from the recorded one; shares are of zeros, 0 to 1.

    ``kind`` and ``looks`` are those of :class:`pytest_pplguard.diff.Change`. ``norm``
    is Euclidean; None of both where the tensor is not there.
    """

    name: str
    kind: str
    looks: str = ""
    size: int = 0
    before_zeros: float | None = None
    zeros: float | None = None
    before_norm: float | None = None
    norm: float | None = None


class WeightsDetail(Struct, frozen=True, kw_only=True):
    """What a checkpoint's weights are, beside the recorded ones; for reports.

    ``zeros`` maps each tensor in which sparsity is counted to its zeros and weights,
    under the recorded names where there are any; ``recorded_zeros`` likewise. Both
    digests are :attr:`Fingerprint.digest`, empty where not known. ``changes`` are all
    tensors that differ, ``lines`` say in words what differs, settings included.
    ``problem`` says why something is missing.
    """

    checkpoint: str
    spec: str
    digest: str = ""
    zeros: dict[str, tuple[int, int]] = {}
    recorded_digest: str = ""
    recorded_zeros: dict[str, tuple[int, int]] = {}
    changes: tuple[TensorChange, ...] = ()
    lines: tuple[str, ...] = ()
    problem: str = ""

    @property
    def sparsity(self) -> float | None:
        """Share of zeros where it is counted; None where nothing is."""
        counted = sum(size for _, size in self.zeros.values())
        return (
            sum(zeros for zeros, _ in self.zeros.values()) / counted
            if counted
            else None
        )


class LadderDetail(Struct, frozen=True):
    """A ladder that was measured of ``model``: the document of ``pplguard explain``."""

    model: str
    document: dict[str, Any]


class Details(Struct, frozen=True):
    """What is behind verdicts, for the reports that show it.

    It is gathered only where the user asked for such a report.
    """

    losses: tuple[LossDetail, ...] = ()
    weights: tuple[WeightsDetail, ...] = ()
    ladders: tuple[LadderDetail, ...] = ()


class Recording(Struct, frozen=True):
    """A measurement on its way into a baseline file.

    ``file`` is the baseline file, ``checkpoint`` the entry in it. ``base`` names the
    base model where the file is new. ``sparsity`` is the gate that an entry without one
    gets. ``fingerprint`` is of what was measured, None where it is not known;
    ``keep_fingerprint`` leaves a recorded one of other weights as it is. Without a
    ``measurement`` only the fingerprint is recorded.
    """

    file: str
    checkpoint: str
    measurement: Measurement | None = None
    base: str | None = None
    path: str | None = None
    sparsity: SparsityGate | None = None
    fingerprint: Fingerprint | None = None
    keep_fingerprint: bool = False
