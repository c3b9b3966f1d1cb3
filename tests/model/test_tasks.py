"""Tasks of lm-eval, against ``simple_evaluate`` with lm-eval's own ``hf`` model."""

from __future__ import annotations

import contextlib
import json
import math
import random
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import lm_eval.api.metrics
import pytest
import torch
from msgspec.structs import replace
from transformers import AutoModelForCausalLM, AutoTokenizer

from pytest_pplguard.baselines import encode_evidence
from pytest_pplguard.baselines.evidence import Evidence
from pytest_pplguard.checkpoints import Loaded
from pytest_pplguard.corpora import Corpus
from pytest_pplguard.errors import (
    CorpusError,
    InvalidLossError,
    MeasurementError,
    PplguardError,
    UsageError,
)
from pytest_pplguard.journal import Identity, Journals
from pytest_pplguard.lm_eval_tasks import TaskSource
from pytest_pplguard.measure import Store, measure_loaded
from pytest_pplguard.options import Target
from pytest_pplguard.protocols import recompute_task, windows_digest
from pytest_pplguard.report import watch_lines
from pytest_pplguard.scoring import Scorer, groups, nll, shared_context
from pytest_pplguard.values import Key, Measurement, Window

from .local_tasks import DOCUMENTS, STOCK, stock_run, write_group, write_task
from .tiny import save_tiny

WINDOW = 512


def no_corpus(name: str) -> Corpus:
    raise AssertionError(name)


def load_tiny(path: Path, arch: str = "llama", **options: Any) -> Loaded:
    save_tiny(path, arch, **options)
    model = AutoModelForCausalLM.from_pretrained(path)
    return Loaded.of(model, AutoTokenizer.from_pretrained(path))


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Loaded:
    return load_tiny(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tasks")
    for name in DOCUMENTS:
        write_task(folder, name)
    write_task(folder, "piqa", alias="longer", documents=11)
    write_group(folder, "by_size", ["longer", "boolq"], by_size=True)
    write_group(folder, "alike", ["longer", "boolq"], by_size=False)
    return folder


def measure(loaded: Loaded, key: str, folder: Path, **options: Any) -> Measurement:
    source = TaskSource((str(folder),))
    parsed = Key.parse(key)
    return measure_loaded(loaded, parsed, no_corpus, tasks=source, **options)


def assert_as_stock(
    measured: Measurement, stock: dict[str, Any], name: str, *, tasks: list[str]
) -> None:
    """Metrics, standard errors and each answer's log-likelihood and greediness."""
    expected = {
        metric.removesuffix(",none"): value
        for metric, value in stock["results"][name].items()
        if metric.endswith(",none")
    }
    if name == "alike" and not hasattr(lm_eval.api.metrics, "unweighted_mean_stderr"):
        # Before 0.4.13 stock pools by size what its mean does not weight.
        errors = [stock["results"][task]["acc_stderr,none"] for task in tasks]
        expected["acc_stderr"] = math.hypot(*errors) / len(errors)
    found = dict(measured.metrics)
    found |= {f"{metric}_stderr": value for metric, value in measured.stderr.items()}
    if "perplexity" in found:
        # Stock lm-eval adds in float32, and `exp` makes much of that; its standard
        # error is bootstrapped, which is left out here.
        assert math.log(found.pop("perplexity")) == pytest.approx(
            math.log(expected.pop("perplexity")), rel=1e-6
        )
        del expected["perplexity_stderr"]
    assert found == pytest.approx(expected, rel=1e-6)
    samples = [
        sample
        for task in tasks
        for sample in sorted(stock["samples"][task], key=lambda one: one["doc_id"])
    ]
    answers = [
        answer for sample in samples for answer in (resp[0] for resp in sample["resps"])
    ]
    assert len(answers) == measured.windows == len(measured.evidence)
    for (loglikelihood, greedy), score in zip(answers, measured.evidence, strict=True):
        assert -score.nll_sum == pytest.approx(loglikelihood, rel=1e-6)
        assert score.greedy is greedy
    assert [(d.task, d.document) for d in measured.documents] == [
        (task, sample["doc_id"])
        for task in tasks
        for sample in sorted(stock["samples"][task], key=lambda one: one["doc_id"])
    ]
    for document, sample in zip(measured.documents, samples, strict=True):
        for metric, value in document.values.items():
            assert value == pytest.approx(sample[metric], rel=1e-6)


@pytest.mark.parametrize("shots", [None, 3])
@pytest.mark.parametrize("name", DOCUMENTS)
def test_equal_to_stock(
    name: str, shots: int | None, tiny: Loaded, folder: Path
) -> None:
    key = f"lm-eval/{name}:{WINDOW}" + (f":shots{shots}" if shots else "") + ":first5"
    measured = measure(tiny, key, folder)
    stock = stock_run(
        tiny.model, tiny.tokenizer, folder, name, window=WINDOW, shots=shots, limit=5
    )
    assert_as_stock(measured, stock, name, tasks=[name])
    assert measured.units == {"documents": 5}
    assert measured.notices == ()
    assert measured.protocol["shots"] == (shots or 0)


@pytest.mark.parametrize("name", ["by_size", "alike"])
def test_groups_are_equal_to_stock(name: str, tiny: Loaded, folder: Path) -> None:
    measured = measure(tiny, f"lm-eval/{name}:{WINDOW}", folder)
    stock = stock_run(tiny.model, tiny.tokenizer, folder, name, window=WINDOW)
    assert_as_stock(measured, stock, name, tasks=["longer", "boolq"])
    assert measured.units == {"documents": 17}
    own = [d.values["acc"] for d in measured.documents]
    by_hand = {
        "by_size": sum(own) / 17,
        "alike": (sum(own[:11]) / 11 + sum(own[11:]) / 6) / 2,
    }
    assert measured.metrics["acc"] == pytest.approx(by_hand[name], rel=1e-12)


@pytest.mark.parametrize("arch", ["opt", "gpt_neox", "gemma2", "mixtral"])
def test_other_models_are_equal_to_stock(
    arch: str, tmp_path: Path, folder: Path
) -> None:
    loaded = load_tiny(tmp_path / arch, arch)
    measured = measure(loaded, f"lm-eval/hellaswag:{WINDOW}:first3", folder)
    stock = stock_run(
        loaded.model, loaded.tokenizer, folder, "hellaswag", window=WINDOW, limit=3
    )
    assert_as_stock(measured, stock, "hellaswag", tasks=["hellaswag"])


def test_long_contexts_are_cut_from_the_left_as_stock_does(
    tiny: Loaded, folder: Path
) -> None:
    measured = measure(tiny, "lm-eval/hellaswag:56", folder)
    stock = stock_run(tiny.model, tiny.tokenizer, folder, "hellaswag", window=56)
    assert_as_stock(measured, stock, "hellaswag", tasks=["hellaswag"])


def test_without_bos_as_stock(tmp_path: Path, folder: Path) -> None:
    loaded = load_tiny(tmp_path / "nobos", bos=False)
    measured = measure(loaded, "lm-eval/arc_easy:256", folder)
    stock = stock_run(loaded.model, loaded.tokenizer, folder, "arc_easy", window=256)
    assert_as_stock(measured, stock, "arc_easy", tasks=["arc_easy"])
    assert measured.protocol["first token"] == "none"


def test_an_empty_context_is_the_prefix_as_stock(tiny: Loaded, tmp_path: Path) -> None:
    write_task(tmp_path, "piqa", doc_to_text="")
    measured = measure(tiny, "lm-eval/piqa:256", tmp_path)
    stock = stock_run(tiny.model, tiny.tokenizer, tmp_path, "piqa", window=256)
    assert_as_stock(measured, stock, "piqa", tasks=["piqa"])


def test_mutual_information_is_as_stock(tiny: Loaded, tmp_path: Path) -> None:
    """Its answers are scored twice: behind the question, and behind nothing."""
    metric = {"metric": "acc_mutual_info", "aggregation": "mean"}
    metrics = [{**metric, "higher_is_better": True}]
    write_task(tmp_path, "piqa", metric_list=metrics)
    measured = measure(tiny, "lm-eval/piqa:256", tmp_path)
    stock = stock_run(tiny.model, tiny.tokenizer, tmp_path, "piqa", window=256)
    assert measured.windows == 24
    assert measured.metrics == {
        "acc_mutual_info": stock["results"]["piqa"]["acc_mutual_info,none"]
    }


def test_whole_texts_are_as_stock(tiny: Loaded, tmp_path: Path) -> None:
    """A task with rolling log-likelihoods, which is not ``wikitext``."""
    metric = {"metric": "word_perplexity", "aggregation": "weighted_perplexity"}
    write_task(
        tmp_path,
        "lambada_openai",
        alias="texts",
        output_type="loglikelihood_rolling",
        doc_to_text="",
        doc_to_target="text",
        metric_list=[{**metric, "higher_is_better": False}],
    )
    measured = measure(tiny, "lm-eval/texts:16", tmp_path)
    stock = stock_run(tiny.model, tiny.tokenizer, tmp_path, "texts", window=16)
    assert measured.metrics == pytest.approx(
        {"word_perplexity": stock["results"]["texts"]["word_perplexity,none"]}, rel=1e-6
    )
    assert measured.windows > len(measured.documents) == 6
    assert measured.higher_is_better == ()


def test_a_group_of_answers_and_whole_texts(tiny: Loaded, tmp_path: Path) -> None:
    """Two kinds of request: the answers are scored first, then the texts."""
    write_task(tmp_path, "piqa")
    write_task(
        tmp_path,
        "lambada_openai",
        alias="texts",
        output_type="loglikelihood_rolling",
        doc_to_text="",
        doc_to_target="text",
        metric_list=[
            {
                "metric": "word_perplexity",
                "aggregation": "weighted_perplexity",
                "higher_is_better": False,
            }
        ],
    )
    write_group(tmp_path, "mixed", ["piqa", "texts"], by_size=True)
    measured = measure(tiny, "lm-eval/mixed:256", tmp_path)
    stock = stock_run(tiny.model, tiny.tokenizer, tmp_path, "mixed", window=256)
    assert measured.metrics == pytest.approx(
        {"acc": stock["results"]["mixed"]["acc,none"]}, rel=1e-12
    )
    assert measured.units == {"documents": 12}
    answers, texts = measured.evidence[:12], measured.evidence[12:]
    assert [score.page for score in answers] == [n // 2 for n in range(12)]
    for document in range(6):
        sample = stock["samples"]["texts"][document]
        losses = [s.nll_sum for s in texts if s.page == 6 + sample["doc_id"]]
        assert -math.fsum(losses) == pytest.approx(sample["resps"][0][0], rel=1e-6)
    again = recompute_task(measured.documents, measured.protocol)
    assert again == pytest.approx(measured.metrics, rel=1e-12)


def test_lm_evals_words_about_its_numbers(tiny: Loaded, folder: Path) -> None:
    lambada = measure(tiny, f"lm-eval/lambada_openai:{WINDOW}", folder)
    assert lambada.higher_is_better == ("acc",)
    assert {*lambada.stderr} == {"acc"}
    assert lambada.protocol | {"task definition": "any"} == {
        "window": WINDOW,
        "task": "lambada_openai",
        "task version": 1.0,
        "task definition": "any",
        "shots": 0,
        "output type": "loglikelihood",
        "first token": "BOS 0",
        "empty context": "prefix 0",
        "too long": "cut from the left",
        "aggregation of perplexity": "perplexity",
        "aggregation of acc": "mean",
    }
    # One document has no spread: lm-eval says "N/A", which is no number.
    assert measure(tiny, f"lm-eval/piqa:{WINDOW}:first1", folder).stderr == {}


def test_choices_that_a_task_shuffles_are_as_stock(
    tiny: Loaded, tmp_path: Path
) -> None:
    """As GPQA does, from the global ``random``; the user's draws go on as they were."""
    code = (
        "import random\n"
        "from datasets import Dataset\n"
        "def docs(dataset):\n"
        "    def shuffled(doc):\n"
        "        both = [doc['sol1'], doc['sol2']]\n"
        "        random.shuffle(both)\n"
        "        return {'sol1': both[0], 'sol2': both[1]}\n"
        "    return Dataset.from_list([doc | shuffled(doc) for doc in dataset])\n"
    )
    (tmp_path / "shuffle.py").write_text(code, encoding="utf-8")
    write_task(tmp_path, "piqa", documents=20)
    with (tmp_path / "piqa.yaml").open("a", encoding="utf-8") as file:
        file.write("process_docs: !function shuffle.docs\n")
    random.seed(3)
    users = random.getstate()
    measured = measure(tiny, "lm-eval/piqa:256:shots2", tmp_path)
    assert random.getstate() == users
    again = measure(tiny, "lm-eval/piqa:256:shots2", tmp_path)
    assert again.windows_digest == measured.windows_digest
    stock = stock_run(tiny.model, tiny.tokenizer, tmp_path, "piqa", window=256, shots=2)
    assert_as_stock(measured, stock, "piqa", tasks=["piqa"])


# -------------------------------------------------------------------- shared contexts


@contextlib.contextmanager
def counted(model: torch.nn.Module) -> Iterator[list[int]]:
    """Collects how many tokens the model's body reads in each call."""
    counts: list[int] = []

    def count(_: Any, args: Any, options: dict[str, Any]) -> None:
        counts.append(options["input_ids"].numel())

    body = model.base_model
    assert isinstance(body, torch.nn.Module)
    hook = body.register_forward_pre_hook(count, with_kwargs=True)
    try:
        yield counts
    finally:
        hook.remove()


def answers_of(context: int, lengths: tuple[int, ...], page: int) -> list[Window]:
    """Answers of some lengths behind one context, tokens that nothing else has."""
    start = tuple((7 * i + page) % 200 + 3 for i in range(context))
    windows = []
    for n, length in enumerate(lengths):
        answer = tuple((31 * n + i + page) % 200 + 3 for i in range(length))
        ids = (*start, *answer)[:-1]
        windows.append(Window(ids, answer, context - 1, page=page))
    return windows


def test_a_shared_context_is_read_once(tiny: Loaded) -> None:
    windows = [
        window for page in range(4) for window in answers_of(50, (5, 9, 7), page)
    ]
    alone = Scorer(tiny.model)(windows)
    scorer = Scorer(tiny.model)
    with counted(tiny.model) as counts:
        together = scorer(windows, answers=True)
    assert scorer.notices == []
    assert [score.nll_sum for score in together] == pytest.approx(
        [score.nll_sum for score in alone], rel=1e-6
    )
    # Behind the 49 shared ids: the last of the context and the answer but its end.
    group = [49, 3 * 9]
    whole = [54, 58, 56]
    # First the head proves itself (its body, then the model), then the sharing.
    assert counts == [54, 54, *whole, *group * 4]


def test_answers_of_one_token_take_one_reading(tiny: Loaded) -> None:
    windows = answers_of(50, (1, 1, 1, 1), 0)
    scorer = Scorer(tiny.model)
    scorer._body, scorer._proven = tiny.model.base_model, True
    with counted(tiny.model) as counts:
        scores = scorer(windows, answers=True)
    assert counts == [50]
    alone = [score.nll_sum for score in Scorer(tiny.model)(windows)]
    assert [score.nll_sum for score in scores] == pytest.approx(alone, rel=1e-6)


def test_the_greedy_choice_is_told(tiny: Loaded) -> None:
    ids = tuple(range(10, 30))
    with torch.no_grad():
        logits = tiny.model(input_ids=torch.tensor([ids])).logits[0]
    best = tuple(logits.argmax(-1).tolist())
    wrong = (*best[:-1], (best[-1] + 1) % 200)
    windows = [Window(ids, best[12:], 12, 0), Window(ids, wrong[12:], 12, 0)]
    greedy = [score.greedy for score in Scorer(tiny.model)(windows, answers=True)]
    assert greedy == [True, False]


def out_of_memory(cache: Any) -> None:
    raise torch.OutOfMemoryError("CUDA out of memory")


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda cache: cache.reset(), "going on from its cache gives other losses"),
        (lambda cache: cache.no_such_method(), "it has no cache to go on from"),
        (
            out_of_memory,
            "a document's answers together are too much for its memory",
        ),
    ],
    ids=["other losses", "no cache", "no memory"],
)
def test_a_model_that_cannot_go_on_reads_everything(
    change: Callable[[Any], None],
    why: str,
    tiny: Loaded,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from transformers import DynamicCache

    repeat = DynamicCache.batch_repeat_interleave

    def broken(self: Any, repeats: int) -> None:
        repeat(self, repeats)
        change(self)

    windows = [w for page in range(2) for w in answers_of(50, (5, 9), page)]
    expected = [score.nll_sum for score in Scorer(tiny.model)(windows)]
    monkeypatch.setattr(DynamicCache, "batch_repeat_interleave", broken)
    scorer = Scorer(tiny.model)
    scores = scorer(windows, answers=True)
    assert [score.nll_sum for score in scores] == pytest.approx(expected, rel=1e-12)
    (notice,) = scorer.notices
    assert re.fullmatch(
        rf"each answer is read with its whole context: {why}( \(\w+\))? "
        r"\(slower, same numbers\)",
        notice,
    )


def test_answers_that_are_too_many_for_the_memory(
    tiny: Loaded, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second document's, after the first has shown that sharing is right."""
    from transformers import DynamicCache

    repeat = DynamicCache.batch_repeat_interleave

    def limited(self: Any, repeats: int) -> None:
        if repeats > 2:
            out_of_memory(self)
        repeat(self, repeats)

    windows = [*answers_of(50, (5, 9), 0), *answers_of(50, (5, 9, 7), 1)]
    expected = [score.nll_sum for score in Scorer(tiny.model)(windows)]
    monkeypatch.setattr(DynamicCache, "batch_repeat_interleave", limited)
    scorer = Scorer(tiny.model)
    found = [score.nll_sum for score in scorer(windows, answers=True)]
    assert found == pytest.approx(expected, rel=1e-6)
    assert scorer.notices == [
        "each answer is read with its whole context: a document's answers together are "
        "too much for its memory (slower, same numbers)"
    ]


@pytest.mark.parametrize("kind", ["longrope", "dynamic"])
def test_positions_that_depend_on_the_length_are_read_whole(
    kind: str, tmp_path: Path
) -> None:
    """A short group first, which has no difference to show, then a longer one."""
    more: dict[str, Any] = {"rope_parameters": {"rope_type": kind, "factor": 4.0}}
    if kind == "longrope":
        more["rope_parameters"] |= {
            "short_factor": [1.0] * 4,
            "long_factor": [3.0, 5.0, 7.0, 9.0],
            "original_max_position_embeddings": 32,
        }
    loaded = load_tiny(tmp_path / "tiny", max_position_embeddings=64, **more)
    assert loaded.model.config.rope_parameters["rope_type"] == kind
    windows = [*answers_of(10, (5, 9), 0), *answers_of(30, (2, 20), 1)]
    expected = []
    for window in windows:
        with torch.no_grad():
            logits = loaded.model(input_ids=torch.tensor([window.ids])).logits[0]
        losses = -logits[window.start :].double().log_softmax(-1)
        expected.append(float(losses[range(len(losses)), window.targets].sum()))
    scorer = Scorer(loaded.model)
    scores = scorer(windows, answers=True)
    assert [score.nll_sum for score in scores] == pytest.approx(expected, rel=1e-6)
    assert scorer.notices == [
        "each answer is read with its whole context: its rotary positions depend on "
        "the whole length (slower, same numbers)"
    ]


def test_windows_of_a_whole_text_are_no_group() -> None:
    """Their losses' rows would all be in memory at once."""
    windows = [Window((n, n + 1), (n + 1, n + 2), 0, page=0) for n in range(5)]
    assert list(groups(windows)) == [[0], [1], [2], [3], [4]]


def test_neighbours_that_share_half_of_their_context_are_a_group() -> None:
    def window(ids: str, page: int = 0) -> Window:
        return Window(tuple(map(ord, ids)), (1,), len(ids) - 1, page)

    windows = [
        window("abcdefgh1"),
        window("abcdefgh2"),
        window("abcdxxxx3"),
        window("abcxxxxx4"),  # three of eight: less than half
        window("abcxxxxx4", page=1),
        window("P", page=1),
    ]
    assert list(groups(windows)) == [[0, 1, 2], [3], [4], [5]]
    assert shared_context(windows[:3]) == 4


# ------------------------------------------------------------------------ what is kept


def test_evidence_gives_the_metrics_again(tiny: Loaded, folder: Path) -> None:
    import msgspec

    for name in ("hellaswag", "lambada_openai", "by_size", "alike"):
        measured = measure(tiny, f"lm-eval/{name}:{WINDOW}", folder)
        _, content = encode_evidence("tiny/dense", measured)
        evidence = msgspec.json.decode(content, type=Evidence)
        assert evidence.documents == measured.documents
        assert evidence.windows == measured.evidence
        again = recompute_task(evidence.documents, evidence.protocol)
        assert again == pytest.approx(measured.metrics, rel=1e-12)


def test_the_digests_catch_what_changes_a_number(
    tiny: Loaded, folder: Path, tmp_path: Path
) -> None:
    def digests(measured: Measurement) -> tuple[str, str, Any]:
        definition = measured.protocol["task definition"]
        return measured.windows_digest, measured.corpus_digest, definition

    usual = digests(measure(tiny, f"lm-eval/piqa:{WINDOW}", folder))
    # The same documents and definition at another place.
    write_task(tmp_path / "same", "piqa")
    assert digests(measure(tiny, f"lm-eval/piqa:{WINDOW}", tmp_path / "same")) == usual
    write_task(tmp_path / "template", "piqa", doc_to_text="{{goal}}")
    other = digests(measure(tiny, f"lm-eval/piqa:{WINDOW}", tmp_path / "template"))
    assert [a == b for a, b in zip(usual, other, strict=True)] == [False, True, False]
    shots = digests(measure(tiny, f"lm-eval/piqa:{WINDOW}:shots1", folder))
    assert [a == b for a, b in zip(usual, shots, strict=True)] == [False, True, True]
    nobos = load_tiny(tmp_path / "nobos", bos=False)
    without = digests(measure(nobos, f"lm-eval/piqa:{WINDOW}", folder))
    assert [a == b for a, b in zip(usual, without, strict=True)] == [False, True, True]
    lines = (tmp_path / "template" / "piqa-test.jsonl").read_text().splitlines()
    lines[0] = json.dumps(json.loads(lines[0]) | {"label": 1})
    (tmp_path / "same" / "piqa-test.jsonl").write_text("\n".join(lines) + "\n")
    label = digests(measure(tiny, f"lm-eval/piqa:{WINDOW}", tmp_path / "same"))
    assert [a == b for a, b in zip(usual, label, strict=True)] == [True, False, True]


def test_code_of_a_task_is_part_of_its_definition(tiny: Loaded, tmp_path: Path) -> None:
    """Of a folder of the user's, whatever its layout and wherever it is."""
    right = "def right(doc, answers):\n    return {'acc': 1.0}\n"
    codes = {
        "one": right,
        "same": f"# moved\n\n{right.replace('1.0}', '1.0 }')}",
        "other": right.replace("1.0", "0.5 + 0.5"),
    }
    definitions = {}
    for name, code in codes.items():
        write_task(tmp_path / name, "piqa")
        (tmp_path / name / "own.py").write_text(code, encoding="utf-8")
        with (tmp_path / name / "piqa.yaml").open("a", encoding="utf-8") as file:
            file.write("process_results: !function own.right\n")
        measured = measure(tiny, "lm-eval/piqa:256:first2", tmp_path / name)
        assert measured.metrics["acc"] == 1
        definitions[name] = measured.protocol["task definition"]
    assert definitions["one"] == definitions["same"] != definitions["other"]


def test_finished_answers_are_not_scored_again(
    tiny: Loaded, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = f"lm-eval/hellaswag:{WINDOW}"
    whole = measure(tiny, key, folder)
    journals = Journals(tmp_path / "journal")

    def open_journal(digest: str, deciding: Any, windows: Any) -> Any:
        identity = Identity("model", key, digest, {})
        return journals.open(identity, windows, label=key)

    def stop(done: int, total: int, mean: float) -> None:
        if done == 12:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        measure(tiny, key, folder, open_journal=open_journal, progress=stop)
    with counted(tiny.model) as counts:
        resumed = measure(tiny, key, folder, open_journal=open_journal)
    assert resumed.evidence == whole.evidence
    assert resumed.metrics == whole.metrics
    with counted(tiny.model) as all_counts:
        measure(tiny, key, folder)
    assert len(counts) == len(all_counts) - 2 * 3  # three of six documents
    assert "12 of 24 windows were scored already" in resumed.notices[0]


def test_a_run_that_goes_on_speaks_of_answers(
    tiny: Loaded, folder: Path, tmp_path: Path
) -> None:
    key = Key.parse(f"lm-eval/hellaswag:{WINDOW}")

    def measured() -> Measurement:
        """By a process of its own, which ended before its journal was removed."""
        store = Store(
            {"it": Target("it", "tiny")},
            load=lambda _: replace(tiny, from_files=True),
            open_corpus=no_corpus,
            watch=lambda label, **_: watch_lines(label, lambda line: None),
            journals=Journals(tmp_path),
            task_folders=[str(folder)],
        )
        return store.measurement("it", key)

    first, again = measured(), measured()
    assert again.evidence == first.evidence
    (notice,) = again.notices
    start = f"it {key}: {first.windows} of {first.windows} answers were scored already"
    assert notice.startswith(start)


def test_a_poisoned_scorer_breaks_tasks_too(
    tiny: Loaded, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    healthy = measure(tiny, f"lm-eval/lambada_openai:{WINDOW}", folder)
    monkeypatch.setattr(
        "pytest_pplguard.scoring.scorer.nll", lambda *args: nll(*args) + 1.0
    )
    worse = measure(tiny, f"lm-eval/lambada_openai:{WINDOW}", folder)
    assert worse.metrics["perplexity"] > 2 * healthy.metrics["perplexity"]


def test_lm_evals_own_model_is_not_imported() -> None:
    import subprocess
    import sys

    code = (
        "import sys, pytest_pplguard.lm_eval_tasks;"
        "sys.exit('lm_eval.models.huggingface' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_windows_digest_is_of_the_answers(tiny: Loaded, folder: Path) -> None:
    """One document by hand: its question, its two answers, as token windows."""
    measured = measure(tiny, f"lm-eval/boolq:{WINDOW}:first1", folder)
    question = (
        "Somebody mixes a bowl. It was good.\nQuestion: was it number 0?\nAnswer:"
    )
    context = tiny.tokenizer(question).input_ids
    windows = []
    for answer in (" no", " yes"):
        both = tiny.tokenizer(question + answer).input_ids
        targets = tuple(both[len(context) :])
        windows.append(Window(tuple(both[:-1]), targets, len(context) - 1, page=0))
    assert measured.windows_digest == windows_digest(windows)


# -------------------------------------------------------------------------- bad input


def refusal(kind: type[PplguardError], call: Callable[[], object]) -> str:
    with pytest.raises(kind) as caught:
        call()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_task_without_enough_examples(tiny: Loaded, folder: Path) -> None:
    key = "lm-eval/piqa:64:shots9"
    assert refusal(UsageError, lambda: measure(tiny, key, folder)) == (
        f"key {key}: 9 shots, but the task piqa has 8 examples to show"
    )


def test_the_question_itself_is_no_example(tiny: Loaded, tmp_path: Path) -> None:
    write_task(tmp_path, "piqa", fewshot_split="test")
    key = "lm-eval/piqa:1024:shots6"
    assert refusal(UsageError, lambda: measure(tiny, key, tmp_path)) == (
        f"key {key}: 6 shots, but the task piqa has 5 examples to show beside the one "
        "that is asked"
    )
    measured = measure(tiny, "lm-eval/piqa:1024:shots5", tmp_path)
    assert measured.protocol["shots"] == 5


def test_a_task_that_lm_eval_stumbles_over(tiny: Loaded, tmp_path: Path) -> None:
    """At an answer that the first document lacks, and at code of the task's own."""
    write_task(tmp_path, "piqa", doc_to_choice=["", "x"], doc_to_target=0)
    key = "lm-eval/piqa:64"
    assert refusal(UsageError, lambda: measure(tiny, key, tmp_path)) == (
        f"key {key}: the task piqa cannot be loaded: lm-eval {lm_eval.__version__}: "
        "IndexError: string index out of range"
    )
    broken = "def results(doc, answers):\n    raise KeyError('no\\nsuch')\n"
    (tmp_path / "broken.py").write_text(broken, encoding="utf-8")
    write_task(tmp_path, "piqa")
    with (tmp_path / "piqa.yaml").open("a", encoding="utf-8") as file:
        file.write("process_results: !function broken.results\n")
    assert refusal(MeasurementError, lambda: measure(tiny, key, tmp_path)) == (
        f"key {key}: the task piqa cannot be evaluated: lm-eval {lm_eval.__version__}: "
        r"KeyError: 'no\nsuch'"
    )


def test_a_task_that_wants_no_shots(tiny: Loaded, tmp_path: Path) -> None:
    write_task(tmp_path, "piqa", num_fewshot=0)
    key = "lm-eval/piqa:64:shots1"
    assert refusal(UsageError, lambda: measure(tiny, key, tmp_path)) == (
        f"key {key}: the task piqa is defined with no shots, whatever is asked for; "
        "leave :shots1 out"
    )


def test_a_task_that_generates(tiny: Loaded, tmp_path: Path) -> None:
    write_task(tmp_path, "piqa", output_type="generate_until", metric_list=[])
    key = "lm-eval/piqa:64"
    assert refusal(UsageError, lambda: measure(tiny, key, tmp_path)) == (
        f"key {key}: the task piqa needs generated text (generate_until), and this "
        "plugin scores only"
    )


def test_data_that_cannot_be_reached(tiny: Loaded, tmp_path: Path) -> None:
    gone = str(tmp_path / "gone.jsonl")
    write_task(tmp_path, "piqa", dataset_kwargs={"data_files": {"test": gone}})
    message = refusal(CorpusError, lambda: measure(tiny, "lm-eval/piqa:64", tmp_path))
    assert message.startswith(
        "key lm-eval/piqa:64: the data of the task piqa cannot be reached: dataset "
        "json: FileNotFoundError: "
    )
    assert message.endswith(
        "; fetch it where there is a network (then HF_DATASETS_OFFLINE=1 uses the "
        "cache), or write a YAML with `dataset_path: json` and `dataset_kwargs: "
        "{data_files: ...}` into the folder of --ppl-include-path (docs/tasks.md)"
    )


def test_too_few_documents(tiny: Loaded, folder: Path) -> None:
    key = "lm-eval/piqa:64:first7"
    assert refusal(CorpusError, lambda: measure(tiny, key, folder)) == (
        f"key {key}: the task piqa has 6 documents, fewer than the 7 asked for"
    )


def test_a_group_without_a_number(tiny: Loaded, folder: Path, tmp_path: Path) -> None:
    write_task(tmp_path, "piqa")
    write_task(tmp_path, "boolq")
    text = "group: bare\ntask: [piqa, boolq]\n"
    (tmp_path / "bare.yaml").write_text(text, encoding="utf-8")
    key = "lm-eval/bare:256"
    assert refusal(UsageError, lambda: measure(tiny, key, tmp_path)) == (
        f"key {key}: bare has no number of its own, lm-eval gives none for the whole; "
        "measure its tasks: piqa, boolq"
    )


def test_an_answer_longer_than_the_window(tiny: Loaded, folder: Path) -> None:
    message = refusal(
        MeasurementError, lambda: measure(tiny, "lm-eval/hellaswag:4", folder)
    )
    assert re.fullmatch(
        r"lm-eval/hellaswag:4: an answer of document 0 of hellaswag has \d+ tokens, "
        r"more than the window of 4; choose a longer one",
        message,
    )


@pytest.mark.parametrize("question", ["", "Q:"])
def test_an_answer_without_a_token(question: str, tiny: Loaded, tmp_path: Path) -> None:
    choices = "{{['' if label else 'y', 'x']}}"
    fields: dict[str, Any] = {
        "doc_to_text": question,
        "doc_to_choice": choices,
        "doc_to_target": 0,
    }
    write_task(tmp_path, "piqa", target_delimiter="", **fields)
    message = refusal(
        MeasurementError, lambda: measure(tiny, "lm-eval/piqa:64", tmp_path)
    )
    assert message == (
        "lm-eval/piqa:64: an answer of document 1 of piqa has no token of its own: '' "
        "behind its question"
    )


def test_a_blank_question_without_bos(tmp_path: Path) -> None:
    """Stock lm-eval stops at an assertion without words."""
    loaded = load_tiny(tmp_path / "nobos", bos=False)
    write_task(tmp_path, "piqa", doc_to_text="{{' '}}")
    message = refusal(
        MeasurementError, lambda: measure(loaded, "lm-eval/piqa:64", tmp_path)
    )
    assert message == (
        "lm-eval/piqa:64: an answer of document 0 of piqa stands behind ' ', which "
        "leaves no token to begin with: this tokenizer puts none before a text, and "
        "only an empty question gets one"
    )


def test_a_folder_that_is_not_there(tiny: Loaded, tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    assert (
        refusal(UsageError, lambda: measure(tiny, "lm-eval/piqa:64", gone))
        == f"--ppl-include-path {gone}: there is no such folder"
    )


def test_a_loss_that_is_not_a_number(tmp_path: Path, folder: Path) -> None:
    loaded = load_tiny(tmp_path / "nan")
    with torch.no_grad():
        next(loaded.model.parameters()).fill_(math.nan)
    message = refusal(
        InvalidLossError, lambda: measure(loaded, "lm-eval/piqa:256", folder)
    )
    assert message == "the loss of answer 1 of 12 is nan"


def test_stock_tasks_are_found_without_reading_them_all(
    tiny: Loaded, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its own YAML is found by its text; its data is not fetched in a test."""
    import lm_eval.api.task
    import lm_eval.tasks

    read: list[Any] = []
    manager = lm_eval.tasks.TaskManager

    def listening(**options: Any) -> Any:
        read.append((options["include_path"], options["include_defaults"]))
        return manager(**options)

    def offline(self: Any, *args: Any, **options: Any) -> None:
        raise ConnectionError("Couldn't reach the Hub")

    monkeypatch.setattr(lm_eval.tasks, "TaskManager", listening)
    monkeypatch.setattr(lm_eval.api.task.ConfigurableTask, "download", offline)
    for name, at in (("hellaswag", "hellaswag"), ("arc_easy", "arc")):
        key = Key.parse(f"lm-eval/{name}:64")
        with pytest.raises(CorpusError, match="ConnectionError: Couldn't reach"):
            measure_loaded(tiny, key, no_corpus)
        assert read.pop() == ([str(STOCK / at)], False)
    assert read == []
