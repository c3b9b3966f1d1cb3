"""The evaluation of GPTQ and SparseGPT: Wanda's windows, at 2,048 tokens.

``llama_eval`` and ``opt_eval`` of IST-DASLab/gptq and IST-DASLab/sparsegpt run layer by
layer, to fit a small GPU. What they compute is what the Wanda code took over: each
window's mean loss times its length, summed, divided by windows times length. The tail
is dropped. ``model.seqlen`` is 2,048 for Llama whatever the model can read, and the
model's maximum for OPT, which is 2,048 too.
"""

from __future__ import annotations

from .cut import Cut, CutProtocol


class Gptq(CutProtocol):
    """Token perplexity as the Wanda code's, usually at windows of 2,048."""

    name = "gptq"
    usual_window = 2048
    cut = Cut()
