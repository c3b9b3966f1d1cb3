"""A hook of mkdocs: pages outside of docs/ that docs/ links to are in the site too.

On GitHub, ``../benchmarks/zoo/README.md`` leads from a page of docs/ to another folder
of the repository. The site has that page as ``checkout/benchmarks/zoo/README.md``, and
links in both directions are rewritten.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[1]
OUTSIDE = "checkout"

_LINK = re.compile(r"(\]\()([^)\s#:]+)((?:#[^)\s]*)?\))")
_FENCE = re.compile(r"^( *)```.*?^\1```$", re.S | re.M)


def on_files(files: Files, *, config: Any) -> Files:
    """Add every file that a page links to and docs/ does not have."""
    waiting = [
        (file.src_uri, Path(str(file.abs_src_path)).resolve())
        for file in files.documentation_pages()
    ]
    for name in ("CHANGELOG.md", "CONTRIBUTING.md", "benchmarks/README.md"):
        waiting.append(("", ROOT / name))
    seen: set[Path] = set()
    while waiting:
        uri, path = waiting.pop()
        if not uri:
            if path in seen or not path.is_file():
                continue
            seen.add(path)
            uri = f"{OUTSIDE}/{path.relative_to(ROOT).as_posix()}"
            files.append(File.generated(config, uri, abs_src_path=str(path)))
        if path.suffix == ".md":
            text = _FENCE.sub("", path.read_text(encoding="utf-8"))
            for _, target, _ in _LINK.findall(text):
                linked = (path.parent / target).resolve()
                if not linked.is_relative_to(ROOT / "docs"):
                    waiting.append(("", linked))
    return files


def on_page_markdown(markdown: str, *, page: Any, **_: Any) -> str:
    """Lead links to where the site has what they mean."""
    path = Path(str(page.file.abs_src_path)).resolve()

    def lead(found: re.Match[str]) -> str:
        linked = (path.parent / found[2]).resolve()
        if linked.is_relative_to(ROOT / "docs"):
            uri = linked.relative_to(ROOT / "docs").as_posix()
        elif linked.is_relative_to(ROOT):
            uri = f"{OUTSIDE}/{linked.relative_to(ROOT).as_posix()}"
        else:
            return found[0]
        here = posixpath.dirname(page.file.src_uri) or "."
        return f"{found[1]}{posixpath.relpath(uri, here)}{found[3]}"

    parts, end = [], 0
    for fence in _FENCE.finditer(markdown):
        parts += [_LINK.sub(lead, markdown[end : fence.start()]), fence[0]]
        end = fence.end()
    return "".join([*parts, _LINK.sub(lead, markdown[end:])])
