"""Tests of a fingerprint's evidence: a tensor a line, exact, and every refusal."""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_pplguard.baselines import (
    encode_fingerprint,
    evidence,
    read_fingerprint,
)
from pytest_pplguard.errors import BaselineError, UsageError
from pytest_pplguard.values import Fingerprint, RecordedFingerprint, TensorFacts

DATE = "2026-11-25"
WHERE = "m.yaml:7: checkpoint a, recorded, fingerprint"
WAY_OUT = "restore it from version control or re-record with `pplguard update`"
UP = "model.layers.0.mlp.up_proj.weight"
NORM = "model.norm.weight"


def a_fingerprint(**changes: Any) -> Fingerprint:
    fingerprint = Fingerprint(
        tensors={
            UP: TensorFacts("F32", (2, 3), "ab" * 16, 3, "cd" * 16, 0.5, 1.25, 1.0),
            NORM: TensorFacts("BF16", (3,), "ef" * 16, 1, "01" * 16, 2.0, 1.5, 1.0, 2),
        },
        linear=(UP,),
        config={"rope_theta": 10000.0, "rope_scaling": None},
        tokenizer={"vocabulary": "12" * 16},
    )
    return msgspec.structs.replace(fingerprint, **changes)


def expected_digest() -> str:
    """SHA-256 over names, shapes and values, in the names' order."""
    lines = f"{UP} [2, 3] {'ab' * 16}\n{NORM} [3] {'ef' * 16}\n"
    return "sha256:" + hashlib.sha256(lines.encode()).hexdigest()


def stored(
    folder: Path, fingerprint: Fingerprint | None = None
) -> tuple[Path, RecordedFingerprint]:
    recorded, content = encode_fingerprint(
        "m/a", fingerprint or a_fingerprint(), date=DATE
    )
    path = folder / recorded.evidence
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path, recorded


def refusal(folder: Path, recorded: RecordedFingerprint) -> str:
    with pytest.raises(BaselineError) as caught:
        read_fingerprint(folder, recorded, where=WHERE)
    return str(caught.value)


def rewritten(
    path: Path, recorded: RecordedFingerprint, content: bytes
) -> tuple[Path, RecordedFingerprint]:
    """``content`` under the name that fits it, beside ``path``."""
    digest = hashlib.sha256(content).hexdigest()[:12]
    new = path.with_name(f"x-{digest}.json")
    new.write_bytes(content)
    return new, msgspec.structs.replace(recorded, evidence=f"m/a/{new.name}")


def test_the_file_is_strict_json_with_a_tensor_a_line() -> None:
    recorded, content = encode_fingerprint("m/a", a_fingerprint(), date=DATE)
    assert content.decode() == (
        "{\n"
        '"schema": 1,\n'
        '"checkpoint": "m/a",\n'
        f'"digest": "{expected_digest()}",\n'
        '"config": {"rope_theta": 10000.0, "rope_scaling": null},\n'
        f'"tokenizer": {{"vocabulary": "{"12" * 16}"}},\n'
        '"linear": [\n'
        f'"{UP}"\n'
        "],\n"
        '"tensors": {\n'
        f'"{UP}": {{"dtype": "F32", "shape": [2, 3], "values": "{"ab" * 16}", '
        f'"zeros": 3, "mask": "{"cd" * 16}", "sum": 0.5, "norm": 1.25, "peak": 1.0, '
        '"bad": 0, "parity": 0},\n'
        f'"{NORM}": {{"dtype": "BF16", "shape": [3], "values": "{"ef" * 16}", '
        f'"zeros": 1, "mask": "{"01" * 16}", "sum": 2.0, "norm": 1.5, "peak": 1.0, '
        '"bad": 2, "parity": 0}\n'
        "}\n"
        "}\n"
    )
    name = hashlib.sha256(content).hexdigest()[:12]
    assert recorded == RecordedFingerprint(
        digest=expected_digest(),
        tensors=2,
        linear=1,
        weights=6,
        zeros=3,
        evidence=f"m/a/fingerprint-{name}.json",
        date=DATE,
    )
    assert recorded.share == 0.5


def test_nothing_to_count_and_nothing_known(tmp_path: Path) -> None:
    packed = Fingerprint({"w": TensorFacts("I32", (4,), "ab" * 16)})
    path, recorded = stored(tmp_path, packed)
    assert json.loads(path.read_bytes())["linear"] == []
    assert (recorded.linear, recorded.weights, recorded.zeros) == (0, 0, 0)
    assert recorded.share == 0.0
    assert read_fingerprint(tmp_path, recorded, where=WHERE) == packed


def test_a_wrong_checkpoint_name() -> None:
    with pytest.raises(UsageError):
        encode_fingerprint("a", a_fingerprint(), date=DATE)


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"config": {"rope": {"factors": [1.0, math.nan]}}}, "config.rope.factors.1"),
        (
            {"tensors": {UP: TensorFacts("F32", (1,), "ab", sum=math.nan)}},
            f"sum of {UP}",
        ),
    ],
)
def test_numbers_that_are_not_finite(changes: dict[str, Any], what: str) -> None:
    with pytest.raises(BaselineError) as caught:
        encode_fingerprint("m/a", a_fingerprint(**changes), date=DATE)
    assert str(caught.value) == (
        f"m/a, fingerprint: {what} is nan: a number that is not finite cannot be "
        "recorded; correct the checkpoint"
    )


FINITE = st.floats(allow_nan=False, allow_infinity=False)
DIGESTS = st.text("0123456789abcdef", min_size=32, max_size=32)
FACTS = st.builds(
    TensorFacts,
    dtype=st.sampled_from(["F32", "BF16", "I32"]),
    shape=st.lists(st.integers(0, 2**40), max_size=3).map(tuple),
    values=DIGESTS,
    zeros=st.integers(0, 2**50),
    mask=DIGESTS,
    sum=FINITE,
    norm=FINITE,
    peak=FINITE,
    bad=st.integers(0, 2**50),
)
JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | FINITE | st.text(),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3)
    ),
    max_leaves=6,
)


@st.composite
def fingerprints(draw: st.DrawFn) -> Fingerprint:
    tensors = draw(st.dictionaries(st.text(min_size=1), FACTS, min_size=1, max_size=8))
    return Fingerprint(
        tensors=tensors,
        linear=tuple(name for name in tensors if draw(st.booleans())),
        config=draw(st.dictionaries(st.text(), JSON_VALUES, max_size=3)),
        tokenizer=draw(st.dictionaries(st.text(), DIGESTS, max_size=3)),
    )


@settings(max_examples=100, deadline=None)
@given(fingerprints())
def test_every_fingerprint_comes_back(
    tmp_path_factory: pytest.TempPathFactory, fingerprint: Fingerprint
) -> None:
    folder = tmp_path_factory.mktemp("evidence")
    _, recorded = stored(folder, fingerprint)
    again = read_fingerprint(folder, recorded, where=WHERE)
    assert again == fingerprint
    assert list(again.tensors) == list(fingerprint.tensors)


def test_twenty_thousand_tensors(tmp_path: Path) -> None:
    names = [f"model.layers.{i}.mlp.experts.{i}.up_proj.weight" for i in range(20_000)]
    many = Fingerprint(
        {name: TensorFacts("BF16", (64, 64), "ab" * 16, 7) for name in names},
        linear=tuple(names),
    )
    _, recorded = stored(tmp_path, many)
    assert (recorded.tensors, recorded.zeros) == (20_000, 140_000)
    assert read_fingerprint(tmp_path, recorded, where=WHERE) == many


def test_a_missing_file(tmp_path: Path) -> None:
    path, recorded = stored(tmp_path)
    path.unlink()
    assert refusal(tmp_path, recorded) == (
        f"{WHERE}: evidence {path}: the file does not exist: {WAY_OUT}"
    )


def test_content_that_is_not_what_the_name_says(tmp_path: Path) -> None:
    path, recorded = stored(tmp_path)
    changed = path.read_bytes().replace(b'"zeros": 3', b'"zeros": 2')
    path.write_bytes(changed)
    digest = hashlib.sha256(changed).hexdigest()[:12]
    assert refusal(tmp_path, recorded) == (
        f"{WHERE}: evidence {path}: its content (sha256 {digest}) is not what its name "
        "says: it was changed, cut short, or its line ends were converted (mark it "
        f"`-text` in .gitattributes): {WAY_OUT}"
    )


OTHER = "sha256:" + "5" * 64


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"schema": 2},
            "was written by a newer pytest-pplguard (schema 2, this version reads 1): "
            "upgrade",
        ),
        ({"schema": 0}, f"schema 0 never existed: {WAY_OUT}"),
        (
            {"extra": 1},
            "not an evidence file: Object contains unknown field `extra`: " + WAY_OUT,
        ),
        (
            {"linear": ["lm_head.weight"]},
            f"it counts zeros in lm_head.weight, which it does not hold: {WAY_OUT}",
        ),
        (
            {"digest": OTHER},
            f"its digest is {OTHER}, its tensors give {expected_digest()}: {WAY_OUT}",
        ),
        (
            {"linear": []},
            f"its number of linear tensors is 0, recorded is 1: {WAY_OUT}",
        ),
        (
            {"linear": [NORM]},
            f"its number of weights is 3, recorded is 6: {WAY_OUT}",
        ),
    ],
)
def test_evidence_of_something_else(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    path, recorded = stored(tmp_path)
    content = json.dumps({**json.loads(path.read_bytes()), **changes}).encode()
    path, recorded = rewritten(path, recorded, content)
    assert refusal(tmp_path, recorded) == f"{WHERE}: evidence {path}: {message}"


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("digest", OTHER, f"its digest is {expected_digest()}, recorded is {OTHER}"),
        ("tensors", 3, "its number of tensors is 2, recorded is 3"),
        ("zeros", 2, "its number of zeros is 3, recorded is 2"),
    ],
)
def test_what_is_recorded_is_of_something_else(
    tmp_path: Path, field: str, value: Any, message: str
) -> None:
    path, recorded = stored(tmp_path)
    recorded = msgspec.structs.replace(recorded, **{field: value})
    assert refusal(tmp_path, recorded) == (
        f"{WHERE}: evidence {path}: {message}: {WAY_OUT}"
    )


@pytest.mark.parametrize("number", ["NaN", "Infinity", "1e999"])
def test_numbers_that_are_not_finite_are_not_read(tmp_path: Path, number: str) -> None:
    path, recorded = stored(tmp_path)
    content = path.read_text().replace("1.25", number).encode()
    path, recorded = rewritten(path, recorded, content)
    message = refusal(tmp_path, recorded)
    assert message.startswith(f"{WHERE}: evidence {path}: not an evidence file: ")
    assert message.endswith(WAY_OUT)


def test_paths_and_links_that_leave_the_folder(tmp_path: Path) -> None:
    folder = tmp_path / "baselines"
    path, recorded = stored(folder)
    outside = msgspec.structs.replace(recorded, evidence="../x.json")
    assert refusal(folder, outside) == (
        f"{WHERE}: evidence {folder / '../x.json'}: the path leaves the baseline "
        f"folder: {WAY_OUT}"
    )
    target = tmp_path / path.name
    path.rename(target)
    path.symlink_to(target)
    assert refusal(folder, recorded) == (
        f"{WHERE}: evidence {path}: a symbolic link leads out of the baseline folder: "
        f"{WAY_OUT}"
    )


def test_a_file_that_is_too_large(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, recorded = stored(tmp_path)
    monkeypatch.setattr(evidence, "MAX_BYTES", 100)
    assert refusal(tmp_path, recorded) == (
        f"{WHERE}: evidence {path}: larger than 0 MB: {WAY_OUT}"
    )
