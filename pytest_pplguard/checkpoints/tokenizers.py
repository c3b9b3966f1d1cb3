"""Digests a tokenizer as it was loaded, comparably between processes."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from .describe import describe_tokenizer
from .locate import Located

_ENDS = ("bos", "eos")


def tokenizer_digest(tokenizer: Any, located: Located) -> str:
    """A digest of all that decides into which tokens a loaded tokenizer cuts a text.

    Covers its class, its special tokens and the whole of a fast one, which tokenizers
    writes in one order in every process. One of Python code has no such form: of that
    the files are digested, as a fingerprint does it.

    Args:
        tokenizer: of transformers.
        located: the checkpoint that it was loaded from.

    Raises:
        CheckpointError: a file of a tokenizer of Python code cannot be read.
    """
    kind = type(tokenizer)
    fast = getattr(tokenizer, "backend_tokenizer", None)
    said = {
        "class": f"{kind.__module__}.{kind.__qualname__}",
        "special tokens": {
            name: str(token) for name, token in tokenizer.special_tokens_map.items()
        },
        "adds": [getattr(tokenizer, f"add_{end}_token", None) for end in _ENDS],
        "tokenizer": describe_tokenizer(located) if fast is None else fast.to_str(),
    }
    text = json.dumps(said, sort_keys=True)
    return f"sha256:{hashlib.sha256(text.encode()).hexdigest()}"
