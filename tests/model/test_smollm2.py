"""A real checkpoint: SmolLM2-135M-Instruct, as GGUF and as a folder."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import pytest
import torch
from gguf import GGUFReader
from tokenizers import Tokenizer, pre_tokenizers
from tokenizers.models import BPE

from pytest_pplguard.baselines import read_baseline, read_evidence
from pytest_pplguard.baselines.evidence import Evidence
from pytest_pplguard.checkpoints import Loaded, load, locate
from pytest_pplguard.corpora import Corpus, open_corpus
from pytest_pplguard.measure import measure_loaded
from pytest_pplguard.values import Key, Measurement
from scripts.prune import Unstructured, prune_magnitude
from scripts.smollm2.__main__ import make_dense
from tests.model.originals import stock_hflm, wanda_window_losses
from tests.official import official_wikitext2, smollm2_gguf
from tests.zygote import forked

ROOT = Path(__file__).parents[2]
SHORT = ("wanda/wikitext2:512:first16", "lm-eval/wikitext:2048:first2")
"""Keys of the baseline file that take seconds; the others take a quarter of an hour."""

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def gguf() -> Path:
    return smollm2_gguf()


@pytest.fixture(scope="module")
def corpus() -> Corpus:
    return open_corpus("wikitext2", {"wikitext2": str(official_wikitext2())})


@pytest.fixture(scope="module")
def checkpoint(gguf: Path) -> Loaded:
    return load(locate(str(gguf)), device="cpu", dtype="float32")


@pytest.fixture(scope="module")
def directory(gguf: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What people do with a GGUF file: the same weights as a Hugging Face folder."""
    path = tmp_path_factory.mktemp("smollm2") / "dense"
    make_dense(path)
    return path


def run_gates(pytester: pytest.Pytester, path: Path, *keys: str) -> pytest.RunResult:
    file = ROOT / "baselines" / "smollm2-135m.yaml"
    with forked():
        return pytester.runpytest_subprocess(
            *(f"{file}::dense::{key}" for key in keys),
            f"--ppl-model=smollm2-135m/dense={path}",
            f"--ppl-corpus=wikitext2={official_wikitext2()}",
            "--ppl-device=cpu",
        )


def test_it_loads_without_a_word_and_knows_its_geography(
    request: pytest.FixtureRequest, capfd: pytest.CaptureFixture[str]
) -> None:
    """The first test of this file, so that it is the one that loads."""
    loaded: Loaded = request.getfixturevalue("checkpoint")
    assert loaded.dtype == "float32"
    ids = loaded.tokenizer("The capital of France is", return_tensors="pt").input_ids
    with torch.inference_mode():
        best = int(loaded.model(ids).logits[0, -1].argmax())
    assert loaded.tokenizer.decode([best]) == " Paris"
    assert capfd.readouterr() == ("", "")


def test_the_short_gates_are_green_for_the_gguf_file(
    pytester: pytest.Pytester, gguf: Path, corpus: Corpus
) -> None:
    result = run_gates(pytester, gguf, *SHORT)
    result.assert_outcomes(passed=3)
    result.stdout.fnmatch_lines(["3 within tolerance"])


def test_a_short_gate_is_green_for_a_folder_made_of_it(
    pytester: pytest.Pytester, directory: Path, corpus: Corpus
) -> None:
    run_gates(pytester, directory, SHORT[0]).assert_outcomes(passed=1)


def first_windows(loaded: Loaded, corpus: Corpus) -> Measurement:
    return measure_loaded(
        loaded, Key.parse("wanda/wikitext2:512:first3"), lambda _: corpus
    )


@pytest.fixture(scope="module")
def measured(checkpoint: Loaded, corpus: Corpus) -> Measurement:
    return first_windows(checkpoint, corpus)


def test_a_directory_made_of_it_reads_the_same(
    directory: Path, checkpoint: Loaded, measured: Measurement, corpus: Corpus
) -> None:
    again = load(locate(str(directory)), device="cpu", dtype="float32")
    weights, others = checkpoint.model.state_dict(), again.model.state_dict()
    assert weights.keys() == others.keys()
    assert all(torch.equal(weights[name], others[name]) for name in weights)

    other = first_windows(again, corpus)
    assert measured.windows_digest == other.windows_digest
    for here, there in zip(measured.evidence, other.evidence, strict=True):
        assert here.nll_sum == pytest.approx(there.nll_sum, rel=1e-7)


def test_windows_equal_wandas_loop(
    checkpoint: Loaded, measured: Measurement, corpus: Corpus
) -> None:
    losses = wanda_window_losses(
        checkpoint.model, checkpoint.tokenizer, corpus.rows, 512, limit=3
    )
    for score, loss in zip(measured.evidence, losses, strict=True):
        assert score.nll_sum / score.scored == pytest.approx(loss, rel=1e-5)


def test_a_page_equals_stock_lm_eval(checkpoint: Loaded, corpus: Corpus) -> None:
    result = measure_loaded(
        checkpoint, Key.parse("lm-eval/wikitext:1024:first1"), lambda _: corpus
    )
    stock = stock_hflm(checkpoint.model, checkpoint.tokenizer, corpus.pages[:1], 1024)
    assert result.metrics == pytest.approx(stock, rel=1e-6)


def test_the_tokenizer_is_smollm2s_own(
    gguf: Path, checkpoint: Loaded, corpus: Corpus
) -> None:
    """Vocabulary and merges as the file holds them, each digit a word of its own.

    304,978 tokens is the count for the original tokenizer; GPT-2's rule makes 304,986.
    """
    fields = GGUFReader(gguf).fields
    tokens = fields["tokenizer.ggml.tokens"].contents()
    merges = [
        tuple(merge.split(" ")) for merge in fields["tokenizer.ggml.merges"].contents()
    ]
    own = Tokenizer(BPE({token: n for n, token in enumerate(tokens)}, merges))
    words = pre_tokenizers.ByteLevel(add_prefix_space=False)
    own.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(True), words])
    text = "\n\n".join(corpus.rows)
    expected = own.encode(text).ids
    assert len(expected) == 304_978
    assert checkpoint.tokenizer(text, verbose=False).input_ids == expected

    own.pre_tokenizer = words
    assert len(own.encode(text).ids) == 304_986


def recorded_evidence(entry: str, key: str) -> Evidence:
    folder = ROOT / "baselines"
    recorded = read_baseline(folder / "smollm2-135m.yaml").checkpoints[entry].recorded
    return read_evidence(folder, recorded[key], where=key)


def original_losses(
    loaded: Loaded, corpus: Corpus, windows: Sequence[int]
) -> list[float]:
    """Mean losses of some windows of 2,048 by the Wanda code's formula."""
    text = loaded.tokenizer(
        "\n\n".join(corpus.rows), return_tensors="pt", verbose=False
    )
    losses = []
    for number in windows:
        ids = text.input_ids[:, number * 2048 : (number + 1) * 2048]
        with torch.no_grad():
            logits = loaded.model(ids).logits
        loss = torch.nn.CrossEntropyLoss()(logits[0, :-1], ids[0, 1:])
        losses.append(loss.item())
    return losses


def test_recorded_windows_come_out_again(checkpoint: Loaded, corpus: Corpus) -> None:
    evidence = recorded_evidence("dense", "wanda/wikitext2:2048")
    assert len(evidence.windows) == 148
    sample = (0, 61, 147)
    for number, loss in zip(
        sample, original_losses(checkpoint, corpus, sample), strict=True
    ):
        score = evidence.windows[number]
        assert score.nll_sum / score.scored == pytest.approx(loss, rel=1e-5)


def test_a_recorded_page_comes_out_again(checkpoint: Loaded, corpus: Corpus) -> None:
    evidence = recorded_evidence("dense", "lm-eval/wikitext:2048")
    shortest = min(range(62), key=lambda page: len(corpus.pages[page]))
    page = corpus.pages[shortest]
    stock = stock_hflm(checkpoint.model, checkpoint.tokenizer, [page], 2048)
    nll = math.fsum(w.nll_sum for w in evidence.windows if w.page == shortest)
    bytes_ = len(page.encode())
    assert math.exp(nll / bytes_) == pytest.approx(stock["byte_perplexity"], rel=1e-6)


def test_the_magnitude_pruned_checkpoint_comes_out_again(
    directory: Path, corpus: Corpus
) -> None:
    pruned = load(locate(str(directory)), device="cpu", dtype="float32")
    prune_magnitude(pruned.model, Unstructured(Fraction("0.5"), "layer"))
    evidence = recorded_evidence("magnitude-50", "wanda/wikitext2:2048")
    [loss] = original_losses(pruned, corpus, [61])
    score = evidence.windows[61]
    assert score.nll_sum / score.scored == pytest.approx(loss, rel=1e-5)
