"""``pplguard update``: measures a checkpoint and records it."""

from __future__ import annotations

import datetime
import shlex
from contextlib import suppress
from pathlib import Path

from ..baselines import read_baseline, record, split_name
from ..checkpoints import Sparsity
from ..errors import CheckpointError, UsageError
from ..gates import default_sparsity
from ..options import Options
from ..protocols import PROTOCOLS
from ..report import changes_table
from ..values import CheckpointEntry, Fingerprint, Key, Recording, SparsityGate
from .measure import Checkpoint, Wanted, say
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
    path = folder / f"{stem}.yaml"
    entry = _entry(path, name, checkpoint, base)
    keys = wanted.again(_known_keys(entry))
    if keys:
        say(f"measuring what {checkpoint} gates or records: {_listed(keys)}")
    model = Checkpoint(
        spec,
        options,
        name=checkpoint,
        allow_keys=entry.allow_keys if entry is not None else (),
    )
    if not keys:
        keys = wanted.keys(wanted.window or model.default_window())
    fingerprint = _fingerprint(model)
    gated = entry is not None and entry.gates.sparsity is not None
    sparsity = None if gated else _sparsity(model, fingerprint)
    recordings = [
        Recording(
            file=str(path),
            checkpoint=name,
            measurement=model.measure(key),
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
    for line in changes_table(changes):
        print(line)
    for gate in dict.fromkeys(
        gate for change in changes for gate in change.added_gates
    ):
        print(f"added the default gate {gate}")
    print_fingerprint(path, name)
    print(f"recorded in {path}; review it, then gate with:")
    model_option = spec if spec == checkpoint else f"{checkpoint}={spec}"
    words = ["pytest", str(path), "--ppl-model", model_option]
    if folder != Path("baselines"):
        words += ["--ppl-baselines", str(folder)]
    for corpus, file in options.corpora.items():
        words += ["--ppl-corpus", f"{corpus}={file}"]
    print(f"  {shlex.join(words)}")


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
            "--fingerprint measures nothing: leave out --method, --window, --limit "
            "and --corpus"
        )
    stem, name = split_name(checkpoint)
    path = folder / f"{stem}.yaml"
    entry = _entry(path, name, checkpoint, base)
    model = Checkpoint(
        spec,
        options,
        name=checkpoint,
        allow_keys=entry.allow_keys if entry is not None else (),
    )
    recording = Recording(
        file=str(path),
        checkpoint=name,
        base=base,
        path=None if Path(spec).is_absolute() else spec,
        fingerprint=model.fingerprint(),
    )
    record([recording], today=datetime.date.today(), tell=say)
    print_fingerprint(path, name)
    print(f"recorded in {path}; review it")


def print_fingerprint(path: Path, name: str) -> None:
    """What is recorded of the weights of an entry, if anything is."""
    recorded = read_baseline(path).checkpoints[name].fingerprint
    if recorded is not None:
        print(fingerprint_line(recorded).strip())


def _entry(
    path: Path, name: str, checkpoint: str, base: str | None
) -> CheckpointEntry | None:
    if path.exists():
        return read_baseline(path).checkpoints.get(name)
    if base is None:
        raise UsageError(
            f"{path} does not exist; for a new file say what the base model is: "
            f"--checkpoint {checkpoint} --base MODEL"
        )
    return None


def _known_keys(entry: CheckpointEntry | None) -> list[Key]:
    """What the entry gates or records, and this version can measure."""
    if entry is None:
        return []
    everything = dict.fromkeys([*entry.gates.metrics, *entry.recorded])
    keys = [Key.parse(key) for key in everything]
    if later := [key for key in keys if key.method not in PROTOCOLS]:
        say(f"left alone, this version cannot measure it: {_listed(later)}")
    return [key for key in keys if key.method in PROTOCOLS]


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
