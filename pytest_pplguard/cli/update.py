"""``pplguard update``: measures a checkpoint and records it."""

from __future__ import annotations

import datetime
import shlex
from pathlib import Path

from ..baselines import read_baseline, record, split_name
from ..errors import CheckpointError, UsageError
from ..options import Options
from ..protocols import PROTOCOLS
from ..report import changes_table
from ..values import CheckpointEntry, Key, Recording
from .measure import Checkpoint, Wanted, say


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
    sparsity = _sparsity(model)
    recordings = [
        Recording(
            file=str(path),
            checkpoint=name,
            measurement=model.measure(key),
            base=base,
            # An absolute path says something about one machine only.
            path=None if Path(spec).is_absolute() else spec,
            sparsity=sparsity,
        )
        for key in keys
    ]
    changes = record(recordings, today=datetime.date.today())
    model.discard_journals()
    for line in changes_table(changes):
        print(line)
    for gate in dict.fromkeys(
        gate for change in changes for gate in change.added_gates
    ):
        print(f"added the default gate {gate}")
    print(f"recorded in {path}; review it, then gate with:")
    model_option = spec if spec == checkpoint else f"{checkpoint}={spec}"
    words = ["pytest", str(path), "--ppl-model", model_option]
    if folder != Path("baselines"):
        words += ["--ppl-baselines", str(folder)]
    for corpus, file in options.corpora.items():
        words += ["--ppl-corpus", f"{corpus}={file}"]
    print(f"  {shlex.join(words)}")


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


def _sparsity(model: Checkpoint) -> float | None:
    """Share of zeros, for a default gate; None where it cannot be counted."""
    try:
        return model.sparsity()
    except CheckpointError as error:
        say(f"no sparsity gate: {error}")
        return None


def _listed(keys: list[Key]) -> str:
    return ", ".join(map(str, keys))
