"""Runs the steps of ``action.yml`` as a runner of GitHub does; ``uses`` is noted."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]

_EXPRESSION = re.compile(r"\$\{\{\s*(.*?)\s*\}\}")
_TOKEN = re.compile(r"\s*(always\(\)|&&|[!=]=|'[^']*'|[\w.-]+)")


def load_action() -> dict[str, Any]:
    """The action; everything in it a text."""
    text = (ROOT / "action.yml").read_text(encoding="utf-8")
    action: dict[str, Any] = yaml.load(text, Loader=yaml.BaseLoader)
    return action


@dataclass
class Run:
    """What came of a run of the action in ``folder``."""

    folder: Path
    values: dict[str, str]
    used: list[tuple[str, dict[str, str]]] = field(default_factory=list)
    ran: list[str] = field(default_factory=list)
    log: str = ""
    failed: bool = False

    def evaluate(self, expression: str) -> str:
        """Of the expressions that the action has: ``a.b``, and comparisons of it."""
        tokens = _TOKEN.findall(expression)
        assert "".join(tokens) == re.sub(
            r"\s(?=[^']*(?:'[^']*'[^']*)*$)", "", expression
        )
        terms: list[list[str]] = [[]]
        for token in tokens:
            if token == "&&":
                terms.append([])
            else:
                terms[-1].append(token)
        found = ""
        for term in terms:
            found = self._term(term)
            if found in ("", "false"):
                return found
        return found

    def _term(self, term: list[str]) -> str:
        if term == ["always()"]:
            return "true"
        value = self._value(term[0])
        if len(term) == 1:
            return value
        _, operator, other = term
        return str((value == self._value(other)) == (operator == "==")).lower()

    def _value(self, token: str) -> str:
        if token.startswith("'"):
            return token[1:-1]
        if token.startswith("steps."):  # a step that did not run has no outputs
            return self.values.get(token, "")
        return self.values[token]

    def text(self, text: str) -> str:
        """A text with its expressions."""
        return _EXPRESSION.sub(lambda match: self.evaluate(match[1]), text)

    def wants(self, condition: str | None) -> bool:
        """Whether a step runs; without ``always()`` none does after a failure."""
        if self.failed and "always()" not in (condition or ""):
            return False
        return condition is None or self.evaluate(condition) not in ("", "false")


def run_action(
    folder: Path, inputs: Mapping[str, str], environment: Mapping[str, str]
) -> Run:
    """Run all steps in ``folder``; runner's files lie in the folder beside it."""
    action = load_action()
    given = {name: spec.get("default") for name, spec in action["inputs"].items()}
    assert set(inputs) <= set(given)
    given |= inputs
    beside = folder.parent / "runner"
    (beside / "temp").mkdir(parents=True, exist_ok=True)
    (beside / "home").mkdir(exist_ok=True)
    run = Run(
        folder,
        {f"inputs.{name}": value for name, value in given.items()}
        | {
            "runner.temp": str(beside / "temp"),
            "runner.os": "Linux",
            "github.run_id": "17",
            "github.run_attempt": "2",
            "github.action_path": str(ROOT),
        },
    )
    for step in action["runs"]["steps"]:
        if not run.wants(step.get("if")):
            continue
        if "uses" in step:
            options = {name: run.text(text) for name, text in step["with"].items()}
            run.used.append((step["uses"], options))
        else:
            _run_script(run, step, beside, environment)
    for name, spec in action["outputs"].items():
        run.values[f"outputs.{name}"] = run.text(spec["value"])
    return run


def _run_script(
    run: Run, step: dict[str, Any], beside: Path, environment: Mapping[str, str]
) -> None:
    assert step["shell"] == "bash"
    assert "${{" not in step["run"]  # what users give is no part of a script
    script = beside / "step.sh"
    script.write_text(step["run"], encoding="utf-8")
    files = {
        name: beside / name.lower()
        for name in ("GITHUB_OUTPUT", "GITHUB_ENV", "GITHUB_STEP_SUMMARY")
    }
    for name, file in files.items():
        if name != "GITHUB_STEP_SUMMARY" or not file.exists():
            file.write_text("")
    variables = {
        name: run.text(text)
        for name, text in step.get("env", {}).items()
    }  # fmt: skip
    done = subprocess.run(
        # As GitHub has it: https://docs.github.com/actions, "jobs.<job_id>.steps.shell"
        ["bash", "--noprofile", "--norc", "-e", "-o", "pipefail", str(script)],
        cwd=run.folder,
        env=os.environ
        | {"GITHUB_ACTIONS": "true", "CI": "true", "HOME": str(beside / "home")}
        | {name: str(file) for name, file in files.items()}
        | dict(environment)
        | variables,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=300,
        check=False,
    )
    run.ran.append(step["name"])
    run.log += done.stdout
    run.failed |= done.returncode != 0
    for line in files["GITHUB_OUTPUT"].read_text().splitlines():
        name, _, value = line.partition("=")
        run.values[f"steps.{step['id']}.outputs.{name}"] = value
