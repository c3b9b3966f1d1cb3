"""Names and texts that were made to harm the page are shown, and do nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from pytest_pplguard.report import ladder_document, write_report
from pytest_pplguard.values import (
    Details,
    LadderDetail,
    LossDetail,
    Outcome,
    Remark,
    Results,
    TensorChange,
    Verdict,
    WeightsDetail,
    WindowPlace,
)
from tests.unit.test_report_ladder import ladder

pytest.importorskip("playwright", reason="playwright is not installed")

from .pages import DESK, PHONE, is_too_wide, open_everything, opened

if TYPE_CHECKING:
    from playwright.sync_api import Browser

EVIL = (
    "<script>window.pwned = 1</script>",
    "</script><script>window.pwned = 2</script><!--",
    '"\'><img src=x onerror="window.pwned = 3">',
    '<a href="javascript:window.pwned = 4">click</a>',
    "\x1b[31mred\x1b[0m\x07\x00",
    "\u202egnp.exe",
    "w" * 4096,
    "caf\udce9",
    "{{ 7 * 7 }}{% raw %}",
    "line\nline\rline\u2028",
)
EVERYTHING = " ".join(EVIL)


def evil_report(word: str) -> tuple[Results, Details]:
    verdict = Verdict(
        checkpoint=word,
        key=word,
        metric=word,
        outcome=Outcome.REGRESSED,
        passed=False,
        baseline=5.0,
        measured=6.0,
        change=0.2,
        allowed=(4.9, 5.1),
        gate=word,
        source=word,
        recorded_in=word,
        reasons=(word,),
        notes=(word,),
        command=word,
        reference=word,
        file=word,
        path=f"path {word}",
        changes=(word,),
        where=(word,),
        documents=(word,),
        stderr=word,
        cached=word,
        early=word,
    )
    remark = Remark(word, file=word, line=3)
    results = Results(
        verdicts=(verdict,),
        problems=(remark,),
        warnings=(remark,),
        notices=(word,),
        complete=False,
    )
    loss = LossDetail(
        checkpoint=word,
        key=word,
        of="nll_sum",
        total=3,
        windows=(0, 1, 2),
        scored=(10, 10, 10),
        measured=(10.0, None, 12.0),
        baseline=(9.0, 10.0, 12.5),
        places=(WindowPlace(3, 0, word, word),) * 3,
        windows_digest=word,
        protocol={word: word},
        environment={word: word},
        baseline_environment={word: f"other {word}"},
        cached=word,
        problem=word,
    )
    tensor = f"model.layers.0.{word}"
    weights = WeightsDetail(
        checkpoint=word,
        spec=f"path {word}",
        digest=word,
        zeros={tensor: (1, 4)},
        recorded_digest=f"other {word}",
        recorded_zeros={tensor: (2, 4)},
        changes=(TensorChange(name=tensor, kind=word, looks=word, zeros=0.25),),
        lines=(word,),
        problem=word,
    )
    document = ladder_document(word, ladder()) | {"text": word, "conclusion": [word]}
    document["steps"][1]["change"] = word
    return results, Details((loss,), (weights,), (LadderDetail(word, document),))


@pytest.mark.parametrize("size", [DESK, PHONE], ids=["desk", "phone"])
def test_a_hostile_page(
    browser: Browser, tmp_path: Path, size: tuple[int, int]
) -> None:
    file = tmp_path / "evil.html"
    write_report(str(file), *evil_report(EVERYTHING))
    with opened(browser, file, size=size) as page:
        open_everything(page)
        assert not is_too_wide(page)
        plot = page.locator(".windows .plot")
        plot.hover()
        for _ in range(3):
            plot.press("ArrowRight")
            assert page.locator(".windows .tip").is_visible()
            assert not is_too_wide(page)
        page.get_by_role("button", name="Largest change first").click()
        assert page.evaluate("window.pwned") is None
        # Two of our own, and nothing that came with a text.
        assert page.locator("script:not([type])").count() == 1
        assert page.locator("img, iframe, object, a[href^=javascript]").count() == 0
        text = page.locator("main").text_content() or ""
        for shown in (
            "<script>window.pwned = 1</script>",
            "</script><script>window.pwned = 2</script><!--",
            'onerror="window.pwned = 3"',
            r"\x1b[31mred\x1b[0m\x07\x00",
            r"\u202egnp.exe",
            r"caf\udce9",
            "{{ 7 * 7 }}{% raw %}",
            r"line\x0dline\u2028",
        ):
            assert shown in text
        assert not {"\x1b", "\x00", "\u202e"} & {*text}
        document = json.loads(page.locator("script#results").inner_text())
        # No word buries the verdict, and the command is whole.
        assert page.locator("h1").inner_text() == "1 of 1 gate failed"
        assert "w" * 200 not in page.locator(".causes").inner_text()
        command = page.locator(".command code").text_content() or ""
        assert "w" * 4096 in command
        # The data for programs has the names as they are.
        assert document["verdicts"][0]["key"] == EVERYTHING


def test_the_policy_refuses_a_script_that_is_not_ours(
    browser: Browser, tmp_path: Path
) -> None:
    """Escaping is one wall, the policy the second: here the first is broken."""
    file = tmp_path / "broken.html"
    write_report(str(file), Results(notices=("HERE",)))
    text = file.read_text("utf-8")
    spoilt = text.replace(
        "HERE", "<script>window.pwned = 1</script><img src=x onerror='pwned = 2'>"
    )
    assert spoilt != text
    file.write_text(spoilt, "utf-8")
    page = browser.new_page()
    try:
        refused: list[str] = []
        page.on("console", lambda message: refused.append(message.text))
        page.goto(file.as_uri())
        assert page.evaluate("window.pwned") is None
        assert len(refused) >= 2
        assert all("Content Security Policy" in line for line in refused)
    finally:
        page.close()
