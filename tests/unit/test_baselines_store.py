"""Tests that records survive other writers, kills, links and full disks."""

from __future__ import annotations

import datetime
import errno
import math
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from textwrap import dedent
from typing import Any

import filelock
import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pytest_pplguard.baselines import (
    Change,
    read_baseline,
    read_evidence,
    read_fingerprint,
    record,
    store,
)
from pytest_pplguard.baselines.emit import flow
from pytest_pplguard.errors import BaselineError, UsageError
from pytest_pplguard.values import (
    BaselineFile,
    DocumentResult,
    Fingerprint,
    Measurement,
    Recorded,
    Recording,
    Source,
    SparsityGate,
    TensorFacts,
    Tolerance,
    WindowScore,
)

TODAY = datetime.date(2026, 11, 23)
LATER = datetime.date(2027, 1, 2)
DIGEST = "sha256:" + "1" * 64
KEY = "wanda/wikitext2:4096"
TASK = "lm-eval/piqa:2048"
LM_EVAL = "lm-eval/wikitext+demo:256"
HALF = SparsityGate(fraction=0.5, abs=0.001)
UP = "model.layers.0.mlp.up_proj.weight"


def measured(value: float = 5.5, key: str = KEY, **changes: Any) -> Measurement:
    measurement = Measurement(
        key=key,
        metrics={"token_perplexity": value},
        units={"tokens": 12},
        windows=2,
        windows_digest=DIGEST,
        corpus_digest=DIGEST,
        protocol={"window": 4096},
        evidence=(WindowScore(value, 6), WindowScore(1e-5, 6, 1)),
        environment={"dtype": "float32"},
        seconds=1.0,
    )
    return msgspec.structs.replace(measurement, **changes)


def recording(
    file: Path, value: float = 5.5, key: str = KEY, entry: str = "dense", **more: Any
) -> Recording:
    more = {"base": "org/m", **more}
    return Recording(str(file), entry, measured(value, key), **more)


def checked(file: Path) -> BaselineFile:
    """The file, once all evidence it names is there and fits."""
    baseline = read_baseline(file)
    for entry in baseline.checkpoints.values():
        for key, recorded in entry.recorded.items():
            if recorded.evidence is not None:
                evidence = read_evidence(file.parent, recorded, where=key)
                assert evidence.metrics == recorded.metrics
        if entry.fingerprint is not None:
            read_fingerprint(file.parent, entry.fingerprint, where=entry.name)
    return baseline


def printed(number: int = 0, **facts: Any) -> Fingerprint:
    """A fingerprint of weights that ``number`` tells from others."""
    tensor = TensorFacts("F32", (4, 4), f"{number:032x}", 8, "cd" * 16, 0.5, 1.5, 1.0)
    return Fingerprint({UP: msgspec.structs.replace(tensor, **facts)}, linear=(UP,))


def evidence_files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*.json")}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "baselines" / "m.yaml"


def test_a_new_file(file: Path) -> None:
    changes = record([recording(file, path="out/m", sparsity=HALF)], today=TODAY)
    recorded = checked(file).checkpoints["dense"].recorded[KEY]
    assert file.read_text() == dedent(
        f"""\
        schema: 1
        model: org/m
        checkpoints:
          dense:
            path: out/m
            gates:
              wanda/wikitext2:4096: {{token_perplexity: {{rel: 0.005}}}}
              sparsity: {{fraction: 0.5, abs: 0.001}}
            recorded:
              wanda/wikitext2:4096:
                token_perplexity: 5.5
                windows: 2
                units: {{tokens: 12}}
                windows_digest: {DIGEST}
                corpus_digest: {DIGEST}
                evidence: {recorded.evidence}
                source: {{kind: measured}}
                first: {{token_perplexity: 5.5, date: 2026-11-23}}
                environment: {{dtype: float32}}
        """
    )
    assert changes == [
        Change(
            file=str(file),
            checkpoint="dense",
            key=KEY,
            metric="token_perplexity",
            old=None,
            new=5.5,
            first=5.5,
            added_gates=(
                f"{KEY}: {{token_perplexity: {{rel: 0.005}}}}",
                "sparsity: {fraction: 0.5, abs: 0.001}",
            ),
        )
    ]
    assert file.stat().st_mode & 0o777 == 0o666 & ~current_umask()
    assert sorted(path.name for path in file.parent.iterdir()) == [
        ".m.yaml.lock",
        "m",
        "m.yaml",
    ]


def current_umask() -> int:
    umask = os.umask(0)
    os.umask(umask)
    return umask


def test_recording_again_keeps_the_first_value_and_drops_old_evidence(
    file: Path,
) -> None:
    record([recording(file)], today=TODAY)
    before = evidence_files(file.parent)
    (change,) = record([recording(file, 5.75)], today=LATER)
    recorded = checked(file).checkpoints["dense"].recorded[KEY]
    assert recorded.first == {"token_perplexity": 5.5, "date": "2026-11-23"}
    assert (change.old, change.new, change.first) == (5.5, 5.75, 5.5)
    assert change.added_gates == ()
    assert evidence_files(file.parent) == {recorded.evidence}
    assert before.isdisjoint({recorded.evidence})


def test_recording_the_same_again_changes_nothing(file: Path) -> None:
    record([recording(file)], today=TODAY)
    evidence = file.parent / next(iter(evidence_files(file.parent)))
    before = [(path.read_bytes(), path.stat().st_ino) for path in (file, evidence)]
    record([recording(file)], today=LATER)
    after = [(path.read_bytes(), path.stat().st_ino) for path in (file, evidence)]
    assert before == after


def test_two_records_of_one_call_share_what_they_add(file: Path) -> None:
    changes = record(
        [
            recording(file, sparsity=HALF),
            recording(file, 8.0, LM_EVAL, sparsity=HALF),
            recording(file, 6.0, sparsity=HALF),
        ],
        today=TODAY,
    )
    entry = checked(file).checkpoints["dense"]
    assert [change.added_gates for change in changes] == [
        (
            f"{KEY}: {{token_perplexity: {{rel: 0.005}}}}",
            "sparsity: {fraction: 0.5, abs: 0.001}",
        ),
        (f"{LM_EVAL}: {{token_perplexity: {{rel: 0.005}}}}",),
        (),
    ]
    assert [change.old for change in changes] == [None, None, 5.5]
    assert entry.recorded[KEY].metrics == {"token_perplexity": 6.0}
    assert len(evidence_files(file.parent)) == 2


def test_default_gates_only_where_there_is_none(file: Path) -> None:
    file.parent.mkdir()
    file.write_text(
        "schema: 1\nmodel: m\ncheckpoints:\n  dense:\n    gates:\n"
        f"      {KEY}: {{token_perplexity: {{rel: 0.1}}}}\n"
    )
    metrics = {"word_perplexity": 8.0, "byte_perplexity": 1.5, "bits_per_byte": 0.6}
    words = measured(key=LM_EVAL, metrics=metrics)
    record(
        [
            recording(file, sparsity=None),
            Recording(str(file), "dense", words),
        ],
        today=TODAY,
    )
    gates = read_baseline(file).checkpoints["dense"].gates
    assert gates.sparsity is None
    assert gates.metrics == {
        KEY: {"token_perplexity": Tolerance(rel=0.1)},
        LM_EVAL: {
            "word_perplexity": Tolerance(rel=0.005),
            "byte_perplexity": Tolerance(rel=0.005),
        },
    }
    record([recording(file, sparsity=HALF)], today=TODAY)
    third = SparsityGate(fraction=1 / 3)
    record([recording(file, sparsity=third)], today=TODAY)
    assert read_baseline(file).checkpoints["dense"].gates.sparsity == HALF


@pytest.mark.parametrize(
    ("gate", "written"),
    [
        (SparsityGate(0.5, 0.001), "{fraction: 0.5, abs: 0.001}"),
        (
            SparsityGate(0.5, 0.001, "2:4", "tensor"),
            '{fraction: 0.5, abs: 0.001, pattern: "2:4", scope: tensor}',
        ),
        (SparsityGate(None, 0.001, scope="tensor"), "{abs: 0.001, scope: tensor}"),
    ],
)
def test_sparsity_gates_as_they_are_written(
    file: Path, gate: SparsityGate, written: str
) -> None:
    record([recording(file, sparsity=gate)], today=TODAY)
    assert f"\n      sparsity: {written}\n" in file.read_text()
    assert read_baseline(file).checkpoints["dense"].gates.sparsity == gate


# ------------------------------------------------------------------------ fingerprints


def test_a_fingerprint_stands_beside_what_was_measured(file: Path) -> None:
    record([recording(file, fingerprint=printed())], today=TODAY)
    entry = checked(file).checkpoints["dense"]
    assert entry.fingerprint is not None
    digest = printed().digest
    assert entry.recorded[KEY].weights_digest == digest
    fields = f"        corpus_digest: {DIGEST}\n        weights_digest: {digest}\n"
    assert fields in file.read_text()
    assert file.read_text().endswith(
        f"""\
      fingerprint:
        digest: {digest}
        tensors: 1
        linear: 1
        weights: 16
        zeros: 8
        evidence: {entry.fingerprint.evidence}
        date: 2026-11-23
"""
    )
    assert evidence_files(file.parent) == {
        entry.recorded[KEY].evidence,
        entry.fingerprint.evidence,
    }


def test_the_same_weights_leave_the_fingerprint_alone(file: Path) -> None:
    record([recording(file, fingerprint=printed())], today=TODAY)
    before = file.read_bytes()
    files = evidence_files(file.parent)
    # Another machine rounds the sums in another way.
    again = printed(sum=0.5000001, norm=1.4999, peak=1.0)
    record([recording(file, fingerprint=again)], today=LATER)
    assert file.read_bytes() == before
    assert evidence_files(file.parent) == files


@pytest.mark.parametrize(
    "changed",
    [
        printed(dtype="BF16"),
        msgspec.structs.replace(printed(), config={"rope_theta": 5e5}),
        msgspec.structs.replace(printed(), tokenizer={"vocabulary": "1" * 32}),
    ],
    ids=["dtype", "config", "tokenizer"],
)
def test_what_else_changed_is_recorded_with_the_date_of_the_weights(
    file: Path, changed: Fingerprint
) -> None:
    record([recording(file, fingerprint=printed())], today=TODAY)
    before = file.read_text().splitlines()
    files = evidence_files(file.parent)
    record([recording(file, fingerprint=changed)], today=LATER)
    fingerprint = checked(file).checkpoints["dense"].fingerprint
    assert fingerprint is not None
    assert read_fingerprint(file.parent, fingerprint, where="") == changed
    after = file.read_text().splitlines()
    moved = [line for line in after if line not in before]
    assert moved == [f"        evidence: {fingerprint.evidence}"]
    assert evidence_files(file.parent) - files == {fingerprint.evidence}
    assert len(evidence_files(file.parent)) == 2


def test_lost_evidence_of_the_same_weights_is_written_again(file: Path) -> None:
    record([recording(file, fingerprint=printed())], today=TODAY)
    before = file.read_bytes()
    fingerprint = checked(file).checkpoints["dense"].fingerprint
    assert fingerprint is not None
    (file.parent / fingerprint.evidence).unlink()
    record([recording(file, fingerprint=printed())], today=LATER)
    assert checked(file).checkpoints["dense"].fingerprint == fingerprint
    assert file.read_bytes() == before


def test_other_weights_replace_it_and_name_the_keys_of_the_old_ones(
    file: Path,
) -> None:
    said: list[str] = []
    other = "wanda/demo:128"
    record(
        [
            recording(file, fingerprint=printed(1)),
            recording(file, 8.0, LM_EVAL, fingerprint=printed(1)),
            recording(file, 9.0, other),  # on weights that nobody knows
        ],
        today=TODAY,
        tell=said.append,
    )
    assert said == []
    record([recording(file, fingerprint=printed(2))], today=LATER, tell=said.append)
    assert said == [
        "m/dense: other weights than those that are recorded now were measured for "
        f"{LM_EVAL}: record these keys again too"
    ]
    entry = checked(file).checkpoints["dense"]
    assert entry.fingerprint is not None
    assert entry.fingerprint.digest == printed(2).digest
    assert entry.fingerprint.date == "2027-01-02"
    assert {key: at.weights_digest for key, at in entry.recorded.items()} == {
        KEY: printed(2).digest,
        LM_EVAL: printed(1).digest,
        other: None,
    }
    assert len(evidence_files(file.parent)) == 4
    del said[:]
    record(
        [recording(file, 8.0, LM_EVAL, fingerprint=printed(2))],
        today=LATER,
        tell=said.append,
    )
    assert said == []


def test_a_new_key_of_other_weights_leaves_the_fingerprint(file: Path) -> None:
    record([recording(file, fingerprint=printed())], today=TODAY)
    old = checked(file).checkpoints["dense"].fingerprint
    new = recording(file, 8.0, LM_EVAL, fingerprint=printed(2), keep_fingerprint=True)
    said: list[str] = []
    record([new], today=LATER, tell=said.append)
    entry = checked(file).checkpoints["dense"]
    assert entry.fingerprint == old
    assert entry.recorded[LM_EVAL].weights_digest == printed(2).digest
    assert said == [
        f"m/dense: {LM_EVAL} was measured on other weights than those of the recorded "
        "fingerprint, which stays: accept its own gate, or `pplguard update PATH "
        "--checkpoint m/dense --fingerprint`"
    ]


def test_only_the_fingerprint(file: Path) -> None:
    record([recording(file)], today=TODAY)
    before = file.read_text()
    alone = Recording(str(file), "dense", fingerprint=printed())
    assert record([alone], today=LATER) == []
    assert file.read_text().startswith(before)
    added = file.read_text().removeprefix(before)
    assert added.startswith(f"      fingerprint:\n        digest: {printed().digest}\n")
    assert checked(file).checkpoints["dense"].recorded[KEY].weights_digest is None
    new = Recording(str(file), "new", path="out/new", fingerprint=printed(3))
    record([new], today=LATER)
    entry = checked(file).checkpoints["new"]
    assert (entry.path, entry.recorded, entry.gates.metrics) == ("out/new", {}, {})
    assert entry.fingerprint is not None


def test_recording_without_a_fingerprint_keeps_the_one_that_is_there(
    file: Path,
) -> None:
    record([recording(file, fingerprint=printed())], today=TODAY)
    old = checked(file).checkpoints["dense"].fingerprint
    record([recording(file, 5.75)], today=LATER)
    entry = checked(file).checkpoints["dense"]
    assert entry.fingerprint == old
    assert entry.recorded[KEY].weights_digest is None


def test_a_fingerprint_with_a_number_that_is_not_finite(file: Path) -> None:
    broken = msgspec.structs.replace(printed(), config={"rope_theta": math.nan})
    assert refusal([recording(file, fingerprint=broken)]) == (
        "m/dense, fingerprint: config.rope_theta is nan: a number that is not finite "
        "cannot be recorded; correct the checkpoint"
    )
    assert not file.exists()
    assert evidence_files(file.parent) == set()


@pytest.mark.parametrize(
    ("value", "tolerance"),
    [(0.05, Tolerance(rel=0.02)), (0.0, Tolerance(abs=0.0001))],
)
def test_the_default_gates_of_a_divergence(
    file: Path, value: float, tolerance: Tolerance
) -> None:
    key = "kl/wikitext2:512:first40"
    metrics = {"kl_divergence": value, "top1_agreement": 0.9}
    kl = msgspec.structs.replace(
        recording(file), measurement=measured(key=key, metrics=metrics)
    )
    record([kl], today=TODAY)
    assert checked(file).checkpoints["dense"].gates.metrics == {
        key: {"kl_divergence": tolerance, "top1_agreement": Tolerance(abs=0.005)}
    }


PUBLISHED = f"""\
schema: 1
model: m
checkpoints:
  dense:
    recorded:
      {KEY}:
        token_perplexity: 5.12  # page 5
        source: {{kind: published, reference: "Wanda, table 2", digits: 2}}
"""


@pytest.mark.parametrize("measured_before", [False, True])
def test_another_text_does_not_stand_beside_a_published_value(
    file: Path, measured_before: bool
) -> None:
    file.parent.mkdir()
    file.write_text(PUBLISHED)
    if measured_before:
        record([recording(file, 5.1186)], today=TODAY)
    before = file.read_bytes()
    other = msgspec.structs.replace(
        recording(file),
        measurement=measured(protocol={"window": 4096, "official text": False}),
    )
    assert refusal([other]) == (
        f"m/dense, {KEY}: a value that was published for the official text stands "
        "there, and this run measured another text by that name: give the official "
        "file, or measure your text under a name of its own"
    )
    assert file.read_bytes() == before


def test_a_published_value_is_kept_beside_the_measured_one(file: Path) -> None:
    file.parent.mkdir()
    file.write_text(PUBLISHED)
    (change,) = record([recording(file, 5.1186)], today=TODAY)
    assert (change.old, change.first) == (5.12, 5.1186)
    record([recording(file, 5.1187)], today=LATER)
    recorded = checked(file).checkpoints["dense"].recorded[KEY]
    assert recorded.source == Source(kind="measured")
    assert recorded.first == {"token_perplexity": 5.1186, "date": "2026-11-23"}
    assert recorded.published == {
        "token_perplexity": 5.12,
        "reference": "Wanda, table 2",
        "digits": 2,
    }
    assert "token_perplexity: 5.1187  # page 5\n" in file.read_text()


@pytest.mark.parametrize("has_first", [True, False])
def test_a_metric_that_is_new_joins_the_first_values(
    file: Path, has_first: bool
) -> None:
    record([recording(file)], today=TODAY)
    if not has_first:
        lines = file.read_text().splitlines(keepends=True)
        file.write_text("".join(line for line in lines if "first:" not in line))
    both = measured(metrics={"token_perplexity": 6.0, "bits_per_byte": 0.5})
    changes = record([Recording(str(file), "dense", both)], today=LATER)
    assert [change.first for change in changes] == [5.5, 0.5]
    first = checked(file).checkpoints["dense"].recorded[KEY].first
    date = {"date": "2026-11-23"} if has_first else {}
    assert first == {"token_perplexity": 5.5, "bits_per_byte": 0.5, **date}


def test_evidence_that_is_still_named_elsewhere_stays(file: Path) -> None:
    record([recording(file), recording(file, entry="copy")], today=TODAY)
    recorded = read_baseline(file).checkpoints
    shared = recorded["dense"].recorded[KEY].evidence
    other = recorded["copy"].recorded[KEY].evidence
    assert shared is not None
    assert other is not None
    file.write_text(file.read_text().replace(other, shared))
    (file.parent / other).unlink()
    record([recording(file, 6.0)], today=TODAY)
    assert checked(file).checkpoints["copy"].recorded[KEY].evidence == shared


# ---------------------------------------------------------------------------- refusals


def refusal(recordings: list[Recording]) -> str:
    with pytest.raises((BaselineError, UsageError)) as caught:
        record(recordings, today=TODAY)
    return str(caught.value)


def test_a_new_file_needs_a_base_model(file: Path) -> None:
    assert refusal([recording(file, base=None)]) == (
        f"{file} does not exist yet: say which base model it is for, with --base MODEL"
    )
    assert not file.exists()


@pytest.mark.parametrize(
    ("name", "entry", "key", "message"),
    [
        (
            "m.json",
            "dense",
            KEY,
            "m.json: a baseline file's name ends in .yaml or .yml",
        ),
        (
            "m.yaml",
            "a/b",
            KEY,
            "'m/a/b' is not a checkpoint name: expected FILE/NAME, a baseline file's "
            "stem and an entry in it, for example llama-2-7b/wanda-50 (letters, digits "
            "and ._+- only)",
        ),
        (
            "m.yaml",
            "dense",
            "wanda",
            "'wanda' is not a measurement key: expected METHOD/TEXT[+CORPUS]:WINDOW"
            "[:strideS][:shotsK][:firstN], for example wanda/wikitext2:4096 or "
            "lm-eval/wikitext+demo:256",
        ),
    ],
)
def test_wrong_names(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    entry: str,
    key: str,
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert refusal([recording(Path(name), key=key, entry=entry)]) == message
    assert list(tmp_path.iterdir()) == []


def test_a_number_that_is_not_finite_stops_everything(file: Path) -> None:
    assert refusal([recording(file), recording(file, math.nan, entry="b")]) == (
        f"m/b, {KEY}: token_perplexity is nan: a number that is not finite cannot be "
        "recorded; measure again with `pplguard measure` and look at the window it "
        "names"
    )
    assert not file.parent.exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "schema: 1\n<<<<<<< HEAD\n",
            "2: a merge-conflict marker (<<<<<<<): resolve the conflict, keep one side "
            "and remove the marker lines",
        ),
        (
            "schema: 1\nmodel: m\ncheckpoints: {a: {path: x}}\n",
            "3: checkpoints is not in block style and cannot be added to: write it in "
            "block style, one 'name: value' a line",
        ),
    ],
)
def test_a_file_that_is_wrong_stays_as_it_is(
    file: Path, text: str, message: str
) -> None:
    file.parent.mkdir()
    file.write_text(text)
    assert refusal([recording(file)]) == f"{file}:{message}"
    assert file.read_text() == text
    assert evidence_files(file.parent) == set()


def test_a_record_that_could_not_be_read_back_is_not_written(file: Path) -> None:
    short = recording(file)
    broken = measured(windows_digest="sha256:1")
    message = refusal([msgspec.structs.replace(short, measurement=broken)])
    assert "windows_digest: 'sha256:1' is no digest" in message
    assert not file.exists()
    assert evidence_files(file.parent) == set()


def test_a_folder_that_is_a_file(file: Path) -> None:
    file.parent.write_text("")
    assert refusal([recording(file)]) == (
        f"{file}: not updated: {file.parent} cannot be written: File exists: make room "
        "or correct the permissions, and run again"
    )


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_is_not_writable(file: Path) -> None:
    file.parent.mkdir()
    file.parent.chmod(0o500)
    assert "Permission denied: make room or correct" in refusal([recording(file)])


@pytest.mark.parametrize("at", [0, 1], ids=["evidence", "file"])
def test_a_full_disk(file: Path, monkeypatch: pytest.MonkeyPatch, at: int) -> None:
    record([recording(file)], today=TODAY)
    text = file.read_text()
    calls: list[int] = []
    fsync = os.fsync

    def full(descriptor: int) -> None:
        calls.append(descriptor)
        # Each replace syncs the new file and then its folder.
        if len(calls) == 1 + 2 * at:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    assert refusal([recording(file, 6.0)]) == (
        f"{file}: not updated: {file} cannot be written: No space left on device: make "
        "room or correct the permissions, and run again"
    )
    assert file.read_text() == text
    checked(file)
    assert not list(file.parent.rglob("*.tmp"))


def test_a_lock_that_is_held(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record([recording(file)], today=TODAY)
    monkeypatch.setattr(store, "LOCK_SECONDS", 0.05)
    lock = file.with_name(".m.yaml.lock")
    with filelock.FileLock(lock):
        assert refusal([recording(file, 6.0)]) == (
            f"{file}: another process has been updating it for 0 s (it holds {lock}): "
            "wait until it ends, then run again"
        )


def test_a_file_system_without_locks_under_older_filelock(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import fcntl

    record([recording(file)], today=TODAY)
    text = file.read_text()

    def no_lock(*_: object) -> None:
        raise NotImplementedError("no flock")

    monkeypatch.setattr(fcntl, "flock", no_lock)
    assert refusal([recording(file, 6.0)]) == (
        f"{file}: the file system has no locks, and without one two processes that "
        "update the file would undo each other: record on another disk, or install "
        "filelock 3.24 or newer"
    )
    assert file.read_text() == text


def test_a_lock_that_others_are_given_first(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record([recording(file)], today=TODAY)
    acquire, others = filelock.FileLock.acquire, [2, 1]

    def unlucky(lock: filelock.FileLock, timeout: float, **rest: Any) -> Any:
        if others:
            os.utime(file, ns=(others[-1], others.pop()))
            raise filelock.Timeout(lock.lock_file)
        return acquire(lock, timeout, **rest)

    monkeypatch.setattr(filelock.FileLock, "acquire", unlucky)
    record([recording(file, 6.0)], today=TODAY)
    assert not others
    recorded = checked(file).checkpoints["dense"].recorded.values()
    assert [one.metrics["token_perplexity"] for one in recorded] == [6.0]


# --------------------------------------------------------------------------- the disk


def test_links_and_modes_are_kept(file: Path, tmp_path: Path) -> None:
    record([recording(file)], today=TODAY)
    real = tmp_path / "elsewhere" / "real.yaml"
    real.parent.mkdir()
    file.rename(real)
    real.chmod(0o640)
    file.symlink_to(os.path.relpath(real, file.parent))
    record([recording(file, 6.0)], today=TODAY)
    assert file.is_symlink()
    assert real.stat().st_mode & 0o777 == 0o640
    entry = checked(file).checkpoints["dense"]
    assert entry.recorded[KEY].metrics == {"token_perplexity": 6.0}
    assert (real.parent / ".real.yaml.lock").exists()


def test_line_ends_and_byte_order_mark_are_kept(file: Path) -> None:
    file.parent.mkdir()
    head = "\ufeffschema: 1\r\nmodel: m  # caf\u00e9\r\ncheckpoints:\r\n"
    file.write_bytes(head.encode())
    record([recording(file)], today=TODAY)
    data = file.read_bytes()
    assert data.startswith(head.encode() + b"  dense:\r\n")
    assert data.count(b"\n") == data.count(b"\r\n")


def test_what_a_crash_left_is_no_obstacle(file: Path) -> None:
    record([recording(file)], today=TODAY)
    (file.parent / ".m.yaml.tmp").write_text("half")
    (file.parent / "m" / "dense" / ".evidence.tmp").write_text("half")
    record([recording(file, 6.0)], today=TODAY)
    checked(file)
    assert not list(file.parent.rglob("*.tmp"))


WRITER = """
import datetime, sys
from pathlib import Path
from tests.unit.test_baselines_store import printed, recording
from pytest_pplguard.baselines import record

file, entry, first, last, key = sys.argv[1:]
for number in range(int(first), int(last)):
    key_now = key.replace("NUMBER", str(number))
    more = {"fingerprint": printed(int(number))}
    made = recording(Path(file), float(number), key_now, entry, **more)
    record([made], today=datetime.date(2026, 11, 23))
    print(number, flush=True)
"""


def writer(
    file: Path, entry: str, first: int, last: int, key: str
) -> subprocess.Popen[str]:
    arguments = [str(file), entry, str(first), str(last), key]
    return subprocess.Popen(
        [sys.executable, "-c", WRITER, *arguments],
        cwd=Path(__file__).parents[2],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_eight_processes_lose_nothing(file: Path) -> None:
    key = "wanda/wikitext2:NUMBER"
    writers = [writer(file, f"p{n}", 1, 11, key) for n in range(8)]
    for process in writers:
        _, errors = process.communicate(timeout=600)
        assert process.returncode == 0, errors
    baseline = checked(file)
    values = {
        (entry.name, key): recorded.metrics["token_perplexity"]
        for entry in baseline.checkpoints.values()
        for key, recorded in entry.recorded.items()
    }
    assert values == {
        (f"p{n}", f"wanda/wikitext2:{number}"): float(number)
        for n in range(8)
        for number in range(1, 11)
    }
    last = {entry.fingerprint for entry in baseline.checkpoints.values()}
    assert {fingerprint.digest for fingerprint in last if fingerprint} == {
        printed(10).digest
    }
    assert len(evidence_files(file.parent)) == 80 + 8


def test_a_killed_writer_leaves_the_old_or_the_new_file(file: Path) -> None:
    record([recording(file, 1.0, fingerprint=printed(1))], today=TODAY)
    moments = random.Random(7)
    last = 1
    for _ in range(15):
        process = writer(file, "dense", last + 1, 10**6, KEY)
        assert process.stdout is not None
        assert process.stdout.readline() != ""
        time.sleep(moments.uniform(0, 0.1))
        process.send_signal(signal.SIGKILL)
        output, _ = process.communicate(timeout=60)
        done = int(output.split()[-1]) if output.split() else last + 1
        entry = checked(file).checkpoints["dense"]
        recorded = entry.recorded[KEY]
        assert recorded.metrics["token_perplexity"] in (done, done + 1)
        last = int(recorded.metrics["token_perplexity"])
        assert entry.fingerprint is not None
        assert entry.fingerprint.digest == printed(last).digest
        assert recorded.weights_digest == printed(last).digest
    record([recording(file, 0.5)], today=TODAY)
    assert checked(file).checkpoints["dense"].recorded[KEY].first == {
        "token_perplexity": 1.0,
        "date": "2026-11-23",
    }
    assert not list(file.parent.rglob("*.tmp"))


def of_task(**changes: Any) -> Measurement:
    """A task's measurement of two documents."""
    changes = {
        "metrics": {"acc": 0.5, "acc_norm": 1.0},
        "protocol": {"aggregation of acc": "mean", "aggregation of acc_norm": "mean"},
        "documents": (
            DocumentResult("piqa", 0, {"acc": 1, "acc_norm": 1}),
            DocumentResult("piqa", 1, {"acc": 0, "acc_norm": 1}),
        ),
        "stderr": {"acc": 0.5},
        "higher_is_better": ("acc", "acc_norm"),
        **changes,
    }
    return measured(key=TASK, **changes)


@pytest.mark.parametrize(
    ("changes", "gates"),
    [
        ({}, {"acc_norm": Tolerance(sigma=2.0, direction="no-worse")}),
        (
            {"metrics": {"perplexity": 4.0, "acc": 0.5}},
            {"acc": Tolerance(sigma=2.0, direction="no-worse")},
        ),
        (
            {"metrics": {"brier_score": 0.5, "f1": 0.5}, "stderr": {}},
            {"brier_score": Tolerance(rel=0.005)},
        ),
        # A share of a loss that is not positive would say nothing.
        (
            {"metrics": {"loss": -0.5}, "stderr": {}},
            {"loss": Tolerance(sigma=2.0, direction="no-worse")},
        ),
    ],
)
def test_the_gates_of_a_new_task(
    file: Path, changes: dict[str, Any], gates: dict[str, Tolerance]
) -> None:
    record(
        [Recording(str(file), "dense", of_task(**changes), base="org/m")], today=TODAY
    )
    assert checked(file).checkpoints["dense"].gates.metrics == {TASK: gates}


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.floats(0, 1e6), st.floats(min_value=0, exclude_min=True, max_value=1e6))
def test_standard_errors_and_sigma_come_back(
    file: Path, error: float, sigma: float
) -> None:
    file.unlink(missing_ok=True)
    run = of_task(stderr={"acc": error, "acc_norm": 0.0})
    record([Recording(str(file), "dense", run, base="org/m")], today=TODAY)
    text = file.read_text()
    written = "{acc_norm: {sigma: 2.0, direction: no-worse}}"
    assert text.count(written) == 1
    file.write_text(text.replace("sigma: 2.0", flow({"sigma": sigma})[1:-1]))
    # Recording again leaves the gate as it is.
    record([Recording(str(file), "dense", run)], today=LATER)
    entry = checked(file).checkpoints["dense"]
    assert entry.recorded[TASK].stderr == {"acc": error, "acc_norm": 0.0}
    assert entry.gates.metrics[TASK]["acc_norm"].sigma == sigma


def test_a_task_is_recorded_with_documents_and_standard_errors(file: Path) -> None:
    record([Recording(str(file), "dense", of_task(), base="org/m")], today=TODAY)
    recorded = checked(file).checkpoints["dense"].recorded[TASK]
    assert "        acc_norm: 1.0\n        stderr: {acc: 0.5}\n" in file.read_text()
    evidence = read_evidence(file.parent, recorded, where=TASK)
    assert evidence.documents == of_task().documents


def test_recorded_has_no_field_that_is_forgotten() -> None:
    assert set(Recorded.__struct_fields__) == {
        "metrics",
        "source",
        "windows",
        "units",
        "windows_digest",
        "corpus_digest",
        "weights_digest",
        "evidence",
        "first",
        "published",
        "environment",
        "stderr",
    }
