"""What makes two numbers not comparable is named, property by property."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from msgspec.structs import replace

from pytest_pplguard.corpora import Corpus
from pytest_pplguard.gates import MetricGate, judge_metric
from pytest_pplguard.gates.comparable import environment_notes
from pytest_pplguard.protocols import PROTOCOLS, Cut, windows_digest
from pytest_pplguard.report import failure_text, summary_lines
from pytest_pplguard.report.csv import csv_report
from pytest_pplguard.report.markdown import markdown
from pytest_pplguard.values import (
    Key,
    Measurement,
    Outcome,
    Recorded,
    Results,
    Source,
    Verdict,
    WindowScore,
)

TEXT = "A ship sailed at noon, and came back at dusk."


class Tokenizer:
    """One token a character, ``shift`` on; BOS (1) in front if ``adds_bos``."""

    eos_token_id: int | None = 2

    def __init__(
        self, *, shift: int = 10, adds_bos: bool = True, has_bos: bool = True
    ) -> None:
        self.bos_token_id = 1 if has_bos else None
        self._shift = shift
        self._adds_bos = adds_bos and has_bos

    def __call__(self, text: str, **_: Any) -> Any:
        return SimpleNamespace(input_ids=self.encode(text))

    def encode(
        self, text: str, *, add_special_tokens: bool = True, **_: Any
    ) -> list[int]:
        ids = [ord(character) + self._shift for character in text]
        return [1, *ids] if self._adds_bos and add_special_tokens else ids

    def decode(self, ids: Any, **_: Any) -> str:
        return {1: "<s>", 2: "</s>"}.get(ids, "")


def measured(
    key: str = "wanda/t:8",
    *,
    text: str = TEXT,
    tokenizer: Tokenizer | None = None,
    lm_eval: str | None = None,
    cut: Cut | None = None,
    **environment: Any,
) -> Measurement:
    """A measurement of which everything but the losses is real."""
    asked = Key.parse(key)
    corpus = Corpus.from_documents("t", [text])
    tokenizer = tokenizer or Tokenizer()
    protocol = PROTOCOLS[asked.method]
    windows = protocol.windows(corpus, tokenizer, asked)
    properties = protocol.properties(corpus, tokenizer, asked)
    if cut is not None:
        windows = cut.windows(corpus, tokenizer, asked.window, stride=asked.stride)
        properties = cut.properties(corpus, tokenizer, asked.window, asked.stride)
    scores = [WindowScore(len(w.targets) * 2.0, len(w.targets)) for w in windows]
    units = {"tokens": sum(score.scored for score in scores)}
    if lm_eval is not None:
        environment["lm_eval"] = lm_eval
    return Measurement(
        key=key,
        metrics={"perplexity": 7.0},
        units=units,
        windows=len(windows),
        windows_digest=windows_digest(windows),
        corpus_digest=corpus.digest,
        protocol=properties,
        evidence=tuple(scores),
        environment=environment,
        seconds=1.0,
    )


def verdict_of(now: Measurement, before: Measurement) -> Verdict:
    recorded = Recorded(
        metrics={"perplexity": 5.0},
        source=Source("measured"),
        windows=before.windows,
        units=before.units,
        windows_digest=before.windows_digest,
        corpus_digest=before.corpus_digest,
        evidence="x.json",
        first={"perplexity": 4.0, "date": "2026-01-01"},
        published={"perplexity": 5.1, "reference": "a README"},
        environment=before.environment,
    )
    gate = MetricGate(
        checkpoint="m/wanda-50",
        key=now.key,
        metric="perplexity",
        tolerance=None,
        origin="m.yaml:7",
        recorded_in="m.yaml:12",
        command="pytest --ppl-update",
    )
    return judge_metric(
        gate,
        now,
        recorded,
        recorded_protocol=before.protocol,
        recorded_windows=before.evidence,
    )


def named(now: Measurement, before: Measurement) -> str:
    """The property that is named first."""
    verdict = verdict_of(now, before)
    assert (verdict.outcome, verdict.passed) == (Outcome.NOT_COMPARABLE, False)
    return verdict.reasons[0]


def test_the_same_twice_is_comparable() -> None:
    verdict = verdict_of(measured(), measured())
    assert verdict.outcome is Outcome.REGRESSED
    assert verdict.change == pytest.approx(0.4)


@pytest.mark.parametrize(
    ("now", "before", "reason"),
    [
        (("wanda/t:8",), ("wanda/t:9",), "window 8, baseline 9"),
        (
            ("strided/t:8:stride4",),
            ("strided/t:8:stride5",),
            "stride 4, baseline 5",
        ),
        (("strided/t:8:stride4",), ("vllm/t:8",), "stride 4, baseline none"),
        (("vllm/t:8",), ("strided/t:8:stride4",), "stride none, baseline 4"),
        (
            ("wanda/t:8",),
            ("llama-cpp/t:8",),
            "text all rows joined by a blank line, baseline file",
        ),
        (("gptq/t:8",), ("vllm/t:8",), "tail dropped, baseline kept"),
        (
            ("vllm/t:8",),
            ("lora-ft/t:8",),
            "mean of tokens, baseline of windows, each counting as much",
        ),
    ],
)
def test_properties_by_which_methods_differ(
    now: tuple[str], before: tuple[str], reason: str
) -> None:
    assert named(measured(*now), measured(*before)) == reason


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"tail": "filled backwards"}, "tail dropped, baseline filled backwards"),
        ({"divisor": "words"}, "divisor scored tokens, baseline words"),
        ({"scored": "second half"}, "scored all, baseline second half"),
        (
            {"first": "BOS in its place"},
            "first token BOS 1, baseline BOS 1 in each window",
        ),
        ({"first": "prefix"}, "first token BOS 1, baseline prefix 1 and BOS"),
        (
            {"text": "detokenised pages"},
            "text all rows joined by a blank line, baseline detokenised pages",
        ),
    ],
)
def test_each_decision_of_a_cut(change: dict[str, Any], reason: str) -> None:
    assert named(measured(), measured(cut=replace(Cut(), **change))) == reason


def test_a_lost_bos() -> None:
    """As transformers 5 loads a bare Llama ``tokenizer.model``."""
    lost = measured(tokenizer=Tokenizer(adds_bos=False))
    assert named(lost, measured()) == "first token none, baseline BOS 1"


def test_eos_before_a_page_for_bos() -> None:
    key = "lm-eval/wikitext+t:8"
    bos = measured(key, tokenizer=Tokenizer(adds_bos=False), lm_eval="0.4.13")
    eos = measured(key, tokenizer=Tokenizer(has_bos=False), lm_eval="0.4.13")
    assert named(eos, bos) == "first token prefix 2, baseline prefix 1"


def test_other_ids_of_the_same_text() -> None:
    now, before = measured(tokenizer=Tokenizer(shift=11)), measured()
    here, there = (m.windows_digest[7:19] for m in (now, before))
    assert verdict_of(now, before).reasons == (
        f"tokenizer: the same text has other ids (token windows {here}, baseline "
        f"{there})",
    )


def test_other_ids_of_lm_evals_pages() -> None:
    key = "lm-eval/wikitext+t:8"
    now = measured(key, tokenizer=Tokenizer(shift=11), lm_eval="0.4.13")
    before = measured(key, lm_eval="0.4.12")
    here, there = (m.windows_digest[7:19] for m in (now, before))
    assert named(now, before) == (
        f"tokenizer: the same text has other ids (token windows {here}, baseline "
        f"{there}); or lm-eval 0.4.13, baseline 0.4.12"
    )


def test_more_tokens_of_the_same_text() -> None:
    class Doubled(Tokenizer):
        def encode(self, text: str, **options: Any) -> list[int]:
            ids = super().encode(text, **options)
            return ids[:1] + [id_ for id_ in ids[1:] for _ in range(2)]

    reasons = verdict_of(measured(tokenizer=Doubled()), measured()).reasons
    assert reasons[0].startswith("tokenizer: the same text has other ids (")
    assert reasons[1:] == ("tokens 77, baseline 35", "windows 11, baseline 5")


def test_another_text_is_no_other_tokenizer() -> None:
    now, before = measured(text=TEXT.replace("noon", "dawn")), measured()
    digests = [
        (getattr(now, name)[7:19], getattr(before, name)[7:19])
        for name in ("corpus_digest", "windows_digest")
    ]
    assert verdict_of(now, before).reasons == (
        f"text {digests[0][0]}, baseline {digests[0][1]}",
        f"token windows {digests[1][0]}, baseline {digests[1][1]}",
    )


# ------------------------------------------------------------------- lm-eval's regimes

EOS, BOS, TWICE = "prefix 2", "prefix 1", "prefix 1 and BOS"
"""The first tokens of a page: until 0.4.2, from 0.4.3, and since 0.4.9.2 where the
tokenizer adds BOS itself (facts that were read in lm-eval's code)."""


def page(first: str, version: str) -> Measurement:
    found = measured("lm-eval/wikitext+t:8", lm_eval=version)
    digest = f"sha256:{first}"
    return replace(
        found,
        protocol=found.protocol | {"first token": first},
        windows_digest=digest,
    )


@pytest.mark.parametrize(
    ("now", "before", "reason"),
    [
        (
            (TWICE, "0.4.13"),
            (BOS, "0.4.8"),
            "BOS is scored twice: lm-eval 0.4.13, baseline recorded with 0.4.8",
        ),
        (
            (TWICE, "0.4.9.2"),
            (BOS, "0.4.9.1"),
            "BOS is scored twice: lm-eval 0.4.9.2, baseline recorded with 0.4.9.1",
        ),
        (
            (BOS, "0.4.8"),
            (TWICE, "0.4.13"),
            "BOS is not scored twice: lm-eval 0.4.8, baseline recorded with 0.4.13",
        ),
        (
            (TWICE, "0.4.13"),
            (EOS, "0.4.2"),
            "BOS is scored twice: lm-eval 0.4.13, baseline recorded with 0.4.2, which "
            "put EOS before a page",
        ),
        (
            (BOS, "0.4.13"),
            (EOS, "0.4.2"),
            "BOS is the prefix token: lm-eval 0.4.13, baseline recorded with 0.4.2, "
            "which put EOS before a page",
        ),
        (
            (BOS, "0.4.3"),
            (EOS, "0.4.2"),
            "BOS is the prefix token: lm-eval 0.4.3, baseline recorded with 0.4.2, "
            "which put EOS before a page",
        ),
        (
            (EOS, "0.4.2"),
            (TWICE, "0.4.13"),
            "EOS is the prefix token: lm-eval 0.4.2, baseline recorded with 0.4.13",
        ),
        # One regime: then it is the tokenizer that adds BOS, or does not.
        (
            (TWICE, "0.4.13"),
            (BOS, "0.4.9.2"),
            "first token prefix 1 and BOS, baseline prefix 1",
        ),
        (
            (TWICE, "0.4.13.dev0"),
            (BOS, "0.4.13"),
            "first token prefix 1 and BOS, baseline prefix 1",
        ),
    ],
)
def test_lm_evals_regime(
    now: tuple[str, str], before: tuple[str, str], reason: str
) -> None:
    assert named(page(*now), page(*before)) == reason


# ------------------------------------------------------------------------------ reports


def test_no_change_is_told_of_numbers_that_are_not_comparable() -> None:
    verdict = verdict_of(measured("wanda/t:8"), measured("wanda/t:9"))
    assert verdict.change is None
    assert summary_lines([verdict]) == [
        "m/wanda-50                     baseline   measured     change  outcome",
        "  wanda/t:8",
        "    perplexity                        5          7          -  NOT COMPARABLE",
        "      published                     5.1          7          -",
        "1 not comparable",
    ]
    assert ("| `wanda/t:8` | `perplexity` | 5 (published: 5.1) | 7 | - |") in markdown(
        Results(verdicts=(verdict,))
    )
    header, row = csv_report([verdict]).splitlines()
    cells = dict(zip(header.split(","), row.split(","), strict=False))
    assert (cells["baseline"], cells["measured"], cells["change"]) == ("5.0", "7.0", "")
    lines = failure_text(verdict).splitlines()
    assert "  first        4.0" in lines
    assert "  published    5.1 (a README)" in lines


# ------------------------------------------------------------------------------ servers

LOCAL: dict[str, Any] = {
    "dtype": "float32",
    "device": "cpu",
    "torch": "2.13.0",
    "tokenizers": "0.23",
}
SERVED: dict[str, Any] = {
    "dtype": "server's own",
    "device": "server",
    "device_name": "vllm 0.32.0",
    "batch_size": 1,
    "executor": "server",
    "server_model": "llama",
    "tokenizers": "0.24",
}
BY_SERVER = "by a server (vllm 0.32.0, its model llama)"


def test_a_servers_number_beside_one_that_was_computed_says_so_and_no_more() -> None:
    cuts = "tokenizers 0.24, baseline 0.23"
    assert environment_notes(SERVED, LOCAL) == (
        f"measured {BY_SERVER}, baseline on cpu (float32, torch 2.13.0)",
        (cuts,),
    )
    assert environment_notes(LOCAL, SERVED) == (
        f"measured on cpu (float32, torch 2.13.0), baseline {BY_SERVER}",
        ("tokenizers 0.23, baseline 0.24",),
    )


def test_a_servers_number_is_comparable_and_the_server_leads_a_failure() -> None:
    verdict = verdict_of(measured(**SERVED), measured(**LOCAL))
    assert verdict.outcome is Outcome.REGRESSED
    assert verdict.reasons[0] == (
        f"measured {BY_SERVER}, baseline on cpu (float32, torch 2.13.0)"
    )


def test_replicas_are_no_other_environment() -> None:
    replicas = LOCAL | {"executor": "ray"}
    assert environment_notes(LOCAL, replicas) == (None, ())
    assert environment_notes(replicas, LOCAL) == (None, ())


def test_two_servers_are_compared_field_by_field() -> None:
    newer = SERVED | {"device_name": "vllm 0.33.0"}
    assert environment_notes(newer, SERVED) == (
        None,
        ("device_name vllm 0.33.0, baseline vllm 0.32.0",),
    )


def test_a_published_number_has_no_environment_to_differ_from() -> None:
    assert environment_notes(SERVED, {}) == (None, ())
