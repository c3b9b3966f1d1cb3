"""``pplguard card``: recorded numbers into a model card, each with its method."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from ..audit import evidence_problems
from ..baselines import (
    baseline_paths,
    looks_like_baseline,
    read_baseline,
    read_evidence,
    read_fingerprint,
    split_name,
)
from ..baselines.read import FINGERPRINT
from ..checkpoints import Located, fingerprint, locate
from ..checkpoints.locate import DEMO
from ..errors import BaselineError, UsageError
from ..gates.defaults import SPARSE_FROM
from ..options import Options, Target
from ..report import number
from ..report.card import Published, eval_results, new_card, results_of, with_results
from ..session.files import shown_path
from ..values import BaselineFile, CheckpointEntry, Key, near_matches
from .output import say, show

if TYPE_CHECKING:
    from torch import nn

CARD = "README.md"


def write_card(
    model: str, checkpoint: str | None, *, folder: Path, dry_run: bool
) -> None:
    """Put the recorded numbers of a checkpoint into ``MODEL/README.md``.

    Raises:
        UsageError: the weights are not the recorded ones, nothing measured is recorded,
            or the card cannot be read or may not be written.
        BaselineError: the baseline or its evidence is wrong.
        CheckpointError: the checkpoint cannot be read.
    """
    located = locate(model)
    path = located.folder / CARD
    shown = shown_path(path, Path.cwd())
    if not dry_run:
        _refuse_shared(located, path, shown)
    digest = _digest(located, model)
    file, entry = _recorded(folder, checkpoint, digest, model)
    name = f"{Path(file.path).stem}/{entry.name}"
    results = eval_results(_measured(folder, name, entry))
    title = located.gguf or Path(os.path.abspath(located.folder)).name
    old = _read(path, shown)
    if old is None:
        text = new_card(
            title,
            results,
            base=file.model,
            pruned=entry.fingerprint is not None
            and entry.fingerprint.share >= SPARSE_FROM,
            library=None if located.gguf else "transformers",
        )
    else:
        text = with_results(old, results, name=title, place=shown)
    written = [(r.metric_name, r.metric_value) for r in results_of(text)]
    assert all((r.metric_name, r.metric_value) in written for r in results)
    if dry_run:
        show(*text.removesuffix("\n").split("\n"))
        return
    if text == old:
        show(f"{shown}: up to date with {name}")
        return
    _replace(path, text, shown)
    for result in results:
        show(f"  {number(result.metric_value):>12}  {result.metric_name}")
    many = f"{len(results)} result{'s' * (len(results) > 1)}"
    show(f"{shown}: {many} of {name}")


# ----------------------------------------------------------------------- what is shown


def _digest(located: Located, model: str) -> str:
    def load() -> nn.Module:
        # Weights that are in no file: those of an adapter, or of a pickle.
        from ..measure import load_target

        target = Target(model, model)
        loaded: nn.Module = load_target(target, Options(device="cpu"), tell=say).model
        return loaded

    return fingerprint(located, model=load).digest


def _recorded(
    folder: Path, checkpoint: str | None, digest: str, model: str
) -> tuple[BaselineFile, CheckpointEntry]:
    """The entry whose recorded weights these are."""
    if not folder.is_dir():
        raise UsageError(f"{folder} is no folder; give --baselines DIR")
    files = {
        path.stem: read_baseline(path)
        for path in baseline_paths(folder)
        if looks_like_baseline(path)
    }
    entries = {
        f"{stem}/{entry.name}": (file, entry)
        for stem, file in files.items()
        for entry in file.checkpoints.values()
    }
    if checkpoint is None:
        return _only(entries, digest, folder, model)
    split_name(checkpoint)
    if checkpoint not in entries:
        raise UsageError(
            f"no checkpoint {checkpoint} in the baseline files of {folder}"
            f"{near_matches(checkpoint, entries)}"
        )
    file, entry = entries[checkpoint]
    if entry.fingerprint is None:
        raise UsageError(
            f"{checkpoint} has no recorded fingerprint, so nobody can tell whether "
            f"{model} is what was measured: record it with `pplguard update {model} "
            f"--checkpoint {checkpoint}`"
        )
    if entry.fingerprint.digest != digest:
        raise UsageError(
            f"{model} does not hold the weights that were recorded as {checkpoint}, "
            f"and its numbers are theirs alone: see `pplguard diff {checkpoint} "
            f"{model}`, or record these with `pplguard update`"
        )
    return file, entry


def _only(
    entries: dict[str, tuple[BaselineFile, CheckpointEntry]],
    digest: str,
    folder: Path,
    model: str,
) -> tuple[BaselineFile, CheckpointEntry]:
    found = [
        name
        for name, (_, entry) in entries.items()
        if entry.fingerprint is not None and entry.fingerprint.digest == digest
    ]
    if not found:
        raise UsageError(
            f"no baseline in {folder} was recorded of the weights of {model}: record "
            f"them with `pplguard update {model} --checkpoint FILE/NAME`, or look at "
            f"what differs with `pplguard diff FILE/NAME {model}`"
        )
    if len(found) > 1:
        raise UsageError(
            f"the weights of {model} were recorded as {' and as '.join(found)}: say "
            f"which, for example --checkpoint {found[0]}"
        )
    return entries[found[0]]


def _measured(folder: Path, name: str, entry: CheckpointEntry) -> list[Published]:
    """What was measured on the recorded weights and follows from its evidence."""
    now = entry.fingerprint
    assert now is not None
    read_fingerprint(folder, now, where=f"{name}, {FINGERPRINT}")
    records = []
    for text, recorded in entry.recorded.items():
        key = Key.parse(text)
        if recorded.evidence is None:
            say(f"left out, published elsewhere and not measured here: {text}")
            continue
        if recorded.weights_digest not in (None, now.digest):
            say(f"left out, measured on other weights: {text}")
            continue
        for problem in evidence_problems(folder, name, key, recorded):
            raise BaselineError(problem)
        records.append(
            Published(
                checkpoint=name,
                key=key,
                recorded=recorded,
                evidence=read_evidence(folder, recorded, where=f"{name}, {text}"),
            )
        )
    unsure = [str(r.key) for r in records if r.recorded.weights_digest is None]
    if unsure:
        say(
            f"without a weights_digest, as it is not recorded on which weights "
            f"they were measured: {', '.join(unsure)}; `pplguard update` records that"
        )
    if not records:
        raise UsageError(
            f"{name} records nothing that was measured on these weights: there is "
            "nothing to publish"
        )
    return records


# ------------------------------------------------------------------------------ writing


def _refuse_shared(located: Located, path: Path, shown: str) -> None:
    """Neither the package nor the Hub's cache is the user's to write to."""
    folder = Path(os.path.realpath(located.folder))
    if folder.is_relative_to(os.path.realpath(DEMO)):
        raise UsageError(
            f"{located.spec} is part of the package, which is not written to: copy it "
            "with `pplguard demo DIR`, or give --dry-run"
        )
    cached = (
        folder.parent.name == "snapshots" and (folder.parents[1] / "blobs").is_dir()
    )
    if cached or path.is_symlink():
        what = "in the Hub's cache" if cached else "a link"
        raise UsageError(
            f"{shown} is {what}, and what is written there would be lost, or seen by "
            "others: copy the checkpoint to a folder of its own, or give --dry-run"
        )


def _read(path: Path, shown: str) -> str | None:
    if not path.exists():
        return None
    try:
        # With its own line ends.
        return path.read_bytes().decode("utf-8")
    except OSError as error:
        raise UsageError(
            f"{shown} cannot be read: {error.strerror or error}"
        ) from error
    except UnicodeDecodeError as error:
        raise UsageError(f"{shown} is not UTF-8: save it as UTF-8") from error


def _replace(path: Path, text: str, shown: str) -> None:
    """In one step, with the mode of the file that was there."""
    try:
        mode = path.stat().st_mode & 0o7777 if path.exists() else None
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        new = Path(temporary)
        try:
            with os.fdopen(handle, "wb") as stream:
                stream.write(text.encode())
                stream.flush()
                os.fsync(stream.fileno())
            new.chmod(mode if mode is not None else 0o666 & ~_umask())
            new.replace(path)
        finally:
            new.unlink(missing_ok=True)
    except OSError as error:
        raise UsageError(
            f"{shown} cannot be written: {error.strerror or error}; give --dry-run to "
            "see what it would hold"
        ) from error


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
