"""Where in a text a window is: its page, that page's title, and the first words."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence

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
from .headings import Before, headings_before

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
        titles = [_first_line(page) for page in corpus.pages]
        behind = _pages_across(wanted, windows, tokenizer, corpus, key, titles)
        return {
            index: _place(index, windows, tokenizer, titles, behind) for index in wanted
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
    titles: Sequence[str],
    behind: Mapping[int, int | None],
) -> WindowPlace:
    page = windows[index].page
    if page is None:
        page = behind.get(index)
        opens = index == 0 and windows[index].start == 0
    else:
        opens = index == 0 or windows[index - 1].page != page
    return WindowPlace(
        windows=len(windows),
        page=page,
        title="" if page is None else shorten(titles[page]),
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


def _pages_across(
    indices: Sequence[int],
    windows: Sequence[Window],
    tokenizer: Tokenizer,
    corpus: Corpus,
    key: Key,
    titles: Sequence[str],
) -> dict[int, int | None]:
    """The pages in which windows begin that run across pages.

    Told by the headings in the text in front of the first token that a window scores,
    as the corpus cuts pages. Nothing where windows are of pages, where the text has no
    headings, or of a method that does not say its cut.
    """
    protocol = get_protocol(key.method)
    if not isinstance(protocol, CutProtocol) or all(
        windows[index].page is not None for index in indices
    ):
        return {}
    if len(titles) < 2 or not any(map(is_heading, titles)):
        return {}
    ((_, ids),) = protocol.cut.streams(corpus, tokenizer)
    # Cut like the ids, their positions say where each window is.
    positions = range(len(ids))
    cut = protocol.cut.pieces(positions, None, tokenizer, key.window, stride=key.stride)
    starts = [piece.targets[0] for piece in itertools.islice(cut, max(indices) + 1)]

    def decode(some: Sequence[int]) -> str:
        return str(tokenizer.decode(list(some), skip_special_tokens=True))

    before = headings_before(ids, (starts[index] for index in indices), decode)
    return {index: _page_behind(before[starts[index]], titles) for index in indices}


def _page_behind(before: Before, titles: Sequence[str]) -> int | None:
    """The page in which goes on what stands behind these headings.

    None where the tokenizer does not give the last one back as it was.
    """
    count, last = before
    if not count:
        return 0
    preamble = not is_heading(titles[0])
    page = count - 1 + preamble
    same = page < len(titles) and "".join(last.split()) == "".join(titles[page].split())
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
