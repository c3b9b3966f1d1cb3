"""A replica without a cluster: what it answers of a portion, and of its weights."""

from __future__ import annotations

import math
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from msgspec.structs import replace
from safetensors.torch import load_file, save_file

from pytest_pplguard.checkpoints import (
    Survivors,
    compare_with_dense,
    fingerprint,
    load,
    locate,
    measure_sparsity,
)
from pytest_pplguard.executors.replica import Failure, Job, Ready, Replica, _Job
from pytest_pplguard.measure import Dense, load_target
from pytest_pplguard.options import Options, Target
from pytest_pplguard.protocols import windows_digest
from pytest_pplguard.values import Window

from .tiny import (
    HIDDEN,
    build_model,
    build_tokenizer,
    save,
    save_tiny,
    save_tokenizer,
)

SPOILT = 7


@pytest.mark.parametrize("batch_size", [1, "auto"])
def test_the_window_at_fault_and_no_other(batch_size: int | str) -> None:
    """Who says it of another one is not trusted any more, as that one is fine."""
    model = build_model("llama")
    with torch.no_grad():
        model.get_input_embeddings().weight[SPOILT] = math.nan
    windows = [Window((1, 2, 3, number), (2, 3, number), 0) for number in (3, 4, 5, 6)]
    windows.insert(3, Window((1, SPOILT, 3, 4), (SPOILT, 3, 4), 0))
    job = Job(
        windows=windows,
        windows_digest=windows_digest(windows),
        cut=[[index] for index in range(len(windows))],
        proving=[0],
        batch_size=batch_size,
        compile=False,
        answers=False,
    )
    answer = _Job(model, job).score(range(1, 5))
    assert [list(scores) for scores in answer.scores] == [[1], [2]]
    assert answer.failure is not None
    assert (answer.failure.kind, answer.failure.window) == ("InvalidLossError", 3)


# ----------------------------------------------------------------------------- weights


def replica(folder: Path, **options: Any) -> Replica:
    """One that has loaded a checkpoint."""
    made = Replica(Options(device="cpu", **options), threads=1)
    ready = made.load(Target("it", str(folder)), ())
    assert isinstance(ready, Ready), ready
    return made


def travelled(answer: Any) -> Any:
    return pickle.loads(pickle.dumps(answer))


def edit(folder: Path, **zeroed: slice) -> None:
    """Zero rows of tensors, in a new file in the place of the one before."""
    file = folder / "model.safetensors"
    weights = load_file(file)
    for name, rows in zeroed.items():
        weights[f"model.layers.0.mlp.{name}.weight"][rows] = 0
    file.unlink()
    save_file(weights, file, metadata={"format": "pt"})


def sorted_names(found: Any) -> Any:
    assert isinstance(found, Survivors)
    return replace(
        found, known=tuple(sorted(found.known)), linear=tuple(sorted(found.linear))
    )


def as_pickle(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    torch.save(weights, folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def test_it_says_what_its_files_are(tmp_path: Path) -> None:
    dense = save_tiny(tmp_path / "dense")
    pruned = save_tiny(tmp_path / "pruned")
    edit(pruned, up_proj=slice(0, 8))
    one, here = replica(pruned), locate(str(pruned))
    assert travelled(one.look("fingerprint")) == fingerprint(here)
    assert travelled(one.look("sparsity", None)) == measure_sparsity(here)
    found = travelled(one.look("sparsity", (2, 4)))
    assert found == measure_sparsity(here, pattern=(2, 4))
    for given in (True, False):
        held = Dense(Target("m/dense", str(dense)), given=given)
        assert travelled(one.look("survivors", travelled(held))) == (
            compare_with_dense(here, locate(str(dense)))
        )


def test_of_pickles_it_says_what_it_has_loaded(tmp_path: Path) -> None:
    dense = save_tiny(tmp_path / "dense")
    model = build_model("llama")
    model.load_state_dict(load_file(dense / "model.safetensors"), strict=False)
    with torch.no_grad():
        model.get_parameter("model.norm.weight")[3] += 1
    save(model, tmp_path / "pruned")
    save_tokenizer(build_tokenizer(), pruned := tmp_path / "pruned")
    edit(pruned, up_proj=slice(0, 8))
    expected = compare_with_dense(locate(str(pruned)), locate(str(dense)))
    zeros = measure_sparsity(locate(str(pruned)))
    for folder in (dense, pruned):
        as_pickle(folder)
    one = replica(pruned, allow_pickle=True)
    model = load(
        locate(str(pruned)), device="cpu", dtype="float32", allow_pickle=True
    ).model
    assert one.look("fingerprint") == fingerprint(
        locate(str(pruned)), model=lambda: model, allow_pickle=True
    )
    assert one.look("sparsity", None) == zeros
    # A dense one that was given may be loaded; one of a baseline file is only read.
    target = Target("m/dense", str(dense))
    found = one.look("survivors", Dense(target, given=True))
    assert sorted_names(found) == sorted_names(expected)
    assert found.moved == {"model.norm.weight": (1, HIDDEN)}
    refused = one.look("survivors", Dense(target, given=False))
    assert isinstance(refused, Failure)
    assert refused.kind == "CheckpointError"
    assert "pickle weights" in refused.message


def test_files_that_were_replaced_are_not_those_that_were_measured(
    tmp_path: Path,
) -> None:
    folder = save_tiny(tmp_path / "it")
    one = replica(folder)
    before = one.look("fingerprint")
    # What is no part of the checkpoint may come and go.
    (folder / "README.md").write_text("a card")
    assert one.look("fingerprint") == before
    edit(folder, up_proj=slice(0, 8))
    assert travelled(one.look("fingerprint")) == Failure(
        "CheckpointError",
        f"{folder}: its files were replaced after they had been loaded, so nothing can "
        "be said of the weights that were measured: run again",
    )
    # Loaded again, it is about these.
    assert isinstance(one.load(Target("it", str(folder)), ()), Ready)
    assert one.look("fingerprint") == fingerprint(locate(str(folder)))
    assert one.look("fingerprint") != before


def test_files_that_are_replaced_while_it_looks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pytest_pplguard.measure import weights

    folder = save_tiny(tmp_path / "it")
    one = replica(folder)

    def slow(located: Any, **options: Any) -> Any:
        edit(folder, up_proj=slice(0, 8))
        return fingerprint(located, **options)

    monkeypatch.setattr(weights, "fingerprint", slow)
    answer = one.look("fingerprint")
    assert isinstance(answer, Failure)
    assert "its files were replaced after they had been loaded" in answer.message


def test_files_that_are_replaced_while_it_loads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = save_tiny(tmp_path / "it")

    def slow(*asked: Any, **options: Any) -> Any:
        edit(folder, up_proj=slice(0, 8))
        return load_target(*asked, **options)

    monkeypatch.setattr("pytest_pplguard.executors.replica.load_target", slow)
    answer = replica(folder).look("sparsity", None)
    assert isinstance(answer, Failure)
    assert "its files were replaced after they had been loaded" in answer.message


def test_a_tokenizer_of_its_own_is_told_apart(tmp_path: Path) -> None:
    """The model is the same: nothing but this digest says that a copy is stale."""
    ready = []
    for name, bos in (("a", True), ("b", True), ("c", False)):
        made = Replica(Options(device="cpu"), threads=1)
        folder = save_tiny(tmp_path / name, bos=bos)
        ready.append(made.load(Target("it", str(folder)), ()))
    a, b, c = ready
    assert isinstance(a, Ready)
    assert isinstance(b, Ready)
    assert isinstance(c, Ready)
    assert a.digest == b.digest == c.digest is not None
    assert a.tokenizer_digest == b.tokenizer_digest != c.tokenizer_digest


@pytest.mark.parametrize(
    ("given", "kind"), [(True, "CheckpointError"), (False, "NoDenseError")]
)
def test_a_dense_one_that_is_not_there(tmp_path: Path, given: bool, kind: str) -> None:
    one = replica(save_tiny(tmp_path / "it"))
    nowhere = Dense(Target("m/dense", "/nowhere/dense"), given=given)
    answer = travelled(one.look("survivors", nowhere))
    assert isinstance(answer, Failure)
    assert answer.kind == kind
    assert answer.message.startswith("/nowhere/dense does not exist")


def test_what_is_not_there_cannot_be_loaded(tmp_path: Path) -> None:
    made = Replica(Options(device="cpu"), threads=1)
    answer = made.load(Target("it", str(tmp_path / "it")), ())
    assert isinstance(answer, Failure)
    assert (answer.kind, answer.message[: len(str(tmp_path))]) == (
        "CheckpointError",
        str(tmp_path),
    )
