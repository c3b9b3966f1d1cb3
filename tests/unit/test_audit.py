"""What is found in baseline files that do not hold together, and where."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest

from pytest_pplguard.audit import audit_file, evidence_problems, orphans
from pytest_pplguard.baselines import baseline_paths, read_baseline
from pytest_pplguard.values import DocumentResult, Key

from .recorded import KEY, edit, measured, weights, write

ROOT = Path(__file__).parents[2]
RESTORE = (
    "a recorded value is never edited by hand: restore it, or record anew with "
    "`pplguard update`"
)
AGAIN = "restore it from version control or re-record with `pplguard update`"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "llama.yaml"
    write(path, fingerprint=weights())
    write(path, (4.5, 5.5), entry="w50", fingerprint=weights(1))
    return path


def found(path: Path) -> list[str]:
    """Findings, with ``HERE`` for the folder."""
    here = f"{path.parent}/"
    return [finding.text.replace(here, "") for finding in audit_file(path).findings]


def line_of(path: Path, text: str, number: int = 0) -> int:
    lines = path.read_text().splitlines()
    return [i for i, line in enumerate(lines, 1) if text in line][number]


def evidence(path: Path, entry: str, kind: str = "wanda") -> Path:
    (only,) = path.parent.glob(f"llama/{entry}/{kind}-*.json")
    return only


def test_a_sound_file(file: Path) -> None:
    audit = audit_file(file)
    assert (audit.findings, audit.checkpoints) == ((), 2)
    assert (audit.values, audit.published, len(audit.evidence)) == (2, 0, 4)
    assert orphans(file.parent, audit.evidence) == []


@pytest.mark.parametrize(
    "path", baseline_paths(ROOT / "baselines"), ids=lambda path: path.stem
)
def test_what_ships_is_sound(path: Path) -> None:
    assert audit_file(path).findings == ()


def test_a_value_that_was_edited(file: Path) -> None:
    value = math.exp(9.0 / 8)
    edit(
        file,
        (f"token_perplexity: {value!r}\n", f"token_perplexity: {value + 1e-9!r}\n"),
    )
    name = evidence(file, "dense").name
    assert found(file) == [
        f"llama.yaml:{line_of(file, KEY, 1)}: llama/dense, {KEY}: token_perplexity "
        f"{value + 1e-9!r} is recorded, but its evidence llama/dense/{name} gives "
        f"{value!r}: {RESTORE}"
    ]


def test_the_last_digit_may_differ(file: Path) -> None:
    value = math.exp(9.0 / 8)
    edit(file, (f"token_perplexity: {value!r}\n",
                f"token_perplexity: {math.nextafter(value, 9)!r}\n"))  # fmt: skip
    assert found(file) == []


def test_evidence_that_is_gone(file: Path) -> None:
    path = evidence(file, "w50")
    path.unlink()
    assert found(file) == [
        f"llama.yaml:{line_of(file, KEY, 3)}: llama/w50, {KEY}: evidence "
        f"llama/w50/{path.name}: the file does not exist: {AGAIN}"
    ]


def test_evidence_that_was_changed(file: Path) -> None:
    path = evidence(file, "dense")
    path.write_text(path.read_text().replace("4.0", "4.1"))
    (problem,) = found(file)
    assert re.search(
        r"its content \(sha256 \w{12}\) is not what its name says", problem
    )


def test_a_fingerprint_that_was_edited(file: Path) -> None:
    edit(file, ("zeros: 8", "zeros: 9"))
    places = [line_of(file, "fingerprint:", number) for number in (0, 1)]
    assert found(file) == [
        f"llama.yaml:{line}: llama/{entry}, fingerprint: evidence "
        f"llama/{entry}/{evidence(file, entry, 'fingerprint').name}: its number of "
        f"zeros is 8, recorded is 9: {AGAIN}"
        for line, entry in zip(places, ("dense", "w50"), strict=True)
    ]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("windows: 2", "windows: 3", "it holds 2 windows, recorded are 3"),
        ("sha256:" + "1" * 64, "sha256:" + "3" * 64, "its windows_digest is sha256:11"),
        ("sha256:" + "2" * 64, "sha256:" + "3" * 64, "its corpus_digest is sha256:22"),
        ("tokens: 8", "tokens: 9", "its units is {'tokens': 8}, recorded is "),
    ],
)
def test_fields_that_do_not_fit(file: Path, old: str, new: str, message: str) -> None:
    edit(file, (old, new))
    problems = found(file)
    assert len(problems) == 2
    assert all(message in problem for problem in problems)


def test_evidence_of_another_key(file: Path) -> None:
    edit(file, (f"{KEY}:", "wanda/wikitext2:32:"))
    assert all(f"its key is {KEY}, recorded is wanda/wikitext2:32" in text
               for text in found(file))  # fmt: skip
    assert len(found(file)) == 2


def test_gates_of_what_is_not_there(file: Path) -> None:
    edit(file, ("{token_perplexity: {rel: 0.005}}", "{token_perplexiti: {rel: 0.005}}"))
    gates = (
        "    gates:\n"
        "      wanda/wikitext2:61: {token_perplexity: {rel: 1.0}}\n"
        "      weights: same\n"
        "      nope/x:16: {m: {rel: 1.0}}\n"
        "      kl/wikitext2:16: {kl_divergence: {max: 1.0}}\n"
    )
    edit(file, ("    gates:\n", gates))
    dense = [text for text in found(file) if "llama/dense" in text]
    at = line_of(file, "gates:")
    assert dense == [
        f"llama.yaml:{at + 1}: llama/dense, gates, wanda/wikitext2:61: nothing is "
        "recorded by this key (did you mean 'wanda/wikitext2:16'?): record it with "
        "`pplguard update`, or remove the gate",
        f"llama.yaml:{at + 3}: llama/dense, gates: unknown method 'nope': this version "
        "measures wanda, lm-eval, kl, strided, llama-cpp, lora-ft, gptq and vllm",
        f"llama.yaml:{at + 4}: llama/dense, gates, kl/wikitext2:16: compares with "
        "another checkpoint, and none is named: add `reference: NAME` to the entry",
        f"llama.yaml:{at + 4}: llama/dense, gates, kl/wikitext2:16: nothing is "
        f"recorded by this key (did you mean '{KEY}'?): record it with `pplguard "
        "update`, or remove the gate",
        f"llama.yaml:{at + 5}: llama/dense, gates, {KEY}: no token_perplexiti is "
        "recorded (did you mean 'token_perplexity'?); there are token_perplexity",
    ]


def test_a_gate_of_the_weights_without_a_fingerprint(tmp_path: Path) -> None:
    path = tmp_path / "llama.yaml"
    write(path)
    edit(path, ("    gates:\n", "    gates:\n      weights: mask\n"))
    assert found(path) == [
        f"llama.yaml:{line_of(path, 'weights: mask')}: llama/dense, gates, weights: no "
        "fingerprint is recorded: record it with `pplguard update`, or remove the gate"
    ]


def test_a_relative_gate_of_another_metric(file: Path) -> None:
    gate = (
        f'      relative: {{to: dense, key: "{KEY}", max_ratio: 1.3, '
        "metric: word_perplexity}\n"
    )
    edit(file, ("  w50:\n    gates:\n", f"  w50:\n    gates:\n{gate}"))
    assert found(file) == [
        f"llama.yaml:{line_of(file, 'relative')}: llama/w50, gates, relative: {KEY} "
        "has no metric word_perplexity (did you mean 'token_perplexity'?); it has "
        "token_perplexity"
    ]


def test_values_of_other_weights_are_a_warning(file: Path) -> None:
    write(file, (6.0, 6.0), key="wanda/wikitext2:8", fingerprint=weights(7))
    (warning,) = audit_file(file).findings
    assert warning.warning
    assert warning.text.replace(f"{file.parent}/", "") == (
        f"llama.yaml:{line_of(file, f'{KEY}:', 1)}: warning: llama/dense, {KEY}: "
        "measured on other weights than those of the recorded fingerprint: record this "
        "key again, or the fingerprint with `pplguard update --fingerprint`"
    )


def test_every_fault_of_a_file_is_told_and_the_rest_is_checked(file: Path) -> None:
    evidence(file, "w50").unlink()
    edit(
        file,
        ("gates:\n", "gates:\n      sparsity: {fraction: 5}\n      wieghts: any\n"),
        ("  dense:\n", "  dense:\n    allow: []\n"),
    )
    starts = [
        (line_of(file, "allow"), "checkpoint dense: unknown field 'allow' (did you "),
        (
            line_of(file, "fraction"),
            "checkpoint dense, gates, sparsity: fraction must ",
        ),
        (line_of(file, "wieg"), "checkpoint dense, gates: unknown gate 'wieghts' (did"),
        (
            line_of(file, "fraction", 1),
            "checkpoint w50, gates, sparsity: fraction must",
        ),
        (
            line_of(file, "wieg", 1),
            "checkpoint w50, gates: unknown gate 'wieghts' (did",
        ),
        (line_of(file, KEY, 3), f"llama/w50, {KEY}: evidence llama/w50/wanda-wikitext"),
    ]
    texts = found(file)
    assert len(texts) == len(starts)
    for text, (line, start) in zip(texts, starts, strict=True):
        assert text.startswith(f"llama.yaml:{line}: {start}")


def test_a_record_with_a_fault_is_not_called_missing(file: Path) -> None:
    edit(file, ("windows: 2", "windows: two"))
    assert [text.partition(": checkpoint ")[2] for text in found(file)] == [
        f"{name}, recorded, {KEY}: windows must be a whole number, not the text 'two'"
        for name in ("dense", "w50")
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "llama.yaml:1: the file is empty: "),
        (
            "schema: 9\nmodel: m\ncheckpoints: {}\n",
            "llama.yaml:1: was written by a newer",
        ),
        ("schema: 1\n<<<<<<< ours\n", "llama.yaml:2: a merge-conflict marker"),
    ],
)
def test_a_file_that_is_none(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "llama.yaml"
    path.write_text(text)
    (problem,) = found(path)
    assert problem.startswith(message)


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    assert found(tmp_path / "none.yaml") == [
        "none.yaml: cannot be read: No such file or directory"
    ]


def test_the_values_of_a_task_follow_from_its_documents(tmp_path: Path) -> None:
    path = tmp_path / "llama.yaml"
    documents = tuple(
        DocumentResult("piqa", index, {"acc": value})
        for index, value in enumerate([1.0, 0.0, 1.0])
    )
    key = "lm-eval/piqa:16"
    changes: dict[str, Any] = {
        "metrics": {"acc": 2 / 3},
        "units": {"documents": 3},
        "documents": documents,
        "protocol": {"window": 16, "aggregation of acc": "mean"},
    }
    write(path, (1.0, 2.0), key=key, **changes)
    assert found(path) == []
    edit(path, (f"acc: {2 / 3!r}\n", "acc: 0.67\n"))
    (problem,) = found(path)
    assert "acc 0.67 is recorded, but its evidence" in problem
    assert f"gives {2 / 3!r}: {RESTORE}" in problem


def test_losses_beyond_any_perplexity(tmp_path: Path) -> None:
    path = tmp_path / "llama.yaml"
    write(path, (4e4, 1.0), metrics={"token_perplexity": 5.0})
    (problem,) = found(path)
    assert "its values cannot be computed again: a mean loss of 5000.12" in problem


def test_evidence_that_nobody_names(file: Path) -> None:
    kept = file.parent / "llama" / "notes.json"
    kept.write_text(json.dumps({}))
    lost = evidence(file, "dense").with_name("wanda-x-0123456789ab.json")
    lost.write_text("{}")
    named = audit_file(file).evidence
    assert orphans(file.parent, named) == ["llama/dense/wanda-x-0123456789ab.json"]


def test_problems_of_one_record(file: Path) -> None:
    recorded = read_baseline(file).checkpoints["dense"].recorded[KEY]
    key = Key.parse(KEY)
    assert [*evidence_problems(file.parent, "llama/dense", key, recorded)] == []
    assert measured((4.0, 5.0)).metrics == recorded.metrics


def test_a_record_that_was_copied_from_another_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "llama.yaml"
    write(path, fingerprint=weights())
    write(path, (4.5, 5.5), entry="w50", fingerprint=weights(1))
    text = path.read_text()
    start, middle = text.index("      wanda", text.index("recorded:")), None
    middle = text.index("      fingerprint:", start)
    better = re.sub(r" +weights_digest: .*\n", "", text[start:middle])
    place = text.index("      wanda", text.index("recorded:", middle))
    end = text.index("      fingerprint:", place)
    path.write_text(text[:place] + better + text[end:])
    (finding,) = audit_file(path).findings
    assert finding.warning
    assert finding.text == (
        f"{path}:{line_of(path, KEY, 3)}: warning: llama/w50, {KEY}: its evidence was "
        "measured of llama/dense, which has other weights: record this key again"
    )
    # A checkpoint that was renamed is no copy.
    path.write_text(text.replace("  w50:", "  w60:"))
    assert audit_file(path).findings == ()
