"""Reads a folder as a git repository has it: at a revision, or in the working tree."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path

from ..errors import UsageError

_DEEPER = (
    "this clone is shallow: fetch more of the history (`git fetch --deepen 50`; "
    "actions/checkout: `fetch-depth: 0`; GitLab: GIT_DEPTH: 0)"
)


class Repository:
    """The git repository that a folder is in.

    Args:
        folder: where it is, or was: it need not exist any more.

    Raises:
        UsageError: git is not there, or the folder is in no repository.
    """

    def __init__(self, folder: Path) -> None:
        folder = Path(os.path.abspath(folder))
        start = folder
        while not start.is_dir():
            start = start.parent
        self._start = start
        self._environment = _without_hooks(os.environ)
        done = self._git("rev-parse", "--show-toplevel")
        if done.returncode:
            raise UsageError(
                f"{folder} is in no git repository that can be read: {_said(done)}"
            )
        self._start = self.top = Path(os.fsdecode(done.stdout.rstrip(b"\r\n")))
        # A hook's index is that of its own repository: a submodule has another.
        index = self._environment.get("GIT_INDEX_FILE")
        if index is not None and not self._has(Path(index)):
            del self._environment["GIT_INDEX_FILE"]
        inside = Path(os.path.realpath(folder))
        top = Path(os.path.realpath(self.top))
        if not inside.is_relative_to(top):
            raise UsageError(f"{folder} leads out of the repository {self.top}")
        self.prefix = inside.relative_to(top).as_posix()

    def _has(self, index: Path) -> bool:
        """Whether an index lies where this repository has its own."""
        done = self._git("rev-parse", "--absolute-git-dir")
        own = os.fsdecode(done.stdout.rstrip(b"\r\n"))
        return os.path.realpath(index.parent) == os.path.realpath(own)

    def _git(self, *words: str) -> subprocess.CompletedProcess[bytes]:
        # A repository's own settings start no program of somebody else's here.
        fixed = ("-c", "core.fsmonitor=false", "-c", "core.quotepath=off")
        try:
            return subprocess.run(
                ["git", "--no-pager", "-C", str(self._start), *fixed, *words],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                check=False,
                env=self._environment | {"LC_ALL": "C", "GIT_OPTIONAL_LOCKS": "0"},
            )
        except FileNotFoundError as error:
            raise UsageError(
                "git is not installed, and review reads from it"
            ) from error

    def _out(self, *words: str) -> bytes:
        done = self._git(*words)
        if done.returncode:
            raise UsageError(f"git {words[0]} failed: {_said(done)}")
        return done.stdout

    @cached_property
    def shallow(self) -> bool:
        """Whether old commits may be missing."""
        return self._out("rev-parse", "--is-shallow-repository").strip() == b"true"

    # ---------------------------------------------------------------------- revisions

    def commit(self, revision: str) -> str:
        """The full name of the commit that ``revision`` means.

        Raises:
            UsageError: there is none.
        """
        found = self._commit(revision)
        if found is None:
            more = f"; {_DEEPER}" if self.shallow else ""
            raise UsageError(f"{revision!r} is no commit of {self.top}{more}")
        return found

    def _commit(self, revision: str) -> str | None:
        if not revision or revision.startswith("-") or "\0" in revision:
            return None
        done = self._git(
            "rev-parse", "--verify", "--quiet", "--end-of-options",
            f"{revision}^{{commit}}",
        )  # fmt: skip
        return done.stdout.decode().split()[-1] if not done.returncode else None

    def head(self) -> str | None:
        """The commit that is checked out; None before the first one."""
        return self._commit("HEAD")

    def parent(self, commit: str) -> str | None:
        """The first parent of a commit; None of the first commit of all.

        Raises:
            UsageError: it was not fetched.
        """
        # Of a shallow clone git itself says that its oldest commit has no parent.
        head = self._out("cat-file", "commit", commit).partition(b"\n\n")[0]
        parents = [
            line.split()[1].decode()
            for line in head.splitlines()
            if line.startswith(b"parent ")
        ]
        if not parents:
            return None
        if self._commit(parents[0]) is None:
            raise UsageError(f"the parent of {commit[:12]} is not here: {_DEEPER}")
        return parents[0]

    def merge_base(self, one: str, other: str) -> str:
        """Where two commits parted.

        Raises:
            UsageError: they share no commit that is here.
        """
        done = self._git("merge-base", one, other)
        if done.returncode:
            more = _DEEPER if self.shallow else "name two commits with A..B instead"
            raise UsageError(
                f"{one[:12]} and {other[:12]} have no common ancestor here: {more}"
            )
        return done.stdout.decode().split()[0]

    # -------------------------------------------------------------------------- files

    @property
    def _pathspec(self) -> tuple[str, ...]:
        return ("--", f":(top,literal){self.prefix}") if self.prefix != "." else ()

    def _name(self, path: bytes) -> str:
        name = os.fsdecode(path)
        return name if self.prefix == "." else name.removeprefix(f"{self.prefix}/")

    def files_at(self, commit: str | None) -> Mapping[str, str]:
        """Plain files of the folder, relative to it, and their blobs.

        None stands for before the first commit.
        """
        if commit is None:
            return {}
        words = ["--", f"{self.prefix}/"] if self.prefix != "." else []
        listed = self._out("ls-tree", "-r", "-z", "--full-tree", commit, *words)
        found = {}
        for line in filter(None, listed.split(b"\0")):
            head, _, path = line.partition(b"\t")
            mode, kind, blob = head.decode().split()
            if kind == "blob" and mode != "120000":
                found[self._name(path)] = blob
        return found

    def content(self, blob: str) -> bytes:
        """What a file held."""
        return self._out("cat-file", "blob", blob)

    def staged_files(self) -> Mapping[str, str]:
        """Plain files of the folder as the next commit has them, and their blobs."""
        listed = self._out("ls-files", "-z", "--stage", "--full-name", *self._pathspec)
        found = {}
        for line in filter(None, listed.split(b"\0")):
            head, _, path = line.partition(b"\t")
            mode, blob, stage = head.decode().split()
            if mode != "120000" and stage == "0":
                found[self._name(path)] = blob
        return found

    def known_files(self) -> frozenset[str]:
        """Files of the folder that git knows or would add: none that it ignores."""
        listed = self._out(
            "ls-files", "-z", "--cached", "--others", "--exclude-standard",
            "--full-name", *self._pathspec,
        )  # fmt: skip
        return frozenset(map(self._name, filter(None, listed.split(b"\0"))))

    def touched(self) -> frozenset[str]:
        """Files of the folder that are not as they were committed, new ones too."""
        listed = self._out(
            "status", "--porcelain=v1", "-z", "--no-renames", "--untracked-files=all",
            *self._pathspec,
        )  # fmt: skip
        lines = filter(None, listed.split(b"\0"))
        return frozenset(self._name(line[3:]) for line in lines)


def baseline_names(names: Iterator[str] | Mapping[str, str]) -> list[str]:
    """Those that are baseline files: directly in the folder, and not hidden."""
    return sorted(
        name
        for name in names
        if "/" not in name
        and not name.startswith(".")
        and name.endswith((".yaml", ".yml"))
    )


def _without_hooks(environ: Mapping[str, str]) -> dict[str, str]:
    """Without what git tells a hook, and ``rebase --exec``, of its own repository.

    With ``GIT_DIR`` alone git would take any folder that it is started in for the top.
    """
    found = dict(environ)
    if "GIT_WORK_TREE" not in found:
        found.pop("GIT_DIR", None)
    return found


def _said(done: subprocess.CompletedProcess[bytes]) -> str:
    text = done.stderr.decode(errors="replace").strip()
    return next(iter(text.splitlines()), f"status {done.returncode}")
