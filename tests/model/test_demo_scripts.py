"""Hold the demo to its scripts: corpus, pruning criteria and the shipped weights."""

from __future__ import annotations

import copy
import importlib
import math
import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

ROOT = Path(__file__).parents[2]
SCRIPTS = ROOT / "scripts" / "demo"
DEMO = ROOT / "pytest_pplguard" / "demo"
LINEARS = re.compile(r"model\.layers\.\d+\.(self_attn|mlp)\.\w+_proj\.weight")


@pytest.fixture
def corpus(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(SCRIPTS)
    return importlib.import_module("corpus")


@pytest.fixture
def prune(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(SCRIPTS)
    return importlib.import_module("prune")


@pytest.fixture(scope="module")
def weights() -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    dense = load_file(DEMO / "dense" / "model.safetensors")
    return dense, load_file(DEMO / "wanda-50" / "model.safetensors")


@pytest.fixture(scope="module")
def tiny_llama() -> Any:
    torch.manual_seed(5)
    config = LlamaConfig(
        vocab_size=61,
        hidden_size=16,
        intermediate_size=26,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        initializer_range=0.3,
    )
    return LlamaForCausalLM(config).eval()


def linears_of(block: Any) -> Iterator[Any]:
    attention, mlp = block.self_attn, block.mlp
    yield from (attention.q_proj, attention.k_proj, attention.v_proj, attention.o_proj)
    yield from (mlp.gate_proj, mlp.up_proj, mlp.down_proj)


def features_into(linear: Any, model: Any, windows: list[Tensor]) -> NDArray[Any]:
    """All inputs of one linear while ``windows`` run, ``(tokens, in)``, in float64."""
    seen: list[NDArray[Any]] = []
    handle = linear.register_forward_hook(
        lambda _module, args, _out: seen.append(
            args[0].reshape(-1, linear.in_features).double().numpy()
        )
    )
    with torch.no_grad():
        for window in windows:
            model(window)
    handle.remove()
    return np.concatenate(seen)


def wanda_perplexity(model: Any) -> float:
    """The loop of Wanda's ``eval_ppl`` at windows of 256, over the demo text."""
    lines = (DEMO / "demo.txt").read_bytes().decode().split("\n")[:-1]
    rows = ["" if line == " " else f"{line}\n" for line in lines]
    tokenizer = AutoTokenizer.from_pretrained(DEMO / "dense")
    ids = tokenizer("\n\n".join(rows), return_tensors="pt").input_ids
    seqlen, nlls = 256, []
    nsamples = ids.numel() // seqlen
    with torch.no_grad():
        for i in range(nsamples):
            window = ids[:, i * seqlen : (i + 1) * seqlen]
            logits = model(window).logits[:, :-1, :]
            loss = torch.nn.functional.cross_entropy(
                logits.reshape(-1, logits.size(-1)), window[:, 1:].reshape(-1)
            )
            nlls.append(loss.item() * seqlen)
    return math.exp(sum(nlls) / (nsamples * seqlen))


def load_demo(name: str) -> Any:
    model = LlamaForCausalLM.from_pretrained(DEMO / name, dtype=torch.float32)
    return model.eval()


def test_corpus_is_what_ships(corpus: ModuleType) -> None:
    assert corpus.test_split().encode() == (DEMO / "demo.txt").read_bytes()


def test_corpus_draws_are_its_own(corpus: ModuleType) -> None:
    assert corpus.worlds(7, 2) == corpus.worlds(7, 2)
    assert corpus.worlds(7, 1) != corpus.worlds(8, 1)


def test_corpus_has_the_layout_of_wikitext() -> None:
    text = (DEMO / "demo.txt").read_bytes().decode()
    lines = text.split("\n")
    assert lines.pop() == ""
    assert 60_000 <= len(text.encode()) <= 80_000
    headings = 0
    for number, line in enumerate(lines):
        if line.startswith(" ="):
            assert re.fullmatch(r" (= ){1,3}[^= ][^=]*( =){1,3} ", line), line
            assert line.count("=") % 2 == 0
            assert lines[number - 1] == lines[number + 1] == " "
            headings += 1
        elif line != " ":
            # Prose: a space at both ends, tokenised punctuation, nothing unfilled.
            assert re.fullmatch(r" \S.*\S ", line), line
            assert not re.search(r"  |[{}\[\]|]|\w[,.;:?]", line), line
    titles = [line for line in lines if re.fullmatch(r" = [^=]+ = ", line)]
    assert len(titles) == len(set(titles)) == 18
    assert headings > 60


def test_pages_are_short_and_long() -> None:
    text = (DEMO / "demo.txt").read_bytes().decode()
    tokenizer = AutoTokenizer.from_pretrained(DEMO / "dense")
    pages = re.split(r"(?m)^(?= = [^=]+ = $)", text)[1:]
    lengths = [len(tokenizer(page).input_ids) for page in pages]
    assert len(lengths) == 18
    assert sum(length < 256 for length in lengths) >= 3
    assert sum(length > 1000 for length in lengths) >= 3


def test_tokenizer_adds_bos_and_keeps_the_text() -> None:
    for name in ("dense", "wanda-50"):
        tokenizer = AutoTokenizer.from_pretrained(DEMO / name)
        text = (DEMO / "demo.txt").read_bytes().decode() + "\t日本"
        ids = tokenizer(text).input_ids
        assert ids[0] == tokenizer.bos_token_id == 0
        assert ids.count(0) == 1
        assert tokenizer.eos_token_id == 1
        assert tokenizer.decode(ids[1:]) == text
        assert len(tokenizer) == 2048


def test_wanda_is_the_papers_criterion(prune: ModuleType, tiny_llama: Any) -> None:
    generator = torch.Generator().manual_seed(3)
    windows = [torch.randint(61, (2, 32), generator=generator) for _ in range(4)]
    pruned = copy.deepcopy(tiny_llama)
    prune.prune_wanda(pruned, windows, 0.5)

    expected = copy.deepcopy(tiny_llama)
    for block, pruned_block in zip(
        expected.model.layers, pruned.model.layers, strict=True
    ):
        # All norms of a block are taken before any of its own weights is pruned.
        norms = [
            np.sqrt((features_into(linear, expected, windows) ** 2).sum(axis=0))
            for linear in linears_of(block)
        ]
        for linear, norm, result in zip(
            linears_of(block), norms, linears_of(pruned_block), strict=True
        ):
            dense = linear.weight.detach().double().numpy()
            kept = np.zeros(dense.shape, dtype=bool)
            for row in range(dense.shape[0]):
                score = np.abs(dense[row]) * norm
                kept[row, np.argsort(score)[dense.shape[1] // 2 :]] = True
            survivors = torch.from_numpy(np.where(kept, dense, 0.0)).float()
            assert torch.equal(result.weight, survivors)
            linear.weight.data = survivors


def test_wanda_calibrates_on_pruned_blocks(prune: ModuleType, tiny_llama: Any) -> None:
    # Masks from dense activations alone would differ somewhere behind the first block.
    windows = [torch.arange(61).unsqueeze(0)]
    pruned, dense = copy.deepcopy(tiny_llama), copy.deepcopy(tiny_llama)
    prune.prune_wanda(pruned, windows, 0.5)
    differing = []
    for block, pruned_block in zip(
        dense.model.layers, pruned.model.layers, strict=True
    ):
        same = []
        for linear, result in zip(
            linears_of(block), linears_of(pruned_block), strict=True
        ):
            norm = np.sqrt((features_into(linear, dense, windows) ** 2).sum(axis=0))
            mask = prune.wanda_mask(linear.weight, torch.from_numpy(norm), 0.5)
            same.append(torch.equal(mask, result.weight == 0))
        differing.append(not all(same))
    assert differing == [False, True, True]


def test_magnitude_takes_the_smallest_half(prune: ModuleType, tiny_llama: Any) -> None:
    pruned = copy.deepcopy(tiny_llama)
    prune.prune_magnitude(pruned, 0.5)
    for block, pruned_block in zip(
        tiny_llama.model.layers, pruned.model.layers, strict=True
    ):
        for linear, result in zip(
            linears_of(block), linears_of(pruned_block), strict=True
        ):
            gone = result.weight == 0
            assert int(gone.sum()) * 2 == gone.numel()
            assert linear.weight[gone].abs().max() <= linear.weight[~gone].abs().min()
            assert torch.equal(result.weight[~gone], linear.weight[~gone])


def test_magnitude_is_exact_with_ties(prune: ModuleType) -> None:
    mask = prune.magnitude_mask(torch.ones(4, 6), 0.5)
    assert int(mask.sum()) == 12


def test_shipped_masks_are_half_of_every_row(
    weights: tuple[dict[str, Tensor], dict[str, Tensor]],
) -> None:
    dense, wanda = weights
    assert dense.keys() == wanda.keys()
    linears = [name for name in dense if LINEARS.fullmatch(name)]
    assert len(linears) == 4 * 7
    for name, values in wanda.items():
        assert values.dtype == dense[name].dtype == torch.float16
        if name not in linears:
            assert torch.equal(values, dense[name])
            continue
        zeros = values == 0
        assert set((zeros.sum(dim=1) * 2).tolist()) == {values.shape[1]}, name
        assert torch.equal(values[~zeros], dense[name][~zeros]), name


def test_shipped_size() -> None:
    files = [file for file in DEMO.rglob("*") if file.is_file()]
    assert sum(file.stat().st_size for file in files) <= 6_000_000


def test_pruning_costs_what_it_should(prune: ModuleType) -> None:
    dense = load_demo("dense")
    dense_ppl = wanda_perplexity(dense)
    wanda_ppl = wanda_perplexity(load_demo("wanda-50"))
    prune.prune_magnitude(dense, 0.5)
    magnitude_ppl = wanda_perplexity(dense)
    assert dense_ppl < 2048 / 20
    assert wanda_ppl >= 1.05 * dense_ppl
    assert magnitude_ppl > wanda_ppl
