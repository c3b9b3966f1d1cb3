"""Judges the gates of a checkpoint's weights, for which no model need be loaded."""

from __future__ import annotations

from typing import TYPE_CHECKING

from msgspec.structs import replace

from ..baselines import split_name
from ..checkpoints import sparsity_of
from ..diff import as_recorded
from ..errors import NoDenseError, UsageError
from ..gates import (
    WeightsGate,
    judge_against,
    judge_pattern,
    judge_sparsity,
    judge_weights,
)
from ..options import Target
from ..values import Outcome, Recording, SparsityGate, Verdict

if TYPE_CHECKING:
    from ..measure import Dense
    from .guard import Guard

_NO_PATH = "has no `path:`"


def sparsity_verdict(
    guard: Guard, name: str, gate: SparsityGate, *, nodeid: str
) -> Verdict:
    """Judge shares of zeros in the weights that run."""
    found = guard.weights.sparsity(name)
    then = None
    if gate.fraction is None and (then := guard.weights.recorded(name)) is not None:
        found = found.renamed(then.linear)
    verdict = judge_sparsity(
        _weights_gate(guard, name, "sparsity", nodeid),
        gate,
        found.fraction,
        found.shares(gate.scope),
        recorded=None if then is None else sparsity_of(then).shares(gate.scope),
        linear=found.tensors,
    )
    if gate.fraction is None:
        verdict = _accept(guard, name, verdict)
    return _kept(guard, name, verdict)


def pattern_verdict(guard: Guard, name: str, gate: SparsityGate) -> Verdict:
    """Judge the groups of an N:M pattern."""
    assert gate.pattern is not None
    found = guard.weights.sparsity(name, gate.pattern)
    groups = {
        tensor: (zeros.broken, zeros.groups) for tensor, zeros in found.tensors.items()
    }
    return _kept(
        guard,
        name,
        judge_pattern(_weights_gate(guard, name, "sparsity"), gate.pattern, groups),
    )


def weights_verdict(guard: Guard, name: str, kind: str, *, nodeid: str) -> Verdict:
    """Judge whether the weights, or their zeros, are the recorded ones."""
    now, then = guard.weights.fingerprint(name), guard.weights.recorded(name)
    verdict = judge_weights(
        _weights_gate(guard, name, "weights", nodeid),
        kind,
        now if then is None else as_recorded(now, then),
        then,
    )
    return _kept(guard, name, _accept(guard, name, verdict))


def against_verdict(guard: Guard, name: str, dense: str, *, nodeid: str) -> Verdict:
    """Judge whether the surviving weights are those of the dense checkpoint."""
    base = f"{split_name(name)[0]}/{dense}"
    where = _dense(guard, base)
    try:
        found = guard.weights.survivors(name, where)
    except NoDenseError as error:
        why = f"is not at its `path:` ({error})" if where.target.spec else _NO_PATH
        command = guard.command(name, nodeid, other=f"{base}=PATH")
        raise UsageError(
            f"the gate against of {name} compares with {base}, which was not given and "
            f"{why}: run {command}"
        ) from error
    return _kept(
        guard,
        name,
        judge_against(
            _weights_gate(guard, name, "against"),
            dense,
            moved=found.moved,
            strange=found.strange,
            known=found.known,
            linear=found.linear,
        ),
    )


def _dense(guard: Guard, base: str) -> Dense:
    """The checkpoint ``base``, which was pruned: as given, else at its ``path:``."""
    from ..measure import Dense

    if base in guard.targets:
        keys = guard.allow_keys(base)
        return Dense(guard.targets[base], given=True, allow_keys=keys)
    return Dense(Target(base, guard.files.entry(base).path or ""), given=False)


def _kept(guard: Guard, name: str, verdict: Verdict) -> Verdict:
    """Keep a verdict; where a server measures it says whose weights it is about."""
    if guard.options.execution.where == "server":
        guard.tell(
            f"{name}: gates of weights are about the files of "
            f"{guard.targets[name].spec}, whatever the server runs"
        )
    return guard.keep(verdict, guard.given(name))


def _accept(guard: Guard, name: str, verdict: Verdict) -> Verdict:
    """Record the fingerprint that a gate misses, or that is not the recorded one.

    If that is what the run is for.
    """
    missing = verdict.outcome is Outcome.MISSING
    update = guard.options.update
    if verdict.passed or not (update == "all" or (update == "new" and missing)):
        return verdict
    now = guard.weights.fingerprint(name)
    if now.broken:
        # Nobody means to accept NaN or infinity.
        return replace(verdict, command="")
    recording = Recording(
        file=str(guard.files.path(name)),
        checkpoint=split_name(name)[1],
        fingerprint=now,
    )
    if recording not in guard.outbox.recordings:
        guard.outbox.recordings.append(recording)
    return replace(
        verdict,
        outcome=Outcome.RECORDED,
        passed=True,
        reasons=(),
        notes=verdict.notes + verdict.reasons,
        command="",
    )


def _weights_gate(guard: Guard, name: str, gate: str, nodeid: str = "") -> WeightsGate:
    entry = guard.files.entry(name)
    place = "recorded.fingerprint"
    return WeightsGate(
        checkpoint=name,
        origin=guard.line(name, entry, f"gates.{gate}"),
        recorded_in=guard.line(name, entry, place) if place in entry.lines else "",
        command=guard.command(name, nodeid) if nodeid else "",
    )
