"""What is to be said of a text that is measured."""

from __future__ import annotations

from ..corpora import Corpus


def text_notice(corpus: Corpus) -> tuple[str, ...]:
    """Says it of a text that is not the one that its name is known for."""
    if corpus.official is not False:
        return ()
    return (
        f"the corpus {corpus.name} is not the official text of that name: its numbers "
        "compare with nothing that was published",
    )
