"""What is read of lm-eval's tasks: from its own files, without data or a model."""

from __future__ import annotations

import sys
from importlib.metadata import version
from pathlib import Path

import pytest
from packaging.version import Version

from pytest_pplguard.corpora import open_corpus
from pytest_pplguard.errors import UsageError
from pytest_pplguard.inspection import (
    MetricFacts,
    TaskFacts,
    count_units,
    task_facts,
)
from pytest_pplguard.report import inspection_document, inspection_lines
from tests.official import official_wikitext2

VERSION = version("lm_eval")


def test_the_official_file_has_62_pages_and_lm_evals_units() -> None:
    """The golden facts: what lm-eval divides by on WikiText-2's test split."""
    pages = open_corpus("wikitext2", {"wikitext2": str(official_wikitext2())}).pages
    _, task = task_facts("wikitext")
    assert len(pages) == 62
    assert count_units(task, pages) == {"words": 241_335, "bytes": 1_290_527}


def test_units_are_counted_by_the_task() -> None:
    """Written out: words by white space, an empty one at each end; bytes of UTF-8."""
    _, task = task_facts("wikitext")
    pages = [" = Ä b =\n", "one  two"]
    assert count_units(task, pages) == {"words": 6 + 2, "bytes": 10 + 8}


def test_the_task_wikitext() -> None:
    facts, _ = task_facts("wikitext")
    module = "lm_eval.tasks.wikitext.preprocess_wikitext"
    lower = [
        ("word_perplexity", "weighted_perplexity"),
        ("byte_perplexity", "weighted_perplexity"),
        ("bits_per_byte", "bits_per_byte"),
    ]
    assert facts == TaskFacts(
        lm_eval=VERSION,
        task="wikitext",
        file="wikitext/wikitext.yaml",
        version=2.0,
        dataset_path="EleutherAI/wikitext_document_level",
        dataset_name="wikitext-2-raw-v1",
        split="test",
        output_type="loglikelihood_rolling",
        metrics=tuple(MetricFacts(name, how, False) for name, how in lower),
        others={
            "doc_to_text": "",
            "doc_to_target": f"{module}.wikitext_detokenizer",
            "process_results": f"{module}.process_results",
            "should_decontaminate": True,
            "doc_to_decontamination_query": "{{page}}",
        },
    )


def test_a_multiple_choice_task() -> None:
    facts, _ = task_facts("hellaswag")
    assert (facts.kind, facts.output_type) == ("task", "multiple_choice")
    assert (facts.dataset_path, facts.split) == ("Rowan/hellaswag", "validation")
    assert facts.metrics == (
        MetricFacts("acc", "mean", True),
        MetricFacts("acc_norm", "mean", True),
    )
    assert facts.others["process_docs"] == "lm_eval.tasks.hellaswag.utils.process_docs"


def test_a_group_a_tag_and_a_task_in_a_folder_of_another_name() -> None:
    group, task = task_facts("mmlu")
    assert (group.kind, task) == ("group", None)
    assert set(group.members) == {
        "mmlu_stem", "mmlu_other", "mmlu_social_sciences", "mmlu_humanities",
    }  # fmt: skip
    assert group.metrics == (MetricFacts("acc", "mean, by size", None),)
    tag, task = task_facts("ai2_arc")
    assert (tag.kind, task) == ("tag", None)
    assert set(tag.members) == {"arc_easy", "arc_challenge"}
    assert task_facts("arc_easy")[0].file == "arc/arc_easy.yaml"


def test_a_task_of_ones_own(tmp_path: Path) -> None:
    (tmp_path / "parts.py").write_text("def text(doc):\n    return doc['q']\n")
    file = tmp_path / "mine.yaml"
    file.write_text(
        "task: mine\ndataset_path: json\ntest_split: test\nnum_fewshot: 2\n"
        "output_type: multiple_choice\ndoc_to_text: !function parts.text\n"
        "doc_to_choice: [yes it is, other]\ndoc_to_target: 0\n"
        "metric_list:\n  - {metric: acc, aggregation: mean, higher_is_better: true}\n"
    )
    facts, _ = task_facts(str(file))
    assert (facts.task, facts.file, facts.num_fewshot) == ("mine", str(file), 2)
    assert facts.others["doc_to_text"] == f"{tmp_path / 'parts'}.text"
    assert facts.others["doc_to_choice"] == "['yes it is', 'other']"
    assert facts.metrics == (MetricFacts("acc", "mean", True),)


def test_an_unknown_task_has_near_matches() -> None:
    with pytest.raises(UsageError) as caught:
        task_facts("wikitxt")
    message = str(caught.value)
    assert message.startswith(
        f"lm-eval {VERSION} knows no task 'wikitxt' (did you mean"
    )
    assert "'wikitext'" in message
    assert message.endswith(
        "; `lm-eval ls tasks` lists them, and one of your own is given by the path of "
        "its YAML: inspect tasks/wikitxt.yaml"
    )


def test_a_group_that_does_not_say_how_it_weights(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(
        "group: mine\ntask: [piqa, boolq]\naggregate_metric_list:\n"
        "  - {metric: acc}\n  - {metric: f1, weight_by_size: false}\n"
    )
    facts, _ = task_facts(str(file))
    how = "by size" if Version(VERSION) >= Version("0.4.12") else "unweighted"
    assert facts.metrics == (
        MetricFacts("acc", f"mean, {how}", None),
        MetricFacts("f1", "mean, unweighted", None),
    )


def test_a_broken_task_is_named(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("task: mine\ndoc_to_text: !function nowhere.text\n")
    with pytest.raises(UsageError, match=r"mine\.yaml: lm-eval cannot read this task"):
        task_facts(str(file))
    file.write_text(
        "task: mine\ndataset_path: json\noutput_type: multiple_choice\n"
        "metric_list:\n  - {metric: acc, aggregation: no-such-thing}\n"
    )
    facts, _ = task_facts(str(file))
    assert facts.metrics[0].aggregation == "unknown to lm-eval"


def test_lines_of_a_group_that_has_many_members() -> None:
    facts = TaskFacts(
        lm_eval="0.4.13",
        task="many",
        file="many/many.yaml",
        kind="group",
        version=1,
        members=tuple("abcdefghij"),
        metrics=(MetricFacts("acc", "mean, by size", None),),
        others={"note": "one\ntwo" + "x" * 300, "empty": ""},
        unreachable="no network",
    )
    assert inspection_lines(facts, None, model=None) == [
        "many: what lm-eval 0.4.13 does with this group",
        "  task file        many/many.yaml",
        "  version          1",
        "  members          a, b, c, d, e, f, g, h and 2 more",
        "  metric           acc: mean, by size",
        "  note             one\\ntwo" + "x" * 192 + " [...]",
        "  empty            ''",
        "  not reached      no network",
    ]
    document = inspection_document(facts, None)
    assert list(document) == ["schema", "task", "windows"]
    assert document["windows"] is None
    assert document["task"]["members"] == list("abcdefghij")


def test_nothing_of_torch_is_needed() -> None:
    import subprocess

    code = (
        "import sys\nfrom pytest_pplguard.inspection import task_facts\n"
        "task_facts('wikitext')\nprint('torch' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert done.stdout == "False\n"
