"""Reads what servers say of a prompt's tokens, in the two ways that there are.

vLLM's ``prompt_logprobs`` and the completions API's ``echo`` with ``logprobs``. Both
are held to the tokens that were sent: an answer about others, or about fewer, is an
error and no number.
"""

from __future__ import annotations

import abc
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from ...errors import ExecutorError

_CLAMPED = -9999.0
"""What vLLM writes for a log-probability of minus infinity, which JSON has not."""

_SPELLED = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}
_ROUNDING = 1e-3
_BY_ID = "token_id:"
"""How vLLM writes a token that it was asked not to decode, or cannot."""

_WHITE = " \t\r\n\N{LOWER ONE EIGHTH BLOCK}\N{LATIN CAPITAL LETTER G WITH DOT ABOVE}"
"""White space, and how vocabularies write it: it is put on and off by decoding."""

Decode = Callable[[int], str]
"""The text of one token by the checkpoint's own tokenizer."""


class Told(NamedTuple):
    """Of the scored tokens: nats each (NaN: the server has none); if all are top.

    ``greedy`` is None where the server does not say.
    """

    losses: list[float]
    greedy: bool | None


class Unreadable(ExecutorError):
    """The answer is not about the tokens that were sent."""


class Dialect(abc.ABC):
    """One way of asking and answering.

    ``written`` are the tokens that the server writes behind the prompt, for which its
    context must have room.
    """

    name: str
    written: int

    @abc.abstractmethod
    def options(self) -> dict[str, Any]:
        """What is asked for beside the prompt."""

    @abc.abstractmethod
    def told(
        self, choice: Mapping[str, Any], prompt: Sequence[int], scored: int, of: Decode
    ) -> Told:
        """Of the last tokens of ``prompt``, as many as are ``scored``.

        Raises:
            Unreadable: it is about other tokens, or not in this dialect.
        """


class PromptLogprobs(Dialect):
    """vLLM's own: for each token of the prompt, what is said by token id.

    ``prompt_logprobs: 0`` asks for the prompt's tokens and no others.
    """

    name = "prompt_logprobs"
    written = 1

    def options(self) -> dict[str, Any]:
        return {"prompt_logprobs": 0, "max_tokens": self.written}

    def told(
        self, choice: Mapping[str, Any], prompt: Sequence[int], scored: int, of: Decode
    ) -> Told:
        found = choice.get("prompt_logprobs")
        if not isinstance(found, list):
            raise Unreadable("it has no prompt_logprobs")
        _check_length(len(found), prompt)
        losses, greedy = [], True
        for position in range(1, len(prompt)):
            id_, entry = prompt[position], found[position]
            is_scored = position >= len(prompt) - scored
            if entry is None and is_scored:
                losses.append(math.nan)
                continue
            said = entry.get(str(id_)) if isinstance(entry, dict) else None
            if not isinstance(said, dict):
                others = list(entry) if isinstance(entry, dict) else entry
                raise Unreadable(
                    f"token {position + 1} of {len(prompt)} was {id_}, and it tells of "
                    f"{str(others)[:80]}"
                )
            _check_text(said.get("decoded_token"), position, prompt, of)
            if is_scored:
                losses.append(_loss(said.get("logprob")))
                greedy = greedy and said.get("rank") == 1
        return Told(losses, greedy)


class Echo(Dialect):
    """The completions API's: the prompt said again, with its tokens' logprobs.

    Tokens come as text: ids cannot be compared, their texts are.
    """

    name = "echo with logprobs"

    def __init__(self, written: int) -> None:
        self.written = written

    def options(self) -> dict[str, Any]:
        return {"echo": True, "logprobs": 1, "max_tokens": self.written}

    def told(
        self, choice: Mapping[str, Any], prompt: Sequence[int], scored: int, of: Decode
    ) -> Told:
        said = choice.get("logprobs")
        values, tokens, tops = (
            said.get(name) if isinstance(said, dict) else None
            for name in ("token_logprobs", "tokens", "top_logprobs")
        )
        if not isinstance(values, list) or not isinstance(tokens, list):
            raise Unreadable("it has no logprobs of an echoed prompt")
        _check_length(len(values), prompt, self.written)
        if len(tokens) != len(values):
            raise Unreadable(
                f"it tells of {len(tokens)} tokens and of {len(values)} logprobs"
            )
        for position in range(len(prompt)):
            _check_text(tokens[position], position, prompt, of)
        positions = range(len(prompt) - scored, len(prompt))
        losses = [_loss(values[position]) for position in positions]
        if not isinstance(tops, list) or len(tops) != len(values):
            return Told(losses, None)
        found = [_is_top(values[position], tops[position]) for position in positions]
        return Told(losses, None if None in found else all(found))


DIALECTS: tuple[Dialect, ...] = (PromptLogprobs(), Echo(1), Echo(0))
"""In the order in which they are tried."""


def choices(document: Any, count: int) -> list[Mapping[str, Any]]:
    """The answers to so many prompts, in their order.

    Raises:
        Unreadable: there are others.
    """
    found = document.get("choices") if isinstance(document, dict) else None
    if not isinstance(found, list) or not all(isinstance(one, dict) for one in found):
        raise Unreadable("it has no choices")
    if len(found) != count:
        were = "prompt was" if count == 1 else "prompts were"
        raise Unreadable(f"{count} {were} sent, and it has {len(found)} choices")
    by_index = {one.get("index"): one for one in found}
    if by_index.keys() != set(range(count)):
        raise Unreadable(f"its choices have the indices {list(by_index)}")
    return [by_index[index] for index in range(count)]


def _check_length(found: int, prompt: Sequence[int], written: int = 0) -> None:
    """Refuse a list that is not of the prompt's tokens, and of those behind it."""
    if not len(prompt) <= found <= len(prompt) + written:
        raise Unreadable(
            f"{len(prompt)} tokens were sent, and it tells of {found - written}"
            if found > len(prompt)
            else f"{len(prompt)} tokens were sent, and it tells of {found}"
        )


def _check_text(said: object, position: int, prompt: Sequence[int], of: Decode) -> None:
    """Refuse a token that the checkpoint's tokenizer spells otherwise.

    White space around it, and parts of characters, are nobody's business: servers
    decode a token within its text, or alone.
    """
    if not isinstance(said, str) or not said:
        return
    id_ = prompt[position]
    if said.startswith(_BY_ID):
        same = said == f"{_BY_ID}{id_}"
        here = f"{_BY_ID}{id_}"
    else:
        here, there = of(id_).strip(_WHITE), said.strip(_WHITE)
        unknown = not here or not there or "\ufffd" in here + there
        same = unknown or here == there or there.startswith(("bytes:", "<0x"))
    if not same:
        raise Unreadable(
            f"token {position + 1} of {len(prompt)} (id {id_}) is {here!r} here and "
            f"{said!r} there: the server has another tokenizer"
        )


def _loss(value: object) -> float:
    """Nats of a log-probability; NaN where there is none."""
    value = _SPELLED.get(value, value) if isinstance(value, str) else value
    if value is None:
        return math.nan
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise Unreadable(f"{str(value)[:40]!r} is no log-probability")
    if value <= _CLAMPED:
        return math.inf
    if value > _ROUNDING:
        raise Unreadable(f"{value} is no log-probability: it is above 0")
    return -float(value)


def _is_top(value: object, top: object) -> bool | None:
    if not isinstance(top, dict) or not isinstance(value, int | float):
        return None
    others = [other for other in top.values() if isinstance(other, int | float)]
    return value >= max(others) if others else None
