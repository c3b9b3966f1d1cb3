"""Finds the commands of a Markdown page, and what the page says of each block.

An HTML comment directly before a block tells what a reader need not see::

    <!-- not run: reason -->       its commands are not executed here
    <!-- exit: 1 -->               their exit status, 0 if nothing is said; one for all
                                   commands of the block, or one for each
    <!-- in a checkout -->         they run beside this repository's files, and not in a
                                   project of a user
    <!-- not compared: reason -->  the output that is shown is another machine's
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = (
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *sorted(ROOT.glob("docs/**/*.md")),
)
SHELLS = ("sh", "bash", "console")

_BLOCK = re.compile(
    r"(?P<comments>(?:^ *<!--[^\n]*-->\n)*)"
    r"^(?P<indent> *)```(?P<language>[\w-]*)[^\n]*\n(?P<text>.*?)^(?P=indent)```$",
    re.S | re.M,
)


@dataclass(frozen=True)
class Command:
    """One command line, and the output that the page shows for it, if any."""

    text: str
    status: int = 0
    output: tuple[str, ...] | None = None


@dataclass(frozen=True)
class Block:
    """A fenced block; ``line`` is where its fence is, from 1."""

    page: str
    line: int
    language: str
    text: str
    comments: tuple[str, ...] = ()

    @property
    def place(self) -> str:
        return f"{self.page}:{self.line}"

    def says(self, word: str) -> str | None:
        """What stands behind ``word`` in a comment before the block, else None."""
        for comment in self.comments:
            if comment == word or comment.startswith(f"{word}:"):
                return comment[len(word) + 1 :].strip()
        return None

    def commands(self) -> list[Command]:
        """Its commands; of a block with prompts, each with its output."""
        found: list[tuple[str, list[str] | None]] = []
        lines = iter(self.text.splitlines())
        for line in lines:
            prompted = self.language == "console"
            if prompted and not line.startswith("$ "):
                if not found or found[-1][1] is None:
                    raise ValueError(f"{self.place}: output before the first command")
                found[-1][1].append(line)
                continue
            text = line.removeprefix("$ ") if prompted else line
            while text.endswith("\\"):
                text = f"{text[:-1].rstrip()} {next(lines).strip()}"
            if text.strip() and not text.lstrip().startswith("#"):
                found.append((text.strip(), [] if prompted else None))
        statuses = [int(word) for word in (self.says("exit") or "0").split()]
        if len(statuses) == 1:
            statuses *= len(found)
        if len(statuses) != len(found):
            raise ValueError(f"{self.place}: {len(found)} commands, other statuses")
        shown = self.says("not compared") is None
        return [
            Command(text, status, tuple(output) if output and shown else None)
            for (text, output), status in zip(found, statuses, strict=True)
        ]


def blocks_of(path: Path) -> list[Block]:
    """All fenced blocks of a page."""
    text = path.read_text(encoding="utf-8")
    found = []
    for match in _BLOCK.finditer(text):
        indent = match["indent"]
        body = "".join(
            line.removeprefix(indent) for line in match["text"].splitlines(True)
        )
        fence = match.start() + len(match["comments"])
        found.append(
            Block(
                path.relative_to(ROOT).as_posix(),
                text.count("\n", 0, fence) + 1,
                match["language"],
                body,
                tuple(re.findall(r"<!-- *(.*?) *-->", match["comments"])),
            )
        )
    return found


def shell_blocks(path: Path) -> list[Block]:
    """Those with commands of a shell."""
    return [block for block in blocks_of(path) if block.language in SHELLS]


def matches(shown: tuple[str, ...], printed: list[str]) -> bool:
    """Whether ``printed`` is what the page shows; ``...`` stands for any lines.

    White space at the ends of lines does not count, nor do empty lines at the end.
    """
    pattern = "".join(
        r"(?:[^\n]*\n)*?" if line.strip() == "..." else re.escape(line.rstrip()) + "\n"
        for line in _trimmed(shown)
    )
    text = "".join(f"{line.rstrip()}\n" for line in _trimmed(printed))
    return re.fullmatch(pattern, text) is not None


def _trimmed(lines: list[str] | tuple[str, ...]) -> list[str]:
    kept = list(lines)
    while kept and not kept[-1].strip():
        kept.pop()
    return kept
