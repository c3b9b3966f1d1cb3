"""How text becomes windows, which tokens count and what divides: one file a method."""

from ..errors import UsageError
from ..values import Key, near_matches
from .base import Protocol, Text, Tokenizer, perplexity, windows_digest
from .cut import Cut, CutProtocol, detokenised
from .kl import Kl
from .lm_eval import LmEval
from .wanda import Wanda

__all__ = [
    "METHODS",
    "PROTOCOLS",
    "USUAL_METHODS",
    "Cut",
    "CutProtocol",
    "Kl",
    "LmEval",
    "Protocol",
    "Text",
    "Tokenizer",
    "check_key",
    "detokenised",
    "get_protocol",
    "perplexity",
    "windows_digest",
]

PROTOCOLS: dict[str, Protocol] = {
    protocol.name: protocol for protocol in (Wanda(), LmEval(), Kl())
}
"""The methods that can be measured, by the name that a key begins with."""

USUAL_METHODS = ("wanda", "lm-eval")
"""What is measured where nobody says by which method."""

METHODS = " and ".join([", ".join([*PROTOCOLS][:-1]), [*PROTOCOLS][-1]])
"""All methods, for people."""


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
            f"this version measures {METHODS}"
        ) from None


def check_key(key: Key) -> None:
    """Refuse a key that its method cannot measure.

    Raises:
        UsageError: unknown method, or a part that the method has no use for.
    """
    get_protocol(key.method).check(key)
