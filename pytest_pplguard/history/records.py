"""What a history holds of a run."""

from __future__ import annotations

from msgspec import Struct

from ..values import MetricName, Scalar


class Point(Struct, frozen=True, kw_only=True):
    """One verdict of a run; fields as in :class:`~pytest_pplguard.values.Verdict`.

    ``windows_digest`` is empty where it is not known. ``path`` is the checkpoint that a
    gate of a baseline file measured, empty for a test's own model.
    """

    checkpoint: str
    key: str
    metric: MetricName
    outcome: str
    passed: bool
    baseline: float | None = None
    measured: float | None = None
    change: float | None = None
    allowed_low: float | None = None
    allowed_high: float | None = None
    windows: int | None = None
    windows_digest: str = ""
    seconds: float | None = None
    cached: str = ""
    early: str = ""
    path: str = ""


class WeightsPoint(Struct, frozen=True, kw_only=True):
    """What a checkpoint's weights were; ``sparsity`` is a share, None if unknown."""

    checkpoint: str
    spec: str = ""
    digest: str = ""
    sparsity: float | None = None


class HistoryRun(Struct, frozen=True, kw_only=True):
    """One run of a history.

    ``id`` is unique among all histories. ``time`` is in UTC (ISO 8601, milliseconds).
    ``environment`` is by checkpoint and key. Other fields as in
    :class:`~.origin.Origin` and :class:`~pytest_pplguard.values.Results`.
    """

    id: str
    time: str
    commit: str = ""
    branch: str = ""
    dirty: bool = False
    job: str = ""
    version: str = ""
    complete: bool = True
    passed: bool = True
    points: tuple[Point, ...] = ()
    weights: tuple[WeightsPoint, ...] = ()
    environment: dict[str, dict[str, dict[str, Scalar]]] = {}

    def sparsity(self, checkpoint: str) -> float | None:
        """Share of zeros of a checkpoint, None where it is not known."""
        known = (one.sparsity for one in self.weights if one.checkpoint == checkpoint)
        return next(known, None)
