"""Opens a page as a reader does, and holds it to making no noise."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from playwright.sync_api import Browser, Page

DESK, PHONE = (1180, 800), (360, 740)


@contextmanager
def opened(
    browser: Browser,
    file: Path,
    *,
    size: tuple[int, int] = DESK,
    scheme: Literal["light", "dark"] = "light",
    script: bool = True,
) -> Iterator[Page]:
    """The page of a file; nothing may go wrong on it, and nothing may be fetched."""
    context = browser.new_context(
        viewport={"width": size[0], "height": size[1]},
        color_scheme=scheme,
        java_script_enabled=script,
    )
    noise: list[str] = []
    asked: list[str] = []
    try:
        page = context.new_page()
        page.on("console", lambda message: noise.append(message.text))
        page.on("pageerror", lambda error: noise.append(str(error)))
        page.on("request", lambda request: asked.append(request.url))
        page.goto(file.as_uri())
        yield page
        # The picture of the tab is in the page itself.
        fetched = [url for url in asked if not url.startswith("data:")]
        assert fetched == [file.as_uri()] * len(fetched)
        assert noise == []
    finally:
        context.close()


def open_everything(page: Page) -> None:
    """Open all parts that are closed, and wait until their plots are drawn."""
    page.evaluate(
        "document.querySelectorAll('details').forEach(one => { one.open = true; })"
    )
    page.wait_for_function(
        "[...document.querySelectorAll('.plot')].every(one => one.dataset.drawn)"
    )


def is_too_wide(page: Page) -> bool:
    """Whether the page as a whole must be scrolled sideways."""
    width: bool = page.evaluate(
        "document.documentElement.scrollWidth > document.documentElement.clientWidth"
    )
    return width


def serious_violations(page: Page) -> list[dict[str, Any]]:
    """What axe finds that keeps people out."""
    from axe_playwright_python.sync_playwright import Axe

    found = Axe().run(page).response["violations"]
    return [
        {"id": one["id"], "nodes": [node["html"] for node in one["nodes"]]}
        for one in found
        if one["impact"] in ("serious", "critical")
    ]
