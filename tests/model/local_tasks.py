"""lm-eval's own task definitions over a few local documents, and stock runs of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import lm_eval.tasks
import yaml

STOCK = Path(lm_eval.tasks.__file__).parent

_VERBS = ("mixes", "paints", "carries", "cleans", "breaks", "folds", "sells", "hides")
_THINGS = ("a bowl", "the fence", "two boxes", "an old car", "the lamp", "a shirt")


def _hellaswag(n: int) -> dict[str, Any]:
    return {
        "ind": n,
        "activity_label": "Home [title] work",
        "ctx_a": f"A man {_VERBS[n % 8]} {_THINGS[n % 6]} in the garden.",
        "ctx_b": "he" if n % 2 else "",
        "endings": [
            f"{_VERBS[(n + i) % 8]} {_THINGS[(n + i) % 6]}{' again and again' * i}."
            for i in range(4)
        ],
        "label": str(n % 4),
    }


def _piqa(n: int) -> dict[str, Any]:
    return {
        "goal": f"How do I use {_THINGS[n % 6]} for {n} days?",
        "sol1": f"One {_VERBS[n % 8]} it.",
        "sol2": f"One {_VERBS[(n + 3) % 8]} it with care, every day.",
        "label": n % 2,
    }


def _arc_easy(n: int) -> dict[str, Any]:
    texts = [f"{_THINGS[(n + i) % 6]}" for i in range(3 + n % 2)]
    return {
        "id": f"q{n}",
        "question": f"Which of these is what somebody {_VERBS[n % 8]}?",
        "choices": {"text": texts, "label": list("ABCD"[: len(texts)])},
        "answerKey": "ABC"[n % 3],
    }


def _winogrande(n: int) -> dict[str, Any]:
    return {
        "sentence": f"Ann {_VERBS[n % 8]} what Eve has, because _ is kind to all.",
        "option1": "Ann",
        "option2": "Eve",
        "answer": str(1 + n % 2),
    }


def _boolq(n: int) -> dict[str, Any]:
    return {
        "passage": f"Somebody {_VERBS[n % 8]} {_THINGS[n % 6]}. It was good.",
        "question": f"was it number {n}",
        "label": n % 2,
    }


def _lambada_openai(n: int) -> dict[str, Any]:
    return {"text": f"She {_VERBS[n % 8]} {_THINGS[n % 6]} and then the {'ab' * n}x"}


DOCUMENTS = {
    "hellaswag": (_hellaswag, "hellaswag/hellaswag.yaml"),
    "piqa": (_piqa, "piqa/piqa.yaml"),
    "arc_easy": (_arc_easy, "arc/arc_easy.yaml"),
    "winogrande": (_winogrande, "winogrande/default.yaml"),
    "boolq": (_boolq, "super_glue/boolq/default.yaml"),
    "lambada_openai": (_lambada_openai, "lambada/lambada_openai.yaml"),
}


def write_task(
    folder: Path, name: str, *, documents: int = 6, alias: str = "", **more: Any
) -> None:
    """A YAML that includes lm-eval's own of ``name`` and reads local documents.

    ``alias`` is its name where it should not be lm-eval's, ``more`` further fields.
    """
    make, stock = DOCUMENTS[name]
    folder.mkdir(exist_ok=True)
    files = {}
    for split, first, count in (("train", 100, 8), ("test", 0, documents)):
        path = folder / f"{alias or name}-{split}.jsonl"
        lines = [json.dumps(make(first + n)) for n in range(count)]
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
        files[split] = str(path)
    config = {
        "include": str(STOCK / stock),
        "task": alias or name,
        "dataset_path": "json",
        "dataset_name": None,
        "dataset_kwargs": {"data_files": files},
        "test_split": "test",
        "validation_split": None,
        "training_split": None if name == "lambada_openai" else "train",
        **more,
    }
    text = yaml.safe_dump(config, sort_keys=False)
    (folder / f"{alias or name}.yaml").write_text(text, encoding="utf-8")


def write_group(folder: Path, name: str, tasks: list[str], *, by_size: bool) -> None:
    """A group that averages the accuracy of ``tasks``."""
    config = {
        "group": name,
        "task": tasks,
        "aggregate_metric_list": [
            {"metric": "acc", "aggregation": "mean", "weight_by_size": by_size}
        ],
        "metadata": {"version": 3.0},
    }
    (folder / f"{name}.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")


def stock_run(
    model: Any,
    tokenizer: Any,
    folder: Path,
    name: str,
    *,
    window: int,
    shots: int | None = None,
    limit: int | None = None,
) -> dict[str, Any]:
    """``lm_eval.simple_evaluate`` with lm-eval's own ``hf`` model."""
    from lm_eval.models.huggingface import HFLM

    manager = lm_eval.tasks.TaskManager(
        include_path=str(folder), include_defaults=False
    )
    result: dict[str, Any] = lm_eval.simple_evaluate(
        model=HFLM(
            pretrained=model, tokenizer=tokenizer, max_length=window, batch_size=1
        ),
        tasks=[name],
        num_fewshot=shots,
        limit=limit,
        task_manager=manager,
        bootstrap_iters=2,
        log_samples=True,
    )
    return result
