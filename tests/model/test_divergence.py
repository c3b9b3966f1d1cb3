"""KL divergence and agreement against full logits of both models, written out."""

from __future__ import annotations

import errno
import gc
import math
import shutil
import tempfile
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from pytest_pplguard import divergence
from pytest_pplguard.checkpoints import Loaded, load, locate
from pytest_pplguard.corpora import Corpus
from pytest_pplguard.divergence import kl_divergence
from pytest_pplguard.errors import (
    InvalidLossError,
    MeasurementError,
    PplguardError,
    UsageError,
)
from pytest_pplguard.measure import Side, Store, measure_loaded
from pytest_pplguard.options import Target
from pytest_pplguard.planning import CHUNK_BYTES
from pytest_pplguard.scoring import Progress, scorer
from pytest_pplguard.values import Key, Measurement
from tests.model.tiny import build_tokenizer, save_tiny

TEXT = "The quick brown fox jumps over the lazy dog, and she said that it was good. "
CORPUS = Corpus.from_wikitext_rows("mine", [TEXT * 40])
KEY = Key.parse("kl/mine:32:first6")


class Room:
    """A store over named models, and what was loaded and shown."""

    def __init__(self, **models: Loaded | Path) -> None:
        self.models = models
        self.loads: list[str] = []
        self.alive: weakref.WeakSet[Any] = weakref.WeakSet()
        self.most_alive = 0
        self.progress: list[tuple[str, int, int, float]] = []
        targets = {name: Target(name=name, spec=name) for name in models}
        self.store = Store(
            targets, load=self._load, open_corpus=lambda _: CORPUS, watch=self._watch
        )

    def _load(self, target: Target) -> Loaded:
        self.loads.append(target.name)
        model = self.models[target.name]
        if isinstance(model, Path):
            gc.collect()
            model = load(locate(str(model)), device="cpu", dtype="float32")
            self.alive.add(model.model)
            self.most_alive = max(self.most_alive, len(self.alive))
        return model

    @contextmanager
    def _watch(self, label: str, **_: object) -> Iterator[Progress]:
        yield lambda *call: self.progress.append((label, *call))

    def measure(
        self, name: str = "model", key: Key = KEY, reference: str = "reference"
    ) -> Measurement:
        return self.store.measurement(name, key, reference=reference)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("models")


def saved(folder: Path, arch: str, seed: int = 0, **options: Any) -> Path:
    """A tiny checkpoint; those of one architecture differ a little by their seed."""
    path = folder / f"{arch}-{seed}-{'-'.join(map(str, options.values()))}"
    return path if path.exists() else save_tiny(path, arch, seed=seed, **options)


def in_memory(path: Path, dtype: str = "float32") -> Loaded:
    return load(locate(str(path)), device="cpu", dtype=dtype)


def windows_of(path: Path, length: int, count: int) -> torch.Tensor:
    """[count x length] token ids, as Wanda cuts them: ``lib/data.py``."""
    from transformers import AutoTokenizer

    text = "\n\n".join(CORPUS.rows)
    ids = AutoTokenizer.from_pretrained(path)(text, return_tensors="pt").input_ids
    cut: torch.Tensor = ids[0, : count * length].reshape(count, length)
    return cut


def full_log_probabilities(path: Path, ids: torch.Tensor) -> torch.Tensor:
    """[windows x scored positions x vocabulary], in float64."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(path).eval()
    with torch.no_grad():
        logits = model(input_ids=ids).logits[:, :-1].double()
    log: torch.Tensor = torch.nn.functional.log_softmax(logits, dim=-1)
    return log


@pytest.mark.parametrize("chunk", [3, 10**6])
@pytest.mark.parametrize(
    ("reference", "model"),
    [("llama", "llama"), ("gemma2", "gemma2"), ("gemma2", "llama"), ("opt", "cohere")],
)
def test_both_metrics_and_all_evidence_from_full_logits(
    folder: Path,
    reference: str,
    model: str,
    chunk: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(CHUNK_BYTES, "cpu", 4 * chunk * 8 * 320)
    there, here = saved(folder, reference), saved(folder, model, seed=1)
    result = Room(reference=there, model=here).measure()

    ids = windows_of(there, 32, 6)
    p, q = (full_log_probabilities(path, ids) for path in (there, here))
    divergences = torch.nn.functional.kl_div(
        q, p, reduction="none", log_target=True
    ).sum(dim=(1, 2))
    agreeing = (p.argmax(-1) == q.argmax(-1)).sum(dim=1)
    losses = [
        (-log.gather(-1, ids[:, 1:, None])).sum(dim=(1, 2)).tolist() for log in (q, p)
    ]
    assert result.windows == 6
    assert result.units == {"tokens": 6 * 31}
    for index, score in enumerate(result.evidence):
        assert score.kl_sum == pytest.approx(divergences[index].item(), rel=1e-5)
        assert score.top1 == agreeing[index]
        assert score.nll_sum == pytest.approx(losses[0][index], rel=1e-5)
        assert score.reference_nll == pytest.approx(losses[1][index], rel=1e-5)
        assert (score.scored, score.page) == (31, None)
    assert result.metrics == {
        "kl_divergence": pytest.approx(divergences.sum().item() / (6 * 31), rel=1e-5),
        "top1_agreement": agreeing.sum().item() / (6 * 31),
    }
    assert result.metrics["kl_divergence"] > 0.1
    assert result.protocol["divisor"] == "scored tokens"
    assert result.environment["reference_dtype"] == "float32"
    fall_backs = [note.partition(":")[0] for note in result.notices]
    assert fall_backs == [
        name
        for name, arch in (("reference", reference), ("model", model))
        if arch in ("gemma2", "cohere")
    ]


@pytest.mark.parametrize("arch", ["llama", "gemma2"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_model_and_its_copy_are_not_apart(
    folder: Path, arch: str, dtype: str
) -> None:
    """Exactly, and whether it is the same name or another folder."""
    path = saved(folder, arch)
    one, other = (in_memory(path, dtype) for _ in range(2))
    room = Room(one=one, other=other)
    for name, reference in (("one", "one"), ("other", "one")):
        result = room.measure(name, reference=reference)
        assert result.metrics == {"kl_divergence": 0.0, "top1_agreement": 1.0}
        assert [score.nll_sum for score in result.evidence] == [
            score.reference_nll for score in result.evidence
        ]


@pytest.mark.parametrize("arch", ["llama", "gemma2"])
@pytest.mark.parametrize(("fitting", "rounds"), [(1, 6), (4, 2), (5, 2), (0, 6)])
def test_rounds_give_the_bits_of_one(
    folder: Path,
    arch: str,
    fitting: int,
    rounds: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    there, here = (in_memory(saved(folder, arch, seed=seed)) for seed in (0, 1))
    whole = Room(reference=there, model=here)
    expected = whole.measure()
    assert whole.loads == ["reference", "model"]

    width = {"llama": 32, "gemma2": 320}[arch]
    monkeypatch.setattr(divergence, "BUFFER_BYTES", fitting * 31 * width * 4 + 1)
    room = Room(reference=there, model=here)
    result = room.measure()
    assert result.evidence == expected.evidence
    assert result.metrics == expected.metrics
    assert room.loads == ["reference", "model"] * rounds


def test_one_model_is_in_memory_at_a_time_in_rounds(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    there, here = (saved(folder, "llama", seed=seed) for seed in (0, 1))
    monkeypatch.setattr(divergence, "BUFFER_BYTES", 4 * 31 * 32 * 4)
    room = Room(reference=there, model=here)
    room.measure()
    assert room.loads == ["reference", "model"] * 2
    assert room.most_alive == 1


def test_one_model_is_in_memory_at_a_time_and_nothing_is_loaded_twice(
    folder: Path,
) -> None:
    a, b, c = (saved(folder, "llama", seed=seed) for seed in range(3))
    room = Room(reference=a, b=b, c=c)
    first = room.measure("b")
    room.measure("b")
    room.measure("c")
    assert room.loads == ["reference", "b", "c"]
    assert room.most_alive == 1
    assert room.store.resident == "c"
    again = Room(reference=a, b=b).measure("b")
    assert again.evidence == first.evidence
    # What the reference said by another key is no use.
    room.measure("c", Key.parse("kl/mine:16:first2"))
    assert room.loads == ["reference", "b", "c", "reference", "c"]


def test_a_reference_that_was_lent_is_not_trusted_to_stay(folder: Path) -> None:
    """Pruning code changes ``lm_head`` in place; what was kept must not follow."""
    a, b, c = (saved(folder, "llama", seed=seed) for seed in range(3))
    room = Room(reference=a, b=b, c=c)
    expected = room.measure("c").evidence
    room = Room(reference=a, b=b, c=c)
    model = room.store.lend("reference").model
    room.measure("b")
    model.lm_head.weight.data.zero_()
    assert room.measure("c").evidence == expected


@pytest.mark.parametrize("batch_size", [2, 4, 100])
def test_batches(folder: Path, batch_size: int) -> None:
    there, here = (in_memory(saved(folder, "llama", seed=seed)) for seed in (0, 1))
    expected = Room(reference=there, model=here).measure()
    room = Room(reference=there, model=here)
    room.store._batch_size = batch_size
    result = room.measure()
    for one, other in zip(expected.evidence, result.evidence, strict=True):
        assert other.kl_sum == pytest.approx(one.kl_sum, rel=1e-5)
        assert other.top1 == one.top1


def test_a_model_in_memory(folder: Path) -> None:
    there, here = saved(folder, "llama"), saved(folder, "llama", seed=1)
    expected = Room(reference=there, model=here).measure()
    own = in_memory(here)
    room = Room(reference=there)
    result = room.store.divergence(Side("mine", lambda: own), KEY, "reference")
    assert result.evidence == expected.evidence


def test_progress_of_both(folder: Path) -> None:
    room = Room(
        reference=in_memory(saved(folder, "llama")),
        model=in_memory(saved(folder, "llama", seed=1)),
    )
    result = room.measure()
    steps = [(label, done, total) for label, done, total, _ in room.progress]
    assert steps == [
        (label, done, 6)
        for label in (f"reference {KEY}, the reference", f"model {KEY}")
        for done in range(7)
    ]
    assert all(math.isnan(call[-1]) for call in room.progress[1:7])
    losses = math.fsum(score.nll_sum for score in result.evidence)
    assert room.progress[-1][-1] == pytest.approx(losses / (6 * 31))


def test_no_logits_of_a_whole_window_are_made(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(CHUNK_BYTES, "cpu", 4 * 8 * 4 * 320)
    monkeypatch.setattr(scorer, "_PROOF_POSITIONS", 4)
    models = {}
    positions: list[int] = []
    for seed, name in enumerate(("reference", "model")):
        models[name] = in_memory(saved(folder, "llama", seed=seed))
        models[name].model.lm_head.register_forward_hook(
            lambda module, args, output: positions.append(output.numel() // 320)
        )
    Room(**models).measure()
    assert max(positions) == 4


# ----------------------------------------------------------------- what does not fit


def test_vocabularies_that_differ(folder: Path) -> None:
    there, here = saved(folder, "llama"), folder / "wider"
    save_tiny(here, "llama", vocab=330)
    (here / "tokenizer.json").write_bytes((there / "tokenizer.json").read_bytes())
    with pytest.raises(MeasurementError) as caught:
        Room(reference=there, model=here).measure()
    assert str(caught.value) == (
        "model has logits for 330 tokens and the reference reference for 320: a "
        "divergence needs one vocabulary"
    )


def test_tokenizers_that_differ(folder: Path) -> None:
    there, here = saved(folder, "llama"), saved(folder, "llama", bos=False)
    room = Room(reference=there, model=here)
    for _ in range(2):  # the same error every time
        with pytest.raises(MeasurementError) as caught:
            room.measure()
        assert str(caught.value) == (
            "model and its reference reference cut the text into different token "
            "windows: their tokenizers differ, so there is no divergence"
        )
    assert room.loads == ["reference", "model"]


class Fixed(nn.Module):
    """Gives the same logits everywhere; in the window of a number, others."""

    def __init__(
        self, logits: list[float], *, other: list[float] | None = None, at: int = 0
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(logits))
        self.other, self.at, self.calls = other, at, 0

    def forward(self, input_ids: torch.Tensor) -> SimpleNamespace:
        self.calls += 1
        logits: torch.Tensor = self.weight
        if self.other is not None and self.calls == self.at:
            logits = torch.tensor(self.other)
        return SimpleNamespace(logits=logits.expand(*input_ids.shape, len(logits)))


class Bits:
    """One token a byte: its lowest bit."""

    bos_token_id = None
    eos_token_id = 0

    def __call__(self, text: str, **_: Any) -> SimpleNamespace:
        return SimpleNamespace(input_ids=[byte % 2 for byte in text.encode()])


def fixed(logits: list[float], **options: Any) -> Loaded:
    return Loaded.of(Fixed(logits, **options), Bits())


INF, NAN = math.inf, math.nan


@pytest.mark.parametrize(
    ("there", "here", "message"),
    [
        (
            {},
            {"other": [0.0, NAN, 0.0]},
            "the loss of window 3 of 6 is nan",
        ),
        (
            {},
            {"other": [0.0, INF, 0.0]},
            "the loss of window 3 of 6 is nan",
        ),
        (
            {"other": [NAN, 0.0, 0.0]},
            {},
            "the output of the reference reference for window 3 of 6 is nan",
        ),
        (
            {"other": [INF, 0.0, 0.0]},
            {},
            "the loss of the reference reference for window 3 of 6 is nan",
        ),
        (
            {},
            {"other": [0.0, 0.0, -INF]},
            "the divergence from reference of window 3 of 6 is inf: the model gives no "
            "probability at all to a token that the reference does not rule out",
        ),
    ],
)
def test_what_is_not_finite_names_the_window(
    there: dict[str, Any], here: dict[str, Any], message: str
) -> None:
    plain = [0.0, 1.0, 2.0]
    room = Room(reference=fixed(plain, at=3, **there), model=fixed(plain, at=3, **here))
    with pytest.raises(InvalidLossError) as caught:
        room.measure()
    assert str(caught.value) == message


def test_a_token_that_both_rule_out_adds_nothing() -> None:
    """Or the reference alone; the expected values by hand, of two tokens that are."""
    reference = fixed([0.0, math.log(3), -INF])
    both = Room(reference=reference, model=fixed([math.log(3), 0.0, -INF])).measure()
    expected = 0.25 * math.log(0.25 / 0.75) + 0.75 * math.log(0.75 / 0.25)
    assert both.metrics == {
        "kl_divergence": pytest.approx(expected, rel=1e-6),
        "top1_agreement": 0.0,
    }
    alone = Room(reference=reference, model=fixed([0.0, math.log(2), 0.0])).measure()
    expected = 0.25 * math.log(0.25 / 0.25) + 0.75 * math.log(0.75 / 0.5)
    assert alone.metrics == {
        "kl_divergence": pytest.approx(expected, rel=1e-6),
        "top1_agreement": 1.0,
    }


def test_a_divergence_is_never_rounded_below_nothing() -> None:
    generator = torch.Generator().manual_seed(3)
    logits = torch.randn(2000, 50, generator=generator)
    near = logits + 1e-7 * torch.randn(2000, 50, generator=generator)
    assert kl_divergence(logits, near).min() >= 0.0
    assert kl_divergence(logits, near).max() < 1e-12


# ------------------------------------------------------------------------- the buffer


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Every temporary file that the buffer has opened."""
    files: list[Any] = []
    make = tempfile.TemporaryFile

    def remember() -> Any:
        files.append(make())
        return files[-1]

    monkeypatch.setattr(tempfile, "TemporaryFile", remember)
    return files


def test_the_buffer_is_gone_with_what_it_was_for(
    folder: Path, opened: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    there, here = (in_memory(saved(folder, "llama", seed=seed)) for seed in (0, 1))
    monkeypatch.setattr(divergence, "BUFFER_BYTES", 2 * 31 * 32 * 4)
    room = Room(reference=there, model=here)
    room.measure()
    assert [file.closed for file in opened] == [True, True, False]
    room.store.forget_reference()
    assert all(file.closed for file in opened)


def test_the_buffer_is_gone_after_an_error(
    folder: Path, opened: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    plain = [0.0, 1.0, 2.0]
    room = Room(reference=fixed(plain, other=[NAN] * 3, at=3), model=fixed(plain))
    with pytest.raises(InvalidLossError):
        room.measure()
    (file,) = opened
    assert file.closed
    room = Room(reference=fixed(plain), model=fixed(plain, other=[NAN] * 3, at=3))
    with pytest.raises(InvalidLossError):
        room.measure()
    room.store.forget_reference()
    assert opened[-1].closed
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_an_error_with_a_way_out(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Full:
        def write(self, data: bytes) -> int:
            raise OSError(errno.ENOSPC, "No space left on device")

        def close(self) -> None:
            self.closed = True

    full = Full()
    monkeypatch.setattr(tempfile, "TemporaryFile", lambda: full)
    room = Room(reference=fixed([0.0, 1.0]), model=fixed([0.0, 1.0]))
    with pytest.raises(MeasurementError) as caught:
        room.measure()
    assert str(caught.value) == (
        "what the reference says cannot be kept in a temporary file: No space left on "
        "device: make room, or set TMPDIR to a folder with room for 8 GB"
    )
    assert full.closed


def test_half_of_what_is_free_stays_free(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    there, here = (in_memory(saved(folder, "llama", seed=seed)) for seed in (0, 1))
    free = 2 * 3 * 31 * 32 * 4
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=free))
    room = Room(reference=there, model=here)
    room.measure()
    assert room.loads == ["reference", "model"] * 2


# ------------------------------------------------------------------------------ usage


def test_it_is_not_measured_alone() -> None:
    with pytest.raises(UsageError, match=r"key kl/mine:32:first6: needs a reference"):
        measure_loaded(fixed([0.0, 1.0]), KEY, lambda _: CORPUS)


@pytest.mark.parametrize("which", ["reference", "model"])
def test_a_window_longer_than_either_was_made_for(folder: Path, which: str) -> None:
    paths = {"reference": saved(folder, "llama"), "model": saved(folder, "llama", 1)}
    paths[which] = saved(folder, "llama", seed=2, max_position_embeddings=16)
    with pytest.raises(PplguardError, match="longer than the 16 positions"):
        Room(**paths).measure()


def test_the_tokenizer_of_the_test_is_that_of_the_models() -> None:
    """So that the text makes the windows that the tests count on."""
    assert len(build_tokenizer().encode(TEXT * 40).ids) > 6 * 32
