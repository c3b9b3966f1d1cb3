"""Whether a server still gives an answer that it gave before: its weights are its word.

A server is restarted with another checkpoint, or has an adapter loaded anew; its name
for the model stays. What it says of a prompt's tokens does not.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from ...errors import ServerChangedError
from .answers import Decode, Told, Unreadable
from .client import Refused
from .offer import Offer

ROUNDING = 0.05
"""By what share of a prompt's loss its tokens' losses may be apart, and by how many
nats a token where that loss is below one.

The same weights in half precision, by another kernel, batch or machine, are below 0.01
(docs/server.md); a pruned model is 0.1 from its dense one, token by token.
"""


class _Said(NamedTuple):
    """Nats of all tokens of a prompt but the first, and where it is from."""

    prompt: tuple[int, ...]
    losses: list[float]
    where: str


class Witness:
    """The first answer of a server to which it is held.

    Args:
        offer: whom to ask.
        decode: the checkpoint's own text of a token.
    """

    def __init__(self, offer: Offer, decode: Decode) -> None:
        self.offer = offer
        self._decode = decode
        self._said: _Said | None = None
        self.is_window = False

    def told(
        self, choice: Mapping[str, Any], prompt: Sequence[int], scored: int
    ) -> Told:
        """What an answer tells of the last tokens of ``prompt``: see ``Dialect``."""
        return self.offer.dialect.told(choice, prompt, scored, self._decode)

    def take(
        self,
        prompt: Sequence[int],
        choice: Mapping[str, Any],
        where: str,
        *,
        is_window: bool,
    ) -> None:
        """Hold the server to its answer to ``prompt``, which was read without fault."""
        losses = self.told(choice, prompt, len(prompt) - 1).losses
        self._said = _Said(tuple(prompt), losses, where)
        self.is_window = is_window

    def check(self, *, came_back: bool = False) -> None:
        """Ask the same again.

        Args:
            came_back: the server was away before; else it is asked at the end.

        Raises:
            NoAnswer: there is none, which may pass.
            ServerChangedError: the answer is another.
            ExecutorError: the server will not answer, or with nothing that can be read.
        """
        if self._said is None:
            return
        prompt, before, where = self._said
        url, how = self.offer.client.url, "came back and " if came_back else ""
        try:
            now = self.told(self.offer.ask([prompt])[0], prompt, len(before)).losses
        except Unreadable as error:
            raise ServerChangedError(
                f"the server at {url} {how}answers {where} with something else than "
                f"before: {error}"
            ) from error
        except Refused as error:
            if not error.is_no_number:
                raise
            now = [math.nan] * len(before)
        pairs = [
            pair for pair in zip(before, now, strict=True) if math.isfinite(pair[0])
        ]
        if not pairs:  # its first question, and no number for any of its tokens
            return
        count = len(pairs)
        was, is_ = (math.fsum(side) / count for side in zip(*pairs, strict=True))
        apart = math.fsum(abs(one - other) for one, other in pairs) / count
        allowed = ROUNDING * max(was, 1.0)
        if not apart <= allowed:
            raise ServerChangedError(
                f"the server at {url} {how}answers {where} differently: {was:.4f} nats "
                f"a token before, {is_:.4f} now (each {apart:.2g} apart, where "
                f"rounding is below {allowed:.2g}); its model has changed: measure "
                "anew, and leave it as it is until the end"
            )
