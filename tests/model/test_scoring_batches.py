"""Windows that are read together: the same numbers, and memory that ends."""

from __future__ import annotations

import gc
import math
import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from pytest_pplguard.errors import DeviceError, InvalidLossError
from pytest_pplguard.scoring import Scorer, batches, memory, scorer
from pytest_pplguard.scoring.batching import Growth
from pytest_pplguard.values import Window, WindowScore
from tests.model.tiny import build_model

VOCAB = 320
LENGTHS = (48, 47, 45, 44, 48, 30, 29, 28, 28, 27, 12, 11, 5, 48, 3, 47)


def windows(lengths: Sequence[int] = LENGTHS, *, start: int = 0) -> list[Window]:
    generator = torch.Generator().manual_seed(5)
    cut = []
    for page, length in enumerate(lengths):
        ids = torch.randint(3, VOCAB, (length,), generator=generator).tolist()
        cut.append(Window(tuple(ids), tuple(ids[start + 1 :]), start, page))
    return cut


def nats(model: nn.Module, cut: Sequence[Window]) -> list[float]:
    """By the textbook: each window alone, whole logits, cross entropy in float64."""
    found = []
    for window in cut:
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([window.ids])).logits[0].double()
        scored = logits[window.start : window.start + len(window.targets)]
        targets = torch.tensor(window.targets)
        losses = nn.functional.cross_entropy(scored, targets, reduction="none")
        found.append(losses.sum().item())
    return found


@contextmanager
def counted(model: nn.Module) -> Iterator[list[tuple[int, ...]]]:
    """Shapes of what a model's embedding reads."""
    shapes: list[tuple[int, ...]] = []
    embedding: Any = model.get_input_embeddings()  # type: ignore[operator]
    handle = embedding.register_forward_hook(
        lambda module, args, output: shapes.append(tuple(args[0].shape))
    )
    try:
        yield shapes
    finally:
        handle.remove()


def recurrent(arch: str) -> nn.Module:
    """A model that carries a state from token to token."""
    from transformers import AutoConfig, AutoModelForCausalLM

    sizes = {
        "mamba": {"state_size": 4, "num_hidden_layers": 2, "hidden_size": 32},
        "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64},
    }
    config = AutoConfig.for_model(
        arch,
        vocab_size=VOCAB,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=None,
        initializer_range=0.4,
        **sizes[arch],
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model: nn.Module = AutoModelForCausalLM.from_config(config).eval()
    return model


# ------------------------------------------------------------------ the same numbers


@pytest.mark.parametrize("batch_size", [2, 5, 100, "auto"])
@pytest.mark.parametrize(
    "arch", ["llama", "opt", "gemma2", "mixtral", "gpt_neox", "gpt2", "mamba"]
)
def test_packed_windows_have_the_losses_that_each_has_alone(
    arch: str, batch_size: Any
) -> None:
    known = arch in ("gpt2", "mamba")
    model = recurrent(arch) if known else build_model(arch, vocab=VOCAB)
    cut = windows(start=1)
    expected = nats(model, cut)
    with counted(model) as shapes:
        reader = Scorer(model, batch_size=batch_size)
        scores = reader(cut)
    for window, score, value in zip(cut, scores, expected, strict=True):
        assert score.nll_sum == pytest.approx(value, rel=2e-6)
        assert (score.scored, score.page) == (len(window.targets), window.page)
    total, whole = math.fsum(s.nll_sum for s in scores), math.fsum(expected)
    assert total == pytest.approx(whole, rel=1e-6)
    assert not any("equal length" in notice for notice in reader.notices)
    assert max(shape[0] for shape in shapes) > 1


class Leaking(nn.Module):
    """Sees what comes after a position, as an encoder does."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCAB, VOCAB)

    def get_input_embeddings(self) -> nn.Module:
        return self.embed

    def forward(self, input_ids: torch.Tensor) -> Any:
        states = self.embed(input_ids)
        return SimpleNamespace(logits=states + states.mean(1, keepdim=True))


@pytest.mark.parametrize("batch_size", [4, "auto"])
def test_a_model_that_sees_padding_reads_equal_lengths_only(batch_size: Any) -> None:
    model = Leaking()
    reader = Scorer(model, batch_size=batch_size)
    scores = reader(windows())
    expected = nats(model, windows())
    assert [score.nll_sum for score in scores] == pytest.approx(expected, rel=1e-6)
    assert reader.notices == [
        "only windows of equal length are read together: padding changes this model's "
        "losses (slower, same numbers)"
    ]


@pytest.mark.parametrize("batch_size", [3, "auto"])
def test_rotary_positions_that_depend_on_the_length_are_read_as_one_by_one(
    batch_size: Any,
) -> None:
    """They also depend on what was read before."""

    def build() -> nn.Module:
        scaling = {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 1e4}
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model: nn.Module = build_model(
                "llama", VOCAB, rope_parameters=scaling, max_position_embeddings=32
            )
            return model

    cut = windows((40, 40, 40, 40, 40, 40, 44, 40, 40, 48, 47, 47, 47, 12, 40))
    model = build()
    with counted(model) as shapes:
        scores = Scorer(model, batch_size=batch_size)(cut)
    expected = nats(build(), cut)
    assert [score.nll_sum for score in scores] == pytest.approx(expected, rel=2e-6)
    assert max(count for count, _ in shapes) > 1


def test_in_half_precision_rounding_is_allowed_for() -> None:
    model = build_model("llama", vocab=VOCAB).to(torch.bfloat16)
    reader = Scorer(model, batch_size=6)
    scores = reader(windows())
    alone = Scorer(model)(windows())
    for one, other in zip(scores, alone, strict=True):
        assert one.nll_sum == pytest.approx(other.nll_sum, rel=2e-2)
    assert reader.notices == []


def test_one_nan_in_a_packed_batch_names_its_window() -> None:
    model = build_model("llama", vocab=VOCAB)
    with torch.no_grad():
        model.model.embed_tokens.weight[7] = float("nan")
    cut = [
        Window((9,) * length, (9,) * (length - 1), 0, page)
        for page, length in enumerate((20, 19, 20))
    ]
    cut[1] = Window((9, 7, *cut[1].ids[2:]), cut[1].targets, 0, 1)
    with pytest.raises(InvalidLossError) as caught:
        Scorer(model, batch_size=3)(cut)
    assert str(caught.value) == "the loss of window 2 of 3 (page 2) is nan"


# ------------------------------------------------------------------- how they are cut


@pytest.mark.parametrize("size", [2, 3, 7, 100])
@pytest.mark.parametrize("order", [None, (*range(8, 16), *range(7, -1, -1))])
def test_every_window_is_in_one_batch_and_little_is_padding(
    size: int, order: Sequence[int] | None
) -> None:
    cut = list(batches(windows(), size, order, "padded"))
    assert sorted(index for batch in cut for index in batch) == list(range(16))
    for batch in cut:
        assert len(batch) <= size
        longest = max(LENGTHS[index] for index in batch)
        padding = sum(longest - LENGTHS[index] for index in batch)
        assert 8 * padding <= longest * len(batch)
    if order is not None:
        # The earliest window that is left is in the next batch.
        left = list(order)
        for batch in cut:
            assert left[0] in batch
            left = [index for index in left if index not in batch]


def test_without_waste_lengths_are_equal_and_the_text_is_in_order() -> None:
    cut = list(batches(windows((8, 5, 8, 8, 5, 8)), 3))
    assert cut == [[0, 2, 3], [5], [1, 4]]
    assert list(batches(windows((8, 5, 8)), 1)) == [[0], [1], [2]]


def test_an_order_of_equal_windows_is_kept() -> None:
    order = (4, 0, 3, 1, 2)
    cut = list(batches(windows((8,) * 5), 2, order, "padded"))
    assert cut == [[4, 0], [3, 1], [2]]


# ------------------------------------------------------------------- memory that ends


class Small(nn.Module):
    """Has memory for so many tokens, and takes so long for a batch."""

    def __init__(
        self, most: int, *, text: str = "CUDA out of memory.", clock: Any = None
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.linspace(-1, 1, VOCAB))
        self.most, self.text, self.clock = most, text, clock
        self.shapes: list[tuple[int, int]] = []

    def forward(self, input_ids: torch.Tensor) -> Any:
        count, length = input_ids.shape
        self.shapes.append((count, length))
        if count * length > self.most:
            raise torch.OutOfMemoryError(self.text)
        if self.clock is not None:
            self.clock.now += self.clock.seconds(count * length)
        return SimpleNamespace(logits=self.weight.expand(count, length, VOCAB).clone())


class Clock:
    """Passes by what a batch costs: some seconds each, and some for each token."""

    def __init__(self, each: float, token: float) -> None:
        self.now, self.each, self.token = 0.0, each, token

    def __call__(self) -> float:
        return self.now

    def seconds(self, tokens: int) -> float:
        return self.each + self.token * tokens


class Kept:
    def __init__(self) -> None:
        self.finished: Mapping[int, WindowScore] = {}
        self.batches: list[list[int]] = []

    def add(self, scores: Mapping[int, WindowScore]) -> None:
        self.batches.append(list(scores))


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock(each=1.0, token=0.001)
    monkeypatch.setattr(scorer, "_clock", clock)
    monkeypatch.setattr(memory, "has_room", lambda taken: True)
    return clock


def test_auto_grows_backs_off_and_loses_no_window(clock: Clock) -> None:
    model, kept = Small(6 * 10, clock=clock), Kept()
    cut = windows((10,) * 60)
    scores = Scorer(model, batch_size="auto")(cut, kept)
    assert [count for count, _ in model.shapes] == [
        *(1, 1, 2, 1, 1, 2, 4, 4),  # the first two together are also read alone
        *(8, 4, 4, 4, 4, 4, 4, 4, 4, 4, 4, 4, 2),
    ]
    assert [index for batch in kept.batches for index in batch] == list(range(60))
    assert [score.nll_sum for score in scores] == pytest.approx(nats(Small(10), cut))


def test_auto_stops_growing_where_time_gains_nothing(clock: Clock) -> None:
    clock.each = 0.0
    model = Small(10**9, clock=clock)
    Scorer(model, batch_size="auto")(windows((10,) * 9))
    assert [count for count, _ in model.shapes] == [1, 1, 2, 1, 1, 2, 1, 1, 1]


def test_auto_asks_for_room_where_memory_has_no_error(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = Small(10**9, clock=clock)
    monkeypatch.setattr(memory, "has_room", lambda taken: len(model.shapes) < 6)
    Scorer(model, batch_size="auto")(windows((10,) * 10))
    assert [count for count, _ in model.shapes] == [1, 1, 2, 1, 1, 2, 2, 2]


def test_auto_shrinks_down_to_one_short_window(clock: Clock) -> None:
    class OneByOne(Small):
        def forward(self, input_ids: torch.Tensor) -> Any:
            if len(input_ids) > 1:
                self.shapes.append((len(input_ids), input_ids.shape[1]))
                raise torch.OutOfMemoryError(self.text)
            return super().forward(input_ids)

    model, cut = OneByOne(10**9, clock=clock), windows((3, 12, 3, 3, 3))
    scores = Scorer(model, batch_size="auto")(cut)
    assert [score.nll_sum for score in scores] == pytest.approx(nats(Small(12), cut))
    assert [count for count, _ in model.shapes] == [1, 4, 2, 1, 1, 1, 1]


def test_what_did_not_fit_is_let_go_of_before_less_is_tried(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without waiting for Python to look for it: an allocator cannot."""

    class Holding(Small):
        def forward(self, input_ids: torch.Tensor) -> Any:
            states = torch.zeros(len(input_ids), 100)
            held.append(weakref.ref(states))
            return super().forward(input_ids)

    held: list[weakref.ref[torch.Tensor]] = []
    alive: list[bool] = []
    give_back = memory.give_back
    monkeypatch.setattr(
        torch.accelerator,
        "empty_cache",
        lambda: alive.append(held[-1]() is not None),
    )
    monkeypatch.setattr(
        memory, "give_back", lambda device: give_back(torch.device("cuda"))
    )
    gc.disable()
    try:
        Scorer(Holding(25, clock=clock), batch_size="auto")(windows((10,) * 16))
    finally:
        gc.enable()
    assert alive == [False]


def test_auto_goes_on_with_what_is_left_and_asks_to_stop(clock: Clock) -> None:
    kept = Kept()
    cut = windows((10,) * 8)
    known = Scorer(Small(10**9))(cut)
    kept.finished = {index: known[index] for index in (0, 3)}
    model = Small(10**9, clock=clock)
    scores = Scorer(model, batch_size="auto").until(
        cut, kept, order=(7, 0, 6, 5, 4, 3, 2, 1), stop=lambda found: len(found) >= 5
    )
    assert kept.batches == [[7], [6], [5, 4]]
    assert sorted(scores) == [0, 3, 4, 5, 6, 7]


def test_one_window_too_large_says_what_is_missing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(memory, "_left", lambda device: (2**30, 3 * 2**29))
    text = "CUDA out of memory. Tried to allocate 6.00 GiB. GPU 0 has a total of"
    with pytest.raises(DeviceError) as caught:
        Scorer(Small(5, text=text), batch_size="auto")(windows((10, 10, 10)))
    assert str(caught.value) == (
        "out of memory on cpu at window 1 of 3 (page 1) (10 tokens, float32): 6.00 GiB "
        "more were needed, 1.00 of 1.50 GiB are free; use a half-precision "
        "--ppl-dtype, a shorter window or another --ppl-device"
    )


def test_a_number_that_was_typed_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "_left", lambda device: None)
    kept = Kept()
    model = Small(20)
    with pytest.raises(DeviceError) as caught:
        Scorer(model, batch_size=3)(windows((10,) * 4), kept)
    assert str(caught.value) == (
        "out of memory on cpu at 3 windows at once (10 tokens each, float32); use "
        "--ppl-batch-size auto, which takes what fits, a half-precision --ppl-dtype or "
        "another --ppl-device"
    )
    assert kept.batches == []
    assert model.shapes == [(3, 10)]


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError(
            "DefaultCPUAllocator: can't allocate memory: you tried to "
            "allocate 80000 bytes. Error code 12"
        ),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling it"),
        RuntimeError("MPS backend out of memory (MPS allocated: 1 GB)"),
    ],
)
def test_what_else_says_that_memory_has_ended(error: Exception) -> None:
    class Full(Small):
        def forward(self, input_ids: torch.Tensor) -> Any:
            if len(input_ids) > 1:
                raise error
            return super().forward(input_ids)

    with pytest.raises(DeviceError, match="out of memory on cpu at 2 windows at once"):
        Scorer(Full(10**9), batch_size=2)(windows((10, 10)))


def test_growth_judges_full_batches_only() -> None:
    growth = Growth(100)
    for _ in range(5):
        growth.scored(60, 1.0)
    assert (growth.tokens, growth.settled) == (100, False)
    growth.scored(100, 9.0)
    growth.scored(100, 1.0)  # the fastest counts: the first warms up
    assert growth.tokens == 200
    growth.scored(200, 1.95)
    growth.scored(200, 1.95)
    assert (growth.tokens, growth.settled) == (100, True)


# --------------------------------------------------------------- what a machine has


def test_a_container_may_have_less_than_the_machine(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    limit, used = tmp_path / "memory.max", tmp_path / "memory.current"
    monkeypatch.setattr(memory, "_CGROUPS", ((str(limit), str(used)),))
    free = memory.available()
    assert free > 2**20
    limit.write_text("3000000\n")
    used.write_text("1000000\n")
    assert memory.available() == 2_000_000
    assert memory.has_room(500_000)
    assert not memory.has_room(500_001)
    limit.write_text("max\n")
    assert memory.available() > 2**20


def test_the_growth_of_a_process_is_seen() -> None:
    with memory.watching_peak(torch.device("cpu")) as peak:
        block = torch.ones(2**24)
        held = block.sum().item()
        import time

        time.sleep(10 * memory._SAMPLED_EVERY)
        del block
    assert held == 2**24
    assert 2**25 < peak[0] < 2**28
