"""The site builds without a warning and without a network; links lead somewhere."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
import yaml

from .blocks import PAGES, ROOT, blocks_of

OTHERS = (
    ROOT / "scripts" / "prune" / "README.md",
    ROOT / "scripts" / "demo" / "README.md",
    ROOT / "benchmarks" / "README.md",
    ROOT / "benchmarks" / "zoo" / "README.md",
)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "-d", str(folder)],
        cwd=ROOT,
        env=os.environ | {"NO_MKDOCS_2_WARNING": "1", "NO_PROXY": "", "PYTHONPATH": ""},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    said = done.stdout + done.stderr
    assert done.returncode == 0, said
    assert all(line.startswith("INFO ") for line in said.splitlines()), said
    return folder


class Fetched(HTMLParser):
    """What a browser fetches to show a page, and the pictures' descriptions."""

    def __init__(self) -> None:
        super().__init__()
        self.places: list[str] = []
        self.silent: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        if tag in ("script", "img", "iframe", "source", "link"):
            place = given.get("src") or given.get("href")
            if place:
                self.places.append(place)
        if tag == "img" and not given.get("alt"):
            self.silent.append(str(given))


def test_no_page_fetches_anything_from_elsewhere(site: Path) -> None:
    pages = list(site.rglob("*.html"))
    assert len(pages) > 30
    for page in pages:
        found = Fetched()
        text = page.read_text(encoding="utf-8")
        found.feed(text)
        for place in found.places:
            if place.startswith("data:"):
                continue
            assert not re.match(r"(?:https?:)?//", place), (page, place)
            if page.name != "404.html":  # its places are from the site's root
                target = (page.parent / place.partition("?")[0]).resolve()
                assert target.is_file(), (page, place)
        assert found.silent == [], page
        assert "@import" not in text
    # Style sheets: nothing but what lies beside them.
    for style in site.rglob("*.css"):
        for place in re.findall(r"url\(([^)]*)\)", style.read_text(encoding="utf-8")):
            assert (
                place.strip("\"'").startswith(("data:", "#"))
                or (style.parent / place.strip("\"'")).is_file()
            ), (style, place)


def test_every_page_is_in_the_navigation() -> None:
    text = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    settings = yaml.load(re.sub(r"!!python\S*", "", text), Loader=yaml.SafeLoader)

    def leaves(node: object) -> list[str]:
        if isinstance(node, list):
            return [leaf for item in node for leaf in leaves(item)]
        if isinstance(node, dict):
            return [leaf for item in node.values() for leaf in leaves(item)]
        return [str(node)]

    named = leaves(settings["nav"])
    assert len(named) == len(set(named))
    pages = {page.relative_to(ROOT / "docs").as_posix() for page in docs_pages()}
    assert pages <= set(named)
    for name in set(named) - pages:
        assert (ROOT / name.removeprefix("checkout/")).is_file(), name


def docs_pages() -> list[Path]:
    return [page for page in PAGES if (ROOT / "docs") in page.parents]


# ---------------------------------------------------------------- links, as on GitHub


def prose(page: Path) -> str:
    """A page without its blocks and comments, where a link is a link."""
    text = page.read_text(encoding="utf-8")
    for block in blocks_of(page):
        text = text.replace(block.text, "")
    return re.sub(r"<!--.*?-->", "", text, flags=re.S)


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub gives to the headings of a page."""
    found: dict[str, int] = {}
    names = set()
    for heading in re.findall(r"^#{1,6} +(.*?) *#*$", prose(page), re.M):
        shown = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading)
        name = re.sub(r"[^\w\- ]", "", shown.lower()).replace(" ", "-")
        count = found.get(name, 0)
        found[name] = count + 1
        names.add(f"{name}-{count}" if count else name)
    return names


@pytest.mark.parametrize(
    "page", [*PAGES, *OTHERS], ids=lambda page: page.relative_to(ROOT).as_posix()
)
def test_every_link_and_anchor_leads_somewhere(page: Path) -> None:
    text = re.sub(r"(`+)(?!`).*?(?<!`)\1(?!`)", "", prose(page), flags=re.S)
    for target, anchor in re.findall(r"\]\(([^)\s#]*)(?:#([^)\s]*))?\)", text):
        if target.startswith(("http://", "https://")):
            continue
        linked = (page.parent / target).resolve() if target else page
        assert linked.exists(), target
        assert linked.is_relative_to(ROOT), target
        if anchor:
            assert anchor in anchors(linked), f"{target}#{anchor}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_lists_and_tables_are_lists_and_tables_on_the_site_too(page: Path) -> None:
    """Python's Markdown wants an empty line before them, GitHub's does not."""
    before, fenced = "", False
    for number, line in enumerate(page.read_text("utf-8").splitlines(), 1):
        fenced ^= line.lstrip().startswith("```")
        starts = re.match(r"(?:[-*] |1\. |\|)", line)
        inside = re.match(r"(?:[-*] |\d+\. |\|| )", before)
        comment = before.startswith("<!--")
        if not fenced and starts and before.strip() and not inside:
            assert comment, f"{page.name}:{number}"
        before = line


def test_the_ladder_that_is_quoted_is_the_one_that_was_measured() -> None:
    """The table of which-number.md, from the two ladders in two-methods.md."""
    full = (ROOT / "docs" / "two-methods.md").read_text(encoding="utf-8")
    quoted = (ROOT / "docs" / "which-number.md").read_text(encoding="utf-8")
    ladders = [
        full.partition(f"out/smollm2/{name} on the first 20 pages")[2].partition("```")[
            0
        ]
        for name in ("dense", "wanda-50")
    ]
    shares = [re.findall(r"^ +\d .* (\S+ %)$", ladder, re.M) for ladder in ladders]
    ends = [re.findall(r"^ {6}\S+ \(\w+\) +(\S+)", ladder, re.M) for ladder in ladders]
    assert [len(found) for found in (*shares, *ends)] == [6, 6, 2, 2]
    columns = [
        [first, *steps, last] for (first, last), steps in zip(ends, shares, strict=True)
    ]
    table = quoted.partition("<!-- ladder-smollm2 -->\n")[2].partition("\n\n")[0]
    rows = [line.replace("*", "").split("|")[2:4] for line in table.splitlines()[2:]]
    assert [[cell.strip() for cell in row] for row in rows] == [
        list(row) for row in zip(*columns, strict=True)
    ]
