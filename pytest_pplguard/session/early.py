"""Plans which measurements of gates may end early, and says why others may not."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from ..baselines import split_name
from ..errors import InvalidLossError
from ..gates import EarlyPlan, window_bounds
from ..gates.early import Range
from ..options import Options, Target
from ..protocols import PROTOCOLS
from ..values import CheckpointEntry, Key, Measurement, MetricName, Recorded
from .files import BaselineFiles


class EarlyPlans:
    """The plans of one process, one for each key of a checkpoint.

    ``tell`` takes notices for the end of the run.
    """

    def __init__(
        self,
        options: Options,
        targets: Mapping[str, Target],
        files: BaselineFiles,
        tell: Callable[[str], None],
    ) -> None:
        self._options = options
        self._targets = targets
        self._files = files
        self._tell = tell
        self._plans: dict[tuple[str, Key], EarlyPlan | str] = {}

    def of(self, name: str, key: Key) -> EarlyPlan | None:
        """From all gates of the key; None where every window must be scored.

        Raises:
            BaselineError: the key's evidence is missing, changed, or of other values.
        """
        if self._options.early is None or self._options.update != "no":
            return None
        if (name, key) not in self._plans:
            self._plans[name, key] = self._make(name, key)
        plan = self._plans[name, key]
        return plan if isinstance(plan, EarlyPlan) else None

    def tell(
        self, name: str, key: Key, measured: Measurement | InvalidLossError
    ) -> str:
        """After the measurement: the notice, and what its verdicts must say of it."""
        plan = self._plans.get((name, key))
        if plan is None:
            return ""
        # A result of the cache needed no window.
        scored = isinstance(measured, InvalidLossError) or not measured.cached
        why = plan if isinstance(plan, str) else plan.remark
        if why and scored:
            self._tell(f"{name} {key}: --ppl-early: every window is needed: {why}")
        if isinstance(plan, str):
            return ""
        if plan.only_failing and scored:
            self._tell(
                f"{name} {key}: --ppl-early: only a failure can be known early: "
                f"{plan.only_failing[0]} is held to drift"
            )
        if plan.breach:
            self._tell(f"{name} {key}: --ppl-early: {plan.breach}")
        return plan.breach

    def _make(self, name: str, key: Key) -> EarlyPlan | str:
        early = self._options.early
        assert early is not None
        protocol = PROTOCOLS[key.method]
        if protocol.runs_task(key):
            return "a task of lm-eval has answers, and no windows"
        if protocol.needs_reference:
            return f"{key.method} compares predictions, not losses"
        entry = self._files.entry(name)
        if by := self._needed_by(name, key):
            return f"the gate relative of {by} divides full numbers"
        recorded = entry.recorded.get(str(key))
        if recorded is None:
            return "there is no baseline"
        allowed = _allowed(entry, key, recorded)
        if isinstance(allowed, str):
            return allowed
        evidence = self._files.evidence_of(name, key, recorded)
        if evidence is None:
            return "its baseline has no evidence: windows cannot be paired"
        return EarlyPlan(
            recorded,
            evidence.protocol,
            evidence.windows,
            allowed,
            recompute=protocol.recompute,
            cap=early.cap,
            error=early.error,
            only_failing=[
                metric
                for metric, tolerance in entry.gates.metrics[str(key)].items()
                if tolerance.drift is not None
            ],
        )

    def _needed_by(self, name: str, key: Key) -> str:
        """The checkpoint of the file with a relative gate on this measurement."""
        stem, own = split_name(name)
        for other, entry in self._files.read(stem).checkpoints.items():
            gate = entry.gates.relative
            if gate is None or gate.key != str(key) or own not in (other, gate.to):
                continue
            if f"{stem}/{other}" in self._targets:
                return f"{stem}/{other}"
        return ""


def _allowed(
    entry: CheckpointEntry, key: Key, recorded: Recorded
) -> dict[MetricName, Range] | str:
    """The bounds of each metric that is gated, or why they are not enough."""
    allowed: dict[MetricName, Range] = {}
    for metric, tolerance in entry.gates.metrics.get(str(key), {}).items():
        if metric not in recorded.metrics:
            return f"the baseline has no {metric}"
        if tolerance.sigma is not None:
            return f"{metric} is held to sigma"
        bounds = window_bounds(tolerance, recorded.metrics[metric])
        allowed[metric] = (bounds.low, bounds.high)
    return allowed
