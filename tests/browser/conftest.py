"""A browser for each worker, and the reports of two real runs of the demo."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pytest

from pytest_pplguard.report import ladder_document
from scripts.browser import chromium, run_demo, spoil_demo, why_no_browser
from tests.unit.test_report_ladder import ladder
from tests.zygote import forked

if TYPE_CHECKING:
    from playwright.sync_api import Browser

FAST = ("-k", "not lm-eval")
"""Without the gates that need lm-eval's seconds of imports."""


class Runs(NamedTuple):
    """Folders with what the green and the failing run have written."""

    green: Path
    failing: Path


# Not for the session: while it runs no other test could start an event loop.
@pytest.fixture(scope="package")
def browser() -> Iterator[Browser]:
    if why := why_no_browser():
        pytest.skip(why)
    with chromium() as running:
        yield running


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    if why := why_no_browser():
        pytest.skip(why)
    green, failing = tmp_path_factory.mktemp("green"), tmp_path_factory.mktemp("fails")
    spoil_demo(failing)
    document = json.dumps(ladder_document("demo/wanda-50", ladder()))
    (failing / "ladder.json").write_text(document)
    with forked(), ThreadPoolExecutor() as threads:
        well = threads.submit(
            run_demo, green, "--ppl-model=demo", "--ppl-report=r.html", *FAST
        )
        badly = run_demo(
            failing,
            *("--ppl-model=demo/dense", "--ppl-model=demo/wanda-50=wanda-50"),
            *(f"--ppl-report=r.{kind}" for kind in ("html", "json", "csv")),
            *("--ppl-ladder=ladder.json", "--junitxml=r.xml", *FAST),
        )
        assert well.result().returncode == 0, well.result().stdout
        assert badly.returncode == 1, badly.stdout
    return Runs(green, failing)
