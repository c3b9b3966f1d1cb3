"""Results of many runs in one database, so that a trend can be seen."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from msgspec import Struct

from .values import Details, Results


class Origin(Struct, frozen=True):
    """Where a run came from: the commit that was checked out, and the CI job."""

    commit: str = ""
    branch: str = ""
    dirty: bool = False
    job: str = ""


def checked_url(url: str, *, base: Path, option: str) -> str:
    """``sqlite:///FILE`` with an absolute path, before there is anything to add.

    Raises:
        UsageError: another kind of database, or a folder that is not there.
    """
    raise NotImplementedError


def run_origin(folder: Path, environ: Mapping[str, str]) -> Origin:
    """What git and the CI's variables say of a run in ``folder``."""
    raise NotImplementedError


def add_run(url: str, results: Results, details: Details, origin: Origin) -> None:
    """Add a run in one transaction.

    Raises:
        PplguardError: the database cannot be written.
    """
    raise NotImplementedError
