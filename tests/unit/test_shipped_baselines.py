"""Baseline files that ship: values follow from evidence, paths name no machine."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from pytest_pplguard.baselines import baseline_paths, read_baseline, read_evidence
from pytest_pplguard.values import Recorded

FOLDER = Path(__file__).parents[2] / "baselines"
RECORDED = [
    pytest.param(entry, id=f"{path.stem}/{checkpoint.name} {key}")
    for path in baseline_paths(FOLDER)
    for checkpoint in read_baseline(path).checkpoints.values()
    for key, entry in checkpoint.recorded.items()
]


@pytest.mark.parametrize("recorded", RECORDED)
def test_values_follow_from_their_evidence(recorded: Recorded) -> None:
    evidence = read_evidence(FOLDER, recorded, where="shipped")
    nll = math.fsum(score.nll_sum for score in evidence.windows)
    scored = sum(score.scored for score in evidence.windows)
    if "tokens" in recorded.units:
        assert recorded.units == {"tokens": scored}
        expected = {"token_perplexity": math.exp(nll / scored)}
    else:
        expected = {
            "word_perplexity": math.exp(nll / recorded.units["words"]),
            "byte_perplexity": math.exp(nll / recorded.units["bytes"]),
            "bits_per_byte": nll / recorded.units["bytes"] / math.log(2),
        }
    assert recorded.metrics == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("path", baseline_paths(FOLDER), ids=lambda path: path.stem)
def test_no_file_names_a_machine(path: Path) -> None:
    for checkpoint in read_baseline(path).checkpoints.values():
        assert checkpoint.path is None or not Path(checkpoint.path).is_absolute()


def test_every_evidence_file_belongs_to_an_entry() -> None:
    named = {
        entry.evidence
        for path in baseline_paths(FOLDER)
        for checkpoint in read_baseline(path).checkpoints.values()
        for entry in checkpoint.recorded.values()
    }
    on_disk = {path.relative_to(FOLDER).as_posix() for path in FOLDER.rglob("*.json")}
    assert on_disk == named


def test_evidence_is_strict_json() -> None:
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    for path in FOLDER.rglob("*.json"):
        json.loads(path.read_text(encoding="utf-8"), parse_constant=refuse)
