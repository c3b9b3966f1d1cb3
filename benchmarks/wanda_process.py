"""The evaluation of Wanda's ``main.py``, from start to its number, in our own words.

``wanda_process.py MODEL ROWS.json WINDOW``: load with transformers, join the text's
rows by two line ends, tokenise all of it at once, cut it into windows, and take the
mean loss of full logits. Without ``datasets``, which the original imports to read the
text: that is in the original's favour.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer


def evaluate(model: Any, ids: torch.Tensor, window: int) -> float:
    """As ``eval_ppl_wikitext`` of ``lib/eval.py`` with batches of one."""
    samples = ids.numel() // window
    loss_fct = torch.nn.CrossEntropyLoss()
    nlls = []
    with torch.no_grad():
        for i in range(samples):
            inputs = ids[:, i * window : (i + 1) * window].reshape(1, window)
            lm_logits = model(inputs).logits
            shift_logits = lm_logits[:, :-1, :].contiguous()
            shift_labels = inputs[:, 1:]
            loss = loss_fct(
                shift_logits.reshape(-1, shift_logits.size(-1)),
                shift_labels.reshape(-1),
            )
            nlls.append(loss.float() * window)
    return float(torch.exp(torch.stack(nlls).sum() / (samples * window)))


def main() -> None:
    folder, rows, window = sys.argv[1:]
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    text = "\n\n".join(json.loads(Path(rows).read_text(encoding="utf-8")))
    ids = tokenizer(text, return_tensors="pt").input_ids
    print(evaluate(model, ids, int(window)))


if __name__ == "__main__":
    main()
