"""``pplguard review``: what a commit did to baselines and gates."""

from __future__ import annotations

import os
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from msgspec import Struct
from msgspec.structs import replace

from ..audit import evidence_problems
from ..baselines import (
    parse_baseline,
    read_evidence,
    read_fingerprint,
    two_of_a_stem,
)
from ..baselines.read import FINGERPRINT
from ..errors import BaselineError, UsageError
from ..report.review import review_document, review_lines, review_markdown
from ..review import Fact, Review, review, unreadable
from ..values import BaselineFile, CheckpointEntry, Key, Recorded, Scalar
from .git import Repository, baseline_names
from .output import show, write_json

_WORKING = "working tree"


class _States(Struct, frozen=True):
    """What is compared with what; a commit, or None: nothing yet, the working tree."""

    old: str | None
    new: str | None
    title: str


def review_baselines(
    revisions: str | None, *, folder: Path, markdown: bool, json_path: str | None
) -> bool:
    """Print what happened to the baselines of ``folder``; returns whether it loosened.

    Raises:
        UsageError: no repository, or no such revision.
    """
    repository = Repository(folder)
    states = _states(repository, revisions)
    with tempfile.TemporaryDirectory(prefix="pplguard-review-") as place:
        name = "" if states.old is None else f"{states.old[:12]}:"
        label = f"{name}{folder.as_posix()}/"
        old = _Committed(repository, states.old, Path(place, "old"), label)
        new: _Side = (
            _Working(repository, folder)
            if states.new is None
            else _Committed(
                repository, states.new, Path(place, "new"), f"{folder.as_posix()}/"
            )
        )
        found = _compare(old, new)
    title = f"{folder.as_posix()}: {states.title}"
    write_json(review_document(found, title), json_path)
    if json_path != "-":
        show(
            *(
                review_markdown(found, title).removesuffix("\n").split("\n")
                if markdown
                else review_lines(found, title)
            )
        )
    return bool(found.loosened)


# -------------------------------------------------------------------------- revisions


def _states(repository: Repository, revisions: str | None) -> _States:
    head = repository.head()
    if revisions is None:
        names = repository.touched()
        if head is None or any(
            name.endswith((".yaml", ".yml", ".json")) for name in names
        ):
            base = f"HEAD ({head[:12]})" if head else "nothing, before the first commit"
            return _States(head, None, f"{_WORKING} against {base}")
        revisions = "HEAD"
    if "..." in revisions:
        one, other = _ends(revisions, "...")
        base = repository.merge_base(repository.commit(one), repository.commit(other))
        title = f"{other} against where it left {one} ({base[:12]})"
        return _States(base, repository.commit(other), title)
    if ".." in revisions:
        one, other = _ends(revisions, "..")
        old, new = repository.commit(one), repository.commit(other)
        title = f"{_named(other, new)} against {_named(one, old)}"
        return _States(old, new, title)
    commit = repository.commit(revisions)
    parent = repository.parent(commit)
    base = f"its parent ({parent[:12]})" if parent else "nothing: the first commit"
    return _States(parent, commit, f"{_named(revisions, commit)} against {base}")


def _named(revision: str, commit: str) -> str:
    """``main (1a2b3c4d5e6f)``, and a commit that was given by its own name once."""
    short = commit[:12]
    return short if commit.startswith(revision) else f"{revision} ({short})"


def _ends(revisions: str, dots: str) -> tuple[str, str]:
    one, _, other = revisions.partition(dots)
    if ".." in other or other.startswith("."):
        raise UsageError(
            f"{revisions!r} is no range of commits: write A..B, A...B or one commit"
        )
    return one or "HEAD", other or "HEAD"


# ------------------------------------------------------------------------------ sides


class _Side(ABC):
    """Baseline files and evidence in one state."""

    def __init__(self, folder: Path, label: str) -> None:
        self.folder = folder
        self.label = label
        self.files: dict[str, BaselineFile] = {}
        self.unread: dict[str, str] = {}
        self._names: dict[str, str] = {}

    def add(self, name: str, content: bytes) -> None:
        """Take a baseline file in; one that cannot be read is told.

        So are two whose checkpoints would have the same names.
        """
        path, stem = f"{self.label}{name}", Path(name).stem
        other = self._names.setdefault(stem, name)
        try:
            if other != name:
                raise two_of_a_stem(self.label.rstrip("/"), other, name)
            self.files[stem] = parse_baseline(_text(content, path), path)
        except BaselineError as error:
            self.files.pop(stem, None)
            self.unread[stem] = str(error)

    @abstractmethod
    def blob(self, name: str) -> object:
        """What tells one content of ``name`` from another."""

    @abstractmethod
    def fetch(self, name: str) -> None:
        """Make evidence readable below the folder."""

    def protocol(self, _: str, recorded: Recorded) -> Mapping[str, Scalar]:
        """What the evidence of a record says; nothing where it cannot be read."""
        if recorded.evidence is None:
            return {}
        self.fetch(recorded.evidence)
        try:
            return read_evidence(self.folder, recorded, where="").protocol
        except BaselineError:  # told where the evidence is checked
            return {}


def _text(content: bytes, path: str) -> str:
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise BaselineError(f"{path}: not UTF-8: save the file as UTF-8") from error


class _Committed(_Side):
    """A commit; evidence is written to a folder where it is asked for."""

    def __init__(
        self, repository: Repository, commit: str | None, folder: Path, label: str
    ) -> None:
        super().__init__(folder, label)
        self._repository = repository
        self._blobs = repository.files_at(commit)
        for file in baseline_names(self._blobs):
            self.add(file, repository.content(self._blobs[file]))

    def blob(self, name: str) -> object:
        return self._blobs.get(name)

    def fetch(self, name: str) -> None:
        path = self.folder / name
        if name in self._blobs and not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(self._repository.content(self._blobs[name]))


class _Working(_Side):
    """What stands in the folder, without what git ignores."""

    def __init__(self, repository: Repository, folder: Path) -> None:
        super().__init__(folder, f"{folder.as_posix()}/")
        self._known = repository.known_files()
        self._touched = repository.touched()
        for file in baseline_names(dict.fromkeys(self._known, "")):
            if (folder / file).is_file():
                self.add(file, (folder / file).read_bytes())

    def blob(self, name: str) -> object:
        # Not the same object as any: what was touched is looked at.
        return object() if name in self._touched else None

    def fetch(self, name: str) -> None:
        """Evidence lies there already."""

    def ignored(self, name: str) -> bool:
        """Whether evidence is there and would never be committed."""
        return name not in self._known and (self.folder / name).is_file()


# ------------------------------------------------------------------------- comparison


def _compare(old: _Side, new: _Side) -> Review:
    lost = (
        unreadable(stem, old.files[stem]) for stem in new.unread if stem in old.files
    )
    gone = tuple(filter(None, lost))
    # What cannot be read on one side is compared with nothing; it is not gone.
    for side, other in ((old, new), (new, old)):
        for stem in side.unread:
            other.files.pop(stem, None)
    found = review(
        old.files,
        new.files,
        unread=[*old.unread.values(), *new.unread.values()],
        old_protocol=old.protocol,
        new_protocol=new.protocol,
    )
    facts = tuple(fact for fact in _evidence(old, new))
    return replace(found, loosened=gone + found.loosened, suspect=found.suspect + facts)


def _evidence(old: _Side, new: _Side) -> Iterator[Fact]:
    """What is wrong with the evidence of all that is new."""
    for stem, file in new.files.items():
        known = old.files[stem].checkpoints if stem in old.files else {}
        for entry in file.checkpoints.values():
            was = known.get(entry.name, CheckpointEntry(entry.name))
            name = f"{stem}/{entry.name}"
            for key, recorded in entry.recorded.items():
                same = was.recorded.get(key) == recorded
                if recorded.evidence and _is_new(same, recorded.evidence, old, new):
                    for problem in _problems(new, name, key, recorded):
                        yield Fact(name, key, problem)
            now = entry.fingerprint
            if now and _is_new(was.fingerprint == now, now.evidence, old, new):
                new.fetch(now.evidence)
                where = f"{name}, {FINGERPRINT}"
                with _reported() as problems:
                    read_fingerprint(new.folder, now, where=where)
                for problem in problems:
                    told = _told(new, problem).removeprefix(f"{where}: ")
                    yield Fact(name, FINGERPRINT, told)


def _is_new(same: bool, evidence: str, old: _Side, new: _Side) -> bool:
    if not same:
        return True
    if isinstance(new, _Working):
        return new.blob(evidence) is not None
    return old.blob(evidence) != new.blob(evidence)


def _problems(side: _Side, name: str, key: str, recorded: Recorded) -> Iterator[str]:
    assert recorded.evidence is not None
    if isinstance(side, _Working) and side.ignored(recorded.evidence):
        yield (
            f"git ignores its evidence {recorded.evidence}: nobody else will have it; "
            "look at .gitignore"
        )
    side.fetch(recorded.evidence)
    for problem in evidence_problems(side.folder, name, Key.parse(key), recorded):
        yield _told(side, problem).removeprefix(f"{name}, {key}: ")


@contextmanager
def _reported() -> Iterator[list[str]]:
    problems: list[str] = []
    try:
        yield problems
    except BaselineError as error:
        problems.append(str(error))


def _told(side: _Side, problem: str) -> str:
    """Without the temporary folder, which is gone when it is read."""
    return problem.replace(f"{side.folder}{os.sep}", side.label)
