"""The sliding window of the Hugging Face documentation, its number to the last digit.

https://huggingface.co/docs/transformers/perplexity: all rows joined by a blank line and
tokenised once; windows begin every ``stride`` tokens, the last one ends with the text,
and of each window those tokens are scored that no earlier window reached.

The loop multiplies each window's mean loss by the tokens that it adds *less one*, "due
to internal label shift". That is right for a window that shares nothing with the one
before: its first token has nothing in front of it. A window that overlaps scores all
that it adds, so its mean counts a little less than its tokens do, and a last window
that adds a single token counts nothing. The number here is that of the loop.
"""

from __future__ import annotations

from typing import ClassVar

from ..errors import UsageError
from ..values import Key
from .cut import Cut, CutProtocol


class Strided(CutProtocol):
    """Token perplexity over windows that overlap."""

    name = "strided"
    cut = Cut(tail="kept", mean="weighted")
    has_stride = True
    usual_stride: ClassVar[int] = 512

    def key_for(self, corpus: str | None, window: int, first: int | None) -> Key:
        """With the documentation's stride, or half the window where that is less."""
        stride = min(self.usual_stride, max(1, window // 2))
        text = corpus or self.default_text
        return Key(self.name, text, window, stride=stride, first=first)

    def check_stride(self, key: Key) -> None:
        if key.stride is None:
            other = str(self.key_for(key.corpus or key.text, key.window, key.first))
            raise UsageError(
                f"key {key}: the method {self.name} needs a stride, the tokens from "
                f"one window's start to the next; write for example {other}"
            )
        if key.stride > key.window:
            raise UsageError(
                f"key {key}: with a stride longer than the window, tokens between "
                f"windows are never read; take a stride of 1 to {key.window}"
            )
