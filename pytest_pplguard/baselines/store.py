"""Writes measurements into baseline files and evidence: the only place that writes."""

from __future__ import annotations

import contextlib
import datetime
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import filelock
import msgspec
from msgspec import Struct
from msgspec.structs import asdict, replace

from ..errors import BaselineError, UsageError
from ..values import (
    FEWEST_WINDOWS,
    BaselineFile,
    CheckpointEntry,
    Fingerprint,
    Gates,
    Key,
    Measurement,
    Recorded,
    RecordedFingerprint,
    Recording,
    Scalar,
    Source,
    SparsityGate,
    Tolerance,
    divergence_tolerance,
    task_tolerance,
)
from .emit import Block, flow, scalar
from .evidence import encode_evidence, path_inside, refuse_non_finite
from .find import SUFFIXES, split_name
from .fingerprint import encode_fingerprint, read_fingerprint
from .read import FINGERPRINT, baseline_of, read_text
from .splice import Entry, new_file, splice_tree
from .tree import BYTE_ORDER_MARK, Plain, parse_tree

LOCK_SECONDS = 60.0
DEFAULT_REL = 0.005
DEFAULT_DRIFT = 0.002
"""Nats a token; docs/baseline-files.md says what moves predictions so far."""


class Change(Struct, frozen=True, kw_only=True):
    """What recording did to one metric; ``first`` is its first recorded value.

    ``added_gates`` are the default gates that came with the measurement, as the file
    has them: ``wanda/demo:256: {token_perplexity: {rel: 0.005}}``.
    """

    file: str
    checkpoint: str
    key: str
    metric: str
    old: float | None
    new: float
    first: float | None
    added_gates: tuple[str, ...] = ()


def record(
    recordings: Sequence[Recording],
    *,
    today: datetime.date,
    tell: Callable[[str], object] | None = None,
) -> list[Change]:
    """Write measurements into their baseline files, one file after the other.

    A file is replaced as a whole or not at all, also if the process is killed; its
    evidence is written before it, and evidence that it no longer names is removed.
    A checkpoint's fingerprint is that of its latest recording, unless that says to keep
    the one there is.

    Args:
        recordings: what to write.
        today: the date to write.
        tell: takes a line for the user about each checkpoint that has values of
            other weights than its fingerprint is of.

    Raises:
        UsageError: a name or key is wrong, or a new file has no base model.
        BaselineError: a number is not finite, a file is wrong or cannot be written.
    """
    by_file: dict[Path, list[Recording]] = {}
    for recording in recordings:
        _check(recording)
        by_file.setdefault(Path(recording.file), []).append(recording)
    changes: list[Change] = []
    for path, group in by_file.items():
        with _failing_as_baseline_error(path), _locked(path):
            update = _Update(path, today)
            changes += update.run(group)
        if tell is not None:
            for notice in update.notices():
                tell(notice)
    return changes


def _check(recording: Recording) -> None:
    path = Path(recording.file)
    if path.suffix not in SUFFIXES:
        raise UsageError(
            f"{path}: a baseline file's name ends in {' or '.join(SUFFIXES)}"
        )
    name = f"{path.stem}/{recording.checkpoint}"
    split_name(name)
    if recording.measurement is not None:
        Key.parse(recording.measurement.key)
        refuse_non_finite(name, recording.measurement)


class _Update:
    """One file under its lock: old text and entries, then all writes in order."""

    def __init__(self, path: Path, today: datetime.date) -> None:
        self.path = path
        self.today = today
        self.evidence: dict[str, bytes] = {}
        self.replaced: set[str] = set()
        self.recorded: dict[tuple[str, str], Recorded] = {}
        self.fingerprints: dict[str, RecordedFingerprint] = {}
        self.printed: set[str] = set()
        self.kept: set[str] = set()
        self.gates: dict[str, Gates] = {}
        self.gated: set[tuple[str, str]] = set()

    def run(self, recordings: Sequence[Recording]) -> list[Change]:
        file = str(self.path)
        exists = self.path.exists()
        text = (
            read_text(self.path) if exists else new_file(_base(recordings), file=file)
        )
        body = text.removeprefix(BYTE_ORDER_MARK)
        mark = text[: len(text) - len(body)]
        tree = parse_tree(body, file=file)
        self._load(baseline_of(tree, file))
        changes: list[Change] = []
        entries: list[Entry] = []
        latest: dict[str, Recording] = {}
        for recording in recordings:
            if recording.measurement is not None:
                entry, of_entry = self._entry(recording, recording.measurement)
                entries.append(entry)
                changes += of_entry
            if recording.fingerprint is not None:
                latest[recording.checkpoint] = recording
        entries += filter(None, map(self._fingerprint_entry, latest.values()))
        new_body, tree = splice_tree(body, tree, entries, file=file)
        changed = not exists or new_body != body
        self._write(mark + new_body, baseline_of(tree, file), changed=changed)
        return changes

    def notices(self) -> Iterator[str]:
        """Of each checkpoint recorded: keys that were measured on other weights."""
        for checkpoint in sorted(self.printed):
            digest = self.fingerprints[checkpoint].digest
            others = [
                key
                for (name, key), recorded in self.recorded.items()
                if name == checkpoint and recorded.weights_digest not in (None, digest)
            ]
            if not others:
                continue
            name = f"{self.path.stem}/{checkpoint}"
            yield (
                f"{name}: {', '.join(others)} {_was(others)} measured on other weights "
                "than those of the recorded fingerprint, which stays: accept its own "
                f"gate, or `pplguard update PATH --checkpoint {name} --fingerprint`"
                if checkpoint in self.kept
                else f"{name}: other weights than those that are recorded now were "
                f"measured for {', '.join(others)}: record these keys again too"
            )

    def _load(self, baseline: BaselineFile) -> None:
        for name, entry in baseline.checkpoints.items():
            self.gates[name] = entry.gates
            if entry.fingerprint is not None:
                self.fingerprints[name] = entry.fingerprint
            for key, recorded in entry.recorded.items():
                self.recorded[name, key] = recorded

    def _write(self, text: str, baseline: BaselineFile, *, changed: bool) -> None:
        named = _evidence_of(baseline)
        folder = self.path.parent
        for name, content in self.evidence.items():
            if name in named:
                path = path_inside(folder, name, where=str(self.path))
                _write_once(path, content)
        if changed:
            _replace(self.path, text.encode(), temporary=f".{self.path.name}.tmp")
        for name in self.replaced - named:
            # The record stands; a file too many does no harm.
            with contextlib.suppress(OSError, BaselineError):
                path_inside(folder, name, where=str(self.path)).unlink()

    def _entry(
        self, recording: Recording, measurement: Measurement
    ) -> tuple[Entry, list[Change]]:
        checkpoint, key = recording.checkpoint, measurement.key
        name, content = encode_evidence(f"{self.path.stem}/{checkpoint}", measurement)
        self.evidence[name] = content
        old = self.recorded.get((checkpoint, key))
        if old is not None and (old.source.kind == "published" or old.published):
            _refuse_another_text(f"{self.path.stem}/{checkpoint}", measurement)
        if old is not None and old.evidence is not None:
            self.replaced.add(old.evidence)
        new = _recorded(measurement, old, evidence=name, today=self.today)
        if recording.fingerprint is not None:
            new = replace(new, weights_digest=recording.fingerprint.digest)
        self.recorded[checkpoint, key] = new
        gates = self._default_gates(recording, measurement)
        entry = Entry(
            checkpoint=checkpoint,
            key=key,
            recorded=_as_written(new),
            default_gates=gates,
            path=recording.path,
        )
        changes = [
            Change(
                file=recording.file,
                checkpoint=checkpoint,
                key=key,
                metric=metric,
                old=old.metrics.get(metric) if old else None,
                new=value,
                first=_number(new.first.get(metric)),
                added_gates=tuple(
                    f"{scalar(name)}: {flow(gate)}" for name, gate in gates.items()
                ),
            )
            for metric, value in new.metrics.items()
        ]
        return entry, changes

    def _fingerprint_entry(self, recording: Recording) -> Entry | None:
        """The fingerprint of a checkpoint; None where the recorded one stays."""
        checkpoint, fingerprint = recording.checkpoint, recording.fingerprint
        assert fingerprint is not None
        self.printed.add(checkpoint)
        name = f"{self.path.stem}/{checkpoint}"
        new, content = encode_fingerprint(
            name, fingerprint, date=self.today.isoformat()
        )
        old = self.fingerprints.get(checkpoint)
        if old is not None and old.digest == new.digest:
            if self._is_recorded(old, fingerprint):
                return None
            new = replace(new, date=old.date)
        elif old is not None and recording.keep_fingerprint:
            self.kept.add(checkpoint)
            return None
        if old is not None:
            self.replaced.add(old.evidence)
        self.evidence[new.evidence] = content
        self.fingerprints[checkpoint] = new
        return Entry(
            checkpoint=checkpoint,
            key=FINGERPRINT,
            recorded=Block(asdict(new)),
            path=recording.path,
        )

    def _is_recorded(self, old: RecordedFingerprint, new: Fingerprint) -> bool:
        """Whether the evidence of ``old`` says of ``new`` all that is exact."""
        try:
            recorded = read_fingerprint(self.path.parent, old, where=str(self.path))
        except BaselineError:  # lost or damaged: it is written anew
            return False
        return _exact(recorded) == _exact(new)

    def _default_gates(
        self, recording: Recording, measurement: Measurement
    ) -> dict[str, Plain]:
        """Gates for what has none, in the file or through an earlier recording."""
        checkpoint, key = recording.checkpoint, measurement.key
        present = self.gates.get(checkpoint, Gates())
        gates: dict[str, Plain] = {}
        tolerances = _default_tolerances(measurement)
        if tolerances and key not in present.metrics:
            gates[key] = tolerances
        if recording.sparsity is not None and present.sparsity is None:
            gates["sparsity"] = _sparsity_as_written(recording.sparsity)
        new = {k: v for k, v in gates.items() if (checkpoint, k) not in self.gated}
        self.gated |= {(checkpoint, k) for k in new}
        return new


def _exact(fingerprint: Fingerprint) -> Fingerprint:
    """Without the sums, which machines round differently."""
    tensors = {
        name: replace(facts, sum=0.0, norm=0.0, peak=0.0)
        for name, facts in fingerprint.tensors.items()
    }
    return replace(fingerprint, tensors=tensors)


def _sparsity_as_written(gate: SparsityGate) -> dict[str, Plain]:
    fields: dict[str, Plain] = asdict(gate)
    if gate.scope == "total":
        del fields["scope"]
    return {name: value for name, value in fields.items() if value is not None}


def _refuse_another_text(name: str, measurement: Measurement) -> None:
    """A published value would be compared for ever with that of another text."""
    if measurement.protocol.get("official text") is False:
        raise BaselineError(
            f"{name}, {measurement.key}: a value that was published for the official "
            "text stands there, and this run measured another text by that name: give "
            "the official file, or measure your text under a name of its own"
        )


def _base(recordings: Sequence[Recording]) -> str:
    for recording in recordings:
        if recording.base:
            return recording.base
    raise UsageError(
        f"{recordings[0].file} does not exist yet: say which base model it is for, "
        "with --base MODEL"
    )


def _default_tolerances(measurement: Measurement) -> dict[str, Plain]:
    metrics = measurement.metrics
    if measurement.documents:
        quoted = measurement.quoted
        task = task_tolerance(quoted, measurement) or Tolerance(rel=DEFAULT_REL)
        return {quoted: msgspec.to_builtins(task)}
    if "token_perplexity" in metrics:
        told = len(measurement.evidence) >= FEWEST_WINDOWS
        drift = {"drift": DEFAULT_DRIFT} if told else {}
        return {"token_perplexity": {"rel": DEFAULT_REL} | drift}
    perplexities = ("word_perplexity", "byte_perplexity")
    return {name: {"rel": DEFAULT_REL} for name in perplexities if name in metrics} | {
        name: msgspec.to_builtins(tolerance)
        for name, value in metrics.items()
        if (tolerance := divergence_tolerance(name, value)) is not None
    }


def _recorded(
    measurement: Measurement,
    old: Recorded | None,
    *,
    evidence: str,
    today: datetime.date,
) -> Recorded:
    published = dict(old.published) if old else {}
    if old is not None and old.source.kind == "published":
        published = {
            **old.metrics,
            "reference": old.source.reference,
            "digits": old.source.digits,
        }
    return Recorded(
        metrics=dict(measurement.metrics),
        source=Source(kind="measured"),
        windows=measurement.windows,
        units=dict(measurement.units),
        windows_digest=measurement.windows_digest,
        corpus_digest=measurement.corpus_digest,
        evidence=evidence,
        first=_first(measurement, old, today=today),
        published=published,
        environment=dict(measurement.environment),
        stderr=dict(measurement.stderr),
    )


def _first(
    measurement: Measurement, old: Recorded | None, *, today: datetime.date
) -> dict[str, Scalar]:
    if old is None or old.source.kind == "published":
        return {**measurement.metrics, "date": today.isoformat()}
    # Without a `first`, the oldest value known is the one that is replaced.
    known = old.first or old.metrics
    added = {k: v for k, v in measurement.metrics.items() if k not in known}
    return {**known, **added}


def _as_written(recorded: Recorded) -> Block:
    """The flat form of the file; what is empty is left out."""
    source = {"kind": recorded.source.kind}
    fields: dict[str, Plain] = {
        **recorded.metrics,
        "stderr": recorded.stderr,
        "windows": recorded.windows,
        "units": recorded.units,
        "windows_digest": recorded.windows_digest,
        "corpus_digest": recorded.corpus_digest,
        "weights_digest": recorded.weights_digest,
        "evidence": recorded.evidence,
        "source": source,
        "first": recorded.first,
        "published": recorded.published,
        "environment": recorded.environment,
    }
    return Block(
        {name: value for name, value in fields.items() if value not in ({}, None)}
    )


def _evidence_of(baseline: BaselineFile) -> set[str]:
    entries: list[CheckpointEntry] = list(baseline.checkpoints.values())
    names = {
        recorded.evidence for entry in entries for recorded in entry.recorded.values()
    }
    names |= {entry.fingerprint.evidence for entry in entries if entry.fingerprint}
    return {name for name in names if name is not None}


def _was(names: Sequence[str]) -> str:
    return "was" if len(names) == 1 else "were"


def _number(value: Scalar) -> float | None:
    return float(value) if isinstance(value, int | float) else None


# --------------------------------------------------------------------------- the disk


@contextlib.contextmanager
def _failing_as_baseline_error(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        named = error.filename or path
        raise BaselineError(
            f"{path}: not updated: {named} cannot be written: "
            f"{error.strerror or error}: make room or correct the permissions, and "
            "run again"
        ) from error


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold the lock of the file that ``path`` is, or is a link to."""
    real = Path(os.path.realpath(path))
    real.parent.mkdir(parents=True, exist_ok=True)
    lock = real.with_name(f".{real.name}.lock")  # hidden: never collected
    with _in_turn(path, real, filelock.FileLock(lock)):
        yield


def _in_turn(
    path: Path, real: Path, lock: filelock.BaseFileLock
) -> contextlib.AbstractContextManager[object]:
    """Take the lock, however many others are served first.

    Nobody queues for a lock: on a busy machine one of many may be unlucky for minutes.
    As long as the file changes they get done, and so will this one.

    Raises:
        BaselineError: the file has not changed for :data:`LOCK_SECONDS`, or its file
            system has no locks.
    """
    while True:
        seen = _state(real)
        try:
            return lock.acquire(timeout=LOCK_SECONDS)
        except filelock.Timeout as error:
            if _state(real) == seen:
                raise BaselineError(
                    f"{path}: another process has been updating it for "
                    f"{LOCK_SECONDS:.0f} s (it holds {lock.lock_file}): wait until it "
                    "ends, then run again"
                ) from error
        except NotImplementedError as error:  # filelock before 3.24
            raise BaselineError(
                f"{path}: the file system has no locks, and without one two processes "
                f"that update the file would undo each other: record on another disk, "
                "or install filelock 3.24 or newer"
            ) from error


def _state(real: Path) -> tuple[int, int, int] | None:
    """Differs as soon as somebody has replaced the file; None where there is none."""
    try:
        state = real.stat()
    except FileNotFoundError:
        return None
    return state.st_ino, state.st_mtime_ns, state.st_size


def _write_once(path: Path, content: bytes) -> None:
    """Write a file whose name says its content, unless it is there already."""
    if path.is_file() and path.read_bytes() == content:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    _replace(path, content, temporary=".evidence.tmp")


def _replace(path: Path, content: bytes, *, temporary: str) -> None:
    """Put ``content`` at ``path`` in one step, through links, with the mode kept."""
    real = Path(os.path.realpath(path))
    new = real.with_name(temporary)
    # Only the holder of the lock writes here: one that is there was left by a crash.
    new.unlink(missing_ok=True)
    try:
        with new.open("xb") as stream:
            if real.exists():
                new.chmod(real.stat().st_mode & 0o7777)
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        new.replace(real)
    except BaseException:
        new.unlink(missing_ok=True)
        raise
    _sync_folder(real.parent)


def _sync_folder(folder: Path) -> None:
    if os.name == "nt":  # folders cannot be opened there
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
