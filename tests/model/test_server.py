"""A checkpoint that a server offers: a real server, a real model, and all its faults.

Losses travel as JSON numbers, which hold a float32 exactly, and are of whole logits,
read alone: they are apart from the local scorer's by the rounding of float32 sums, some
parts in ten million of a window's loss.
"""

from __future__ import annotations

import math
import re
import time
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from pytest_pplguard.checkpoints import Loaded
from pytest_pplguard.corpora import Corpus, open_corpus
from pytest_pplguard.errors import (
    ExecutorError,
    InvalidLossError,
    MeasurementError,
    UsageError,
)
from pytest_pplguard.executors.server.executor import ServerExecutor
from pytest_pplguard.measure import Subject, measure_loaded
from pytest_pplguard.options import Execution, Options, Target
from pytest_pplguard.scoring import Scorer
from pytest_pplguard.values import Key, Measurement, Window, WindowScore

from .completions_server import Served
from .tiny import save_tiny

DENSE = Target("demo/dense", "demo/dense")
PRUNED = Target("demo/wanda-50", "demo/wanda-50")
ROUNDING = 1e-6
KEY = "wanda/demo:256:first8"

pytestmark = pytest.mark.usefixtures("as_it_was")


def corpus_of(name: str) -> Corpus:
    return open_corpus(name, {})


def executor(
    server: Served, told: list[str] | None = None, **execution: Any
) -> ServerExecutor:
    given: dict[str, Any] = {"where": "server", "address": server.url} | execution
    lines = [] if told is None else told
    return ServerExecutor(
        Options(execution=Execution(**given)), tell=lambda *more: lines.extend(more)
    )


def opened(server: Served, **execution: Any) -> Subject:
    return executor(server, **execution).open(DENSE)


def speaking(server: Served, dialect: str) -> Subject:
    server.switch(offered=["dense"], dialect=dialect)
    return opened(server)


def measured(model: Loaded | Subject, key: str = KEY, **how: Any) -> Measurement:
    return measure_loaded(model, Key.parse(key), corpus_of, **how)


def assert_same(one: Measurement, other: Measurement) -> None:
    """Two measurements of the same windows, to the rounding of float32."""
    assert one.windows_digest == other.windows_digest
    assert one.units == other.units
    assert one.protocol == other.protocol
    assert one.metrics == pytest.approx(other.metrics, rel=ROUNDING)
    for here, there in zip(one.evidence, other.evidence, strict=True):
        assert here.nll_sum == pytest.approx(there.nll_sum, rel=ROUNDING)
        assert replace(here, nll_sum=0.0) == replace(there, nll_sum=0.0)


# ------------------------------------------------------------------------------ numbers


@pytest.mark.parametrize("dialect", ["vllm", "echo"])
@pytest.mark.parametrize(
    "key",
    [
        KEY,
        "lm-eval/wikitext+demo:256:first4",
        "strided/demo:128:stride64:first6",
        "llama-cpp/demo:128:first3",
    ],
)
def test_a_server_gives_the_local_numbers(
    server: Served, dense: Loaded, key: str, dialect: str
) -> None:
    assert_same(measured(speaking(server, dialect), key), measured(dense, key))


def test_prompts_are_token_ids_and_one_token_is_written(server: Served) -> None:
    found = measured(opened(server))
    payloads = server.completions()
    # The first asks how it speaks; the last is the first window again.
    assert len(payloads) == 10 == found.windows + 2
    assert [len(payload["prompt"]) for payload in payloads] == [16, *[256] * 9]
    assert payloads[-1] == payloads[1]
    first = payloads[1]
    assert {name: first[name] for name in first if name != "prompt"} == {
        "model": "dense",
        "temperature": 0,
        "prompt_logprobs": 0,
        "max_tokens": 1,
    }


@pytest.mark.parametrize("dialect", ["vllm", "echo"])
def test_requests_at_once_and_windows_together_change_nothing(
    server: Served, dialect: str
) -> None:
    one = measured(speaking(server, dialect))
    server.switch(offered=["dense"], dialect=dialect)
    both = measured(opened(server, replicas=3), batch_size=3)
    assert both.evidence == one.evidence
    sizes = [len(payload["prompt"]) for payload in server.completions()[-4:]]
    assert [sorted(sizes[:3]), sizes[3]] == [[2, 3, 3], 256]


def answers(dense: Loaded) -> list[Window]:
    """Of two contexts: what the model itself would say, and what it would not."""
    import torch

    windows = []
    for text in ("The ship sailed at", "She said that the"):
        context = tuple(dense.tokenizer.encode(text))
        said = context
        for _ in range(3):
            with torch.no_grad():
                logits = dense.model(input_ids=torch.tensor([said])).logits
            said = (*said, int(logits[0, -1].argmax()))
        best = said[len(context) :]
        for answer in (best, best[:1], (best[0], best[1] + 1, best[2]), (5, 6)):
            read = (*context, *answer)[:-1]
            windows.append(Window(read, answer, len(read) - len(answer)))
    return windows


@pytest.mark.parametrize("dialect", ["vllm", "echo"])
def test_answers_are_told_whether_they_are_greedy(
    server: Served, dense: Loaded, dialect: str
) -> None:
    windows = answers(dense)
    local = Scorer(dense.model)(windows, answers=True)
    there = speaking(server, dialect).scorer()(windows, answers=True)
    greedy = [score.greedy for score in there]
    assert greedy == [score.greedy for score in local]
    assert greedy == [True, True, False, False] * 2
    assert [score.nll_sum for score in there] == pytest.approx(
        [score.nll_sum for score in local], rel=1e-5
    )


class Keeper:
    """Remembers what it is told, in its order."""

    def __init__(self, finished: dict[int, WindowScore]) -> None:
        self.finished = finished
        self.added: list[int] = []

    def add(self, scores: Any) -> None:
        self.added += scores


def test_results_come_in_order_and_end_when_they_are_enough(server: Served) -> None:
    windows = [Window((index, 7, 8), (7, 8)) for index in range(20)]
    subject = opened(server, replicas=4)
    whole = subject.scorer()(windows)
    keeper = Keeper({3: whole[3]})
    seen: list[tuple[int, int, float]] = []
    scorer = subject.scorer(progress=lambda *told: seen.append(told))
    order = list(range(19, -1, -1))
    found = scorer.until(
        windows, keeper, order=order, stop=lambda scores: len(scores) >= 6
    )
    assert keeper.added == [19, 18, 17, 16, 15]
    assert found == {index: whole[index] for index in (3, *keeper.added)}
    assert [told[:2] for told in seen] == [(done, 20) for done in range(1, 7)]
    nats = math.fsum(score.nll_sum for score in found.values())
    assert seen[-1][2] == pytest.approx(nats / 12)


# -------------------------------------------------------------------------- environment


def test_the_environment_is_the_servers(server: Served) -> None:
    told: list[str] = []
    subject = executor(server, told).open(DENSE)
    environment = measured(subject).environment
    assert environment.keys() == {
        "dtype", "device", "device_name", "attention", "batch_size", "executor",
        "server_model", "pytest_pplguard", "tokenizers",
    }  # fmt: skip
    assert environment["dtype"] == environment["attention"] == "server's own"
    assert environment["device"] == environment["executor"] == "server"
    assert environment["device_name"] == "vllm 0.32.0"
    assert environment["server_model"] == "dense"
    assert told == [
        f"demo/dense: its losses are those of vllm 0.32.0 at {server.url}, which calls "
        "it dense; nothing proves that the server runs the weights of demo/dense"
    ]
    assert subject.digest() is None
    assert not subject.from_files


def test_another_server_is_called_by_its_owner(server: Served) -> None:
    assert speaking(server, "echo").facts.device_name == "somebody"


def test_what_the_config_says_is_held_against_windows(server: Served) -> None:
    facts = opened(server).facts
    assert (facts.max_positions, facts.embeddings) == (512, 2048)
    with pytest.raises(MeasurementError, match="longer than the 512 positions"):
        measured(opened(server), "wanda/demo:1024:first2")


# ------------------------------------------------------------------------------- faults


@pytest.mark.parametrize(
    ("fault", "proofs"),
    [("429", 0), ("500", 0), ("503", 3), ("reset", 3), ("half", 3)],
)
def test_a_fault_that_passes_changes_nothing(
    server: Served, fault: str, proofs: int
) -> None:
    """A server that was away has to answer its first question again, as before."""
    expected = measured(opened(server))
    subject = opened(server)
    server.switch(offered=["dense"], faults=[fault] * 3)
    found = measured(subject)
    assert found.evidence == expected.evidence
    sizes = [len(payload["prompt"]) for payload in server.completions()]
    assert sizes.count(16) == proofs
    assert sizes.count(256) == 8 + 1 + (1 if proofs else 3)
    assert len(found.notices) == bool(proofs)


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("429", r"it answers 429: slow down for \d+ s"),
        ("500", r"it answers 500: EngineCore died \(5 times\)"),
        ("503", r"it answers 503: EngineCore died for \d+ s"),
        ("reset", r"it broke the connection off for \d+ s"),
        ("half", r"it broke the connection off for \d+ s"),
    ],
)
def test_a_fault_that_stays_is_named(server: Served, fault: str, words: str) -> None:
    subject = opened(server, timeout=1.0)
    server.switch(offered=["dense"], always=fault)
    started = time.monotonic()
    with pytest.raises(ExecutorError) as caught:
        measured(subject)
    assert time.monotonic() - started < 10
    place = re.escape(f"the server at {server.url}: ")
    assert re.fullmatch(rf"{place}{words} \(at window 1 of 8\)", str(caught.value))


def test_a_window_that_breaks_the_server_is_given_up(server: Served) -> None:
    """It comes back as it was each time, and dies of the same window again."""
    subject = opened(server)
    server.switch(offered=["dense"], dies_of=256)
    with pytest.raises(ExecutorError) as caught:
        measured(subject)
    assert str(caught.value) == (
        f"the server at {server.url}: it broke the connection off (5 times) (at window "
        "1 of 8)"
    )
    sizes = [len(payload["prompt"]) for payload in server.completions()]
    assert sizes[:9] == [256, 16] * 4 + [256]


@pytest.mark.parametrize("fault", ["hang", "drip"])
def test_a_server_that_hangs_is_asked_once_more(server: Served, fault: str) -> None:
    subject = opened(server, timeout=0.5)
    server.switch(offered=["dense"], always=fault)
    started = time.monotonic()
    with pytest.raises(ExecutorError) as caught:
        measured(subject)
    assert time.monotonic() - started < 5
    assert str(caught.value) == (
        f"the server at {server.url}: no answer within 0.5 s (2 times); give it longer "
        "(--ppl-portion-timeout) or less (--ppl-replicas) (at window 1 of 8)"
    )
    asked = server.completions()
    assert [one["prompt"] for one in asked].count(asked[0]["prompt"]) == 2


def test_a_request_that_hangs_once_changes_nothing(server: Served) -> None:
    expected = measured(opened(server))
    subject = opened(server, timeout=1.5)
    server.switch(offered=["dense"], faults=["", "", "hang"])
    assert measured(subject).evidence == expected.evidence


@pytest.mark.parametrize("dialect", ["vllm", "echo"])
@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("short", "256 tokens were sent, and it tells of 128"),
        ("one more", "256 tokens were sent, and it tells of 258"),
        ("above 0", "0.5 is no log-probability: it is above 0"),
        ("one choice less", "1 prompt was sent, and it has 0 choices"),
    ],
)
def test_an_answer_about_something_else_is_no_number(
    server: Served, dialect: str, fault: str, words: str
) -> None:
    subject = speaking(server, dialect)
    server.switch(offered=["dense"], dialect=dialect, always=fault)
    with pytest.raises(ExecutorError) as caught:
        measured(subject)
    assert str(caught.value) == (
        f"the server's answer for window 1 of 8 is not about it: {words}"
    )


@pytest.mark.parametrize("dialect", ["vllm", "echo"])
def test_an_answer_about_other_tokens_is_no_number(
    server: Served, dialect: str
) -> None:
    subject = speaking(server, dialect)
    server.switch(offered=["dense"], dialect=dialect, always="other ids")
    with pytest.raises(ExecutorError) as caught:
        measured(subject)
    text = str(caught.value)
    start = "the server's answer for window 1 of 8 is not about it: token "
    assert text.startswith(start)
    if dialect == "echo":
        assert text.endswith("the server has another tokenizer")


@pytest.mark.parametrize("dialect", ["vllm", "echo"])
@pytest.mark.parametrize(
    ("fault", "value"), [("null", "nan"), ("nan", "nan"), ("minus infinity", "inf")]
)
def test_a_loss_that_is_no_number_is_invalid(
    server: Served, dialect: str, fault: str, value: str
) -> None:
    """As the local scorer words it; vLLM writes -9999.0 for minus infinity."""
    subject = speaking(server, dialect)
    server.switch(offered=["dense"], dialect=dialect, faults=["", "", fault])
    with pytest.raises(InvalidLossError) as caught:
        measured(subject)
    assert str(caught.value) == f"the loss of window 3 of 8 is {value}"
    assert caught.value.window == 2
    assert sorted(caught.value.finished) == [0, 1]


def test_a_number_that_json_has_not_is_invalid(server: Served) -> None:
    """As vLLM answers for a model with a NaN in it, and so to the first question."""
    server.switch(
        offered=["dense"], faults=["not json compliant", "", "", "not json compliant"]
    )
    with pytest.raises(InvalidLossError) as caught:
        measured(opened(server))
    assert str(caught.value) == (
        "the loss of window 3 of 8 is NaN or infinite: the server cannot write it as "
        "JSON (Out of range float values are not JSON compliant)"
    )
    server.switch(offered=["dense"], always="not json compliant")
    with pytest.raises(InvalidLossError) as caught:
        measured(opened(server), batch_size=4)
    assert str(caught.value) == (
        "a loss of window 1 of 8 and 3 more is NaN or infinite: the server cannot "
        "write it as JSON (Out of range float values are not JSON compliant); "
        "--ppl-batch-size 1 tells which"
    )


def test_an_answer_that_is_no_json_is_named(server: Served) -> None:
    subject = opened(server)
    server.switch(offered=["dense"], always="html")
    with pytest.raises(ExecutorError) as caught:
        measured(subject)
    assert str(caught.value) == (
        f"the server at {server.url} answers /v1/completions with something that is no "
        "JSON: '<html>It works!</html>' (at window 1 of 8)"
    )


def test_an_answer_without_an_end_is_cut_off(server: Served) -> None:
    subject = opened(server)
    server.switch(offered=["dense"], always="huge")
    with pytest.raises(ExecutorError) as caught:
        measured(subject)
    most = (1 << 20) + 257 * 4096
    assert str(caught.value) == (
        f"the server at {server.url} answers with more than {most} bytes, which no "
        "answer to this has: is it a server of completions? (at window 1 of 8)"
    )


# ----------------------------------------------------------------- what cannot be asked


def test_windows_that_the_server_cannot_read_are_refused_before_one_is_sent(
    server: Served,
) -> None:
    server.switch(offered=["dense"], context=256)
    subject = opened(server)
    with pytest.raises(MeasurementError) as caught:
        measured(subject)
    assert str(caught.value) == (
        "the longest window needs a context of 257 tokens (256 that are read or scored "
        "and 1 that it writes behind them), and the server has 256: start it with "
        "--max-model-len 257 (docs/server.md), or measure at a shorter window"
    )
    assert len(server.completions()) == 1
    with pytest.raises(MeasurementError, match="--max-model-len 258 "):
        measured(subject, "lm-eval/wikitext+demo:256:first4")


def test_tokens_that_do_not_follow_each_other_are_refused(server: Served) -> None:
    scorer = opened(server).scorer()
    with pytest.raises(MeasurementError) as caught:
        scorer([Window((1, 2, 3), (2, 3, 4)), Window((1, 2, 3), (3, 3))])
    assert str(caught.value) == (
        "window 2 of 2 scores other tokens than those that it reads next, and a server "
        "tells of no others: measure it with --ppl-executor local"
    )


def test_a_window_that_scores_nothing_is_invalid(server: Served) -> None:
    with pytest.raises(InvalidLossError, match=r"window 1 of 1 scores no token"):
        opened(server).scorer()([Window((1, 2), ())])


def test_what_compares_all_tokens_is_refused_before_anything_is_asked(
    server: Served,
) -> None:
    with pytest.raises(UsageError) as caught:
        executor(server).check(Key.parse("kl/demo:256"))
    assert str(caught.value) == (
        "key kl/demo:256: a server tells of the text's own tokens and not of all "
        "others, which this method compares: measure it with --ppl-executor local"
    )


def test_a_server_without_logprobs_of_prompts_is_refused(server: Served) -> None:
    with pytest.raises(ExecutorError) as caught:
        speaking(server, "none")
    assert str(caught.value) == (
        f"the server at {server.url} does not tell log-probabilities of a prompt's "
        "tokens (prompt_logprobs, max_tokens 1: it has no prompt_logprobs; echo with "
        "logprobs, max_tokens 1: it has no logprobs of an echoed prompt; echo with "
        "logprobs, max_tokens 0: it has no logprobs of an echoed prompt): vLLM's "
        "`vllm serve` does as it is, see docs/server.md for others"
    )


@pytest.mark.parametrize("dialect", ["vllm", "echo"])
def test_another_tokenizer_is_refused(
    server: Served, dialect: str, tmp_path: Path
) -> None:
    server.switch(offered=["dense"], dialect=dialect)
    other = Target("other", str(save_tiny(tmp_path / "other")))
    with pytest.raises(ExecutorError) as caught:
        executor(server).open(other)
    text = str(caught.value)
    assert text.startswith(
        "other and the server's model dense do not belong together: token "
    )
    assert text.endswith("the server has another tokenizer")


# -------------------------------------------------------------------- which model it is


def test_a_model_is_found_by_where_it_was_loaded_from(server: Served) -> None:
    server.switch()
    both = executor(server)
    assert both.open(PRUNED).facts.more["server_model"] == "pruned"
    assert both.open(DENSE).facts.more["server_model"] == "dense"


def test_a_model_is_found_by_its_name(server: Served) -> None:
    server.switch(dialect="echo")
    subject = opened(server, model="pruned")
    assert subject.facts.more["server_model"] == "pruned"
    named = executor(server, model="demo/dense=dense,demo/wanda-50=pruned")
    assert named.open(PRUNED).facts.more["server_model"] == "pruned"


def test_which_of_several_models_is_meant_must_be_said(server: Served) -> None:
    server.switch(dialect="echo")
    with pytest.raises(UsageError) as caught:
        opened(server)
    assert str(caught.value) == (
        "which of the server's models is demo/dense? it offers dense, pruned; say it "
        "with --ppl-server-model ID"
    )
    with pytest.raises(UsageError) as caught:
        opened(server, model="prunde")
    assert str(caught.value) == (
        "--ppl-server-model: the server has no model 'prunde' (did you mean "
        "'pruned'?); it offers dense, pruned"
    )


def test_one_model_is_not_two_checkpoints(server: Served) -> None:
    both = executor(server)
    both.open(DENSE)
    both.open(DENSE)
    with pytest.raises(UsageError) as caught:
        both.open(Target("demo/again", "demo/dense"))
    assert str(caught.value) == (
        "demo/again and demo/dense would both be the server's model dense: give each "
        "its own, --ppl-server-model demo/dense=ID,demo/again=ID, or measure one at a "
        "time"
    )


# ---------------------------------------------------------------------------------- key


def test_the_key_is_sent_and_never_told(
    server: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret = "sk-very-secret"
    server.switch(offered=["dense"], key=secret)
    with pytest.raises(ExecutorError) as caught:
        opened(server)
    assert str(caught.value) == (
        f"the server at {server.url} refuses (401): a key is needed; set "
        "PPL_SERVER_API_KEY in the environment (or OPENAI_API_KEY)"
    )
    monkeypatch.setenv("OPENAI_API_KEY", secret)
    told: list[str] = []
    found = measured(executor(server, told).open(DENSE))
    assert all(one["key"] == f"Bearer {secret}" for one in server.requests()[1:])
    assert secret not in repr((found, told))
    monkeypatch.setenv("PPL_SERVER_API_KEY", "sk-another-secret")
    with pytest.raises(ExecutorError) as caught:
        opened(server)
    assert str(caught.value) == (
        f"the server at {server.url} refuses (401): the key is not the right one; set "
        "PPL_SERVER_API_KEY in the environment"
    )


def test_a_key_that_the_server_repeats_is_not_shown(
    server: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PPL_SERVER_API_KEY", "sk-very-secret")
    subject = opened(server)
    server.switch(offered=["dense"], always="repeat")
    with pytest.raises(ExecutorError) as caught:
        measured(subject)
    assert str(caught.value) == (
        f"the server at {server.url} answers 400 at /v1/completions: not with Bearer "
        "[key] (at window 1 of 8)"
    )
