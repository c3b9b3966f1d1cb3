"""Runs the real gates on a damaged checkpoint and reads what a user would read."""

from __future__ import annotations

import contextlib
import io
import json
import re
import shutil
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from pytest_pplguard.values import WindowScore

from .cases import Case
from .site import Base, Names, Site

CHECKPOINT = "zoo/base"
POLICIES = ("any", "mask", "same", "kl")
"""``any`` is what ``update`` writes. To it come ``weights: mask``, ``weights: same`` or
the default gates of the divergence from the dense checkpoint."""
BATCH = "--ppl-batch-size=8"
"""It takes a third off the time of models as small as these."""


@dataclass(frozen=True)
class Moved:
    """A metric now, its relative change, and how much of its tolerance that is.

    ``units`` are positive for what is more than the baseline; beyond 1 and -1 is red.
    ``change`` is None beside a baseline of 0.
    """

    value: float
    change: float | None
    units: float


@dataclass(frozen=True)
class Outcome:
    """What a run of pytest said of a case on a base.

    ``red`` is by policy. ``text`` is all that stands on the screen, ``told`` what the
    failure texts of the gates under ``any`` give as reasons and as what differs in the
    checkpoint. ``outcomes`` are those of all these gates, ``moved`` is by metric what
    could be compared. ``windows`` were measured by the Wanda method.
    """

    red: dict[str, bool]
    text: str
    told: tuple[str, ...] = ()
    outcomes: tuple[str, ...] = ()
    moved: dict[str, Moved] = field(default_factory=dict)
    windows: tuple[WindowScore, ...] = ()

    def names(self, culprit: Names) -> bool:
        """Whether what was told matches every pattern."""
        told = "\n".join(self.told)
        return all(re.search(one, told, re.IGNORECASE) for one in culprit)


@dataclass
class Gates:
    """The baseline of an undamaged checkpoint, recorded by ``pplguard update``.

    One file has an entry for ``any``, which holds the gates of ``kl`` as well, and one
    for each other policy.
    """

    base: Base
    folder: Path
    kl: bool
    windows: tuple[WindowScore, ...] = ()
    _run: int = field(default=0)

    @classmethod
    def record(cls, base: Base, folder: Path, *, kl: bool = True) -> Gates:
        """Measure the undamaged checkpoint, write its baseline file.

        Without ``kl`` nothing is compared with the dense checkpoint.

        Raises:
            AssertionError: the undamaged checkpoint is red.
        """
        folder.mkdir(parents=True)
        (folder / "pytest.ini").write_text(
            "[pytest]\naddopts = -p no:cacheprovider\nppl_journal = off\n"
        )
        _update(base, folder, "wanda", "--base=zoo")
        _update(base, folder, "lm-eval")
        file = folder / "zoo.yaml"
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
        entries = content["checkpoints"]
        entries["dense"] = {"path": str(base.dense)}
        known = {"fingerprint": entries["base"]["recorded"]["fingerprint"]}
        for policy in ("mask", "same"):
            entries[policy] = {"gates": {"weights": policy}, "recorded": known}
        text = yaml.dump(content, Dumper=_NoAliases, sort_keys=False)
        file.write_text(text, encoding="utf-8")
        if kl:
            _update(base, folder, "kl", "--reference=dense")
        gates = cls(base, folder, kl)
        clean = gates.judge(str(base.folder))
        assert not any(clean.red.values()), clean.text
        gates.windows = clean.windows
        return gates

    def judge(
        self, spec: str, *, options: Sequence[str] = (), threads: int = 1
    ) -> Outcome:
        """Run all gates of all policies at once.

        Raises:
            AssertionError: pytest did not run, or its exit status says something else
                than the verdicts of its JSON report.
        """
        self._run += 1
        report = self.folder / f"report-{self._run}.json"
        text = self.base.text
        gather = _Gather(f"wanda/{text.name}:{text.window}:first{text.windows}")
        models = dict.fromkeys((CHECKPOINT, "zoo/mask", "zoo/same"), spec)
        if self.kl:
            models["zoo/dense"] = str(self.base.dense)
        arguments = [
            *("-c", str(self.folder / "pytest.ini"), f"--rootdir={self.folder}"),
            *("-p", "pytest_pplguard.plugin", "--color=no", "--no-header"),
            # It collects garbage, most of a second each time with torch in memory.
            *("-p", "no:unraisableexception"),
            f"{self.folder}/zoo.yaml",
            f"--ppl-baselines={self.folder}",
            f"--ppl-corpus={text.name}={text.path}",
            *(f"--ppl-model={name}={model}" for name, model in models.items()),
            f"--ppl-report={report}",
            BATCH,
            *options,
        ]
        with _apart(self.folder, threads) as screen:
            status = pytest.main(arguments, plugins=[gather])
        if status not in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED):
            raise AssertionError(f"{status}\n{screen.getvalue()}")
        # A name that the harness chose must not count as the gate's own words.
        content = json.loads(report.read_text(encoding="utf-8").replace(spec, HERE))
        report.unlink()
        outcome = _outcome(
            content["verdicts"], screen.getvalue().replace(spec, HERE), gather.windows
        )
        is_red = bool(content["problems"]) or any(outcome.red.values())
        assert is_red == (status != pytest.ExitCode.OK), outcome.text
        return outcome


HERE = "CHECKPOINT"
"""Stands for the path of the checkpoint in all texts."""


def _outcome(
    verdicts: Sequence[dict[str, Any]], text: str, windows: tuple[WindowScore, ...]
) -> Outcome:
    red = dict.fromkeys(POLICIES, False)
    told: list[str] = []
    outcomes = []
    moved: dict[str, Moved] = {}
    for verdict in verdicts:
        failed = not verdict["passed"]
        policy = _policy(verdict)
        red[policy] |= failed
        if policy == "any":
            outcomes.append(f"{verdict['key']} {verdict['outcome']}")
            told += [*verdict["reasons"], *verdict["changes"]] if failed else []
        if verdict["key"].startswith(("wanda/", "kl/")):
            moved |= _moved(verdict)
    also = {policy: red["any"] or failed for policy, failed in red.items()}
    return Outcome(also, text, tuple(told), tuple(outcomes), moved, windows)


def _policy(verdict: dict[str, Any]) -> str:
    if verdict["key"].startswith("kl/"):
        return "kl"
    entry = str(verdict["checkpoint"]).removeprefix("zoo/")
    return entry if entry in POLICIES else "any"


def _moved(verdict: dict[str, Any]) -> dict[str, Moved]:
    """Nothing where there is no number, or one of other windows."""
    value, baseline = verdict["measured"], verdict["baseline"]
    if None in (value, baseline) or verdict["outcome"] == "not comparable":
        return {}
    low, high = verdict["allowed"]
    room = high - baseline if value >= baseline else baseline - low
    return {
        verdict["metric"]: Moved(value, verdict["change"], (value - baseline) / room)
    }


class _Gather:
    """A pytest plugin that takes the measured windows out of the run."""

    def __init__(self, key: str) -> None:
        self._key = key
        self.windows: tuple[WindowScore, ...] = ()

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        """Ask the store for what it has measured already."""
        from pytest_pplguard.errors import PplguardError
        from pytest_pplguard.session.setup import guard_of
        from pytest_pplguard.values import Key

        store = guard_of(session.config).store
        with contextlib.suppress(PplguardError):
            measured = store.measurement(CHECKPOINT, Key.parse(self._key))
            self.windows = measured.evidence


# --------------------------------------------------------------------------- one case


@contextlib.contextmanager
def site_of(case: Case, base: Base, folder: Path) -> Iterator[tuple[Site, Names]]:
    """A changed copy, and what names its culprit; gone afterwards."""
    room = folder / "room"
    room.mkdir()
    try:
        # Nothing in the path may give the case away.
        site = Site(base, room / "checkpoint", case.name)
        yield site, case.apply(site)
    finally:
        for path in [room, *room.rglob("*")]:
            if path.is_dir() and not path.is_symlink():
                path.chmod(0o755)
        shutil.rmtree(room)


# --------------------------------------------------------------------------- processes


@contextlib.contextmanager
def _apart(folder: Path, threads: int) -> Iterator[io.StringIO]:
    """What a process of its own would give: environment, folder, screen, threads."""
    screen = io.StringIO()
    before = torch.get_num_threads()
    with (
        pytest.MonkeyPatch.context() as patch,
        warnings.catch_warnings(),
        contextlib.redirect_stdout(screen),
        contextlib.redirect_stderr(io.StringIO()),
    ):
        patch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
        patch.delenv("PYTEST_ADDOPTS", raising=False)
        patch.setenv("COLUMNS", "120")
        patch.chdir(folder)
        torch.set_num_threads(threads)
        try:
            yield screen
        finally:
            torch.set_num_threads(before)


class _NoAliases(yaml.SafeDumper):
    """A baseline file has no anchors."""

    def ignore_aliases(self, data: object) -> bool:
        """Write everything out."""
        return True


def _update(base: Base, folder: Path, method: str, *more: str) -> None:
    """Run ``pplguard update`` in this process."""
    from pytest_pplguard.cli.app import app

    text = base.text
    limit = text.pages if method == "lm-eval" else text.windows
    arguments = [
        *("update", str(base.folder), f"--checkpoint={CHECKPOINT}", *more),
        *(f"--method={method}", f"--baselines={folder}", f"--window={text.window}"),
        *(f"--corpus={text.name}={text.path}", f"--limit={limit}", "--journal=off"),
    ]

    with (
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
    ):
        app(arguments, standalone_mode=False)
