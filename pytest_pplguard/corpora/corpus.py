"""A text as the methods read it: rows for the Wanda method, pages for lm-eval."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence

from msgspec import Struct
from msgspec.structs import replace

from ..errors import CorpusError
from ..values import WIKITEXT_RECIPE, Recipe
from . import wikitext

OFFICIAL_DIGESTS = {
    "wikitext2": (
        "sha256:85832a0a19e062515565bfb5cd3ebe19efd21bb7cae77ff6bb7e3a3a26fe3cc5"
    ),
    # Of the ptb.test.txt whose MD5 torchtext names, 8b80168b89c18661a38ef683c0dc3721.
    "ptb": "sha256:4b376dda4c31dcbca4e5f6398ba103ce5d73fd4a8e0a22e5baf64e65b2e38364",
}
"""Digest of a corpus as its authors published it: WikiText-2 raw and PTB, test splits.

None is known for C4.
"""


class Corpus(Struct, frozen=True):
    """A named text.

    ``rows`` are the dataset's rows (WikiText: a line each, ``""`` for a blank one),
    ``pages`` its documents. Both methods work from the same rows, so one file serves
    both. ``official`` says whether this is the published text, None where nothing
    official is known by that name. ``recipe`` says how rows become one token stream.
    """

    name: str
    rows: tuple[str, ...]
    pages: tuple[str, ...]
    digest: str
    official: bool | None
    recipe: Recipe = WIKITEXT_RECIPE

    @classmethod
    def from_wikitext_rows(cls, name: str, rows: Iterable[str]) -> Corpus:
        """A corpus in WikiText's form; its pages are cut at the level-1 headings."""
        rows = tuple(rows)
        return cls._make(name, rows, wikitext.pages(rows))

    @classmethod
    def from_documents(
        cls, name: str, documents: Iterable[str], recipe: Recipe = WIKITEXT_RECIPE
    ) -> Corpus:
        """A corpus of plain documents: each is one row and one page."""
        documents = tuple(documents)
        return cls._make(name, documents, documents, recipe)

    @classmethod
    def from_sentences(
        cls, name: str, sentences: Iterable[str], recipe: Recipe
    ) -> Corpus:
        """A corpus without documents: a row a sentence, and all of them one page."""
        rows = tuple(sentences)
        return cls._make(name, rows, (recipe.joiner.join(rows),), recipe)

    def first_pages(self, count: int) -> Corpus:
        """The text cut to its first pages: a text of its own, which nobody published.

        Raises:
            CorpusError: it has fewer.
        """
        if count > len(self.pages):
            raise CorpusError(
                f"the text {self.name} has {len(self.pages)} pages, fewer than the "
                f"{count} asked for"
            )
        if count == len(self.pages):
            return self
        rows = (
            self.rows[:count]
            if self.rows == self.pages
            else wikitext.first_pages(self.rows, count)
        )
        return replace(
            self,
            rows=rows,
            pages=self.pages[:count],
            digest=rows_digest(rows),
            official=None,
        )

    @classmethod
    def _make(
        cls,
        name: str,
        rows: tuple[str, ...],
        pages: tuple[str, ...],
        recipe: Recipe = WIKITEXT_RECIPE,
    ) -> Corpus:
        digest = rows_digest(rows)
        official = OFFICIAL_DIGESTS.get(name)
        return cls(
            name=name,
            rows=rows,
            pages=pages,
            digest=digest,
            official=None if official is None else digest == official,
            recipe=recipe,
        )


def rows_digest(rows: Sequence[str]) -> str:
    """``sha256:`` over the rows, each in UTF-8 and ended by a zero byte.

    The same for one text whether it came as a file, as parquet or from the Hub.
    """
    sha = hashlib.sha256()
    for row in rows:
        sha.update(row.encode("utf-8"))
        sha.update(b"\0")
    return f"sha256:{sha.hexdigest()}"
