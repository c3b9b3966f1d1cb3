"""Methods that are cuts: exactly the tokens that each claims, and its own mean.

What a method claims is written out from its original, over positions in the text.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pytest_pplguard.corpora import Corpus, open_corpus
from pytest_pplguard.errors import CorpusError, UsageError
from pytest_pplguard.protocols import (
    PROTOCOLS,
    Cut,
    check_key,
    get_protocol,
    windows_digest,
)
from pytest_pplguard.protocols.cut import raw_file
from pytest_pplguard.values import Key, Recipe, Window, WindowScore
from tests.official import official_wikitext2

BOS = 1
FIRST = 1000
"""The first character of a text in which no two are the same."""


class Tokenizer:
    """One token a character, so that every position of a text has an id of its own."""

    eos_token_id: int | None = 2

    def __init__(self, *, bos: bool = True) -> None:
        self.bos_token_id: int | None = BOS
        self._bos = bos

    def __call__(self, text: str, **_: Any) -> Any:
        return SimpleNamespace(input_ids=self.encode(text))

    def encode(self, text: str, **_: Any) -> list[int]:
        ids = [ord(character) + 10 for character in text]
        return [BOS, *ids] if self._bos else ids

    def decode(self, ids: Any, **_: Any) -> str:
        return "<s>" if ids == BOS else "".join(chr(id_ - 10) for id_ in ids)


def text_of(length: int, **options: Any) -> Corpus:
    text = "".join(chr(FIRST + i) for i in range(length))
    return Corpus.from_documents("t", [text], **options)


Scored = tuple[int, int, int]
"""A window's first position and end, and the position of its first scored token."""


def claimed(method: str, n: int, window: int, stride: int) -> Iterator[Scored]:
    """The windows of ``n`` tokens as the original's loop goes over them."""
    if method == "strided":
        prev_end = 0
        for begin in range(0, n, stride):
            end = min(begin + window, n)
            new = end - prev_end
            # The loss shifts labels by one: a window's first token has no prediction.
            yield begin, end, max(end - new, begin + 1)
            prev_end = end
            if end == n:
                break
    elif method == "llama-cpp":
        for chunk in range(n // window if n >= 2 * window else 0):
            begin = chunk * window
            yield begin, begin + window, begin + window // 2 + 1
    elif method in ("wanda", "gptq", "kl"):
        for i in range(n // window):
            yield i * window, (i + 1) * window, i * window + 1
    else:  # lora-ft, vllm
        for begin in range(0, n, window):
            yield begin, min(begin + window, n), begin + 1


METHODS = ("wanda", "kl", "strided", "llama-cpp", "lora-ft", "gptq", "vllm")


@given(
    method=st.sampled_from(METHODS),
    length=st.integers(0, 120),
    window=st.integers(3, 40),
    part=st.floats(0, 1),
    bos=st.booleans(),
)
@example(method="strided", length=24, window=8, part=0.5, bos=False)
@example(method="strided", length=24, window=8, part=1.0, bos=False)
@example(method="strided", length=25, window=8, part=0.5, bos=False)
@example(method="strided", length=5, window=8, part=0.5, bos=False)
@example(method="vllm", length=24, window=8, part=1.0, bos=False)
@example(method="vllm", length=25, window=8, part=1.0, bos=False)
@example(method="lora-ft", length=24, window=8, part=1.0, bos=False)
@example(method="lora-ft", length=25, window=8, part=1.0, bos=False)
@example(method="llama-cpp", length=16, window=8, part=1.0, bos=False)
@example(method="llama-cpp", length=15, window=8, part=1.0, bos=False)
@example(method="llama-cpp", length=15, window=8, part=1.0, bos=True)
def test_each_method_scores_what_it_claims(
    method: str, length: int, window: int, part: float, bos: bool
) -> None:
    stride = max(1, round(part * window))
    tokenizer, text = Tokenizer(bos=bos), text_of(length)
    ids = tokenizer.encode("".join(chr(FIRST + i) for i in range(length)))
    key = Key(method, "t", window, stride=stride if method == "strided" else None)
    check_key(key)
    claims = [*claimed(method, len(ids), window, stride)]
    kept = [claim for claim in claims if claim[2] < claim[1]]
    nan = method in ("strided", "lora-ft") and len(kept) < len(claims) and kept
    if not kept or nan:
        with pytest.raises(CorpusError, match=r"fewer than|scores none"):
            PROTOCOLS[method].windows(text, tokenizer, key)
        return
    windows = PROTOCOLS[method].windows(text, tokenizer, key)
    assert len(windows) == len(kept)
    scored: list[int] = []
    for cut, (begin, end, first) in zip(windows, kept, strict=True):
        read = ids[begin:end]
        if method == "llama-cpp" and bos:
            read[0] = BOS
        assert list(cut.ids) == read
        assert list(cut.targets) == ids[first:end]
        assert (cut.start, cut.page) == (first - begin - 1, None)
        assert cut.start + len(cut.targets) < len(cut.ids) <= window
        scored += range(first, end)
    assert all(one < other for one, other in pairwise(scored))
    assert scored[-1] < len(ids)


@given(
    lengths=st.lists(st.integers(0, 40), min_size=1, max_size=4),
    window=st.integers(2, 12),
    tail=st.sampled_from(["dropped", "kept", "filled backwards"]),
    first=st.sampled_from(["as it is", "BOS in its place", "prefix"]),
    second_half=st.booleans(),
)
def test_any_cut_scores_no_token_twice(
    lengths: list[int], window: int, tail: Any, first: Any, second_half: bool
) -> None:
    """Also those that no method is, which stand between two others."""
    cut = Cut(
        per_page=True,
        tail=tail,
        first=first,
        scored="second half" if second_half and first != "prefix" else "all",
    )
    ends = [sum(lengths[: i + 1]) for i in range(len(lengths))]
    pages = [
        "".join(chr(FIRST + i) for i in range(end - length, end))
        for end, length in zip(ends, lengths, strict=True)
    ]
    tokenizer = Tokenizer(bos=False)
    windows = cut.windows(Corpus.from_documents("t", pages), tokenizer, window)
    scored = [target for piece in windows for target in piece.targets]
    assert sorted(set(scored)) == scored
    assert set(scored) <= {FIRST + 10 + i for i in range(sum(lengths))}
    for piece in windows:
        assert piece.targets
        assert len(piece.ids) <= window
        assert 0 <= piece.start <= len(piece.ids) - len(piece.targets)
        assert piece.page is not None
        assert set(piece.targets) <= {ord(c) + 10 for c in pages[piece.page]}


# -------------------------------------------------------------------------- their means


def scores(*pairs: tuple[float, int]) -> list[WindowScore]:
    return [WindowScore(nll, scored) for nll, scored in pairs]


def test_strided_weights_means_as_the_documentations_loop() -> None:
    key = Key.parse("strided/t:8:stride4")
    found = scores((14.0, 7), (12.0, 4), (5.0, 4), (3.0, 1))
    # num_loss_tokens: 8 - 1, then 4 - 1 and 4 - 1, then 1 - 1.
    nll = 14.0 / 7 * 7 + 12.0 / 4 * 3 + 5.0 / 4 * 3 + 3.0 / 1 * 0
    protocol = PROTOCOLS["strided"]
    units = protocol.units(found, key)
    assert units == {"tokens": 13}
    assert protocol.recompute(found, units) == {
        "token_perplexity": pytest.approx(math.exp(nll / 13), rel=1e-15)
    }


def test_strided_without_overlap_is_a_mean_of_tokens() -> None:
    key = Key.parse("strided/t:8:stride8")
    found = scores((14.0, 7), (12.0, 7), (5.0, 2))
    protocol = PROTOCOLS["strided"]
    units = protocol.units(found, key)
    assert units == {"tokens": 16}
    assert protocol.recompute(found, units) == {
        "token_perplexity": pytest.approx(math.exp(31.0 / 16), rel=1e-15)
    }


def test_strided_with_one_window() -> None:
    protocol, found = PROTOCOLS["strided"], scores((6.0, 3))
    units = protocol.units(found, Key.parse("strided/t:8:stride4"))
    assert units == {"tokens": 3}
    assert protocol.recompute(found, units) == {"token_perplexity": math.exp(2.0)}


@pytest.mark.parametrize(
    ("method", "mean"),
    [
        ("lora-ft", (2.0 + 4.0) / 2),
        ("vllm", (14.0 + 4.0) / 8),
        ("gptq", (14.0 + 4.0) / 8),
        ("llama-cpp", (14.0 + 4.0) / 8),
    ],
)
def test_means_of_the_others(method: str, mean: float) -> None:
    found = scores((14.0, 7), (4.0, 1))
    protocol = PROTOCOLS[method]
    units = protocol.units(found, Key(method, "t", 8))
    assert units == {"tokens": 8}
    assert protocol.recompute(found, units) == {"token_perplexity": math.exp(mean)}


# ----------------------------------------------------------------------------- texts


def test_llama_cpp_reads_the_file_itself() -> None:
    """Lines with their ends, a blank line is a space; the last line end is dropped."""
    file = " \n = A = \n \n One line . \n Another . \n"
    rows = [line + "\n" if line.strip() else "" for line in file.split("\n")[:-1]]
    corpus = Corpus.from_wikitext_rows("t", rows)
    assert raw_file(corpus) == file[:-1]
    windows = Cut(text="file").windows(corpus, Tokenizer(bos=False), 5)
    read = [id_ for piece in windows for id_ in piece.ids]
    assert Tokenizer().decode(read) == file[: len(read)]


def test_llama_cpp_reads_the_official_file() -> None:
    path = official_wikitext2()
    corpus = open_corpus("wikitext2", {"wikitext2": str(path)})
    assert raw_file(corpus) == path.read_text(encoding="utf-8").removesuffix("\n")


@pytest.mark.parametrize(
    ("key", "windows", "scored"),
    [
        ("wanda/t:10", 3, 27),
        ("gptq/t:10", 3, 27),
        ("vllm/t:10", 3, 27),
        ("lora-ft/t:10", 3, 27),
        ("strided/t:10:stride5", 5, 29),
        ("llama-cpp/t:10", 5, 20),
    ],
)
def test_a_recipe_ends_the_text(key: str, windows: int, scored: int) -> None:
    """As ``get_c4`` does: ``input_ids[:, :(256 * seqlen)]``, here 3 for 256.

    llama.cpp reads a file, which ends where it ends.
    """
    recipe = Recipe(text="first tokens", joiner=" ", max_windows=3)
    asked = Key.parse(key)
    found = PROTOCOLS[asked.method].windows(
        text_of(55, recipe=recipe), Tokenizer(bos=False), asked
    )
    assert len(found) == windows
    assert sum(len(piece.targets) for piece in found) == scored


# ------------------------------------------------------------------------------- limits


@pytest.mark.parametrize(
    ("key", "length", "message"),
    [
        (
            "llama-cpp/t:8",
            15,
            "key llama-cpp/t:8: the text has 15 tokens, fewer than 2 windows of 8; "
            "choose a shorter window or a longer text",
        ),
        (
            "llama-cpp/t:8:first1",
            15,
            "key llama-cpp/t:8:first1: the text has 15 tokens, fewer than 2 windows of "
            "8; choose a shorter window or a longer text",
        ),
        (
            "vllm/t:8",
            1,
            "key vllm/t:8: the text has 1 tokens, fewer than one window of 8; choose a "
            "shorter window or a longer text",
        ),
        (
            "lora-ft/t:8",
            25,
            "key lora-ft/t:8: window 4, the text's last, has one token and scores "
            "none, so the mean over windows would be NaN, as it is in the original "
            "code; take another window, or leave it out with :first3",
        ),
        (
            "strided/t:8:stride8",
            9,
            "key strided/t:8:stride8: window 2, the text's last, has one token and "
            "scores none, so the mean over windows would be NaN, as it is in the "
            "original code; take another window, or leave it out with :first1",
        ),
        (
            "strided/t:8:stride4:first9",
            20,
            "key strided/t:8:stride4:first9: the text has 4 windows of 8 tokens, fewer "
            "than the 9 asked for",
        ),
    ],
)
def test_texts_that_are_too_short(key: str, length: int, message: str) -> None:
    asked = Key.parse(key)
    with pytest.raises(CorpusError) as caught:
        PROTOCOLS[asked.method].windows(text_of(length), Tokenizer(bos=False), asked)
    assert str(caught.value) == message


def test_the_way_out_of_a_tail_without_a_loss() -> None:
    asked = Key.parse("lora-ft/t:8:first3")
    found = PROTOCOLS["lora-ft"].windows(text_of(25), Tokenizer(bos=False), asked)
    assert [len(piece.ids) for piece in found] == [8, 8, 8]


@pytest.mark.parametrize(
    ("key", "message"),
    [
        (
            "strided/wikitext2:2048",
            "key strided/wikitext2:2048: the method strided needs a stride, the tokens "
            "from one window's start to the next; write for example "
            "strided/wikitext2:2048:stride512",
        ),
        (
            "strided/mine:64:first3",
            "key strided/mine:64:first3: the method strided needs a stride, the tokens "
            "from one window's start to the next; write for example "
            "strided/mine:64:stride32:first3",
        ),
        (
            "strided/wikitext2:64:stride65",
            "key strided/wikitext2:64:stride65: with a stride longer than the window, "
            "tokens between windows are never read; take a stride of 1 to 64",
        ),
        (
            "strided/wikitext2+demo:64:stride8",
            "key strided/wikitext2+demo:64:stride8: the method strided names its "
            "corpus directly; write strided/demo:64:stride8",
        ),
        (
            "vllm/wikitext2:64:stride8",
            "key vllm/wikitext2:64:stride8: the method vllm has no stride; write "
            "vllm/wikitext2:64",
        ),
        (
            "llama-cpp/wikitext2:2",
            "key llama-cpp/wikitext2:2: the second half of a window of two tokens "
            "scores nothing",
        ),
        ("lora-ft/demo:1", "key lora-ft/demo:1: a window of one token scores nothing"),
    ],
)
def test_keys_that_a_method_cannot_measure(key: str, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        check_key(Key.parse(key))
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("method", "window", "key"),
    [
        ("strided", 2048, "strided/wikitext2:2048:stride512"),
        ("strided", 600, "strided/wikitext2:600:stride300"),
        ("strided", 2, "strided/wikitext2:2:stride1"),
        ("llama-cpp", 512, "llama-cpp/wikitext2:512"),
    ],
)
def test_keys_that_methods_propose(method: str, window: int, key: str) -> None:
    made = get_protocol(method).key_for(None, window, None)
    assert str(made) == key
    check_key(made)


def test_usual_windows() -> None:
    """vLLM: min(max_model_len - 1, max_length), both 1,024 in its test."""
    usual = {name: PROTOCOLS[name].usual_window for name in (*METHODS, "lm-eval")}
    assert usual == {
        "wanda": None,
        "kl": None,
        "lm-eval": None,
        "strided": None,
        "llama-cpp": 512,
        "lora-ft": 2048,
        "gptq": 2048,
        "vllm": min(1024 - 1, 1024),
    }


# --------------------------------------------------------------------------- properties


@pytest.mark.parametrize(
    ("key", "properties"),
    [
        (
            "strided/t:8:stride4",
            {
                "window": 8,
                "stride": 4,
                "text": "all rows joined by a blank line",
                "first token": "BOS 1",
                "tail": "kept",
                "divisor": "scored tokens",
                "mean": "of windows, weighted by the tokens that each adds less one",
            },
        ),
        (
            "llama-cpp/t:8",
            {
                "window": 8,
                "text": "file",
                "first token": "BOS 1 in each window",
                "tail": "dropped",
                "scored": "second half",
                "divisor": "scored tokens",
            },
        ),
        (
            "lora-ft/t:8",
            {
                "window": 8,
                "text": "all rows joined by a blank line",
                "first token": "BOS 1",
                "tail": "kept",
                "divisor": "scored tokens",
                "mean": "of windows, each counting as much",
            },
        ),
        (
            "vllm/t:8",
            {
                "window": 8,
                "text": "all rows joined by a blank line",
                "first token": "BOS 1",
                "tail": "kept",
                "divisor": "scored tokens",
            },
        ),
    ],
)
def test_properties_in_words(key: str, properties: dict[str, object]) -> None:
    asked = Key.parse(key)
    protocol = PROTOCOLS[asked.method]
    assert protocol.properties(text_of(30), Tokenizer(), asked) == properties


@pytest.mark.parametrize(
    "key", ["strided/t:8:stride4", "llama-cpp/t:8", "lora-ft/t:8", "vllm/t:8"]
)
def test_the_digest_sees_a_lost_bos_a_character_and_other_ids(key: str) -> None:
    class Shifted(Tokenizer):
        def encode(self, text: str, **_: Any) -> list[int]:
            return [id_ + (id_ == FIRST + 15) for id_ in super().encode(text)]

    asked = Key.parse(key)
    text = "".join(chr(FIRST + i) for i in range(23))

    def digest(text: str = text, tokenizer: Tokenizer | None = None) -> str:
        corpus = Corpus.from_documents("t", [text])
        found: list[Window] = PROTOCOLS[asked.method].windows(
            corpus, tokenizer or Tokenizer(), asked
        )
        return windows_digest(found)

    digests = [
        digest(),
        digest(tokenizer=Tokenizer(bos=False)),
        digest(text.replace(chr(FIRST + 5), "x")),
        digest(tokenizer=Shifted()),
    ]
    assert len(set(digests)) == len(digests)


def test_a_word_that_no_property_knows_is_refused() -> None:
    with pytest.raises(UsageError) as caught:
        Cut(tail="kpet")  # type: ignore[arg-type]
    assert str(caught.value) == (
        "Cut(tail='kpet'): expected one of 'dropped', 'kept', 'filled backwards' (did "
        "you mean 'kept'?)"
    )
