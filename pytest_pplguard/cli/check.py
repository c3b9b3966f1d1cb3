"""``pplguard check``: baseline files and their evidence, without a model."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence, Set
from pathlib import Path

from ..audit import Finding, audit_file, orphans
from ..baselines import (
    baseline_path,
    baseline_paths,
    looks_like_baseline,
    parse_baseline,
)
from ..baselines.find import SUFFIXES
from ..baselines.read import FINGERPRINT
from ..errors import BaselineError, PplguardError, UsageError
from ..values import near_matches
from .git import Repository
from .output import show


def check_baselines(paths: Sequence[Path]) -> bool:
    """Print what is wrong, ``FILE:LINE: message`` a line; returns whether nothing is.

    Args:
        paths: baseline files, folders of them, or evidence, which stands for the
            baseline file that it belongs to.

    Raises:
        UsageError: one of them is not there, or a folder has no baseline file.
    """
    files = list(dict.fromkeys(file for path in paths for file in _files(path)))
    audits = {file: audit_file(file) for file in files}
    findings = [finding for audit in audits.values() for finding in audit.findings]
    named = frozenset(name for audit in audits.values() for name in audit.evidence)
    sound = {file for file, audit in audits.items() if not audit.findings}
    findings += _orphans(sound, named)
    for folder in dict.fromkeys(file.parent for file in files):
        findings += _not_added(folder, [f for f in files if f.parent == folder])
    for finding in findings:
        show(finding.text)
    wrong = sum(not finding.warning for finding in findings)
    counts = [
        _count(len(files), "baseline file"),
        _count(sum(audit.checkpoints for audit in audits.values()), "checkpoint"),
        f"{_count(sum(a.values for a in audits.values()), 'value')} computed again",
        _count(sum(audit.published for audit in audits.values()), "published value"),
        _count(len(named), "evidence file"),
    ]
    show(f"{', '.join(counts)}: {_count(wrong, 'problem') if wrong else 'sound'}")
    return not wrong


def _files(path: Path) -> list[Path]:
    if path.is_dir():
        found = [file for file in baseline_paths(path) if looks_like_baseline(file)]
        if not found:
            raise UsageError(
                f"{path}: no baseline file in this folder: give another, or record one "
                "with `pplguard update MODEL --checkpoint FILE/NAME --base BASE`"
            )
        return found
    if path.suffix == ".json":
        return [_owner(path)]
    if not path.exists():
        near = near_matches(path.name, _names(path.parent))
        raise UsageError(f"{path}: no such file or folder{near}")
    if path.suffix in SUFFIXES:
        baseline_path(path.parent, path.stem)  # the only one of its name
    return [path]


def _owner(path: Path) -> Path:
    """The baseline file of evidence, which lies in ``FILE/NAME/`` below it."""
    for folder in path.parents:
        file = baseline_path(folder.parent, folder.name)
        if folder.name and file.is_file():
            return file
    raise UsageError(
        f"{path}: no baseline file to which this evidence belongs: it lies below its "
        "file, FILE/NAME/*.json beside FILE.yaml"
    )


def _names(folder: Path) -> Iterable[str]:
    try:
        return [path.name for path in baseline_paths(folder)]
    except PplguardError:  # a listing is only a hint
        return []


def _orphans(sound: Set[Path], named: frozenset[str]) -> list[Finding]:
    """Evidence that no file of a folder names.

    Only where all of its files were looked at and are ``sound``: one that cannot be
    read may name any evidence.
    """
    findings = []
    for folder in sorted({file.parent for file in sound}):
        there = {path for path in baseline_paths(folder) if looks_like_baseline(path)}
        if there <= sound:
            findings += [
                Finding(
                    f"{folder / name}:1: warning: no baseline file names this "
                    "evidence: remove it",
                    warning=True,
                )
                for name in orphans(folder, named)
            ]
    return findings


def _not_added(folder: Path, files: Sequence[Path]) -> Iterator[Finding]:
    """Evidence on this disk alone: git has the file that names it, and not itself."""
    try:
        repository = Repository(folder)
        staged = repository.staged_files()
    except UsageError:  # no repository
        return
    for file in files:
        if file.name in staged:
            content = repository.content(staged[file.name])
            yield from _not_added_of(file, content, staged)


def _not_added_of(
    file: Path, content: bytes, staged: Collection[str]
) -> Iterator[Finding]:
    try:
        baseline = parse_baseline(content.decode("utf-8"), str(file))
    except (BaselineError, UnicodeDecodeError):
        return  # as it is now it may be right, and that was looked at
    for entry in baseline.checkpoints.values():
        named = {key: recorded.evidence for key, recorded in entry.recorded.items()}
        if entry.fingerprint is not None:
            named[FINGERPRINT] = entry.fingerprint.evidence
        for key, name in named.items():
            if name and name not in staged and (file.parent / name).is_file():
                path = file.parent / name
                yield Finding(
                    f"{file}:{entry.lines[f'recorded.{key}']}: {file.stem}/"
                    f"{entry.name}, {key}: git has this record and not its evidence: "
                    f"add {path} too (`git add --force`, if .gitignore names it)"
                )


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"
