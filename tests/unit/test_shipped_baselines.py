"""Baseline files that ship: values follow from evidence or are those of a source."""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy
import pytest
from msgspec import UNSET

from pytest_pplguard.baselines import (
    baseline_paths,
    read_baseline,
    read_evidence,
    read_fingerprint,
)
from pytest_pplguard.values import (
    Recorded,
    RecordedFingerprint,
    SparsityGate,
    Tolerance,
)

from .test_checkpoints_fingerprint import digest_of

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "baselines"
RECORDED = {
    f"{path.stem}/{checkpoint.name} {key}": entry
    for path in baseline_paths(FOLDER)
    for checkpoint in read_baseline(path).checkpoints.values()
    for key, entry in checkpoint.recorded.items()
}
FINGERPRINTS = {
    f"{path.stem}/{checkpoint.name}": checkpoint.fingerprint
    for path in baseline_paths(FOLDER)
    for checkpoint in read_baseline(path).checkpoints.values()
    if checkpoint.fingerprint is not None
}
MEASURED = [
    pytest.param(entry, id=name)
    for name, entry in RECORDED.items()
    if entry.source.kind == "measured"
]


@pytest.mark.parametrize("recorded", MEASURED)
def test_values_follow_from_their_evidence(recorded: Recorded) -> None:
    evidence = read_evidence(FOLDER, recorded, where="shipped")
    nll = math.fsum(score.nll_sum for score in evidence.windows)
    scored = sum(score.scored for score in evidence.windows)
    if "kl_divergence" in recorded.metrics:
        assert recorded.units == {"tokens": scored}
        both = [(score.kl_sum, score.top1) for score in evidence.windows]
        kl = [kl for kl, _ in both if kl is not UNSET]
        top1 = [top1 for _, top1 in both if top1 is not UNSET]
        expected = {
            "kl_divergence": math.fsum(kl) / scored,
            "top1_agreement": sum(top1) / scored,
        }
    elif "tokens" in recorded.units:
        assert recorded.units == {"tokens": scored}
        expected = {"token_perplexity": math.exp(nll / scored)}
    else:
        expected = {
            "word_perplexity": math.exp(nll / recorded.units["words"]),
            "byte_perplexity": math.exp(nll / recorded.units["bytes"]),
            "bits_per_byte": nll / recorded.units["bytes"] / math.log(2),
        }
    assert recorded.metrics == pytest.approx(expected, rel=1e-12)


def test_every_measured_checkpoint_has_a_fingerprint() -> None:
    assert list(FINGERPRINTS) == [
        "demo/dense",
        "demo/wanda-50",
        "smollm2-135m/dense",
        "smollm2-135m/magnitude-50",
        "smollm2-135m/wanda-50",
        "smollm2-135m/wanda-2of4",
    ]


@pytest.mark.parametrize("name", FINGERPRINTS)
def test_fingerprints_are_those_of_their_evidence(name: str) -> None:
    fingerprint = read_fingerprint(FOLDER, FINGERPRINTS[name], where=name)
    text = (FOLDER / FINGERPRINTS[name].evidence).read_text(encoding="utf-8")
    assert json.loads(text)["checkpoint"] == name
    assert all(facts.bad == 0 for facts in fingerprint.tensors.values())


@pytest.mark.parametrize("name", ["demo/dense", "demo/wanda-50"])
def test_the_demos_fingerprints_are_those_of_the_shipped_weights(name: str) -> None:
    """Read by hand: a header's length, the header, then float16 numbers."""
    data = (ROOT / "pytest_pplguard" / name / "model.safetensors").read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:start])
    recorded: RecordedFingerprint = FINGERPRINTS[name]
    facts = read_fingerprint(FOLDER, recorded, where=name).tensors
    assert set(facts) == set(header) - {"__metadata__"}
    lines, zeros, weights = [], 0, 0
    for tensor in sorted(facts):
        first, last = header[tensor]["data_offsets"]
        values = numpy.frombuffer(data[start + first : start + last], "<f2")
        digest = digest_of(values.astype("<f4"))
        mask = hashlib.sha256(numpy.packbits(values != 0).tobytes()).hexdigest()[:32]
        assert facts[tensor].dtype == header[tensor]["dtype"] == "F16"
        assert list(facts[tensor].shape) == header[tensor]["shape"]
        assert (facts[tensor].values, facts[tensor].mask) == (digest, mask)
        assert facts[tensor].sum == pytest.approx(values.sum(dtype="f8"), abs=1e-3)
        lines.append(f"{tensor} {header[tensor]['shape']} {digest}\n")
        if "_proj." in tensor:
            weights += values.size
            zeros += int((values == 0).sum())
    sha = hashlib.sha256("".join(lines).encode()).hexdigest()
    assert recorded.digest == f"sha256:{sha}"
    assert (recorded.zeros, recorded.weights) == (zeros, weights)


@pytest.mark.parametrize("path", baseline_paths(FOLDER), ids=lambda path: path.stem)
def test_no_file_names_a_machine(path: Path) -> None:
    for checkpoint in read_baseline(path).checkpoints.values():
        assert checkpoint.path is None or not Path(checkpoint.path).is_absolute()


def test_every_evidence_file_belongs_to_an_entry() -> None:
    named = {entry.evidence for entry in RECORDED.values()} - {None}
    named |= {fingerprint.evidence for fingerprint in FINGERPRINTS.values()}
    on_disk = {path.relative_to(FOLDER).as_posix() for path in FOLDER.rglob("*.json")}
    assert on_disk == named


def test_evidence_is_strict_json() -> None:
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    for path in FOLDER.rglob("*.json"):
        json.loads(path.read_text(encoding="utf-8"), parse_constant=refuse)


# --------------------------------------------------------------------------- published

# README of locuslab/wanda, "LLaMA-2 results"; its code takes the model's own 4,096.
WANDA = """
| sparsity | method    | llama-2-7b | llama-2-13b | llama-2-70b |
| -        | dense     | 5.12       | 4.57        | 3.12        |
| 50       | magnitude | 14.89      | 6.37        | 4.98        |
| 50       | sparsegpt | 6.51       | 5.63        | 3.98        |
| 50       | wanda     | 6.42       | 5.56        | 3.98        |
| 4of8     | magnitude | 16.48      | 6.76        | 5.58        |
| 4of8     | sparsegpt | 8.12       | 6.60        | 4.59        |
| 4of8     | wanda     | 7.97       | 6.55        | 4.47        |
| 2of4     | magnitude | 54.59      | 8.33        | 6.33        |
| 2of4     | sparsegpt | 10.17      | 8.32        | 5.40        |
| 2of4     | wanda     | 11.02      | 8.27        | 5.16        |
"""
# README of OpenGVLab/LLMPrune-BESA; its code sets the window to 2,048.
BESA = """
| sparsity | method    | llama-1-7b | llama-2-7b | llama-2-13b | llama-2-70b |
| -        | dense     | 5.68       | 5.47       | 4.88        | 3.31        |
| 50       | sparsegpt | 7.22       | 6.99       | 6.02        | 4.25        |
| 50       | wanda     | 7.26       | 6.92       | 5.97        | 4.22        |
"""
OTHERS = {
    # The Wanda paper, as others quote it.
    "llama-1-7b/wanda-2of4": ("wanda/wikitext2:2048", "11.53"),
    # The run that the project's question came from.
    "llama-2-7b/wanda-50-origin": ("wanda/wikitext2:4096", "6.306"),
    # SparseGPT paper, table 1, as others quote it.
    "opt/125m-dense": ("wanda/wikitext2:2048", "27.66"),
    "opt/1.3b-dense": ("wanda/wikitext2:2048", "14.62"),
    "opt/6.7b-dense": ("wanda/wikitext2:2048", "10.86"),
    "opt/125m-sparsegpt-50": ("wanda/wikitext2:2048", "36.85"),
    "opt/1.3b-sparsegpt-50": ("wanda/wikitext2:2048", "17.46"),
    "opt/6.7b-sparsegpt-50": ("wanda/wikitext2:2048", "11.55"),
}
PUBLISHED = (
    "llama-1-7b",
    "llama-2-13b",
    "llama-2-70b",
    "llama-2-7b",
    "opt",
)


def table(text: str, window: int) -> dict[str, str]:
    """``{"FILE/NAME KEY": printed value}`` of a source's table."""
    head, *rows = (
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in text.strip().splitlines()
    )
    return {
        f"{file}/{method if sparsity == '-' else f'{method}-{sparsity}'} "
        f"wanda/wikitext2:{window}": value
        for sparsity, method, *values in rows
        for file, value in zip(head[2:], values, strict=True)
    }


def test_published_values_are_those_of_their_sources() -> None:
    expected = {
        **table(WANDA, 4096),
        **table(BESA, 2048),
        **{f"{name} {key}": value for name, (key, value) in OTHERS.items()},
        "llama-2-7b/dense lm-eval/wikitext:4096": "8.71",
        "llama-2-7b/wanda-50-origin lm-eval/wikitext:4096": "11.22",
    }
    shipped = {
        name: f"{value:.{entry.source.digits}f}"
        for name, entry in RECORDED.items()
        if entry.source.kind == "published"
        for value in entry.metrics.values()
    }
    assert shipped == expected


@pytest.mark.parametrize("stem", PUBLISHED)
def test_published_files_gate_what_can_be_compared(stem: str) -> None:
    """All but the lm-eval value, whose prefix tokens are not known."""
    for name, entry in read_baseline(FOLDER / f"{stem}.yaml").checkpoints.items():
        keys = [key for key in entry.recorded if key.startswith("wanda/")]
        assert entry.gates.metrics == {
            key: {"token_perplexity": Tolerance(rel=0.03)} for key in keys
        }
        pruned = SparsityGate(fraction=0.5, abs=0.001)
        assert entry.gates.sparsity == (None if name.endswith("dense") else pruned)
        for recorded in entry.recorded.values():
            assert recorded.source.kind == "published"
            assert recorded.windows_digest is None


def test_what_was_only_quoted_says_so() -> None:
    reported = {
        name.split()[0]
        for name, entry in RECORDED.items()
        if "(reported)" in (entry.source.reference or "")
    }
    quoted = ("llama-1-7b/dense", "llama-1-7b/wanda-50", "llama-1-7b/sparsegpt-50")
    assert reported == {*OTHERS, *quoted}


def test_the_published_files_are_these() -> None:
    kinds = {
        path.stem
        for path in baseline_paths(FOLDER)
        for entry in read_baseline(path).checkpoints.values()
        if any(record.source.kind == "published" for record in entry.recorded.values())
    }
    assert kinds == set(PUBLISHED)


# ------------------------------------------------------------------- side by side here


def pytest_here(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        env=os.environ | {"COLUMNS": "80"},
    )


def test_without_a_checkpoint_all_are_deselected_by_one_line() -> None:
    done = pytest_here("baselines")
    lines = [line for line in done.stdout.splitlines() if "pplguard: " in line]
    assert done.returncode == pytest.ExitCode.NO_TESTS_COLLECTED
    assert len(lines) == 1
    assert re.fullmatch(
        r"pplguard: \d+ gates deselected: no checkpoint given \(--ppl-model\)", lines[0]
    )


def test_the_demo_is_found_among_them() -> None:
    done = pytest_here("baselines", "--ppl-model=demo", "--collect-only", "-q")
    assert done.returncode == 0, done.stdout
    nodes = [line for line in done.stdout.splitlines() if "::" in line]
    assert len(nodes) == 11
    assert all(node.startswith("baselines/demo.yaml::") for node in nodes)


def test_a_bare_path_is_ambiguous_in_the_folder_and_is_told_so(tmp_path: Path) -> None:
    done = pytest_here("baselines", f"--ppl-model={tmp_path}", "--collect-only")
    assert done.returncode == pytest.ExitCode.USAGE_ERROR
    assert (
        f"--ppl-model {tmp_path}: no checkpoints have this `path:`; say which it is, "
        f"for example --ppl-model demo/dense={tmp_path} (candidates: demo/dense, "
    ) in done.stderr
