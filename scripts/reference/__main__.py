"""``python -m scripts.reference``: write the generated parts of the docs.

With ``--check`` nothing is written; the exit status is 1 if something is out of date.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

from . import badges, commands, errors, formats, options

ROOT = Path(__file__).parents[2]

_NOTE = "<!-- Written by `python -m scripts.reference`; do not edit. -->\n"

_PAGES = {
    "docs/reference/commands.md": (
        "Commands of pplguard",
        "Errors are one line on stderr: exit status 1, or 2 for a wrong argument. What "
        "the commands have in common, and the JSON that they write, is in the "
        "[reference](../reference.md#the-command-pplguard).",
        commands.page,
    ),
    "docs/reference/formats.md": (
        "File formats",
        "Fields and types of everything that is read and written. All JSON is strict: "
        "what is not a number is null. `schema` counts up when an older version could "
        "misread a file.",
        formats.page,
    ),
    "docs/reference/errors.md": (
        "Errors",
        "Every message, with `<name>` where it names something of yours: search this "
        "page for the words in between. Messages about a baseline file begin with "
        "`FILE:LINE: checkpoint NAME, ...:`. Under pytest a wrong option is a usage "
        "error (exit status 4), a broken baseline file a collection error (2), and "
        "what keeps a gate from being judged an ERROR of that gate (1).",
        errors.page,
    ),
}

_PARTS = {
    "docs/reference.md": {
        "options": options.options,
        "ini": options.ini,
        "outcomes": options.outcomes,
        "commands": commands.summary,
    },
    "docs/python-tests.md": {"marker": options.marker, "fixtures": options.fixtures},
}


def generated() -> dict[str, str]:
    """Every file that has generated text, as it should be."""
    files = {
        name: f"# {title}\n\n{_NOTE}\n{lead}\n\n{page()}"
        for name, (title, lead, page) in _PAGES.items()
    }
    for name, parts in _PARTS.items():
        text = (ROOT / name).read_text(encoding="utf-8")
        for part, make in parts.items():
            text = _replaced(text, part, make(), name)
        files[name] = text
    return files | badges.badges(ROOT)


def _replaced(text: str, part: str, body: str, name: str) -> str:
    start, end = f"<!-- generated: {part} -->", f"<!-- end of {part} -->"
    if text.count(start) != 1 or text.count(end) != 1:
        sys.exit(f"{name}: the marks {start} and {end} must each be there once")
    return re.sub(
        f"{re.escape(start)}.*{re.escape(end)}",
        lambda _: f"{start}\n\n{body}\n{end}",
        text,
        flags=re.S,
    )


def main(arguments: list[str]) -> int:
    """Write, or check; the exit status."""
    stale = [
        name
        for name, text in generated().items()
        if not (ROOT / name).exists() or (ROOT / name).read_text("utf-8") != text
    ]
    if arguments == ["--check"]:
        for name in stale:
            print(f"{name} is out of date: python -m scripts.reference")
        return int(bool(stale))
    for name, text in generated().items():
        (ROOT / name).write_text(text, encoding="utf-8")
    print("\n".join(f"wrote {name}" for name in stale) or "nothing has changed")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
