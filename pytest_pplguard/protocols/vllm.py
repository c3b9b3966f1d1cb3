"""vLLM's own perplexity test: chunks without overlap, the tail kept.

``tests/models/language/generation_ppl_test/ppl_utils.py`` of vllm-project/vllm: all
rows joined by a blank line and tokenised once, in chunks of ``max_length`` tokens. The
losses of all chunks are summed and divided by the number of scored tokens; a chunk's
first token is not scored, so that a last chunk of one token adds nothing.
"""

from __future__ import annotations

from .cut import Cut, CutProtocol


class Vllm(CutProtocol):
    """Token perplexity over every window, the short last one too."""

    name = "vllm"
    usual_window = 1023
    """The test serves ``max_model_len`` 1,024, and leaves room to generate a token:
    ``min(max_model_len - 1, 1024)``."""
    cut = Cut(tail="kept")
