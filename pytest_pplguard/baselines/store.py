"""Writes measurements into baseline files and evidence: the only place that writes."""

from __future__ import annotations

import contextlib
import datetime
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import filelock
from msgspec import Struct

from ..errors import BaselineError, UsageError
from ..values import (
    BaselineFile,
    CheckpointEntry,
    Gates,
    Key,
    Measurement,
    Recorded,
    Recording,
    Scalar,
    Source,
)
from .emit import Block
from .evidence import encode_evidence, refuse_non_finite
from .find import SUFFIXES, split_name
from .read import baseline_of, read_text
from .splice import Entry, new_file, splice_tree
from .tree import BYTE_ORDER_MARK, Plain, parse_tree

LOCK_SECONDS = 60.0
DEFAULT_REL = 0.005
DEFAULT_SPARSITY_ABS = 0.001
SPARSE_FROM = 0.01
"""A checkpoint with fewer zeros than this share is not called pruned."""


class Change(Struct, frozen=True, kw_only=True):
    """What recording did to one metric; ``first`` is its first recorded value.

    ``added_gates`` names the default gates that came with the measurement.
    """

    file: str
    checkpoint: str
    key: str
    metric: str
    old: float | None
    new: float
    first: float | None
    added_gates: tuple[str, ...] = ()


def record(recordings: Sequence[Recording], *, today: datetime.date) -> list[Change]:
    """Write measurements into their baseline files, one file after the other.

    A file is replaced as a whole or not at all, also if the process is killed; its
    evidence is written before it, and evidence that it no longer names is removed.

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
            changes += _Update(path, today).run(group)
    return changes


def _check(recording: Recording) -> None:
    path = Path(recording.file)
    if path.suffix not in SUFFIXES:
        raise UsageError(
            f"{path}: a baseline file's name ends in {' or '.join(SUFFIXES)}"
        )
    name = f"{path.stem}/{recording.checkpoint}"
    split_name(name)
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
        for recording in recordings:
            entry, of_entry = self._entry(recording)
            entries.append(entry)
            changes += of_entry
        new_body, tree = splice_tree(body, tree, entries, file=file)
        changed = not exists or new_body != body
        self._write(mark + new_body, baseline_of(tree, file), changed=changed)
        return changes

    def _load(self, baseline: BaselineFile) -> None:
        for name, entry in baseline.checkpoints.items():
            self.gates[name] = entry.gates
            for key, recorded in entry.recorded.items():
                self.recorded[name, key] = recorded

    def _write(self, text: str, baseline: BaselineFile, *, changed: bool) -> None:
        named = _evidence_of(baseline)
        folder = self.path.parent
        for name, content in self.evidence.items():
            if name in named:
                _write_once(folder / name, content)
        if changed:
            _replace(self.path, text.encode(), temporary=f".{self.path.name}.tmp")
        for name in self.replaced - named:
            # The record stands; a file too many does no harm.
            with contextlib.suppress(OSError):
                (folder / name).unlink()

    def _entry(self, recording: Recording) -> tuple[Entry, list[Change]]:
        measurement = recording.measurement
        checkpoint, key = recording.checkpoint, measurement.key
        name, content = encode_evidence(f"{self.path.stem}/{checkpoint}", measurement)
        self.evidence[name] = content
        old = self.recorded.get((checkpoint, key))
        if old is not None and (old.source.kind == "published" or old.published):
            _refuse_another_text(f"{self.path.stem}/{checkpoint}", measurement)
        if old is not None and old.evidence is not None:
            self.replaced.add(old.evidence)
        new = _recorded(measurement, old, evidence=name, today=self.today)
        self.recorded[checkpoint, key] = new
        gates = self._default_gates(recording)
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
                added_gates=tuple(gates),
            )
            for metric, value in new.metrics.items()
        ]
        return entry, changes

    def _default_gates(self, recording: Recording) -> dict[str, Plain]:
        """Gates for what has none, in the file or through an earlier recording."""
        checkpoint, key = recording.checkpoint, recording.measurement.key
        present = self.gates.get(checkpoint, Gates())
        gates: dict[str, Plain] = {}
        metrics = _gated_metrics(recording.measurement)
        if metrics and key not in present.metrics:
            gates[key] = {metric: {"rel": DEFAULT_REL} for metric in metrics}
        share = recording.sparsity
        if share is not None and share > SPARSE_FROM and present.sparsity is None:
            gates["sparsity"] = {
                "fraction": round(share, 6),
                "abs": DEFAULT_SPARSITY_ABS,
            }
        new = {k: v for k, v in gates.items() if (checkpoint, k) not in self.gated}
        self.gated |= {(checkpoint, k) for k in new}
        return new


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


def _gated_metrics(measurement: Measurement) -> list[str]:
    metrics = measurement.metrics
    if "token_perplexity" in metrics:
        return ["token_perplexity"]
    return [name for name in ("word_perplexity", "byte_perplexity") if name in metrics]


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
    return {
        recorded.evidence
        for entry in entries
        for recorded in entry.recorded.values()
        if recorded.evidence is not None
    }


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
    try:
        with filelock.FileLock(lock, timeout=LOCK_SECONDS):
            yield
    except filelock.Timeout as error:
        raise BaselineError(
            f"{path}: another process has been updating it for {LOCK_SECONDS:.0f} s "
            f"(it holds {lock}): wait until it ends, then run again"
        ) from error


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
