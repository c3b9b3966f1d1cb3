"""The original computations, written out: what every number is held against."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

_LOSS = nn.CrossEntropyLoss()


def wanda_window_losses(
    model: Any,
    tokenizer: Any,
    rows: Sequence[str],
    seqlen: int,
    limit: int | None = None,
) -> list[float]:
    """Mean loss of every window, as ``lib/data.py`` and ``lib/eval.py`` of Wanda."""
    testenc = tokenizer("\n\n".join(rows), return_tensors="pt").input_ids
    return window_losses(model, testenc, seqlen, limit)


def c4_ids(tokenizer: Any, documents: Sequence[str], seqlen: int) -> torch.Tensor:
    """The validation text of ``get_c4`` in Wanda and SparseGPT: [1 x tokens]."""
    valenc = tokenizer(" ".join(documents[:1100]), return_tensors="pt")
    ids: torch.Tensor = valenc.input_ids[:, : (256 * seqlen)]
    return ids


def ptb_ids(tokenizer: Any, sentences: Sequence[str]) -> torch.Tensor:
    """The test text of ``get_ptb`` in SparseGPT: [1 x tokens]."""
    ids: torch.Tensor = tokenizer(" ".join(sentences), return_tensors="pt").input_ids
    return ids


def window_losses(
    model: Any, testenc: torch.Tensor, seqlen: int, limit: int | None = None
) -> list[float]:
    """Mean loss of every window of a text's ids, as ``lib/eval.py`` of Wanda."""
    nsamples = testenc.numel() // seqlen
    losses = []
    with torch.no_grad():
        for i in range(nsamples if limit is None else limit):
            inputs = testenc[:, i * seqlen : (i + 1) * seqlen].reshape(1, seqlen)
            lm_logits = model(inputs).logits
            shift_logits = lm_logits[:, :-1, :].contiguous()
            shift_labels = inputs[:, 1:]
            loss = _LOSS(
                shift_logits.reshape(-1, shift_logits.size(-1)),
                shift_labels.reshape(-1),
            )
            losses.append(loss.float().item())
    return losses


def wanda_perplexity(losses: Sequence[float], seqlen: int) -> float:
    """``torch.exp(torch.stack(nlls).sum() / (nsamples * seqlen))``."""
    nlls = torch.tensor(losses, dtype=torch.float64) * seqlen
    return float(torch.exp(nlls.sum() / (len(losses) * seqlen)))


def stock_hflm(
    model: Any, tokenizer: Any, pages: Sequence[str], window: int
) -> dict[str, float]:
    """Metrics of lm-eval's stock ``hf`` model over ``pages``, its task as shipped."""
    import lm_eval.evaluator
    from lm_eval.models.huggingface import HFLM

    lm = HFLM(pretrained=model, tokenizer=tokenizer, max_length=window, batch_size=1)
    results = lm_eval.evaluator.evaluate(
        lm=lm,
        task_dict={"wikitext": _stock_task(pages)},
        bootstrap_iters=0,
        log_samples=False,
    )
    values = results["results"]["wikitext"]
    return {
        name: values[f"{name},none"]
        for name in ("word_perplexity", "byte_perplexity", "bits_per_byte")
    }


def _stock_task(pages: Sequence[str]) -> Any:
    """The shipped task, its data set replaced where lm-eval would download it."""
    from unittest.mock import patch

    import datasets
    import lm_eval.tasks

    folder = lm_eval.tasks.__path__[0] + "/wikitext"
    split = datasets.Dataset.from_dict({"page": list(pages)})
    data = datasets.DatasetDict(dict.fromkeys(("train", "validation", "test"), split))
    manager = lm_eval.tasks.TaskManager(include_defaults=False, include_path=folder)
    with patch.object(datasets, "load_dataset", lambda *_, **__: data):
        if hasattr(manager, "load"):
            return manager.load(["wikitext"])["tasks"]["wikitext"]
        return manager.load_task_or_group("wikitext")["wikitext"]
