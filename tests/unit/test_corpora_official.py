"""The official text: facts that were checked against sources outside this project."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import math
import random
import re
from pathlib import Path
from typing import Any

import pytest

from pytest_pplguard.corpora import Corpus, open_corpus
from tests.official import official_wikitext2

LM_EVAL_FINGERPRINT = "b6f83e6cf7535ee41b0057c3e2ec2cf7f2fa5a9119b305c479a83091d1142b2c"


@pytest.fixture(scope="module")
def corpus() -> Corpus:
    return open_corpus("wikitext2", {"wikitext2": str(official_wikitext2())})


def _task_functions() -> Any:
    """lm-eval's own detokeniser, without importing all of lm-eval."""
    spec = importlib.util.find_spec("lm_eval")
    assert spec is not None
    assert spec.origin is not None
    path = Path(spec.origin).parent / "tasks" / "wikitext" / "preprocess_wikitext.py"
    module_spec = importlib.util.spec_from_file_location("preprocess_wikitext", path)
    assert module_spec is not None
    assert module_spec.loader is not None
    module = importlib.util.module_from_spec(module_spec)
    module_spec.loader.exec_module(module)
    return module


def test_rows_are_those_of_the_hub(corpus: Corpus) -> None:
    assert len(corpus.rows) == 4358


def test_the_text_is_recognised_as_official(corpus: Corpus) -> None:
    assert corpus.official is True


def test_pages_words_and_bytes(corpus: Corpus) -> None:
    assert len(corpus.pages) == 62
    assert sum(len(re.split(r"\s+", page)) for page in corpus.pages) == 241_335
    assert sum(len(page.encode()) for page in corpus.pages) == 1_290_527


def test_detokenised_pages_have_lm_evals_fingerprint(corpus: Corpus) -> None:
    detokenise = _task_functions().wikitext_detokenizer
    requests = [[detokenise({"page": page})] for page in corpus.pages]
    random.Random(42).shuffle(requests)
    digest = hashlib.sha256(json.dumps(requests).encode()).hexdigest()
    assert digest == LM_EVAL_FINGERPRINT


def test_word_perplexity_of_lm_evals_pseudo_model(corpus: Corpus) -> None:
    rng = random.Random(42)
    total = math.fsum(-rng.random() for _ in corpus.pages)
    words = sum(len(re.split(r"\s+", page)) for page in corpus.pages)
    assert math.exp(-total / words) == pytest.approx(1.000118710696617, abs=1e-15)


def test_one_changed_character_is_not_official(tmp_path: Path) -> None:
    text = official_wikitext2().read_bytes()
    changed = tmp_path / "wiki.test.raw"
    changed.write_bytes(text.replace(b"Boulter", b"Bolter", 1))
    corpus = open_corpus("wikitext2", {"wikitext2": str(changed)})
    assert corpus.official is False


def test_windows_line_ends_are_not_official(tmp_path: Path) -> None:
    text = official_wikitext2().read_bytes()
    changed = tmp_path / "wiki.test.raw"
    changed.write_bytes(text.replace(b"\n", b"\r\n"))
    corpus = open_corpus("wikitext2", {"wikitext2": str(changed)})
    assert corpus.official is False
