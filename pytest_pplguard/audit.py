"""Whether baseline files hold together: gates, records, evidence; needs no model."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from msgspec import Struct

from .baselines import Evidence, read_evidence, read_fingerprint
from .baselines.evidence import HASH_IN_NAME
from .baselines.read import FINGERPRINT, check_baseline, read_text
from .errors import BaselineError, PplguardError
from .gates import holds_fingerprint
from .protocols import check_key, get_protocol, recompute_task
from .values import (
    BaselineFile,
    CheckpointEntry,
    Key,
    MetricName,
    Recorded,
    RelativeGate,
    near_matches,
)

SAME = 1e-12
"""Relative. Sums of doubles are exact here, so only a last digit may differ."""

_RECORD = "record it with `pplguard update`, or remove the gate"


class Finding(Struct, frozen=True):
    """Something that is wrong with a baseline file, or (``warning``) looks odd.

    ``text`` begins with its place, ``FILE:LINE: ``.
    """

    text: str
    warning: bool = False


class Audit(Struct, frozen=True):
    """What was found in a baseline file, and how much was looked at.

    ``values`` counts recorded values that were computed again from their evidence,
    ``published`` those that have none; ``evidence`` names the files that belong to it.
    """

    findings: tuple[Finding, ...]
    checkpoints: int = 0
    values: int = 0
    published: int = 0
    evidence: frozenset[str] = frozenset()


def audit_file(path: Path) -> Audit:
    """Check a baseline file, and every evidence file that it names.

    All findings are given, in the order of the file.
    """
    try:
        file, problems = check_baseline(read_text(path), str(path))
    except BaselineError as error:
        file, problems = None, [str(error)]
    audit = _Audit(path, problems)
    if file is not None:
        for entry in file.checkpoints.values():
            audit.entry(file, entry)
    found = sorted(audit.findings, key=lambda finding: finding[0])
    return Audit(
        findings=tuple(finding for _, finding in found),
        checkpoints=0 if file is None else len(file.checkpoints),
        values=audit.values,
        published=audit.published,
        evidence=frozenset(audit.evidence),
    )


def orphans(folder: Path, named: frozenset[str]) -> list[str]:
    """Evidence below a baseline ``folder`` that no file names, relative to it."""
    found = []
    for path in sorted(folder.rglob("*.json")):
        name = path.relative_to(folder).as_posix()
        if HASH_IN_NAME.fullmatch(path.name) and name not in named:
            found.append(name)
    return found


def evidence_problems(
    folder: Path, checkpoint: str, key: Key, recorded: Recorded
) -> Iterator[str]:
    """What does not follow from the evidence of a measured record, in words.

    ``checkpoint`` is the full name, ``llama-2-7b/wanda-50``. Evidence that is missing
    or not what its name says is one problem, and the only one.
    """
    where = f"{checkpoint}, {key}"
    try:
        evidence = read_evidence(folder, recorded, where=where)
    except BaselineError as error:
        yield str(error)
        return
    yield from _unlike(evidence, where, key, recorded)


def _unlike(
    evidence: Evidence, where: str, key: Key, recorded: Recorded
) -> Iterator[str]:
    """What is recorded otherwise than it follows from ``evidence``."""
    place = f"{where}: evidence {recorded.evidence}"
    for name, there, here in (
        ("key", evidence.key, str(key)),
        ("units", evidence.units, dict(recorded.units)),
    ):
        if there != here:
            yield f"{place}: its {name} is {there}, recorded is {here}: {_RESTORE}"
    try:
        again = recompute(key, evidence)
    except (PplguardError, KeyError, ValueError, ZeroDivisionError) as error:
        yield f"{place}: its values cannot be computed again: {error}: {_RESTORE}"
        return
    for metric, value in recorded.metrics.items():
        given = again.get(metric, evidence.metrics.get(metric))
        if given is None:
            yield f"{where}: {metric} is recorded, but not in its evidence: {_RESTORE}"
        elif abs(given - value) > SAME * abs(value):
            yield (
                f"{where}: {metric} {value!r} is recorded, but its evidence "
                f"{recorded.evidence} gives {given!r}: {_RESTORE}"
            )


_RESTORE = (
    "a recorded value is never edited by hand: restore it, or record anew with "
    "`pplguard update`"
)


def recompute(key: Key, evidence: Evidence) -> dict[MetricName, float]:
    """The metrics of a key from evidence alone; of a task those that are known to be.

    Raises:
        UsageError: no such method.
        InvalidLossError: the losses are beyond any finite perplexity.
    """
    if evidence.documents:
        return recompute_task(evidence.documents, evidence.protocol)
    return get_protocol(key.method).recompute(evidence.windows, evidence.units)


class _Audit:
    """Findings of one file, each with its line."""

    def __init__(self, path: Path, problems: list[str]) -> None:
        self.path = path
        self.findings = [(self._line_of(text), Finding(text)) for text in problems]
        self.values = self.published = 0
        self.evidence: set[str] = set()

    def _line_of(self, text: str) -> int:
        number = text.removeprefix(f"{self.path}:").partition(":")[0]
        return int(number) if number.isdecimal() else 0

    def add(self, line: int, text: str, kind: Literal["", "warning"] = "") -> None:
        mark = "warning: " if kind else ""
        finding = Finding(f"{self.path}:{line}: {mark}{text}", bool(kind))
        self.findings.append((line, finding))

    def entry(self, file: BaselineFile, entry: CheckpointEntry) -> None:
        name = f"{self.path.stem}/{entry.name}"
        for text, recorded in entry.recorded.items():
            self._record(name, text, recorded, entry, file)
        if entry.fingerprint is not None:
            self.evidence.add(entry.fingerprint.evidence)
            try:
                read_fingerprint(
                    self.path.parent, entry.fingerprint, where=f"{name}, {FINGERPRINT}"
                )
            except BaselineError as error:
                self.add(entry.lines[f"recorded.{FINGERPRINT}"], str(error))
        self._gates(name, entry)
        if entry.gates.relative is not None:
            self._relative(name, entry, entry.gates.relative, file)

    def _record(
        self,
        name: str,
        text: str,
        recorded: Recorded,
        entry: CheckpointEntry,
        file: BaselineFile,
    ) -> None:
        line = entry.lines[f"recorded.{text}"]
        key = Key.parse(text)
        try:
            check_key(key)
        except PplguardError as error:
            self.add(line, f"{name}, recorded: {error}")
            return
        if recorded.evidence is None:
            self.published += len(recorded.metrics)
            return
        self.evidence.add(recorded.evidence)
        where = f"{name}, {key}"
        try:
            evidence = read_evidence(self.path.parent, recorded, where=where)
        except BaselineError as error:
            self.add(line, str(error))
            problems = [str(error)]
        else:
            problems = [*_unlike(evidence, where, key, recorded)]
            for problem in problems:
                self.add(line, problem)
            if self._is_of_another(evidence, recorded, entry, file):
                self.add(
                    line,
                    f"{where}: its evidence was measured of {evidence.checkpoint}, "
                    "which has other weights: record this key again",
                    "warning",
                )
        if not problems:
            self.values += len(recorded.metrics)
        now = entry.fingerprint
        if now is not None and recorded.weights_digest not in (None, now.digest):
            self.add(
                line,
                f"{name}, {text}: measured on other weights than those of the recorded "
                "fingerprint: record this key again, or the fingerprint with `pplguard "
                "update --fingerprint`",
                "warning",
            )

    def _is_of_another(
        self,
        evidence: Evidence,
        recorded: Recorded,
        entry: CheckpointEntry,
        file: BaselineFile,
    ) -> bool:
        """Whether a record was copied from another checkpoint of the file.

        One that was renamed keeps evidence that has its old name, and nobody else does.
        """
        now = entry.fingerprint
        stem, _, other = evidence.checkpoint.partition("/")
        if now is None or stem != self.path.stem or other == entry.name:
            return False
        theirs = file.checkpoints.get(other, CheckpointEntry(other)).fingerprint
        known = recorded.weights_digest
        return theirs is not None and now.digest not in (theirs.digest, known)

    def _gates(self, name: str, entry: CheckpointEntry) -> None:
        for text, gates in entry.gates.metrics.items():
            line = entry.lines[f"gates.{text}"]
            where = f"{name}, gates, {text}"
            key = Key.parse(text)
            try:
                check_key(key)
            except PplguardError as error:
                self.add(line, f"{name}, gates: {error}")
                continue
            if get_protocol(key.method).needs_reference and entry.reference is None:
                self.add(
                    line,
                    f"{where}: compares with another checkpoint, and none is named: "
                    "add `reference: NAME` to the entry",
                )
            if f"recorded.{text}" not in entry.lines:
                near = near_matches(text, entry.recorded)
                self.add(line, f"{where}: nothing is recorded by this key{near}: "
                         + _RECORD)  # fmt: skip
                continue
            if text not in entry.recorded:  # what is wrong with it has been said
                continue
            metrics = entry.recorded[text].metrics
            for metric in gates:
                if metric not in metrics:
                    near = near_matches(metric, metrics)
                    self.add(
                        entry.lines[f"gates.{text}.{metric}"],
                        f"{where}: no {metric} is recorded{near}; there are "
                        f"{', '.join(metrics)}",
                    )
        if holds_fingerprint(entry.gates) and (
            f"recorded.{FINGERPRINT}" not in entry.lines
        ):
            gate = "weights" if entry.gates.weights in ("same", "mask") else "sparsity"
            self.add(
                entry.lines[f"gates.{gate}"],
                f"{name}, gates, {gate}: no fingerprint is recorded: {_RECORD}",
            )

    def _relative(
        self, name: str, entry: CheckpointEntry, gate: RelativeGate, file: BaselineFile
    ) -> None:
        line = entry.lines["gates.relative"]
        where = f"{name}, gates, relative"
        key = Key.parse(gate.key)
        try:
            check_key(key)
        except PplguardError as error:
            self.add(line, f"{where}: {error}")
            return
        protocol = get_protocol(key.method)
        known: list[str] = [] if protocol.runs_task(key) else list(protocol.metrics)
        for other in (entry, file.checkpoints.get(gate.to)):
            recorded = None if other is None else other.recorded.get(gate.key)
            known += [] if recorded is None else recorded.metrics
        known = list(dict.fromkeys(known))
        if gate.metric is not None and known and gate.metric not in known:
            self.add(
                line,
                f"{where}: {gate.key} has no metric {gate.metric}"
                f"{near_matches(gate.metric, known)}; it has "
                f"{', '.join(known)}",
            )
