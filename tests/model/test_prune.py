"""Pruning for tests: masks are the paper's criterion, whatever the architecture."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from fractions import Fraction
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel, MambaConfig, MambaForCausalLM
from transformers.pytorch_utils import Conv1D

from pytest_pplguard.errors import CheckpointError, UsageError
from scripts.prune import (
    Pattern,
    Unstructured,
    magnitude_score,
    prune_magnitude,
    prune_wanda,
    wanda_score,
)

from .tiny import ARCHITECTURES, HIDDEN, LAYERS, build_model

Matrix = NDArray[Any]
Inputs = Callable[[Any], Tensor]
HALF = Fraction(1, 2)
ROW, LAYER, TWO_OF_FOUR = (
    Unstructured(HALF, "row"),
    Unstructured(HALF, "layer"),
    Pattern(2, 4),
)
BLOCKS = {
    "opt": "model.decoder.layers",
    "gpt_neox": "gpt_neox.layers",
    "gpt2": "transformer.h",
}


# ------------------------------------------------------------------------- the criteria


def lowest_go(score: Matrix, groups: list[list[tuple[int, int]]], count: int) -> Matrix:
    """Of each group of places ``count`` go: the lowest, of equals the first."""
    gone = np.zeros(score.shape, dtype=bool)
    for group in groups:
        for place in sorted(group, key=lambda place: score[place])[:count]:
            gone[place] = True
    return gone


def rows(shape: tuple[int, int]) -> list[list[tuple[int, int]]]:
    return [[(i, j) for j in range(shape[1])] for i in range(shape[0])]


def whole(shape: tuple[int, int]) -> list[list[tuple[int, int]]]:
    return [[(i, j) for i in range(shape[0]) for j in range(shape[1])]]


def runs_of(length: int) -> Callable[[tuple[int, int]], list[list[tuple[int, int]]]]:
    return lambda shape: [
        [(i, start + k) for k in range(length)]
        for i in range(shape[0])
        for start in range(0, shape[1], length)
    ]


RULES = pytest.mark.parametrize(
    ("rule", "groups", "count"),
    [
        pytest.param(Unstructured(HALF, "row"), rows, 12, id="half-of-row"),
        # floor(24 * 0.3) and floor(7 * 24 * 0.3)
        pytest.param(Unstructured(Fraction("0.3"), "row"), rows, 7, id="0.3-of-row"),
        pytest.param(Unstructured(HALF, "layer"), whole, 84, id="half-of-matrix"),
        pytest.param(
            Unstructured(Fraction("0.3"), "layer"), whole, 50, id="0.3-of-matrix"
        ),
        # What N:M names is what stays.
        pytest.param(Pattern(2, 4), runs_of(4), 2, id="2:4"),
        pytest.param(Pattern(4, 8), runs_of(8), 4, id="4:8"),
        pytest.param(Pattern(1, 4), runs_of(4), 3, id="1:4"),
        pytest.param(Pattern(5, 6), runs_of(6), 1, id="5:6"),
    ],
)


@RULES
@pytest.mark.parametrize("values", [None, 3], ids=["all-differ", "ties"])
def test_wanda_ranks_weight_times_norm(
    rule: Any, groups: Any, count: int, values: int | None
) -> None:
    weight, inputs = draw((7, 24), values), draw((50, 24), values)
    score = np.abs(weight) * np.sqrt((inputs**2).sum(axis=0))
    norm = torch.from_numpy(inputs).norm(dim=0)
    mask = rule.mask(wanda_score(torch.from_numpy(weight).float(), norm))
    assert np.array_equal(mask.numpy(), lowest_go(score, groups(weight.shape), count))


@RULES
@pytest.mark.parametrize("values", [None, 3], ids=["all-differ", "ties"])
def test_magnitude_ranks_weights(
    rule: Any, groups: Any, count: int, values: int | None
) -> None:
    weight = draw((7, 24), values)
    mask = rule.mask(magnitude_score(torch.from_numpy(weight).float()))
    expected = lowest_go(np.abs(weight), groups(weight.shape), count)
    assert np.array_equal(mask.numpy(), expected)


def draw(shape: tuple[int, int], values: int | None) -> Matrix:
    """Random numbers that float32 holds; whole ones from -values to values if given."""
    generator = np.random.default_rng(7)
    if values is None:
        return generator.standard_normal(shape).astype(np.float32).astype(np.float64)
    return generator.integers(-values, values + 1, shape).astype(np.float64)


def test_a_share_is_exact() -> None:
    assert int(100 * 0.29) == 28
    mask = Unstructured(Fraction("0.29"), "row").mask(torch.rand(3, 100))
    assert mask.sum(dim=1).tolist() == [29, 29, 29]


# ---------------------------------------------------------------------- block by block


def model_of(arch: str) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        if arch != "gpt2":
            # Gemma-2's masks differ from block to block where the window is short.
            extra = {"sliding_window": 8} if arch == "gemma2" else {}
            return build_model(arch, **extra)
        config = GPT2Config(
            vocab_size=320,
            n_embd=HIDDEN,
            n_layer=LAYERS,
            n_head=4,
            n_positions=64,
            initializer_range=0.4,
            bos_token_id=0,
            eos_token_id=1,
        )
        return GPT2LMHeadModel(config).eval()


def blocks_of(model: Any, arch: str) -> Any:
    return model.get_submodule(BLOCKS.get(arch, "model.layers"))


def batches_of_tokens() -> list[Tensor]:
    generator = torch.Generator().manual_seed(3)
    return [torch.randint(320, (2, 32), generator=generator) for _ in range(3)]


def weights_of(block: Any) -> Iterator[tuple[str, Tensor, Inputs]]:
    """Each matrix ``(out, in)`` of a block, and how its input follows from a module's.

    The name is that of the module whose arguments tell.
    """
    for name, module in block.named_modules():
        if isinstance(module, nn.Linear) or type(module).__name__.endswith("Router"):
            yield name, module.weight.data, first_argument
        elif isinstance(module, Conv1D):
            yield name, module.weight.data.T, first_argument
        elif isinstance(getattr(module, "gate_up_proj", None), nn.Parameter):
            for number, up in enumerate(module.gate_up_proj.data):
                yield name, up, partial(routed_to, number)
                inner = partial(inside_expert, number, module.act_fn, up.clone())
                yield name, module.down_proj.data[number], inner


def first_argument(args: Any) -> Tensor:
    features: Tensor = args[0]
    return features


def routed_to(expert: int, args: Any) -> Tensor:
    hidden, chosen, _weights = args
    tokens: Tensor = hidden[(chosen == expert).any(dim=1)]
    return tokens


def inside_expert(expert: int, activation: Any, gate_up: Tensor, args: Any) -> Tensor:
    gate, up = (routed_to(expert, args) @ gate_up.T).chunk(2, dim=-1)
    gated: Tensor = activation(gate) * up
    return gated


def input_norms(model: Any, block: Any, batches: list[Tensor]) -> list[Matrix]:
    """The 2-norm of every input feature of every matrix while the whole model runs."""
    handles, seen = [], []
    for name, _weight, inputs in weights_of(block):
        features: list[Matrix] = []
        seen.append(features)

        def look(_m: Any, args: Any, f: Any = inputs, to: Any = features) -> None:
            flat = f(args).reshape(-1, f(args).shape[-1])
            to.append(flat.double().numpy())

        handles.append(block.get_submodule(name).register_forward_pre_hook(look))
    if hasattr(model, "set_experts_implementation"):
        model.set_experts_implementation("eager")
    with torch.no_grad():
        for batch in batches:
            model(batch)
    for handle in handles:
        handle.remove()
    return [np.sqrt((np.concatenate(f) ** 2).sum(axis=0)) for f in seen]


def prune_by_hand(weight: Tensor, norm: Matrix, groups: Any, count: int) -> None:
    score = np.abs(weight.double().numpy()) * norm
    gone = lowest_go(score, groups(score.shape), count)
    weight[torch.from_numpy(gone)] = 0


def assert_equal_weights(model: Any, expected: Any) -> None:
    states = model.state_dict(), expected.state_dict()
    assert states[0].keys() == states[1].keys()
    for name, values in states[0].items():
        assert torch.equal(values, states[1][name]), name


@pytest.mark.parametrize("arch", [*ARCHITECTURES, "gpt2"])
def test_wanda_goes_block_by_block(arch: str) -> None:
    model, batches = model_of(arch), batches_of_tokens()
    expected = copy.deepcopy(model)
    finished = []
    prune_wanda(model, batches, ROW, progress=lambda *numbers: finished.append(numbers))
    assert finished == [(1, LAYERS), (2, LAYERS)]
    for block in blocks_of(expected, arch):
        # All norms of a block are taken before any of its own weights is pruned.
        norms = input_norms(expected, block, batches)
        for (_, weight, _), norm in zip(weights_of(block), norms, strict=True):
            prune_by_hand(weight, norm, rows, weight.shape[1] // 2)
    assert_equal_weights(model, expected)


@pytest.mark.parametrize(
    ("rule", "groups", "count"),
    [
        pytest.param(LAYER, whole, lambda weight: weight.numel() // 2, id="layer"),
        pytest.param(TWO_OF_FOUR, runs_of(4), lambda _weight: 2, id="2:4"),
    ],
)
@pytest.mark.parametrize("arch", ["llama", "mixtral", "gpt2"])
def test_other_rules_go_block_by_block_too(
    arch: str, rule: Any, groups: Any, count: Any
) -> None:
    model, batches = model_of(arch), batches_of_tokens()
    expected = copy.deepcopy(model)
    prune_wanda(model, batches, rule)
    for block in blocks_of(expected, arch):
        norms = input_norms(expected, block, batches)
        for (_, weight, _), norm in zip(weights_of(block), norms, strict=True):
            prune_by_hand(weight, norm, groups, count(weight))
    assert_equal_weights(model, expected)


def test_wanda_calibrates_on_pruned_blocks() -> None:
    # Norms from the dense model alone would give other masks behind the first block.
    pruned, batches = model_of("llama"), batches_of_tokens()
    prune_wanda(pruned, batches, ROW)
    same = []
    for number in range(LAYERS):
        dense = model_of("llama")
        block = dense.model.layers[number]
        norms = input_norms(dense, block, batches)
        for (_, weight, _), norm in zip(weights_of(block), norms, strict=True):
            prune_by_hand(weight, norm, rows, weight.shape[1] // 2)
        pairs = zip(
            block.parameters(), pruned.model.layers[number].parameters(), strict=True
        )
        same.append(all(torch.equal(left, right) for left, right in pairs))
    assert same == [True, False]


@pytest.mark.parametrize("arch", [*ARCHITECTURES, "gpt2"])
@pytest.mark.parametrize(
    ("rule", "groups", "count"),
    [
        pytest.param(LAYER, whole, lambda weight: weight.numel() // 2, id="layer"),
        pytest.param(ROW, rows, lambda weight: weight.shape[1] // 2, id="row"),
        pytest.param(TWO_OF_FOUR, runs_of(4), lambda _weight: 2, id="2:4"),
    ],
)
def test_magnitude_needs_weights_only(
    arch: str, rule: Any, groups: Any, count: Any
) -> None:
    model = model_of(arch)
    expected = copy.deepcopy(model)
    prune_magnitude(model, rule)
    for block in blocks_of(expected, arch):
        for _, weight, _ in weights_of(block):
            prune_by_hand(weight, np.ones(weight.shape[1]), groups, count(weight))
    assert_equal_weights(model, expected)


# ----------------------------------------------------------------- what is not pruned


def refused(model: Any, rule: Any = ROW, batches: list[Tensor] | None = None) -> str:
    with pytest.raises((CheckpointError, UsageError)) as caught:
        prune_wanda(model, batches or batches_of_tokens(), rule)
    return str(caught.value)


def test_a_width_that_m_does_not_divide() -> None:
    model = build_model("llama", intermediate_size=42)
    dense = copy.deepcopy(model)
    assert refused(model, TWO_OF_FOUR) == (
        "2:4 does not fit model.layers.0.mlp.down_proj.weight: its rows are 42 weights "
        "wide, which 4 does not divide. Choose another pattern, or --sparsity"
    )
    assert_equal_weights(model, dense)


def test_a_model_without_blocks() -> None:
    model = build_model("llama")
    model.config.num_hidden_layers = 5
    assert refused(model) == (
        "LlamaForCausalLM is no decoder that this tool knows: it looks for one list of "
        "num_hidden_layers=5 blocks and found none"
    )


def test_a_model_with_two_lists_of_blocks() -> None:
    model: Any = build_model("llama")
    model.model.more = nn.ModuleList([nn.Identity(), nn.Identity()])
    assert refused(model) == (
        "LlamaForCausalLM is no decoder that this tool knows: it looks for one list of "
        "num_hidden_layers=2 blocks and found model.layers and model.more"
    )


def test_a_weight_that_is_no_matrix() -> None:
    settings = {"vocab_size": 320, "hidden_size": 32, "num_hidden_layers": 2}
    model = MambaForCausalLM(MambaConfig(**settings, bos_token_id=0, eos_token_id=0))
    assert refused(model.eval()) == (
        "backbone.layers.0.mixer.A_log (64, 16) is no matrix that its block multiplies "
        "by in a way that this tool knows (linear, addmm, matmul): it cannot prune "
        "this architecture; llm-compressor may"
    )


def test_a_model_that_does_more_between_its_blocks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model: Any = build_model("llama")
    body = model.model

    def forward(input_ids: Tensor, use_cache: bool) -> None:
        state = body.embed_tokens(input_ids)
        places = torch.arange(input_ids.shape[1]).unsqueeze(0)
        turns = body.rotary_emb(state, places)
        for block in body.layers:
            state = 2 * block(
                state, position_embeddings=turns, attention_mask=None, use_cache=False
            )

    monkeypatch.setattr(body, "forward", forward)
    assert refused(model) == (
        "the blocks of LlamaForCausalLM, run one by one, do not give what the model "
        "gives: it does more between them than this tool knows"
    )


def test_weights_that_are_no_numbers() -> None:
    model: Any = build_model("opt")
    model.model.decoder.layers[1].fc2.weight.data[0, 0] = float("nan")
    with pytest.raises(CheckpointError) as caught:
        prune_magnitude(model, LAYER)
    assert str(caught.value) == (
        "model.decoder.layers.1.fc2.weight has weights or inputs that are not finite "
        "numbers"
    )
    assert refused(model) == (
        "OPTForCausalLM computes numbers that are not finite from the calibration text"
    )


def test_an_expert_without_a_token() -> None:
    model: Any = build_model("mixtral")
    token, chosen = torch.tensor([[7]]), []
    handle = model.model.layers[0].mlp.experts.register_forward_pre_hook(
        lambda _experts, args: chosen.extend(args[1].flatten().tolist())
    )
    model(token)
    handle.remove()
    idle = min({0, 1, 2, 3} - set(chosen))
    assert refused(model, batches=[token]) == (
        f"model.layers.0.mlp.experts.gate_up_proj[{idle}] saw no token of the "
        "calibration text: give more samples"
    )


def test_the_experts_kernel_is_as_before() -> None:
    model: Any = build_model("mixtral")
    before = getattr(model.config, "_experts_implementation", None)
    prune_wanda(model, batches_of_tokens(), ROW)
    assert getattr(model.config, "_experts_implementation", None) == before
