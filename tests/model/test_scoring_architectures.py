"""Families of models, in batches and not: what the original formula says of each."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from pytest_pplguard.checkpoints import load, locate
from pytest_pplguard.corpora import Corpus
from pytest_pplguard.errors import MeasurementError
from pytest_pplguard.measure import measure_loaded
from pytest_pplguard.scoring import Scorer
from pytest_pplguard.values import Key, Window, WindowScore
from tests.model.originals import stock_hflm, wanda_perplexity, wanda_window_losses
from tests.model.test_scoring_batches import VOCAB, nats, windows
from tests.model.tiny import (
    TRANSFORMERS_4,
    build_model,
    build_tokenizer,
    save,
    save_tokenizer,
)

_SIZES = {
    **dict.fromkeys(
        ("hidden_size", "d_model", "n_embd", "emb_dim", "word_embed_proj_dim"), 32
    ),
    **dict.fromkeys(("intermediate_size", "ffn_dim", "n_inner", "ffn_hidden_size"), 64),
    **dict.fromkeys(("decoder_ffn_dim", "encoder_ffn_dim"), 64),
    **dict.fromkeys(("moe_intermediate_size", "shared_expert_intermediate_size"), 32),
    **dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers", "num_layers"), 2),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "num_heads"), 4),
    **dict.fromkeys(("num_local_experts", "num_experts"), 4),
    **dict.fromkeys(("max_position_embeddings", "n_positions", "max_seq_len"), 256),
    **dict.fromkeys(("sliding_window", "attention_window_size"), 8),
    **dict.fromkeys(("initializer_range", "init_std"), 0.3),
    "num_experts_per_tok": 2,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "lru_width": 32,
    "state_size": 4,
    "vocab_size": VOCAB,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 2,
}

_FAMILIES: dict[str, dict[str, Any]] = {
    "bloom": {"hidden_size": 32},  # biases by distance, made from a mask
    "cohere2": {"logit_scale": 0.5},
    "falcon": {"alibi": True},
    "gemma": {},
    "gemma2": {"query_pre_attn_scalar": 8, "final_logit_softcapping": 5.0},
    "gemma3_text": {"query_pre_attn_scalar": 8},  # windows that slide
    "gpt2": {},
    "gpt_bigcode": {},
    "gpt_neox": {},
    "gpt_oss": {},
    "gptj": {"rotary_dim": 4},
    "granitemoe": {"logits_scaling": 2.0},
    "llama4_text": {"attention_chunk_size": 8, "intermediate_size_mlp": 64},
    "mamba": {},  # a convolution over what came before, and a state
    "mistral": {},
    "mixtral": {},
    "mpt": {},  # biases by distance from the end of what is read
    "nanochat": {},
    "olmo2": {},
    "opt": {},  # learned positions with an offset, by a mask
    "phi": {},
    "phi3": {
        "original_max_position_embeddings": 24,  # other factors beyond so many tokens
        "rope_parameters": {
            "rope_type": "longrope",
            "rope_theta": 1e4,
            "short_factor": [1.0] * 4,
            "long_factor": [3.0] * 4,
        },
    },
    "qwen2": {},
    "qwen2_moe": {},
    "qwen3": {},
    "recurrent_gemma": {"block_types": ["recurrent", "attention"]},
    "roberta": {"is_decoder": True},  # positions by which ids are padding
    "rwkv": {},
    "stablelm": {},
    "starcoder2": {},
    "xglm": {"attention_heads": 4},
    "xlm": {"dropout": 0.0, "attention_dropout": 0.0, "causal": False},  # sees all
}


def build(arch: str) -> nn.Module:
    from transformers import AutoConfig, AutoModelForCausalLM

    standard = AutoConfig.for_model(arch)
    known = standard.to_dict()
    sizes = {name: value for name, value in _SIZES.items() if name in known}
    config = AutoConfig.for_model(arch, **{**sizes, **_FAMILIES[arch]})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model: nn.Module = AutoModelForCausalLM.from_config(config).eval().float()
    assert sum(parameter.numel() for parameter in model.parameters()) < 1e7
    return model


@pytest.mark.parametrize("arch", sorted(_FAMILIES))
def test_a_family_has_the_formulas_losses_in_batches_of_any_size(arch: str) -> None:
    if TRANSFORMERS_4 and arch == "nanochat":
        pytest.skip("transformers 4.56 does not know it")
    cut = windows(start=1)
    expected = nats(build(arch), cut)
    model = build(arch)
    for size in (1, 2, 3, 8, "auto"):
        reader = Scorer(model, batch_size=size)
        found = [score.nll_sum for score in reader(cut)]
        assert found == pytest.approx(expected, rel=2e-6), size
        assert math.fsum(found) == pytest.approx(math.fsum(expected), rel=1e-6), size


_ROWS = [
    row
    for page in range(3)
    for row in (
        f" = Page {page} = \n",
        *(f" The {n} @-@ ton ships sailed , slowly . \n" for n in range(2 + 9 * page)),
    )
]


@pytest.mark.parametrize("batch_size", [3, "auto"])
@pytest.mark.parametrize("arch", ["bloom", "gpt2", "mamba", "opt", "phi3", "xlm"])
def test_both_originals_own_code_gives_the_numbers_of_a_family_in_batches(
    arch: str, batch_size: Any, tmp_path: Path
) -> None:
    model: Any = build(arch)
    save(model, tmp_path)
    save_tokenizer(build_tokenizer(VOCAB), tmp_path)
    loaded = load(locate(str(tmp_path)), device="cpu", dtype="float32")
    corpus = Corpus.from_wikitext_rows("mine", _ROWS)

    def measured(key: str) -> dict[str, float]:
        measurement = measure_loaded(
            loaded, Key.parse(key), lambda _: corpus, batch_size=batch_size
        )
        return measurement.metrics

    losses = wanda_window_losses(loaded.model, loaded.tokenizer, corpus.rows, 40)
    token = measured("wanda/mine:40")["token_perplexity"]
    assert token == pytest.approx(wanda_perplexity(losses, 40), rel=1e-6)
    stock = stock_hflm(loaded.model, loaded.tokenizer, corpus.pages, 40)
    assert measured("lm-eval/wikitext+mine:40") == pytest.approx(stock, rel=1e-6)


# -------------------------------------------------------- models that see each other


class Crowded(nn.Module):
    """Its expert takes the first 20 tokens of a batch, and no more."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCAB, VOCAB)

    def forward(self, input_ids: torch.Tensor) -> Any:
        states = self.embed(input_ids)
        flat = states.flatten(0, 1).clone()
        flat[:20] *= 2
        return SimpleNamespace(logits=flat.view_as(states))


def rounded(model: Any) -> nn.Module:
    """Its head rounds by the largest number of all that it reads."""

    class Head(nn.Linear):
        def forward(self, rows: torch.Tensor) -> torch.Tensor:
            step = rows.abs().max() / 31
            return super().forward((rows / step).round() * step)

    model.lm_head.__class__ = Head
    return model  # type: ignore[no-any-return]


@pytest.mark.parametrize("lengths", [(24,) * 7, (24, 24, 23, 24, 23, 22, 22, 24)])
@pytest.mark.parametrize("size", [2, 5, "auto"])
@pytest.mark.parametrize("kind", ["crowded", "rounded"])
def test_a_model_whose_windows_see_each_other_reads_them_one_by_one(
    kind: str, size: Any, lengths: tuple[int, ...]
) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Crowded() if kind == "crowded" else rounded(build_model("llama", VOCAB))
    reader = Scorer(model, batch_size=size)
    cut = windows(lengths)
    found = [score.nll_sum for score in reader(cut)]
    assert found == pytest.approx(nats(model, cut), rel=1e-6)
    assert reader.notices[-1] == (
        "windows are read one by one: reading several at once changes this model's "
        "losses (slower, same numbers)"
    )
    assert not any("equal length" in notice for notice in reader.notices)


def test_rows_of_a_model_whose_windows_see_each_other_are_those_of_each_alone() -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Crowded()
    cut, reader = windows((24,) * 3), Scorer(model, batch_size=3)
    with reader.running():
        rows = reader.rows((0, 1, 2), cut)
        alone = [Scorer(model).rows((index,), cut)[0] for index in range(3)]
    for one, other in zip(rows, alone, strict=True):
        assert torch.equal(one, other)


class Faint(nn.Module):
    """Sees what follows in short inputs only."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCAB, VOCAB)

    def forward(self, input_ids: torch.Tensor) -> Any:
        states = self.embed(input_ids)
        seen = states.mean(1, keepdim=True) if input_ids.shape[1] < 20 else 0
        return SimpleNamespace(logits=states + seen)


def test_padding_is_proven_again_for_windows_half_as_long() -> None:
    cut = windows((40, 40, 39, 40, 16, 15, 16, 15))
    model = Faint()
    reader = Scorer(model, batch_size=4)
    found = [score.nll_sum for score in reader(cut)]
    assert found == pytest.approx(nats(model, cut), rel=1e-6)
    assert "equal length" in reader.notices[0]


def test_a_config_that_turns_positions_by_length_is_believed() -> None:
    """Code that comes with a checkpoint has no module that says so."""
    from pytest_pplguard.scoring.models import rotates_by_length

    model: Any = Crowded()
    for config, expected in (
        ({"rope_scaling": {"type": "dynamic", "factor": 2.0}}, True),
        ({"rope_scaling": {"rope_type": "linear", "factor": 2.0}}, False),
        ({"rope_parameters": {"full": {"rope_type": "longrope"}}}, True),
        ({"use_dynamic_ntk": True}, True),
        ({"rope_scaling": None}, False),
    ):
        model.config = SimpleNamespace(**config)
        assert rotates_by_length(model) is expected, config


# ------------------------------------------------------------ models of other habits


class Around(nn.Module):
    """Somebody's class around a model of transformers."""

    def __init__(self, model: Any, body: nn.Module | None = None) -> None:
        super().__init__()
        self.model = model
        self.base_model = model.base_model if body is None else body

    def get_output_embeddings(self) -> Any:
        return self.model.get_output_embeddings()

    def forward(self, input_ids: torch.Tensor) -> Any:
        return SimpleNamespace(logits=self.model(input_ids).logits)


class TakesANumber(Around):
    def forward(self, input_ids: torch.Tensor, logits_to_keep: int = 0) -> Any:
        assert isinstance(logits_to_keep, int)
        return super().forward(input_ids)


class TakesAndIgnores(Around):
    def forward(self, input_ids: torch.Tensor, logits_to_keep: Any = 0) -> Any:
        return super().forward(input_ids)


@pytest.mark.parametrize("kind", [TakesANumber, TakesAndIgnores])
def test_logits_to_keep_may_be_understood_otherwise(kind: type[Around]) -> None:
    inner = build_model("llama", VOCAB)
    cut = windows((20, 20))
    found = [score.nll_sum for score in Scorer(kind(inner))(cut)]
    assert found == pytest.approx(nats(inner, cut), rel=1e-6)


@pytest.mark.parametrize("kind", [AssertionError, IndexError, KeyError, ValueError])
def test_a_body_that_fails_alone_is_not_run_alone(kind: type[Exception]) -> None:
    class Picky(nn.Module):
        def forward(self, **inputs: Any) -> Any:
            raise kind("I want more")

    inner = build_model("llama", VOCAB)
    reader, cut = Scorer(Around(inner, Picky())), windows((20,))
    found = [score.nll_sum for score in reader(cut)]
    assert found == pytest.approx(nats(inner, cut), rel=1e-6)
    assert f"its body cannot be run alone ({kind.__name__})" in reader.notices[0]


def test_what_a_model_asserts_is_told_with_its_window() -> None:
    class Strict(nn.Module):
        def forward(self, input_ids: torch.Tensor) -> Any:
            assert input_ids.shape[1] < 10, "at most 9"

    with pytest.raises(MeasurementError) as caught:
        Scorer(Strict())(windows((20,)))
    assert str(caught.value).startswith(
        "the model failed on window 1 of 1 (page 1) (20 tokens): AssertionError: at"
    )


# ------------------------------------------------------------------- after a break


def test_windows_of_another_order_are_counted_once() -> None:
    class Kept:
        finished: dict[int, WindowScore] = {}  # noqa: RUF012 - a protocol's attribute

        def add(self, scores: Any) -> None:
            """Nothing is kept."""

    told: list[tuple[int, int]] = []
    model, kept = build_model("llama", VOCAB), Kept()
    cut = windows((10,) * 4)
    whole = Scorer(model)(cut)
    kept.finished = {0: whole[0]}
    Scorer(model, batch_size=2, progress=lambda d, n, _: told.append((d, n)))(cut, kept)
    assert told == [(1, 4), (2, 4), (4, 4)]


@pytest.mark.parametrize(
    "error", [MemoryError(), RuntimeError("can't allocate memory: you tried to")]
)
def test_answers_that_are_too_many_for_a_cpus_memory_are_read_alone(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: Any) -> Any:
        raise error

    model, ids = build_model("llama", VOCAB), tuple(range(10, 30))
    cut = [Window((*ids, last), (last, last + 9), 19, None) for last in (50, 60)]
    expected = nats(model, cut)
    monkeypatch.setattr(Scorer, "_continued", fail)
    reader = Scorer(model)
    found = [score.nll_sum for score in reader(cut, answers=True)]
    assert found == pytest.approx(expected, rel=1e-6)
    assert reader.notices == [
        "each answer is read with its whole context: a document's answers together are "
        "too much for its memory (slower, same numbers)"
    ]
