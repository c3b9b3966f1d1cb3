"""The weights of a run: looked at once each, and what is said of those that changed."""

from __future__ import annotations

import datetime
import json
from pathlib import Path
from typing import Any, NoReturn

import pytest
from safetensors.numpy import save_file

from pytest_pplguard.baselines import record
from pytest_pplguard.checkpoints import (
    Sparsity,
    Survivors,
    compare_with_dense,
    fingerprint,
    locate,
    measure_sparsity,
)
from pytest_pplguard.errors import (
    CheckpointError,
    CorpusError,
    ExecutorError,
    PplguardError,
)
from pytest_pplguard.measure import Dense, StoredWeights
from pytest_pplguard.measure import weights as room
from pytest_pplguard.options import Execution, Options, Target
from pytest_pplguard.session.files import BaselineFiles
from pytest_pplguard.session.guard import Guard
from pytest_pplguard.session.weights import Weights
from pytest_pplguard.values import (
    Fingerprint,
    Measurement,
    Recording,
    WindowScore,
)

from .diffing import LAYERS, NORM, at, decoder
from .diffing import Weights as Tensors

NAME, KEY, OTHER = "m/w50", "wanda/tiny:16", "wanda/tiny:32"
DIGEST = "sha256:" + "1" * 64
UP = at(2, "mlp.up_proj")
REST = (
    f"all other weights ({5 * LAYERS + 1} tensors), the config and the tokenizer are "
)
LOST = ("layer 2, mlp.up_proj: all zeros now", f"{REST}the same")


def save(folder: Path, weights: Tensors) -> Path:
    folder.mkdir()
    save_file(weights, folder / "model.safetensors")
    config = {"model_type": "llama", "num_hidden_layers": LAYERS}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer.json").write_text("{}")
    return folder


@pytest.fixture
def good(tmp_path: Path) -> Path:
    return save(tmp_path / "good", decoder(pruned=True))


@pytest.fixture
def bad(tmp_path: Path) -> Path:
    """As ``good`` without one projection."""
    weights = decoder(pruned=True)
    weights[UP][:] = 0
    return save(tmp_path / "bad", weights)


@pytest.fixture
def other(tmp_path: Path) -> Path:
    """As ``good`` with another last norm."""
    weights = decoder(pruned=True)
    weights[NORM] *= 2
    return save(tmp_path / "other", weights)


def recorded(folder: Path, **keys: Path) -> Path:
    """A baseline file: keys in the order in which they were recorded, of what."""
    path = folder / "m.yaml"
    for name, checkpoint in keys.items():
        measurement = Measurement(
            key={"key": KEY, "other": OTHER}[name],
            metrics={"token_perplexity": 5.5},
            units={"tokens": 12},
            windows=1,
            windows_digest=DIGEST,
            corpus_digest=DIGEST,
            protocol={},
            evidence=(WindowScore(1.0, 12),),
            environment={},
            seconds=1.0,
        )
        taken = fingerprint(locate(str(checkpoint)))
        record(
            [Recording(str(path), "w50", measurement, base="m", fingerprint=taken)],
            today=datetime.date(2026, 11, 23),
        )
    return path


def weights_of(path: Path, checkpoint: Path) -> Weights:
    def load(name: str) -> NoReturn:
        raise AssertionError(f"{name} was loaded")

    targets = {NAME: Target(NAME, str(checkpoint))}
    return Weights(Options(), targets, BaselineFiles(path.parent), load)


def changes(path: Path, checkpoint: Path, **options: Any) -> tuple[str, ...]:
    weights = weights_of(path, checkpoint)
    return weights.changes(NAME, weights.given(NAME), **options)


# -------------------------------------------------------------------- looked at once


def test_a_fingerprint_is_taken_once(
    tmp_path: Path, good: Path, bad: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def counted(located: Any, **options: Any) -> Any:
        calls.append(located.spec)
        return fingerprint(located, **options)

    monkeypatch.setattr(room, "fingerprint", counted)
    weights = weights_of(recorded(tmp_path, key=good), bad)
    assert weights.fingerprint(NAME) == fingerprint(locate(str(bad)))
    weights.fingerprint(NAME)
    files = weights.given(NAME)
    assert weights.changes(NAME, files, key=KEY) == LOST
    # What a test has brought under the same name is another checkpoint.
    assert weights.fingerprint_of((Target(NAME, str(good)), files[1])) == (
        weights.recorded(NAME)
    )
    assert calls == [str(bad), str(good)]
    # And so is what a test has saved in the place of the one before.
    (bad / "model.safetensors").write_bytes((good / "model.safetensors").read_bytes())
    assert weights.fingerprint(NAME) == weights.recorded(NAME)


def replace_files(folder: Path, by: Path) -> None:
    data = (by / "model.safetensors").read_bytes()
    (folder / "new").write_bytes(data)
    (folder / "new").replace(folder / "model.safetensors")


def test_weights_are_those_that_were_loaded(
    tmp_path: Path, good: Path, bad: Path
) -> None:
    """A number and a gate of weights under one name are of one checkpoint."""
    weights = weights_of(recorded(tmp_path, key=good), good)
    with weights.loading(Target(NAME, str(good))):
        pass
    assert weights.fingerprint(NAME) == weights.recorded(NAME)
    (good / "README.md").write_text("another file")
    weights.sparsity(NAME)
    replace_files(good, bad)
    words = (
        f"{good}: its files were replaced during this run: run again, so that its "
        "numbers and its weights are of one checkpoint"
    )
    for look in (
        lambda: weights.fingerprint(NAME),
        lambda: weights.sparsity(NAME, "2:4"),
        lambda: weights.survivors(NAME, Dense(Target("m/d", str(bad)), given=False)),
        lambda: weights.loading(Target(NAME, str(good))).__enter__(),
    ):
        with pytest.raises(CheckpointError) as caught:
            look()
        assert str(caught.value) == words
    # What a test has brought by a path of its own is nobody's name.
    brought = Target("m/w50 of a test", str(good))
    with weights.loading(brought):
        pass
    files = (brought, lambda: pytest.fail("loaded"))
    assert weights.fingerprint_of(files) == fingerprint(locate(str(bad)))


def test_what_was_looked_at_is_what_is_loaded(
    tmp_path: Path, good: Path, bad: Path
) -> None:
    weights = weights_of(recorded(tmp_path, key=good), good)
    weights.fingerprint(NAME)
    replace_files(good, bad)
    with (
        pytest.raises(CheckpointError, match="its files were replaced during this run"),
        weights.loading(Target(NAME, str(good))),
    ):
        pass


def test_what_is_replaced_while_it_is_loaded(
    tmp_path: Path, good: Path, bad: Path
) -> None:
    weights = weights_of(recorded(tmp_path, key=good), good)
    with (
        pytest.raises(CheckpointError, match="its files were replaced during this run"),
        weights.loading(Target(NAME, str(good))),
    ):
        replace_files(good, bad)


def test_the_same_error_every_time_without_its_frames(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = save(tmp_path / "cut", decoder())
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    calls = []

    def counted(located: Any, **options: Any) -> Any:
        calls.append(located.spec)
        return fingerprint(located, **options)

    monkeypatch.setattr(room, "fingerprint", counted)
    weights = weights_of(tmp_path / "m.yaml", folder)
    said = []
    for _ in range(2):
        with pytest.raises(CheckpointError) as caught:
            weights.fingerprint(NAME)
        said.append(str(caught.value))
        assert caught.value.__cause__ is None
        # Nothing below the fingerprint's own frame is kept alive.
        assert {Path(entry.path).name for entry in caught.traceback} <= {
            Path(__file__).name,
            "weights.py",
        }
    assert said[0] == said[1] != ""
    assert len(calls) == 1


def test_zeros_are_counted_once_with_or_without_groups(
    tmp_path: Path, good: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def counted(located: Any, **options: Any) -> Any:
        calls.append(options["pattern"])
        return measure_sparsity(located, **options)

    monkeypatch.setattr(room, "measure_sparsity", counted)
    weights = weights_of(tmp_path / "m.yaml", good)
    groups = weights.sparsity(NAME, "2:4")
    assert weights.sparsity(NAME) is groups
    assert weights.sparsity(NAME, "2:4") is groups
    assert groups.fraction == 0.5
    assert all(zeros.groups for zeros in groups.tensors.values())
    assert calls == [(2, 4)]
    # The other way round there are no groups yet.
    weights = weights_of(tmp_path / "m.yaml", good)
    weights.sparsity(NAME)
    assert weights.sparsity(NAME, "4:8").tensors[UP].groups == 40 * 24 // 8
    assert calls == [(2, 4), None, (4, 8)]


# ------------------------------------------------------------------------- elsewhere


class There(StoredWeights):
    """Those of a folder that only this one knows, and how often it was asked."""

    def __init__(self, folder: Path) -> None:
        super().__init__(locate(str(folder)), model=None, allow_pickle=False)
        self.asked: list[str] = []
        self.error: PplguardError | None = None

    def fingerprint(self) -> Fingerprint:
        self.asked.append("fingerprint")
        if self.error is not None:
            raise self.error
        return super().fingerprint()

    def sparsity(self, pattern: tuple[int, int] | None = None) -> Sparsity:
        self.asked.append(f"sparsity {pattern}")
        return super().sparsity(pattern)

    def survivors(self, dense: Dense) -> Survivors:
        self.asked.append(f"survivors of {dense.target.name}")
        return super().survivors(dense)


NOWHERE = Target(NAME, "/only/on/the/nodes")


def asking(there: There, path: Path, ready: bool = True) -> Weights:
    def load(name: str) -> NoReturn:
        raise AssertionError(f"{name} was loaded here")

    return Weights(
        Options(),
        {NAME: NOWHERE},
        BaselineFiles(path.parent),
        load,
        elsewhere=lambda name: {NAME: there}[name],
        ready=lambda name: ready,
    )


def test_who_measures_is_asked_once_and_no_file_here_is_read(
    tmp_path: Path, good: Path, bad: Path
) -> None:
    there = There(bad)
    weights = asking(there, recorded(tmp_path, key=good))
    assert weights.fingerprint(NAME) == fingerprint(locate(str(bad)))
    assert weights.changes(NAME, weights.given(NAME), key=KEY) == LOST
    groups = weights.sparsity(NAME, "2:4")
    assert weights.sparsity(NAME) is groups
    assert groups == measure_sparsity(locate(str(bad)), pattern=(2, 4))
    found = weights.survivors(NAME, Dense(Target("m/d", str(good)), given=False))
    assert found == compare_with_dense(locate(str(bad)), locate(str(good)))
    assert there.asked == ["fingerprint", "sparsity (2, 4)", "survivors of m/d"]


def test_what_a_test_has_measured_here_is_looked_at_here(
    tmp_path: Path, good: Path, bad: Path
) -> None:
    """Even by the very path that was given, as this process has read that path."""
    there = There(bad)
    weights = asking(there, recorded(tmp_path, key=good))
    brought = Target(NAME, str(good)), lambda: pytest.fail("loaded")
    assert weights.fingerprint_of(brought) == fingerprint(locate(str(good)))
    assert there.asked == []


def test_nobody_is_made_ready_for_a_detail(tmp_path: Path, good: Path) -> None:
    there = There(good)
    path = recorded(tmp_path, key=good)
    weights = asking(there, path, ready=False)
    files = weights.given(NAME)
    assert not weights.at_hand(files)
    with pytest.raises(CheckpointError) as caught:
        weights.fingerprint_of(files, load=False)
    assert str(caught.value) == (
        f"{NAME}: its replicas were given back before anybody asked them for its "
        "weights"
    )
    # That is no answer to a gate, and what a gate has heard is one to a detail.
    assert weights.fingerprint_of(files) == fingerprint(locate(str(good)))
    assert weights.fingerprint_of(files, load=False) == weights.fingerprint(NAME)
    assert there.asked == ["fingerprint"]
    assert asking(there, path).at_hand(files)
    assert weights.at_hand((NOWHERE, lambda: None))


def test_an_error_of_the_weights_is_remembered_and_one_of_the_cluster_is_not(
    tmp_path: Path, good: Path
) -> None:
    there = There(good)
    weights = asking(there, recorded(tmp_path, key=good))
    there.error = ExecutorError("nobody answers")
    for _ in range(2):
        with pytest.raises(ExecutorError):
            weights.fingerprint(NAME)
    there.error = CheckpointError("its files were replaced")
    for _ in range(2):
        with pytest.raises(CheckpointError, match="its files were replaced"):
            weights.fingerprint(NAME)
    assert len(there.asked) == 3


def test_no_cluster_is_asked_what_differs_where_nothing_was_measured(
    tmp_path: Path, good: Path
) -> None:
    """A text that is not there is no reason to load a checkpoint somewhere."""

    def make_store() -> NoReturn:
        raise AssertionError("a store was made")

    guard = Guard(
        Options(execution=Execution("ray")),
        {NAME: NOWHERE},
        BaselineFiles(recorded(tmp_path, key=good).parent),
        make_store,
    )
    error = CorpusError("the text tiny is not there")
    verdict = guard.error(NAME, KEY, "token_perplexity", error)
    assert verdict.reasons == ("the text tiny is not there",)
    assert verdict.changes == ()


# -------------------------------------------------------------------- what differs


def test_nothing_recorded_nothing_said(
    tmp_path: Path, good: Path, bad: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = recorded(tmp_path, key=good)
    text = path.read_text()
    start = text.index("      fingerprint:")
    path.write_text(text[:start])
    weights = weights_of(path, bad)
    assert weights.recorded(NAME) is None

    def refuse(*_: object, **__: object) -> NoReturn:
        raise AssertionError("read in vain")

    monkeypatch.setattr(room, "fingerprint", refuse)
    assert changes(path, bad, key=KEY) == ()


def test_what_differs(tmp_path: Path, good: Path, bad: Path) -> None:
    path = recorded(tmp_path, key=good)
    assert changes(path, bad, key=KEY) == LOST
    assert changes(path, bad, key="sparsity") == LOST
    assert changes(path, bad) == LOST
    assert changes(path, good, key=KEY) == (
        "weights, config and tokenizer are those of the baseline to the bit: look at "
        "the environment (dtype, device, versions, attention)",
    )


def test_a_screen_is_not_filled(tmp_path: Path, good: Path) -> None:
    path = recorded(tmp_path, key=good)
    weights = decoder(pruned=True)
    for layer in range(LAYERS):
        for kind in ("self_attn.q_proj", "mlp.up_proj"):
            weights[at(layer, kind)] *= 1.1 + 0.1 * layer + 0.01 * len(kind)
    lines = changes(path, save(tmp_path / "the new one", weights))
    assert len(lines) == 8
    command = f"pplguard diff {path}/w50 '{tmp_path / 'the new one'}' --all"
    assert lines[-1] == f"and 6 more: {command}"


def test_a_key_of_other_weights_than_the_fingerprint(
    tmp_path: Path, good: Path, bad: Path, other: Path
) -> None:
    path = recorded(tmp_path, other=good, key=other)
    assert changes(path, good, key=OTHER) == (
        "the weights are those that this baseline was measured on: look at config, "
        "tokenizer and environment (the recorded fingerprint is of other ones)",
    )
    assert changes(path, other, key=OTHER) == (
        "these weights are those of the recorded fingerprint, and this baseline was "
        "measured on others: record this key again too",
    )
    norm = "model.norm.weight: values moved, norm x0.5 (scaled by 0.5?)"
    rest = REST.replace(str(5 * LAYERS + 1), str(5 * LAYERS))
    assert changes(path, bad, key=OTHER) == (
        "this baseline was measured on other weights than those of the recorded "
        "fingerprint, from which differ:",
        LOST[0],
        norm,
        f"{rest}the same",
    )
    assert changes(path, bad, key=KEY) == (LOST[0], norm, f"{rest}the same")
    # A gate of the weights is about the fingerprint, whatever the keys are of.
    assert changes(path, good, key="weights")[0] == norm


def test_why_it_cannot_be_told(tmp_path: Path, good: Path, bad: Path) -> None:
    path = recorded(tmp_path, key=good)
    gone = tmp_path / "gone" / "a" / "b"
    (line,) = changes(path, gone, key=KEY)
    start = "what differs from the recorded one is not known: "
    assert line.startswith(f"{start}{gone} does not exist")
    # Once is enough.
    assert changes(path, gone, key=KEY, told=(line.removeprefix(start),)) == ()
    (evidence,) = tmp_path.rglob("fingerprint-*.json")
    evidence.unlink()
    (line,) = changes(path, bad, key=KEY, told=("the loss is nan",))
    assert line == (
        f"{start}{NAME}, fingerprint: evidence {evidence}: the file does not exist: "
        "restore it from version control or re-record with `pplguard update`"
    )
