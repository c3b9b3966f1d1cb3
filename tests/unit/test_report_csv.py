"""The CSV report: its bytes, and what a spreadsheet could take for a formula."""

from __future__ import annotations

import csv
import io
import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from pytest_pplguard.report import figures, write_report
from pytest_pplguard.report.csv import csv_report
from pytest_pplguard.values import Outcome, Results, Verdict

REGRESSED = Verdict(
    "llama/w50", "wanda/wikitext2:4096", "token_perplexity",
    Outcome.REGRESSED, False, 6.3062154, 6.5017081, 0.031, (6.274841, 6.3377465),
    "rel 0.005, baselines/llama.yaml:7", "measured", "baselines/llama.yaml:12",
    ("dtype bfloat16, baseline float16",), ("torch 2, baseline 1", "device cuda"),
    "pytest x --ppl-update", 83, 61.25, 6.3062154, 6.42, "a paper",
    "baselines/llama.yaml", 7, "out/w50",
)  # fmt: skip
MISSING = Verdict(
    "llama/dénse", "wanda/wikitext2:4096", "token_perplexity",
    Outcome.MISSING, False, measured=1 / 3, allowed=(None, 0.1),
)  # fmt: skip


def rows(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


def test_the_file(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    write_report(str(path), Results((REGRESSED, MISSING)))
    assert path.read_bytes().decode() == (
        "checkpoint,key,metric,outcome,passed,baseline,measured,change,allowed_low,"
        "allowed_high,first,published,windows,seconds,source,reference,gate,file,line,"
        "recorded_in,reasons,notes,command,path,cached,early\n"
        "llama/w50,wanda/wikitext2:4096,token_perplexity,regressed,false,6.3062154,"
        "6.5017081,0.031,6.274841,6.3377465,6.3062154,6.42,83,61.25,measured,"
        'a paper,"rel 0.005, baselines/llama.yaml:7",baselines/llama.yaml,7,'
        'baselines/llama.yaml:12,"dtype bfloat16, baseline float16",'
        '"torch 2, baseline 1; device cuda",pytest x --ppl-update,out/w50,,\n'
        "llama/dénse,wanda/wikitext2:4096,token_perplexity,missing,false,,"
        "0.3333333333333333,,,0.1,,,,,,,,,,,,,,,,\n"
    )


@given(value=st.floats(allow_nan=False, allow_infinity=False))
def test_numbers_are_there_in_full(value: float) -> None:
    (row,) = rows(csv_report([replace(REGRESSED, change=value)]))
    assert float(row["change"]) == value


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_no_number_is_an_empty_cell(value: float) -> None:
    (row,) = rows(csv_report([replace(REGRESSED, measured=value)]))
    assert row["measured"] == ""


@pytest.mark.parametrize("text", ["=1+1", "+1", "-x", "@SUM(A1)", "\t=1"])
def test_no_text_is_a_formula(text: str) -> None:
    verdict = replace(REGRESSED, checkpoint=text, reasons=(text, "b"))
    (row,) = rows(csv_report([verdict]))
    assert row["checkpoint"] == f"'{text}"
    assert row["reasons"] == f"'{text}; b"


def test_a_verdict_is_one_line() -> None:
    verdict = replace(REGRESSED, reasons=("a\nb\r\nc\rd",))
    text = csv_report([verdict])
    assert len(text.splitlines()) == 2
    assert rows(text)[0]["reasons"] == "a b c d"


def test_figures_are_the_numbers_that_there_are() -> None:
    assert figures(REGRESSED) == {
        "baseline": 6.3062154,
        "measured": 6.5017081,
        "change": 0.031,
        "allowed_low": 6.274841,
        "allowed_high": 6.3377465,
        "first": 6.3062154,
        "published": 6.42,
        "windows": 83,
        "seconds": 61.25,
    }
    assert figures(MISSING) == {"measured": 1 / 3, "allowed_high": 0.1}
