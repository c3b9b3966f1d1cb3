"""``pplguard diff``: what differs between two checkpoints, or from a baseline."""

from __future__ import annotations

import os
from functools import cached_property
from pathlib import Path
from typing import Any

import msgspec

from ..baselines import baseline_path, read_baseline, read_fingerprint
from ..checkpoints import (
    Stream,
    changed_places,
    compare_streams,
    each,
    fingerprint,
    locate,
    model_streams,
    stored_streams,
)
from ..diff import Change, Difference, Exact, compare, lines
from ..errors import PplguardError, UsageError
from ..options import Options, Target
from ..safetext import shell_join
from ..values import Fingerprint
from .output import say, show, show_prose, write_json

SCREEN = 20
"""Lines that are printed without ``--all``."""
_COUNTED = ("bad", "huge", "zeroed", "mask", "values")


def diff(
    one: str,
    other: str,
    options: Options,
    *,
    folder: Path,
    everything: bool,
    json_path: str | None,
) -> bool:
    """Print what differs from ``one`` to ``other``; returns whether it matters.

    Each is a checkpoint, or ``FILE/NAME`` of the baseline ``folder``. Of two
    checkpoints the weights that differ are counted one by one.

    Raises:
        UsageError: one of them is not there or cannot be read, or they are of two
            kinds.
    """
    try:
        sides = _side(one, options, folder), _side(other, options, folder)
        _refuse_two_kinds(*sides)
        difference = compare(sides[0].fingerprint, sides[1].fingerprint)
        difference = _counted(difference, *sides)
    # As of diff: 1 says that they differ, and every trouble is 2.
    except PplguardError as error:
        raise UsageError(str(error)) from error
    words = ["pplguard", "diff", one, other, "--all"]
    if folder != Path("baselines"):
        words += ["--baselines", str(folder)]
    command = shell_join(words)
    texts = lines(
        difference,
        limit=None if everything else SCREEN,
        command=command,
        before=one,
    )
    write_json(_document(difference, one, other), json_path)
    if json_path != "-":
        show(f"{one} -> {other}", style="bold")
        for line in texts:
            if line.endswith(f": {command}"):  # to be copied
                show(f"  {line}")
            else:
                show_prose(line, first="  ", rest="    ")
    return difference.matters


class _Recorded:
    """A baseline: its fingerprint is all there is."""

    kind = None

    def __init__(self, recorded: Fingerprint) -> None:
        self.fingerprint = recorded


class _Checkpoint:
    """A checkpoint: read from its files, or loaded if those do not hold its weights."""

    def __init__(self, spec: str, options: Options) -> None:
        self._spec, self._options = spec, options
        self.located = locate(
            spec,
            allow_pickle=options.allow_pickle,
            trust_remote_code=options.trust_remote_code,
        )

    @property
    def kind(self) -> str:
        """What its tensors are named after."""
        return "a GGUF file" if self.located.gguf else "a folder"

    @cached_property
    def fingerprint(self) -> Fingerprint:
        return fingerprint(
            self.located,
            model=lambda: self._model,
            allow_pickle=self._options.allow_pickle,
        )

    def streams(self) -> dict[str, Stream]:
        """Its tensors by their names."""
        found = (
            []
            if self.located.base
            else stored_streams(self.located, allow_pickle=self._options.allow_pickle)
        )
        return {stream.name: stream for stream in found or model_streams(self._model)}

    @cached_property
    def _model(self) -> Any:
        # It imports torch, which two folders need not.
        from ..measure import load_target

        spec = self._spec
        return load_target(Target(spec, spec), self._options, tell=say).model


def _side(spec: str, options: Options, folder: Path) -> _Recorded | _Checkpoint:
    """A path that exists or a name of the demo is a checkpoint, else a baseline."""
    found = named_entry(spec, folder)
    is_path = os.path.exists(Path(os.path.expanduser(spec))) or spec.startswith("demo/")
    if found is None or (is_path and found[0].parent == folder):
        return _Checkpoint(spec, options)
    path, name = found
    entries = read_baseline(path).checkpoints
    if name not in entries:
        raise UsageError(f"{path} has no {name}; it has: {', '.join(entries)}")
    recorded = entries[name].fingerprint
    if recorded is None:
        raise UsageError(
            f"{spec} has no recorded fingerprint ({path}): record it with "
            f"`pplguard update MODEL --checkpoint {path.stem}/{name}`, or give the "
            "checkpoint itself"
        )
    where = f"{path.stem}/{name}, fingerprint"
    return _Recorded(read_fingerprint(path.parent, recorded, where=where))


def named_entry(spec: str, folder: Path) -> tuple[Path, str] | None:
    """File and entry of ``FILE/NAME`` or ``PATH.yaml/NAME``, if there is the file."""
    before, _, name = spec.rpartition("/")
    if not before:
        return None
    if before.endswith((".yaml", ".yml")) and os.path.isfile(before):
        return Path(before), name
    path = baseline_path(folder, before)
    return (path, name) if os.path.isfile(path) else None


def _refuse_two_kinds(
    one: _Recorded | _Checkpoint, other: _Recorded | _Checkpoint
) -> None:
    if one.kind and other.kind and one.kind != other.kind:
        raise UsageError(
            f"one is {one.kind} and the other is {other.kind}: their tensors have "
            "other names and other layouts; compare two of one kind"
        )


def _counted(
    difference: Difference, one: _Recorded | _Checkpoint, other: _Recorded | _Checkpoint
) -> Difference:
    """With counts of the weights that differ, where both can be read."""
    wanted = [change.name for change in difference.changes if _can_be_counted(change)]
    if not (isinstance(one, _Checkpoint) and isinstance(other, _Checkpoint) and wanted):
        return difference
    before, now = one.streams(), other.streams()

    def count(one: Stream) -> Exact:
        other = now[difference.renamed.get(one.name, one.name)]
        found = compare_streams(one, other)
        counts = found.lost, found.gained, found.moved, found.largest
        if sum(counts[:3]) > found.total // 2:
            return Exact(*counts)
        rows, columns = changed_places(one, other)
        height = one.shape[0] if one.shape else 1
        width = found.total // height
        return Exact(
            *counts,
            rows=rows if len(rows) <= height // 2 else (),
            columns=columns if len(columns) <= width // 2 else (),
        )

    return difference.counted(each((before[name] for name in wanted), count))


def _can_be_counted(change: Change) -> bool:
    before, now = change.before, change.now
    if change.kind not in _COUNTED or before is None or now is None:
        return False
    # Of packed tensors the bytes are compared, so they must be packed alike.
    plain = bool(before.mask and now.mask)
    return before.shape == now.shape and (plain or before.dtype == now.dtype)


def _document(difference: Difference, one: str, other: str) -> dict[str, Any]:
    return {
        "one": one,
        "other": other,
        "differs": difference.matters,
        "lines": lines(difference, before=one),
        **msgspec.to_builtins(difference),
    }
