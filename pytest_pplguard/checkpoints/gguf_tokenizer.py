"""Gives a GGUF file's tokenizer the pre-tokenizer that the file names.

A byte-level BPE splits a text into words before it merges bytes. How, a GGUF file only
names (``tokenizer.ggml.pre``); llama.cpp holds the rules by that name, in
``llama-vocab.cpp``. transformers knows some of them (4.56 by the architecture, 5.23 by
name) and gives every other tokenizer GPT-2's rule without a word.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_SINGLE_DIGITS = frozenset(
    ("smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b")
)
"""Names that stand for: each digit by itself (``\\p{N}``), then GPT-2's rule."""
_GPT2 = frozenset(("default", "gpt-2", "phi-2", "mpt", "olmo", "jais", "trillion"))
"""Names that stand for GPT-2's rule, and ``default``, which files without one have."""


def set_pre_tokenizer(
    tokenizer: PreTrainedTokenizerBase, *, kind: str | None, rule: str | None
) -> str | None:
    """Set the rule called ``rule`` in place; a line for the user if it is not known.

    Args:
        tokenizer: as transformers made it from the file.
        kind: the file's ``tokenizer.ggml.model``; ``gpt2`` is byte-level BPE, the only
            kind that has such a rule.
        rule: the file's ``tokenizer.ggml.pre``.
    """
    backend: Any = tokenizer.backend_tokenizer
    if kind != "gpt2" or rule is None or rule in _GPT2 or not _is_gpt2s(backend):
        return None
    if rule not in _SINGLE_DIGITS:
        return (
            f"the GGUF file splits words by the rule {rule!r}, which this version of "
            "transformers does not know: tokens may differ from the original "
            "tokenizer's; a Hugging Face folder of the model has no such doubt"
        )
    from tokenizers import pre_tokenizers

    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    return None


def _is_gpt2s(backend: Any) -> bool:
    """Whether it splits by GPT-2's rule alone."""
    from tokenizers import pre_tokenizers

    rule = backend.pre_tokenizer
    return isinstance(rule, pre_tokenizers.ByteLevel) and bool(rule.use_regex)
