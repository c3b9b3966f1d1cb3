"""What the page says of gates: the cause of a failure first, then every number."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from typing import TypeVar

from msgspec import Struct

from ...values import Results, Verdict
from ..text import (
    brief_facts,
    change_text,
    command_label,
    count_line,
    failure_text,
    headline,
)
from .pictures import Strip, strip

T = TypeVar("T", bound=Hashable)

STOPPED = "The run was stopped before its end: what is not listed was not measured."


class Gate(Struct, frozen=True):
    """One verdict as a row; ``sentence`` and ``facts`` say what came of it."""

    verdict: Verdict
    picture: Strip | None
    change: str
    sentence: str
    facts: tuple[str, ...]


class Command(Struct, frozen=True):
    """What to type, and what it does: ``to accept``."""

    label: str
    text: str


class CheckpointGates(Struct, frozen=True):
    """All gates of one checkpoint; ``given`` is where it was, if its name is another.

    ``causes`` explain what failed, the most likely one first, and ``where`` says where
    in the text that is; both are empty of a checkpoint that passed.
    """

    name: str
    given: tuple[str, ...]
    gates: tuple[Gate, ...]
    causes: tuple[str, ...]
    where: tuple[str, ...]
    commands: tuple[Command, ...]
    text: str

    @property
    def failed(self) -> tuple[Gate, ...]:
        """Those that did not pass."""
        return tuple(gate for gate in self.gates if not gate.verdict.passed)


class Headline(Struct, frozen=True):
    """The verdict on the whole run; ``state`` is ``passed``, ``failed`` or ``none``."""

    state: str
    title: str
    counts: str


def run_headline(results: Results) -> Headline:
    """Green only if something was judged: a run without gates is no success."""
    gates, failed = len(results.verdicts), sum(not v.passed for v in results.verdicts)
    counts = count_line(results.verdicts)
    if not results.passed:
        if failed:
            title = f"{failed} of {_many(gates, 'gate')} failed"
        elif results.problems:
            title = f"Failed: {_many(len(results.problems), 'problem')} of the run"
        else:
            title = "Stopped before its end"
        return Headline("failed", title, counts or "no gate reached a verdict")
    if not gates:
        title = "Nothing was measured against a baseline"
        return Headline("none", title, "there is no verdict, good or bad")
    title = f"All {gates} gates passed" if gates > 1 else "The gate passed"
    return Headline("passed", title, counts)


def checkpoint_gates(verdicts: Sequence[Verdict]) -> tuple[CheckpointGates, ...]:
    """The gates by checkpoint, those with something red first."""
    by_name: dict[str, list[Verdict]] = {}
    for verdict in sorted(verdicts, key=lambda verdict: verdict.checkpoint):
        by_name.setdefault(verdict.checkpoint, []).append(verdict)
    found = [_of_checkpoint(name, group) for name, group in by_name.items()]
    return tuple(sorted(found, key=lambda one: not one.failed))


def _of_checkpoint(name: str, verdicts: Sequence[Verdict]) -> CheckpointGates:
    keys = [verdict.key for verdict in verdicts]
    ordered = sorted(verdicts, key=lambda verdict: keys.index(verdict.key))
    failed = [verdict for verdict in ordered if not verdict.passed]
    causes = _causes(failed)
    return CheckpointGates(
        name=name,
        given=tuple(unique(v.path for v in verdicts if v.path not in ("", name))),
        gates=tuple(_gate(verdict, causes) for verdict in ordered),
        causes=causes,
        where=_where(failed),
        commands=tuple(
            unique(
                Command(command_label(verdict), verdict.command)
                for verdict in failed
                if verdict.command
            )
        ),
        text="\n\n".join(map(failure_text, failed)),
    )


def _gate(verdict: Verdict, causes: Sequence[str]) -> Gate:
    facts = [*brief_facts(verdict), *verdict.documents[:1]]
    return Gate(
        verdict=verdict,
        picture=strip(verdict),
        change=change_text(verdict.change),
        sentence=headline(verdict).removeprefix(f"{verdict.checkpoint} "),
        # What stands above all gates of the checkpoint is not said of each again.
        facts=tuple(fact for fact in facts if fact not in causes),
    )


def _causes(failed: Sequence[Verdict]) -> tuple[str, ...]:
    """What explains failures: another dtype, what changed; else each gate's reasons."""
    reasons = unique(reason for verdict in failed for reason in verdict.reasons)
    dtypes = [reason for reason in reasons if reason.startswith("dtype ")]
    changes = unique(line for verdict in failed for line in verdict.changes)
    return tuple([*dtypes, *changes] or reasons)


def _where(failed: Sequence[Verdict]) -> tuple[str, ...]:
    """Where in the text the first of the failures is; of losses before divergences."""
    told = [verdict for verdict in failed if verdict.where]
    told.sort(key=lambda verdict: verdict.key.startswith("kl/"))
    return told[0].where if told else ()


def unique(items: Iterable[T]) -> list[T]:
    """The items in order, each once."""
    return list(dict.fromkeys(items))


def _many(count: int, what: str) -> str:
    return f"{count} {what}{'' if count == 1 else 's'}"
