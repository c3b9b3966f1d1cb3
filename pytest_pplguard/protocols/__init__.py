"""How text becomes windows, which tokens count and what divides: one file a method."""

from ..errors import UsageError
from ..values import Key, near_matches
from .base import Protocol, Text, Tokenizer, perplexity, windows_digest
from .cut import Cut, CutProtocol, count_words, detokenised
from .gptq import Gptq
from .kl import Kl
from .llama_cpp import LlamaCpp
from .lm_eval import LmEval, aggregation, recompute_task
from .lora_ft import LoraFt
from .registry import Registry, listed
from .strided import Strided
from .vllm import Vllm
from .wanda import Wanda

__all__ = [
    "AGGREGATION",
    "METHODS",
    "PROTOCOLS",
    "USUAL_METHODS",
    "Cut",
    "CutProtocol",
    "Gptq",
    "Kl",
    "LmEval",
    "Protocol",
    "Registry",
    "Text",
    "Tokenizer",
    "Wanda",
    "aggregation",
    "check_key",
    "count_words",
    "detokenised",
    "get_protocol",
    "method_names",
    "perplexity",
    "recompute_task",
    "windows_digest",
]

_OWN = (Wanda(), LmEval(), Kl(), Strided(), LlamaCpp(), LoraFt(), Gptq(), Vllm())

PROTOCOLS = Registry(*_OWN)
"""The methods that can be measured, by the name that a key begins with."""

USUAL_METHODS = ("wanda", "lm-eval")
"""What is measured where nobody says by which method."""

METHODS = listed([protocol.name for protocol in _OWN])
"""This package's methods, for people."""


def get_protocol(method: str) -> Protocol:
    """The protocol called ``method``.

    Raises:
        UsageError: there is none, and the message lists those there are; or it is one
            from outside that cannot be used.
    """
    try:
        return PROTOCOLS[method]
    except KeyError:
        raise UsageError(
            f"unknown method {method!r}{near_matches(method, PROTOCOLS)}: "
            f"this version measures {method_names()}"
        ) from None


def method_names() -> str:
    """All methods' names, for people; those from outside too, none imported."""
    return listed([*PROTOCOLS])


def check_key(key: Key) -> None:
    """Refuse a key that its method cannot measure.

    Raises:
        UsageError: unknown method, or a part that the method has no use for.
    """
    protocol = get_protocol(key.method)
    if key.shots is not None and not protocol.runs_task(key):
        raise UsageError(
            f"key {key}: only tasks of lm-eval have shots, examples that are shown "
            f"first; write {str(key).replace(f':shots{key.shots}', '')}"
        )
    protocol.check(key)
