"""``pplguard show``: lists what is recorded."""

from __future__ import annotations

from pathlib import Path

from ..baselines import baseline_paths, read_baseline
from ..errors import UsageError
from ..report import counted, number
from ..values import CheckpointEntry, Recorded, RecordedFingerprint, near_matches
from .output import show_table


def show_baselines(folder: Path, name: str | None) -> None:
    """Print every recorded value of ``folder``, or only of FILE or FILE/NAME.

    Raises:
        UsageError: no such folder, file or checkpoint.
        BaselineError: a file is malformed.
    """
    if not folder.is_dir():
        raise UsageError(
            f"{folder} is no folder; give --baselines DIR, or record a first baseline "
            "with `pplguard update MODEL --checkpoint FILE/NAME --base BASE`"
        )
    files = {path.stem: read_baseline(path) for path in baseline_paths(folder)}
    entries = {
        f"{stem}/{entry.name}": entry
        for stem, file in files.items()
        for entry in file.checkpoints.values()
    }
    chosen = {
        known: entry
        for known, entry in entries.items()
        if name is None or name in (known, known.partition("/")[0])
    }
    if not chosen:
        what = f"{name!r}{near_matches(name, [*files, *entries])}" if name else "file"
        raise UsageError(f"no baseline {what} in {folder}")
    for known, entry in chosen.items():
        show_table(_lines(known, entry))


def _lines(name: str, entry: CheckpointEntry) -> list[str]:
    lines = [f"{name:<40} {'value':>12}  gate"]
    if entry.fingerprint is not None:
        lines.append(fingerprint_line(entry.fingerprint))
    for key, recorded in entry.recorded.items():
        lines.append(f"  {key} ({_source(recorded)})")
        gated = entry.gates.metrics.get(key, {})
        for metric, value in recorded.metrics.items():
            gate = "gated" if metric in gated else "-"
            lines.append(f"    {metric:<36} {number(value):>12}  {gate}")
            if metric in recorded.published:
                lines.append(_published(recorded, metric))
    for key in entry.gates.metrics:
        if key not in entry.recorded:
            lines.append(f"  {key} (gated, not recorded yet)")
    return lines


def fingerprint_line(recorded: RecordedFingerprint) -> str:
    """What is recorded of the weights."""
    zeros = f"{recorded.share * 100:.2f} % zeros, " if recorded.linear else ""
    return (
        f"  fingerprint ({recorded.tensors} tensors, {zeros}recorded {recorded.date})"
    )


def _published(recorded: Recorded, metric: str) -> str:
    value = recorded.published[metric]
    shown = number(value) if isinstance(value, int | float) else str(value)
    reference = recorded.published.get("reference") or ""
    return f"      {'published':<34} {shown:>12}  {reference}".rstrip()


def _source(recorded: Recorded) -> str:
    if recorded.source.kind == "published":
        return f"published: {recorded.source.reference}"
    read = "answers" if "documents" in recorded.units else "windows"
    windows = counted(recorded.windows, read) if recorded.windows else "measured"
    date = recorded.first.get("date")
    return windows if date is None else f"{windows}, first recorded {date}"
