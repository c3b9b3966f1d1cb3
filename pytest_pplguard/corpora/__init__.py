"""Named texts: where they come from, their rows and pages, and their digests."""

from .corpus import OFFICIAL_DIGESTS, Corpus, rows_digest
from .open import CORPUS_NAMES, open_corpus

__all__ = ["CORPUS_NAMES", "OFFICIAL_DIGESTS", "Corpus", "open_corpus", "rows_digest"]
