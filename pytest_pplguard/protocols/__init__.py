"""How text becomes windows, which tokens count and what divides: one file a method."""

from ..errors import UsageError
from ..values import Key, near_matches
from .base import Protocol, Tokenizer, perplexity, windows_digest
from .lm_eval import LmEval
from .wanda import Wanda

__all__ = [
    "PROTOCOLS",
    "Protocol",
    "Tokenizer",
    "check_key",
    "get_protocol",
    "perplexity",
    "windows_digest",
]

PROTOCOLS: dict[str, Protocol] = {
    protocol.name: protocol for protocol in (Wanda(), LmEval())
}
"""The methods that can be measured, by the name that a key begins with."""


def get_protocol(method: str) -> Protocol:
    """The protocol called ``method``.

    Raises:
        UsageError: there is none; the message lists those there are.
    """
    try:
        return PROTOCOLS[method]
    except KeyError:
        raise UsageError(
            f"unknown method {method!r}{near_matches(method, PROTOCOLS)}: "
            f"this version measures {' and '.join(PROTOCOLS)}"
        ) from None


def check_key(key: Key) -> None:
    """Refuse a key that its method cannot measure.

    Raises:
        UsageError: unknown method, or a part that the method has no use for.
    """
    get_protocol(key.method).check(key)
