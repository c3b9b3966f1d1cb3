"""The Wanda code's perplexity: ``lib/data.py`` and ``lib/eval.py`` of locuslab/wanda.

All rows of the text are joined (WikiText-2's by a blank line, others by their recipe)
and tokenised once (one BOS at the start if the tokenizer adds it), cut into windows
without overlap, the tail dropped. Tokens 2..seqlen of each window are scored; the
perplexity is the exponential of the mean of the windows' mean losses, which is that of
all tokens: the windows are equal.
"""

from __future__ import annotations

from .cut import Cut, CutProtocol


class Wanda(CutProtocol):
    """Token perplexity over all rows of a text."""

    name = "wanda"
    cut = Cut()
