"""Both methods against the original computations, end to end on real tiny models."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from pytest_pplguard.checkpoints import Loaded, load, locate
from pytest_pplguard.corpora import Corpus, open_corpus
from pytest_pplguard.errors import CorpusError, InvalidLossError, MeasurementError
from pytest_pplguard.measure import Store, measure_loaded
from pytest_pplguard.options import Target
from pytest_pplguard.scoring import Scorer
from pytest_pplguard.values import Key, Measurement
from tests.model.originals import (
    c4_ids,
    ptb_ids,
    stock_hflm,
    wanda_perplexity,
    wanda_window_losses,
    window_losses,
)
from tests.model.tiny import save_tiny

PAGES = 5


def make_rows(pages: int = PAGES) -> list[str]:
    """WikiText rows: pages of very different length, and what a detokeniser mends."""
    rows: list[str] = []
    for page in range(pages):
        rows += ["", f" = Page {page} = \n", ""]
        rows += [
            f" The 1 @,@ {page}00 well @-@ known ships ( of {line} ) sailed ; 3 @.@ 5"
            f' knots , " slowly " .\n'
            for line in range(1 + 4 * page)
        ]
        rows += ["", " = = History = = \n", "", " It 's over . \n"]
    return rows


CORPUS = Corpus.from_wikitext_rows("mine", make_rows())


def loaded(folder: Path, *, arch: str = "llama", bos: bool = True) -> Loaded:
    path = save_tiny(folder / arch, arch, bos=bos)
    return load(locate(str(path)), device="cpu", dtype="float32")


def measured(checkpoint: Loaded, key: str, **options: Any) -> Measurement:
    return measure_loaded(checkpoint, Key.parse(key), lambda _: CORPUS, **options)


@pytest.mark.parametrize("bos", [True, False])
@pytest.mark.parametrize("window", [16, 100])
def test_wanda_equals_the_original_loop(tmp_path: Path, bos: bool, window: int) -> None:
    checkpoint = loaded(tmp_path, bos=bos)
    result = measured(checkpoint, f"wanda/mine:{window}")
    losses = wanda_window_losses(
        checkpoint.model, checkpoint.tokenizer, CORPUS.rows, window
    )
    assert result.windows == len(losses)
    assert result.units == {"tokens": len(losses) * (window - 1)}
    for score, loss in zip(result.evidence, losses, strict=True):
        assert score.nll_sum / score.scored == pytest.approx(loss, rel=1e-6)
    assert result.metrics["token_perplexity"] == pytest.approx(
        wanda_perplexity(losses, window), rel=1e-6
    )


@pytest.mark.parametrize("bos", [True, False])
@pytest.mark.parametrize("window", [16, 100, 2000])
def test_lm_eval_equals_stock_hflm(tmp_path: Path, bos: bool, window: int) -> None:
    checkpoint = loaded(tmp_path, bos=bos)
    result = measured(checkpoint, f"lm-eval/wikitext+mine:{window}")
    stock = stock_hflm(checkpoint.model, checkpoint.tokenizer, CORPUS.pages, window)
    for metric, value in stock.items():
        assert result.metrics[metric] == pytest.approx(value, rel=1e-6), metric


@pytest.mark.parametrize("arch", ["gemma2", "gpt_neox", "mixtral"])
def test_both_methods_on_other_architectures(tmp_path: Path, arch: str) -> None:
    checkpoint = loaded(tmp_path, arch=arch)
    token = measured(checkpoint, "wanda/mine:64:first6").metrics["token_perplexity"]
    losses = wanda_window_losses(
        checkpoint.model, checkpoint.tokenizer, CORPUS.rows, 64, limit=6
    )
    assert token == pytest.approx(wanda_perplexity(losses, 64), rel=1e-6)
    word = measured(checkpoint, "lm-eval/wikitext+mine:64:first2").metrics
    stock = stock_hflm(checkpoint.model, checkpoint.tokenizer, CORPUS.pages[:2], 64)
    assert word == pytest.approx(stock, rel=1e-6)


@pytest.mark.parametrize("window", [8, 512])
def test_c4_equals_the_original_loop(tmp_path: Path, window: int) -> None:
    checkpoint = loaded(tmp_path)
    documents = [f"The {n} ships sailed slowly on day {n % 7}." for n in range(1200)]
    file = tmp_path / "c4-validation.json"
    file.write_text("".join(json.dumps({"text": text}) + "\n" for text in documents))
    ids = c4_ids(checkpoint.tokenizer, documents, window)
    losses = window_losses(checkpoint.model, ids, window)
    result = measure_loaded(
        checkpoint,
        Key.parse(f"wanda/c4:{window}"),
        lambda name: open_corpus(name, {"c4": str(file)}),
    )
    assert result.windows == len(losses)
    assert (len(losses) == 256) is (window == 8)
    assert result.metrics["token_perplexity"] == pytest.approx(
        wanda_perplexity(losses, window), rel=1e-6
    )


def test_ptb_equals_the_original_loop(tmp_path: Path) -> None:
    checkpoint = loaded(tmp_path)
    sentences = [f"the <unk> fell N points on day {n}" for n in range(40)]
    file = tmp_path / "ptb.test.txt"
    file.write_text("".join(f" {sentence} \n" for sentence in sentences))
    losses = window_losses(
        checkpoint.model, ptb_ids(checkpoint.tokenizer, sentences), 64
    )
    result = measure_loaded(
        checkpoint,
        Key.parse("wanda/ptb:64"),
        lambda name: open_corpus(name, {"ptb": str(file)}),
    )
    assert result.windows == len(losses)
    assert result.metrics["token_perplexity"] == pytest.approx(
        wanda_perplexity(losses, 64), rel=1e-6
    )


def test_batches_do_not_move_either_number(tmp_path: Path) -> None:
    checkpoint = loaded(tmp_path)
    for key in ("wanda/mine:32", "lm-eval/wikitext+mine:32"):
        alone = measured(checkpoint, key)
        together = measured(checkpoint, key, batch_size=7)
        assert together.metrics == pytest.approx(alone.metrics, rel=1e-6)
        assert together.windows_digest == alone.windows_digest


def test_values_follow_from_the_evidence(tmp_path: Path) -> None:
    checkpoint = loaded(tmp_path)
    wanda = measured(checkpoint, "wanda/mine:32")
    mean = math.fsum(s.nll_sum / s.scored for s in wanda.evidence) / wanda.windows
    assert wanda.metrics["token_perplexity"] == pytest.approx(math.exp(mean), rel=1e-12)
    pages = measured(checkpoint, "lm-eval/wikitext+mine:32")
    nll = math.fsum(score.nll_sum for score in pages.evidence)
    assert pages.metrics == pytest.approx(
        {
            "word_perplexity": math.exp(nll / pages.units["words"]),
            "byte_perplexity": math.exp(nll / pages.units["bytes"]),
            "bits_per_byte": nll / pages.units["bytes"] / math.log(2),
        },
        rel=1e-12,
    )


def test_a_poisoned_scorer_breaks_both_numbers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = loaded(tmp_path)
    keys = ("wanda/mine:32", "lm-eval/wikitext+mine:32")
    healthy = [measured(checkpoint, key).metrics for key in keys]
    score = Scorer._score

    def worse(self: Scorer, *args: Any) -> list[float]:
        return [value + 1.0 for value in score(self, *args)]

    monkeypatch.setattr(Scorer, "_score", worse)
    for key, before in zip(keys, healthy, strict=True):
        for metric, value in measured(checkpoint, key).metrics.items():
            assert value > before[metric]


def test_lm_evals_own_model_is_not_imported(tmp_path: Path) -> None:
    save_tiny(tmp_path / "tiny")
    text = tmp_path / "text.raw"
    text.write_text("".join(row or " \n" for row in make_rows(2)), encoding="utf-8")
    script = (
        "import sys\n"
        "from pytest_pplguard.checkpoints import load, locate\n"
        "from pytest_pplguard.corpora import open_corpus\n"
        "from pytest_pplguard.measure import measure_loaded\n"
        "from pytest_pplguard.values import Key\n"
        f"loaded = load(locate({str(tmp_path / 'tiny')!r}), device='cpu',"
        " dtype='float32')\n"
        "for key in ('wanda/mine:32', 'lm-eval/wikitext+mine:32'):\n"
        "    measure_loaded(loaded, Key.parse(key),"
        f" lambda name: open_corpus(name, {{'mine': {str(text)!r}}}))\n"
        "assert 'lm_eval.evaluator' in sys.modules\n"
        "assert 'lm_eval.models.huggingface' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=300)


def test_measuring_leaves_the_users_session_alone(tmp_path: Path) -> None:
    import random

    import numpy as np

    checkpoint = loaded(tmp_path)

    def states() -> tuple[object, str]:
        return random.getstate(), repr(np.random.get_state())

    before = states()
    torch_before = torch.get_rng_state()
    measured(checkpoint, "lm-eval/wikitext+mine:64:first1")
    assert states() == before
    assert torch.equal(torch.get_rng_state(), torch_before)


def test_nothing_is_printed(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    checkpoint = loaded(tmp_path)
    capfd.readouterr()
    measured(checkpoint, "lm-eval/wikitext+mine:64:first1")
    measured(checkpoint, "wanda/mine:64:first1")
    assert capfd.readouterr() == ("", "")
    assert caplog.messages == []


def test_a_text_that_is_not_the_official_one_is_told(tmp_path: Path) -> None:
    other = open_corpus("demo", {})
    pretended = Corpus.from_wikitext_rows("wikitext2", other.rows)
    result = measure_loaded(
        loaded(tmp_path), Key.parse("wanda/wikitext2:64:first1"), lambda _: pretended
    )
    assert result.notices == (
        "the corpus wikitext2 is not the official text of that name: its numbers "
        "compare with nothing that was published",
    )


def test_a_text_that_is_not_there_is_looked_for_once() -> None:
    asked = []

    def lost(name: str) -> Corpus:
        asked.append(name)
        raise CorpusError(f"{name} is not there")

    store = Store(
        {"it": Target("it", "x")},
        load=lambda _: pytest.fail("no model is needed"),
        open_corpus=lost,
        watch=lambda _, **__: pytest.fail("nothing is measured"),
    )
    for window in (32, 64):
        with pytest.raises(CorpusError, match="mine is not there"):
            store.measurement("it", Key.parse(f"wanda/mine:{window}"))
    assert asked == ["mine"]


# -------------------------------------------------------------------------- refusals


def test_a_window_beyond_the_models_positions(tmp_path: Path) -> None:
    with pytest.raises(MeasurementError) as caught:
        measured(loaded(tmp_path), "wanda/mine:4096")
    assert str(caught.value) == (
        "key wanda/mine:4096: the window is longer than the 2048 positions that the "
        "model was made for (max_position_embeddings); measure at a shorter window"
    )


def test_more_pages_than_there_are(tmp_path: Path) -> None:
    with pytest.raises(CorpusError) as caught:
        measured(loaded(tmp_path), "lm-eval/wikitext+mine:64:first6")
    assert str(caught.value) == (
        "key lm-eval/wikitext+mine:64:first6: the text has 5 pages, fewer than the 6 "
        "asked for"
    )


def test_a_tokenizer_of_another_model(tmp_path: Path) -> None:
    small = loaded(tmp_path / "a")
    other = save_tiny(tmp_path / "b", vocab=400)
    tokenizer = load(locate(str(other)), device="cpu", dtype="float32").tokenizer
    tokenizer.add_tokens(["well"] + [f"<{i}>" for i in range(200)])
    mixed = Loaded.of(small.model, tokenizer)
    with pytest.raises(MeasurementError, match="do not belong together"):
        measured(mixed, "wanda/mine:32")


@pytest.mark.parametrize("key", ["wanda/mine:32", "lm-eval/wikitext+mine:32"])
def test_a_nan_in_the_weights_is_invalid_by_both_methods(
    tmp_path: Path, key: str
) -> None:
    checkpoint = loaded(tmp_path)
    with torch.no_grad():
        checkpoint.model.model.layers[1].mlp.down_proj.weight[0, 0] = float("nan")
    with pytest.raises(InvalidLossError, match=r"the loss of window 1 of \d+"):
        measured(checkpoint, key)


@pytest.mark.parametrize(
    ("key", "unit"), [("wanda/mine:32", "token"), ("lm-eval/wikitext+mine:32", "word")]
)
def test_losses_without_a_finite_perplexity(
    tmp_path: Path, key: str, unit: str
) -> None:
    """Losses that are finite, of a head that is 3,000 times too large."""
    checkpoint = loaded(tmp_path)
    with torch.no_grad():
        checkpoint.model.lm_head.weight.mul_(3000)
    with pytest.raises(InvalidLossError) as caught:
        measured(checkpoint, key)
    said = re.fullmatch(
        rf"a mean loss of (.+) nats per {unit} has no finite perplexity",
        str(caught.value),
    )
    assert said is not None
    assert float(said[1]) > 710
