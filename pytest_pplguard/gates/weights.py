"""Judges what the weights are: their zeros, and whether they are the recorded ones."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

from msgspec import Struct
from msgspec.structs import replace

from ..errors import CheckpointError
from ..tensornames import group, layer_of
from ..values import Fingerprint, Gates, Outcome, SparsityGate, TensorFacts, Verdict
from .bounds import Bounds

_LINES = 5
"""Reasons that name tensors, before one says how many more there are."""
_LOST = 0.1
"""A share of zeros below this part of the expected one: a mask that is gone."""
_STRANGE = {"gone": "gone", "new": "new, not in the baseline"}


class WeightsGate(Struct, frozen=True):
    """Everything about a gate of a checkpoint's weights but what is expected of them.

    ``origin`` says where the gate stands, ``recorded_in`` where the fingerprint does,
    empty where none is recorded. ``command`` records or accepts.
    """

    checkpoint: str
    origin: str
    recorded_in: str = ""
    command: str = ""


# --------------------------------------------------------------------------- sparsity


def judge_sparsity(
    gate: WeightsGate,
    asked: SparsityGate,
    total: float,
    shares: Mapping[str, float] | None = None,
    *,
    recorded: Mapping[str, float] | None = None,
    linear: Collection[str] = (),
) -> Verdict:
    """Hold shares of zeros in the decoder layers' linear weights to their gate.

    Fewer zeros than allowed is ``regressed`` (a mask was lost), more is ``regressed``
    too: the number is a property of the checkpoint, not a score.

    Args:
        gate: whose weights they are.
        asked: what the file asks for.
        total: share of zeros in all of them.
        shares: share of each layer or tensor, as ``asked.scope`` wants it. The verdict
            has the numbers of the one that is furthest from what it should be.
        recorded: the recorded shares, which stand in for a ``fraction`` that was not
            given; None if none are recorded.
        linear: names of all those weights.
    """
    verdict = Verdict(
        checkpoint=gate.checkpoint,
        key="sparsity",
        metric="fraction",
        outcome=Outcome.WITHIN,
        passed=True,
        gate=f"abs {asked.abs:g}, {gate.origin}",
    )
    if asked.scope == "total":
        assert asked.fraction is not None
        placed = _place(verdict, total, asked.fraction, asked.abs)
        return placed if placed.passed else replace(placed, reasons=(_total(placed),))
    assert shares is not None
    scope = f"abs {asked.abs:g} in every {asked.scope}, {gate.origin}"
    verdict = replace(verdict, gate=scope)
    if asked.fraction is not None:
        expected: Mapping[str, float] = dict.fromkeys(shares, asked.fraction)
    elif recorded is not None:
        expected = recorded
        verdict = replace(verdict, recorded_in=gate.recorded_in, command=gate.command)
    else:
        return _missing(verdict, gate)
    return _Shares(asked.scope, shares, expected, linear).judge(
        verdict, asked.abs, total
    )


class _Shares(Struct, frozen=True):
    """Shares of zeros of layers or tensors, and what each should be."""

    scope: str
    now: Mapping[str, float]
    expected: Mapping[str, float]
    linear: Collection[str]

    def judge(self, verdict: Verdict, abs_: float, total: float) -> Verdict:
        """The verdict has the numbers of the one that is furthest off."""
        order = sorted(
            self.now.keys() & self.expected.keys(),
            key=lambda unit: (-abs(self.now[unit] - self.expected[unit]), unit),
        )
        kinds: dict[str, list[str]] = {"lost": [], "off": [], "zero": []}
        failed = []
        for unit in order:
            share, expected = self.now[unit], self.expected[unit]
            if not _place(verdict, share, expected, abs_).passed:
                kinds[_kind_of_share(share, expected)].append(unit)
                failed.append(unit)
        kinds |= _strangers(self.now, self.expected)
        if order:
            # Next to a bound, rounding decides which of two is further off.
            first = (failed or order)[0]
            placed = _place(verdict, self.now[first], self.expected[first], abs_)
            verdict = replace(placed, notes=(f"the share is that of {first}",))
        if not failed and (kinds["gone"] or kinds["new"]):
            verdict = replace(verdict, outcome=Outcome.NOT_COMPARABLE, passed=False)
        return replace(
            verdict,
            reasons=name_tensors(
                {kind: self._tensors(units) for kind, units in kinds.items()},
                self._say,
                linear=self.linear,
            ),
            notes=(
                *verdict.notes,
                f"{len(failed)} of {len(self.now)} {self.scope}s out of bounds; "
                f"all together: {total:.6g}",
            ),
        )

    def _tensors(self, units: Sequence[str]) -> Sequence[str]:
        if self.scope == "tensor":
            return units
        return [name for name in self.linear if layer_of(name) in units] or units

    def _say(self, kind: str, names: Sequence[str]) -> str:
        if kind in _STRANGE:
            return _STRANGE[kind]
        units = dict.fromkeys(
            name if self.scope == "tensor" else layer_of(name) or name for name in names
        )
        text = (
            f"{_span(self.now[unit] for unit in units)} of "
            f"{_span(self.expected[unit] for unit in units)}"
        )
        return text + {"lost": " (mask lost)", "zero": " (all zeros)"}.get(kind, "")


def judge_pattern(
    gate: WeightsGate, pattern: str, groups: Mapping[str, tuple[int, int]]
) -> Verdict:
    """Bound the groups that break an N:M pattern: there may be none.

    Args:
        gate: whose weights they are.
        pattern: N:M, which names the verdict.
        groups: of each tensor the groups that have more than N weights other than
            zero, and all groups.
    """
    broken = sum(bad for bad, _ in groups.values())

    def say(_: str, names: Sequence[str]) -> str:
        bad, count = (sum(groups[name][i] for name in names) for i in (0, 1))
        return f"{bad} of {count} groups have more weights than {pattern} allows"

    return Verdict(
        checkpoint=gate.checkpoint,
        key="sparsity",
        metric=pattern,
        outcome=Outcome.REGRESSED if broken else Outcome.WITHIN,
        passed=not broken,
        measured=broken,
        allowed=(None, 0),
        gate=f"groups that break {pattern}, {gate.origin}",
        reasons=name_tensors(
            {"broken": [name for name, (bad, _) in groups.items() if bad]},
            say,
            linear=groups,
        ),
        notes=(f"{sum(count for _, count in groups.values())} groups looked at",),
    )


def _place(verdict: Verdict, share: float, expected: float, abs_: float) -> Verdict:
    allowed = Bounds(expected - abs_, expected + abs_)
    passed = not allowed.below(share) and not allowed.above(share)
    return replace(
        verdict,
        outcome=Outcome.WITHIN if passed else Outcome.REGRESSED,
        passed=passed,
        baseline=expected,
        measured=share,
        change=share / expected - 1 if expected else None,
        allowed=(allowed.low, allowed.high),
    )


def _total(verdict: Verdict) -> str:
    low, _ = verdict.allowed
    fewer = low is not None and verdict.measured is not None and verdict.measured < low
    return "zeros in the linear weights of the decoder layers: " + (
        "fewer than allowed; a mask was lost, or weights were merged or tuned"
        if fewer
        else "more than allowed"
    )


def _kind_of_share(share: float, expected: float) -> str:
    if share == 1:
        return "zero"
    return "lost" if share < _LOST * expected else "off"


def _span(values: Iterable[float]) -> str:
    shown = list(dict.fromkeys(f"{value:.4g}" for value in sorted(values)))
    return shown[0] if len(shown) == 1 else f"{shown[0]} to {shown[-1]}"


# -------------------------------------------------------------- the recorded weights


def judge_weights(
    gate: WeightsGate,
    kind: str,
    now: Fingerprint,
    then: Fingerprint | None,
) -> Verdict:
    """Hold a checkpoint to its recorded fingerprint.

    ``same``: all weights are the recorded numbers, in any dtype. ``mask``: the zeros of
    the tensors in which sparsity is counted are where they were; values may move. The
    verdict measures how many tensors are not so; to name them is the diff's part.

    Args:
        gate: whose weights they are.
        kind: ``same`` or ``mask``.
        now: what the checkpoint is.
        then: what it was; None if nothing is recorded.

    Raises:
        CheckpointError: ``mask`` is asked of weights that are packed, which have none.
    """
    if kind == "mask":
        _refuse_packed(gate.checkpoint, now)
    verdict = Verdict(
        checkpoint=gate.checkpoint,
        key="weights",
        metric=kind,
        outcome=Outcome.WITHIN,
        passed=True,
        gate=gate.origin,
        recorded_in=gate.recorded_in,
        command=gate.command,
    )
    if then is None:
        return _missing(verdict, gate)
    old = then.weights if kind == "same" else _linear(then)
    new = now.weights if kind == "same" else _linear(now)
    both = [name for name in old if name in new]
    count = len(old.keys() ^ new.keys()) + sum(
        _differ(new[name], old[name], kind) for name in both
    )
    return replace(
        verdict,
        outcome=Outcome.CHANGED if count else Outcome.WITHIN,
        passed=not count,
        measured=count,
        allowed=(None, 0),
        notes=_retyped((new[name], old[name]) for name in both),
    )


def holds_fingerprint(gates: Gates) -> bool:
    """Whether a gate holds the weights to the recorded fingerprint."""
    if gates.weights in ("same", "mask"):
        return True
    sparsity = gates.sparsity
    return (
        sparsity is not None and sparsity.fraction is None and sparsity.scope != "total"
    )


def _linear(fingerprint: Fingerprint) -> dict[str, TensorFacts]:
    return {name: fingerprint.tensors[name] for name in fingerprint.linear}


def _refuse_packed(checkpoint: str, fingerprint: Fingerprint) -> None:
    """Where weights are packed, or none are linear, a pass would mean nothing."""
    packed = [
        name
        for name, facts in fingerprint.weights.items()
        if not facts.mask and len(facts.shape) > 1
    ]
    if not packed and fingerprint.linear:
        return
    why = (
        f"{packed[0]} is packed ({fingerprint.tensors[packed[0]].dtype})"
        if packed
        else "it has no linear weights of decoder layers"
    )
    raise CheckpointError(
        f"{checkpoint}: {why}, so there is no mask of zeros to compare; gate it with "
        "weights: same"
    )


def _differ(now: TensorFacts, then: TensorFacts, kind: str) -> bool:
    if now.shape != then.shape:
        return True
    return now.values != then.values if kind == "same" else now.mask != then.mask


def _retyped(pairs: Iterable[tuple[TensorFacts, TensorFacts]]) -> tuple[str, ...]:
    """A line for each pair of dtypes that are not the same."""
    counts: dict[tuple[str, str], int] = {}
    for now, then in pairs:
        if now.dtype != then.dtype:
            kinds = (now.dtype, then.dtype)
            counts[kinds] = counts.get(kinds, 0) + 1
    return tuple(
        f"stored as {now}, recorded {then}: {_count(count)}"
        for (now, then), count in counts.items()
    )


# ----------------------------------------------------------------- the dense weights


def judge_against(
    gate: WeightsGate,
    dense: str,
    *,
    moved: Mapping[str, tuple[int, int]],
    strange: Mapping[str, Sequence[str]],
    known: Collection[str],
    linear: Collection[str],
) -> Verdict:
    """Hold the weights that survived pruning to those of the dense checkpoint.

    Args:
        gate: whose weights they are.
        dense: the other checkpoint's name in the file.
        moved: of each tensor that is not as it should be, how many of its weights are
            not those of the dense one, and how many had to be.
        strange: tensors that could not be compared, by the reason.
        known: all tensors that were looked at.
        linear: those of them that may have been pruned.
    """
    kinds = {**strange, "moved": list(moved)}
    count = sum(map(len, kinds.values()))

    def say(kind: str, names: Sequence[str]) -> str:
        if kind != "moved":
            return kind
        bad, held = (sum(moved[name][i] for name in names) for i in (0, 1))
        return f"{bad} of {held} surviving weights moved"

    return Verdict(
        checkpoint=gate.checkpoint,
        key="against",
        metric=dense,
        outcome=Outcome.CHANGED if count else Outcome.WITHIN,
        passed=not count,
        measured=count,
        allowed=(None, 0),
        gate=gate.origin,
        reasons=name_tensors(kinds, say, known=known, linear=linear),
        notes=(f"{_count(len(known))} compared, weight by weight",),
    )


# ------------------------------------------------------------------------------ words


def name_tensors(
    kinds: Mapping[str, Sequence[str]],
    say: Callable[[str, Sequence[str]], str],
    *,
    known: Collection[str] = (),
    linear: Collection[str] = (),
) -> tuple[str, ...]:
    """Reasons that name tensors, layers grouped, of each kind of trouble in its turn.

    Args:
        kinds: tensors by what is wrong with them, the most important kind first.
        say: words for some tensors of one kind.
        known: all tensors of the checkpoint.
        linear: its linear weights.
    """
    found = [
        (kind, some)
        for kind, names in kinds.items()
        for some in group(names, known=known, linear=linear)
    ]
    lines = [f"{some.text}: {say(kind, some.names)}" for kind, some in found[:_LINES]]
    more = sum(len(some.names) for _, some in found[_LINES:])
    return (*lines, *([f"and {_count(more)} more"] if more else []))


def _strangers(now: Collection[str], then: Collection[str]) -> dict[str, list[str]]:
    return {
        "gone": [name for name in then if name not in now],
        "new": [name for name in now if name not in then],
    }


def _missing(verdict: Verdict, gate: WeightsGate) -> Verdict:
    return replace(
        verdict,
        outcome=Outcome.MISSING,
        passed=False,
        command=gate.command,
        reasons=(f"no fingerprint is recorded for {gate.checkpoint}",),
    )


def _count(tensors: int) -> str:
    return "1 tensor" if tensors == 1 else f"{tensors} tensors"
