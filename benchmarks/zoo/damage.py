"""How damaged a checkpoint is, by plain transformers and torch alone, in float64.

Nothing here is code of the package: this is what its verdicts are held against.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

KL_THRESHOLD = 0.01
"""Nats a token; fixed before anything was measured.

It is what Q5_K_M, taken for nearly lossless, does to Llama-3-8B on WikiText-2: 0.0108
(scoreboard in tools/perplexity/README.md of llama.cpp at revision f364eb6f; Q6_K does
0.0055, Q4_K_M 0.031).
"""
BITS_THRESHOLD = 0.01
"""Relative change of bits per byte, where another tokenizer leaves no KL to compute."""

_BATCH = 16


@dataclass(frozen=True)
class Damage:
    """What a change did.

    ``kl`` is mean KL(undamaged || damaged) in nats a token, None where the token ids
    differ. ``bits`` and ``accuracy`` are bits per byte and the share of tokens that the
    damaged model puts first; ``bits_change`` is relative. ``broken`` says why there is
    no number: it does not load, or what it computes is not finite.
    """

    kl: float | None = None
    bits: float | None = None
    bits_change: float | None = None
    accuracy: float | None = None
    broken: str = ""

    @property
    def damaging(self) -> bool:
        """By the thresholds above."""
        if self.broken:
            return True
        if self.kl is not None:
            return not self.kl < KL_THRESHOLD
        return self.bits_change is None or not abs(self.bits_change) < BITS_THRESHOLD


@dataclass(frozen=True)
class _Reading:
    """A text as one model reads it; ``logs`` is ``(tokens, vocabulary)``."""

    windows: tuple[tuple[int, ...], ...]
    logs: Tensor
    targets: Tensor

    def bits(self, size: int) -> float:
        losses = -self.logs.gather(1, self.targets[:, None]).squeeze(1)
        return float(losses.sum()) / math.log(2) / size

    def accuracy(self) -> float:
        return float((self.logs.argmax(dim=1) == self.targets).double().mean())


class Undamaged:
    """A checkpoint that others are compared with, on a text held out from all else.

    The text is read page by page (a title begins a page), or as one page where there
    are none, in windows of ``window`` tokens that share one token, so that every token
    but the first of a page is scored. Log-probabilities are kept in memory, in float64:
    a thousand tokens of a vocabulary of 50,000 take 400 MB.
    """

    def __init__(self, folder: Path, text: str, *, window: int, windows: int) -> None:
        self._pages = [
            page for page in re.split(r"(?m)^(?= = [^=]+ = $)", text) if page
        ]
        self.size = len(text.encode())
        self._window, self._windows = window, windows
        self._reading = self._read(str(folder))
        self.tokens = len(self._reading.targets)
        self.bits = self._reading.bits(self.size)
        self.accuracy = self._reading.accuracy()

    @property
    def perplexity(self) -> float:
        """Of a token of the text."""
        return math.exp(self.bits * math.log(2) * self.size / self.tokens)

    @property
    def unigram(self) -> float:
        """What the text's own frequencies of tokens, without context, would give."""
        counts = torch.bincount(self._reading.targets).double()
        shares = counts[counts > 0] / self.tokens
        return math.exp(-float((shares * shares.log()).sum()))

    def damage_of(self, spec: str) -> Damage:
        """What another checkpoint does to the text; ``ADAPTER+BASE`` is merged."""
        try:
            reading = self._read(spec)
        # Whatever stops a user of transformers from loading or running it.
        except Exception as error:
            first = str(error).strip().partition("\n")[0]
            return Damage(broken=f"{type(error).__name__}: {first}"[:200])
        if not bool(reading.logs.isfinite().all()):
            return Damage(broken="its output is not finite", accuracy=0.0)
        bits, accuracy = reading.bits(self.size), reading.accuracy()
        change = bits / self.bits - 1
        if reading.windows != self._reading.windows:
            return Damage(bits=bits, bits_change=change, accuracy=accuracy)
        mine, other = self._reading.logs, reading.logs
        kl = float((mine.exp() * (mine - other)).sum(dim=1).mean())
        return Damage(kl, bits, change, accuracy)

    def _read(self, spec: str) -> _Reading:
        model = load_plain(spec)
        tokenizer = AutoTokenizer.from_pretrained(spec.partition("+")[2] or spec)
        windows: list[tuple[int, ...]] = []
        for page in self._pages:
            ids = tokenizer(page, verbose=False).input_ids
            windows += [
                tuple(ids[start : start + self._window])
                for start in range(0, len(ids) - 1, self._window - 1)
            ]
        if len(self._pages) == 1:
            windows = windows[: self._windows]
        return _Reading(tuple(windows), *_logs(model, windows))


def load_plain(spec: str) -> PreTrainedModel:
    """A folder, or ``ADAPTER+BASE`` merged by peft, computing in float64."""
    adapter, _, base = spec.partition("+")
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
        base or adapter, dtype=torch.float64
    )
    if base:
        from peft import PeftModel

        model = PeftModel.from_pretrained(model, adapter).merge_and_unload()
    return model.eval()


@torch.no_grad()
def _logs(
    model: PreTrainedModel, windows: Sequence[tuple[int, ...]]
) -> tuple[Tensor, Tensor]:
    """Log-probabilities of every scored position, and the tokens that came."""
    order = sorted(range(len(windows)), key=lambda place: -len(windows[place]))
    logs: dict[int, Tensor] = {}
    while order:
        length = len(windows[order[0]])
        same = [place for place in order[:_BATCH] if len(windows[place]) == length]
        order = order[len(same) :]
        ids = torch.tensor([windows[place] for place in same])
        out = model(input_ids=ids, use_cache=False).logits[:, :-1].double()
        logs |= zip(same, out.log_softmax(dim=-1), strict=True)
    targets = [id_ for window in windows for id_ in window[1:]]
    return torch.cat([logs[n] for n in range(len(windows))]), torch.tensor(targets)
