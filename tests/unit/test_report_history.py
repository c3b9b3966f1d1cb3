"""The trend in full: table, JSON, and what a page and pictures are made of."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from pytest_pplguard.errors import UsageError
from pytest_pplguard.history import HistoryRun, Point, WeightsPoint, all_series
from pytest_pplguard.report import (
    check_plot,
    history_document,
    history_lines,
    write_trend,
)

KEY, TASK = "wanda/tiny:16", "lm-eval/wikitext+tiny:64"
HOSTILE = "</script><script>alert(1)</script>\x1b[31m\n'\"&lt;" + "x" * 4000


def point(measured: float | None, **changes: Any) -> Point:
    fields: dict[str, Any] = {
        "checkpoint": "m/w50", "key": KEY, "metric": "token_perplexity",
        "outcome": "within", "passed": True, "baseline": 5.0,
        "change": None if measured is None else measured / 5 - 1,
        "windows_digest": "sha256:a",
    }  # fmt: skip
    return Point(**fields | changes, measured=measured)


def run(day: int, *points: Point, **changes: Any) -> HistoryRun:
    fields: dict[str, Any] = {
        "id": f"run{day}", "time": f"2026-11-{day:02}T08:30:00.000Z",
        "commit": f"{day}abcdef0123456789", "branch": "main", "version": "0.1.0",
        "job": "https://ci/1", "points": points,
        "weights": (WeightsPoint(checkpoint="m/w50", sparsity=0.5),),
        "environment": {"m/w50": {KEY: {"torch": "2.13"}}},
    }  # fmt: skip
    return HistoryRun(**fields | changes)


RUNS = [
    run(1, point(5.0), point(19000.5, key=TASK, metric="word_perplexity", change=0.0)),
    run(2, point(5.1, early="within after 3 of 9 windows"), dirty=True),
    run(3, point(None, outcome="not comparable", passed=False), commit="", weights=()),
    run(4, point(5.4, outcome="regressed", passed=False)),
    run(5, point(5.3, windows_digest="sha256:b")),
    run(6, point(5.35, windows_digest="sha256:b")),
    run(7, point(5.4, windows_digest="sha256:b")),
]


def test_the_table() -> None:
    lines = list(history_lines(all_series(RUNS)))
    assert lines == [
        "m/w50",
        "  UTC              commit     measured  to last  to base   zeros  outcome",
        " wanda/tiny:16 token_perplexity",
        "  2026-11-01 08:30 1abcdef           5        -  +0.00 % 50.00 %  within",
        "  2026-11-02 08:30 2abcdef*       ~5.1  +2.00 %  +2.00 % 50.00 %  within",
        "  2026-11-03 08:30 -                 -        -        -       -  "
        "NOT COMPARABLE",
        "  2026-11-04 08:30 4abcdef         5.4  +5.88 %  +8.00 % 50.00 %  REGRESSED",
        "  -- other windows from here on: not comparable --",
        "  2026-11-05 08:30 5abcdef         5.3        -  +6.00 % 50.00 %  within",
        "  2026-11-06 08:30 6abcdef        5.35  +0.94 %  +7.00 % 50.00 %  within",
        "  2026-11-07 08:30 7abcdef         5.4  +0.93 %  +8.00 % 50.00 %  within",
        "  ▁▄█  5.3 .. 5.4",
        " lm-eval/wikitext+tiny:64 word_perplexity",
        "  2026-11-01 08:30 1abcdef     19000.5        -  +0.00 % 50.00 %  within",
    ]
    assert max(map(len, lines)) <= 80
    plain = list(history_lines(all_series(RUNS), unicode=False))
    assert plain == [line for line in lines if line.isascii()]


def test_checkpoints_stand_apart() -> None:
    runs = [run(1, point(5.0), point(4.0, checkpoint="m/dense"))]
    lines = list(history_lines(all_series(runs)))
    assert [line for line in lines if not line.startswith(" ")] == [
        "m/w50", "", "m/dense"
    ]  # fmt: skip


def test_long_names_of_keys_and_metrics_have_lines_of_their_own() -> None:
    long = point(1.0, key="lm-eval/" + "k" * 60 + ":16", metric="m" * 30)
    assert list(history_lines(all_series([run(1, long)])))[2:4] == [
        " lm-eval/" + "k" * 60 + ":16",
        " " + "m" * 30,
    ]


def test_what_only_a_terminal_would_see_is_written_out() -> None:
    runs = [run(1, point(1.0, checkpoint=HOSTILE, metric="a\tb\x07"), commit="\x1b]0;")]
    text = "\n".join(history_lines(all_series(runs)))
    assert r"</script>\x1b[31m\n'" in text
    assert text.count("\n") == 3
    assert all(char.isprintable() or char == "\n" for char in text)


def test_json_has_every_number() -> None:
    document = history_document(all_series(RUNS))
    assert json.loads(json.dumps(document, allow_nan=False)) == document
    assert document["schema"] == 1
    series, task = document["series"]
    assert (task["key"], len(task["points"])) == (TASK, 1)
    assert [p["measured"] for p in series["points"]] == [
        5.0, 5.1, None, 5.4, 5.3, 5.35, 5.4
    ]  # fmt: skip
    assert series["points"][3] == {
        "run": "run4",
        "time": "2026-11-04T08:30:00.000Z",
        "commit": "4abcdef0123456789",
        "branch": "main",
        "dirty": False,
        "job": "https://ci/1",
        "version": "0.1.0",
        "outcome": "regressed",
        "passed": False,
        "baseline": 5.0,
        "measured": 5.4,
        "change": 5.4 / 5 - 1,
        "allowed_low": None,
        "allowed_high": None,
        "windows": None,
        "windows_digest": "sha256:a",
        "seconds": None,
        "cached": "",
        "early": "",
        "path": "",
        "since_last": 5.4 / 5.1 - 1,
        "breaks": False,
        "sparsity": 0.5,
        "environment": {"torch": "2.13"},
    }


# ------------------------------------------------------------------------------- pages


class Tags(HTMLParser):
    """Elements, attributes that hold addresses, and texts of a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: list[str] = []
        self.addresses: list[str] = []
        self.texts: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append(tag)
        self.addresses += [v or "" for n, v in attrs if n in ("src", "href")]

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def written(path: Path, runs: list[HistoryRun]) -> str:
    write_trend(check_plot(str(path), option="--plot", or_page=True), all_series(runs))
    return path.read_text(encoding="utf-8")


def test_a_page_holds_all_and_fetches_nothing(tmp_path: Path) -> None:
    page = written(tmp_path / "t.html", RUNS)
    tags = Tags(page)
    assert tags.addresses == []
    assert tags.elements.count("script") == 3
    assert "default-src 'none'" in page
    data = re.search(r'id="panels">(.*?)</script>', page)
    assert data is not None
    measured, task, zeros = json.loads(data[1])
    assert measured["values"] == [5.0, 5.1, None, 5.4, None, 5.3, 5.35, 5.4]
    assert measured["passed"][2:4] == [False, False]
    assert measured["baseline"] == [5.0, 5.0, 5.0, 5.0, None, 5.0, 5.0, 5.0]
    assert measured["hover"][3] == (
        "5.4 (+8.00 % from the baseline), regressed<br>commit 4abcdef of main<br>"
        "2026-11-04 08:30 UTC"
    )
    assert measured["hover"][4] == "other windows from here on: not comparable"
    assert task["values"] == [19000.5]
    assert (zeros["kind"], zeros["values"]) == ("share", [0.5] * 6)
    assert zeros["hover"][1] == (
        "50 % zeros<br>commit 2abcdef* of main<br>2026-11-02 08:30 UTC"
    )
    assert "REGRESSED" not in page
    assert '<td class="no">regressed</td>' in page


def test_a_page_runs_nothing_of_what_it_shows(tmp_path: Path) -> None:
    runs = [
        run(
            1,
            point(1.0, checkpoint=HOSTILE, outcome=HOSTILE, metric=HOSTILE),
            branch=HOSTILE,
            commit="<b>",
            weights=(WeightsPoint(checkpoint=HOSTILE, sparsity=0.5),),
        )
    ]
    page = written(tmp_path / "t.html", runs)
    tags = Tags(page)
    assert tags.elements.count("script") == 3
    assert "alert(1)" in "".join(tags.texts)
    assert "<script>alert" not in page
    data = re.search(r'id="panels">(.*?)</script>', page)
    assert data is not None
    for panel in json.loads(data[1]):
        for hover in panel["hover"]:
            assert "<" not in hover.replace("<br>", "")
    assert "\x1b" not in page.replace("\\u001b", "")


@pytest.mark.parametrize(
    ("suffix", "magic"),
    [(".png", b"\x89PNG"), (".svg", b"<?xml"), (".pdf", b"%PDF")],
)
def test_pictures(tmp_path: Path, suffix: str, magic: bytes) -> None:
    path = tmp_path / f"t{suffix}"
    series = all_series([*RUNS, run(9, point(1.0, checkpoint="m/$a_$ <b>"))])
    write_trend(check_plot(str(path), option="--plot", or_page=True), series)
    content = path.read_bytes()
    assert content.startswith(magic)
    write_trend(path, series)
    assert path.read_bytes() == content
    if suffix == ".svg":
        text = content.decode()
        assert "m/w50: wanda/tiny:16 token_perplexity" in text
        assert "m/w50: share of zeros" in text
        assert "m/$a_$ &lt;b&gt;: wanda/tiny:16" in text


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "t.jpg",
            "--plot HERE/t.jpg: the suffix says what to write: .html, .png, .svg, .pdf",
        ),
        ("no/t.html", "--plot HERE/no/t.html: there is no folder HERE/no"),
        ("no/t.png", "--plot HERE/no/t.png: there is no folder HERE/no"),
    ],
)
def test_mistakes(tmp_path: Path, name: str, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        check_plot(str(tmp_path / name), option="--plot", or_page=True)
    assert str(caught.value).replace(str(tmp_path), "HERE") == message


def test_a_picture_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "t.html").mkdir()
    with pytest.raises(UsageError, match=r"--plot: .*t\.html cannot be written: "):
        write_trend(tmp_path / "t.html", all_series(RUNS))
