"""The page of errors: every message of the package, found in its source."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeGuard

import pytest_pplguard
from pytest_pplguard import errors

from .markdown import code, prose, table

PACKAGE = Path(pytest_pplguard.__file__).parent

CLASSES = {
    name: kind
    for name, kind in vars(errors).items()
    if isinstance(kind, type) and issubclass(kind, errors.PplguardError)
}

_HELPERS = ("fail", "_fail")
"""Functions that raise: a BaselineError in ``baselines``, else they fail a test."""

_HINTS = ("near", "near_matches")
"""What may add `` (did you mean ...?)``, and usually adds nothing."""

_ROOMS = {
    "options": "Options",
    "values": "Keys",
    "baselines": "Baseline files and evidence",
    "checkpoints": "Checkpoints and devices",
    "corpora": "Texts",
    "protocols": "Methods",
    "gates": "Gates",
    "diff": "Comparing fingerprints",
    "journal": "Journals of killed runs",
    "cache": "The result cache",
    "history": "The history",
    "scoring": "Running the model",
    "lm_eval_names": "Tasks of lm-eval",
    "lm_eval_bridge": "Tasks of lm-eval",
    "lm_eval_tasks": "Tasks of lm-eval",
    "inspection": "Tasks of lm-eval",
    "comparison": "Measuring",
    "divergence": "Measuring",
    "measure": "Measuring",
    "planning": "Planning",
    "executors": "Clusters and servers",
    "report": "Reports",
    "session": "Marker, fixtures and the run",
    "items": "Marker, fixtures and the run",
    "fixtures": "Marker, fixtures and the run",
    "lifetime": "Marker, fixtures and the run",
    "hooks": "Marker, fixtures and the run",
    "plugin": "Marker, fixtures and the run",
    "startup": "The run's start",
    "tensornames": "Checkpoints and devices",
    "errors": "Errors",
    "cli": "The command pplguard",
}


@dataclass(frozen=True)
class Message:
    """A message's template, and the class that says it."""

    room: str
    kind: str
    template: str


def messages() -> list[Message]:
    """All of them, in the order of the source, each once a room."""
    trees = {
        path: ast.parse(path.read_text(encoding="utf-8"))
        for path in sorted(PACKAGE.rglob("*.py"))
    }
    functions = {
        node.name: node
        for tree in trees.values()
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef)
    }
    found: dict[Message, None] = {}
    for path, tree in trees.items():
        room = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
        helpers = "BaselineError" if room == "baselines" else ""
        for kind, text in _texts(tree, functions):
            if any(letter.isalpha() for letter in _literal(text)):
                found[Message(room, kind or helpers, _template(text))] = None
    return list(found)


def _texts(
    tree: ast.AST, functions: dict[str, ast.FunctionDef]
) -> Iterator[tuple[str, ast.expr]]:
    """The class and the text of each error that is made."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call) or not node.args:
            continue
        name = node.func
        while isinstance(name, ast.Attribute) and name.attr == "at":
            name = name.value
        called = getattr(name, "id", getattr(name, "attr", ""))
        if called not in CLASSES and called not in _HELPERS:
            continue
        kind = called if called in CLASSES else ""
        texts = [argument for argument in node.args if _is_text(argument)]
        if texts:
            yield kind, texts[-1]
        # A function of the package that only puts the text together.
        for argument in node.args:
            if isinstance(argument, ast.Call):
                maker = functions.get(getattr(argument.func, "id", ""))
                for inner in ast.walk(maker) if maker else ():
                    if isinstance(inner, ast.Return) and _is_text(inner.value):
                        yield kind, inner.value


def _is_text(node: ast.expr | None) -> TypeGuard[ast.expr]:
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return _is_text(node.left) or _is_text(node.right)
    return isinstance(node, ast.JoinedStr) or (
        isinstance(node, ast.Constant)
        and isinstance(node.value, str)
        and " " in node.value
    )


def _template(node: ast.expr) -> str:
    """The text, with ``<name>`` where the message fills something in."""
    match node:
        case ast.Constant(value=str(text)):
            return text
        case ast.JoinedStr(values=parts):
            return "".join(map(_template, parts))
        case ast.FormattedValue(value=inner):
            return _filled(inner)
        case ast.BinOp(left=left, op=ast.Add(), right=right):
            return _template(left) + _template(right)
    return _filled(node)


def _filled(node: ast.expr) -> str:
    """What stands for a value: the last name in its expression."""
    if isinstance(node, ast.Constant):
        return str(node.value)
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name | ast.Attribute):
        called = getattr(node.func, "attr", getattr(node.func, "id", ""))
        if called in _HINTS:
            return ""
        inner = [arg for arg in node.args if not isinstance(arg, ast.Constant)]
        if inner and (called in ("join", "quote") or isinstance(node.func, ast.Name)):
            return _filled(inner[-1])
        return _filled(node.func)
    if isinstance(node, ast.BoolOp):
        return _filled(node.values[-1])
    if isinstance(node, ast.GeneratorExp | ast.ListComp):
        return _filled(node.generators[0].iter)
    if isinstance(node, ast.IfExp):
        return "<...>"
    if isinstance(node, ast.Subscript | ast.Starred):
        return _filled(node.value)
    if isinstance(node, ast.BinOp):
        return _filled(node.left)
    if isinstance(node, ast.Name) and node.id in _HINTS:
        return ""
    if isinstance(node, ast.Attribute):
        return f"<{node.attr.strip('_')}>"
    return f"<{node.id.strip('_')}>" if isinstance(node, ast.Name) else "<...>"


def _literal(node: ast.expr) -> str:
    return "".join(
        part.value
        for part in ast.walk(node)
        if isinstance(part, ast.Constant) and isinstance(part.value, str)
    )


def page() -> str:
    """The classes, then every message by what it is about."""
    rows = [
        (code(name), prose(kind.__doc__).partition("\n\n")[0].strip())
        for name, kind in CLASSES.items()
    ]
    parts = [f"## Kinds\n\n{table(('class', 'means'), rows)}"]
    titles = list(dict.fromkeys(_ROOMS.values()))
    everything = messages()
    unknown = {message.room for message in everything} - _ROOMS.keys()
    assert not unknown, f"scripts/reference/errors.py does not know {unknown}"
    for title in titles:
        here = [message for message in everything if _ROOMS[message.room] == title]
        if not here:
            continue
        parts.append(f"## {title}\n")
        kinds = sorted({message.kind for message in here})
        for kind in kinds:
            said = dict.fromkeys(
                message.template for message in here if message.kind == kind
            )
            heading = f"### {title}: {kind}" if kind else f"### {title}: a failed test"
            lines = [f"- {code(' '.join(text.split()))}" for text in sorted(said)]
            parts.append(f"{heading}\n\n" + "\n".join(lines) + "\n")
    return "\n".join(parts)
