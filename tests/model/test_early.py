"""Early verdicts of real models: what they rest on, what goes on, what needs all."""

from __future__ import annotations

import copy
import math
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from msgspec.structs import replace

from pytest_pplguard.baselines import read_baseline
from pytest_pplguard.checkpoints import Loaded, load, locate
from pytest_pplguard.corpora import open_corpus
from pytest_pplguard.gates import EarlyPlan, window_bounds
from pytest_pplguard.journal import Journals
from pytest_pplguard.measure import Store, facts_of, measure_loaded
from pytest_pplguard.measure.subject import LocalModel
from pytest_pplguard.options import Target
from pytest_pplguard.protocols import PROTOCOLS
from pytest_pplguard.report import watch_lines
from pytest_pplguard.scoring import Scorer
from pytest_pplguard.values import (
    Key,
    Measurement,
    Recorded,
    Source,
    Tolerance,
    WindowScore,
)

from .commands import pplguard, run_pytest

DEMO = Path(__file__).parents[2] / "pytest_pplguard" / "demo"
WANDA = Key.parse("wanda/demo:128:first120")
LM_EVAL = Key.parse("lm-eval/wikitext+demo:128")
STRIDED = Key.parse("strided/demo:128:stride64")
KEYS = {"wanda": WANDA, "lm-eval": LM_EVAL}
METRIC = {"wanda": "token_perplexity", "lm-eval": "byte_perplexity"}
CAP = 0.1


@pytest.fixture(scope="module")
def loaded() -> Loaded:
    torch.set_num_threads(1)
    return load(locate(str(DEMO / "wanda-50")), device="cpu", dtype="float32")


@pytest.fixture(scope="module")
def full(loaded: Loaded) -> dict[str, Measurement]:
    """The baselines: all windows."""
    return {
        name: measure_loaded(loaded, key, lambda corpus: open_corpus(corpus, {}))
        for name, key in KEYS.items()
    }


def plan_for(
    method: str,
    full: Measurement,
    *,
    rel: float = 0.02,
    cap: float | None = CAP,
    metric: str = "",
) -> EarlyPlan:
    metric = metric or METRIC[method]
    allowed = window_bounds(Tolerance(rel=rel), full.metrics[metric])
    return EarlyPlan(
        Recorded(
            metrics=full.metrics,
            source=Source("measured"),
            windows=full.windows,
            units=full.units,
            windows_digest=full.windows_digest,
            corpus_digest=full.corpus_digest,
            evidence="x.json",
        ),
        full.protocol,
        full.evidence,
        {metric: (allowed.low, allowed.high)},
        recompute=PROTOCOLS[method].recompute,
        cap=cap,
        error=0.001,
    )


class Gated:
    """A store over one model, as a gate uses it."""

    def __init__(
        self,
        loaded: Loaded,
        journals: Path | None = None,
        *,
        batch_size: int = 1,
    ) -> None:
        self.store = Store(
            {"it": Target("it", "demo")},
            load=lambda _: loaded,
            open_corpus=lambda name: open_corpus(name, {}),
            watch=lambda label, **_: watch_lines(label, lambda line: None),
            batch_size=batch_size,
            journals=None if journals is None else Journals(journals),
        )

    def measure(self, key: Key, plan: EarlyPlan | None = None) -> Measurement:
        return self.store.measurement("it", key, early=plan)


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> Counter[int]:
    """How often each window was scored."""
    count: Counter[int] = Counter()
    score = Scorer._score

    def counting(self: Scorer, batch: Any, windows: Any) -> list[float]:
        count.update(batch)
        return score(self, batch, windows)

    monkeypatch.setattr(Scorer, "_score", counting)
    return count


@pytest.mark.parametrize("method", KEYS)
def test_an_unchanged_checkpoint(
    loaded: Loaded, full: dict[str, Measurement], method: str, reads: Counter[int]
) -> None:
    baseline = full[method]
    plan = plan_for(method, baseline)
    gated = Gated(loaded)
    early = gated.measure(KEYS[method], plan)
    assert early.early is not None
    assert early.early.decided == {METRIC[method]: "within"}
    assert early.early.cap == CAP
    seen = early.early.seen
    assert sum(reads.values()) == seen < 0.6 * baseline.windows
    assert early.windows == baseline.windows
    # What was seen is what a full run gives of these windows, to the last bit.
    assert early.evidence == tuple(baseline.evidence[i] for i in plan.order[:seen])
    for metric, value in baseline.metrics.items():
        assert early.metrics[metric] == pytest.approx(value, rel=1e-9)
    assert gated.measure(KEYS[method], plan) is early

    # Whoever asks without a plan gets all windows.
    again = gated.measure(KEYS[method])
    assert again.early is None
    assert again.evidence == baseline.evidence
    assert again.metrics == baseline.metrics
    assert gated.measure(KEYS[method], plan) is again


@pytest.mark.parametrize("method", KEYS)
def test_all_windows_give_what_they_give_without(
    loaded: Loaded, full: dict[str, Measurement], method: str, tmp_path: Path
) -> None:
    """No bet is won: the cap is as good as none, and no window differs."""
    baseline = full[method]
    for journals in (None, tmp_path):
        plan = plan_for(method, baseline, cap=1000.0)
        now = Gated(loaded, journals).measure(KEYS[method], plan)
        assert now.early is None
        assert now.evidence == baseline.evidence
        assert now.metrics == baseline.metrics
        assert now.units == baseline.units
        assert (plan.remark, plan.breach) == ("", "")


def damaged(loaded: Loaded, change: Callable[[Any], None]) -> Loaded:
    """A changed copy, with the same tokenizer."""
    model = copy.deepcopy(loaded.model)
    with torch.no_grad():
        change(model)
    return Loaded.of(model, loaded.tokenizer)


def add_noise(size: float) -> Callable[[Any], None]:
    def change(model: Any) -> None:
        chance = torch.Generator().manual_seed(1)
        for weight in model.parameters():
            if weight.ndim == 2:
                noise = torch.randn(weight.shape, generator=chance)
                weight.add_(size * weight.std() * noise)

    return change


@pytest.mark.parametrize("method", KEYS)
def test_verdicts_are_those_of_full_runs(
    loaded: Loaded, full: dict[str, Measurement], method: str
) -> None:
    """Noise from nothing to ruin, with a cap and without."""
    baseline, metric = full[method], METRIC[method]
    key = KEYS[method]
    stopped = []
    for size in (0.003, 0.03, 0.5):
        model = damaged(loaded, add_noise(size))
        whole = Gated(model).measure(key).metrics[metric]
        for cap in (CAP, None):
            plan = plan_for(method, baseline, cap=cap)
            now = Gated(model).measure(key, plan)
            if now.early is None:
                assert now.metrics[metric] == whole
                continue
            low, high = baseline.metrics[metric] / 1.02, baseline.metrics[metric] * 1.02
            truth = (
                "regressed" if whole > high else "improved" if whole < low else "within"
            )
            assert now.early.decided == {metric: truth}
            stopped.append((cap, truth))
    assert {(CAP, "within"), (None, "regressed")} <= set(stopped)


def test_a_defect_in_the_last_tenth_of_the_text(
    loaded: Loaded, full: dict[str, Measurement]
) -> None:
    """What only the last windows have is damaged: in the text's order it comes late."""
    baseline = full["wanda"]
    corpus = open_corpus("demo", {})
    windows = PROTOCOLS["wanda"].windows(corpus, loaded.tokenizer, WANDA)
    late = 12
    early_ids = {i for window in windows[:-late] for i in window.ids}
    only_late = {i for window in windows[-late:] for i in window.ids} - early_ids
    # The demo's text repeats its words: where none is new, the rarest will do.
    if not only_late:
        counts = Counter(i for window in windows[-late:] for i in window.ids)
        before = Counter(i for window in windows[:-late] for i in window.ids)
        only_late = set(sorted(counts, key=lambda i: before[i] / counts[i])[:8])

    def change(model: Any) -> None:
        embedding = model.get_input_embeddings().weight
        for token in only_late:
            embedding[token] = -8 * embedding[token]

    model = damaged(loaded, change)
    whole = Gated(model).measure(WANDA)
    moved = [
        (now.nll_sum - then.nll_sum) / then.scored
        for now, then in zip(whole.evidence, baseline.evidence, strict=True)
    ]
    value, base = (
        whole.metrics["token_perplexity"],
        baseline.metrics["token_perplexity"],
    )
    assert max(moved[-late:]) > 0.01
    # A tolerance that it fails by a little.
    rel = 0.8 * abs(value / base - 1)
    cap = 1.05 * max(map(abs, moved))
    assert math.log1p(rel) < cap
    for bound in (cap, 0.3 * cap, None):
        plan = plan_for("wanda", baseline, rel=rel, cap=bound)
        now = Gated(model).measure(WANDA, plan)
        if now.early is None:
            assert now.metrics == whole.metrics
        else:
            assert now.early.decided["token_perplexity"] != "within"


Kill = Callable[..., None]


@pytest.fixture
def kill(
    loaded: Loaded, reads: Counter[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Kill:
    """Have a run end after its ninth window; its journal stays."""

    def start(plan: EarlyPlan | None = None) -> None:
        score = Scorer._score

        def failing(self: Scorer, batch: Any, windows: Any) -> list[float]:
            if sum(reads.values()) == 9:
                raise KeyboardInterrupt
            return score(self, batch, windows)

        with monkeypatch.context() as patch:
            patch.setattr(Scorer, "_score", failing)
            with pytest.raises(KeyboardInterrupt):
                Gated(loaded, tmp_path).measure(WANDA, plan)
        assert sum(reads.values()) == 9

    return start


def test_a_run_that_was_killed_goes_on(
    loaded: Loaded,
    full: dict[str, Measurement],
    reads: Counter[int],
    kill: Kill,
    tmp_path: Path,
) -> None:
    kill(plan_for("wanda", full["wanda"]))
    plan = plan_for("wanda", full["wanda"])
    assert list(reads) == plan.order[:9]
    now = Gated(loaded, tmp_path).measure(WANDA, plan)
    assert now.early is not None
    assert "9 of 120 windows were scored already" in now.notices[-1]
    assert list(reads) == plan.order[: now.early.seen]
    assert max(reads.values()) == 1
    assert now.evidence == tuple(full["wanda"].evidence[i] for i in reads)


def test_windows_of_another_order_wait_for_their_turn(
    loaded: Loaded,
    full: dict[str, Measurement],
    reads: Counter[int],
    kill: Kill,
    tmp_path: Path,
) -> None:
    """A run without the option was killed, and one with it goes on."""
    kill()
    assert list(reads) == [*range(9)]
    fresh = Gated(loaded).measure(WANDA, plan_for("wanda", full["wanda"]))
    reads.clear()
    plan = plan_for("wanda", full["wanda"])
    now = Gated(loaded, tmp_path).measure(WANDA, plan)
    assert now.early == fresh.early
    assert now.early is not None
    assert now.evidence == fresh.evidence
    # In their turn they count; the others of the nine do not.
    in_turn = plan.order[: now.early.seen]
    assert list(reads) == [index for index in in_turn if index >= 9]
    assert 0 < len(reads) < now.early.seen


def test_batches_change_no_verdict(
    loaded: Loaded, full: dict[str, Measurement]
) -> None:
    plan = plan_for("wanda", full["wanda"])
    one = Gated(loaded).measure(WANDA, plan)
    five = Gated(loaded, batch_size=5).measure(WANDA, plan_for("wanda", full["wanda"]))
    assert one.early == five.early
    assert five.early is not None
    assert len(five.evidence) == five.early.seen


def test_strided_windows_are_weighed(loaded: Loaded) -> None:
    whole = measure_loaded(loaded, STRIDED, lambda name: open_corpus(name, {}))
    plan = plan_for("strided", whole, metric="token_perplexity")
    now = Gated(loaded).measure(STRIDED, plan)
    assert now.early is None
    assert now.evidence == whole.evidence
    assert plan.remark == "token_perplexity does not follow from the sum of all losses"


@pytest.mark.parametrize("change", ["evidence", "tokens"])
def test_evidence_of_other_windows_needs_all(
    loaded: Loaded, full: dict[str, Measurement], change: str
) -> None:
    baseline = full["wanda"]
    windows: list[WindowScore] = list(baseline.evidence)
    first, second, *others = windows
    # The sums stay, so that nothing but the windows themselves can tell.
    if change == "evidence":
        both = first.nll_sum + second.nll_sum, first.scored + second.scored
        windows = [WindowScore(*both), *others]
    else:
        windows[0] = WindowScore(first.nll_sum, first.scored - 1)
        windows[1] = WindowScore(second.nll_sum, second.scored + 1)
    good = plan_for("wanda", baseline)
    plan = EarlyPlan(
        good._recorded,
        baseline.protocol,
        windows,
        {METRIC["wanda"]: (None, 2 * baseline.metrics[METRIC["wanda"]])},
        recompute=PROTOCOLS["wanda"].recompute,
        cap=None,
        error=0.001,
    )
    now = Gated(loaded).measure(WANDA, plan)
    assert now.early is None
    assert plan.remark == "its windows are not those of its baseline"


def test_positions_by_length_need_all(
    loaded: Loaded, full: dict[str, Measurement], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another order would give other losses."""
    rotating = replace(facts_of(loaded), rotates_by_length=True)
    monkeypatch.setattr(LocalModel, "facts", rotating)
    plan = plan_for("wanda", full["wanda"])
    now = Gated(loaded).measure(WANDA, plan)
    assert now.early is None
    assert now.evidence == full["wanda"].evidence
    assert plan.remark == (
        "the model's rotary positions depend on what it has read before"
    )


def test_the_whole_command(tmp_path: Path) -> None:
    """Recorded, gated, damaged: in processes of their own, two workers at a time."""
    checkpoint = tmp_path / "model"
    shutil.copytree(DEMO / "wanda-50", checkpoint)
    done = pplguard(
        "update", "model", "--checkpoint", "mine/w50", "--base", "demo",
        "--method", "wanda", "--corpus", "demo", "--window", "128",
        cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    path = tmp_path / "baselines/mine.yaml"
    text = path.read_text().replace("rel: 0.005, drift: 0.002", "rel: 0.02")
    path.write_text(text.replace("rel: 0.005", "rel: 0.02"))
    before = path.read_bytes()
    assert b"drift" not in before
    (key,) = read_baseline(path).checkpoints["w50"].gates.metrics
    command = f"pytest baselines --ppl-model mine/w50=model -k {key.partition('/')[0]}"
    options = "-n 2 --ppl-early --ppl-early-cap 0.1"
    done = run_pytest(f"{command} {options}", tmp_path)
    assert done.returncode == 0, done.stdout
    assert "early: within after " in done.stdout
    assert "of 128 windows, if no unseen window moved by more than 0.1" in done.stdout
    assert path.read_bytes() == before
