"""Undamaged checkpoints: the demo's Llama, and a GPT-NeoX and a GPT-2 trained here."""

from __future__ import annotations

import copy
import math
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path

import torch
from tokenizers import Tokenizer
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaForCausalLM,
    PreTrainedModel,
)
from transformers.utils import logging

from scripts.demo import corpus, make
from scripts.prune import Pattern, Unstructured, prune_magnitude, prune_wanda

from .site import Base, Text

HELDOUT_SEED = 4242
"""Of worlds that are neither in the training text nor in ``demo.txt``."""
TRAINING_WORLDS = 40
STEPS = 500
LENGTH = 128
HALF = Fraction(1, 2)
RULES: dict[str, Unstructured | Pattern] = {
    "wanda-50": Unstructured(HALF, "row"),
    "wanda-2of4": Pattern(2, 4),
}
NAMES = (
    *("llama/dense", "llama/wanda-50"),
    *("neox/dense", "neox/wanda-50", "neox/wanda-2of4"),
    *("gpt2/dense", "gpt2/wanda-50"),
)
USUAL = (
    *("llama/dense", "llama/wanda-50"),
    *("neox/dense", "neox/wanda-2of4"),
    "gpt2/wanda-50",
)
"""What the zoo runs over unless it is told otherwise."""

NEOX = GPTNeoXConfig(
    vocab_size=make.VOCABULARY,
    hidden_size=96,
    intermediate_size=384,
    num_hidden_layers=4,
    num_attention_heads=4,
    max_position_embeddings=512,
    hidden_dropout=0.0,
    attention_dropout=0.0,
    bos_token_id=0,
    eos_token_id=1,
    tie_word_embeddings=False,
    initializer_range=0.04,
    rope_parameters={
        "rope_type": "default",
        "rope_theta": 10000.0,
        "partial_rotary_factor": 0.5,
    },
)
GPT2 = GPT2Config(
    vocab_size=make.VOCABULARY,
    n_embd=96,
    n_layer=4,
    n_head=4,
    n_positions=LENGTH,
    resid_pdrop=0.0,
    embd_pdrop=0.0,
    attn_pdrop=0.0,
    bos_token_id=0,
    eos_token_id=1,
    initializer_range=0.04,
)


class Maker:
    """Makes bases in a folder, each once; what is there is taken as it is.

    Args:
        folder: where they are kept.
        steps: optimiser steps of a base; another run for comparison takes a third.
        windows: that the gates measure.
        window: their tokens.
        others: whether to make another training run of each for comparison.
    """

    def __init__(
        self,
        folder: Path,
        *,
        steps: int = STEPS,
        windows: int = 40,
        window: int = LENGTH,
        others: bool = True,
    ) -> None:
        self._folder = folder
        self._steps = steps
        self._windows = windows
        self._window = window
        self._others = others
        self._worlds: list[list[str]] = []

    def make(self, name: str) -> Base:
        """One of :data:`NAMES`, trained and pruned now if it is not there yet."""
        family, _, which = name.partition("/")
        dense = self._dense(family)
        folder = dense if which == "dense" else self._pruned(family, dense, which)
        return Base(
            name=name,
            folder=folder,
            dense=dense,
            text=Text(
                *("demo", make.DEMO / "demo.txt", self._window, self._windows), pages=3
            ),
            heldout="".join(corpus.worlds(HELDOUT_SEED, 1)[0][:3]),
            training="".join(page for world in self.worlds()[:3] for page in world),
            pattern="2:4" if which == "wanda-2of4" else None,
            other=self._other(family, which) if self._others else None,
        )

    def worlds(self) -> list[list[str]]:
        """The training text; generated once."""
        if not self._worlds:
            self._worlds = corpus.train_split(TRAINING_WORLDS)
        return self._worlds

    def _dense(self, family: str) -> Path:
        if family == "llama":
            return make.DEMO / "dense"
        path = self._folder / family / "dense"
        if not path.exists():
            self._save(_train(family, self._stream(), self._steps, seed=0), path)
        return path

    def _other(self, family: str, which: str) -> Path:
        """From another seed: a whole training run of its own, though a short one."""
        dense = self._folder / family / "other-dense"
        if not dense.exists():
            steps = self._steps // 3
            self._save(_train(family, self._stream(), steps, seed=1), dense)
        if which == "dense":
            return dense
        return self._pruned(family, dense, which, f"other-{which}")

    def _pruned(self, family: str, dense: Path, which: str, name: str = "") -> Path:
        if family == "llama" and not name:
            return make.DEMO / which
        path = self._folder / family / (name or which)
        if not path.exists():
            model = load(dense)
            prune_wanda(model, self._calibration(), RULES[which])
            self._save(model, path)
        return path

    def _save(self, model: PreTrainedModel, path: Path) -> None:
        """Float16, with the demo's tokenizer; whole or not at all."""
        part = path.with_name(f"{path.name}.part")
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
        save_half(model, part)
        for name in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copyfile(make.DEMO / "dense" / name, part / name)
        part.rename(path)

    def _stream(self) -> Tensor:
        return make.token_stream(_tokenizer(), self.worlds())

    def _calibration(self) -> list[Tensor]:
        return calibration(self.worlds())


def calibration(worlds: Sequence[Sequence[str]], windows: int = 64) -> list[Tensor]:
    """Windows of training text for Wanda, as ``(16, 128)`` batches."""
    text = "".join(page for world in worlds[-4:] for page in world)
    ids = torch.tensor(_tokenizer().encode("\n\n".join(corpus.rows(text))).ids)
    return list(torch.split(ids[: windows * LENGTH].view(windows, LENGTH), 16))


def load(folder: Path, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """A checkpoint by plain transformers."""
    with no_bars():
        model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
            folder, dtype=dtype
        )
    return model.eval()


def save_half(model: PreTrainedModel, path: Path) -> None:
    """Save a float16 copy of ``model``."""
    with no_bars():
        copy.deepcopy(model).half().save_pretrained(path)


def prune_again(folder: Path, rule: Unstructured | Pattern) -> PreTrainedModel:
    """The checkpoint pruned by magnitude."""
    model = load(folder)
    prune_magnitude(model, rule)
    return model


@contextmanager
def no_bars() -> Iterator[None]:
    """While open, transformers shows no progress bars."""
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def _tokenizer() -> Tokenizer:
    return Tokenizer.from_file(str(make.DEMO / "dense" / "tokenizer.json"))


def _train(family: str, stream: Tensor, steps: int, *, seed: int) -> PreTrainedModel:
    """AdamW on random windows of the demo's training text, seeded."""
    torch.manual_seed(seed)
    model: PreTrainedModel = {
        "llama": lambda: LlamaForCausalLM(make.CONFIG),
        "neox": lambda: GPTNeoXForCausalLM(NEOX),
        "gpt2": lambda: GPT2LMHeadModel(GPT2),
    }[family]()
    model.train()
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        # Gains and biases that mean something: fresh ones are all one and all zero.
        if name.endswith(("norm.weight", "ln_1.weight", "ln_2.weight", "ln_f.weight")):
            parameter.data.normal_(std=make.GAIN_SPREAD, generator=generator).exp_()
        elif name.endswith(".bias"):
            parameter.data.normal_(std=0.02, generator=generator)
    fit(model, stream, steps, rate=4e-3, generator=generator)
    return model.eval()


def fit(
    model: PreTrainedModel,
    stream: Tensor,
    steps: int,
    *,
    rate: float,
    generator: torch.Generator,
    batch: int = 8,
    length: int = LENGTH,
    after: list[tuple[Tensor, Tensor]] | None = None,
) -> None:
    """Train a model in place; ``after`` are masks to multiply weights by."""
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=rate, betas=(0.9, 0.98), weight_decay=0.0
    )
    for step in range(steps):
        warm = min(1.0, (step + 1) / min(50, steps))
        decay = 0.02 + 0.49 * (1 + math.cos(math.pi * step / steps))
        for group in optimizer.param_groups:
            group["lr"] = rate * min(warm, decay)
        starts = torch.randint(len(stream) - length, (batch,), generator=generator)
        windows = torch.stack([stream[start : start + length] for start in starts])
        logits = model(input_ids=windows).logits[:, :-1].flatten(0, 1)
        loss = torch.nn.functional.cross_entropy(logits, windows[:, 1:].flatten())
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        with torch.no_grad():
            for weight, mask in after or ():
                weight.mul_(mask)
