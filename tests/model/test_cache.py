"""Runs with --ppl-cache: the second is quick and right, and whatever changed is seen.

Expected numbers are those of runs without a cache.
"""

from __future__ import annotations

import csv
import hashlib
import json
import os
import re
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

# As in tests/plugin/conftest.py: pytester forgets every module that a run imported.
import datasets  # noqa: F401
import lm_eval.evaluator
import lm_eval.tasks
import lm_eval.utils  # noqa: F401
import pytest
import rich.progress  # noqa: F401
import torch
import transformers  # noqa: F401

import pytest_pplguard.items
import pytest_pplguard.lifetime
import pytest_pplguard.lm_eval_bridge
import pytest_pplguard.measure.ladder
import pytest_pplguard.measure.results
import pytest_pplguard.plugin
import pytest_pplguard.session.setup
import pytest_pplguard.session.xdist  # noqa: F401
from pytest_pplguard.measure import loading
from pytest_pplguard.measure.results import Results
from pytest_pplguard.protocols import CutProtocol, LmEval
from tests.zygote import forked_workers

from .tiny import save_tiny

ROOT = Path(__file__).parents[2]
WANDA, LM_EVAL = "wanda/tiny:64", "lm-eval/wikitext+tiny:64"
TEXT = " = A page = \n\n" + "The quick brown fox jumps over the lazy dog . \n" * 40
FROM_CACHE = r"from cache, measured \d{4}-\d\d-\d\d \d\d:\d\d UTC"
BASELINE = f"""\
schema: 1
model: org/llama
checkpoints:
  it:
    gates:
      {WANDA}: {{token_perplexity: {{rel: 0.01}}}}
      {LM_EVAL}: {{word_perplexity: {{rel: 0.01}}, byte_perplexity: {{rel: 0.01}}}}
"""

Verdicts = dict[str, dict[str, Any]]


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint; the first :class:`Gates` adds the rest that all copy."""
    path = tmp_path_factory.mktemp("original")
    save_tiny(path / "it")
    return path


def read_verdicts(report: Path) -> Verdicts:
    """By metric; of gates that ran twice the last."""
    return {v["metric"]: v for v in json.loads(report.read_text())["verdicts"]}


class Gates:
    """A project with a baseline of a tiny checkpoint, and ways to run its gates."""

    def __init__(
        self,
        pytester: pytest.Pytester,
        original: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        self.pytester = pytester
        self.path = pytester.path
        self.checkpoint = self.path / "it"
        self.cache = self.path / "cache"
        self.loads: list[str] = []
        self.result: pytest.RunResult | None = None
        monkeypatch.delenv("CI", raising=False)
        shutil.copytree(original, self.path, dirs_exist_ok=True)
        if not (original / "filled.json").exists():
            self._record()
            shutil.copytree(self.path, original, dirs_exist_ok=True)
        load = vars(loading)["load"]

        def counted(*args: Any, **options: Any) -> Any:
            self.loads.append("it")
            return load(*args, **options)

        monkeypatch.setattr(loading, "load", counted)

    def _record(self) -> None:
        """Make the project, record its baseline, and gate it once with a cache."""
        (self.path / "text.txt").write_text(TEXT)
        (self.path / "baselines").mkdir()
        (self.path / "baselines" / "llama.yaml").write_text(BASELINE)
        self.ini("")
        self.run("--ppl-update")
        self.run("--ppl-cache", "--ppl-cache-dir=filled")
        (self.path / "report.json").rename(self.path / "filled.json")

    def ini(self, more: str) -> None:
        (self.path / "pytest.ini").write_text(
            "[pytest]\naddopts = -p no:cacheprovider "
            "-o asyncio_default_fixture_loop_scope=function\n"
            f"ppl_corpus = tiny=text.txt\n{more}"
        )

    def run(self, *args: str) -> Verdicts:
        """The verdicts of a run."""
        report = self.path / "report.json"
        report.unlink(missing_ok=True)
        self.loads.clear()
        with forked_workers(args):
            self.result = self.pytester.runpytest_inprocess(
                f"--ppl-model=llama/it={self.checkpoint.name}",
                f"--ppl-report={report}",
                *args,
            )
        return read_verdicts(report)

    def filled(self) -> Verdicts:
        """As :meth:`cached` for the first time; that run was the original's."""
        (self.path / "filled").rename(self.cache)
        return read_verdicts(self.path / "filled.json")

    def cached(self, *args: str) -> Verdicts:
        """As :meth:`run`, with the cache."""
        return self.run("--ppl-cache", f"--ppl-cache-dir={self.cache}", *args)

    @property
    def output(self) -> str:
        assert self.result is not None
        return self.result.stdout.str()

    @property
    def notes(self) -> list[str]:
        """What the run told, but for what every run on a CPU tells."""
        lines = re.findall(r"^note: (.*)$", self.output, re.M)
        return [line for line in lines if "no accelerator" not in line]

    def entry(self, key: str) -> Path:
        """The result of a key."""
        (path,) = (
            path
            for path in self.cache.glob("*.result.json")
            if json.loads(path.read_bytes())["entry"]["identity"]["key"] == key
        )
        return path


@pytest.fixture
def gates(
    pytester: pytest.Pytester, original: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Gates]:
    threads, precision = torch.get_num_threads(), torch.get_float32_matmul_precision()
    backends: Any = torch.backends
    products = backends.cuda.matmul, backends.mkldnn.matmul
    precisions = [each.fp32_precision for each in products]
    yield Gates(pytester, original, monkeypatch)
    torch.set_num_threads(threads)
    # This sets the two below, to "ieee" where they were "none".
    torch.set_float32_matmul_precision(precision)
    for each, was in zip(products, precisions, strict=True):
        each.fp32_precision = was
    torch.backends.cuda.matmul.allow_fp16_accumulation = False
    torch.backends.cudnn.deterministic = False
    torch.set_flush_denormal(False)


def numbers(verdicts: Verdicts) -> dict[str, float]:
    return {metric: verdict["measured"] for metric, verdict in verdicts.items()}


def from_cache(verdicts: Verdicts) -> list[bool]:
    return [bool(verdict["cached"]) for verdict in verdicts.values()]


def test_the_second_run_loads_no_model(gates: Gates) -> None:
    expected = numbers(gates.run())
    first = gates.cached()
    assert (numbers(first), from_cache(first)) == (expected, [False] * 3)
    assert gates.loads == ["it"]
    second = gates.cached()
    assert gates.loads == []
    assert numbers(second) == expected
    assert from_cache(second) == [True] * 3
    assert all(verdict["passed"] for verdict in second.values())
    assert len(re.findall(FROM_CACHE, gates.output)) == 2  # once a key
    assert gates.notes == []


def test_what_is_remarkable_about_a_checkpoint_is_told_again(gates: Gates) -> None:
    shutil.rmtree(gates.checkpoint)
    save_tiny(gates.checkpoint, shard="50KB")
    index = gates.checkpoint / "model.safetensors.index.json"
    edit_json(index, metadata={"total_size": 1})
    gates.cached()
    (notice,) = gates.notes
    assert notice.endswith("counts 1: is a shard from another checkpoint?")
    assert from_cache(gates.cached()) == [True] * 3
    assert gates.notes == [notice]


def test_one_gate_alone_comes_from_the_cache_too(gates: Gates) -> None:
    gates.cached("-k", "wanda")
    verdicts = gates.cached()
    assert {m: bool(v["cached"]) for m, v in verdicts.items()} == {
        "token_perplexity": True,
        "word_perplexity": False,
        "byte_perplexity": False,
    }


def test_reports_say_when_it_was_measured(gates: Gates) -> None:
    gates.cached()
    verdicts = gates.cached(
        "--ppl-report=r.csv", "--ppl-report=r.md", "--junitxml=r.xml"
    )
    when = verdicts["token_perplexity"]["cached"]
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\dZ", when)
    with (gates.path / "r.csv").open(newline="") as stream:
        rows = [*csv.DictReader(stream)]
    assert [row["cached"] for row in rows] == [v["cached"] for v in verdicts.values()]
    markdown = (gates.path / "r.md").read_text()
    assert len(re.findall(rf"within \({FROM_CACHE}\)", markdown)) == 3
    name = f"ppl.llama/it.{WANDA}.token_perplexity.cached"
    assert f'name="{name}" value="{when}"' in (gates.path / "r.xml").read_text()


# -------------------------------------------------------------------- what is a miss


def change_bit(gates: Gates) -> None:
    """The lowest bit of one weight."""
    path = gates.checkpoint / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-4] ^= 1
    path.write_bytes(data)


def change_sign_of_zero(gates: Gates) -> None:
    path = gates.checkpoint / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-4:] = struct.pack("<f", -0.0)
    path.write_bytes(data)


def edit_json(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def change_config(gates: Gates) -> None:
    path = gates.checkpoint / "config.json"
    config = json.loads(path.read_text())
    edit_json(path, rope_parameters=config["rope_parameters"] | {"rope_theta": 500.0})


def change_architecture(gates: Gates) -> None:
    """The same tensors of the same shapes, read by another class."""
    edit_json(
        gates.checkpoint / "config.json",
        architectures=["MistralForCausalLM"],
        model_type="mistral",
        sliding_window=4,
    )


def change_tokenizer(gates: Gates) -> None:
    edit_json(gates.checkpoint / "tokenizer.json", normalizer={"type": "Lowercase"})


def change_tokenizer_config(gates: Gates) -> None:
    edit_json(gates.checkpoint / "tokenizer_config.json", bos_token="</s>")


def change_text(gates: Gates) -> None:
    (gates.path / "text.txt").write_text(TEXT.replace("lazy", "idle", 1))


def change_allowed_keys(gates: Gates) -> None:
    path = gates.path / "baselines" / "llama.yaml"
    text = path.read_text()
    path.write_text(text.replace("  it:\n", "  it:\n    allow_keys: [x.*]\n"))


def change_threads(gates: Gates) -> None:
    torch.set_num_threads(torch.get_num_threads() + 1)


def change_precision(gates: Gates) -> None:
    torch.set_float32_matmul_precision("medium")


def change_accumulation(gates: Gates) -> None:
    torch.backends.cuda.matmul.allow_fp16_accumulation = True


def change_determinism(gates: Gates) -> None:
    torch.backends.cudnn.deterministic = True


def change_denormals(gates: Gates) -> None:
    assert torch.set_flush_denormal(True)


CHANGES: dict[str, Callable[[Gates], None]] = {
    f.__name__: f
    for f in (
        change_bit,
        change_sign_of_zero,
        change_config,
        change_architecture,
        change_tokenizer,
        change_tokenizer_config,
        change_text,
        change_allowed_keys,
        change_threads,
        change_precision,
        change_accumulation,
        change_determinism,
        change_denormals,
    )
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_was_changed_is_measured_again(gates: Gates, change: str) -> None:
    gates.filled()
    CHANGES[change](gates)
    found = gates.cached()
    assert from_cache(found) == [False] * 3
    assert numbers(found) == numbers(gates.run())
    again = gates.cached()
    assert from_cache(again) == [True] * 3
    assert numbers(again) == numbers(found)


@pytest.mark.parametrize(
    "options",
    [
        ("--ppl-dtype=bfloat16",),
        ("--ppl-attention=eager",),
        ("--ppl-batch-size=2",),
    ],
    ids=lambda options: options[0],
)
def test_what_is_asked_for_differently_is_measured_again(
    gates: Gates, options: tuple[str, ...]
) -> None:
    gates.filled()
    found = gates.cached(*options)
    assert from_cache(found) == [False] * 3
    assert numbers(found) == numbers(gates.run(*options))
    assert from_cache(gates.cached(*options)) == [True] * 3
    assert from_cache(gates.cached()) == [True] * 3


@pytest.mark.parametrize(
    "name", ["ONEDNN_DEFAULT_FPMATH_MODE", "NVIDIA_TF32_OVERRIDE", "MKL_CBWR"]
)
def test_variables_that_choose_kernels_are_seen(
    gates: Gates, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    gates.filled()
    monkeypatch.setenv(name, "1")
    assert from_cache(gates.cached()) == [False] * 3
    monkeypatch.delenv(name)
    assert from_cache(gates.cached()) == [True] * 3


@pytest.mark.parametrize("name", ["torch", "transformers", "tokenizers", "lm_eval"])
def test_versions_are_seen(
    gates: Gates, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    from pytest_pplguard.measure import identity

    gates.filled()
    versions = identity.versions()
    assert name in versions
    other = versions | {name: "0.0.1"}
    monkeypatch.setattr(identity, "versions", lambda: other)
    assert from_cache(gates.cached()) == [False] * 3


def test_a_moved_checkpoint_is_the_same(gates: Gates) -> None:
    expected = numbers(gates.filled())
    gates.checkpoint = gates.checkpoint.rename(gates.path / "moved")
    found = gates.cached()
    assert (numbers(found), from_cache(found)) == (expected, [True] * 3)


# ------------------------------------------------------------------- poisoned entries


def seal(path: Path, document: dict[str, Any]) -> None:
    """Write an entry with a digest that is right for what it holds."""
    entry = json.dumps(document["entry"], separators=(",", ":"), ensure_ascii=False)
    digest = hashlib.sha256(entry.encode()).hexdigest()
    head = json.dumps({"format": document["format"], "sha256": digest})
    path.write_text(f'{head[:-1]}, "entry": {entry}}}')


def poison_number(measured: dict[str, Any]) -> None:
    measured["metrics"]["word_perplexity"] *= 1.000001


def poison_evidence(measured: dict[str, Any]) -> None:
    measured["evidence"][0]["nll_sum"] += 0.5


def poison_units(measured: dict[str, Any]) -> None:
    """Twice the words and bytes, and all numbers as they follow from that."""
    metrics, units = measured["metrics"], measured["units"]
    for name in units:
        units[name] *= 2
    for name in ("word_perplexity", "byte_perplexity"):
        metrics[name] **= 0.5
    metrics["bits_per_byte"] /= 2


def poison_lost_unit(measured: dict[str, Any]) -> None:
    del measured["units"]["bytes"]


def poison_huge_unit(measured: dict[str, Any]) -> None:
    measured["units"]["words"] = 10**400


def poison_huge_loss(measured: dict[str, Any]) -> None:
    """Each is finite, and their sum is not."""
    for score in measured["evidence"]:
        score["nll_sum"] = 1.7e308


def poison_direction(measured: dict[str, Any]) -> None:
    """Under `direction: no-worse` it would pass whatever is worse."""
    measured["higher_is_better"] = ["word_perplexity"]


def poison_error(measured: dict[str, Any]) -> None:
    measured["stderr"] = {"word_perplexity": 1e9}


def poison_page(measured: dict[str, Any]) -> None:
    measured["evidence"][-1]["page"] = 10**6


def poison_negative(measured: dict[str, Any]) -> None:
    measured["evidence"][0]["nll_sum"] *= -1


def poison_nan(measured: dict[str, Any]) -> None:
    measured["evidence"][0]["nll_sum"] = None


def poison_windows(measured: dict[str, Any]) -> None:
    measured["windows"] += 1


def poison_scored(measured: dict[str, Any]) -> None:
    measured["evidence"][0]["scored"] = 0


def poison_key(measured: dict[str, Any]) -> None:
    measured["key"] = WANDA


def poison_terminal(measured: dict[str, Any]) -> None:
    """Printed as it is it would clear the screen."""
    measured["key"] = "\x1b[2J"


def poison_text(measured: dict[str, Any]) -> None:
    measured["corpus_digest"] = "sha256:" + "0" * 64


def poison_dtype(measured: dict[str, Any]) -> None:
    measured["environment"]["dtype"] = "bfloat16"


def poison_version(measured: dict[str, Any]) -> None:
    measured["environment"]["torch"] = "1.0"


def poison_metrics(measured: dict[str, Any]) -> None:
    del measured["metrics"]["bits_per_byte"]


def poison_early(measured: dict[str, Any]) -> None:
    measured["early"] = {
        "seen": 1,
        "windows": 2,
        "cap": None,
        "error": 0.001,
        "decided": {"word_perplexity": "within"},
    }


POISONS: dict[str, Callable[[dict[str, Any]], None]] = {
    f.__name__: f
    for f in (
        poison_number,
        poison_evidence,
        poison_units,
        poison_lost_unit,
        poison_huge_unit,
        poison_huge_loss,
        poison_direction,
        poison_error,
        poison_page,
        poison_negative,
        poison_nan,
        poison_windows,
        poison_scored,
        poison_key,
        poison_terminal,
        poison_text,
        poison_dtype,
        poison_version,
        poison_metrics,
        poison_early,
    )
}


@pytest.mark.parametrize("poison", POISONS)
def test_a_poisoned_entry_is_measured_again(gates: Gates, poison: str) -> None:
    expected = numbers(gates.filled())
    path = gates.entry(LM_EVAL)
    document = json.loads(path.read_bytes())
    POISONS[poison](document["entry"]["content"])
    seal(path, document)
    found = gates.cached()
    assert numbers(found) == expected
    assert from_cache(found) == [True, False, False]
    (note,) = gates.notes
    assert note.startswith(f"llama/it {LM_EVAL}: the cached result {path} is ")
    assert note.endswith(": made again")
    assert note.isprintable()
    again = gates.cached()
    assert (numbers(again), from_cache(again)) == (expected, [True] * 3)
    assert gates.notes == []


def test_the_seal_of_these_tests_is_a_right_one(gates: Gates) -> None:
    """So that what is refused above is refused for what it says."""
    gates.filled()
    path = gates.entry(LM_EVAL)
    seal(path, json.loads(path.read_bytes()))
    assert from_cache(gates.cached()) == [True] * 3


def test_evidence_that_was_made_up_needs_a_file_of_the_users_own(gates: Gates) -> None:
    """Numbers that follow from invented losses: only the folder can be trusted."""
    expected = numbers(gates.filled())
    path = gates.entry(WANDA)
    document = json.loads(path.read_bytes())
    measured = document["entry"]["content"]
    for score in measured["evidence"]:
        score["nll_sum"] *= 0.99
    measured["metrics"]["token_perplexity"] **= 0.99
    seal(path, document)
    path.chmod(0o666)
    assert numbers(gates.cached()) == expected
    assert "others can write it" in gates.notes[0]


def test_entries_of_each_other_do_not_help(gates: Gates) -> None:
    expected = numbers(gates.filled())
    one, other = gates.entry(WANDA), gates.entry(LM_EVAL)
    saved = one.read_bytes()
    one.write_bytes(other.read_bytes())
    other.write_bytes(saved)
    found = gates.cached()
    assert (numbers(found), from_cache(found)) == (expected, [False] * 3)
    assert all("is about something else" in note for note in gates.notes)


def test_a_folder_that_cannot_be_made_costs_a_notice(gates: Gates) -> None:
    expected = numbers(gates.run())
    gates.cache.write_text("a file")
    assert numbers(gates.cached()) == expected
    assert gates.notes == [
        f"results are not cached: {gates.cache}: File exists "
        "(another folder: --ppl-cache-dir=DIR)"
    ]
    assert gates.result is not None
    assert gates.result.ret == 0


# ------------------------------------------------------------------ what is not cached


def test_a_baseline_is_measured(gates: Gates) -> None:
    gates.filled()
    gates.cached("--ppl-update")
    assert gates.loads == ["it"]
    assert "from cache" not in gates.output
    recorded = (gates.path / "baselines" / "llama.yaml").read_text()
    assert "cached" not in recorded


def test_an_update_fills_the_cache(gates: Gates) -> None:
    gates.cached("--ppl-update")
    assert from_cache(gates.cached()) == [True] * 3


@pytest.mark.parametrize(("size", "kept"), [("1", 2), ("2", 0)])
def test_early_runs_that_needed_all_windows(gates: Gates, size: str, kept: int) -> None:
    """In batches a window was read beside others than without the option."""
    options = "--ppl-early", "--ppl-early-cap=1000", f"--ppl-batch-size={size}"
    found = gates.cached(*options)
    assert {verdict["early"] for verdict in found.values()} == {""}
    assert len(list(gates.cache.glob("*.result.json"))) == kept


def test_what_was_stopped_early_is_not_cached(gates: Gates) -> None:
    """And what is cached is of all windows, for early runs too."""
    options = "--ppl-early", "--ppl-early-cap=0.02"
    found = gates.cached(*options)
    assert all(verdict["early"] for verdict in found.values())
    assert list(gates.cache.glob("*.result.json")) == []
    expected = numbers(gates.cached())
    found = gates.cached(*options)
    assert (numbers(found), from_cache(found)) == (expected, [True] * 3)
    assert not any(verdict["early"] for verdict in found.values())


def test_a_hook_switches_the_cache_off(gates: Gates) -> None:
    gates.filled()
    gates.pytester.makeconftest("def pytest_pplguard_load_model(checkpoint): pass\n")
    assert from_cache(gates.cached()) == [False] * 3
    (note,) = gates.notes
    assert note.startswith("results are not cached: pytest_pplguard_load_model (")


def test_code_of_the_checkpoint_switches_the_cache_off(gates: Gates) -> None:
    gates.filled()
    assert from_cache(gates.cached("--ppl-trust-remote-code")) == [False] * 3
    assert gates.notes == [
        "results are not cached with --ppl-trust-remote-code: such code may do anything"
    ]


def test_what_a_test_had_in_hand_is_not_cached(gates: Gates) -> None:
    """Nothing would show that its tokenizer is not the files' any more."""
    (gates.path / "test_it.py").write_text(
        "import pytest\nfrom tokenizers.normalizers import Lowercase\n\n"
        "def test_first(ppl_tokenizer):\n"
        "    ppl_tokenizer.backend_tokenizer.normalizer = Lowercase()\n\n"
        "@pytest.mark.ppl('wanda', checkpoint='llama/it')\ndef test_it(): pass\n"
    )
    expected = numbers(gates.run("baselines"))
    changed = gates.cached("test_it.py")["token_perplexity"]
    assert changed["outcome"] == "not comparable"
    assert not [*gates.cache.glob("*.result.json"), *gates.cache.glob("*.windows.json")]
    assert numbers(gates.cached("baselines")) == expected


def test_a_model_that_a_test_changed_is_loaded_anew(gates: Gates) -> None:
    (gates.path / "test_it.py").write_text(
        "import pytest\n\n"
        "def test_first(ppl_model):\n"
        "    ppl_model.lm_head.weight.data.mul_(2)\n\n"
        "@pytest.mark.ppl('wanda', checkpoint='llama/it')\ndef test_it(): pass\n"
    )
    expected = numbers(gates.run("baselines"))
    gates.cached("test_it.py")
    found = gates.cached("baselines")
    assert numbers(found) == expected
    assert from_cache(found) == [True, False, False]


def test_files_that_change_meanwhile_are_not_cached(
    gates: Gates, monkeypatch: pytest.MonkeyPatch
) -> None:
    keep = Results.keep

    def change_and_keep(self: Results, *args: Any) -> None:
        change_bit(gates)
        keep(self, *args)

    monkeypatch.setattr(Results, "keep", change_and_keep)
    gates.cached("-k", "wanda")
    assert gates.notes == [
        f"llama/it {WANDA}: not cached: the checkpoint's files were changed meanwhile"
    ]
    assert list(gates.cache.glob("*.result.json")) == []


def test_files_that_change_while_they_are_loaded_are_an_error(
    gates: Gates, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody could say which of the two was measured."""
    load = vars(loading)["load"]

    def load_and_change(*args: Any, **options: Any) -> Any:
        loaded = load(*args, **options)
        change_bit(gates)
        return loaded

    monkeypatch.setattr(loading, "load", load_and_change)
    found = gates.cached("-k", "wanda")
    assert {verdict["outcome"] for verdict in found.values()} == {"error"}
    assert "its files were replaced during this run: run again" in gates.output
    assert list(gates.cache.glob("*.result.json")) == []


def test_files_that_are_replaced_between_two_keys_are_not_cached(
    gates: Gates, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The model in memory is of the files before, whatever is in the folder now."""
    other = save_tiny(gates.path / "other", seed=7) / "model.safetensors"
    keep = Results.keep

    def keep_and_replace(self: Results, *args: Any) -> None:
        keep(self, *args)
        if other.exists():
            os.replace(other, gates.checkpoint / other.name)

    monkeypatch.setattr(Results, "keep", keep_and_replace)
    gates.cached()
    assert gates.notes == [
        f"llama/it {LM_EVAL}: not cached: the checkpoint's files were changed meanwhile"
    ]
    found = gates.cached()
    assert from_cache(found) == [False] * 3
    assert numbers(found) == numbers(gates.run())
    assert {verdict["outcome"] for verdict in found.values()} != {"within"}


def test_switches_that_change_meanwhile_are_not_cached(
    gates: Gates, monkeypatch: pytest.MonkeyPatch
) -> None:
    load = vars(loading)["load"]

    def load_and_change(*args: Any, **options: Any) -> Any:
        torch.set_float32_matmul_precision("medium")
        return load(*args, **options)

    monkeypatch.setattr(loading, "load", load_and_change)
    gates.cached("-k", "wanda")
    (note,) = gates.notes
    assert "not cached: torch was changed meanwhile (" in note
    assert list(gates.cache.glob("*.result.json")) == []


# --------------------------------------------------------------------- ini, CI, xdist


def test_the_ini_file_switches_it_on(gates: Gates) -> None:
    gates.ini("ppl_cache = true\nppl_cache_dir = cache\n")
    gates.run()
    assert from_cache(gates.run()) == [True] * 3
    assert len(list(gates.cache.glob("*.result.json"))) == 2


def test_a_folder_alone_is_a_mistake(gates: Gates) -> None:
    result = gates.pytester.runpytest_inprocess(
        "--ppl-model=llama/it=it", "--ppl-cache-dir=cache"
    )
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(
        ["*--ppl-cache-dir is for --ppl-cache: add that, or leave it out"]
    )


def test_in_ci_it_has_to_be_typed(
    gates: Gates, monkeypatch: pytest.MonkeyPatch
) -> None:
    gates.ini("ppl_cache = true\nppl_cache_dir = cache\n")
    monkeypatch.setenv("CI", "true")
    gates.run()
    assert from_cache(gates.run()) == [False] * 3
    assert gates.notes == [
        "ppl_cache of the ini file has no effect in CI, where other runs may have "
        "filled the cache: type --ppl-cache to use it all the same (docs/cache.md)"
    ]
    assert not gates.cache.exists()
    gates.run("--ppl-cache")
    assert from_cache(gates.run("--ppl-cache")) == [True] * 3
    assert gates.notes == []


def test_workers_share_it(gates: Gates) -> None:
    expected = numbers(gates.cached("-n2"))
    found = gates.cached("-n2")
    assert (numbers(found), from_cache(found)) == (expected, [True] * 3)


# ----------------------------------------------------------------------------- windows


def test_windows_are_cut_once_for_all_weights(
    gates: Gates, monkeypatch: pytest.MonkeyPatch
) -> None:
    gates.filled()
    assert len(list(gates.cache.glob("*.windows.json"))) == 2
    change_bit(gates)
    expected = numbers(gates.run())

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("tokenised again")

    monkeypatch.setattr(CutProtocol, "windows", refuse)
    monkeypatch.setattr(LmEval, "rolling", refuse)
    found = gates.cached()
    assert (numbers(found), from_cache(found)) == (expected, [False] * 3)


def test_wrong_windows_make_nothing_green(gates: Gates) -> None:
    """Even where their digest is right: the baseline knows its own windows."""
    gates.filled()
    change_bit(gates)
    for path in gates.cache.glob("*.windows.json"):
        document = json.loads(path.read_bytes())
        for window in document["entry"]["content"]:
            window["ids"] = window["ids"][::-1]
        seal(path, document)
    found = gates.cached()
    assert {verdict["outcome"] for verdict in found.values()} == {"not comparable"}
    gates.cached("--ppl-update")
    assert {verdict["outcome"] for verdict in gates.run().values()} == {"within"}


def test_damaged_windows_are_cut_again(gates: Gates) -> None:
    gates.filled()
    change_bit(gates)
    expected = numbers(gates.run())
    for path in gates.cache.glob("*.windows.json"):
        path.write_bytes(path.read_bytes().replace(b'"ids":[0,', b'"ids":[1,', 1))
    assert numbers(gates.cached()) == expected
    assert len(gates.notes) == 2
    assert all(" is damaged: made again" in note for note in gates.notes)


@pytest.mark.parametrize(
    "change",
    [
        {"ids": [-5] * 64},
        {"ids": [10**25] * 64},
        {"ids": [], "targets": []},
        {"targets": [-100]},
        {"start": -1},
        {"start": 64},
        {"page": None},
        {"page": 10**9},
    ],
    ids=str,
)
def test_windows_that_cannot_be_are_cut_again(
    gates: Gates, change: dict[str, Any]
) -> None:
    gates.cached("-k", "lm-eval")
    change_bit(gates)
    expected = numbers(gates.run("-k", "lm-eval"))
    (path,) = gates.cache.glob("*.windows.json")
    document = json.loads(path.read_bytes())
    document["entry"]["content"][0].update(change)
    seal(path, document)
    assert numbers(gates.cached("-k", "lm-eval")) == expected
    assert gates.notes == [
        f"llama/it {LM_EVAL}: the cached windows {path} are none that can be "
        "scored: made again"
    ]


# ---------------------------------------------------------------------------- failures


def test_a_failure_from_the_cache_says_where(gates: Gates) -> None:
    path = gates.checkpoint / "config.json"
    config = json.loads(path.read_text())
    edit_json(path, rope_parameters=config["rope_parameters"] | {"rope_theta": 2.0})
    gates.cached()
    measured = [line for line in gates.output.splitlines() if "  where  " in line]
    assert any("window" in line for line in measured)
    gates.cached()
    assert gates.loads == []
    found = [line for line in gates.output.splitlines() if "  where  " in line]
    assert found == measured
    assert len(re.findall(rf"  measured +[\d.]+ \({FROM_CACHE}\)", gates.output)) >= 1


def test_a_hit_imports_nothing_heavy(gates: Gates) -> None:
    """As a user runs it: neither torch nor transformers, datasets nor lm-eval."""
    script = (
        "import sys, pytest\n"
        "status = pytest.main(['-p', 'pytest_pplguard.plugin', 'baselines',\n"
        "    '--ppl-model=llama/it=it', '--ppl-cache', '--ppl-cache-dir=cache'])\n"
        "print('\\n' + ' '.join(sorted(sys.modules)))\n"
        "sys.exit(status)\n"
    )
    environment = os.environ | {
        "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
        "PYTHONPATH": str(ROOT),
    }

    def run() -> tuple[str, set[str]]:
        done = subprocess.run(
            [sys.executable, "-c", script, "-W", "ignore"],
            cwd=gates.path,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout, set(done.stdout.splitlines()[-1].split())

    output, modules = run()
    assert {"torch", "transformers"} <= modules
    assert "from cache" not in output
    output, modules = run()
    assert len(re.findall(FROM_CACHE, output)) == 2
    assert modules.isdisjoint({"torch", "transformers", "datasets", "lm_eval"})


def test_a_result_from_the_cache_needed_no_window_however_early(gates: Gates) -> None:
    early = ("--ppl-early", "--ppl-early-cap=0.001")
    gates.cached(*early)
    assert any("--ppl-early: every window is needed" in note for note in gates.notes)
    verdicts = gates.cached(*early)
    assert all(verdict["cached"] for verdict in verdicts.values())
    assert gates.notes == []
