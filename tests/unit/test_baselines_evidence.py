"""Tests of evidence files: names by content, exact numbers, and every refusal."""

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

from pytest_pplguard.baselines import encode_evidence, evidence, read_evidence
from pytest_pplguard.errors import BaselineError, UsageError
from pytest_pplguard.values import Measurement, Recorded, Source, WindowScore

WINDOWS = "sha256:" + "1" * 64
CORPUS = "sha256:" + "2" * 64
WHERE = "m.yaml:7: checkpoint a, recorded, wanda/wikitext2:4096"
WAY_OUT = "restore it from version control or re-record with `pplguard update`"


def a_measurement(**changes: Any) -> Measurement:
    measurement = Measurement(
        key="wanda/wikitext2:4096",
        metrics={"token_perplexity": 6.3062154},
        units={"tokens": 12},
        windows=2,
        windows_digest=WINDOWS,
        corpus_digest=CORPUS,
        protocol={"window": 4096, "tail": "dropped", "bos": None},
        evidence=(WindowScore(0.1 + 0.2, 6), WindowScore(1e-5, 6, 1)),
        environment={},
        seconds=1.0,
    )
    return msgspec.structs.replace(measurement, **changes)


def stored(folder: Path, measurement: Measurement) -> tuple[Path, Recorded]:
    name, content = encode_evidence("m/a", measurement)
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path, recorded(measurement, name)


def recorded(measurement: Measurement, name: str) -> Recorded:
    return Recorded(
        metrics=measurement.metrics,
        source=Source(kind="measured"),
        windows=measurement.windows,
        windows_digest=WINDOWS,
        corpus_digest=CORPUS,
        evidence=name,
    )


def refusal(folder: Path, record: Recorded) -> str:
    with pytest.raises(BaselineError) as caught:
        read_evidence(folder, record, where=WHERE)
    return str(caught.value)


def rewritten(path: Path, content: bytes) -> Path:
    """``content`` under the name that fits it, beside ``path``."""
    digest = hashlib.sha256(content).hexdigest()[:12]
    new = path.with_name(f"x-{digest}.json")
    new.write_bytes(content)
    return new


def test_the_file_is_strict_json_with_a_window_a_line() -> None:
    name, content = encode_evidence("llama-2-7b/wanda-50", a_measurement())
    digest = hashlib.sha256(content).hexdigest()[:12]
    assert name == f"llama-2-7b/wanda-50/wanda-wikitext2-4096-{digest}.json"
    assert content.decode() == (
        "{\n"
        '"schema": 1,\n'
        '"checkpoint": "llama-2-7b/wanda-50",\n'
        '"key": "wanda/wikitext2:4096",\n'
        f'"windows_digest": "{WINDOWS}",\n'
        f'"corpus_digest": "{CORPUS}",\n'
        '"protocol": {"window": 4096, "tail": "dropped", "bos": null},\n'
        '"units": {"tokens": 12},\n'
        '"metrics": {"token_perplexity": 6.3062154},\n'
        '"windows": [\n'
        '{"nll_sum": 0.30000000000000004, "scored": 6, "page": null},\n'
        '{"nll_sum": 1e-05, "scored": 6, "page": 1}\n'
        "]\n"
        "}\n"
    )


def test_a_divergence_is_written_and_read_where_there_is_one(tmp_path: Path) -> None:
    score = WindowScore(0.5, 6, kl_sum=0.25, top1=5, reference_nll=0.1 + 0.2)
    measurement = a_measurement(
        key="kl/wikitext2:4096",
        metrics={"kl_divergence": 0.25 / 6, "top1_agreement": 5 / 6},
        windows=1,
        evidence=(score,),
    )
    path, record = stored(tmp_path, measurement)
    assert path.read_text(encoding="utf-8").endswith(
        '"windows": [\n'
        '{"nll_sum": 0.5, "scored": 6, "page": null, "kl_sum": 0.25, "top1": 5, '
        '"reference_nll": 0.30000000000000004}\n'
        "]\n}\n"
    )
    assert read_evidence(tmp_path, record, where=WHERE).windows == (score,)


def test_key_characters_become_dashes() -> None:
    measurement = a_measurement(key="lm-eval/wikitext+demo:256:first40")
    name, _ = encode_evidence("m/a", measurement)
    assert name.startswith("m/a/lm-eval-wikitext-demo-256-first40-")


def test_a_wrong_checkpoint_name() -> None:
    with pytest.raises(UsageError):
        encode_evidence("a", a_measurement())


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"metrics": {"token_perplexity": math.nan}}, "token_perplexity is nan"),
        ({"evidence": (WindowScore(math.inf, 6),)}, "nll_sum of window 0 is inf"),
        (
            {"evidence": (WindowScore(1.0, 6, kl_sum=math.inf),)},
            "kl_sum of window 0 is inf",
        ),
        (
            {"evidence": (WindowScore(1.0, 6, reference_nll=math.nan),)},
            "reference_nll of window 0 is nan",
        ),
        ({"protocol": {"p": -math.inf}}, "protocol.p is -inf"),
        ({"environment": {"scale": math.nan}}, "environment.scale is nan"),
    ],
)
def test_numbers_that_are_not_finite(changes: dict[str, Any], what: str) -> None:
    with pytest.raises(BaselineError) as caught:
        encode_evidence("m/a", a_measurement(**changes))
    assert str(caught.value) == (
        f"m/a, wanda/wikitext2:4096: {what}: a number that is not finite cannot be "
        "recorded; measure again with `pplguard measure` and look at the window it "
        "names"
    )


SCORES = st.builds(
    WindowScore,
    nll_sum=st.floats(allow_nan=False, allow_infinity=False),
    scored=st.integers(1, 10**6),
    page=st.none() | st.integers(0, 10**4),
)


@settings(max_examples=100, deadline=None)
@given(st.lists(SCORES, max_size=20))
def test_every_double_comes_back(
    tmp_path_factory: pytest.TempPathFactory, scores: list[WindowScore]
) -> None:
    folder = tmp_path_factory.mktemp("evidence")
    measurement = a_measurement(evidence=tuple(scores), windows=len(scores))
    _, record = stored(folder, measurement)
    evidence = read_evidence(folder, record, where=WHERE)
    assert evidence.windows == measurement.evidence
    assert evidence.metrics == measurement.metrics
    assert evidence.units == measurement.units
    assert evidence.protocol == measurement.protocol
    assert (evidence.checkpoint, evidence.key) == ("m/a", measurement.key)


def test_no_evidence_recorded(tmp_path: Path) -> None:
    record = Recorded(metrics={}, source=Source(kind="published"))
    assert refusal(tmp_path, record) == (
        f"{WHERE}: has no evidence file: record it with `pplguard update`"
    )


def test_a_missing_file(tmp_path: Path) -> None:
    path, record = stored(tmp_path, a_measurement())
    path.unlink()
    assert refusal(tmp_path, record) == (
        f"{WHERE}: evidence {path}: the file does not exist: {WAY_OUT}"
    )


@pytest.mark.parametrize("harm", ["cut", "changed", "line ends"])
def test_content_that_is_not_what_the_name_says(tmp_path: Path, harm: str) -> None:
    path, record = stored(tmp_path, a_measurement())
    content = path.read_bytes()
    harmed = {
        "cut": content[:-20],
        "changed": content.replace(b"0.3", b"0.4"),
        "line ends": content.replace(b"\n", b"\r\n"),
    }[harm]
    path.write_bytes(harmed)
    digest = hashlib.sha256(harmed).hexdigest()[:12]
    assert refusal(tmp_path, record) == (
        f"{WHERE}: evidence {path}: its content (sha256 {digest}) is not what its name "
        "says: it was changed, cut short, or its line ends were converted (mark it "
        f"`-text` in .gitattributes): {WAY_OUT}"
    )


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
            {"windows": []},
            f"it holds 0 windows, recorded are 2: {WAY_OUT}",
        ),
        (
            {"windows_digest": CORPUS},
            f"its windows_digest is {CORPUS}, recorded is {WINDOWS}: {WAY_OUT}",
        ),
        (
            {"corpus_digest": WINDOWS},
            f"its corpus_digest is {WINDOWS}, recorded is {CORPUS}: {WAY_OUT}",
        ),
        (
            {"extra": 1},
            "not an evidence file: Object contains unknown field `extra`: " + WAY_OUT,
        ),
        (
            {"metrics": {"token_perplexity": "6.3"}},
            "not an evidence file: Expected `float`, got `str` - at "
            "`$.metrics[...]`: " + WAY_OUT,
        ),
    ],
)
def test_evidence_of_something_else(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    path, record = stored(tmp_path, a_measurement())
    content = json.dumps({**json.loads(path.read_bytes()), **changes}).encode()
    path = rewritten(path, content)
    record = msgspec.structs.replace(record, evidence=f"m/a/{path.name}")
    assert refusal(tmp_path, record) == f"{WHERE}: evidence {path}: {message}"


@pytest.mark.parametrize("number", ["NaN", "Infinity", "1e999"])
def test_numbers_that_are_not_finite_are_not_read(tmp_path: Path, number: str) -> None:
    path, record = stored(tmp_path, a_measurement())
    content = path.read_text().replace("0.30000000000000004", number).encode()
    path = rewritten(path, content)
    record = msgspec.structs.replace(record, evidence=f"m/a/{path.name}")
    message = refusal(tmp_path, record)
    assert message.startswith(f"{WHERE}: evidence {path}: not an evidence file: ")
    assert message.endswith(WAY_OUT)


@pytest.mark.parametrize("name", ["../m/x.json", "/etc/x.json", "m\\x.json", "m/x.txt"])
def test_paths_that_leave_the_folder(tmp_path: Path, name: str) -> None:
    record = recorded(a_measurement(), name)
    assert refusal(tmp_path, record) == (
        f"{WHERE}: evidence {tmp_path / name}: the path leaves the baseline folder: "
        f"{WAY_OUT}"
    )


def test_links_that_leave_the_folder_or_go_in_circles(tmp_path: Path) -> None:
    folder = tmp_path / "baselines"
    path, record = stored(folder, a_measurement())
    outside = tmp_path / path.name
    path.rename(outside)
    path.symlink_to(outside)
    assert refusal(folder, record) == (
        f"{WHERE}: evidence {path}: a symbolic link leads out of the baseline folder: "
        f"{WAY_OUT}"
    )
    path.unlink()
    path.symlink_to(path)
    assert refusal(folder, record).startswith(f"{WHERE}: evidence {path}: cannot be ")


def test_a_file_that_is_too_large(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, record = stored(tmp_path, a_measurement())
    monkeypatch.setattr(evidence, "MAX_BYTES", 100)
    assert refusal(tmp_path, record) == (
        f"{WHERE}: evidence {path}: larger than 0 MB: {WAY_OUT}"
    )
