"""What a measurement takes: memory, floating-point operations, time. Pure arithmetic.

Sizes are in bytes, work in FLOPs (a multiplication and an addition are two), time in
seconds. Nothing here reads a file or imports torch.

Sources of the formulas: Kaplan et al., Scaling Laws for Neural Language Models (2020),
table 1, count a forward pass as two FLOPs for each weight and token, and attention
beside it; Chowdhery et al., PaLM (2022), appendix B, do the same. A causal model needs
half of all pairs of positions, and that half is counted here.
"""

from __future__ import annotations

import math

from msgspec import Struct

CHUNK_BYTES = {"cpu": 3 * 2**24, "accelerator": 2**28}
"""Logits that exist at once: 48 MiB on a CPU, 256 MiB on an accelerator. About what the
body of a small model, and of a large one, takes; fewer rows make a matrix product
slower."""

ITEMSIZE = {"float64": 8, "float32": 4, "float16": 2, "bfloat16": 2}
"""Bytes of one number, by dtype."""

CONTEXT = 2**30
"""Of each GPU: what its driver, kernels and workspaces take beside all tensors."""

PROCESS = 300 * 2**20
"""Of a CPU's memory: Python, torch and transformers. Measured: 273 MB."""

SHARE = 0.25
"""Of activations and logits, for what the allocator cannot use and no formula knows."""


class Layer(Struct, frozen=True):
    """One decoder layer.

    ``products`` are the weights of its matrices (each multiplies every token), of all
    experts together; ``experts`` their share of ``parameters``, of which each token
    reads ``read`` of ``count``. ``heads`` heads have queries of ``queries`` numbers
    together, keys of ``keys``, and give ``values``. ``middle`` is the width inside of
    the MLP, or of one expert, and ``copies`` how many tensors of that width live at
    once: 3 in a gated MLP (what was activated, its factor, their product). ``reach`` is
    a sliding window in tokens, None where each token sees all before it.
    """

    parameters: int
    products: int
    middle: int
    copies: int = 3
    heads: int = 0
    queries: int = 0
    keys: int = 0
    values: int = 0
    experts: int = 0
    count: int = 1
    read: int = 1
    reach: int | None = None

    @property
    def unread(self) -> int:
        """Parameters of the experts that a token does not go through."""
        return self.experts * (self.count - self.read) // self.count

    def flops(self, tokens: int) -> int:
        """Of a window of ``tokens``: 2 a weight and token, and attention."""
        dense = 2 * (self.products - self.unread) * tokens
        return dense + 2 * (self.queries + self.values) * pairs(tokens, self.reach)

    def activations(
        self, hidden: int, batch: int, window: int, itemsize: int, *, eager: bool
    ) -> int:
        """Bytes that live at once at the layer's peak, its weights aside.

        While a layer runs the model holds the embedded tokens and the layer's input.
        Attention has a residual, a normalised input, queries, keys and values, and what
        rotates the queries: three more of their size. Eager attention has the scores
        of all pairs, too, twice in float32, and once more in a dtype that is narrower;
        they are kept until the layer is done.
        The MLP has residual and normalised input as well, and ``copies`` of its width;
        experts have as many for each that a token goes through, and a copy of its
        input.
        """
        attention = 4 * hidden + 4 * self.queries + 2 * self.keys
        wide = 4 * hidden + self.copies * self.middle * self.read
        if self.count > 1:
            wide += hidden * self.read
        size = itemsize * batch * window
        scores = batch * self.heads * window**2 if eager else 0
        each = 2 * max(itemsize, 4) + (itemsize if itemsize < 4 else 0)
        return max(size * attention + scores * each, size * wide + scores * itemsize)


def pairs(tokens: int, reach: int | None = None) -> int:
    """Pairs of positions that causal attention compares, half a square of the window.

    ``reach``: each position sees no more than so many.
    """
    if reach is None or reach >= tokens:
        return tokens * tokens // 2
    return reach * reach // 2 + (tokens - reach) * reach


class Shape(Struct, frozen=True):
    """A causal language model without its numbers.

    ``embedding`` and ``head`` are parameters; a head that shares the embedding's is
    ``tied`` and has none of its own. ``others`` are norms, positions and the like.
    ``whole_logits``: the model changes its logits behind the head, so that those of a
    whole window exist at once.
    """

    architecture: str
    hidden: int
    vocabulary: int
    layers: tuple[Layer, ...]
    embedding: int
    head: int
    others: int
    tied: bool = False
    whole_logits: bool = False

    @property
    def parameters(self) -> int:
        """All of them, each once."""
        layers = sum(layer.parameters for layer in self.layers)
        return self.embedding + layers + self.head + self.others

    @property
    def active(self) -> int:
        """Those that one token goes through: fewer in a mixture of experts."""
        return self.parameters - sum(layer.unread for layer in self.layers)

    def flops(self, tokens: int, scored: int) -> int:
        """Of reading a window of ``tokens``, the head at ``scored`` positions."""
        layers = sum(layer.flops(tokens) for layer in self.layers)
        return layers + 2 * self.hidden * self.vocabulary * scored

    def activations(
        self, batch: int, window: int, itemsize: int, *, eager: bool = False
    ) -> int:
        """Bytes of the layer that needs most; see :meth:`Layer.activations`."""
        return max(
            (
                layer.activations(self.hidden, batch, window, itemsize, eager=eager)
                for layer in self.layers
            ),
            default=0,
        )

    def logits(self, batch: int, window: int, itemsize: int, *, on_cpu: bool) -> int:
        """Bytes of the logits that exist at once."""
        each = logit_bytes(itemsize) * self.vocabulary
        rows = batch * window
        if not self.whole_logits:
            kind = "cpu" if on_cpu else "accelerator"
            rows = min(rows, chunk_rows(self.vocabulary, itemsize, kind=kind))
        return rows * each


def logit_bytes(itemsize: int) -> int:
    """Of one logit: those in half precision exist in float32, too, for the loss."""
    return itemsize + (4 if itemsize < 4 else 0)


def chunk_rows(vocabulary: int, itemsize: int, *, kind: str) -> int:
    """How many positions' logits may exist at once on a ``cpu`` or ``accelerator``."""
    return max(1, CHUNK_BYTES[kind] // (logit_bytes(itemsize) * vocabulary))


# ------------------------------------------------------------------------------ memory


class Memory(Struct, frozen=True):
    """Bytes that a measurement takes on one device. No keys and values are kept.

    ``margin`` is :data:`SHARE` of activations and logits, and :data:`CONTEXT` on a GPU
    or :data:`PROCESS` on a CPU.
    """

    weights: int
    activations: int
    logits: int
    margin: int

    @classmethod
    def of(
        cls,
        shape: Shape,
        *,
        itemsize: int,
        batch: int,
        window: int,
        on_cpu: bool,
        eager: bool = False,
    ) -> Memory:
        """At a window, a batch size and a dtype of ``itemsize`` bytes."""
        weights = shape.parameters * itemsize
        activations = shape.activations(batch, window, itemsize, eager=eager)
        logits = shape.logits(batch, window, itemsize, on_cpu=on_cpu)
        margin = math.ceil(SHARE * (activations + logits))
        margin += PROCESS if on_cpu else CONTEXT
        return cls(weights, activations, logits, margin)

    @property
    def total(self) -> int:
        """All of it."""
        return self.weights + self.running

    @property
    def running(self) -> int:
        """What each device needs beside weights, however these are split."""
        return self.activations + self.logits + self.margin
