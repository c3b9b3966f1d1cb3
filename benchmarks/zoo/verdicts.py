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

from .cases import Case
from .site import Base, Names, Site

CHECKPOINT = "zoo/base"
POLICIES = ("any", "mask", "same", "tensor")
"""``any`` is what ``update`` writes; to it come ``weights: mask``, ``weights: same``,
or a sparsity gate of every tensor, with the pattern where there is one."""


@dataclass(frozen=True)
class Verdict:
    """What a run of pytest said.

    ``text`` is all that stands on the screen, ``gates`` the verdicts of its JSON
    report, ``windows`` the losses of each window measured by the Wanda method, as
    ``(nll_sum, scored)`` in nats and tokens.
    """

    red: bool
    text: str
    gates: tuple[dict[str, Any], ...] = ()
    windows: tuple[tuple[float, int], ...] = ()

    def names(self, culprit: Names) -> bool:
        """Whether the text holds every pattern."""
        return all(re.search(one, self.text, re.IGNORECASE) for one in culprit)

    @property
    def comparable(self) -> bool:
        """Whether the windows are the recorded ones."""
        return all(gate["outcome"] != "not comparable" for gate in self.gates)

    @property
    def change(self) -> float | None:
        """Relative change of the token perplexity, None where none was measured."""
        for gate in self.gates:
            if gate["metric"] == "token_perplexity" and gate["change"] is not None:
                return float(gate["change"])
        return None


@dataclass
class Gates:
    """The baseline of an undamaged checkpoint, recorded by ``pplguard update``.

    ``built`` are the policies that this version can check: ``any``, and those whose
    gate is green on the undamaged checkpoint.
    """

    base: Base
    folder: Path
    built: tuple[str, ...] = ("any",)
    windows: tuple[tuple[float, int], ...] = ()
    _run: int = field(default=0)

    @classmethod
    def record(cls, base: Base, folder: Path) -> Gates:
        """Measure the undamaged checkpoint, write a baseline file for each policy.

        Raises:
            AssertionError: the undamaged checkpoint is red.
        """
        folder.mkdir(parents=True)
        (folder / "pytest.ini").write_text(
            "[pytest]\naddopts = -p no:cacheprovider\nppl_journal = off\n"
        )
        first = folder / "any"
        first.mkdir()
        text = base.text
        for method, limit in (("wanda", text.windows), ("lm-eval", text.pages)):
            _pplguard(
                *("update", str(base.folder), f"--checkpoint={CHECKPOINT}"),
                *("--base=zoo", f"--method={method}", f"--baselines={first}"),
                *(f"--corpus={text.name}={text.path}", f"--window={text.window}"),
                *(f"--limit={limit}", "--journal=off"),
            )
        for policy in POLICIES[1:]:
            shutil.copytree(first, folder / policy)
            _add_gate(folder / policy / "zoo.yaml", policy, base)
        gates = cls(base, folder)
        clean = gates.judge(str(base.folder))
        assert not clean.red, clean.text
        gates.windows = clean.windows
        gates.built = (
            "any",
            *(
                policy
                for policy in POLICIES[1:]
                if not gates.judge_extra(policy, str(base.folder)).red
            ),
        )
        return gates

    def judge(
        self, spec: str, *, options: Sequence[str] = (), threads: int = 1
    ) -> Verdict:
        """All gates that ``update`` wrote."""
        return self._pytest("any", "zoo.yaml", spec, options, threads)

    def judge_extra(self, policy: str, spec: str) -> Verdict:
        """The gate alone that a policy adds; green where the base has none."""
        if policy == "tensor" and not self.base.pruned:
            return Verdict(red=False, text="")
        gate = "sparsity" if policy == "tensor" else "weights"
        return self._pytest(policy, f"zoo.yaml::base::{gate}", spec, (), 1)

    def _pytest(
        self,
        policy: str,
        tests: str,
        spec: str,
        options: Sequence[str],
        threads: int,
    ) -> Verdict:
        self._run += 1
        report = self.folder / f"report-{self._run}.json"
        text = self.base.text
        gather = _Gather(f"wanda/{text.name}:{text.window}:first{text.windows}")
        arguments = [
            *("-c", str(self.folder / "pytest.ini"), f"--rootdir={self.folder}"),
            *("-p", "pytest_pplguard.plugin", "--color=no", "--no-header"),
            # It collects garbage, most of a second each time with torch in memory.
            *("-p", "no:unraisableexception"),
            f"{self.folder / policy}/{tests}",
            f"--ppl-baselines={self.folder / policy}",
            f"--ppl-corpus={text.name}={text.path}",
            f"--ppl-model={CHECKPOINT}={spec}",
            f"--ppl-report={report}",
            *options,
        ]
        with _apart(self.folder, threads) as screen:
            status = pytest.main(arguments, plugins=[gather])
        if status not in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED):
            raise AssertionError(f"{status}\n{screen.getvalue()}")
        content = json.loads(report.read_text(encoding="utf-8"))
        report.unlink()
        return Verdict(
            red=status != pytest.ExitCode.OK,
            # A name that the harness chose must not count as the gate's own words.
            text=_words(screen.getvalue().replace(spec, "CHECKPOINT")),
            gates=tuple(content["verdicts"]),
            windows=gather.windows,
        )


class _Gather:
    """A pytest plugin that takes the measured windows out of the run."""

    def __init__(self, key: str) -> None:
        self._key = key
        self.windows: tuple[tuple[float, int], ...] = ()

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        """Ask the store for what it has measured already."""
        from pytest_pplguard.errors import PplguardError
        from pytest_pplguard.session.setup import guard_of
        from pytest_pplguard.values import Key

        ran = any(self._key in item.nodeid for item in session.items)
        if not ran:
            return
        store = guard_of(session.config).store
        with contextlib.suppress(PplguardError):
            measured = store.measurement(CHECKPOINT, Key.parse(self._key))
            self.windows = tuple((one.nll_sum, one.scored) for one in measured.evidence)


# --------------------------------------------------------------------------- one case


@dataclass(frozen=True)
class Outcome:
    """A case on a base: by policy, whether it was red and its culprit named."""

    red: dict[str, bool]
    named: dict[str, bool]
    verdict: Verdict


def judge_case(case: Case, site: Site, culprit: Names, gates: Gates) -> Outcome:
    """Run all gates once, and for every other policy the gate that it adds."""
    verdict = gates.judge(site.spec, options=site.options, threads=site.threads)
    red, named = {"any": verdict.red}, {"any": verdict.names(culprit)}
    for policy in gates.built[1:]:
        also = gates.judge_extra(policy, site.spec)
        red[policy] = verdict.red or also.red
        named[policy] = named["any"] or also.names(culprit)
    return Outcome(red, named, verdict)


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


def _pplguard(*arguments: str) -> None:
    """Run a command of ``pplguard`` in this process."""
    from pytest_pplguard.cli.app import app

    with (
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
    ):
        app(list(arguments), standalone_mode=False)


def _words(screen: str) -> str:
    """The screen without the advice that stands below every improved value."""
    lines = screen.splitlines()
    return "\n".join(line for line in lines if not line.startswith("  look for "))


def _add_gate(path: Path, policy: str, base: Base) -> None:
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    gates = content["checkpoints"]["base"]["gates"]
    if policy != "tensor":
        gates["weights"] = policy
    elif base.pruned:
        sparsity = gates.setdefault("sparsity", {"fraction": 0.5})
        sparsity["scope"] = "tensor"
        if base.pattern:
            sparsity["pattern"] = base.pattern
    path.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
