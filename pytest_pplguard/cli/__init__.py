"""The command ``pplguard``: everything that needs no test run."""

from __future__ import annotations

import re
import sys


def main() -> None:
    """Run the command line; errors of ours are one line on stderr."""
    from ..errors import PplguardError, UsageError
    from .app import app
    from .output import write_anything

    write_anything()
    try:
        app()
    except UsageError as error:
        sys.exit(_complain(error, status=2))
    except PplguardError as error:
        sys.exit(_complain(error, status=1))


def own_options(text: str) -> str:
    """Messages name pytest's options; the command has most of them without ``ppl``.

    Where a message names both, the command's own is left.
    """
    text = re.sub(r"--ppl-\S+ \S+ \(pplguard: ([^()]*)\)", r"\1", text)
    text = re.sub(r"--ppl-[^\s,]+, pplguard: ", "", text)
    # A history is filled by pytest alone.
    return re.sub(r"--ppl-(?!history)", "--", text)


def _complain(error: Exception, *, status: int) -> int:
    from .output import style_of

    start = style_of(sys.stderr)("pplguard: error:", "bold red")
    print(f"{start} {own_options(str(error))}", file=sys.stderr)
    return status
