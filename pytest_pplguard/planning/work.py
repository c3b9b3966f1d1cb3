"""How many windows there are, and how long they take."""

from __future__ import annotations

import math
from collections.abc import Sequence

from msgspec import Struct

from .shape import Shape

PROOF_PASSES = 2
"""The scorer reads the first window of each key so often more: it compares its losses
with those of the model as its author wrote it."""

WIKITEXT2_PAGES = (
    5667,
    24540,
    12300,
    35979,
    10637,
    12603,
    54583,
    11084,
    58619,
    9307,
    15641,
    45898,
    5018,
    12470,
    2389,
    8661,
    33235,
    5872,
    20613,
    19361,
    24240,
    7055,
    19508,
    57680,
    12026,
    37010,
    54839,
    6879,
    114,
    1353,
    23386,
    7957,
    32987,
    8871,
    46406,
    36750,
    8837,
    74943,
    23405,
    49017,
    58410,
    12719,
    5868,
    28095,
    11640,
    5464,
    6999,
    33486,
    6920,
    8051,
    14659,
    13655,
    5524,
    5414,
    5404,
    4757,
    38856,
    2560,
    15042,
    29535,
    21826,
    17903,
)
"""Bytes of the 62 pages of WikiText-2's test file, 1,290,527 together."""


def bytes_a_token(vocabulary: int) -> float:
    """Bytes of English text that a token stands for, where no tokenizer says it.

    WikiText-2's test file has 341,469 tokens of Llama-2 (32,000 words), 3.78 bytes
    each, and 287,644 of GPT-2 (50,257), 4.49 each; larger vocabularies gain little.
    """
    return 3.8 if vocabulary <= 40_000 else 4.45


class Count(Struct, frozen=True):
    """Windows, the tokens that the model reads in them, and those that are scored."""

    windows: int
    read: int
    scored: int


def estimate_windows(
    tokens: Sequence[int], window: int, *, stride: int | None = None, whole: bool
) -> Count:
    """About how many windows texts of so many ``tokens`` give.

    ``whole``: a text's rest is dropped, as Wanda's code does; else it is a window too.
    """
    step = stride or window
    windows = read = 0
    for count in tokens:
        if count < window:
            cut = 0 if whole else min(count, 1)
        else:
            rest = (count - window) / step
            cut = 1 + (math.floor(rest) if whole else math.ceil(rest))
        windows += cut
        read += cut * min(window, count)
    scored = windows * window if whole else sum(tokens)
    return Count(windows, read, min(scored, read))


def key_flops(shape: Shape, count: Count) -> int:
    """Of all windows, taken to be of one length."""
    if not count.windows:
        return 0
    tokens = round(count.read / count.windows)
    scored = round(count.scored / count.windows)
    return count.windows * shape.flops(tokens, scored)


def seconds(flops: int, windows: int, rate: float, *, replicas: int = 1) -> float:
    """Of a key on ``replicas`` that share its windows, each at ``rate`` FLOPs a second.

    The slowest decides: windows are not divided. Each replica proves itself on its
    first window.
    """
    if not windows:
        return 0.0
    each = math.ceil(windows / replicas) + PROOF_PASSES
    return flops / windows * each / rate
