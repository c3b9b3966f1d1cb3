"""Which tests go to one worker."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from pytest_pplguard import checkpoints
from pytest_pplguard.checkpoints import Hardware
from pytest_pplguard.options import Execution, Options
from pytest_pplguard.session.xdist import (
    count_workers,
    gated_checkpoint,
    scopes,
    worker_index,
)


def test_gates_go_by_checkpoint_and_other_tests_alone() -> None:
    gates = [
        "baselines/a.yaml::dense::wanda/tiny:16::token_perplexity",
        "baselines/a.yaml::w50::wanda/tiny:16::token_perplexity",
        "baselines/a.yaml::w50::sparsity::fraction",
        "baselines/b.yml::dense::wanda/tiny:16::token_perplexity",
    ]
    assert scopes([*gates, "tests/test_it.py::TestIt::test_it[a.yaml::x]"]) == {
        gates[0]: "baselines/a.yaml::dense",
        gates[1]: "baselines/a.yaml::w50",
        gates[2]: "baselines/a.yaml::w50",
        gates[3]: "baselines/b.yml::dense",
    }


def test_the_checkpoint_of_a_gate() -> None:
    gate = "sub/b/llama-2.7b.yml::w50::wanda/tiny:16::token_perplexity"
    assert gated_checkpoint(gate) == "llama-2.7b/w50"
    assert gated_checkpoint("tests/test_it.py::TestIt::test_it[a.yaml::x]") is None
    assert gated_checkpoint("baselines/llama.yaml") is None


def test_relative_gates_join_checkpoints() -> None:
    gates = [
        "b/a.yaml::dense::wanda/tiny:16::token_perplexity",
        "b/a.yaml::w50::wanda/tiny:16::token_perplexity",
        "b/a.yaml::w50::relative::dense",
        "b/a.yaml::w75::relative::w50",
        "b/a.yaml::other::wanda/tiny:16::token_perplexity",
    ]
    found = scopes(gates)
    assert len({found[gate] for gate in gates[:4]}) == 1
    assert found[gates[4]] == "b/a.yaml::other"


def test_divergences_join_checkpoints() -> None:
    gates = [
        "b/a.yaml::dense::wanda/tiny:16::token_perplexity",
        "b/a.yaml::w50::kl/tiny:16::kl_divergence",
        "b/a.yaml::w75::kl/tiny:16::top1_agreement",
        "b/a.yaml::other::wanda/tiny:16::token_perplexity",
    ]
    found = scopes(gates, {f"a/{name}": "dense" for name in ("w50", "w75", "other")})
    assert len({found[gate] for gate in gates[:3]}) == 1
    assert found[gates[3]] == "b/a.yaml::other"


def test_two_that_are_relative_to_each_other() -> None:
    gates = ["b/a.yaml::x::relative::y", "b/a.yaml::y::relative::x"]
    assert len(set(scopes(gates).values())) == 1


@pytest.mark.parametrize(
    ("gpus", "checkpoints_given", "options", "workers"),
    [
        (4, 20, Options(), 4),
        (4, 3, Options(), 3),  # a worker without a checkpoint would idle
        (0, 20, Options(), 16),
        (0, 3, Options(), 3),
        (4, 20, Options(device="cuda"), 4),
        (4, 20, Options(device="cpu"), 16),
        # All of them would load to the same devices.
        (4, 20, Options(device="cuda:1"), 1),
        (4, 20, Options(max_memory={"0": 1, "cpu": 1}), 1),
        # The models are elsewhere.
        (4, 20, Options(execution=Execution("ray")), 16),
    ],
)
def test_workers_of_n_auto(
    gpus: int,
    checkpoints_given: int,
    options: Options,
    workers: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    hardware = Hardware("cuda", gpus, ("NVIDIA H100",) * gpus)
    monkeypatch.setattr(checkpoints, "probe", lambda: hardware)
    assert count_workers(16, checkpoints_given, options) == workers


def test_the_only_worker_has_all_gpus() -> None:
    def config(**worker: object) -> pytest.Config:
        given = {"workerinput": worker} if worker else {}
        return SimpleNamespace(**given)  # type: ignore[return-value]

    assert worker_index(config()) is None
    assert worker_index(config(workerid="gw0", workercount=1)) is None
    assert worker_index(config(workerid="gw3", workercount=4)) == 3
