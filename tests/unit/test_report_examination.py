"""The text of an examination: a screen, whatever the model."""

from __future__ import annotations

import pytest

from pytest_pplguard.checkpoints import Examination, Finding, ZeroTable
from pytest_pplguard.report import examination_document, examination_lines

NAMES = ("q_proj", "a_projection_with_a_long_name")


def examined(table: ZeroTable | None, *findings: Finding) -> Examination:
    return Examination(
        model="m",
        form="safetensors, in shards",
        architecture="LlamaForCausalLM",
        layers=0 if table is None else len(table.cells),
        parameters=2000,
        dtypes={"BF16": 1990, "F32": 10},
        files={"a": 999, "b": 1_000, "c": 12_345_678, "d": 7 * 10**9, "e": 1, "f": 2},
        findings=findings,
        zeros=table,
    )


def uneven(layers: int) -> ZeroTable:
    cells = {
        str(i): {NAMES[0]: (i, 1000), NAMES[1]: (999, 1000)} for i in range(layers)
    }
    return ZeroTable(NAMES, cells)


def test_everything_in_full() -> None:
    cells = {str(i): dict.fromkeys(NAMES, (50, 100)) for i in range(32)}
    cells["7"] = {NAMES[0]: (0, 100)}
    report = examined(
        ZeroTable(NAMES, cells, "2:4"),
        Finding("error", "file", "x", "m: broken"),
        Finding("warning", "peak", "y", "m holds a peak"),
        Finding("note", "unread", "z", "other"),
    )
    assert examination_lines(report) == [
        "m: LlamaForCausalLM, 32 layers",
        "  form     safetensors, in shards",
        "  weights  2,000, BF16 99.5%, F32 0.5%",
        "  files    d 7 GB, c 12.3 MB, b 1 kB, a 999 B, 2 more 3 B",
        "",
        "error    broken (file)",
        "warning  m holds a peak (peak)",
        "note     other (unread)",
        "ill: 1 error, 1 warning, 1 note",
        "",
        "zeros in %  q_proj  …th_a_long_name     all",
        "0-6           50.0             50.0    50.0",
        "7              0.0                -     0.0",
        "8-31          50.0             50.0    50.0",
        "all           48.4             50.0    49.2",
        "3,100 of 6,300 weights of the decoder layers are zero, in the pattern 2:4",
    ]


def test_many_rows_are_cut_at_a_screen() -> None:
    lines = examination_lines(examined(uneven(80)))
    assert len(lines) == 35
    assert lines[-3] == "... 56 more rows: --all"
    whole = examination_lines(examined(uneven(80)), everything=True)
    # Layer 0 has no zeros in q_proj; the others, by tenths of a per cent, all differ.
    assert len(whole) == 35 + 56 - 1


def test_nearly_all_is_not_all() -> None:
    cells = {"0": {NAMES[0]: (99_999, 100_000)}, "1": {NAMES[0]: (100, 100)}}
    lines = examination_lines(examined(ZeroTable(NAMES[:1], cells)))
    assert [line.split() for line in lines[-4:-2]] == [
        ["0", "<100", "<100"],
        ["1", "100.0", "100.0"],
    ]


def test_nothing_to_count() -> None:
    report = examined(None)
    assert examination_lines(report)[-1] == "healthy: nothing found"
    assert examination_document(report)["sparsity"] is None


def test_the_document() -> None:
    document = examination_document(
        examined(
            ZeroTable(NAMES, {"0": {NAMES[0]: (1, 4)}}), Finding("note", "c", "w", "t")
        )
    )
    assert document == {
        "schema": 1,
        "model": "m",
        "healthy": True,
        "architecture": "LlamaForCausalLM",
        "form": "safetensors, in shards",
        "parameters": 2000,
        "dtypes": {"BF16": 1990, "F32": 10},
        "files": {
            "a": 999,
            "b": 1_000,
            "c": 12_345_678,
            "d": 7 * 10**9,
            "e": 1,
            "f": 2,
        },
        "findings": [{"grade": "note", "code": "c", "where": "w", "text": "t"}],
        "sparsity": {
            "zeros": 1,
            "weights": 4,
            "fraction": 0.25,
            "pattern": None,
            "layers": {"0": {"q_proj": 0.25}},
        },
    }


@pytest.mark.parametrize("grade", ["error", "warning", "note"])
def test_only_errors_make_it_ill(grade: str) -> None:
    report = examined(None, Finding(grade, "c", "w", "t"))  # type: ignore[arg-type]
    assert report.healthy is (grade != "error")
    word = {"error": "ill", "warning": "suspicious", "note": "healthy"}[grade]
    assert examination_lines(report)[-1] == f"{word}: 1 {grade}"
