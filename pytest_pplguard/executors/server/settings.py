"""What the user said about a server, checked before anything is asked or loaded."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from urllib.parse import urlsplit

from ...errors import UsageError
from ...options import Options
from ...safetext import one_line

KEYS = ("PPL_SERVER_API_KEY", "OPENAI_API_KEY")
"""Variables of the environment that hold the server's key; the first that is set."""


def check_options(options: Options, names: Collection[str] = ()) -> None:
    """Refuse what is for models that are loaded here, and what no server can be.

    Args:
        options: what the user asked for.
        names: the checkpoints that will be measured.

    Raises:
        UsageError: there is such an option.
    """
    usual = Options()
    for name in ("device", "max_memory", "dtype", "attention", "compile", "threads"):
        if getattr(options, name) != getattr(usual, name):
            nothing = "false" if name == "compile" else ""
            out = (
                f", or add -o ppl_{name}={nothing}" if name in options.from_ini else ""
            )
            raise UsageError(
                f"{options.where(name)} is for models that are loaded here, and the "
                "executor is a server, which was started with its own: leave it out"
                f"{out}"
            )
    execution = options.execution
    assert execution.address is not None
    checked_url(execution.address, option=options.where("server"))
    api_key()
    ids, option = model_ids(execution.model), options.where("server_model")
    _check_twice(ids, option)
    if "" in ids and len(names) > 1:
        pairs = ",".join(f"{name}=ID" for name in names)
        raise UsageError(
            f"{option}: {ids['']} would stand for {len(names)} checkpoints, "
            f"and a model of the server is one: give --ppl-server-model {pairs}, or "
            "measure one at a time"
        )


def _check_twice(ids: Mapping[str, str], option: str) -> None:
    names: dict[str, str] = {}
    for name, id_ in ids.items():
        other = names.setdefault(id_, name)
        if other != name:
            raise UsageError(
                f"{option}: {other} and {name} would both be the server's model {id_}: "
                "give each its own, or measure one at a time"
            )


def model_ids(given: str | None) -> dict[str, str]:
    """``ID``, under no name, or ``NAME=ID,...`` by the checkpoint's name."""
    if not given:
        return {}
    pairs = [one.partition("=") for one in given.split(",")]
    if not all(name and equals and id_ for name, equals, id_ in pairs):
        return {"": given}
    return {name: id_ for name, _, id_ in pairs}


def checked_url(url: str, *, option: str) -> str:
    """The address of an API, without the ``/completions`` that lm-eval wants.

    ``option`` is what it was given by.

    Raises:
        UsageError: it is none, or holds a password.
    """
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError:
        raise UsageError(_no_address(url, option)) from None
    if parts.username is not None or parts.password is not None:
        raise UsageError(
            f"{option}: the address holds a user or a password, which would be "
            f"printed: leave it out, and set a key by {KEYS[0]} in the environment"
        )
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise UsageError(_no_address(url, option))
    if parts.query or parts.fragment:
        raise UsageError(_no_address(url, option))
    return url.rstrip("/").removesuffix("/completions").rstrip("/")


def _no_address(url: str, option: str) -> str:
    shown = one_line(url, most=200)
    return f"{option}: {shown!r} is no address; give http://HOST:PORT/v1"


def api_key() -> str:
    """The server's key, empty where there is none.

    Raises:
        UsageError: it has characters that no header can carry.
    """
    for name in KEYS:
        key = os.environ.get(name, "").strip()
        if not key:
            continue
        if not (key.isascii() and key.isprintable()):
            raise UsageError(
                f"{name} in the environment has characters that no key has (a line "
                "end, a letter that is not ASCII): set it anew"
            )
        return key
    return ""
