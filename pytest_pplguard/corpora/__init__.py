"""Named texts: where they come from, their rows and pages, and their digests."""

from .corpus import OFFICIAL_DIGESTS, Corpus, rows_digest
from .named import NAMED
from .open import CORPUS_NAMES, WIKITEXT2, open_corpus

__all__ = [
    "CORPUS_NAMES",
    "NAMED",
    "OFFICIAL_DIGESTS",
    "WIKITEXT2",
    "Corpus",
    "open_corpus",
    "rows_digest",
]
