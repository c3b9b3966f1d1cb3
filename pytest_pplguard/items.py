"""Baseline files as tests: one item a gate, measured in setup, judged in the call."""

from __future__ import annotations

import abc
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

from .errors import BaselineError, PplguardError, UsageError
from .session.failing import fail_gates
from .session.guard import Guard
from .session.setup import guard_of
from .session.weights_gates import (
    against_verdict,
    pattern_verdict,
    sparsity_verdict,
    weights_verdict,
)
from .values import (
    CheckpointEntry,
    Key,
    Outcome,
    RelativeGate,
    SparsityGate,
    Tolerance,
    Verdict,
)


class BaselineModule(pytest.File):
    """A baseline file; its checkpoints are collected in the file's order."""

    def collect(self) -> Iterable[CheckpointNode]:
        try:
            files = guard_of(self.config).files
            files.add(self.path)
            file = files.read(self.path.stem)
        except BaselineError as error:
            raise self.CollectError(str(error)) from error
        for name, entry in file.checkpoints.items():
            yield CheckpointNode.from_parent(
                self, name=name, checkpoint=f"{self.path.stem}/{name}", entry=entry
            )


class CheckpointNode(pytest.Collector):
    """One checkpoint: ``FILE::NAME``."""

    def __init__(
        self, *, checkpoint: str, entry: CheckpointEntry, **options: Any
    ) -> None:
        super().__init__(**options)
        self.checkpoint = checkpoint
        self.entry = entry

    def collect(self) -> Iterable[GateGroup]:
        gates = self.entry.gates
        for key in gates.metrics:
            yield GateGroup.from_parent(self, name=key)
        special = {
            "relative": gates.relative,
            "sparsity": gates.sparsity,
            "weights": gates.weights if gates.weights != "any" else None,
            "against": gates.against,
        }
        for name, gate in special.items():
            if gate is not None:
                yield GateGroup.from_parent(self, name=name)


class GateGroup(pytest.Collector):
    """All gates of one key, ``FILE::NAME::KEY``, or of one kind."""

    parent: CheckpointNode

    def collect(self) -> Iterator[GateItem]:
        gates = self.parent.entry.gates
        if self.name == "relative":
            assert gates.relative is not None
            yield RelativeItem.from_parent(
                self, name=gates.relative.to, gate=gates.relative
            )
        elif self.name == "sparsity":
            assert gates.sparsity is not None
            yield from self._sparsity(gates.sparsity)
        elif self.name == "weights":
            yield WeightsItem.from_parent(self, name=gates.weights)
        elif self.name == "against":
            yield AgainstItem.from_parent(self, name=gates.against)
        else:
            for metric, tolerance in gates.metrics[self.name].items():
                key = Key.parse(self.name)
                kind = DivergenceItem if key.method == "kl" else MetricItem
                yield kind.from_parent(self, name=metric, key=key, tolerance=tolerance)

    def _sparsity(self, gate: SparsityGate) -> Iterator[GateItem]:
        # The pattern first: the shares of zeros are known after the same pass.
        if gate.pattern is not None:
            yield PatternItem.from_parent(self, name="pattern", gate=gate)
        if gate.fraction is not None or gate.scope != "total":
            yield SparsityItem.from_parent(self, name="fraction", gate=gate)


class GateItem(pytest.Item):
    """One gate of one checkpoint."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.add_marker("ppl")
        if self.config.pluginmanager.hasplugin("rerunfailures"):
            # What was measured, or could not be loaded, stays so.
            self.add_marker(pytest.mark.flaky(reruns=0))

    @property
    def guard(self) -> Guard:
        """The process's guard."""
        return guard_of(self.config)

    @property
    def group(self) -> GateGroup:
        """The collector of all gates of this key."""
        assert isinstance(self.parent, GateGroup)
        return self.parent

    @property
    def checkpoint(self) -> str:
        """Name of the checkpoint, ``FILE/NAME``."""
        return self.group.parent.checkpoint

    def checkpoints(self) -> tuple[str, ...]:
        """The checkpoints that must be loaded for this gate."""
        return (self.checkpoint,)

    def rank(self) -> int:
        """Position among the gates of a file: those that need two checkpoints last."""
        return 0

    def title(self) -> tuple[str, str]:
        """Key and metric of the verdict."""
        return self.group.name, self.name

    def setup(self) -> None:
        """Load, measure and judge; what cannot be judged is an error, not a failure."""
        try:
            if not self.guard.targets:
                raise UsageError(
                    "ppl_require is set, and no checkpoint was given: add "
                    f"--ppl-model {self.checkpoint}=PATH"
                )
            self._verdict = self.judge()
        except PplguardError as error:
            self._verdict = self.guard.error(self.checkpoint, *self.title(), error)
        if self._verdict.outcome is Outcome.ERROR:
            fail_gates([self._verdict])

    def runtest(self) -> None:
        """Fail unless the verdict is a pass."""
        if not self._verdict.passed:
            fail_gates([self._verdict])

    @abc.abstractmethod
    def judge(self) -> Verdict:
        """Measure and compare.

        Raises:
            PplguardError: it cannot be measured, or its baseline cannot be used.
        """

    def reportinfo(self) -> tuple[Path, int | None, str]:
        """Path, 0-based line and title, for reports."""
        lines = self.group.parent.entry.lines
        places = (
            f"gates.{self.group.name}.{self.name}",
            f"gates.{self.group.name}",
            "gates",
            "",
        )
        line = next((lines[place] for place in places if place in lines), 1)
        return self.path, line - 1, f"{self.checkpoint} {self.group.name} {self.name}"


class MetricItem(GateItem):
    """A metric of a key, held to its baseline."""

    def __init__(self, *, key: Key, tolerance: Tolerance, **options: Any) -> None:
        super().__init__(**options)
        self.key = key
        self.tolerance = tolerance

    def judge(self) -> Verdict:
        return self.guard.judge_gate(
            self.checkpoint,
            self.key,
            self.name,
            self.tolerance,
            nodeid=self.group.nodeid,
        )


class DivergenceItem(MetricItem):
    """A metric that compares the checkpoint with another of the file, its reference."""

    def checkpoints(self) -> tuple[str, ...]:
        reference = self.group.parent.entry.reference
        if reference is None:
            return (self.checkpoint,)
        return (f"{self.path.stem}/{reference}", self.checkpoint)


class RelativeItem(GateItem):
    """The ratio to another checkpoint of the file, both measured in this run."""

    def __init__(self, *, gate: RelativeGate, **options: Any) -> None:
        super().__init__(**options)
        self.gate = gate

    def checkpoints(self) -> tuple[str, ...]:
        base = f"{self.path.stem}/{self.gate.to}"
        return (base, self.checkpoint)

    def rank(self) -> int:
        return 1

    def title(self) -> tuple[str, str]:
        return self.gate.key, self.guard.relative_metric(self.gate)

    def judge(self) -> Verdict:
        return self.guard.judge_relative(self.checkpoint, self.gate)


class FilesItem(GateItem):
    """A gate of the weights themselves: their files are read, no model is loaded.

    Unless the files do not hold the weights that run, or those are asked who measure.
    """

    def checkpoints(self) -> tuple[str, ...]:
        asked = self.guard.options.execution.sees_weights
        return (self.checkpoint,) if asked else ()


class SparsityItem(FilesItem):
    """The share of zeros."""

    def __init__(self, *, gate: SparsityGate, **options: Any) -> None:
        super().__init__(**options)
        self.gate = gate

    def judge(self) -> Verdict:
        return sparsity_verdict(
            self.guard, self.checkpoint, self.gate, nodeid=self.group.nodeid
        )


class PatternItem(SparsityItem):
    """The groups of an N:M pattern."""

    def title(self) -> tuple[str, str]:
        return self.group.name, str(self.gate.pattern)

    def judge(self) -> Verdict:
        return pattern_verdict(self.guard, self.checkpoint, self.gate)


class WeightsItem(FilesItem):
    """The recorded fingerprint."""

    def judge(self) -> Verdict:
        return weights_verdict(
            self.guard, self.checkpoint, self.name, nodeid=self.group.nodeid
        )


class AgainstItem(FilesItem):
    """The weights of the dense checkpoint."""

    def judge(self) -> Verdict:
        return against_verdict(
            self.guard, self.checkpoint, self.name, nodeid=self.group.nodeid
        )


def remove_gates(
    items: list[pytest.Item], *, unless: Callable[[GateItem], bool]
) -> list[pytest.Item]:
    """Take gates out of ``items``; returns what was taken out."""
    removed = [
        item for item in items if isinstance(item, GateItem) and not unless(item)
    ]
    gone = set(removed)
    items[:] = [item for item in items if item not in gone]
    return list[pytest.Item](removed)
