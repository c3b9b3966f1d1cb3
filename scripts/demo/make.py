"""Make the demo: corpus, tokenizer, a small trained Llama and its Wanda-pruned twin.

``python -m scripts.demo.make`` writes ``pytest_pplguard/demo`` in some minutes on two
CPU cores, downloads nothing, and prints what the checkpoints are worth.
"""

from __future__ import annotations

import argparse
import copy
import hashlib
import json
import math
import time
from fractions import Fraction
from pathlib import Path

import torch
from lm_eval.tasks.wikitext.preprocess_wikitext import wikitext_detokenizer
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import Tensor
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedModel

from scripts.demo.corpus import rows, test_split, train_split
from scripts.prune import Unstructured, prune_magnitude, prune_wanda

DEMO = Path(__file__).resolve().parents[2] / "pytest_pplguard" / "demo"
BOS, EOS = "<s>", "</s>"
VOCABULARY = 2048
WINDOW = 256
WORLDS = 300
CALIBRATION_WINDOWS = 128
SPARSITY = Fraction(1, 2)
GAIN_SPREAD = 0.6
SEED = 0

CONFIG = LlamaConfig(
    vocab_size=VOCABULARY,
    hidden_size=128,
    intermediate_size=352,
    num_hidden_layers=4,
    num_attention_heads=4,
    num_key_value_heads=4,
    max_position_embeddings=512,
    tie_word_embeddings=True,
    bos_token_id=0,
    eos_token_id=1,
    initializer_range=0.04,
)


def main() -> None:
    """Write the demo folder and print sizes and perplexities."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=DEMO, help="folder to write")
    parser.add_argument("--steps", type=int, default=1800, help="optimizer steps")
    arguments = parser.parse_args()
    out: Path = arguments.out
    dense_path, wanda_path = out / "dense", out / "wanda-50"
    out.mkdir(parents=True, exist_ok=True)

    demo_text = test_split()
    (out / "demo.txt").write_text(demo_text, encoding="utf-8", newline="\n")
    worlds = train_split(WORLDS)
    tokenizer = train_tokenizer(worlds)
    for path in (dense_path, wanda_path):
        save_tokenizer(tokenizer, path)
    stream = token_stream(tokenizer, worlds)
    print(f"training text: {len(worlds)} worlds, {len(stream):,} tokens")

    started = time.perf_counter()
    model = train(stream, arguments.steps)
    print(f"trained for {time.perf_counter() - started:.0f} s")
    save(model, dense_path)

    # Both pruned models start from the weights as they were saved, so that every
    # weight that survives is the dense one, bit for bit.
    dense = load(dense_path)
    wanda, magnitude = copy.deepcopy(dense), copy.deepcopy(dense)
    windows = calibration_windows(tokenizer, worlds)
    prune_wanda(wanda, windows, Unstructured(SPARSITY, "row"))
    prune_magnitude(magnitude, Unstructured(SPARSITY, "layer"))
    save(wanda, wanda_path)

    ids = encode(dense_path, demo_text)
    print(f"parameters: {dense.num_parameters():,}")
    print(f"demo.txt: {len(demo_text.encode()):,} bytes, {len(ids):,} tokens")
    print(f"  sha256 {hashlib.sha256(demo_text.encode()).hexdigest()}")
    for name, pruned in (
        ("dense", dense),
        ("Wanda 50 %", load(wanda_path)),
        ("magnitude 50 %", magnitude),
    ):
        print(f"{name}: token perplexity {token_perplexity(pruned, ids):.4f}")
    size = sum(file.stat().st_size for file in out.rglob("*") if file.is_file())
    print(f"{out}: {size:,} bytes")


def train_tokenizer(worlds: list[list[str]]) -> Tokenizer:
    """A byte-level BPE that puts ``<s>`` before every text, as Llama's does."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[BOS, EOS],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    texts = (
        text
        for world in worlds
        for page in world
        for text in (page, wikitext_detokenizer({"page": page}))
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A",
        pair=f"{BOS} $A {BOS} $B",
        special_tokens=[(BOS, tokenizer.token_to_id(BOS))],
    )
    return tokenizer


def save_tokenizer(tokenizer: Tokenizer, path: Path) -> None:
    """Save ``tokenizer`` so that ``AutoTokenizer`` of transformers 4 and 5 loads it."""
    path.mkdir(exist_ok=True)
    tokenizer.save(str(path / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": BOS,
        "eos_token": EOS,
        "clean_up_tokenization_spaces": False,
    }
    text = json.dumps(settings, indent=2) + "\n"
    (path / "tokenizer_config.json").write_text(text, encoding="utf-8", newline="\n")


def token_stream(tokenizer: Tokenizer, worlds: list[list[str]]) -> Tensor:
    """All training tokens in a row, ``(tokens,)``.

    Every third world is detokenised as lm-eval does it, page by page between ``<s>``
    and ``</s>``; the others are rows joined the way Wanda's code joins them. So the
    model knows both texts that the two methods will show it.
    """
    ids: list[int] = []
    for number, world in enumerate(worlds):
        if number % 3:
            ids += tokenizer.encode("\n\n".join(rows("".join(world)))).ids
        else:
            for page in world:
                text = wikitext_detokenizer({"page": page})
                ids += [*tokenizer.encode(text).ids, CONFIG.eos_token_id]
    return torch.tensor(ids)


def train(stream: Tensor, steps: int, batch_size: int = 8) -> LlamaForCausalLM:
    """A Llama trained from ``SEED`` on random windows of ``stream``.

    AdamW, linear warm-up, cosine decay. Three batches have windows of 256 tokens, the
    fourth has half as many of 512, so that all positions of the config are learnt.
    """
    torch.manual_seed(SEED)
    model = LlamaForCausalLM(CONFIG).train()
    # Large models have a few features far larger than the rest, which is what sets
    # Wanda apart from magnitude (section 3 of its paper). A model as small as this does
    # not grow them by itself in some minutes, so its norms start with uneven gains.
    for name, parameter in model.named_parameters():
        if name.endswith("layernorm.weight"):
            parameter.data.normal_(std=GAIN_SPREAD).exp_()
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=4e-3, betas=(0.9, 0.98), weight_decay=0.0
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda step: min(
            (step + 1) / 100, 0.02 + 0.49 * (1 + math.cos(math.pi * step / steps))
        ),
    )
    generator = torch.Generator().manual_seed(SEED)
    recent = 0.0
    for step in range(steps):
        double = 2 if step % 4 == 3 else 1
        length = WINDOW * double
        starts = torch.randint(
            len(stream) - length, (batch_size // double,), generator=generator
        )
        batch = torch.stack([stream[start : start + length] for start in starts])
        loss = model(input_ids=batch, labels=batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        schedule.step()
        recent += loss.item()
        if step % 100 == 99:
            print(f"step {step + 1}: loss {recent / 100:.4f}", flush=True)
            recent = 0.0
    return model.eval()


def calibration_windows(tokenizer: Tokenizer, worlds: list[list[str]]) -> list[Tensor]:
    """128 windows of training text, as ``(16, 256)`` batches."""
    text = "".join(page for world in worlds[-8:] for page in world)
    ids = torch.tensor(tokenizer.encode("\n\n".join(rows(text))).ids)
    windows = ids[: CALIBRATION_WINDOWS * WINDOW].view(CALIBRATION_WINDOWS, WINDOW)
    return list(torch.split(windows, 16))


def save(model: PreTrainedModel, path: Path) -> None:
    """Save a float16 copy of ``model``."""
    copy.deepcopy(model).half().save_pretrained(path)
    # safetensors writes for its owner alone; package data is for everybody.
    (path / "model.safetensors").chmod(0o644)


def load(path: Path) -> PreTrainedModel:
    """The checkpoint, computing in float32."""
    return LlamaForCausalLM.from_pretrained(path, dtype=torch.float32).eval()


def encode(path: Path, text: str) -> Tensor:
    """The token ids of ``text`` by Wanda's way of joining rows, ``(tokens,)``."""
    tokenizer = AutoTokenizer.from_pretrained(path)
    return torch.tensor(tokenizer("\n\n".join(rows(text))).input_ids)


@torch.no_grad()
def token_perplexity(model: PreTrainedModel, ids: Tensor) -> float:
    """Perplexity by the method of Wanda's code at windows of 256, tail dropped."""
    windows = ids[: len(ids) // WINDOW * WINDOW].view(-1, 1, WINDOW)
    losses = [model(input_ids=w, labels=w).loss.item() for w in windows]
    return math.exp(math.fsum(losses) / len(losses))


if __name__ == "__main__":
    main()
