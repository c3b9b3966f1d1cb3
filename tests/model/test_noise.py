"""``pplguard noise``: its rules as functions, and a run on a tiny model, in full."""

from __future__ import annotations

import json
import math
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from pytest_pplguard.checkpoints import Loaded
from pytest_pplguard.cli import noise
from pytest_pplguard.cli.measure import Wanted
from pytest_pplguard.cli.noise import (
    PLAN,
    Machine,
    Run,
    Settings,
    choose_limit,
    decimal,
    judge_noise,
    label,
    measure_noise,
    other_dtype,
    propose,
    varied,
)
from pytest_pplguard.errors import CheckpointError
from pytest_pplguard.measure import load_target, measure_loaded
from pytest_pplguard.options import JOURNAL_OFF, Options, Target
from pytest_pplguard.values import Measurement, WindowScore
from tests.model.originals import wanda_perplexity, wanda_window_losses
from tests.model.tiny import save_tiny

FIRST = Settings(threads=2, batch_size=1, attention="sdpa", dtype="float32")
CPU = Machine(device="cpu", cores=2, native_bfloat16=False)
GPU = Machine(device="cuda", cores=16, native_bfloat16=True)


# ---------------------------------------------------------------------------- the rules


@pytest.mark.parametrize(
    ("movement", "rel", "reason"),
    [
        (0.0, 1e-5, "nothing moved, and 0.00001 is the least that is proposed"),
        (
            2e-7,
            1e-5,
            "3 times the largest movement is 6.0e-07, and 0.00001 is the least that is "
            "proposed",
        ),
        (
            4e-6,
            2e-5,
            "3 times the largest movement is 1.2e-05, rounded up to 1, 2 or 5",
        ),
        (
            0.0007,
            0.005,
            "3 times the largest movement is 2.1e-03, rounded up to 1, 2 or 5",
        ),
        (0.4, 2.0, "3 times the largest movement is 1.2e+00, rounded up to 1, 2 or 5"),
    ],
)
def test_the_proposal(movement: float, rel: float, reason: str) -> None:
    assert propose(movement) == (rel, reason)


@pytest.mark.parametrize("power", range(-9, 1))
@pytest.mark.parametrize("digit", [1.0, 1.7, 3.4, 9.99])
def test_a_proposal_is_round_wide_enough_and_no_wider(power: int, digit: float) -> None:
    movement = digit * 10.0**power
    rel, _ = propose(movement)
    assert rel >= 3 * movement
    assert rel == 1e-5 or rel < 2.5 * 3 * movement + 1e-12
    text = decimal(rel)
    assert "e" not in text
    assert float(text) == rel
    assert text.strip("0.") in ("1", "2", "5")


def run(name: str, value: float, dtype: str = "float32", **more: float) -> Run:
    measured = Measurement(
        key="wanda/t:8",
        metrics={"token_perplexity": value, **more},
        units={},
        windows=1,
        windows_digest="",
        corpus_digest="",
        protocol={},
        evidence=(WindowScore(1.0, 7),),
        environment={},
        seconds=1.0,
    )
    settings = Settings(threads=1, batch_size=1, attention="sdpa", dtype=dtype)
    return Run(name, settings, measured)


def test_the_movement_is_between_any_two_runs_and_another_dtype_is_apart() -> None:
    """A baseline may be the lowest of them, and the next run the highest."""
    found = judge_noise(
        [
            run("first run", 8.0),
            run("a", 8.0),
            run("b", 8.004),
            run("c", 7.996),
            run("d", 8.2, dtype="bfloat16"),
        ]
    )
    assert found.movement == pytest.approx(8.004 / 7.996 - 1)
    assert found.between == ("b", "c")
    assert found.dtype_movement == pytest.approx(0.025)
    assert found.rel == 0.005  # 3.0015e-3, rounded up
    assert judge_noise([run("first run", 8.0), run("a", 8.0)]).dtype_movement is None


def test_the_metric_that_moves_most_decides() -> None:
    runs = [run("first run", 8.0, word=100.0), run("a", 8.0, word=101.0)]
    assert judge_noise(runs).movement == pytest.approx(0.01)


@pytest.mark.parametrize(
    ("parts", "first", "machine", "expected"),
    [
        ((), {}, CPU, {}),
        (("threads",), {}, CPU, {"threads": 1}),
        (("threads",), {"threads": 1}, CPU, {"threads": 2}),
        (("batch size",), {}, CPU, {"batch_size": 2}),
        (("batch size",), {"batch_size": 2}, CPU, {"batch_size": 4}),
        (("larger batch size",), {}, CPU, {"batch_size": 4}),
        (("larger batch size",), {"batch_size": 4}, CPU, {"batch_size": 1}),
        (("attention",), {}, CPU, {"attention": "eager"}),
        (("attention",), {"attention": "eager"}, CPU, {"attention": "sdpa"}),
        (("dtype",), {}, CPU, {"dtype": "float64"}),
        (
            ("attention", "threads"),
            {},
            CPU,
            {"attention": "eager", "threads": 1},
        ),
    ],
)
def test_what_a_variation_is(
    parts: tuple[str, ...],
    first: dict[str, Any],
    machine: Machine,
    expected: dict[str, Any],
) -> None:
    from msgspec.structs import replace

    start = replace(FIRST, **first)
    assert varied(parts, start, machine) == replace(start, **expected)


def test_what_cannot_be_varied_has_a_reason() -> None:
    one_core = Machine(device="cpu", cores=1, native_bfloat16=False)
    alone = Settings(threads=1, batch_size=1, attention="sdpa", dtype="float32")
    assert varied(("threads",), alone, one_core) == "this machine has one core"
    assert varied(("attention", "threads"), FIRST, GPU) == (
        "the CPU's threads compute nothing on cuda"
    )


@pytest.mark.parametrize(
    ("device", "native", "dtype", "other"),
    [
        ("cpu", False, "float32", "float64"),
        ("cpu", False, "bfloat16", "float32"),
        ("cpu", True, "float32", "bfloat16"),
        ("cuda", True, "float16", "bfloat16"),
        ("cuda", True, "bfloat16", "float16"),
        ("cuda", True, "float32", "bfloat16"),
        ("cuda", False, "float32", "float16"),
        ("cuda", False, "float16", "float32"),
        ("mps", False, "bfloat16", "float16"),
    ],
)
def test_another_dtype_is_one_that_the_device_computes(
    device: str, native: bool, dtype: str, other: str
) -> None:
    machine = Machine(device=device, cores=2, native_bfloat16=native)
    assert other_dtype(dtype, machine) == other


def test_no_two_variations_are_the_same() -> None:
    settings = [varied(parts, FIRST, CPU) for parts in PLAN]
    assert settings[0] == FIRST
    assert len(set(map(str, settings))) == len(PLAN)
    changed = ("threads", "batch size", "attention", "dtype", "larger batch size")
    assert tuple(parts[0] for parts in PLAN[1:6]) == changed


def test_names_of_variations() -> None:
    both = varied(("attention", "threads"), FIRST, CPU)
    assert isinstance(both, Settings)
    assert label(("attention", "threads"), both) == "attention eager, 1 thread"
    assert label((), FIRST) == "the same again"
    assert label(("threads", "batch size"), None) == ("other threads, other batch size")


@pytest.mark.parametrize(
    ("units", "affordable", "limit"),
    [
        (list(range(50)), 20, 20),
        (list(range(50)), 0, 8),  # few say little
        (list(range(50)), 50, None),
        (list(range(8)), 3, None),
        # Pages of 5, 6 and 9 windows.
        ([0] * 5 + [1] * 6 + [2] * 9, 0, 2),
        ([0] * 5 + [1] * 6 + [2] * 9, 12, 2),
        ([0] * 5 + [1] * 6 + [2] * 9, 20, None),
        ([0] * 30, 10, None),
        ([0] * 30 + [1] * 30, 10, 1),
    ],
)
def test_the_default_limit(units: list[int], affordable: int, limit: int) -> None:
    assert choose_limit(units, affordable) == limit


# -------------------------------------------------------------------------------- a run


@pytest.fixture
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


class Spy:
    """Settings of every measurement as the model meets them; models in memory."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.seen: list[tuple[int, int, str, str]] = []
        self.alive: list[int] = []
        self._models: weakref.WeakSet[Any] = weakref.WeakSet()
        self._measure, self._load = measure_loaded, load_target
        monkeypatch.setattr(noise, "measure_loaded", self.measure)
        monkeypatch.setattr(noise, "load_target", self.load)
        monkeypatch.setattr(noise, "_native_bfloat16", lambda device: False)
        self.refuse = "nothing"

    def measure(self, loaded: Loaded, *args: Any, **options: Any) -> Measurement:
        batches: set[tuple[int, int, str, str]] = set()

        def look(module: Any, args: Any, kwargs: Any) -> None:
            batches.add(
                (
                    torch.get_num_threads(),
                    len(kwargs["input_ids"]),
                    module.config._attn_implementation,
                    str(module.dtype).removeprefix("torch."),
                )
            )

        body = loaded.model.base_model
        hook = body.register_forward_pre_hook(look, with_kwargs=True)
        try:
            return self._measure(loaded, *args, **options)
        finally:
            hook.remove()
            self.seen.append(max(batches))

    def load(self, target: Target, options: Options, **more: Any) -> Loaded:
        self.alive.append(len(self._models))
        if options.attention == self.refuse:
            raise CheckpointError("it has no such kernel")
        loaded = self._load(target, options, **more)
        self._models.add(loaded.model)
        return loaded


@pytest.fixture
def spy(monkeypatch: pytest.MonkeyPatch) -> Spy:
    return Spy(monkeypatch)


@pytest.fixture
def text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(tmp_path)
    save_tiny(tmp_path / "m")
    text = "The ship sailed at noon. " * 120
    (tmp_path / "mine.txt").write_text(text, encoding="utf-8")
    return text


def measure(variations: int, limit: int | None, method: str = "wanda") -> Any:
    wanted = Wanted.parse([method], window=32, limit=limit, corpora=["mine=mine.txt"])
    options = Options(corpora={"mine": "mine.txt"}, journal=JOURNAL_OFF, device="cpu")
    measure_noise("m", wanted, options, variations=variations, json_path="out.json")
    return json.loads(Path("out.json").read_text(encoding="utf-8"))


def test_a_run_in_full(
    text: str, spy: Spy, two_threads: None, capsys: pytest.CaptureFixture[str]
) -> None:
    document = measure(5, limit=5)
    assert spy.seen == [
        (2, 1, "sdpa", "float32"),
        (2, 1, "sdpa", "float32"),
        (1, 1, "sdpa", "float32"),
        (2, 2, "sdpa", "float32"),
        (2, 1, "eager", "float32"),
        (2, 1, "sdpa", "float64"),
    ]
    assert torch.get_num_threads() == 2
    assert spy.alive == [0, 0, 0]  # the first, eager, float64: one at a time

    assert set(document) == {"schema", "model", "noise", "not_run"}
    assert (document["model"], document["not_run"]) == ("m", [])
    (entry,) = document["noise"]
    assert (entry["key"], entry["windows"]) == ("wanda/mine:32:first5", 5)
    runs = entry["runs"]
    values = [run["metrics"]["token_perplexity"] for run in runs]
    tokenizer = AutoTokenizer.from_pretrained("m")
    losses = {}
    for index, dtype in ((0, torch.float32), (5, torch.float64)):
        model = AutoModelForCausalLM.from_pretrained("m", dtype=dtype)
        losses[index] = wanda_window_losses(model, tokenizer, [text], 32, limit=5)
        assert values[index] == pytest.approx(
            wanda_perplexity(losses[index], 32), rel=1e-6
        )
    same = values[:5]
    assert entry["movement"] == max(same) / min(same) - 1
    assert (
        entry["dtype_movement"]
        == max(values[0], values[5]) / min(values[0], values[5]) - 1
    )
    assert [run["change"]["token_perplexity"] for run in runs] == [
        value / values[0] - 1 for value in values
    ]
    # A random model of tiny weights: float32 moves by rounding, the proposal is the
    # least one.
    assert 0 <= entry["movement"] < 3e-6
    assert entry["rel"] == 1e-5

    def row(name: str, index: int) -> str:
        change = runs[index]["change"]["token_perplexity"]
        window = runs[index]["largest_window"]
        shown = (
            f"{change:+.1e}" if change else "0",
            f"{window:.1e}" if window else "0",
        )
        return f"    {name:<32} {values[index]:>17.6g} {shown[0]:>9} {shown[1]:>15}\n"

    ends = ""
    if entry["movement"]:
        ends = ' (between "{}" and "{}")'.format(*entry["between"])
    covered = f"{entry['movement']:.1e}" if entry["movement"] else "0"
    assert capsys.readouterr().out == (
        "m\n"
        "  wanda/mine:32:first5: 5 windows; float32 on cpu, attention sdpa, batch size "
        "1, 2 threads\n"
        f"    {'':<32}  token_perplexity    change  largest window\n"
        f"    {'first run':<32} {values[0]:>17.6g}\n"
        + row("the same again", 1)
        + row("1 thread", 2)
        + row("batch size 2", 3)
        + row("attention eager", 4)
        + row("dtype float64", 5)
        + f"    must cover     {covered}, the dtype unchanged{ends}\n"
        "                   an upper estimate: a mean over fewer windows than the "
        "whole text moves more\n"
        "    proposed       {rel: 0.00001}\n"
        f"    because        {entry['reason']}\n"
        f"    another dtype  moves it by {entry['dtype_movement']:.1e}, told apart: a "
        "failure in another dtype than the baseline's begins with that\n"
        "largest window: how far the window that moved most did, in nats a token\n"
        "not seen here: other machines, and other versions of torch and transformers; "
        "the default, rel 0.005, covers these\n"
    )


def test_what_cannot_run_is_listed_and_does_not_count(
    text: str, spy: Spy, two_threads: None, capsys: pytest.CaptureFixture[str]
) -> None:
    spy.refuse = "eager"
    document = measure(5, limit=3)
    (entry,) = document["noise"]
    assert [run["variation"] for run in entry["runs"]] == [
        "first run",
        "the same again",
        "1 thread",
        "batch size 2",
        "dtype float64",
        "batch size 4",
    ]
    assert document["not_run"] == [
        {"variation": "attention eager", "reason": "it has no such kernel"}
    ]
    assert (
        "not run here:\n  attention eager: it has no such kernel\n"
        in capsys.readouterr().out
    )


def test_the_default_limit_is_printed_and_pages_are_whole(
    text: str, spy: Spy, capsys: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    """With a minute for it, a tiny model reads all of a text; else some windows."""
    (entry,) = measure(1, limit=None)["noise"]
    assert entry["key"] == "wanda/mine:32"
    assert "an upper estimate" not in capsys.readouterr().out
    monkeypatch.setattr(noise, "_MINUTE", 0.0)
    (entry,) = measure(1, limit=None)["noise"]
    assert entry["key"] == "wanda/mine:32:first8"
    assert (
        "pplguard: wanda/mine:32:first8: so many that all runs take about a minute "
        "(--limit changes it)\n"
    ) in capsys.readouterr().err
    (entry,) = measure(1, limit=None, method="lm-eval")["noise"]
    assert entry["key"] == "lm-eval/wikitext+mine:32"  # one page
    word, byte = (
        entry["runs"][0]["metrics"][f"{unit}_perplexity"] for unit in ("word", "byte")
    )
    assert math.log(word) > math.log(byte)
