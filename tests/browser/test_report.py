"""The page of a real run, in a real browser: plots, theme, keys, phone, numbers."""

from __future__ import annotations

import csv
import json
import struct
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from xml.etree import ElementTree

import pytest

from scripts.screenshots import IMAGES, take

from .conftest import Runs

pytest.importorskip("playwright", reason="playwright is not installed")

from .pages import (
    DESK,
    PHONE,
    is_too_wide,
    open_everything,
    opened,
    serious_violations,
)

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Locator, Page

WINDOWS = 64
"""Of the demo's text, at 256 tokens."""


def losses(page: Page, key: str) -> Locator:
    return page.locator("details.losses", has=page.locator(f"h3:has-text('{key}')"))


def data_of(part: Locator) -> dict[str, Any]:
    data: dict[str, Any] = json.loads(part.locator("script.data").inner_text())
    return data


def hover(part: Locator, share: float) -> str:
    """The words that the pointer finds at a share of the plot's width."""
    plot = part.locator(".windows .plot")
    plot.scroll_into_view_if_needed()
    box = plot.bounding_box()
    assert box is not None
    # The axis is left of the windows, see EDGE in the script.
    left, right = box["x"] + 54, box["x"] + box["width"] - 10
    plot.page.mouse.move(left + share * (right - left), box["y"] + 60)
    return part.locator(".windows .tip").inner_text()


def test_a_failing_run_says_why_at_once(browser: Browser, runs: Runs) -> None:
    with opened(browser, runs.failing / "r.html") as page:
        # Without scrolling: that it failed, what, and the cause.
        assert page.locator("h1").inner_text() == "5 of 7 gates failed"
        assert page.locator("header .state").inner_text() == "FAILED"
        causes = page.locator(".causes li")
        assert causes.first.inner_text() == (
            "layer 2, all projections: mask lost, 50.0 % → 0.0 %"
        )
        for part in (page.locator("h1"), causes.first):
            box = part.bounding_box()
            assert box is not None
            assert box["y"] + box["height"] < DESK[1] / 2
        assert page.title() == "✗ 5 of 7 gates failed · pplguard"
        plots = page.locator(".plot")
        open_everything(page)
        # Windows and a histogram of each text of the spoilt checkpoint; the windows of
        # the dense one, in which nothing moved.
        assert plots.count() == 5
        for plot in plots.all():
            assert plot.locator("svg path, svg rect").count() > 0
        worse = losses(page, "wanda/demo:256").first.locator(".windows path.new")
        assert (worse.get_attribute("d") or "").count("M") == WINDOWS


def test_a_green_run(browser: Browser, runs: Runs) -> None:
    with opened(browser, runs.green / "r.html") as page:
        assert page.locator("h1").inner_text() == "All 7 gates passed"
        assert page.locator("header .state").inner_text() == "PASSED"
        assert page.locator(".card.red").count() == 0
        open_everything(page)
        text = page.locator("main").inner_text()
        assert text.count("✓ These are the recorded weights, tensor by tensor.") == 2
        # Rounding is no change: nothing is called worse or better.
        assert (page.locator(".plot .worse").first.get_attribute("d") or "") == ""
        assert page.locator("[data-plot=histogram]").count() == 0


def test_hover_sort_and_zoom(browser: Browser, runs: Runs) -> None:
    with opened(browser, runs.failing / "r.html") as page:
        part = losses(page, "wanda/demo:256").first
        data = data_of(part)
        index = WINDOWS // 2
        words = hover(part, (index + 0.5) / WINDOWS)
        assert words.startswith(f"Window {index + 1} of {WINDOWS}\n")
        assert data["place"][index] in words
        assert data["place"][index].startswith("page ")
        assert data["words"][index] in words
        assert len(data["words"][index]) > 20
        change = data["measured"][index] - data["baseline"][index]
        shown = words.splitlines()[-1].replace("−", "-")
        assert float(shown) == pytest.approx(change, rel=0.01)

        moved = [
            abs(new - old)
            for new, old in zip(data["measured"], data["baseline"], strict=True)
        ]
        most = max(range(WINDOWS), key=moved.__getitem__)
        assert most != 0
        part.get_by_role("button", name="Largest change first").click()
        assert hover(part, 0.5 / WINDOWS).startswith(f"Window {most + 1} of ")
        part.get_by_role("button", name="Text order").click()
        assert hover(part, 0.5 / WINDOWS).startswith("Window 1 of ")

        drawn = part.locator(".windows path.new")
        part.get_by_role("button", name="Zoom in").click()
        assert (drawn.get_attribute("d") or "").count("M") == WINDOWS // 2
        assert not hover(part, 0.5 / (WINDOWS // 2)).startswith("Window 1 of ")
        part.get_by_role("button", name="Whole text").click()
        assert (drawn.get_attribute("d") or "").count("M") == WINDOWS
        # Dragging over windows 9 to 16 shows these.
        hover(part, 8.5 / WINDOWS)
        page.mouse.down()
        hover(part, 15.5 / WINDOWS)
        page.mouse.up()
        assert (drawn.get_attribute("d") or "").count("M") == 8
        assert hover(part, 0.5 / 8).startswith("Window 9 of ")
        part.locator(".windows .plot").dblclick()
        assert (drawn.get_attribute("d") or "").count("M") == WINDOWS

        bars = part.locator(".histogram .plot")
        bars.locator("rect.worse").first.hover()
        assert (
            part.locator(".histogram .tip")
            .inner_text()
            .split(":")[0]
            .endswith(("window", "windows"))
        )


def test_dark_is_remembered_and_plots_follow(browser: Browser, runs: Runs) -> None:
    def colour(page: Page) -> str:
        dots = losses(page, "wanda/demo:256").first.locator(".windows path.old")
        found: str = dots.evaluate("dot => getComputedStyle(dot).stroke")
        return found

    with opened(browser, runs.failing / "r.html") as page:
        paper = "getComputedStyle(document.body).backgroundColor"
        light, light_paper = colour(page), page.evaluate(paper)
        page.get_by_role("button", name="Dark").click()
        dark, dark_paper = colour(page), page.evaluate(paper)
        assert light != dark
        assert light_paper != dark_paper
        page.reload()
        assert (colour(page), page.evaluate(paper)) == (dark, dark_paper)
        page.get_by_role("button", name="Light").click()
        assert (colour(page), page.evaluate(paper)) == (light, light_paper)
    with opened(browser, runs.failing / "r.html", scheme="dark") as page:
        assert (colour(page), page.evaluate(paper)) == (dark, dark_paper)


def test_without_a_pointer(browser: Browser, runs: Runs) -> None:
    with opened(browser, runs.failing / "r.html") as page:
        page.context.grant_permissions(["clipboard-read", "clipboard-write"])
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.className") == "skip"
        reached: dict[str, int] = {}
        for press in range(80):
            page.keyboard.press("Tab")
            words = page.evaluate(
                "(document.activeElement.id || document.activeElement.className) + ' '"
                " + document.activeElement.textContent.slice(0, 30)"
            )
            reached.setdefault(words, press)
            if words.startswith("copy") and words == "copy Copy":
                page.keyboard.press("Enter")
                page.wait_for_function(
                    "document.getElementById('said').textContent.length > 0"
                )
                assert page.evaluate("navigator.clipboard.readText()") == (
                    page.locator(".command code").first.text_content()
                )
            if "Largest change first" in words:
                page.keyboard.press("Enter")
            if words.startswith("plot"):
                break
        assert {"theme Dark", "copy Copy", "digits ", " Text order"} <= {*reached}
        plot = page.locator(".plot:focus")
        assert plot.get_attribute("data-drawn") == "change"
        page.keyboard.press("ArrowRight")
        first = plot.get_attribute("aria-valuetext") or ""
        page.keyboard.press("ArrowRight")
        second = plot.get_attribute("aria-valuetext") or ""
        assert first.startswith("window ")
        assert second.startswith("window ")
        assert first != second
        assert page.locator(".plot:focus .tip").is_visible()
        page.keyboard.press("Escape")
        assert not page.locator(".plot:focus .tip").is_visible()


@pytest.mark.parametrize(
    ("run", "size", "scheme"),
    [
        ("failing", DESK, "light"),
        ("failing", PHONE, "dark"),
        ("green", PHONE, "light"),
        ("green", DESK, "dark"),
    ],
)
def test_axe_finds_nothing_serious(
    browser: Browser,
    runs: Runs,
    run: str,
    size: tuple[int, int],
    scheme: Literal["light", "dark"],
) -> None:
    file = runs._asdict()[run] / "r.html"
    with opened(browser, file, size=size, scheme=scheme) as page:
        assert not is_too_wide(page)
        open_everything(page)
        assert serious_violations(page) == []
        assert not is_too_wide(page)
        page.locator("#digits").check()
        assert not is_too_wide(page)


def test_without_scripts_all_but_plots_is_there(browser: Browser, runs: Runs) -> None:
    with opened(browser, runs.failing / "r.html", script=False) as page:
        assert page.locator("noscript p").is_visible()
        assert page.locator(".copy").first.is_hidden()
        assert page.locator("#theme").is_hidden()
        assert page.locator("table.gates tbody tr[data-key]").count() == 7
        assert page.locator("svg.strip").first.is_visible()
        part = losses(page, "wanda/demo:256").first
        part.get_by_text(f"All {WINDOWS} windows").click()
        assert part.locator("table.rows").last.locator("tbody tr").count() == WINDOWS


def test_the_pictures_of_the_docs_can_be_taken(
    browser: Browser, runs: Runs, tmp_path: Path
) -> None:
    files = take(browser, runs.failing / "r.html", tmp_path / "images")
    assert {file.name for file in files} == {
        file.name for file in IMAGES.glob("report-*.png")
    }
    for file in files:
        width, height = struct.unpack(">II", file.read_bytes()[16:24])
        assert width >= 390
        assert height >= 500


Place = tuple[str, str, str]
"""Checkpoint, key and metric."""

FIGURES = ("baseline", "measured", "change", "allowed_low", "allowed_high")


def test_all_reports_agree_to_the_last_digit(browser: Browser, runs: Runs) -> None:
    folder = runs.failing
    verdicts = json.loads((folder / "r.json").read_text())["verdicts"]
    assert len(verdicts) == 7
    expected = {}
    for verdict in verdicts:
        low, high = verdict["allowed"]
        numbers = dict(
            zip(
                FIGURES,
                (
                    verdict["baseline"],
                    verdict["measured"],
                    verdict["change"],
                    low,
                    high,
                ),
                strict=True,
            )
        )
        place = (verdict["checkpoint"], verdict["key"], verdict["metric"])
        expected[place] = {
            name: repr(value) for name, value in numbers.items() if value is not None
        }

    with (folder / "r.csv").open(newline="") as stream:
        table = {
            (row["checkpoint"], row["key"], row["metric"]): {
                name: row[name] for name in FIGURES if row[name]
            }
            for row in csv.DictReader(stream)
        }
    assert table == expected
    assert junit(folder / "r.xml") == expected

    shown: dict[Place, dict[str, str]] = {}
    with opened(browser, folder / "r.html") as page:
        page.locator("#digits").check()
        embedded = json.loads(page.locator("script#results").inner_text())
        for row in page.locator("tr[data-key]").all():
            checkpoint, key, metric = (
                row.get_attribute(f"data-{name}") or ""
                for name in ("checkpoint", "key", "metric")
            )
            cells = shown.setdefault((checkpoint, key, metric), {})
            for cell in row.locator("td[data-is]").all():
                column = cell.get_attribute("data-is") or ""
                figures = cell.locator("data").all()
                values = [figure.get_attribute("value") or "" for figure in figures]
                # What a reader sees is what is written for programs.
                assert [figure.inner_text() for figure in figures] == values
                if column != "allowed":
                    cells.update(zip([column], values, strict=False))
                elif "at most" in cell.inner_text():
                    cells["allowed_high"] = values[0]
                else:
                    cells.update(zip(FIGURES[3:], values, strict=True))
    assert shown == expected
    assert embedded["verdicts"] == verdicts


def junit(file: Path) -> dict[Place, dict[str, str]]:
    found: dict[Place, dict[str, str]] = {}
    for one in ElementTree.parse(file).iter("property"):
        # ppl.CHECKPOINT.KEY.METRIC.FIGURE, where only the key may hold a point.
        _, _, rest = str(one.get("name")).partition(".")
        rest, _, figure = rest.rpartition(".")
        rest, _, metric = rest.rpartition(".")
        checkpoint, _, key = rest.partition(".")
        if figure in FIGURES:
            place = found.setdefault((checkpoint, key, metric), {})
            place[figure] = str(one.get("value"))
    return found
