"""The job that a run is in, if GitHub Actions runs it: what it shows, and where."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Literal

import pytest
from msgspec import Struct
from msgspec.structs import replace

from ..report import annotation_commands, append_step_summary, markdown_blocks
from ..values import Remark, Results

_ANNOTATES_FAILED_CALLS = "pytest_github_actions_annotate_failures"


class GitHub(Struct, frozen=True):
    """A job of GitHub Actions: the folder of the repository, the step's summary."""

    workspace: str = ""
    summary: str = ""

    @classmethod
    def of(cls, environment: Mapping[str, str]) -> GitHub | None:
        """The job that set ``environment``, None if no job did."""
        if environment.get("GITHUB_ACTIONS") != "true":
            return None
        return cls(
            workspace=environment.get("GITHUB_WORKSPACE", ""),
            summary=environment.get("GITHUB_STEP_SUMMARY", ""),
        )

    def commands(
        self,
        level: Literal["error", "warning"],
        remarks: Iterable[Remark],
        *,
        start: Path,
    ) -> list[str]:
        """Workflow commands for remarks whose files are told from ``start``."""
        return annotation_commands(
            level,
            [
                replace(remark, file=self._in_repository(remark.file, start))
                for remark in remarks
            ],
        )

    def _in_repository(self, file: str, start: Path) -> str:
        """``file`` from the repository's root; GitHub finds it nowhere else."""
        if not (file and self.workspace):
            return file
        real = Path(os.path.realpath(start / file))
        root = os.path.realpath(self.workspace)
        return real.relative_to(root).as_posix() if real.is_relative_to(root) else file

    def summarise(self, results: Results) -> None:
        """Add the run's report to the summary that the job's page shows.

        Raises:
            OSError: the summary cannot be written.
        """
        if self.summary:
            append_step_summary(self.summary, markdown_blocks(results))


def others_annotate(config: pytest.Config, *, when: str) -> bool:
    """Whether another plugin annotates tests that fail in this phase."""
    return when == "call" and config.pluginmanager.hasplugin(_ANNOTATES_FAILED_CALLS)
