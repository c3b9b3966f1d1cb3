"""Gathers what is behind verdicts, for the reports that show it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from msgspec import UNSET
from msgspec.structs import replace

from ..checkpoints import Sparsity, sparsity_of
from ..diff import Change, Difference, as_recorded, compare
from ..diff import lines as lines_of
from ..errors import InvalidLossError, PplguardError
from ..gates import Summed, scoring_order
from ..options import Options, Target
from ..protocols import PROTOCOLS, Tokenizer
from ..values import (
    Fingerprint,
    Key,
    LossDetail,
    Measurement,
    Recorded,
    TensorChange,
    TensorFacts,
    WeightsDetail,
    WindowScore,
)
from .files import BaselineFiles
from .outbox import Outbox
from .weights import FromFiles, Weights

if TYPE_CHECKING:
    from ..measure import Store

_MOST_LINES = 40
"""Of what differs between two checkpoints: more is a table, which a report has."""


class Gatherer:
    """Puts details into the outbox, each once; nothing where nobody asked for them.

    A detail that cannot be had says why, and changes nothing else.

    Args:
        options: a page, or a history, is what asks for details.
        targets: the checkpoints that were given, by name.
        files: the baseline files.
        weights: the fingerprints of this process.
        outbox: of the test that runs.
        store: finds places of windows.
    """

    def __init__(
        self,
        options: Options,
        targets: Mapping[str, Target],
        files: BaselineFiles,
        weights: Weights,
        outbox: Outbox,
        store: Callable[[], Store],
    ) -> None:
        self._with_places = any(path.endswith(".html") for path in options.reports)
        self._wanted = self._with_places or options.history is not None
        self._targets = targets
        self._files = files
        self._weights = weights
        self._outbox = outbox
        self._store = store
        self._last: dict[tuple[str, str], Measurement | str] = {}
        self._seen: set[tuple[str, Target | None]] = set()

    def losses(
        self,
        name: str,
        key: Key,
        measured: Measurement | InvalidLossError,
        recorded: Recorded | None,
        tokenizer: Callable[[], Tokenizer | None],
    ) -> None:
        """What is behind a measurement, when the first of its metrics is judged.

        ``tokenizer`` gives that of the measured model, None where it is gone.
        """
        if not self._wanted:
            return
        what = str(measured) if isinstance(measured, InvalidLossError) else measured
        last = self._last.get((name, str(key)))
        if last is what or (isinstance(what, str) and last == what):
            return
        self._last[name, str(key)] = what
        detail = self._beside_baseline(name, key, measured, recorded)
        if self._with_places and detail.windows:
            detail = self._placed(detail, key, tokenizer())
        self._outbox.losses.append(detail)

    def _beside_baseline(
        self,
        name: str,
        key: Key,
        measured: Measurement | InvalidLossError,
        recorded: Recorded | None,
    ) -> LossDetail:
        evidence: Sequence[WindowScore] = ()
        problem = ""
        if recorded is not None:
            try:
                found = self._files.evidence_of(name, key, recorded)
                evidence = () if found is None else found.windows
            except PplguardError as error:
                problem = f"no baseline losses: {error}"
        detail = loss_detail(name, key, measured, recorded, evidence)
        return replace(detail, problem=problem) if problem else detail

    def _placed(
        self, detail: LossDetail, key: Key, tokenizer: Tokenizer | None
    ) -> LossDetail:
        """With where each window is in the text."""
        why = "the tokenizer cannot be loaded"
        if tokenizer is not None:
            try:
                places = self._store().places(
                    detail.windows, tokenizer, key, digest=detail.windows_digest
                )
                return replace(
                    detail, places=tuple(places[index] for index in detail.windows)
                )
            except PplguardError as error:
                why = str(error)
        return replace(detail, problem=_joined(detail.problem, f"no places: {why}"))

    def weights(self, name: str, files: FromFiles | None, *, load: bool) -> None:
        """What a checkpoint's weights are; ``load`` says whether a model may be loaded.

        ``files`` are None for a model that a hook or a test has brought.
        """
        if not self._wanted:
            return
        target = self._targets.get(name) if files is None else files[0]
        if (name, target) in self._seen:
            return
        self._seen.add((name, target))
        spec = "" if target is None else target.spec
        self._outbox.weights.append(self._weights_detail(name, spec, files, load=load))

    def _weights_detail(
        self, name: str, spec: str, files: FromFiles | None, *, load: bool
    ) -> WeightsDetail:
        then: Fingerprint | None = None
        problems: list[str] = []
        try:
            then = self._weights.recorded(name)
        except PplguardError as error:
            problems.append(str(error))
        now: Fingerprint | None = None
        if files is None:
            problems.append("the model was brought by a hook or a test, not by files")
        else:
            try:
                now = self._weights.fingerprint_of(files, load=load)
            except PplguardError as error:
                problems.append(str(error))
        command = "" if files is None else self._weights.diff_command(name, files[0])
        detail = weights_detail(name, spec, now, then, command=command)
        return replace(detail, problem=_joined(*problems))


def loss_detail(
    name: str,
    key: Key,
    measured: Measurement | InvalidLossError,
    recorded: Recorded | None,
    evidence: Sequence[WindowScore],
) -> LossDetail:
    """A measurement beside its baseline, without places.

    Args:
        name: of the checkpoint.
        key: what was measured.
        measured: the measurement, or the invalid loss that stands in its place.
        recorded: its baseline, if there is one.
        evidence: the windows of the baseline; empty where there are none.
    """
    protocol = PROTOCOLS[key.method]
    of: Summed = "kl_sum" if protocol.needs_reference else "nll_sum"
    if isinstance(measured, InvalidLossError):
        detail = _of_invalid(name, key, of, measured)
    else:
        detail = _of_measurement(name, key, of, measured, evidence)
    if protocol.runs_task(key):
        detail = replace(detail, windows=(), scored=(), measured=())
        detail = replace(detail, problem="answers of a task are no windows of a text")
    if recorded is None:
        return detail
    detail = replace(
        detail,
        recorded=recorded.metrics,
        baseline_environment=recorded.environment,
    )
    if not detail.windows:
        return detail
    problem = ""
    if recorded.evidence is None:
        problem = "no baseline losses: the baseline is a published value"
    elif recorded.windows_digest != detail.windows_digest:
        problem = "no baseline losses: the baseline is of other windows"
    elif evidence and not _has(evidence, detail.windows, of):
        problem = "no baseline losses: the evidence does not hold these windows"
    elif evidence:
        detail = replace(detail, baseline=_summed(evidence, detail.windows, of))
    return replace(detail, problem=_joined(detail.problem, problem))


def _of_measurement(
    name: str,
    key: Key,
    of: Summed,
    measured: Measurement,
    evidence: Sequence[WindowScore],
) -> LossDetail:
    scores = measured.evidence
    windows: Sequence[int] = range(len(scores))
    if measured.early is not None:
        sizes = [score.scored for score in evidence]
        windows = scoring_order(measured.windows_digest, sizes)[: len(scores)]
        scores = scores[: len(windows)]  # none, where the evidence cannot be read
    return LossDetail(
        checkpoint=name,
        key=str(key),
        of=of,
        total=measured.early.windows if measured.early else measured.windows,
        windows=tuple(windows),
        scored=tuple(score.scored for score in scores),
        measured=_summed(scores, range(len(scores)), of),
        metrics=measured.metrics,
        windows_digest=measured.windows_digest,
        protocol=measured.protocol,
        environment=measured.environment,
        seconds=measured.seconds,
        cached=measured.cached,
    )


def _of_invalid(name: str, key: Key, of: Summed, error: InvalidLossError) -> LossDetail:
    """The windows that were fine, and the one that was not, in the text's order."""
    losses: dict[int, tuple[float | None, int]] = {**error.finished}
    if error.window is not None and error.windows_digest:
        losses[error.window] = None, error.scored
    windows = sorted(losses)
    return LossDetail(
        checkpoint=name,
        key=str(key),
        of=of,
        total=error.windows,
        windows=tuple(windows),
        scored=tuple(losses[index][1] for index in windows),
        measured=tuple(losses[index][0] for index in windows),
        windows_digest=error.windows_digest,
        problem=str(error),
    )


def _has(scores: Sequence[WindowScore], indices: Sequence[int], of: Summed) -> bool:
    """Whether there is a sum for each window: evidence may be of anybody's making."""
    return max(indices) < len(scores) and all(
        getattr(scores[index], of) is not UNSET for index in indices
    )


def _summed(
    scores: Sequence[WindowScore], indices: Iterable[int], of: Summed
) -> tuple[float, ...]:
    return tuple(float(getattr(scores[index], of)) for index in indices)


def weights_detail(
    name: str,
    spec: str,
    now: Fingerprint | None,
    then: Fingerprint | None,
    *,
    command: str = "pplguard diff BASELINE MODEL --all",
) -> WeightsDetail:
    """What is known of a checkpoint's weights ``now`` and ``then``.

    ``command`` shows all that differs, where that is more than a few dozen lines.
    """
    detail = WeightsDetail(checkpoint=name, spec=spec)
    if then is not None:
        detail = replace(
            detail,
            recorded_digest=then.digest,
            recorded_zeros=_zeros(sparsity_of(then)),
        )
    if now is None:
        return detail
    detail = replace(detail, digest=now.digest)
    if then is None:
        return replace(detail, zeros=_zeros(sparsity_of(now)))
    difference = compare(then, now)
    return replace(
        detail,
        zeros=_zeros(sparsity_of(as_recorded(now, then))),
        changes=tuple(map(_tensor_change, difference.changes)),
        lines=_lines(difference, command),
    )


def _zeros(sparsity: Sparsity) -> dict[str, tuple[int, int]]:
    return {name: (one.zeros, one.total) for name, one in sparsity.tensors.items()}


def _lines(difference: Difference, command: str) -> tuple[str, ...]:
    differs = (
        difference.changes
        or difference.config
        or difference.tokenizer
        or difference.renamed
    )
    if not differs:
        return ()
    return tuple(lines_of(difference, limit=_MOST_LINES, command=command))


def _tensor_change(change: Change) -> TensorChange:
    before, now = change.before, change.now
    known = now or before
    return TensorChange(
        name=change.name,
        kind=change.kind,
        looks=change.looks,
        size=known.size if known is not None else 0,
        before_zeros=_of_floats(before, lambda facts: facts.share),
        zeros=_of_floats(now, lambda facts: facts.share),
        before_norm=_of_floats(before, lambda facts: facts.norm),
        norm=_of_floats(now, lambda facts: facts.norm),
    )


def _of_floats(
    facts: TensorFacts | None, value: Callable[[TensorFacts], float]
) -> float | None:
    """A fact of a tensor of floats; of other elements nobody knows it."""
    if facts is None or not facts.mask:
        return None
    found = value(facts)
    return found if math.isfinite(found) else None


def _joined(*problems: str) -> str:
    return "; ".join(filter(None, problems))
