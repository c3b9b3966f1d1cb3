"""Which tests go to one worker."""

from __future__ import annotations

from pytest_pplguard.session.xdist import gated_checkpoint, scopes


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
