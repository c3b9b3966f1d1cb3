"""Where in a text a window is: its page, that page's title, and the first words."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence

from msgspec import Struct

from ..corpora import Corpus
from ..corpora.wikitext import is_heading
from ..errors import MeasurementError, PplguardError
from ..protocols import (
    PROTOCOLS,
    CutProtocol,
    Tokenizer,
    get_protocol,
    windows_digest,
)
from ..values import Key, Window, WindowPlace

_SHOWN = 60
"""Characters of a snippet or a title, dots included."""

_TOKENS = 48
"""More than enough to fill a snippet."""

_DOTS = "..."


def window_places(
    indices: Iterable[int],
    tokenizer: Tokenizer,
    corpus: Corpus,
    key: Key,
    *,
    digest: str | None = None,
) -> dict[int, WindowPlace]:
    """The places of some windows; the text is cut again, as it was to measure ``key``.

    Args:
        indices: of the windows, from 0.
        tokenizer: of the model that was measured.
        corpus: the text that was measured.
        key: what was measured.
        digest: of the windows that were measured, None where it is not known.

    Raises:
        MeasurementError: the tokenizer fails, or cuts other windows than before.
    """
    try:
        windows = cut_windows(tokenizer, corpus, key)
        if digest is not None and windows_digest(windows) != digest:
            raise MeasurementError(
                "cut again, the text has other token windows than were measured"
            )
        wanted = list(indices)
        before = _Before.of(wanted, windows, tokenizer, corpus, key)
        return {
            index: _place(index, windows, tokenizer, corpus, before) for index in wanted
        }
    except PplguardError:
        raise
    # Tokenizers, and what users bring in their place, raise anything.
    except Exception as error:
        raise MeasurementError(
            f"the text could not be cut again: {type(error).__name__}: "
            f"{next(iter(str(error).splitlines()), '')}"
        ) from error


def cut_windows(tokenizer: Tokenizer, corpus: Corpus, key: Key) -> list[Window]:
    """The windows that measuring ``key`` reads.

    Raises:
        CorpusError: the text is too short for the key.
    """
    return PROTOCOLS[key.method].windows(corpus, tokenizer, key)


def _place(
    index: int,
    windows: Sequence[Window],
    tokenizer: Tokenizer,
    corpus: Corpus,
    before: _Before | None,
) -> WindowPlace:
    page = windows[index].page
    if page is None:
        if before is not None:
            page = _page_behind(before.text(index, tokenizer), corpus)
        opens = index == 0 and windows[index].start == 0
    else:
        opens = index == 0 or windows[index - 1].page != page
    return WindowPlace(
        windows=len(windows),
        page=page,
        title="" if page is None else shorten(_first_line(corpus.pages[page])),
        words=_snippet(windows[index], tokenizer, opens=opens),
    )


def _snippet(window: Window, tokenizer: Tokenizer, *, opens: bool) -> str:
    """The first words that are scored; dots where the text goes on."""
    ids = list(window.targets[:_TOKENS])
    words = shorten(str(tokenizer.decode(ids, skip_special_tokens=True)))
    if not words:
        return ""
    start = "" if opens else _DOTS
    end = "" if words.endswith(_DOTS) or len(ids) == len(window.targets) else _DOTS
    return shorten(f"{start}{words}{end}")


class _Before(Struct, frozen=True):
    """The ids of a whole text, and where in them each window's targets begin."""

    ids: Sequence[int]
    starts: Sequence[int]

    @classmethod
    def of(
        cls,
        indices: Sequence[int],
        windows: Sequence[Window],
        tokenizer: Tokenizer,
        corpus: Corpus,
        key: Key,
    ) -> _Before | None:
        """None where windows are of pages, or of a method that does not say its cut."""
        protocol = get_protocol(key.method)
        if not isinstance(protocol, CutProtocol) or all(
            windows[index].page is not None for index in indices
        ):
            return None
        ((_, ids),) = protocol.cut.streams(corpus, tokenizer)
        # Cut like the ids, their positions say where each window is.
        positions = range(len(ids))
        last = max(indices)
        cut = protocol.cut.pieces(
            positions, None, tokenizer, key.window, stride=key.stride
        )
        starts = [piece.targets[0] for piece in itertools.islice(cut, last + 1)]
        return cls(ids, starts)

    def text(self, index: int, tokenizer: Tokenizer) -> str:
        """What stands in front of the first token that a window scores."""
        ids = list(self.ids[: self.starts[index]])
        return str(tokenizer.decode(ids, skip_special_tokens=True)) if ids else ""


def _page_behind(text: str, corpus: Corpus) -> int | None:
    """The page in which goes on what stands behind ``text``.

    Told by the headings in the text, as the corpus cuts pages; None where there are
    none, or where the tokenizer does not give the last one back as it was.
    """
    titles = [_first_line(page) for page in corpus.pages]
    if len(titles) < 2 or not any(map(is_heading, titles)):
        return None
    headings = [line for line in text.split("\n") if is_heading(line)]
    if not headings:
        return 0
    preamble = not is_heading(titles[0])
    page = len(headings) - 1 + preamble
    same = page < len(titles) and "".join(headings[-1].split()) == "".join(
        titles[page].split()
    )
    return page if same else None


def _first_line(page: str) -> str:
    return next((line.strip() for line in page.splitlines() if line.strip()), "")


def shorten(text: str) -> str:
    """One line of at most 60 characters, everything in it printable."""
    line = "".join(
        char if char.isprintable() else char.encode("unicode_escape").decode()
        for char in " ".join(text.split())
    )
    if len(line) <= _SHOWN:
        return line
    return line[: _SHOWN - len(_DOTS)].rstrip() + _DOTS
