"""The page of commands: what ``pplguard COMMAND --help`` says, all on one page."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import typer

from pytest_pplguard.cli.app import app

from .markdown import code, prose, table

_ROOT: Any = typer.main.get_command(app)


def commands(group: Any = _ROOT, before: str = "pplguard") -> Iterator[tuple[str, Any]]:
    """Every command that does something, with its words."""
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from commands(command, f"{before} {name}")
        else:
            yield f"{before} {name}", command


def summary() -> str:
    """The table of commands."""
    rows = []
    for words, command in commands():
        arguments = " ".join(_shown(part) for part in _parameters(command, "argument"))
        anchor = words.replace(" ", "-")
        first = prose(command.help).partition("\n\n")[0].strip().rstrip(".")
        link = (
            f"[{code(f'{words} {arguments}'.strip())}](reference/commands.md#{anchor})"
        )
        rows.append((link, first))
    return table(("command", "does"), rows)


def page() -> str:
    """All commands with their arguments and options."""
    parts = []
    for words, command in commands():
        arguments = _parameters(command, "argument")
        usage = " ".join([words, "[OPTIONS]", *map(_shown, arguments)])
        parts.append(f"## {words}\n\n{prose(command.help)}\n```text\n{usage}\n```\n")
        rows = [(code(_shown(part)), part.help or "") for part in arguments]
        for option in _parameters(command, "option"):
            text = option.help or ""
            if option.required:
                text += " (required)"
            elif _default(option) and "(default" not in text:
                text += f" (default: {_default(option)})"
            rows.append((code(_shown(option)), text))
        parts.append(table(("argument or option", "meaning"), rows))
    return "\n".join(parts)


def _parameters(command: Any, kind: str) -> list[Any]:
    return [
        part
        for part in command.params
        if part.param_type_name == kind and part.name != "help"
    ]


def _shown(part: Any) -> str:
    if part.param_type_name == "argument":
        shown = str(part.metavar) if part.required else f"[{part.metavar}]"
        return f"{shown}..." if part.nargs == -1 else shown
    names = "/".join([*part.opts, *part.secondary_opts])
    return names if part.is_flag else f"{names} {part.metavar}"


def _default(option: Any) -> str:
    default = option.default
    return "" if default in (None, False) or callable(default) else str(default)
