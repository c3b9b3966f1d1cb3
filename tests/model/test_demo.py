"""The recorded demo values, measured again by the originals' own code."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from pytest_pplguard.baselines import read_baseline
from tests.model.originals import (
    stock_hflm,
    wanda_perplexity,
    wanda_window_losses,
)

ROOT = Path(__file__).parents[2]
DEMO = ROOT / "pytest_pplguard" / "demo"
WINDOW = 256


def rows_and_pages() -> tuple[list[str], list[str]]:
    """The text cut by the rule of the data set's description, written out here."""
    text = (DEMO / "demo.txt").read_text(encoding="utf-8")
    lines = text.split("\n")
    rows = [line + "\n" if line.strip() else "" for line in lines[:-1]]
    pages: list[list[str]] = [[]]
    for line in lines:
        bare = line.replace("= = =", "===").replace("= =", "==").strip()
        if bare.startswith("= ") and bare.endswith(" ="):
            pages.append([])
        pages[-1].append(line)
    joined = ["\n".join(page) for page in pages]
    return rows, [page for page in joined if page.strip()]


@pytest.fixture(params=["dense", "wanda-50"])
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def model_and_tokenizer(name: str) -> tuple[Any, Any]:
    model = AutoModelForCausalLM.from_pretrained(DEMO / name, dtype=torch.float32)
    return model.eval(), AutoTokenizer.from_pretrained(DEMO / name)


def test_wandas_loop_gives_the_recorded_value(
    name: str, model_and_tokenizer: tuple[Any, Any]
) -> None:
    rows, _ = rows_and_pages()
    recorded = (
        read_baseline(ROOT / "baselines" / "demo.yaml").checkpoints[name].recorded
    )
    losses = wanda_window_losses(*model_and_tokenizer, rows, WINDOW)
    entry = recorded[f"wanda/demo:{WINDOW}"]
    assert entry.windows == len(losses)
    assert wanda_perplexity(losses, WINDOW) == pytest.approx(
        entry.metrics["token_perplexity"], rel=1e-6
    )


def test_stock_lm_eval_gives_the_recorded_values(
    name: str, model_and_tokenizer: tuple[Any, Any]
) -> None:
    _, pages = rows_and_pages()
    recorded = (
        read_baseline(ROOT / "baselines" / "demo.yaml").checkpoints[name].recorded
    )
    entry = recorded[f"lm-eval/wikitext+demo:{WINDOW}"]
    assert stock_hflm(*model_and_tokenizer, pages, WINDOW) == pytest.approx(
        entry.metrics, rel=1e-6
    )
