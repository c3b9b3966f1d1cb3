"""The baseline files of a run: found once, parsed when needed, looked up by name."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from ..audit import recompute
from ..baselines import (
    Evidence,
    baseline_paths,
    looks_like_baseline,
    read_baseline,
    read_evidence,
    split_name,
)
from ..errors import BaselineError, UsageError
from ..values import (
    BaselineFile,
    CheckpointEntry,
    Key,
    Recorded,
    near_matches,
)

_SAME = 1e-9


class BaselineFiles:
    """Baseline files by stem: those of the folder, and any given by path."""

    def __init__(self, folder: Path, others: Iterable[Path] = ()) -> None:
        self.folder = folder
        self.paths: dict[str, Path] = {}
        self._parsed: dict[str, BaselineFile] = {}
        for path in [*(baseline_paths(folder) if folder.is_dir() else []), *others]:
            self.add(path)

    def add(self, path: Path) -> None:
        """Take a file in.

        Raises:
            BaselineError: another file has its stem, so names would be ambiguous.
        """
        other = self.paths.setdefault(path.stem, path)
        if other != path and not other.samefile(path):
            raise BaselineError(
                f"{other} and {path} would both name their checkpoints "
                f"{path.stem}/...: rename one of the two, or give --ppl-baselines"
            )

    def broken(self) -> dict[str, str]:
        """Why files that look like baselines cannot be read, by their stems."""
        return {
            stem: str(error)
            for stem, path in self.paths.items()
            if looks_like_baseline(path) and (error := self._error(stem)) is not None
        }

    def _error(self, stem: str) -> BaselineError | None:
        try:
            self.read(stem)
        except BaselineError as error:
            return error
        return None

    def read(self, stem: str) -> BaselineFile:
        """The parsed file.

        Raises:
            BaselineError: it is malformed.
        """
        if stem not in self._parsed:
            self._parsed[stem] = read_baseline(self.paths[stem])
        return self._parsed[stem]

    def readable(self) -> dict[str, BaselineFile]:
        """All files that parse; a broken one is reported where it is collected."""
        return {
            stem: self.read(stem) for stem in self.paths if self._error(stem) is None
        }

    def names(self) -> dict[str, str | None]:
        """Every checkpoint name and its ``path:``."""
        return {
            f"{stem}/{name}": entry.path
            for stem, file in self.readable().items()
            for name, entry in file.checkpoints.items()
        }

    def references(self) -> dict[str, str]:
        """What ``kl`` compares with: an entry's name, by checkpoint name."""
        return {
            f"{stem}/{name}": entry.reference
            for stem, file in self.readable().items()
            for name, entry in file.checkpoints.items()
            if entry.reference is not None
        }

    def entry(self, name: str) -> CheckpointEntry:
        """The entry of ``FILE/NAME``.

        Raises:
            UsageError: there is none.
            BaselineError: its file is malformed.
        """
        stem, checkpoint = split_name(name)
        if stem in self.paths:
            file = self.read(stem)
            if checkpoint in file.checkpoints:
                return file.checkpoints[checkpoint]
        names = self.names()
        raise UsageError(
            f"no checkpoint {name} in the baseline files of {self.folder}"
            f"{near_matches(name, names)}"
            + (f"; there are {', '.join(names)}" if names else "")
        )

    def path(self, name: str) -> Path:
        """The file that holds, or would hold, the checkpoint ``FILE/NAME``."""
        stem, _ = split_name(name)
        return self.paths.get(stem, self.folder / f"{stem}.yaml")

    def evidence_of(self, name: str, key: Key, recorded: Recorded) -> Evidence | None:
        """What a baseline's values rest on; None if published.

        The recorded values must follow from the evidence: a value that was changed by
        hand is no measurement.

        Raises:
            BaselineError: evidence missing, changed, or of other values.
        """
        if recorded.evidence is None:
            return None
        path = self.path(name)
        where = f"{name} {key}"
        evidence = read_evidence(path.parent, recorded, where=where)
        again = recompute(key, evidence)
        for metric, value in recorded.metrics.items():
            if metric in again and abs(again[metric] - value) > _SAME * abs(value):
                raise BaselineError(
                    f"{path}: {where}: {metric} {value!r} is recorded, but its "
                    f"evidence {recorded.evidence} gives {again[metric]!r}; a recorded "
                    "value is never edited by hand: restore it, change the gate, or "
                    "record anew with --ppl-update"
                )
        return evidence


def shown_path(path: Path, start: Path) -> str:
    """``path`` as people read it: from where pytest was started, if it is below."""
    try:
        return path.relative_to(start).as_posix()
    except ValueError:
        return path.as_posix()
