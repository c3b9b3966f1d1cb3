"""The zoo: every case does what it says, and the gates say what they should.

The cheap part of ``python -m benchmarks.zoo``: two architectures, a few windows, models
that were trained for seconds.
"""

from __future__ import annotations

import hashlib
import json
import math
import struct
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from benchmarks.zoo.__main__ import given_bases
from benchmarks.zoo.all_cases import all_cases
from benchmarks.zoo.bases import LENGTH, Maker
from benchmarks.zoo.cases import Case
from benchmarks.zoo.damage import Damage, Undamaged
from benchmarks.zoo.site import Base, Site, Text
from benchmarks.zoo.verdicts import Gates, Outcome, site_of

LLAMA, NEOX, GPT2 = "llama/wanda-50", "neox/wanda-2of4", "gpt2/wanda-50"
CASES = all_cases()

DEFECTS = {
    LLAMA: (
        *("mask-lost-in-one-layer", "unpruned-copy", "pruned-by-magnitude"),
        *("lora-merged", "layers-swapped", "queries-and-keys-swapped"),
        *("exponent-bit-flipped", "norm-set-to-ones", "fine-tuned"),
        *("rope-theta-in-the-old-form", "twice-as-many-heads"),
        *("token-ids-off-by-one", "shard-truncated", "shard-of-the-dense-model"),
        "adapter-over-the-dense-model",
    ),
    NEOX: (
        *("mask-lost-in-one-layer", "unpruned-copy", "pattern-broken"),
        *("pattern-broken-in-one-matrix", "head-zeroed", "one-weight-nan"),
        *("biases-zeroed-everywhere", "fused-heads-in-another-layout"),
        *("activation-changed", "rotary-part-changed", "bos-lost", "shard-missing"),
        *("index-stale", "prune-masks-left-in"),
    ),
}
"""Defects that must be red, and their culprit named, by what ``update`` writes."""


@pytest.fixture(scope="module")
def maker(tmp_path_factory: pytest.TempPathFactory) -> Maker:
    torch.set_num_threads(1)
    return Maker(tmp_path_factory.mktemp("bases"), steps=60, windows=6, others=False)


@pytest.fixture(scope="module")
def base(request: pytest.FixtureRequest, maker: Maker) -> Base:
    return maker.make(request.param)


@pytest.fixture(scope="module")
def gates(base: Base, tmp_path_factory: pytest.TempPathFactory) -> Gates:
    return Gates.record(base, tmp_path_factory.mktemp("gates") / "baselines", kl=False)


def judged(case: Case, base: Base, gates: Gates, folder: Path) -> tuple[Outcome, bool]:
    """Judged, and whether the failure texts name the culprit."""
    with site_of(case, base, folder) as (site, culprit):
        outcome = gates.judge(site.spec, options=site.options, threads=site.threads)
    return outcome, outcome.names(culprit)


# ------------------------------------------------------------------------- the register


def test_there_are_enough() -> None:
    harmless = Counter(case.harmless for case in CASES.values())
    assert harmless[False] >= 40
    assert harmless[True] >= 20
    assert all(case.what for case in CASES.values())
    assert len({case.what for case in CASES.values()}) == len(CASES)


def test_every_kind_of_defect_is_judged_here() -> None:
    judged_here = {CASES[name].kind for names in DEFECTS.values() for name in names}
    assert judged_here == {case.kind for case in CASES.values() if not case.harmless}


# ------------------------------------------------------------ what a case does to files

Arrays = dict[str, npt.NDArray[Any]]
_DTYPES = {"F16": "<f2", "F32": "<f4", "F64": "<f8"}


def arrays(folder: Path) -> Arrays:
    """Values of all tensors in float64, read by the format's description alone."""
    found: Arrays = {}
    for file in folder.glob("*.safetensors"):
        content = file.read_bytes()
        (length,) = struct.unpack("<Q", content[:8])
        header = json.loads(content[8 : 8 + length])
        header.pop("__metadata__", None)
        for name, entry in header.items():
            begin, end = (8 + length + place for place in entry["data_offsets"])
            values = np.frombuffer(content[begin:end], _DTYPES[entry["dtype"]])
            found[name] = values.astype("f8").reshape(entry["shape"])
    return found


def settings(folder: Path, name: str) -> Any:
    path = folder / name
    return json.loads(path.read_text()) if path.is_file() else None


def content(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


IN_THE_WEIGHTS = ("mask", "value", "place", "training")
CHANGES = {
    **{kind: {"weights"} for kind in IN_THE_WEIGHTS},
    "config": {"config"},
    "tokenizer": {"tokenizer"},
}
"""By kind of defect, what differs; in files there may be nothing left to compare."""
THERE_AND_BACK = ("shards-joined-again", "float32-and-back")
"""Whose last step makes the first one good, to the byte."""


def same_values(folder: Path, wanted: Arrays) -> bool:
    """Whether each tensor has its values, under a name that transformers resolves."""
    found = arrays(folder)
    return all(
        np.array_equal(
            found.get(name, found.get(name.removeprefix("transformer."), np.nan)),
            values,
            equal_nan=True,
        )
        for name, values in wanted.items()
    )


def differences(folder: Path, base: Base) -> set[str]:
    """Which of weights, config and tokenizer are no longer what they were."""
    found = {
        name
        for name in ("config", "tokenizer")
        if settings(folder, f"{name}.json") != settings(base.folder, f"{name}.json")
    }
    if not same_values(folder, arrays(base.folder)):
        found.add("weights")
    return found


def is_another_run(site: Site) -> bool:
    """Whether it is not the folder but what is done with it that differs."""
    return bool(
        site.options
        or site.threads > 1
        or site.spec != str(site.folder)
        or site.folder.name != "checkpoint"
        or (site.folder / "config.json").is_symlink()
        or not (site.folder / "config.json").stat().st_mode & 0o222
    )


@pytest.mark.parametrize("base", [LLAMA, NEOX, GPT2], indirect=True)
def test_every_case_changes_what_it_says(base: Base, tmp_path: Path) -> None:
    before = content(base.folder), content(base.dense)
    # Any other weights will do where what matters is that they get there.
    base = replace(base, other=base.dense)
    for case in CASES.values():
        if not case.fits(base):
            continue
        if case.kind == "training" and base.name != NEOX:
            continue  # the same code, and a second each
        with site_of(case, base, tmp_path) as (site, culprit):
            assert bool(culprit) != case.harmless, case
            untouched = content(site.folder) == before[0]
            if untouched and case.name not in THERE_AND_BACK:
                assert is_another_run(site), case
            if case.harmless:
                assert differences(site.folder, base) <= {"config"}, case
            elif case.name == "last-layer-dropped":
                assert differences(site.folder, base) == {"weights", "config"}
            elif case.kind in CHANGES:
                assert differences(site.folder, base) == CHANGES[case.kind], case
            elif case.kind == "adapter":
                assert str(base.folder) not in site.spec
    # Hard links: what the cases wrote must not have reached the originals.
    assert (content(base.folder), content(base.dense)) == before


@pytest.mark.parametrize("base", [LLAMA, GPT2], indirect=True)
def test_masks_and_heads_go_where_they_should(base: Base, tmp_path: Path) -> None:
    dense, pruned = arrays(base.dense), arrays(base.folder)

    def changed(name: str) -> dict[str, npt.NDArray[Any]]:
        with site_of(CASES[name], base, tmp_path) as (site, _):
            after = arrays(site.folder)
        return {k: v for k, v in after.items() if not np.array_equal(v, pruned[k])}

    mark = ".h.1." if base.kind == "gpt2" else ".layers.1."
    lost = changed("mask-lost-in-one-layer")
    assert len(lost) == len(base.family.matrices)
    assert all(mark in name for name in lost)
    assert all(np.array_equal(values, dense[name]) for name, values in lost.items())

    [(name, zeroed)] = changed("head-zeroed").items()
    expected = pruned[name].copy()
    quarter = len(expected) // 4  # of four heads, the second
    inputs = expected if base.kind == "gpt2" else expected.T
    inputs[quarter : 2 * quarter] = 0
    assert np.array_equal(zeroed, expected)

    [(name, huge)] = changed("exponent-bit-flipped").items()
    assert (huge != pruned[name]).sum() == 1
    assert abs(huge).max() > 1000 * abs(pruned[name]).max()

    [(name, flipped)] = changed("square-matrix-transposed").items()
    assert np.array_equal(flipped, pruned[name].T)


def test_pattern_and_its_loss(maker: Maker, tmp_path: Path) -> None:
    base = maker.make(NEOX)

    def groups(folder: Path) -> set[int]:
        counts: set[int] = set()
        for name, values in arrays(folder).items():
            if values.ndim == 2 and ".layers." in name:
                zeros = (values.reshape(len(values), -1, 4) == 0).sum(axis=2)
                counts |= set(np.unique(zeros).tolist())
        return counts

    assert groups(base.folder) == {2}
    for name in ("pattern-broken", "pattern-broken-in-one-matrix"):
        with site_of(CASES[name], base, tmp_path) as (site, _):
            assert groups(site.folder) == {0, 1, 2, 3, 4}
            halves = [
                (values == 0).mean()
                for name, values in arrays(site.folder).items()
                if values.ndim == 2 and ".layers." in name
            ]
            assert halves == pytest.approx([0.5] * len(halves))


# ------------------------------------------------------------------- bases, and damage


def test_bases_have_learnt(maker: Maker) -> None:
    """Better than the frequencies of the tokens alone would be.

    Here for seconds only; the benchmark asks more of models that it trains for longer.
    """
    for name in (LLAMA, NEOX):
        base = maker.make(name)
        tokenizer = AutoTokenizer.from_pretrained(base.folder)
        ids = tokenizer(base.heldout).input_ids
        counts = Counter(ids)
        unigram = -sum(math.log(counts[i] / len(ids)) for i in ids) / len(ids)
        model = AutoModelForCausalLM.from_pretrained(base.dense, dtype=torch.float32)
        windows = torch.tensor(ids[: len(ids) // LENGTH * LENGTH]).view(-1, LENGTH)
        with torch.no_grad():
            loss = float(model(input_ids=windows, labels=windows).loss)
        assert loss < unigram - 0.2, name


def test_kl_is_what_the_formula_says(maker: Maker) -> None:
    base = maker.make(LLAMA)
    text = base.heldout[200:500]
    undamaged = Undamaged(base.folder, text, window=64, windows=1)
    damage = undamaged.damage_of(str(base.dense))

    ids = AutoTokenizer.from_pretrained(base.folder)(text).input_ids[:64]
    logs = []
    for folder in (base.folder, base.dense):
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64)
        with torch.no_grad():
            logits = model(torch.tensor([ids])).logits[0, :-1].numpy()
        logits -= logits.max(axis=1, keepdims=True)
        logs.append(logits - np.log(np.exp(logits).sum(axis=1, keepdims=True)))
    one, other = logs
    expected = (np.exp(one) * (one - other)).sum(axis=1).mean()
    losses = -other[np.arange(len(ids) - 1), ids[1:]]
    assert damage.kl == pytest.approx(expected, rel=1e-9)
    assert damage.bits == pytest.approx(losses.sum() / math.log(2) / len(text.encode()))
    assert damage.damaging
    assert undamaged.damage_of(str(base.folder)).kl == 0


@pytest.mark.parametrize(
    ("damage", "damaging"),
    [
        (Damage(kl=0.0099), False),
        (Damage(kl=0.01), True),
        (Damage(kl=math.nan), True),
        (Damage(bits=1.0, bits_change=0.0099), False),
        (Damage(bits=1.0, bits_change=-0.01), True),
        (Damage(broken="OSError: no file"), True),
    ],
)
def test_thresholds(damage: Damage, damaging: bool) -> None:
    assert damage.damaging is damaging


# ------------------------------------------------------------------------- the verdicts


@pytest.mark.parametrize("base", [LLAMA, NEOX], indirect=True)
def test_defects_are_red_and_named(base: Base, gates: Gates, tmp_path: Path) -> None:
    wrong = []
    for name in DEFECTS[base.name]:
        outcome, named = judged(CASES[name], base, gates, tmp_path)
        if not outcome.red["any"]:
            wrong.append(f"{name} is green:\n{outcome.text}")
        if not named:
            wrong.append(f"{name} is not named:\n{outcome.text}")
        if CASES[name].kind in IN_THE_WEIGHTS and not outcome.red["same"]:
            wrong.append(f"{name} is green under same:\n{outcome.text}")
        # What counts as told is what a user reads.
        wrong += [
            f"{name}: not on the screen: {line}"
            for line in outcome.told
            if line not in outcome.text
        ]
    assert not wrong, "\n\n".join(wrong)


def test_what_perplexity_does_not_see(maker: Maker, tmp_path: Path) -> None:
    """Two matrices scaled against each other: other predictions, much the same mean."""
    base = maker.make(LLAMA)
    gates = Gates.record(base, tmp_path / "gates")
    (tmp_path / "work").mkdir()
    with site_of(CASES["scaled-by-5-percent"], base, tmp_path / "work") as (site, _):
        outcome = gates.judge(site.spec)
    assert outcome.red == {"any": False, "mask": False, "same": True, "kl": False}
    tokens, kl = (outcome.moved[n] for n in ("token_perplexity", "kl_divergence"))
    assert abs(tokens.units) < 1
    assert tokens.change is not None
    assert kl.change is not None
    assert tokens.units == pytest.approx(tokens.change / 0.005, rel=0.01)
    assert kl.units == pytest.approx(kl.change / 0.02, rel=0.03)


@pytest.mark.parametrize(
    ("base", "kinds"),
    [
        # In half precision six windows may well move; the benchmark has forty.
        (LLAMA, {case.kind for case in CASES.values()} - {"dtype"}),
        (GPT2, {"numbers", "adapter"}),
    ],
    indirect=["base"],
    ids=["llama", "gpt2"],
)
def test_harmless_changes_are_green(
    base: Base, kinds: set[str], gates: Gates, tmp_path: Path
) -> None:
    wrong = []
    for case in CASES.values():
        if not (case.harmless and case.kind in kinds and case.fits(base)):
            continue
        outcome, _ = judged(case, base, gates, tmp_path)
        if any(outcome.red.values()):
            wrong.append(f"{case} is red: {outcome.red}\n{outcome.text}")
    assert not wrong, "\n\n".join(wrong)


def test_it_runs_over_given_folders(maker: Maker, tmp_path: Path) -> None:
    """Somebody's pair: the gates see the beginning, the damage the end of the text."""
    base = maker.make(LLAMA)
    path = tmp_path / "text.txt"
    path.write_text(base.training + base.heldout, encoding="utf-8")
    text = Text("mine", path, window=64, windows=6, pages=1)
    dense, pruned = given_bases(base.dense, base.folder, text)
    assert (dense.pruned, pruned.pruned) == (False, True)
    gates = Gates.record(pruned, tmp_path / "gates", kl=False)
    (tmp_path / "work").mkdir()
    outcome, named = judged(CASES["unpruned-copy"], pruned, gates, tmp_path / "work")
    assert outcome.red["any"]
    assert named
    undamaged = Undamaged(pruned.folder, pruned.heldout, window=64, windows=6)
    assert undamaged.damage_of(str(dense.folder)).damaging
