"""A model that a server offers, and how it is asked about prompts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from msgspec import Struct

from ...errors import ExecutorError, ServerChangedError
from ...protocols import Tokenizer
from ...safetext import one_line
from .answers import Decode, Dialect, choices
from .client import Answer, Client, Refused

_A_TOKEN = 4096
"""Bytes that an answer has for a token, at most: it has about 80."""

_LISTED = 8


class Served(Struct, frozen=True):
    """A model on a server's list.

    ``root`` is the path or Hub id that it was loaded from, ``context`` its
    ``max_model_len``; None where the server does not say.
    """

    id: str
    owner: str = ""
    root: str | None = None
    context: int | None = None


class Offer(NamedTuple):
    """A model that a server offers, and how it tells of tokens."""

    client: Client
    served: Served
    dialect: Dialect

    def ask(self, prompts: Sequence[Sequence[int]]) -> list[Mapping[str, Any]]:
        """The server's answer to each of some prompts of token ids.

        Raises:
            NoAnswer: there is none, which may pass.
            Refused: the server will not.
            ExecutorError: it answers about something else.
        """
        tokens = sum(map(len, prompts)) + len(prompts)
        document, _ = self.client.complete(
            {
                "model": self.served.id,
                "prompt": [*prompts[0]] if len(prompts) == 1 else [*map(list, prompts)],
                "temperature": 0,
                **self.dialect.options(),
            },
            most=(1 << 20) + tokens * _A_TOKEN,
        )
        return choices(document, len(prompts))

    def check_listed(self) -> None:
        """Refuse a server that has come back with other models.

        Raises:
            NoAnswer: it is not back yet.
            ServerChangedError: the model is not there, or was loaded from elsewhere.
        """
        found = offered(list_of_models(self.client).document, self.client.url)
        for model in found:
            if model.id == self.served.id and model.root == self.served.root:
                return
        for model in found:
            if model.id == self.served.id:
                raise ServerChangedError(
                    f"the server at {self.client.url} came back with another model of "
                    f"that name: {self.served.id} was {_root(self.served)}, and is "
                    f"{_root(model)} now"
                )
        raise ServerChangedError(
            f"the server at {self.client.url} came back without the model "
            f"{self.served.id}: it offers {listed([model.id for model in found])}"
        )


def list_of_models(client: Client) -> Answer:
    """The server's list.

    Raises:
        ExecutorError: there is none, or nobody answers.
    """
    try:
        return client.get("/models")
    except Refused as error:
        if error.status != 404:
            raise
        ending = "" if client.url.endswith("/v1") else " (it mostly ends with /v1)"
        raise ExecutorError(
            f"the server at {client.url} has no list of models there (404): is that "
            f"the address of its API{ending}?"
        ) from error


def offered(document: Any, url: str) -> list[Served]:
    """The models on a server's list.

    Raises:
        ExecutorError: that is no such list.
    """
    entries = document.get("data") if isinstance(document, dict) else None
    if not isinstance(entries, list):
        raise ExecutorError(
            f"the server at {url} answers /models with something that is no list of "
            "models: is it a server of completions?"
        )
    return [
        Served(
            one["id"],
            owner=_text(one.get("owned_by")) or "",
            root=_text(one.get("root")),
            context=_whole(one.get("max_model_len")),
        )
        for one in entries
        if isinstance(one, dict) and isinstance(one.get("id"), str)
    ]


def listed(ids: Sequence[str]) -> str:
    """Names of models for a sentence, the first of many."""
    more = f" and {len(ids) - _LISTED} more" if len(ids) > _LISTED else ""
    shown = ", ".join(one_line(id_, most=200) for id_ in ids[:_LISTED])
    return (shown or "none") + more


def decoder(tokenizer: Tokenizer) -> Decode:
    """The text of a token, each decoded once."""
    known: dict[int, str] = {}

    def decode(id_: int) -> str:
        if id_ not in known:
            known[id_] = str(tokenizer.decode([id_]))
        return known[id_]

    return decode


def _root(model: Served) -> str:
    return one_line(model.root or "of no known place", most=200)


def _whole(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _text(value: object) -> str | None:
    return value if isinstance(value, str) and value else None
