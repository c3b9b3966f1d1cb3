"""Ways to score windows: this package's, the original formula, and stock lm-eval."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import random
from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from pytest_pplguard.scoring import Scorer
from pytest_pplguard.values import Window


class Work(NamedTuple):
    """The same random tokens as windows, and as a text for lm-eval."""

    windows: list[Window]
    text: str
    window: int


Score = Callable[[Work], float]
"""Negative log-likelihood of all that is scored, in nats."""


def work_of(model: Any, window: int, count: int, seed: int = 0) -> Work:
    """Random tokens: ``count`` windows, and a text that lm-eval cuts into as many."""
    ids = random.Random(seed * 1_000_003 + window)
    size = model.config.vocab_size
    drawn = [ids.randrange(2, size) for _ in range(count * window)]
    starts = range(0, len(drawn), window)
    cut = [tuple(drawn[start : start + window]) for start in starts]
    windows = [Window(ids=one, targets=one[1:]) for one in cut]
    return Work(windows, " ".join(map(str, drawn)), window)


def ours(model: Any, batch: int) -> Score:
    """This package's scorer, on windows of Wanda's kind."""
    scorer = Scorer(model, batch_size=batch)
    return lambda work: sum(score.nll_sum for score in scorer(work.windows))


def formula(model: Any, batch: int) -> Score:
    """The formula of Wanda's ``lib/eval.py``, with the logits of a whole batch."""
    loss_fct = torch.nn.CrossEntropyLoss()
    device = model.get_input_embeddings().weight.device

    def evaluate(work: Work) -> float:
        total = 0.0
        for start in range(0, len(work.windows), batch):
            some = work.windows[start : start + batch]
            inputs = torch.tensor([window.ids for window in some], device=device)
            lm_logits = model(inputs).logits
            shift_logits = lm_logits[:, :-1, :].contiguous()
            shift_labels = inputs[:, 1:]
            loss = loss_fct(
                shift_logits.reshape(-1, shift_logits.size(-1)),
                shift_labels.reshape(-1),
            )
            total += float(loss.float()) * shift_labels.numel()
        return total

    return torch.no_grad()(evaluate)


def pages(model: Any, batch: int) -> Score:
    """This package's scorer on a text as lm-eval cuts it; tokenised each time."""
    from pytest_pplguard.protocols import LmEval
    from pytest_pplguard.values import Key

    scorer, tokenizer = Scorer(model, batch_size=batch), _tokenizer(model)

    def evaluate(work: Work) -> float:
        key = Key.parse(f"lm-eval/wikitext:{work.window}")
        windows = LmEval().rolling([work.text], tokenizer, key)
        return sum(score.nll_sum for score in scorer(windows))

    return evaluate


def hflm(model: Any, batch: int) -> Score:
    """lm-eval's ``HFLM.loglikelihood_rolling``."""
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    tokenizer = _tokenizer(model)
    made: dict[int, Any] = {}

    def evaluate(work: Work) -> float:
        if work.window not in made:
            made[work.window] = HFLM(
                pretrained=model,
                tokenizer=tokenizer,
                max_length=work.window,
                batch_size=batch,
            )
        request = Instance(
            request_type="loglikelihood_rolling",
            doc={},
            arguments=(work.text,),
            idx=0,
            metadata=("text", 0, 1),
        )
        with contextlib.redirect_stderr(io.StringIO()):  # a bar for every window
            total = made[work.window].loglikelihood_rolling(
                [request], disable_tqdm=True
            )
        return -float(total[0])

    return evaluate


VARIANTS: dict[str, Callable[[Any, int], Score]] = {
    "ours": ours,
    "formula": formula,
    "pages": pages,
    "hflm": hflm,
}


def known_variants() -> tuple[str, ...]:
    """Those whose packages are installed."""
    if importlib.util.find_spec("lm_eval") is None:
        return ("ours", "formula")
    return tuple(VARIANTS)


def _tokenizer(model: Any) -> Any:
    """Words are ids: both sides do the same cheap work for the same tokens."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = {"<s>": 0, "</s>": 1}
    words |= {str(id_): id_ for id_ in range(2, model.config.vocab_size)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<s>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>"
    )
