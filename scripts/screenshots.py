"""Take the pictures of docs/report.md: ``python -m scripts.screenshots [DIR]``.

They show the report of a real run: the demo's gates on a checkpoint of which one layer
has lost its mask. The page is set in Inter where that is installed (Debian:
``fonts-inter``), as the pictures are that are kept.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from .browser import ROOT, chromium, run_demo, spoil_demo, why_no_browser

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

IMAGES = ROOT / "docs" / "images"
MOST_BYTES = 200_000
"""More would make the docs slow to open."""

DESK, PHONE = (1080, 900), (390, 780)


def main(argv: Sequence[str] | None = None) -> None:
    """Write all pictures; a missing browser is one line and exit status 1."""
    arguments = sys.argv[1:] if argv is None else argv
    folder = Path(arguments[0]) if arguments else IMAGES
    if why := why_no_browser():
        sys.exit(f"error: {why}")
    with tempfile.TemporaryDirectory() as temporary:
        report = make_report(Path(temporary))
        with chromium() as browser:
            for file in take(browser, report, folder):
                print(f"{file} {file.stat().st_size // 1000} kB")


def make_report(folder: Path) -> Path:
    """The report of a run that fails, for the reason that the docs tell."""
    spoil_demo(folder / "out")
    done = run_demo(
        folder,
        *("--ppl-model=demo/dense", "--ppl-model=demo/wanda-50=out/wanda-50"),
        "--ppl-report=report.html",
    )
    if done.returncode != 1:
        raise RuntimeError(f"the demo should have failed:\n{done.stdout}{done.stderr}")
    return folder / "report.html"


def take(browser: Browser, report: Path, folder: Path) -> list[Path]:
    """Write the pictures of a report into ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for name, size, scheme, frame in PICTURES:
        file = folder / f"report-{name}.png"
        _take(browser, report, file, size, scheme, frame)
        if file.stat().st_size > MOST_BYTES:
            raise RuntimeError(f"{file} has {file.stat().st_size} bytes")
        written.append(file)
    return written


Scheme = Literal["light", "dark"]
Frame = Callable[["Page", Path], None]


def _take(
    browser: Browser,
    report: Path,
    file: Path,
    size: tuple[int, int],
    scheme: Scheme,
    frame: Frame,
) -> None:
    context = browser.new_context(
        viewport={"width": size[0], "height": size[1]}, color_scheme=scheme
    )
    page = context.new_page()
    page.goto(report.as_uri())
    frame(page, file)
    context.close()


def _without_bar(page: Page) -> None:
    """It stands over what was scrolled."""
    page.evaluate("document.querySelector('.bar').style.display = 'none'")


def _whole(page: Page, file: Path) -> None:
    page.screenshot(path=file)


def _windows(page: Page, file: Path) -> None:
    """The perplexity's windows, the pointer on one that moved."""
    part = page.locator("details.losses", has_text="wanda/demo:256").first
    plot = part.locator(".windows .plot")
    _without_bar(page)
    part.evaluate("part => part.scrollIntoView({ behavior: 'instant' })")
    frame, box = part.bounding_box(), plot.bounding_box()
    assert frame is not None
    assert box is not None
    page.mouse.move(box["x"] + 0.24 * box["width"], box["y"] + 60)
    page.screenshot(path=file, clip=frame)


def _weights(page: Page, file: Path) -> None:
    """Of the checkpoint that failed, which comes first."""
    _without_bar(page)
    page.locator("[id^=weights-]").first.screenshot(path=file)


PICTURES: tuple[tuple[str, tuple[int, int], Scheme, Frame], ...] = (
    ("failing", DESK, "light", _whole),
    ("windows", DESK, "light", _windows),
    ("weights-dark", DESK, "dark", _weights),
    ("phone", PHONE, "light", _whole),
)


if __name__ == "__main__":
    main()
