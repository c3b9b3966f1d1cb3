"""A model that a server offers, and how it is asked about prompts."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from ...protocols import Tokenizer
from .answers import Decode, Dialect, choices
from .client import Client

_A_TOKEN = 4096
"""Bytes that an answer has for a token, at most: it has about 80."""


class Offer(NamedTuple):
    """A model that a server offers, and how it tells of tokens.

    ``context`` are the most tokens of a request, prompt and what is written; None where
    the server does not say. ``fingerprint`` is what it calls its configuration.
    """

    client: Client
    id: str
    dialect: Dialect
    context: int | None = None
    fingerprint: str | None = None

    def ask(
        self, prompts: Sequence[Sequence[int]], leave: threading.Event
    ) -> list[Mapping[str, Any]]:
        """The server's answer to each of some prompts of token ids.

        Nobody waits for it any more once ``leave`` is set.

        Raises:
            Refused: the server will not.
            ExecutorError: no answer, or one about something else.
        """
        tokens = sum(map(len, prompts)) + len(prompts)
        document, _ = self.client.complete(
            {
                "model": self.id,
                "prompt": [*prompts[0]] if len(prompts) == 1 else [*map(list, prompts)],
                "temperature": 0,
                **self.dialect.options(),
            },
            most=(1 << 20) + tokens * _A_TOKEN,
            leave=leave,
        )
        return choices(document, len(prompts))


def decoder(tokenizer: Tokenizer) -> Decode:
    """The text of a token, each decoded once."""
    known: dict[int, str] = {}

    def decode(id_: int) -> str:
        if id_ not in known:
            known[id_] = str(tokenizer.decode([id_]))
        return known[id_]

    return decode
