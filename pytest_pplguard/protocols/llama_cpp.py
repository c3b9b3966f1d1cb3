"""llama.cpp's ``llama-perplexity``: the second half of every window is scored.

``perplexity`` in ``tools/perplexity/perplexity.cpp`` of ggml-org/llama.cpp, without its
option for strides. The file's text, without its last line end, is tokenised once (with
a BOS in front if the vocabulary adds one) and cut into chunks of ``n_ctx`` tokens, the
tail dropped. If the vocabulary adds BOS, the model reads one in place of each chunk's
first token. Scored are the tokens behind the positions ``n_ctx / 2`` to ``n_ctx - 2``,
``n_ctx - 1 - n_ctx / 2`` a chunk; the perplexity is the exponential of their mean.

What differs is what is no part of the method: llama.cpp's own kernels and formats, and
its tokenizer where it gives other ids than that of transformers.
"""

from __future__ import annotations

from ..errors import UsageError
from ..values import Key
from .cut import Cut, CutProtocol


class LlamaCpp(CutProtocol):
    """Token perplexity over the second halves of windows."""

    name = "llama-cpp"
    usual_window = 512
    cut = Cut(text="file", first="BOS in its place", scored="second half")
    fewest = 2

    def check(self, key: Key) -> None:
        super().check(key)
        if key.window < 3:
            raise UsageError(
                f"key {key}: the second half of a window of two tokens scores nothing"
            )
