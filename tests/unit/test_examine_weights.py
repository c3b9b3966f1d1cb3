"""The rules that compare layers: what they see, and what they let pass."""

from __future__ import annotations

from pytest_pplguard.checkpoints.examine.result import Finding, Findings
from pytest_pplguard.checkpoints.examine.weights import check_weights
from pytest_pplguard.values import TensorFacts

SIZE = 100 * 100


def up(layer: int) -> str:
    return f"model.layers.{layer}.mlp.up_proj.weight"


def matrix(
    index: int, *, share: float = 0.0, rms: float = 0.02, peak: float | None = None
) -> TensorFacts:
    """A matrix of its own with this share of zeros; ``rms`` is of the others."""
    zeros = round(share * SIZE)
    return TensorFacts(
        dtype="F32",
        shape=(100, 100),
        values=f"v{index}",
        zeros=zeros,
        mask="m",
        norm=rms * (SIZE - zeros) ** 0.5,
        peak=5 * rms if peak is None else peak,
    )


def found(facts: dict[str, TensorFacts]) -> tuple[Finding, ...]:
    findings = Findings()
    check_weights("m", facts, list(facts), findings, dtype=None)
    return findings.sorted()


def shares(*values: float) -> tuple[Finding, ...]:
    return found({up(i): matrix(i, share=share) for i, share in enumerate(values)})


def test_sparsity_that_differs_by_design_passes() -> None:
    """Each layer its own (OWL, global magnitude); all equal; a few tenths apart."""
    assert shares(0.3, 0.35, 0.42, 0.5, 0.55, 0.6, 0.66, 0.7) == ()
    assert shares(*[0.5] * 8) == ()
    assert shares(0.5, 0.501, 0.499, 0.503, 0.497, 0.51) == ()
    assert shares(*[0.0] * 8) == ()


def test_too_few_layers_to_tell_pass() -> None:
    assert shares(0.5, 0.0) == ()


def test_lost_masks() -> None:
    (finding,) = shares(*[0.5] * 12, 0.0003, 0.0, 0.0, *[0.5] * 15)
    assert finding == Finding(
        "warning",
        "sparsity",
        "layers 12-14: mlp.up_proj",
        "m: 0.00% to 0.03% zeros in layers 12-14: mlp.up_proj, 50.00% in the other "
        "layers: a mask lost, or left so on purpose?",
    )


def test_merged_layers_of_a_sparse_model() -> None:
    (finding,) = shares(0.4, 0.4, 0.327, 0.4, 0.4)
    assert finding.where == "layer 2: mlp.up_proj"


def test_norms_that_grow_with_depth_pass() -> None:
    """And first and last layers that differ much, as those of trained models do."""
    grown = {up(i): matrix(i, rms=0.01 * 1.2**i) for i in range(20)}
    assert found(grown) == ()
    edges = {up(i): matrix(i) for i in range(12)}
    edges |= {up(0): matrix(0, rms=0.1), up(11): matrix(11, rms=0.004)}
    assert found(edges) == ()


def test_a_scaled_layer() -> None:
    facts = {up(i): matrix(i) for i in range(12)} | {up(5): matrix(5, rms=0.1)}
    (finding,) = found(facts)
    assert finding.text == (
        "m: the weights of layer 5: mlp.up_proj are 5 times larger than in the layers "
        "around: scaled, or of another model?"
    )


def test_a_weight_beyond_all_others() -> None:
    facts = {up(i): matrix(i) for i in range(4)} | {up(2): matrix(2, peak=2000.0)}
    (finding,) = found(facts)
    assert (finding.code, finding.where) == ("peak", "layer 2: mlp.up_proj")
    assert "2e+03; 0.1 is usual in the other layers" in finding.text
