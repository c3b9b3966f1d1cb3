"""``pplguard update``: measures a checkpoint and records it."""

from __future__ import annotations

import datetime
import os
import shlex
import sys
from collections.abc import Mapping
from contextlib import closing, suppress
from pathlib import Path

from msgspec import Struct

from ..baselines import baseline_path, read_baseline, record, split_name
from ..checkpoints import Sparsity
from ..errors import CheckpointError, UsageError
from ..gates import default_sparsity
from ..measure import naming_reference
from ..options import Options, Target
from ..protocols import PROTOCOLS, Kl, get_protocol
from ..report import changes_table
from ..safetext import shell_join
from ..values import (
    USUAL_REFERENCE,
    CheckpointEntry,
    Fingerprint,
    Key,
    Measurement,
    Recording,
    SparsityGate,
)
from .measure import Checkpoint, Wanted
from .output import say, show, show_painted, style_of
from .show import fingerprint_line

_PATTERNS = ((2, 4), (4, 8))
"""N:M that hardware and the literature know, the strictest first."""
_NEAR = 0.01
"""How far zeros may be from an exact N:M that still was pruned to it."""


def update_checkpoint(
    spec: str,
    wanted: Wanted,
    options: Options,
    *,
    folder: Path,
    checkpoint: str,
    base: str | None,
) -> None:
    """Measure ``spec`` and record it as ``checkpoint``; prints old -> new.

    Raises:
        UsageError: no such file and no ``base`` for a new one.
        PplguardError: it cannot be measured or written; nothing is recorded then.
    """
    stem, name = split_name(checkpoint)
    path = baseline_path(folder, stem)
    entries = _entries(path, checkpoint, base)
    entry = entries.get(name)
    reference = _Reference.find(wanted.reference, entries, stem, name)
    keys = wanted.again(_known_keys(entry, reference))
    if not keys:
        wanted.check_keys()
        _check_reference(wanted, reference)
    elif wanted.reference is not None and not any(map(_compares, keys)):
        raise UsageError(f"--reference is for kl, and {checkpoint} has no key of it")
    else:
        say(f"measuring what {checkpoint} gates or records: {_listed(keys)}")
    compared = reference is not None and (
        any(map(_compares, keys)) or Kl.name in wanted.methods
    )
    model = Checkpoint(
        spec,
        options,
        name=checkpoint,
        allow_keys=entry.allow_keys if entry is not None else (),
        reference=reference.target if reference and compared else None,
        reference_keys=reference.allow_keys if reference else (),
    )
    with closing(model):
        if keys:
            model.check(keys)
        else:
            keys = model.keys(wanted)
        fingerprint, sparsity = _of_weights(model, entry, options)

        def measure(key: Key) -> Measurement:
            measured = model.measure(key)
            if reference is None or reference.entry is None or not _compares(key):
                return measured
            return naming_reference(measured, reference.entry)

        recordings = [
            Recording(
                file=str(path),
                checkpoint=name,
                measurement=measure(key),
                base=base,
                # An absolute path says something about one machine only.
                path=None if Path(spec).is_absolute() else spec,
                sparsity=sparsity,
                fingerprint=fingerprint,
            )
            for key in keys
        ]
        changes = record(recordings, today=datetime.date.today(), tell=say)
        model.discard_journals()
    show_painted(changes_table(changes, style=style_of(sys.stdout)))
    for gate in dict.fromkeys(
        gate for change in changes for gate in change.added_gates
    ):
        show(f"added the default gate {gate}")
    print_fingerprint(path, name)
    show(f"recorded in {path}; review it, then gate with:")
    model_option = spec if spec == checkpoint else f"{checkpoint}={spec}"
    words = ["pytest", str(path), "--ppl-model", model_option]
    if reference is not None and compared:
        words += reference.options(stem)
    if folder != Path("baselines"):
        words += ["--ppl-baselines", str(folder)]
    for corpus, file in options.corpora.items():
        words += ["--ppl-corpus", f"{corpus}={file}"]
    for tasks in options.include_path:
        words += ["--ppl-include-path", tasks]
    show(f"  {shell_join(words)}")
    if reference is not None and compared:
        for line in reference.advice(path, name):
            show(line)


def update_fingerprint(
    spec: str,
    wanted: Wanted,
    options: Options,
    *,
    folder: Path,
    checkpoint: str,
    base: str | None,
) -> None:
    """Record what the weights of ``spec`` are as ``checkpoint``; measures nothing.

    Raises:
        UsageError: something to measure is asked for as well; or no such file and no
            ``base`` for a new one.
        PplguardError: it cannot be read or written; nothing is recorded then.
    """
    if wanted != Wanted():
        raise UsageError(
            "--fingerprint measures nothing: leave out --method, --reference, "
            "--window, --stride, --limit, --corpus and --task"
        )
    stem, name = split_name(checkpoint)
    path = baseline_path(folder, stem)
    entry = _entries(path, checkpoint, base).get(name)
    model = Checkpoint(
        spec,
        options,
        name=checkpoint,
        allow_keys=entry.allow_keys if entry is not None else (),
    )
    with closing(model):
        recording = Recording(
            file=str(path),
            checkpoint=name,
            base=base,
            path=None if Path(spec).is_absolute() else spec,
            fingerprint=model.fingerprint(),
        )
    record([recording], today=datetime.date.today(), tell=say)
    print_fingerprint(path, name)
    show(f"recorded in {path}; review it")


def print_fingerprint(path: Path, name: str) -> None:
    """What is recorded of the weights of an entry, if anything is."""
    recorded = read_baseline(path).checkpoints[name].fingerprint
    if recorded is not None:
        show(fingerprint_line(recorded).strip())


class _Reference(Struct, frozen=True):
    """What ``kl`` compares with, here and when the gates run.

    ``entry`` is the entry of the file that it is known to be. ``gated`` is the one that
    the gates will compare with, as the file stands.
    """

    target: Target
    entry: str | None
    gated: str | None
    allow_keys: tuple[str, ...] = ()

    @classmethod
    def find(
        cls,
        given: str | None,
        entries: Mapping[str, CheckpointEntry],
        stem: str,
        name: str,
    ) -> _Reference | None:
        """From ``--reference``: an entry, its ``path:`` or a model; else the usual."""
        others = {other: entries[other] for other in entries if other != name}
        usual = USUAL_REFERENCE if USUAL_REFERENCE in others else None
        gated = entries[name].reference if name in entries else usual
        if given is None and gated is None:
            return None
        for other, entry in others.items():
            names = (other, f"{stem}/{other}", entry.path)
            if entry.path and (given in names or (given is None and other == gated)):
                target = Target(name=f"{stem}/{other}", spec=entry.path)
                return cls(target, other, gated, entry.allow_keys)
        if given is None:
            return None
        if Path(given).name in others and not os.path.exists(given):
            raise UsageError(
                f"--reference {given}: that entry has no path; give where it is"
            )
        return cls(Target(name=given, spec=given), None, gated)

    def options(self, stem: str) -> list[str]:
        """What pytest must be given beside the checkpoint."""
        entry = self.entry or self.gated or USUAL_REFERENCE
        name, spec = f"{stem}/{entry}", self.target.spec
        return ["--ppl-model", name if spec == name else f"{name}={spec}"]

    def advice(self, path: Path, name: str) -> list[str]:
        """What is left to people before the gates can compare."""
        if self.entry is not None and self.entry != self.gated:
            return [f"first write `reference: {self.entry}` into the entry {name}"]
        if self.entry is None and self.gated is None:
            words = ["pplguard", "update", self.target.spec]
            words += ["--checkpoint", f"{path.stem}/{USUAL_REFERENCE}"]
            line = shlex.join(words)
            return [f"first record the reference as another entry of {path}: {line}"]
        return []


def _check_reference(wanted: Wanted, reference: _Reference | None) -> None:
    """As :meth:`Wanted.check_reference`, where an entry has a reference of its own."""
    if reference is not None and Kl.name in wanted.methods:
        return
    wanted.check_reference()


def _compares(key: Key) -> bool:
    return get_protocol(key.method).needs_reference


def _entries(
    path: Path, checkpoint: str, base: str | None
) -> Mapping[str, CheckpointEntry]:
    if path.exists():
        return read_baseline(path).checkpoints
    if base is None:
        raise UsageError(
            f"{path} does not exist; for a new file say what the base model is: "
            f"--checkpoint {checkpoint} --base MODEL"
        )
    return {}


def _known_keys(
    entry: CheckpointEntry | None, reference: _Reference | None
) -> list[Key]:
    """What the entry gates or records, and this version can measure."""
    if entry is None:
        return []
    everything = dict.fromkeys([*entry.gates.metrics, *entry.recorded])
    keys = [Key.parse(key) for key in everything]
    if later := [key for key in keys if key.method not in PROTOCOLS]:
        say(f"left alone, this version cannot measure it: {_listed(later)}")
    keys = [key for key in keys if key.method in PROTOCOLS]
    lonely = [key for key in keys if _compares(key) and reference is None]
    if lonely:
        say(f"left alone, they need --reference MODEL: {_listed(lonely)}")
    return [key for key in keys if key not in lonely]


def _of_weights(
    model: Checkpoint, entry: CheckpointEntry | None, options: Options
) -> tuple[Fingerprint | None, SparsityGate | None]:
    """What is recorded of the weights, and a gate of sparsity where there is none."""
    if options.execution.where == "server":
        say(
            "recorded without a fingerprint and a gate of sparsity: nobody here sees "
            "the server's weights"
        )
        return None, None
    fingerprint = _fingerprint(model)
    gated = entry is not None and entry.gates.sparsity is not None
    return fingerprint, None if gated else _sparsity(model, fingerprint)


def _fingerprint(model: Checkpoint) -> Fingerprint | None:
    """None where it cannot be taken, which is said."""
    try:
        return model.fingerprint()
    except CheckpointError as error:
        say(f"recorded without a fingerprint: {error}")
        return None


def _sparsity(
    model: Checkpoint, fingerprint: Fingerprint | None
) -> SparsityGate | None:
    """The default gate; None where zeros cannot be counted."""
    try:
        sparsity = model.sparsity()
    except CheckpointError as error:
        say(f"no sparsity gate: {error}")
        return None
    known = () if fingerprint is None else fingerprint.linear
    return default_sparsity(
        sparsity.fraction,
        layers=[layer.share for layer in sparsity.layers().values()],
        tensors=[tensor.share for tensor in sparsity.tensors.values()],
        pattern=_pattern(model, sparsity),
        recorded=set(known) == set(sparsity.tensors),
    )


def _pattern(model: Checkpoint, sparsity: Sparsity) -> str | None:
    """The N:M that every group of weights keeps."""
    for keep, size in _PATTERNS:
        if abs(sparsity.fraction - (1 - keep / size)) > _NEAR:
            continue
        with suppress(CheckpointError):  # of a width that it does not divide
            groups = model.sparsity((keep, size))
            if not any(tensor.broken for tensor in groups.tensors.values()):
                return f"{keep}:{size}"
    return None


def _listed(keys: list[Key]) -> str:
    return ", ".join(map(str, keys))
