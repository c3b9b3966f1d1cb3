"""Summary, tables, progress and JSON documents, in full."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from msgspec.structs import replace

from pytest_pplguard.baselines import Change
from pytest_pplguard.errors import UsageError
from pytest_pplguard.report import (
    brief,
    changes_table,
    check_report_path,
    failure_text,
    measurements_document,
    plain,
    results_document,
    summary_lines,
    write_report,
)
from pytest_pplguard.values import (
    Measurement,
    Outcome,
    Remark,
    Results,
    Verdict,
    WindowScore,
)

VERDICTS = [
    Verdict(
        "demo/wanda-50", "wanda/demo:256", "token_perplexity",
        Outcome.WITHIN, True, 6.8457807, 6.8457807, 0.0,
    ),
    Verdict(
        "demo/dense", "wanda/demo:256", "token_perplexity",
        Outcome.REGRESSED, False, 6.5187, 6.7, 0.0278123,
    ),
    Verdict(
        "demo/wanda-50", "lm-eval/wikitext+demo:256", "word_perplexity",
        Outcome.MISSING, False, None, 17.725,
    ),
]  # fmt: skip


def test_the_summary_is_a_table_by_checkpoint_and_key() -> None:
    assert "\n".join(summary_lines(VERDICTS)) == (
        "demo/dense                     baseline   measured     change  outcome\n"
        "  wanda/demo:256\n"
        "    token_perplexity             6.5187        6.7    +2.78 %  REGRESSED\n"
        "demo/wanda-50                  baseline   measured     change  outcome\n"
        "  wanda/demo:256\n"
        "    token_perplexity            6.84578    6.84578    +0.00 %  within\n"
        "  lm-eval/wikitext+demo:256\n"
        "    word_perplexity                   -     17.725          -  MISSING\n"
        "1 regressed, 1 missing, 1 within tolerance"
    )


def test_the_summary_has_what_was_published_below_a_measured_baseline() -> None:
    measured = Verdict(
        "llama-2-7b/wanda-50", "wanda/wikitext2:4096", "token_perplexity",
        Outcome.WITHIN, True, 6.306, 6.31, 0.000634, published=6.42,
        reference="locuslab/wanda README",
    )  # fmt: skip
    assert "\n".join(summary_lines([measured])) == (
        "llama-2-7b/wanda-50            baseline   measured     change  outcome\n"
        "  wanda/wikitext2:4096\n"
        "    token_perplexity              6.306       6.31    +0.06 %  within\n"
        "      published                    6.42       6.31    -1.71 %\n"
        "1 within tolerance"
    )


def test_the_summary_fits_80_columns() -> None:
    long = Verdict(
        "llama-2-7b/wanda-50", "lm-eval/wikitext:4096", "word_perplexity",
        Outcome.NOT_COMPARABLE, False, 11.22, 11.5, 0.025,
    )  # fmt: skip
    assert max(map(len, summary_lines([*VERDICTS, long]))) <= 80


def test_changes_show_old_new_and_drift() -> None:
    def change(key: str, old: float | None, new: float, first: float | None) -> Change:
        return Change(
            file="baselines/llama-2-7b.yaml",
            checkpoint="wanda-50",
            key=key,
            metric="token_perplexity",
            old=old,
            new=new,
            first=first,
        )

    rows = changes_table(
        [
            change("wanda/wikitext2:4096", 6.0, 6.3, 5.0),
            change("wanda/wikitext2:2048", None, 6.9, 6.9),
        ]
    )
    assert "\n".join(rows) == (
        "llama-2-7b/wanda-50                 old        new     change  since first\n"
        "  wanda/wikitext2:4096\n"
        "    token_perplexity                  6        6.3    +5.00 %     +26.00 %\n"
        "  wanda/wikitext2:2048\n"
        "    token_perplexity                  -        6.9          -      +0.00 %"
    )


# -------------------------------------------------------------------------------- json


def test_the_document_of_results_has_every_field(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    results = Results(
        (VERDICTS[0],),
        problems=(Remark("--ppl-model x=y: no gate was measured"),),
        warnings=(Remark("published, no evidence: a paper", "b/m.yaml", 7),),
        notices=("no accelerator found: running on the CPU",),
    )
    write_report(str(path), results)
    assert json.loads(path.read_text(encoding="utf-8")) == {
        "schema": 1,
        "verdicts": [
            {
                "checkpoint": "demo/wanda-50",
                "key": "wanda/demo:256",
                "metric": "token_perplexity",
                "outcome": "within",
                "passed": True,
                "baseline": 6.8457807,
                "measured": 6.8457807,
                "change": 0.0,
                "allowed": [None, None],
                "gate": "",
                "source": "",
                "recorded_in": "",
                "reasons": [],
                "notes": [],
                "command": "",
                "windows": None,
                "seconds": None,
                "first": None,
                "published": None,
                "reference": "",
                "file": "",
                "line": None,
                "path": "",
                "changes": [],
                "where": [],
                "documents": [],
                "stderr": "",
                "cached": "",
                "early": "",
            }
        ],
        "problems": [
            {
                "text": "--ppl-model x=y: no gate was measured",
                "file": "",
                "line": None,
            }
        ],
        "warnings": [
            {
                "text": "published, no evidence: a paper",
                "file": "b/m.yaml",
                "line": 7,
            }
        ],
        "notices": ["no accelerator found: running on the CPU"],
        "complete": True,
    }


def test_what_json_cannot_hold_becomes_null() -> None:
    verdict = Verdict("a", "b", "c", Outcome.INVALID, False, 6.0, math.nan, math.inf)
    document = results_document(Results((verdict,)))
    assert document["verdicts"][0]["measured"] is None
    assert document["verdicts"][0]["change"] is None
    json.dumps(document, allow_nan=False)


def test_the_measurements_document() -> None:
    measurement = Measurement(
        key="wanda/demo:256",
        metrics={"token_perplexity": 6.5},
        units={"tokens": 255},
        windows=1,
        windows_digest="sha256:a",
        corpus_digest="sha256:b",
        protocol={"window": 256},
        evidence=(WindowScore(477.3, 255), WindowScore(1.5, 3, 0)),
        environment={"dtype": "float32"},
        seconds=0.5,
    )
    assert json.loads(json.dumps(measurements_document([measurement]))) == {
        "schema": 1,
        "measurements": [
            {
                "key": "wanda/demo:256",
                "metrics": {"token_perplexity": 6.5},
                "units": {"tokens": 255},
                "windows": 1,
                "windows_digest": "sha256:a",
                "corpus_digest": "sha256:b",
                "protocol": {"window": 256},
                "evidence": [
                    {"nll_sum": 477.3, "scored": 255, "page": None},
                    {"nll_sum": 1.5, "scored": 3, "page": 0},
                ],
                "environment": {"dtype": "float32"},
                "seconds": 0.5,
                "notices": [],
            }
        ],
    }


def test_plain_data_has_no_tuples() -> None:
    assert plain(VERDICTS[0])["allowed"] == [None, None]


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("x.yaml", "--ppl-report: x.yaml must end in .html, .json, .md or .csv"),
        ("json", "--ppl-report: json must end in .html, .json, .md or .csv"),
        ("no/such/x.json", "--ppl-report: the folder of no/such/x.json does not exist"),
    ],
)
def test_a_report_that_could_not_be_written_is_refused(path: str, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        check_report_path(path, option="--ppl-report")
    assert str(caught.value) == message


WHEN, WORDS = "2026-11-26T09:12Z", "from cache, measured 2026-11-26 09:12 UTC"


def test_a_failure_from_the_cache_says_when_it_was_measured() -> None:
    cached = replace(VERDICTS[0], outcome=Outcome.REGRESSED, passed=False, cached=WHEN)
    assert f"  measured     6.8457807 ({WORDS})" in failure_text(cached).splitlines()
    assert brief([cached]).endswith(f"; {WORDS}")


def test_the_summary_says_once_a_key_that_it_is_from_the_cache() -> None:
    cached = [replace(VERDICTS[0], cached=WHEN)] * 2
    lines = summary_lines(cached)
    assert lines[1:3] == ["  wanda/demo:256", f"    {WORDS}"]
    assert len(lines) == len(summary_lines(VERDICTS[:1] * 2)) + 1
    assert max(map(len, lines)) <= 80


def test_the_summary_says_what_of_a_key_is_from_the_cache() -> None:
    lines = summary_lines([VERDICTS[0], replace(VERDICTS[0], cached=WHEN)])
    assert [line for line in lines if "cache" in line] == [f"      {WORDS}"]
    assert lines.index(f"      {WORDS}") == 4
