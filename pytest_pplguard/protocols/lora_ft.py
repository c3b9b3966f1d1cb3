"""``evaluate_ppl`` of the Wanda code's ``lora_ft/evaluate_ppl.py``.

The text of Wanda's own evaluation, in windows of ``ctx_length`` tokens without overlap,
but the tail is kept as a shorter window, and the perplexity is the exponential of the
mean of the windows' mean losses: the tail weighs as much as any other window.

A tail of one token has no loss there (its mean over no tokens is NaN), so such a text
is an error here, which says how to go on.
"""

from __future__ import annotations

from .cut import Cut, CutProtocol


class LoraFt(CutProtocol):
    """Token perplexity, every window counting the same."""

    name = "lora-ft"
    usual_window = 2048
    cut = Cut(tail="kept", mean="windows")
