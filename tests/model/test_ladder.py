"""Every rung against its formula written out over full logits; both ends, originals."""

from __future__ import annotations

import itertools
import json
import math
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from lm_eval.tasks.wikitext.preprocess_wikitext import wikitext_detokenizer

from pytest_pplguard.checkpoints import Loaded, load, locate
from pytest_pplguard.corpora import Corpus
from pytest_pplguard.errors import (
    CorpusError,
    InvalidLossError,
    MeasurementError,
    UsageError,
)
from pytest_pplguard.journal import Journals
from pytest_pplguard.measure import Store, measure_loaded
from pytest_pplguard.measure.ladder import climb, ends_of
from pytest_pplguard.options import Target
from pytest_pplguard.protocols import PROTOCOLS, Cut, CutProtocol
from pytest_pplguard.scoring import Progress
from pytest_pplguard.values import Key, Ladder, Window
from tests.model.originals import stock_hflm, wanda_perplexity, wanda_window_losses
from tests.model.test_measure import make_rows
from tests.model.tiny import save_tiny

CORPUS = Corpus.from_wikitext_rows("mine", make_rows(4))
Read = tuple[Sequence[int], Sequence[int], int]
"""What the model reads, what is scored, and the position that predicts the first."""


def loaded(folder: Path, *, bos: bool = True) -> Loaded:
    path = save_tiny(folder / "tiny", bos=bos)
    return load(locate(str(path)), device="cpu", dtype="float32")


def ladder(
    checkpoint: Loaded,
    window: int,
    *,
    start: str = "wanda",
    goal: str = "lm-eval",
    corpus: Corpus = CORPUS,
    **options: Any,
) -> Ladder:
    keys = (
        PROTOCOLS[method].key_for(corpus.name, window, None) for method in (start, goal)
    )
    return climb(checkpoint, ends_of(*keys), corpus, **options)


def values(climbed: Ladder) -> list[float]:
    return [rung.perplexity for rung in climbed.rungs]


# ---------------------------------------------------------------- formulas, written out


def mean_loss(model: Any, reads: Sequence[Read]) -> tuple[float, int]:
    """Summed loss (nats) and number of the scored tokens, over full logits."""
    total, count = 0.0, 0
    with torch.no_grad():
        for ids, targets, start in reads:
            logits = model(torch.tensor([list(ids)])).logits[0].double()
            logits = logits[start : start + len(targets)]
            loss = torch.nn.functional.cross_entropy(
                logits, torch.tensor(list(targets)), reduction="sum"
            )
            total, count = total + loss.item(), count + len(targets)
    return total, count


def chopped(ids: Sequence[int], window: int, *, tail: bool) -> list[Read]:
    """Windows side by side, each scored but for its first token."""
    chunks = [ids[i : i + window] for i in range(0, len(ids), window)]
    if not tail:
        chunks = [chunk for chunk in chunks if len(chunk) == window]
    return [(chunk, chunk[1:], 0) for chunk in chunks if len(chunk) > 1]


def rolled(ids: Sequence[int], window: int, prefix: int, *, fill: bool) -> list[Read]:
    """Every token scored, after the prefix or the token before the window."""
    stream = [prefix, *ids]
    reads: list[Read] = []
    for done in range(0, len(ids), window):
        end = min(done + window, len(ids))
        begin = max(0, end - window) if fill else done
        # The token at `done` of the page is at `done + 1` of the stream.
        reads.append((stream[begin:end], ids[done:end], done - begin))
    return reads


def written_out(checkpoint: Loaded, window: int) -> list[float]:
    """The seven rungs from Wanda's number to lm-eval's."""
    model, tokenizer = checkpoint.model, checkpoint.tokenizer
    prefix = tokenizer.bos_token_id

    def ids(text: str) -> list[int]:
        return list(tokenizer(text).input_ids)

    pages = [wikitext_detokenizer({"page": page}) for page in CORPUS.pages]
    rows, joined = ids("\n\n".join(CORPUS.rows)), ids("\n".join(pages))
    rungs: list[list[Read]] = [
        chopped(rows, window, tail=False),
        chopped(joined, window, tail=False),
        chopped(joined, window, tail=True),
        [read for page in pages for read in chopped(ids(page), window, tail=True)],
        [r for page in pages for r in rolled(ids(page), window, prefix, fill=False)],
        [r for page in pages for r in rolled(ids(page), window, prefix, fill=True)],
    ]
    sums = [mean_loss(model, rung) for rung in rungs]
    words = sum(len(re.split(r"\s+", page)) for page in CORPUS.pages)
    return [
        *(math.exp(total / count) for total, count in sums),
        math.exp(sums[-1][0] / words),
    ]


# ---------------------------------------------------------------------------- the rungs


@pytest.mark.parametrize("bos", [True, False])
@pytest.mark.parametrize("window", [16, 100])
def test_every_rung_is_its_formula(tmp_path: Path, bos: bool, window: int) -> None:
    checkpoint = loaded(tmp_path, bos=bos)
    climbed = ladder(checkpoint, window)
    assert [rung.changed for rung in climbed.rungs] == [
        None, "text", "tail", "per_page", "first", "tail", "divisor",
    ]  # fmt: skip
    expected = written_out(checkpoint, window)
    assert values(climbed) == pytest.approx(expected, rel=1e-6)
    steps = [math.log(b / a) for a, b in itertools.pairwise(expected)]
    for rung, step in zip(climbed.rungs[1:], steps, strict=True):
        assert rung.log_change == pytest.approx(step, abs=1e-6)
    # No step is nothing here, so that a rung in another's place would be seen.
    assert min(map(abs, steps)) > 1e-5


@pytest.mark.parametrize("bos", [True, False])
def test_both_ends_are_the_methods_own_numbers(tmp_path: Path, bos: bool) -> None:
    checkpoint = loaded(tmp_path, bos=bos)
    climbed = ladder(checkpoint, 64)
    own = [
        measure_loaded(checkpoint, Key.parse(key), lambda _: CORPUS).metrics[metric]
        for key, metric in (
            ("wanda/mine:64", "token_perplexity"),
            ("lm-eval/wikitext+mine:64", "word_perplexity"),
        )
    ]
    assert [values(climbed)[0], values(climbed)[-1]] == own
    model, tokenizer = checkpoint.model, checkpoint.tokenizer
    losses = wanda_window_losses(model, tokenizer, CORPUS.rows, 64)
    assert own[0] == pytest.approx(wanda_perplexity(losses, 64), rel=1e-6)
    stock = stock_hflm(model, tokenizer, CORPUS.pages, 64)["word_perplexity"]
    assert own[1] == pytest.approx(stock, rel=1e-6)


def test_shares_and_log_changes_add_up(tmp_path: Path) -> None:
    climbed = ladder(loaded(tmp_path), 32)
    first, last = values(climbed)[0], values(climbed)[-1]
    gap = math.log(last / first)
    assert climbed.rungs[0].log_change == 0
    assert sum(rung.log_change for rung in climbed.rungs) == pytest.approx(
        gap, abs=1e-9
    )
    shares = [rung.share for rung in climbed.rungs]
    assert None not in shares
    assert sum(filter(None, shares)) == pytest.approx(1, abs=1e-9)
    for rung in climbed.rungs:
        assert rung.share == pytest.approx(rung.log_change / gap, abs=1e-9)


def test_the_way_back_is_the_same_way(tmp_path: Path) -> None:
    checkpoint = loaded(tmp_path)
    there = ladder(checkpoint, 32)
    back = ladder(checkpoint, 32, start="lm-eval", goal="wanda")
    assert values(back) == values(there)[::-1]
    assert [rung.share for rung in back.rungs[1:]] == pytest.approx(
        [rung.share for rung in there.rungs[:0:-1]], abs=1e-12
    )


@pytest.mark.parametrize("batch_size", [1, 3])
def test_no_window_is_read_twice(
    tmp_path: Path, batch_size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pytest_pplguard.scoring import Scorer

    scored: list[Window] = []
    score = Scorer._score

    def count(scorer: Any, batch: Sequence[int], windows: Sequence[Window]) -> Any:
        scored.extend(windows[index] for index in batch)
        return score(scorer, batch, windows)

    monkeypatch.setattr(Scorer, "_score", count)
    checkpoint = loaded(tmp_path)
    climbed = ladder(checkpoint, 64, batch_size=batch_size)
    assert len({(w.ids, w.targets, w.start) for w in scored}) == len(scored)
    rungs = climbed.rungs
    assert sum(rung.new_windows for rung in rungs) == len(scored)
    assert rungs[0].new_windows == rungs[0].windows
    # One window more holds the tail; only the pages' last windows are filled backwards.
    assert (rungs[2].new_windows, rungs[2].windows) == (1, rungs[1].windows + 1)
    assert 0 < rungs[5].new_windows <= len(CORPUS.pages)
    assert (rungs[6].new_windows, rungs[6].measured) == (0, False)
    alone = ladder(loaded(tmp_path), 64)
    assert values(climbed) == pytest.approx(values(alone), rel=1e-6)


def test_a_step_that_changes_nothing(tmp_path: Path) -> None:
    """Pages shorter than a window fill nothing; a text of whole windows has no tail."""
    checkpoint = loaded(tmp_path)
    wide = ladder(checkpoint, 1024)
    fill = wide.rungs[5]
    assert (fill.after, fill.log_change, fill.share) == ("filled backwards", 0, 0)
    assert fill.new_windows == 0
    pages = [wikitext_detokenizer({"page": page}) for page in CORPUS.pages]
    count = len(checkpoint.tokenizer("\n".join(pages)).input_ids)
    window = next(n for n in range(10, count) if count % n == 0)
    tail = ladder(checkpoint, window).rungs[2]
    assert (tail.after, tail.log_change, tail.new_windows) == ("kept", 0, 0)


# ------------------------------------------------------------------------ other methods


def register(
    monkeypatch: pytest.MonkeyPatch, method: str, how: Cut
) -> type[CutProtocol]:
    class Other(CutProtocol):
        name = method
        cut = how

    monkeypatch.setitem(PROTOCOLS._own, method, Other())
    monkeypatch.setitem(PROTOCOLS._loaded, method, Other())
    return Other


def test_a_method_that_keeps_the_tail_and_means_windows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    register(monkeypatch, "other", Cut(tail="kept", mean="windows"))
    checkpoint = loaded(tmp_path)
    climbed = ladder(checkpoint, 100, goal="other")
    model, ids = (
        checkpoint.model,
        checkpoint.tokenizer("\n\n".join(CORPUS.rows)).input_ids,
    )
    reads = [chopped(ids, 100, tail=tail) for tail in (False, True)]
    expected = [math.exp(total / count) for total, count in
                (mean_loss(model, read) for read in reads)]  # fmt: skip
    means = [
        total / count for total, count in (mean_loss(model, [r]) for r in reads[1])
    ]
    expected.append(math.exp(sum(means) / len(means)))
    assert [rung.changed for rung in climbed.rungs] == [None, "tail", "mean"]
    assert values(climbed) == pytest.approx(expected, rel=1e-6)


def test_a_method_that_scores_second_halves_behind_bos(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    how = Cut(text="file", first="BOS in its place", scored="second half")
    register(monkeypatch, "other", how)
    checkpoint = loaded(tmp_path)
    climbed = ladder(checkpoint, 100, goal="other")
    model, tokenizer = checkpoint.model, checkpoint.tokenizer
    raw = "".join(row or " \n" for row in CORPUS.rows).removesuffix("\n")
    rows, file = tokenizer("\n\n".join(CORPUS.rows)).input_ids, tokenizer(raw).input_ids
    chunks = [file[i : i + 100] for i in range(0, len(file) - 99, 100)]
    bos = tokenizer.bos_token_id
    rungs: list[list[Read]] = [
        chopped(rows, 100, tail=False),
        chopped(file, 100, tail=False),
        [(chunk, chunk[51:], 50) for chunk in chunks],
        [([bos, *chunk[1:]], chunk[51:], 50) for chunk in chunks],
    ]
    sums = (mean_loss(model, rung) for rung in rungs)
    assert [rung.changed for rung in climbed.rungs] == [None, "text", "scored", "first"]
    assert values(climbed) == pytest.approx(
        [math.exp(total / count) for total, count in sums], rel=1e-6
    )


def test_two_methods_with_one_number(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    register(monkeypatch, "other", Cut(tail="kept"))
    checkpoint = loaded(tmp_path)
    count = len(checkpoint.tokenizer("\n\n".join(CORPUS.rows)).input_ids)
    window = next(n for n in range(10, count) if count % n == 0)
    climbed = ladder(checkpoint, window, goal="other")
    assert climbed.gap == 0
    assert [(rung.log_change, rung.share) for rung in climbed.rungs] == [(0, None)] * 2


def test_a_method_that_is_not_its_cut_is_refused_before_anything_is_scored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    liar = register(monkeypatch, "other", Cut(tail="kept"))
    honest = liar.windows
    monkeypatch.setattr(liar, "windows", lambda *args: honest(*args)[:-1])
    told: list[int] = []
    with pytest.raises(MeasurementError) as caught:
        ladder(loaded(tmp_path), 64, goal="other", progress=lambda *a: told.append(1))
    assert str(caught.value) == (
        "other/mine:64: the method's windows are not those of the cut that it says it "
        "is, so no ladder ends at its number"
    )
    assert told == []


def test_a_ladder_that_does_not_end_at_the_methods_number_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    liar = register(monkeypatch, "other", Cut(tail="kept"))
    monkeypatch.setattr(liar, "recompute", lambda *args: {"token_perplexity": 2.0})
    with pytest.raises(
        MeasurementError,
        match=r"^other/mine:64: the ladder ends at \d+\.\d+ and the method itself says "
        r"2\.0; please report this$",
    ):
        ladder(loaded(tmp_path), 64, goal="other")


# ---------------------------------------------------------------------- limits and text


def test_a_limit_cuts_the_text_of_both_ends(tmp_path: Path) -> None:
    checkpoint = loaded(tmp_path)
    shorter = CORPUS.first_pages(2)
    # A page ends where the next heading is, behind a blank line.
    assert shorter.rows == (*make_rows(2), "")
    climbed = ladder(checkpoint, 32, corpus=shorter, limit=2)
    assert (climbed.limit, climbed.pages) == (2, 2)
    model, tokenizer = checkpoint.model, checkpoint.tokenizer
    losses = wanda_window_losses(model, tokenizer, shorter.rows, 32)
    assert values(climbed)[0] == pytest.approx(wanda_perplexity(losses, 32), rel=1e-6)
    first = measure_loaded(
        checkpoint, Key.parse("lm-eval/wikitext+mine:32:first2"), lambda _: CORPUS
    )
    assert values(climbed)[-1] == first.metrics["word_perplexity"]


def test_texts_and_windows_that_do_not_fit(tmp_path: Path) -> None:
    checkpoint = loaded(tmp_path)
    short = Corpus.from_documents("short", ["A few words."])
    with pytest.raises(CorpusError) as caught:
        ladder(checkpoint, 64, corpus=short)
    assert str(caught.value) == (
        "the start of the ladder: the text short is shorter than one window of 64 "
        "tokens; choose a shorter window or a longer text"
    )
    with pytest.raises(MeasurementError, match="longer than the 2048 positions"):
        ladder(checkpoint, 2049)
    checkpoint.tokenizer.bos_token = checkpoint.tokenizer.eos_token = None
    with pytest.raises(UsageError, match="neither a BOS nor an EOS token"):
        ladder(checkpoint, 64)


# ----------------------------------------------------------------------------- journals


def store(checkpoint: Loaded, folder: Path, *, stop_at: int | None = None) -> Store:
    @contextmanager
    def watch(label: str, **_: object) -> Iterator[Progress]:
        def progress(done: int, total: int, mean: float) -> None:
            if stop_at is not None and done >= stop_at:
                raise KeyboardInterrupt

        yield progress

    return Store(
        {"it": Target("it", "tiny")},
        load=lambda _: checkpoint,
        open_corpus=lambda _: CORPUS,
        watch=watch,
        journals=Journals(folder),
    )


ENDS = Key.parse("wanda/mine:64"), Key.parse("lm-eval/wikitext+mine:64")


def recorded(folder: Path) -> list[int]:
    """Indices of all windows in the journals."""
    lines = (line for file in folder.glob("*.jsonl") for line in
             file.read_text().splitlines()[1:])  # fmt: skip
    return [window[0] for line in lines for window in json.loads(line[9:])["windows"]]


def test_a_run_that_was_stopped_goes_on(tmp_path: Path) -> None:
    checkpoint, folder = loaded(tmp_path), tmp_path / "journal"
    plain = ladder(checkpoint, 64)
    total = sum(rung.new_windows for rung in plain.rungs)
    stop = plain.rungs[0].new_windows + 3
    with pytest.raises(KeyboardInterrupt):
        store(checkpoint, folder, stop_at=stop).ladder("it", *ENDS)
    assert recorded(folder) == list(range(stop))
    went_on = store(checkpoint, folder).ladder("it", *ENDS)
    assert recorded(folder) == list(range(total))
    assert [rung.perplexity for rung in went_on.rungs] == values(plain)
    (notice,) = went_on.notices
    assert notice.startswith(
        f"it wanda/mine:64 to lm-eval/wikitext+mine:64: {stop} of {total} windows were "
        "scored already, the last at "
    )


def test_a_loss_that_is_no_number_names_rung_and_window(tmp_path: Path) -> None:
    checkpoint, folder = loaded(tmp_path, bos=False), tmp_path / "journal"
    plain = ladder(checkpoint, 64)
    # Only behind a prefix is BOS ever read.
    with torch.no_grad():
        checkpoint.model.get_input_embeddings().weight[0] = math.nan
    with pytest.raises(InvalidLossError) as caught:
        store(checkpoint, folder).ladder("it", *ENDS)
    windows = plain.rungs[4].windows
    assert str(caught.value) == (
        f"step 4 (first: as it is -> prefix): the loss of window 1 of {windows} "
        "(page 1) is nan"
    )
    assert recorded(folder) == list(range(sum(r.new_windows for r in plain.rungs[:4])))


@pytest.mark.parametrize("method", ["strided", "llama-cpp", "lora-ft", "gptq", "vllm"])
def test_other_methods_end_at_their_own_numbers(tmp_path: Path, method: str) -> None:
    checkpoint = loaded(tmp_path)
    climbed = ladder(checkpoint, 64, start=method)
    own = [
        measure_loaded(checkpoint, Key.parse(key), lambda _: CORPUS).metrics[metric]
        for key, metric in (
            (climbed.start, "token_perplexity"),
            ("lm-eval/wikitext+mine:64", "word_perplexity"),
        )
    ]
    assert [values(climbed)[0], values(climbed)[-1]] == own
