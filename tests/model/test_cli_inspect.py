"""``pplguard inspect`` as a user runs it; its windows cut again by lm-eval's code."""

from __future__ import annotations

import json
import re
import shutil
from collections import Counter
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
from lm_eval.tasks.wikitext.preprocess_wikitext import wikitext_detokenizer
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from transformers import AutoTokenizer

from pytest_pplguard.baselines import read_baseline
from pytest_pplguard.cli.inspect import inspect_task
from pytest_pplguard.errors import UsageError
from pytest_pplguard.options import Options, parse_corpora
from tests.model.test_demo import DEMO, ROOT, rows_and_pages
from tests.model.tiny import save_tiny
from tests.official import official_wikitext2, smollm2_gguf


def inspect(
    task: str, model: str | None = None, options: Options | None = None, **given: Any
) -> bool:
    asked = {"corpus": None, "window": None, "first": None, "json_path": None} | given
    return inspect_task(task, model, options or Options(), **asked)


DEMO_TEXT = """\
wikitext: what lm-eval VERSION does with this task
  task file        wikitext/wikitext.yaml
  version          2.0
  data             EleutherAI/wikitext_document_level, wikitext-2-raw-v1, split test
  read from        the corpus demo
  documents        18
  divided by       11870 words, 61517 bytes
  output type      loglikelihood_rolling
  num_fewshot      0, as the task sets none
  metric           word_perplexity: weighted_perplexity, lower is better
  metric           byte_perplexity: weighted_perplexity, lower is better
  metric           bits_per_byte: bits_per_byte, lower is better
  doc_to_text      ''
  doc_to_target    MODULE.wikitext_detokenizer (what is scored: the detokeniser)
  process_results  MODULE.process_results
  should_decontaminate True
  doc_to_decontamination_query {{page}}
with the tokenizer of demo/dense, lm-eval/wikitext+demo:256
  prefix token     0, '<s>', before each page; the tokenizer adds it too, so it stands twice and is scored once (since lm-eval 0.4.9.2)
  windows          72, 66 of 256 tokens, 6 of 68 to 247
  digest           sha256:ccb31f8e344bebedbeb88a0ee77ca873cfb40de0234fd4338fd30aad5702ebf9
  first window     256 tokens read, 256 scored: <s><s> = Bilrminster =\\n\\nBilrminster is a poor market town in Jernilmmark, Hand [...] ho had come from Weillustad, governed Bilrminster until 1696.\\n\\n=== 1681 – 1698
"""  # noqa: E501


def test_the_demo(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "out.json"
    assert inspect(
        "wikitext", "demo/dense", corpus="demo", window=256, json_path=str(path)
    )
    module = "lm_eval.tasks.wikitext.preprocess_wikitext"
    expected = DEMO_TEXT.replace("VERSION", version("lm_eval"))
    assert capsys.readouterr().out == expected.replace("MODULE", module)
    windows = json.loads(path.read_text(encoding="utf-8"))["windows"]
    # Cut again as HFLM does.
    tokenizer = AutoTokenizer.from_pretrained(DEMO / "dense")
    _, pages = rows_and_pages()
    cut = [
        make_disjoint_window(pair)
        for page in pages
        for pair in get_rolling_token_windows(
            token_list=tokenizer.encode(wikitext_detokenizer({"page": page})),
            prefix_token=tokenizer.bos_token_id,
            max_seq_len=256,
            context_len=1,
        )
    ]
    lengths = Counter(len(context) + len(scored) - 1 for context, scored in cut)
    assert windows["windows"] == len(cut) == 72
    assert windows["lengths"] == {str(size): n for size, n in lengths.items()}
    assert windows["first_scored"] == len(cut[0][1])
    assert windows["prefix_twice"] is True
    # And the digest is what our gates hold measurements to.
    entry = read_baseline(ROOT / "baselines" / "demo.yaml").checkpoints["dense"]
    recorded = entry.recorded["lm-eval/wikitext+demo:256"]
    assert windows["digest"] == recorded.windows_digest


def test_the_page_shows_what_is_printed() -> None:
    page = (ROOT / "docs" / "inspect.md").read_text(encoding="utf-8")
    shown = re.search(r"--window 256\n(.*?)```", page, re.S)
    assert shown is not None
    text = re.sub(r"what lm-eval \S+ does", "what lm-eval VERSION does", shown[1])
    module = "lm_eval.tasks.wikitext.preprocess_wikitext"
    assert text.replace(module, "MODULE") == DEMO_TEXT


def test_a_tokenizer_that_adds_no_bos(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Only config and tokenizer are read: there are no weights."""
    folder = save_tiny(tmp_path / "m", bos=False, max_position_embeddings=64)
    (folder / "model.safetensors").unlink()
    assert inspect("wikitext", str(folder), corpus="demo", first=1)
    captured = capsys.readouterr()
    assert (
        "pplguard: window 64 (the model's maximum is 64; --window changes it)\n"
        in captured.err
    )
    lines = captured.out.splitlines()
    assert "  prefix token     0, '<s>', before each page" in lines
    assert f"with the tokenizer of {folder}, lm-eval/wikitext+demo:64:first1" in lines


def test_a_gguf_file_is_cut_as_it_is_measured(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Its tokenizer splits words by the file's rule: the digest is the recorded one."""
    file = smollm2_gguf()
    corpora = parse_corpora([f"wikitext2={official_wikitext2()}"], option="--corpus")
    options = Options(corpora=corpora)
    assert inspect("wikitext", str(file), options, window=2048)
    entry = read_baseline(ROOT / "baselines" / "smollm2-135m.yaml").checkpoints["dense"]
    recorded = entry.recorded["lm-eval/wikitext:2048"]
    out = capsys.readouterr().out
    assert f"  digest           {recorded.windows_digest}\n" in out
    assert "  divided by       241335 words, 1290527 bytes\n" in out


def test_a_text_of_ones_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "mine.txt"
    file.write_text("one two\n", encoding="utf-8")
    corpora = parse_corpora([f"mine={file}"], option="--corpus")
    assert inspect("wikitext", options=Options(corpora=corpora), corpus="mine")
    lines = capsys.readouterr().out.splitlines()
    assert f"  read from        the corpus mine ({file})" in lines
    assert "  divided by       3 words, 8 bytes" in lines


def test_data_that_cannot_be_reached(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """What the config says is printed all the same."""
    file = tmp_path / "mine.yaml"
    data = tmp_path / "gone.jsonl"
    file.write_text(
        f"task: mine\ndataset_path: json\ndataset_kwargs: {{data_files: {data}}}\n"
        "test_split: train\noutput_type: multiple_choice\ndoc_to_text: '{{q}}'\n"
        "doc_to_choice: ['a', 'b']\ndoc_to_target: 0\n"
        "metric_list:\n  - {metric: acc, aggregation: mean, higher_is_better: true}\n"
    )
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    assert not inspect(str(file))
    out = capsys.readouterr().out
    assert "  metric           acc: mean, higher is better\n" in out
    assert (
        f"  not reached      the data of lm-eval's task {file} could not be read: "
    ) in out
    assert out.endswith(
        "; fetch it where there is a network (then HF_DATASETS_OFFLINE=1 uses the "
        "cache), or write a YAML with `dataset_path: json` and `dataset_kwargs: "
        "{data_files: ...}` and give its path (docs/tasks.md)\n"
    )
    data.write_text('{"q": "one"}\n{"q": "two"}\n', encoding="utf-8")
    assert inspect(str(file))
    assert "  documents        2\n" in capsys.readouterr().out
    shutil.rmtree(tmp_path / "hf", ignore_errors=True)


def test_a_task_that_needs_generated_text(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "data.jsonl"
    data.write_text('{"q": "one", "a": "two"}\n', encoding="utf-8")
    file = tmp_path / "mine.yaml"
    file.write_text(
        f"task: mine\ndataset_path: json\ndataset_kwargs: {{data_files: {data}}}\n"
        "test_split: train\noutput_type: generate_until\ndoc_to_text: '{{q}}'\n"
        "doc_to_target: '{{a}}'\ngeneration_kwargs: {until: ['.']}\n"
        "metric_list:\n  - {metric: exact_match}\n"
    )
    assert inspect(str(file))
    assert (
        "  output type      generate_until: needs generated text, so it cannot be "
        "measured here\n"
    ) in capsys.readouterr().out


def test_options_of_wikitext_for_another_task() -> None:
    with pytest.raises(UsageError) as caught:
        inspect("hellaswag", "demo/dense", window=64)
    assert str(caught.value) == (
        "MODEL, --window: only the pages of wikitext are cut into windows; hellaswag "
        "scores answers to questions: leave them out"
    )
