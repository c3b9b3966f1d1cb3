"""Texts that pruning papers quote beside WikiText-2: where they are, how they are read.

Follows ``get_c4`` and ``get_ptb`` of IST-DASLab/sparsegpt, ``datautils.py``; ``get_c4``
of locuslab/wanda, ``lib/data.py``, is the same. GPTQ's first ``get_ptb`` reads another
split, joined otherwise: its numbers are not these.
"""

from __future__ import annotations

from msgspec import Struct

from ..values import Recipe


class Named(Struct, frozen=True, kw_only=True):
    """A text that is known by name.

    On the Hub it is ``file`` of the data set ``repository``; a local copy may have any
    format. Of its rows, in the first of ``columns`` that is there, the first ``count``
    are read (None: all). ``split`` is the one of a folder that holds several. With
    ``sentences``, a row is a sentence, stripped, and a plain text has one a line.
    """

    title: str
    repository: str
    file: str
    revision: str | None = None
    split: str
    columns: tuple[str, ...]
    count: int | None = None
    sentences: bool = False
    recipe: Recipe


NAMED = {
    "c4": Named(
        title="C4",
        repository="allenai/c4",
        file="en/c4-validation.00000-of-00008.json.gz",
        split="validation",
        columns=("text",),
        count=1100,
        recipe=Recipe(
            text="first 1,100 documents joined by a space",
            joiner=" ",
            max_windows=256,
        ),
    ),
    "ptb": Named(
        title="Penn Treebank",
        repository="ptb-text-only/ptb_text_only",
        # The data set itself is a script, which `datasets` no longer runs; the Hub
        # keeps what the script gave.
        file="penn_treebank/test/0000.parquet",
        revision="refs/convert/parquet",
        split="test",
        columns=("sentence", "text"),
        sentences=True,
        recipe=Recipe(text="all sentences joined by a space", joiner=" "),
    ),
}
