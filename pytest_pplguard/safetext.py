"""Makes text of others' making safe to print: nothing unseen, nothing that crashes.

Names of checkpoints, files and tensors, what configs hold, texts and other libraries'
messages come from whoever made them. Every output for people passes through here; data
for programs (JSON, digests, baseline files) does not.
"""

from __future__ import annotations

import codecs
import re
import shlex
from collections.abc import Iterable

# Control characters, ends of lines that are none, marks that turn the direction of what
# follows, halves of characters (bytes of file names), and tags, which nothing shows.
_UNSEEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069"
    "\ud800-\udfff\U000e0000-\U000e007f]"
)

_READS_AS = {
    "\N{HORIZONTAL ELLIPSIS}": "...",
    "\N{EN DASH}": "-",
    "\N{EM DASH}": "-",
    "\N{HYPHEN}": "-",
    "\N{MINUS SIGN}": "-",
    "\N{LEFT SINGLE QUOTATION MARK}": "'",
    "\N{RIGHT SINGLE QUOTATION MARK}": "'",
    "\N{LEFT DOUBLE QUOTATION MARK}": '"',
    "\N{RIGHT DOUBLE QUOTATION MARK}": '"',
    "\N{RIGHTWARDS ARROW}": "->",
    "\N{PLUS-MINUS SIGN}": "+-",
    "\N{MULTIPLICATION SIGN}": "x",
    "\N{BULLET}": "*",
    "\N{NO-BREAK SPACE}": " ",
}

ESCAPING = "pplguard"
"""A codec's error handler: what an encoding lacks becomes ASCII that can be read."""


def printable(text: str) -> str:
    r"""``text`` with what only a terminal would see written out, lines kept.

    ``ESC`` becomes ``\x1b``.
    """
    return _UNSEEN.sub(lambda found: ascii(found[0])[1:-1], text)


def one_line(text: str, *, most: int | None = None) -> str:
    r"""``text`` on one line, for a name within others' text; a newline becomes ``\n``.

    Of more than ``most`` characters the middle is left out.
    """
    line = printable(text).replace("\n", "\\n").replace("\t", "\\t")
    if most is None or len(line) <= most:
        return line
    half = (most - 5) // 2
    return f"{line[:half]}[...]{line[-half:]}"


def shell_join(words: Iterable[str]) -> str:
    r"""A command line of ``words`` that can be copied from where it is printed.

    A word with anything unseen is written as ``$'\x1b'``, which bash and zsh read.
    """
    return " ".join(map(_shell_word, words))


def _shell_word(word: str) -> str:
    if one_line(word) == word:
        return shlex.quote(word)
    text = word.replace("\\", "\\\\").replace("'", "\\'")
    return "$'" + "".join(map(_shell_character, text)) + "'"


def _shell_character(character: str) -> str:
    if one_line(character) == character:
        return character
    is_byte = "\udc80" <= character <= "\udcff"  # of a file's name, as Python has it
    data = character.encode("utf-8", "surrogateescape" if is_byte else "surrogatepass")
    return "".join(f"\\x{byte:02x}" for byte in data)


def encodable(text: str, encoding: str | None) -> str:
    r"""``text`` as a stream can hold it: in ASCII ``…`` is ``...`` and ``ø`` ``\xf8``.

    An ``encoding`` of None, or one that is not known, holds everything.
    """
    try:
        encoding = codecs.lookup(encoding or "utf-8").name
    except LookupError:
        encoding = "utf-8"
    return text.encode(encoding, ESCAPING).decode(encoding)


def _escape(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    lost = error.object[error.start : error.end]
    return "".join(_READS_AS.get(c, ascii(c)[1:-1]) for c in lost), error.end


codecs.register_error(ESCAPING, _escape)
