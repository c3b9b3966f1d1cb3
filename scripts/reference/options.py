"""Tables of what pytest is told: options, ini keys, marker arguments, fixtures."""

from __future__ import annotations

import ast
import inspect
import itertools
import re
from pathlib import Path
from typing import Any

import pytest_pplguard
from pytest_pplguard import plugin
from pytest_pplguard.session.marker import ppl
from pytest_pplguard.values import Outcome

from .markdown import code, prose, table

PACKAGE = Path(pytest_pplguard.__file__).parent
DOCS = Path(__file__).parents[2] / "docs"

_MORE = {
    "--ppl-model": "checkpoints.md",
    "--ppl-baselines": "baseline-files.md",
    "--ppl-include-path": "tasks.md",
    "--ppl-batch-size": "speed.md",
    "--ppl-server": "server.md",
    "--ppl-server-model": "server.md",
    "--ppl-report": "report.md",
    "--ppl-ladder": "report.md",
    "--ppl-history": "history.md",
    "--ppl-cache": "cache.md",
    "--ppl-early": "early.md",
    "--ppl-allow-pickle": "security.md",
    "--ppl-trust-remote-code": "security.md",
}
"""The page that says more of an option."""


class _Parser:
    """Stands for pytest's parser and keeps what is registered."""

    def __init__(self) -> None:
        self.options: list[tuple[str, dict[str, Any]]] = []
        self.keys: dict[str, tuple[str, str, Any]] = {}

    def getgroup(self, *_: str) -> _Parser:
        return self

    def addoption(self, name: str, **settings: Any) -> None:
        self.options.append((name, settings))

    def addini(self, name: str, help: str, *, type: str, default: Any) -> None:
        self.keys[name] = (help, type, default)


def registered() -> _Parser:
    """What the plugin registers."""
    parser = _Parser()
    plugin.pytest_addoption(parser)  # type: ignore[arg-type]
    return parser


def options() -> str:
    """The table of options and ini keys."""
    parser = registered()
    rows = []
    for name, settings in parser.options:
        key = name.removeprefix("--").replace("-", "_")
        text = re.sub(r"; ini: \w+\)", ")", settings["help"])
        text = re.sub(r" \(ini: \w+\)$", "", text)
        text = re.sub(r"\(ini: \w+, which ", "(the ini key ", text)
        text = re.sub(r"\(ini: \w+, ", "(", text)
        assert "ini:" not in text, text
        more = _MORE.get(name, "")
        if more and (DOCS / more).exists():
            text += f" ([more]({more}))"
        rows.append(
            (
                code(f"{name} {settings.get('metavar', '')}".strip()),
                code(key) if key in parser.keys else "",
                text,
            )
        )
    twins = {name.removeprefix("--").replace("-", "_") for name, _ in parser.options}
    for key, (text, _, default) in parser.keys.items():
        if key not in twins:
            shown = str(default).lower() if isinstance(default, bool) else default
            rows.append(("", code(key), f"{text} (default: {shown})"))
    return table(("option", "ini key", "meaning"), rows)


def ini() -> str:
    """The table of ini keys with their types and defaults."""
    return table(
        ("ini key", "type", "default"),
        (
            (
                code(key),
                {"linelist": "one a line"}.get(kind, kind),
                code(str(default).lower() if isinstance(default, bool) else default)
                if default not in ("", [])
                else "",
            )
            for key, (_, kind, default) in registered().keys.items()
        ),
    )


def marker() -> str:
    """The table of arguments of the marker and of ``ppl_guard.check``."""
    documented = arguments(inspect.getdoc(ppl) or "")
    parameters = inspect.signature(ppl).parameters
    assert list(documented) == list(parameters), (list(documented), list(parameters))
    rows = []
    for name, parameter in parameters.items():
        positional = parameter.kind is inspect.Parameter.VAR_POSITIONAL
        rows.append(
            (
                code(f"*{name}" if positional else name),
                code(_kind(str(parameter.annotation))),
                documented[name].rstrip("."),
            )
        )
    return table(("argument", "type", "meaning"), rows)


def _kind(annotation: str) -> str:
    return annotation.removesuffix(" | None").replace("Direction", "str")


def arguments(docstring: str) -> dict[str, str]:
    """What a docstring says under ``Args:``, by name."""
    section = re.search(r"^Args:\n((?:    .*\n?|\n)+)", docstring, re.M)
    assert section is not None
    text = inspect.cleandoc(section[1])
    found = re.findall(r"^(\w+): (.*(?:\n .*)*)", text, re.M)
    return {name: prose(" ".join(said.split())).strip() for name, said in found}


def fixtures() -> str:
    """A heading and the docstring for each fixture."""
    tree = ast.parse((PACKAGE / "fixtures.py").read_text(encoding="utf-8"))
    functions = {
        node.name: node for node in tree.body if isinstance(node, ast.FunctionDef)
    }
    check = next(
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef) and node.name == "check"
    )
    parts = [
        f"### `{name}`\n\n{prose(ast.get_docstring(functions[name]))}"
        for name in plugin.__all__
    ]
    parts.append(f"### `ppl_guard.check`\n\n{_sections(ast.get_docstring(check))}")
    return "\n".join(parts)


def _sections(docstring: str | None) -> str:
    """A docstring whose arguments are a list."""
    text = docstring or ""
    before, _, rest = text.partition("Args:\n")
    returns = rest.partition("Returns:\n")[2]
    lines = [f"- {code(name)}: {said}" for name, said in arguments(text).items()]
    end = f"\nReturns {prose(returns).strip()[0].lower()}{prose(returns).strip()[1:]}\n"
    return f"{prose(before)}\n" + "\n".join(lines) + "\n" + end


def outcomes() -> str:
    """The table of outcomes; what each means stands below it in the code."""
    tree = ast.parse((PACKAGE / "values.py").read_text(encoding="utf-8"))
    (body,) = [
        node.body
        for node in tree.body
        if isinstance(node, ast.ClassDef) and node.name == "Outcome"
    ]
    said: dict[str, str] = {}
    for node, after in itertools.pairwise(body):
        if (
            isinstance(node, ast.Assign)
            and isinstance(node.value, ast.Constant)
            and isinstance(after, ast.Expr)
            and isinstance(after.value, ast.Constant)
        ):
            said[str(node.value.value)] = " ".join(str(after.value.value).split())
    assert list(said) == [outcome.value for outcome in Outcome]
    rows = []
    for name, text in said.items():
        green, _, means = text.partition(": ")
        rows.append((code(name), green, prose(means).strip().rstrip(".")))
    return table(("outcome", "green", "means"), rows)
