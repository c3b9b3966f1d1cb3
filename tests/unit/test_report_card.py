"""Model cards: results with their method, and every other byte as it was."""

from __future__ import annotations

import math
from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard
from huggingface_hub.repocard_data import model_index_to_eval_results

from pytest_pplguard.baselines.evidence import Evidence
from pytest_pplguard.errors import UsageError
from pytest_pplguard.report.card import (
    Published,
    eval_results,
    metric_name,
    new_card,
    results_of,
    with_results,
)
from pytest_pplguard.values import Key, Recorded, Source, WindowScore

KEY = "wanda/wikitext2:4096"
VALUE = 6.306215412345679
PLACE = "m/README.md"


def published(
    value: float = VALUE, key: str = KEY, metric: str = "token_perplexity", **more: Any
) -> Published:
    fields: dict[str, Any] = {
        "metrics": {metric: value},
        "source": Source(kind="measured"),
        "windows": 83,
        "units": {"tokens": 339885},
        "windows_digest": "sha256:" + "1" * 64,
        "corpus_digest": "sha256:" + "2" * 64,
        "weights_digest": "sha256:" + "3" * 64,
        "evidence": "llama/w50/x.json",
        "environment": {"pytest_pplguard": "0.1.0", "torch": "2.13.0", "dtype": "bf16"},
    }
    protocol = more.pop("protocol", {"window": 4096, "tail": "dropped", "none": None})
    recorded = Recorded(**fields | more)
    evidence = Evidence(
        schema=1,
        checkpoint="llama/w50",
        key=key,
        windows_digest=recorded.windows_digest or "",
        corpus_digest=recorded.corpus_digest or "",
        protocol=protocol,
        units=recorded.units,
        metrics=recorded.metrics,
        windows=(WindowScore(1.0, 2),),
    )
    return Published(
        checkpoint="llama/w50", key=Key.parse(key), recorded=recorded,
        evidence=evidence,
    )  # fmt: skip


def metadata(text: str) -> dict[str, Any]:
    data: dict[str, Any] = yaml.safe_load(text.split("---\n")[1])
    return data


def card(text: str, *records: Published) -> str:
    results = eval_results(records or [published()])
    return with_results(text, results, name="w50", place=PLACE)


def test_a_new_card_in_full() -> None:
    text = new_card(
        "w50",
        eval_results([published()]),
        base="meta-llama/Llama-2-7b-hf",
        pruned=True,
        library="transformers",
    )
    assert (
        text
        == f"""\
---
base_model: meta-llama/Llama-2-7b-hf
library_name: transformers
pipeline_tag: text-generation
tags:
- pruned
model-index:
- name: w50
  results:
  - task:
      type: text-generation
      name: Text generation
    dataset:
      name: WikiText-2 (raw)
      type: Salesforce/wikitext
      config: wikitext-2-raw-v1
      split: test
      revision: sha256:{"2" * 64}
    metrics:
    - type: perplexity
      value: {VALUE!r}
      name: Perplexity per token, the Wanda code's method, windows of 4096 tokens
      args:
        measured_with: pytest-pplguard 0.1.0
        baseline: llama/w50
        key: {KEY}
        window: 4096
        windows: 83
        units:
          tokens: 339885
        windows_digest: sha256:{"1" * 64}
        corpus_digest: sha256:{"2" * 64}
        weights_digest: sha256:{"3" * 64}
        protocol:
          window: 4096
          tail: dropped
        environment:
          torch: 2.13.0
          dtype: bf16
---

# w50
"""
    )


def test_only_what_is_known_is_in_a_new_card() -> None:
    text = new_card(
        "w50", eval_results([published()]), base="demo", pruned=False, library=None
    )
    assert list(metadata(text)) == ["pipeline_tag", "model-index"]


VALUES = [math.pi, 1e-7, 123456789.12345679, 5.0, math.nextafter(6.3, 7)]


def test_every_digit_is_read_back() -> None:
    records = [
        published(value, f"wanda/wikitext2:{16 + i}") for i, value in enumerate(VALUES)
    ]
    text = card("", *records)
    _, results = model_index_to_eval_results(metadata(text)["model-index"])
    assert [result.metric_value for result in results] == VALUES
    assert [result.metric_args for result in results] == [
        result.metric_args for result in eval_results(records)
    ]
    assert [result.metric_value for result in results_of(text)] == VALUES


@pytest.mark.parametrize(
    ("metric", "key", "protocol", "name"),
    [
        ("word_perplexity", "lm-eval/wikitext:2048", {},
         "Perplexity per word, lm-eval's task wikitext, windows of 2048 tokens"),
        ("byte_perplexity", "lm-eval/wikitext:2048:first2", {},
         "Perplexity per byte, lm-eval's task wikitext, windows of 2048 tokens, the "
         "first 2 pages only"),
        ("token_perplexity", "strided/wikitext2:2048:stride512", {},
         "Perplexity per token, the sliding window of Hugging Face's documentation, "
         "windows of 2048 tokens, stride 512"),
        ("kl_divergence", "kl/wikitext2:512:first40", {"reference": "dense"},
         "KL divergence in nats per token from dense, text cut as in the Wanda "
         "code, windows of 512 tokens, the first 40 windows only"),
        ("top1_agreement", "kl/wikitext2:512", {"reference": "dense"},
         "Agreement on the most likely token with dense, text cut as in the Wanda "
         "code, windows of 512 tokens"),
        ("acc_norm", "lm-eval/piqa:2048:shots5:first100", {},
         "acc_norm, lm-eval's task piqa, 5 shots, windows of 2048 tokens, the first "
         "100 documents only"),
    ],
)  # fmt: skip
def test_names_say_the_method(
    metric: str, key: str, protocol: dict[str, Any], name: str
) -> None:
    assert metric_name(metric, Key.parse(key), protocol) == name


@pytest.mark.parametrize(
    ("key", "more", "dataset"),
    [
        (KEY, {},
         ("WikiText-2 (raw)", "Salesforce/wikitext", "wikitext-2-raw-v1", "test")),
        (KEY, {"protocol": {"official text": False}},
         ("wikitext2 (another text than the official one)", "wikitext2", None, None)),
        ("wanda/c4:2048", {}, ("C4", "allenai/c4", None, "validation")),
        ("wanda/mine:2048", {}, ("mine", "mine", None, None)),
        ("lm-eval/wikitext+mine:2048", {}, ("mine", "mine", None, None)),
        ("lm-eval/piqa:2048", {}, ("piqa", "piqa", None, None)),
    ],
)  # fmt: skip
def test_data_sets(
    key: str, more: dict[str, Any], dataset: tuple[str | None, ...]
) -> None:
    (result,) = eval_results([published(key=key, **more)])
    found = (
        result.dataset_name, result.dataset_type, result.dataset_config,
        result.dataset_split,
    )  # fmt: skip
    assert found == dataset
    assert result.dataset_revision == "sha256:" + "2" * 64


def test_the_standard_error_of_a_task() -> None:
    record = published(0.71, "lm-eval/piqa:2048", "acc", stderr={"acc": 0.0123})
    (result,) = eval_results([record])
    assert result.metric_args is not None
    assert result.metric_args["stderr"] == 0.0123


# ------------------------------------------------------------------- cards that exist

CARD = """\
---
# who pruned it: us
license: "mit"   # quoted
language: [en]
tags:
    - pruned
    - 2:4
model-index:   # numbers
- name: somebody's name
  results:
  - task: {type: text-generation}
    dataset: {type: gsm8k, name: GSM8K, odd: kept}
    metrics:
    - {type: acc, value: 0.50, name: theirs, unknown: kept}
    note: kept
# the end
base_model:   org/base
---
# My model

--- a line
\ttext with trailing blanks  \n"""


def test_every_other_byte_stays() -> None:
    text = card(CARD)
    start, end = CARD.index("model-index:"), CARD.index("# the end")
    assert text.startswith(CARD[:start])
    assert text.endswith(CARD[end:])
    index = metadata(text)["model-index"]
    old = metadata(CARD)["model-index"]
    assert index[0]["name"] == "somebody's name"
    assert index[0]["results"][0] == old[0]["results"][0]
    assert len(index[0]["results"]) == 2
    # huggingface_hub's own round trip would have lost these.
    assert "# who pruned it" not in str(ModelCard(CARD))
    assert "odd" not in str(ModelCard(CARD))


def test_running_twice_changes_nothing() -> None:
    once = card(CARD)
    assert card(once) == once


def test_our_results_are_replaced_and_those_of_others_are_not() -> None:
    once = card(CARD, published(), published(7.0, "wanda/wikitext2:2048"))
    again = card(once, published(6.5))
    assert [(r.metric_name, r.metric_value) for r in results_of(again)] == [
        ("theirs", 0.5),
        ("Perplexity per token, the Wanda code's method, windows of 4096 tokens", 6.5),
    ]
    assert card(again, published(), published(7.0, "wanda/wikitext2:2048")) == once


def test_metrics_of_others_beside_ours_in_one_result_stay() -> None:
    """As huggingface_hub writes them: one result for each text."""
    index = metadata(card(""))["model-index"]
    index[0]["results"][0]["metrics"].insert(
        0, {"type": "perplexity", "value": 5.9, "name": "theirs"}
    )
    text = f"---\n{yaml.safe_dump({'model-index': index})}---\n"
    assert [r.metric_value for r in results_of(card(text, published(6.6)))] == [
        5.9,
        6.6,
    ]


def test_a_card_without_results() -> None:
    text = "---\nlicense: mit\n# last\n---\nbody"
    made = card(text)
    assert made.startswith("---\nlicense: mit\n# last\nmodel-index:\n- name: w50\n")
    assert made.endswith("bf16\n---\nbody")
    assert card("---\nlicense: mit\nmodel-index: []\n---\n") == card(
        "---\nlicense: mit\nmodel-index:\n---\n"
    )


@pytest.mark.parametrize(
    "text", ["", "# Title\n", "\n\ntext\n---\nno: metadata\n---\n"]
)
def test_a_card_without_metadata(text: str) -> None:
    made = card(text)
    assert made.startswith("---\nmodel-index:\n")
    assert made.endswith(f"bf16\n---\n{text}")
    assert len(results_of(made)) == 1


@pytest.mark.parametrize("text", ["---\n\n---\nbody\n", "---\n# nothing\n---\nbody\n"])
def test_metadata_that_is_empty(text: str) -> None:
    made = card(text)
    assert made.endswith("---\nbody\n")
    assert len(results_of(made)) == 1
    assert card(made) == made


def test_line_ends_stay() -> None:
    text = CARD.replace("\n", "\r\n")
    made = card(text)
    assert "\n" not in made.replace("\r\n", "")
    assert made.replace("\r\n", "\n") == card(CARD)


def test_results_as_the_last_metadata_and_in_flow_style() -> None:
    text = "---\na: 1\nmodel-index: [{name: x, results: []}]  # c\n---\n"
    made = card(text)
    assert made.startswith("---\na: 1\nmodel-index:\n- name: x\n")
    assert made.endswith("bf16  # c\n---\n")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("---\na: [\n---\n", ":2: its metadata is no YAML: expected the node content, "
         "but found '<stream end>'"),
        ("---\n- a\n---\n", ": its metadata is no block of `name: value` lines: "
         "write it as one"),
        ("---\n{a: 1}\n---\n", ": its metadata is no block of `name: value` lines: "
         "write it as one"),
        ("---\nmodel-index:\n- name: x\n---\n", ": its model-index is not what the "
         "Hub reads (KeyError: 'results'): correct it, or remove it"),
        ("---\nmodel-index: 3\n---\n", ": its model-index is not what the Hub reads "
         "(TypeError: 'int' object is not iterable): correct it, or remove it"),
        ("---\nmodel-index: []\nmodel-index: []\n---\n",
         ": model-index is there twice: keep one"),
        ("\ufeff---\na: 1\n---\n", " starts with a byte order mark, which hides its "
         "metadata from the Hub: save it without one"),
    ],
)  # fmt: skip
def test_cards_that_cannot_be_changed(text: str, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        card(text)
    assert str(caught.value) == f"{PLACE}{message}"


def test_what_others_wrote_stays_a_text() -> None:
    hostile = '"]}\n---\n<script>alert(1)</script>\x1b[31m: # & * ! %'
    record = published(environment={"device_name": hostile})
    (result,) = results_of(card("---\na: 1\n---\n", record))
    assert result.metric_args is not None
    assert result.metric_args["environment"] == {"device_name": hostile}


OTHERS = (
    "model-index:\n"
    "- name: {name}\n"
    "  results:\n"
    "  - task: {{type: t}}\n"
    "    dataset: {{name: d, type: d, config: null}}\n"
    "    metrics:\n"
    "    - type: acc\n"
    "      value: 1\n"
    "      name: {metric}\n"
)


@pytest.mark.parametrize("style", ["|", ">", "|-", "|+"])
def test_results_that_end_in_a_block_of_text(style: str) -> None:
    index = OTHERS.format(name="x", metric=f"{style}\n        two\n        lines")
    text = f"---\n{index}license: mit # why\n---\nbody\n"
    card = with_results(text, eval_results([published()]), name="n", place=PLACE)
    assert card.endswith("\nlicense: mit # why\n---\nbody\n")
    assert [result.metric_value for result in results_of(card)] == [1, VALUE]
    assert yaml.safe_load(card.split("---\n")[1])["license"] == "mit"
    windows = with_results(
        text.replace("\n", "\r\n"), eval_results([published()]), name="n", place=PLACE
    )
    assert windows == card.replace("\n", "\r\n")


@pytest.mark.parametrize(
    "text",
    [
        f"---\n{OTHERS.format(name='&n x', metric='a')}title: *n\n---\nb\n",
        "---\n  license: mit\n  tags: [a]\n---\nb\n",
        "---\nlicense: mit\n...\n---\nb\n",
        "---\n? model-index\n: - name: x\n    results: []\n---\nb\n",
    ],
    ids=["anchor", "indented", "ended", "complex"],
)
def test_metadata_that_a_splice_would_break_are_refused(text: str) -> None:
    with pytest.raises(UsageError) as error:
        with_results(text, eval_results([published()]), name="n", place=PLACE)
    assert str(error.value) == (
        "m/README.md: model-index cannot be written into its metadata without changing "
        "the rest: write the fields without anchors, from the first column, and "
        "model-index as a block of its own"
    )


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_empty_metadata_above_a_rule(end: str) -> None:
    text = end.join(["---", "---", "", "# Title", "", "---", "foot", ""])
    card = with_results(text, eval_results([published()]), name="n", place=PLACE)
    assert card.startswith(f"---{end}model-index:{end}")
    assert card.endswith(f"{end}{text.removeprefix(f'---{end}')}")
    assert [result.metric_value for result in results_of(card)] == [VALUE]
    again = with_results(card, eval_results([published()]), name="n", place=PLACE)
    assert again == card


def test_weights_that_nobody_recorded_are_not_claimed() -> None:
    (result,) = eval_results([published(weights_digest=None)])
    assert result.metric_args is not None
    assert "weights_digest" not in result.metric_args
    assert result.metric_args["windows_digest"] == "sha256:" + "1" * 64
