"""Windows: exactly the tokens that each method claims, none twice or out of range."""

from __future__ import annotations

import hashlib
import math
import struct
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_pplguard.corpora import Corpus
from pytest_pplguard.errors import (
    CorpusError,
    InvalidLossError,
    MeasurementError,
    UsageError,
)
from pytest_pplguard.protocols import (
    PROTOCOLS,
    USUAL_METHODS,
    check_key,
    get_protocol,
    windows_digest,
)
from pytest_pplguard.values import Key, Window, WindowScore

BOS = 1


class ByteTokenizer:
    """One token a character; BOS in front if ``bos``."""

    def __init__(self, *, bos: bool = True, has_bos: bool = True) -> None:
        self._bos = bos
        self.bos_token_id = BOS if has_bos else None
        self.eos_token_id: int | None = 2

    def __call__(self, text: str, **_: Any) -> Any:
        return SimpleNamespace(input_ids=self.encode(text))

    def encode(
        self, text: str, *, add_special_tokens: bool = True, **_: Any
    ) -> list[int]:
        ids = [ord(character) + 10 for character in text]
        return [BOS, *ids] if self._bos and add_special_tokens else ids

    def decode(self, ids: Any, **_: Any) -> str:
        return {BOS: "<s>", 2: "</s>"}.get(ids, "")


def text_of(*documents: str) -> Corpus:
    return Corpus.from_documents("t", documents)


def wanda(window: int, first: int | None = None) -> Key:
    return Key("wanda", "t", window, first=first)


def lm_eval(window: int) -> Key:
    return Key("lm-eval", "wikitext", window, corpus="t")


# ---------------------------------------------------------------------------- wanda


@given(length=st.integers(2, 200), window=st.integers(2, 50), bos=st.booleans())
def test_wanda_cuts_as_lib_eval_does(length: int, window: int, bos: bool) -> None:
    tokenizer = ByteTokenizer(bos=bos)
    text = "".join(chr(97 + i % 26) for i in range(length))
    ids = tokenizer.encode(text)
    if len(ids) < window:
        with pytest.raises(CorpusError, match="fewer than one window"):
            PROTOCOLS["wanda"].windows(text_of(text), tokenizer, wanda(window))
        return
    windows = PROTOCOLS["wanda"].windows(text_of(text), tokenizer, wanda(window))
    nsamples = len(ids) // window
    assert len(windows) == nsamples
    for i, cut in enumerate(windows):
        assert list(cut.ids) == ids[i * window : (i + 1) * window]
        assert cut.targets == cut.ids[1:]
        assert (cut.start, cut.page) == (0, None)


def test_wanda_joins_rows_by_a_blank_line_with_one_bos() -> None:
    text = text_of("ab", "", "c")
    windows = PROTOCOLS["wanda"].windows(text, ByteTokenizer(), wanda(8, first=1))
    joined = "ab\n\n\n\nc"
    assert windows == [
        Window(ids=ids, targets=ids[1:])
        for ids in [(BOS, *(ord(character) + 10 for character in joined))]
    ]


def test_wanda_limits() -> None:
    text = text_of("a" * 31)
    windows = PROTOCOLS["wanda"].windows(text, ByteTokenizer(), wanda(8, first=3))
    assert len(windows) == 3
    with pytest.raises(CorpusError) as caught:
        PROTOCOLS["wanda"].windows(text, ByteTokenizer(), wanda(8, first=5))
    assert str(caught.value) == (
        "key wanda/t:8:first5: the text has 4 windows of 8 tokens, fewer than the 5 "
        "asked for"
    )
    with pytest.raises(CorpusError) as caught:
        PROTOCOLS["wanda"].windows(text, ByteTokenizer(), wanda(33))
    assert str(caught.value) == (
        "key wanda/t:33: the text has 32 tokens, fewer than one window of 33; choose a "
        "shorter window or a longer text"
    )


def test_wanda_perplexity_is_the_exponential_of_the_mean_of_means() -> None:
    scores = [WindowScore(2.0, 4), WindowScore(6.0, 4)]
    again = PROTOCOLS["wanda"].recompute(scores, {"tokens": 8})
    assert again == {"token_perplexity": math.exp((0.5 + 1.5) / 2)}


# --------------------------------------------------------------------------- lm-eval


def rolled_by_hand(ids: Sequence[int], prefix: int, window: int) -> list[Window]:
    """lm-eval's windows from its documentation, written without its code."""
    first = list(ids[:window])
    windows = [Window((prefix, *first[:-1]), tuple(first), 0, 0)]
    done = len(first)
    while done < len(ids):
        count = min(window, len(ids) - done)
        end = done + count
        read = tuple(ids[end - window - 1 : end - 1])
        targets = tuple(ids[done:end])
        windows.append(Window(read, targets, len(read) - count, 0))
        done = end
    return windows


@given(length=st.integers(1, 200), window=st.integers(1, 50), bos=st.booleans())
def test_lm_eval_rolls_as_it_documents(length: int, window: int, bos: bool) -> None:
    tokenizer = ByteTokenizer(bos=bos)
    text = "".join(chr(97 + i % 26) for i in range(length))
    windows = PROTOCOLS["lm-eval"].windows(text_of(text), tokenizer, lm_eval(window))
    assert windows == rolled_by_hand(tokenizer.encode(text), BOS, window)
    scored = [target for cut in windows for target in cut.targets]
    assert scored == tokenizer.encode(text)
    for cut in windows:
        assert len(cut.ids) <= window
        assert cut.start + len(cut.targets) == len(cut.ids)


def test_lm_eval_keeps_pages_apart() -> None:
    windows = PROTOCOLS["lm-eval"].windows(
        text_of("abc", "d"), ByteTokenizer(), lm_eval(2)
    )
    assert [cut.page for cut in windows] == [0, 0, 1]


def test_lm_eval_prefixes_eos_where_there_is_no_bos() -> None:
    tokenizer = ByteTokenizer(bos=False, has_bos=False)
    windows = PROTOCOLS["lm-eval"].windows(text_of("ab"), tokenizer, lm_eval(8))
    assert windows[0].ids[0] == tokenizer.eos_token_id


def test_lm_eval_adds_no_second_bos_to_a_page_that_begins_with_it() -> None:
    windows = PROTOCOLS["lm-eval"].windows(text_of("<s>a"), ByteTokenizer(), lm_eval(8))
    assert windows[0].targets == tuple(ord(character) + 10 for character in "<s>a")


def test_a_tokenizer_without_bos_and_eos_is_refused() -> None:
    tokenizer = ByteTokenizer(bos=False, has_bos=False)
    tokenizer.eos_token_id = None
    with pytest.raises(UsageError, match="neither a BOS nor an EOS token"):
        PROTOCOLS["lm-eval"].windows(text_of("ab"), tokenizer, lm_eval(8))


def test_lm_eval_metrics_from_evidence() -> None:
    scores = [WindowScore(3.0, 2, 0), WindowScore(5.0, 4, 1)]
    again = PROTOCOLS["lm-eval"].recompute(scores, {"words": 4, "bytes": 16})
    assert again == {
        "word_perplexity": math.exp(2.0),
        "byte_perplexity": math.exp(0.5),
        "bits_per_byte": 0.5 / math.log(2),
    }


def test_divergence_metrics_from_evidence() -> None:
    scores = [
        WindowScore(3.0, 4, kl_sum=0.5, top1=3, reference_nll=2.0),
        WindowScore(5.0, 6, kl_sum=0.75, top1=6, reference_nll=4.0),
    ]
    again = PROTOCOLS["kl"].recompute(scores, {"tokens": 10})
    assert again == {"kl_divergence": 0.125, "top1_agreement": 0.9}
    with pytest.raises(MeasurementError, match="the evidence holds no divergence"):
        PROTOCOLS["kl"].recompute([WindowScore(3.0, 4)], {"tokens": 4})


@pytest.mark.parametrize("first", [None, 2])
def test_divergence_reads_the_windows_of_wanda(first: int | None) -> None:
    tokenizer, text = ByteTokenizer(), text_of("some text", "and more")
    keys = [Key(method, "mine", 5, first=first) for method in ("wanda", "kl")]
    wanda, kl = (PROTOCOLS[k.method].windows(text, tokenizer, k) for k in keys)
    assert kl == wanda
    assert PROTOCOLS["kl"].properties(text, tokenizer, keys[1]) == PROTOCOLS[
        "wanda"
    ].properties(text, tokenizer, keys[0])


def test_what_is_measured_without_being_asked_needs_no_reference() -> None:
    assert USUAL_METHODS == ("wanda", "lm-eval")


# ------------------------------------------------------------------------------ digest


@pytest.mark.parametrize(
    ("method", "units", "said"),
    [
        ("wanda", {"tokens": 4}, "710 nats per token"),
        ("lm-eval", {"words": 4, "bytes": 16}, "710 nats per word"),
        ("lm-eval", {"words": 8, "bytes": 4}, "710 nats per byte"),
    ],
)
def test_losses_without_a_finite_perplexity(
    method: str, units: dict[str, int], said: str
) -> None:
    """The largest double is exp(709.78...)."""
    recompute = PROTOCOLS[method].recompute
    with pytest.raises(InvalidLossError) as caught:
        recompute([WindowScore(710.0 * 4, 4, 0)], units)
    assert str(caught.value) == f"a mean loss of {said} has no finite perplexity"
    finite = recompute([WindowScore(709.0 * 4, 4, 0)], units)
    assert max(finite.values()) == pytest.approx(8.2184075e307, rel=1e-7)


def test_the_digest_is_what_the_docs_say() -> None:
    windows = [Window((1, 2, 3), (2, 3), 0, None), Window((4, 5), (6,), 1, 7)]
    first, second = [3, 2, 0, 0, 1, 2, 3, 2, 3], [2, 1, 1, 8, 4, 5, 6]
    words = [*first, *second]
    expected = hashlib.sha256(struct.pack(f"<{len(words)}I", *words)).hexdigest()
    assert windows_digest(windows) == f"sha256:{expected}"


BASE = Window((1, 2, 3), (2, 3), 0, None)


@pytest.mark.parametrize(
    "changed",
    [
        [Window((9, 2, 3), (2, 3), 0, None)],
        [Window((1, 2, 3), (2, 4), 0, None)],
        [Window((1, 2, 3), (3,), 1, None)],
        [Window((1, 2, 3), (2, 3), 0, 0)],
        [Window((1, 2), (2, 3), 0, None)],
        [BASE, BASE],
        [],
    ],
)
def test_the_digest_sees_every_change(changed: list[Window]) -> None:
    assert windows_digest(changed) != windows_digest([BASE])


def test_the_digest_sees_a_lost_bos_another_prefix_and_one_character() -> None:
    def digest(
        text: str, method: str = "lm-eval", *, bos: bool = True, has_bos: bool = True
    ) -> str:
        tokenizer = ByteTokenizer(bos=bos, has_bos=has_bos)
        key = lm_eval(4) if method == "lm-eval" else wanda(4)
        return windows_digest(PROTOCOLS[method].windows(text_of(text), tokenizer, key))

    digests = [
        digest("some text"),
        digest("some test"),
        digest("some text", bos=False),
        digest("some text", bos=False, has_bos=False),
        digest("some text", "wanda"),
        digest("some text", "wanda", bos=False),
    ]
    assert len(set(digests)) == len(digests)


# -------------------------------------------------------------------------------- keys


def test_properties_name_what_decides() -> None:
    with_bos, without = ByteTokenizer(), ByteTokenizer(bos=False)

    def first_token(key: Key, tokenizer: ByteTokenizer) -> object:
        text = text_of("some text")
        return PROTOCOLS[key.method].properties(text, tokenizer, key)["first token"]

    assert first_token(wanda(8), with_bos) == "BOS 1"
    assert first_token(wanda(8), without) == "none"
    assert first_token(lm_eval(8), with_bos) == "prefix 1 and BOS"
    assert first_token(lm_eval(8), without) == "prefix 1"


@pytest.mark.parametrize(
    ("key", "message"),
    [
        (
            "wnada/wikitext2:64",
            "unknown method 'wnada' (did you mean 'wanda'?): this version measures "
            "wanda, lm-eval, kl, strided, llama-cpp, lora-ft, gptq and vllm",
        ),
        (
            "wanda/wikitext2:64:stride8",
            "key wanda/wikitext2:64:stride8: the method wanda has no stride; write "
            "wanda/wikitext2:64",
        ),
        (
            "wanda/wikitext2+demo:64",
            "key wanda/wikitext2+demo:64: the method wanda names its corpus directly; "
            "write wanda/demo:64",
        ),
        (
            "kl/wikitext2+demo:64",
            "key kl/wikitext2+demo:64: the method kl names its corpus directly; write "
            "kl/demo:64",
        ),
        ("wanda/demo:1", "key wanda/demo:1: a window of one token scores nothing"),
        (
            "lm-eval/piqa+demo:64",
            "key lm-eval/piqa+demo:64: the task piqa of lm-eval has documents of its "
            "own; write lm-eval/piqa:64, or a YAML that reads yours (docs/tasks.md)",
        ),
        (
            "lm-eval/piqa:64:stride8",
            "key lm-eval/piqa:64:stride8: the method lm-eval has no stride; write "
            "lm-eval/piqa:64",
        ),
        (
            "wanda/demo:64:shots2:first1",
            "key wanda/demo:64:shots2:first1: only tasks of lm-eval have shots, "
            "examples that are shown first; write wanda/demo:64:first1",
        ),
        (
            "lm-eval/wikitext:64:shots0",
            "key lm-eval/wikitext:64:shots0: only tasks of lm-eval have shots, "
            "examples that are shown first; write lm-eval/wikitext:64",
        ),
    ],
)
def test_keys_that_a_method_cannot_measure(key: str, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        check_key(Key.parse(key))
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("method", "corpus", "key", "reads"),
    [
        ("wanda", None, "wanda/wikitext2:64", "wikitext2"),
        ("wanda", "demo", "wanda/demo:64", "demo"),
        ("kl", None, "kl/wikitext2:64", "wikitext2"),
        ("lm-eval", None, "lm-eval/wikitext:64", "wikitext2"),
        ("lm-eval", "wikitext2", "lm-eval/wikitext:64", "wikitext2"),
        ("lm-eval", "demo", "lm-eval/wikitext+demo:64", "demo"),
    ],
)
def test_keys_for_a_corpus(
    method: str, corpus: str | None, key: str, reads: str
) -> None:
    protocol = get_protocol(method)
    made = protocol.key_for(corpus, 64, None)
    assert (str(made), protocol.corpus(made)) == (key, reads)
    check_key(made)
