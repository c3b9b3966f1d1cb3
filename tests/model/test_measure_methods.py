"""Every method against the computation that it is named after, on a tiny model.

The originals are written out here over the model's own loss or its full logits: the
loop of the Hugging Face documentation, Wanda's ``lora_ft``, GPTQ and SparseGPT, vLLM's
test, and llama.cpp's ``perplexity``.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from pytest_pplguard.checkpoints import Loaded, load, locate
from pytest_pplguard.corpora import Corpus
from pytest_pplguard.errors import CorpusError, PplguardError
from pytest_pplguard.measure import measure_loaded
from pytest_pplguard.protocols import PROTOCOLS, Wanda
from pytest_pplguard.values import Key, Measurement, Window
from tests.model.test_measure import make_rows
from tests.model.tiny import save_tiny

CORPUS = Corpus.from_wikitext_rows("mine", make_rows(2))
FILE = "".join(row or " \n" for row in CORPUS.rows)


@pytest.fixture(scope="module", params=[True, False], ids=["bos", "no-bos"])
def checkpoint(request: Any, tmp_path_factory: Any) -> Loaded:
    folder = save_tiny(tmp_path_factory.mktemp("m") / "llama", bos=request.param)
    return load(locate(str(folder)), device="cpu", dtype="float32")


@pytest.fixture(scope="module")
def joined(checkpoint: Loaded) -> torch.Tensor:
    """``tokenizer("\\n\\n".join(test["text"]), return_tensors="pt").input_ids``."""
    text = "\n\n".join(CORPUS.rows)
    ids: torch.Tensor = checkpoint.tokenizer(text, return_tensors="pt").input_ids
    return ids


def measured(checkpoint: Loaded, key: str, **options: Any) -> Measurement:
    return measure_loaded(checkpoint, Key.parse(key), lambda _: CORPUS, **options)


def value(measurement: Measurement) -> float:
    again = PROTOCOLS[Key.parse(measurement.key).method].recompute(
        measurement.evidence, measurement.units
    )
    assert again == pytest.approx(measurement.metrics, rel=1e-12)
    return measurement.metrics["token_perplexity"]


# ---------------------------------------------------------------------------- originals


def documentation(model: Any, ids: torch.Tensor, max_length: int, stride: int) -> float:
    """The loop of https://huggingface.co/docs/transformers/perplexity."""
    seq_len = ids.size(1)
    nll_sum, n_tokens, prev_end_loc = torch.tensor(0.0, dtype=torch.float64), 0, 0
    for begin_loc in range(0, seq_len, stride):
        end_loc = min(begin_loc + max_length, seq_len)
        trg_len = end_loc - prev_end_loc
        input_ids = ids[:, begin_loc:end_loc]
        target_ids = input_ids.clone()
        target_ids[:, :-trg_len] = -100
        with torch.no_grad():
            loss = model(input_ids, labels=target_ids).loss
        num_valid_tokens = int((target_ids != -100).sum().item())
        num_loss_tokens = num_valid_tokens - target_ids.size(0)
        nll_sum += loss * num_loss_tokens
        n_tokens += num_loss_tokens
        prev_end_loc = end_loc
        if end_loc == seq_len:
            break
    return float(torch.exp(nll_sum / n_tokens))


def lora_ft(model: Any, ids: torch.Tensor, ctx_length: int) -> float:
    """``evaluate_ppl`` of ``lora_ft/evaluate_ppl.py``."""
    seq_len = ids.size(1)
    nlls = []
    for begin_loc in range(0, seq_len, ctx_length):
        input_ids = ids[:, begin_loc : min(begin_loc + ctx_length, seq_len)]
        with torch.no_grad():
            nlls.append(model(input_ids, labels=input_ids.clone()).loss.double())
    return float(torch.exp(torch.stack(nlls).mean()))


def gptq(model: Any, testenc: torch.Tensor, seqlen: int) -> float:
    """``llama_eval`` and ``opt_eval`` of GPTQ and SparseGPT."""
    nsamples = testenc.numel() // seqlen
    nlls = []
    for i in range(nsamples):
        batch = testenc[:, i * seqlen : (i + 1) * seqlen]
        with torch.no_grad():
            lm_logits = model(batch).logits
        shift_logits = lm_logits[:, :-1, :].reshape(-1, lm_logits.size(-1))
        loss = torch.nn.CrossEntropyLoss()(shift_logits, batch[:, 1:].reshape(-1))
        nlls.append(loss.double() * seqlen)
    return float(torch.exp(torch.stack(nlls).sum() / (nsamples * seqlen)))


def vllm(model: Any, ids: torch.Tensor, max_length: int) -> float:
    """``wikitext_ppl_test``: log-probabilities of the prompt's tokens but the first."""
    tokens = ids[0].tolist()
    nll_sum, n_tokens = 0.0, 0
    for begin_loc in range(0, len(tokens), max_length):
        chunk = tokens[begin_loc : min(begin_loc + max_length, len(tokens))]
        with torch.no_grad():
            logprobs = torch.log_softmax(model(torch.tensor([chunk])).logits[0], -1)
        token_log_probs = [
            float(logprobs[position, token]) for position, token in enumerate(chunk[1:])
        ]
        nll_sum -= sum(token_log_probs)
        n_tokens += len(token_log_probs)
    return math.exp(nll_sum / n_tokens)


def llama_cpp(model: Any, tokenizer: Any, prompt: str, n_ctx: int) -> float:
    """``perplexity`` of ``tools/perplexity/perplexity.cpp``."""
    prompt = prompt[:-1] if prompt.endswith("\n") else prompt
    tokens = tokenizer(prompt).input_ids
    add_bos = tokenizer("a").input_ids[0] == tokenizer.bos_token_id
    assert len(tokens) >= 2 * n_ctx
    first, count, nll = n_ctx // 2, 0, 0.0
    for i in range(len(tokens) // n_ctx):
        start = i * n_ctx
        batch = tokens[start : start + n_ctx]
        if add_bos:
            batch = [tokenizer.bos_token_id, *batch[1:]]
        with torch.no_grad():
            logits = model(torch.tensor([batch])).logits[0].double()
        for position in range(first, n_ctx - 1):
            probs = torch.softmax(logits[position], -1)
            nll -= math.log(float(probs[tokens[start + position + 1]]))
            count += 1
    assert count == (n_ctx - 1 - n_ctx // 2) * (len(tokens) // n_ctx)
    return math.exp(nll / count)


# -------------------------------------------------------------------------------- equal


@pytest.mark.parametrize(("window", "stride"), [(64, 16), (64, 64), (64, 63), (50, 7)])
def test_strided_equals_the_documentations_loop(
    checkpoint: Loaded, joined: torch.Tensor, window: int, stride: int
) -> None:
    result = measured(checkpoint, f"strided/mine:{window}:stride{stride}")
    loop = documentation(checkpoint.model, joined, window, stride)
    assert value(result) == pytest.approx(loop, rel=1e-6)


def test_strided_with_a_last_window_that_adds_one_token(
    checkpoint: Loaded, joined: torch.Tensor
) -> None:
    """The loop gives it the weight 0."""
    window = next(w for w in range(48, 64) if (joined.size(1) - w) % 16 == 1)
    result = measured(checkpoint, f"strided/mine:{window}:stride16")
    assert result.evidence[-1].scored == 1
    loop = documentation(checkpoint.model, joined, window, 16)
    assert value(result) == pytest.approx(loop, rel=1e-6)


def test_strided_weights_differ_from_a_mean_of_tokens(checkpoint: Loaded) -> None:
    """So that a test which does not see the weights cannot pass."""
    result = measured(checkpoint, "strided/mine:50:stride7")
    nll = math.fsum(score.nll_sum for score in result.evidence)
    scored = sum(score.scored for score in result.evidence)
    assert value(result) != pytest.approx(math.exp(nll / scored), rel=1e-5)
    assert result.units["tokens"] == scored - (result.windows - 1)


@pytest.mark.parametrize("window", [64, 100, 2000])
def test_lora_ft_equals_the_original_loop(
    checkpoint: Loaded, joined: torch.Tensor, window: int
) -> None:
    result = measured(checkpoint, f"lora-ft/mine:{window}")
    loop = lora_ft(checkpoint.model, joined, window)
    assert value(result) == pytest.approx(loop, rel=1e-6)


def test_a_tail_of_one_token_is_nan_in_the_originals(
    checkpoint: Loaded, joined: torch.Tensor
) -> None:
    window = joined.size(1) - 1
    assert math.isnan(lora_ft(checkpoint.model, joined, window))
    assert math.isnan(documentation(checkpoint.model, joined, window, window))
    for key in (f"lora-ft/mine:{window}", f"strided/mine:{window}:stride{window}"):
        with pytest.raises(CorpusError, match="as it is in the original code"):
            measured(checkpoint, key)
    whole = value(measured(checkpoint, f"vllm/mine:{window}"))
    assert whole == pytest.approx(vllm(checkpoint.model, joined, window), rel=1e-6)


@pytest.mark.parametrize("window", [64, 100])
def test_gptq_equals_the_original_loop(
    checkpoint: Loaded, joined: torch.Tensor, window: int
) -> None:
    result = measured(checkpoint, f"gptq/mine:{window}")
    loop = gptq(checkpoint.model, joined, window)
    assert value(result) == pytest.approx(loop, rel=1e-6)
    wanda = measured(checkpoint, f"wanda/mine:{window}")
    assert (wanda.metrics, wanda.windows_digest) == (
        result.metrics,
        result.windows_digest,
    )


@pytest.mark.parametrize("window", [64, 100, 2000])
def test_vllm_equals_its_own_test(
    checkpoint: Loaded, joined: torch.Tensor, window: int
) -> None:
    result = measured(checkpoint, f"vllm/mine:{window}")
    loop = vllm(checkpoint.model, joined, window)
    assert value(result) == pytest.approx(loop, rel=1e-6)


@pytest.mark.parametrize("window", [64, 65, 3])
def test_llama_cpp_equals_its_loop(checkpoint: Loaded, window: int) -> None:
    result = measured(checkpoint, f"llama-cpp/mine:{window}")
    loop = llama_cpp(checkpoint.model, checkpoint.tokenizer, FILE, window)
    assert value(result) == pytest.approx(loop, rel=1e-6)


@pytest.mark.parametrize(
    "key",
    [
        "strided/mine:64:stride16",
        "llama-cpp/mine:64",
        "lora-ft/mine:64",
        "vllm/mine:64",
    ],
)
def test_batches_do_not_move_a_number(checkpoint: Loaded, key: str) -> None:
    alone, together = measured(checkpoint, key), measured(checkpoint, key, batch_size=5)
    assert value(together) == pytest.approx(value(alone), rel=1e-6)
    assert together.windows_digest == alone.windows_digest


def test_methods_differ_where_they_say_so(checkpoint: Loaded) -> None:
    """All by one window: every two that differ in a property differ in the number."""
    keys = {
        method: f"{method}/mine:64" + (":stride16" if method == "strided" else "")
        for method in ("wanda", "strided", "llama-cpp", "lora-ft", "vllm")
    }
    values = {method: value(measured(checkpoint, key)) for method, key in keys.items()}
    assert len({f"{number:.6g}" for number in values.values()}) == len(values)


@pytest.mark.parametrize(
    ("key", "now", "then"),
    [
        ("wanda/mine:64", "none", "BOS 0"),
        ("strided/mine:64:stride16", "none", "BOS 0"),
        ("llama-cpp/mine:64", "none", "BOS 0 in each window"),
        ("lm-eval/wikitext+mine:64", "prefix 0", "prefix 0 and BOS"),
    ],
)
def test_a_bos_that_transformers_no_longer_adds_is_seen(
    tmp_path: Path, key: str, now: str, then: str
) -> None:
    """The digest of the windows sees it, and the property says what it is."""
    found = []
    for bos in (False, True):
        folder = save_tiny(tmp_path / str(bos), bos=bos)
        checkpoint = load(locate(str(folder)), device="cpu", dtype="float32")
        found.append(measured(checkpoint, f"{key}:first1"))
    assert found[0].windows_digest != found[1].windows_digest
    assert [each.protocol["first token"] for each in found] == [now, then]


# --------------------------------------------------------- methods of others that fail


class Others(Wanda):
    """A method from outside."""

    name = "others"


def measured_by(
    method: Others, monkeypatch: pytest.MonkeyPatch, checkpoint: Loaded
) -> str:
    """What is said where ``method`` is asked for a number."""
    monkeypatch.setitem(PROTOCOLS._loaded, "others", method)
    monkeypatch.setitem(PROTOCOLS._own, "others", method)
    with pytest.raises(PplguardError) as caught:
        measure_loaded(checkpoint, Key.parse("others/mine:16"), lambda _: CORPUS)
    return str(caught.value)


@pytest.mark.parametrize(
    ("cut", "said"),
    [
        ([], "cuts the text into no windows"),
        (
            [Window((5, 6, 7), (6, 7), 0), Window((5, 6, 7), (6, 7), -3)],
            "scores 2 tokens from position -3 of its window 2, which has 3",
        ),
        (
            [Window((5, 6, 7), (6, 7), 2)],
            "scores 2 tokens from position 2 of its window 1, which has 3",
        ),
        (5, "(tests.model.test_measure_methods) failed: TypeError: "),
    ],
    ids=["none", "before its ids", "behind its ids", "no list"],
)
def test_windows_that_cannot_be(
    cut: Any, said: str, checkpoint: Loaded, monkeypatch: pytest.MonkeyPatch
) -> None:
    method = Others()
    monkeypatch.setattr(method, "windows", lambda *_: cut)
    message = measured_by(method, monkeypatch, checkpoint)
    assert message.startswith("key others/mine:16: the method others ")
    assert said in message


@pytest.mark.parametrize(
    ("metrics", "said"),
    [
        (
            {"token_perplexity": math.nan},
            "makes token_perplexity nan of losses that are all finite",
        ),
        ({"other": 1.0}, "gave no token_perplexity, which it says it yields"),
    ],
    ids=["not finite", "not there"],
)
def test_numbers_that_are_none(
    metrics: dict[str, float],
    said: str,
    checkpoint: Loaded,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    method = Others()
    monkeypatch.setattr(method, "recompute", lambda *_: metrics)
    message = measured_by(method, monkeypatch, checkpoint)
    assert message == f"key others/mine:16: the method others {said}"
