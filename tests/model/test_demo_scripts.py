"""Hold the demo to its scripts: the corpus and the shipped weights."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer
from torch import Tensor
from transformers import AutoTokenizer, LlamaForCausalLM

from scripts.demo import corpus, make
from scripts.prune import Unstructured, prune_magnitude, prune_wanda

ROOT = Path(__file__).parents[2]
DEMO = ROOT / "pytest_pplguard" / "demo"
LINEARS = re.compile(r"model\.layers\.\d+\.(self_attn|mlp)\.\w+_proj\.weight")


@pytest.fixture(scope="module")
def weights() -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    dense = load_file(DEMO / "dense" / "model.safetensors")
    return dense, load_file(DEMO / "wanda-50" / "model.safetensors")


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


def test_corpus_is_what_ships() -> None:
    assert corpus.test_split().encode() == (DEMO / "demo.txt").read_bytes()


def test_corpus_draws_are_its_own() -> None:
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


def test_shipped_masks_follow_from_the_dense_weights() -> None:
    worlds = corpus.train_split(make.WORLDS)
    tokenizer = Tokenizer.from_file(str(DEMO / "dense" / "tokenizer.json"))
    windows = make.calibration_windows(tokenizer, worlds)
    pruned = load_demo("dense")
    prune_wanda(pruned, windows, Unstructured(make.SPARSITY, "row"))
    shipped = load_demo("wanda-50").state_dict()
    differing = sum(
        int((values != shipped[name]).sum())
        for name, values in pruned.state_dict().items()
    )
    # None where they were made; sums that round otherwise may turn a near tie.
    assert differing <= 20


def test_pruning_costs_what_it_should() -> None:
    dense = load_demo("dense")
    dense_ppl = wanda_perplexity(dense)
    wanda_ppl = wanda_perplexity(load_demo("wanda-50"))
    prune_magnitude(dense, Unstructured(make.SPARSITY, "layer"))
    magnitude_ppl = wanda_perplexity(dense)
    assert dense_ppl < 2048 / 20
    assert wanda_ppl >= 1.05 * dense_ppl
    assert magnitude_ppl > wanda_ppl
