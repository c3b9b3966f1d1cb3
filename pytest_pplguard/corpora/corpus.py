"""A text as the methods read it: rows for the Wanda method, pages for lm-eval."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence

from msgspec import Struct

from . import wikitext

OFFICIAL_DIGESTS = {
    "wikitext2": (
        "sha256:85832a0a19e062515565bfb5cd3ebe19efd21bb7cae77ff6bb7e3a3a26fe3cc5"
    ),
}
"""Digest of a corpus as its authors published it (WikiText-2 raw, test split)."""


class Corpus(Struct, frozen=True):
    """A named text.

    ``rows`` are the dataset's rows (WikiText: a line each, ``""`` for a blank one),
    ``pages`` its documents. Both methods work from the same rows, so one file serves
    both. ``official`` says whether this is the published text, None where nothing
    official exists by that name.
    """

    name: str
    rows: tuple[str, ...]
    pages: tuple[str, ...]
    digest: str
    official: bool | None

    @classmethod
    def from_wikitext_rows(cls, name: str, rows: Iterable[str]) -> Corpus:
        """A corpus in WikiText's form; its pages are cut at the level-1 headings."""
        rows = tuple(rows)
        return cls._make(name, rows, wikitext.pages(rows))

    @classmethod
    def from_documents(cls, name: str, documents: Iterable[str]) -> Corpus:
        """A corpus of plain documents: each is one row and one page."""
        documents = tuple(documents)
        return cls._make(name, documents, documents)

    @classmethod
    def _make(cls, name: str, rows: tuple[str, ...], pages: tuple[str, ...]) -> Corpus:
        digest = rows_digest(rows)
        official = OFFICIAL_DIGESTS.get(name)
        return cls(
            name=name,
            rows=rows,
            pages=pages,
            digest=digest,
            official=None if official is None else digest == official,
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
