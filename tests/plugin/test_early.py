"""``--ppl-early``: gates that end before their last window, and those that must not.

Windows of the stub are all alike, whatever the text: so a baseline of ``ppl:8`` and a
checkpoint of ``ppl:8.4`` differ by ln 1.05 in every token. Models that are worse in
some windows only are made from it here.
"""

from __future__ import annotations

import json
import math
import re
import shutil
from pathlib import Path
from xml.etree import ElementTree

import pytest

from pytest_pplguard.baselines import read_baseline, read_evidence
from pytest_pplguard.gates import scoring_order

from .project import Project, section

KEY = "wanda/tiny:16"
OTHER = "lm-eval/wikitext+tiny:64"
COUNT = 40
TEXT = "".join(
    f"{number // 16}{number // 4 % 4}{number % 4} abcdefghijkl"
    for number in range(COUNT)
)
"""Of 40 windows of 16 bytes, each of which begins with its number to the base of 4."""

GATED = f"""
w50:
  gates:
    {KEY}: {{token_perplexity: {{rel: 0.02}}}}
"""

SPOILT = """
import math, os
import torch
from tests.plugin import stub

class Spoilt(torch.nn.Module):
    \"\"\"The stub, but in windows whose ids it knows; counts what it reads.\"\"\"

    def __init__(self, good, bad, windows):
        super().__init__()
        self.good, self.bad = good, bad
        self.windows = windows

    def forward(self, input_ids):
        with open("read.txt", "a") as stream:
            stream.write("x\\n" * len(input_ids))
        name = tuple(input_ids[0, :16].tolist())
        chosen = self.bad if name in self.windows else self.good
        return chosen(input_ids)

def ids_of(number):
    text = open("text.txt").read()
    return tuple(byte % 4 for byte in text[16 * number : 16 * number + 16].encode())

def pytest_pplguard_load_model(checkpoint):
    spec = checkpoint.spec
    if not spec.startswith("spoilt:"):
        return stub.pytest_pplguard_load_model(checkpoint)
    _, good, bad, numbers = spec.split(":")
    windows = {ids_of(int(n)) for n in numbers.split(",") if n}
    model = Spoilt(stub.StubModel(float(good)), stub.StubModel(float(bad)), windows)
    return model, stub.StubTokenizer()
"""
EARLY = ("--ppl-early", "--ppl-early-cap=0.1")
WITHIN = re.compile(
    r"early: within after (\d+) of 40 windows, if no unseen window moved by more than "
    r"0\.1 nats a token; 0\.1 % error"
)


@pytest.fixture
def early(project: Project) -> Project:
    """A project with a text of 40 windows, a recorded baseline of 8 and the model."""
    (project.path / "text.txt").write_text(TEXT)
    (project.path / "conftest.py").write_text(SPOILT)
    project.baseline(GATED, w50="ppl:8")
    return project


def spoilt(good: float, bad: float = 8.0, *numbers: int) -> list[str]:
    words = ",".join(map(str, numbers))
    return [
        "baselines/llama.yaml",
        f"--ppl-model=llama/w50=spoilt:{good}:{bad}:{words}",
    ]


def read(project: Project) -> int:
    """How many windows the model has read, its proof on the first among them."""
    log = project.path / "read.txt"
    count = len(log.read_text().splitlines()) if log.exists() else 0
    log.unlink(missing_ok=True)
    return count


def order(project: Project) -> list[int]:
    """That in which windows are scored, from the baseline file."""
    entry = read_baseline(project.path / "baselines/llama.yaml").checkpoints["w50"]
    digest = entry.recorded[KEY].windows_digest
    assert digest is not None
    return scoring_order(digest, [15] * COUNT)


def fewest_that_find(spoilt: int) -> int:
    """Windows of which 99.9 % of all orders have one of so many spoilt ones."""
    for seen in range(COUNT):
        if math.comb(COUNT - spoilt, seen) / math.comb(COUNT, seen) <= 0.001:
            return seen
    return COUNT


def test_the_ids_of_the_windows_differ() -> None:
    """Else the model could not know which one to spoil."""
    ids = [tuple(b % 4 for b in TEXT[16 * n : 16 * n + 16].encode()) for n in range(40)]
    assert len({*ids}) == COUNT


def test_an_unchanged_checkpoint(early: Project, plugin_args: tuple[str, ...]) -> None:
    result = early.run(*plugin_args, *spoilt(8), *EARLY)
    result.assert_outcomes(passed=1)
    text = section(result)
    match = WITHIN.search(text)
    assert match is not None
    assert text == (
        "llama/w50  baseline  measured  change  outcome\n"
        "  wanda/tiny:16\n"
        "  token_perplexity  8  ~8  +0.00 %  within\n"
        f"  {match[0]}\n"
        "1 within tolerance\n"
    )
    # 0.02 allows 7.92 windows at the cap: so many must not be missed.
    assert 7 < 40 * math.log(1.02) / 0.1 < 8
    fewest = fewest_that_find(8)
    assert fewest <= int(match[1]) <= fewest_that_find(7)
    assert read(early) == int(match[1])


def test_without_the_option_every_window_is_read(early: Project) -> None:
    early.run(*spoilt(8)).assert_outcomes(passed=1)
    assert read(early) == COUNT


@pytest.mark.parametrize("worse", [True, False])
def test_five_percent_off(early: Project, worse: bool) -> None:
    value = 8.4 if worse else 8 / 1.05
    result = early.run(*spoilt(value), *EARLY)
    result.assert_outcomes(failed=1)
    outcome = "regressed" if worse else "improved"
    text = "\n".join(result.stdout.lines)
    match = re.search(rf"  early        {outcome} after (\d+) of 40 windows, if", text)
    assert match is not None
    assert int(match[1]) == read(early) < COUNT
    assert f"measured     about {value:.6g}\n" in text
    assert ("by about 5.00 %" if worse else "by about 4.76 %") in text
    assert "  where " not in text


def test_from_the_ini_file(early: Project) -> None:
    early.ini("ppl_early = true\nppl_early_cap = 0.1\nppl_early_error = 0.1\n")
    text = section(early.run(*spoilt(8)))
    match = re.search(r"after (\d+) of 40 windows, .*; 10 % error", text)
    assert match is not None
    assert int(match[1]) == read(early)
    early.run(*spoilt(8), "-o", "ppl_early=false").assert_outcomes(passed=1)
    assert read(early) == COUNT


def test_a_cap_without_early_is_refused(early: Project) -> None:
    result = early.run(*spoilt(8), "--ppl-early-cap=0.1")
    assert result.ret == 4
    text = "\n".join([*result.stderr.lines, *result.stdout.lines])
    assert "--ppl-early-cap is for --ppl-early: add that, or leave it out" in text
    early.ini("ppl_early_cap = 0.1\n")  # for those who type --ppl-early
    early.run(*spoilt(8)).assert_outcomes(passed=1)


def test_without_a_cap_only_failures_are_early(early: Project) -> None:
    result = early.run(*spoilt(8), "--ppl-early")
    result.assert_outcomes(passed=1)
    assert read(early) == COUNT
    told = (
        "note: --ppl-early without --ppl-early-cap: only a regression can be known "
        "early, a pass takes every window"
    )
    assert section(result).count("early: ") == 0
    assert [line for line in result.stdout.lines if "-cap: only" in line] == [told]

    result = early.run(*spoilt(40), "--ppl-early")
    result.assert_outcomes(failed=1)
    text = "\n".join(result.stdout.lines)
    match = re.search(r"early        regressed after (\d+) of 40 windows; 0", text)
    assert match is not None
    assert int(match[1]) == read(early) < COUNT


def test_an_invalid_loss_where_every_window_is_needed(early: Project) -> None:
    gates = "    gates:\n      " + KEY + ": {token_perplexity: {min: 1, max: 9}}\n"
    (early.path / "baselines/llama.yaml").write_text(
        "schema: 1\nmodel: org/llama\ncheckpoints:\n  w50:\n" + gates
    )
    text = section(
        early.run("baselines/llama.yaml", "--ppl-model=llama/w50=ppl:8,nan:3", *EARLY)
    )
    assert "invalid" in text
    assert "every window is needed: there is no baseline" in text


def test_a_full_run_gives_the_very_verdict(early: Project, tmp_path: Path) -> None:
    """Undecided to the end: what is allowed, and what is measured, nearly touch."""
    reports = []
    for number, options in enumerate(((), EARLY)):
        path = tmp_path / f"{number}.json"
        early.run(*spoilt(8.158), *options, f"--ppl-report={path}").assert_outcomes(
            passed=1
        )
        assert read(early) == COUNT
        verdict = json.loads(path.read_text())["verdicts"][0]
        assert verdict.pop("seconds") >= 0
        reports.append(verdict)
    assert reports[0] == reports[1]
    assert reports[0]["early"] == ""


def test_a_window_beyond_the_cap_forces_the_full_run(early: Project) -> None:
    """The one that is seen first moved by 0.13; the rest is as it was."""
    first = order(early)[0]
    result = early.run(*spoilt(8, 9.1, first), *EARLY)
    result.assert_outcomes(passed=1)
    assert read(early) == COUNT
    note = (
        f"window {first + 1} of 40 moved by +{math.log(9.1 / 8):.3g} nats a token, "
        "more than the cap of 0.1: no gate could pass early"
    )
    assert f"llama/w50 wanda/tiny:16: --ppl-early: {note}" in section(result)

    # Worse windows do not make a failure less sure.
    bad = early.run(*spoilt(8.3, 9.1, first), *EARLY)
    bad.assert_outcomes(failed=1)
    text = "\n".join(bad.stdout.lines)
    assert f"  note         {note}\n" in text
    assert "if no unseen window fell by more than 0.1 nats a token" in text
    assert read(early) < COUNT


def test_defects_within_the_cap_are_not_missed(early: Project) -> None:
    """Windows that come last in the order, as bad as the cap: more than may be."""
    last = order(early)[-10:]
    result = early.run(*spoilt(8, 8 * math.exp(0.0999), *last), *EARLY)
    # Such an order is one of the few that the error leaves.
    assert fewest_that_find(10) < 30
    result.assert_outcomes(passed=1)
    some = order(early)[3::4]
    assert len(some) == 10
    early.run(*spoilt(8, 8 * math.exp(0.0999), *some), *EARLY).assert_outcomes(failed=1)


def test_unseen_windows_beyond_the_cap_are_the_users_assumption(
    early: Project,
) -> None:
    """The verdict says what was assumed, and a full run what was not so."""
    last = order(early)[-1]
    checkpoint = spoilt(8, 80, last)
    result = early.run(*checkpoint, *EARLY)
    result.assert_outcomes(passed=1)
    assert "if no unseen window moved by more than 0.1 nats a token" in section(result)
    early.run(*checkpoint).assert_outcomes(failed=1)


def test_a_loss_that_is_not_finite_is_invalid(early: Project) -> None:
    first = order(early)[1]
    result = early.run(*spoilt(8, math.nan, first), *EARLY)
    result.assert_outcomes(failed=1)
    assert "  token_perplexity  -  -  -  INVALID\n" in section(result)
    assert f"the loss of window {first + 1} of 40 is nan" in "\n".join(
        result.stdout.lines
    )


def test_a_published_value_has_no_windows(early: Project) -> None:
    early.baseline(
        f"""
        w50:
          gates:
            {KEY}: {{token_perplexity: {{rel: 0.02}}}}
          recorded:
            {KEY}:
              token_perplexity: 8.0
              source: {{kind: published, reference: a paper, digits: 1}}
        """
    )
    result = early.run(*spoilt(8), *EARLY)
    result.assert_outcomes(passed=1)
    assert read(early) == COUNT
    assert (
        "llama/w50 wanda/tiny:16: --ppl-early: every window is needed: its baseline "
        "has no evidence: windows cannot be paired" in section(result)
    )


def test_evidence_that_is_lost_is_an_error_and_no_number(early: Project) -> None:
    shutil.rmtree(early.path / "baselines/llama")
    result = early.run(*spoilt(8), *EARLY)
    result.assert_outcomes(errors=1)
    assert "the file does not exist" in "\n".join(result.stdout.lines)
    assert read(early) == 0


def test_no_baseline_and_drift(early: Project) -> None:
    early.baseline(GATED)
    result = early.run(*spoilt(8), *EARLY)
    result.assert_outcomes(failed=1)
    assert "every window is needed: there is no baseline" in section(result)
    assert read(early) == COUNT
    early.baseline(GATED.replace("0.02", "0.02, drift: 0.002"), w50="ppl:8")
    result = early.run(*spoilt(8), *EARLY)
    result.assert_outcomes(passed=1)
    note = "only a failure can be known early: token_perplexity is held to drift"
    assert note in section(result)
    assert read(early) == COUNT
    result = early.run(*spoilt(8.5), *EARLY)
    result.assert_outcomes(failed=1)
    assert note in section(result)
    assert read(early) < COUNT


def test_another_text_is_not_comparable(early: Project) -> None:
    (early.path / "text.txt").write_text(TEXT.replace("abc", "bca"))
    result = early.run(*spoilt(8), *EARLY)
    result.assert_outcomes(failed=1)
    text = section(result)
    assert "  token_perplexity  8  8  -  NOT COMPARABLE\n" in text
    assert "every window is needed: it is not comparable to its baseline" in text


def test_a_relative_gate_needs_full_numbers(early: Project) -> None:
    early.baseline(
        f"""
        dense:
          gates:
            {KEY}: {{token_perplexity: {{rel: 0.02}}}}
        w50:
          gates:
            {KEY}: {{token_perplexity: {{rel: 0.02}}}}
            relative: {{to: dense, key: {KEY}, max_ratio: 1.2}}
        """,
        dense="ppl:8",
        w50="ppl:8",
    )
    both = [*spoilt(8), "--ppl-model=llama/dense=spoilt:8:8:"]
    result = early.run(*both, *EARLY)
    result.assert_outcomes(passed=3)
    assert read(early) == 2 * COUNT
    text = section(result)
    for name in ("dense", "w50"):
        assert (
            f"llama/{name} {KEY}: --ppl-early: every window is needed: the gate "
            "relative of llama/w50 divides full numbers" in text
        )
    # Where the pruned one is not given, nobody divides by the dense one.
    alone = early.run("baselines/llama.yaml", both[-1], *EARLY)
    alone.assert_outcomes(passed=1)
    assert WITHIN.search(section(alone))


def test_python_tests_get_every_window(
    early: Project, plugin_args: tuple[str, ...]
) -> None:
    early.test("@pytest.mark.ppl('wanda')\ndef test_it():\n    pass\n")
    given = spoilt(8)
    result = early.run(*plugin_args, *given, "test_it.py", *EARLY)
    result.assert_outcomes(passed=2)
    text = section(result)
    assert len(WITHIN.findall(text)) == 1
    assert "  token_perplexity  8  8  +0.00 %  within\n" in text


def test_lm_evals_task(early: Project) -> None:
    """Three metrics of one measurement, over many small pages."""
    pages = "".join(
        f" = Page {n} = \n\n some words of page {n} \n\n" for n in range(60)
    )
    (early.path / "text.txt").write_text(pages)
    early.baseline(
        f"""
        w50:
          gates:
            {OTHER}:
              word_perplexity: {{rel: 0.3}}
              byte_perplexity: {{rel: 0.02}}
              bits_per_byte: {{rel: 0.02}}
        """,
        w50="ppl:8",
    )
    result = early.run(*spoilt(8), *EARLY)
    result.assert_outcomes(passed=3)
    text = section(result)
    seen = re.findall(r"early: within after (\d+) of (\d+) windows, if", text)
    assert len(seen) == 3
    assert len({*seen}) == 1
    assert int(seen[0][0]) < int(seen[0][1])
    assert read(early) == int(seen[0][0])

    result = early.run(*spoilt(8.4), *EARLY)
    result.assert_outcomes(failed=2, passed=1)
    full = early.run(*spoilt(8.4))
    full.assert_outcomes(failed=2, passed=1)


def test_nothing_early_is_recorded(early: Project) -> None:
    path = early.path / "baselines/llama.yaml"
    before = path.read_bytes()
    early.run(*spoilt(8), *EARLY).assert_outcomes(passed=1)
    assert path.read_bytes() == before
    result = early.run(*spoilt(8), *EARLY, "--ppl-update")
    assert result.ret == 4
    entry = read_baseline(path).checkpoints["w50"].recorded[KEY]
    evidence = read_evidence(path.parent, entry, where="it")
    assert len(evidence.windows) == COUNT


def test_reruns_do_not_measure_again(early: Project) -> None:
    pytest.importorskip("pytest_rerunfailures")
    result = early.run(*spoilt(8.4), *EARLY, "--reruns=2")
    result.assert_outcomes(failed=1)
    once = read(early)
    assert 0 < once < COUNT


def test_reports_say_it(early: Project) -> None:
    result = early.run(
        *spoilt(8), *EARLY, "--ppl-report=x.json", "--ppl-report=x.md",
        "--ppl-report=x.csv",
    )  # fmt: skip
    result.assert_outcomes(passed=1)
    match = WITHIN.search(section(result))
    assert match is not None
    words = match[0].removeprefix("early: ")
    verdict = json.loads((early.path / "x.json").read_text())["verdicts"][0]
    assert (verdict["early"], verdict["windows"]) == (words, COUNT)
    markdown = (early.path / "x.md").read_text()
    assert f"within ({words})" in markdown
    assert "| ~8 |" in markdown
    assert words in (early.path / "x.csv").read_text()


def test_junit_has_on_what_the_verdict_rests(early: Project) -> None:
    early.run(*spoilt(8), *EARLY, "--junitxml=junit.xml").assert_outcomes(passed=1)
    tree = ElementTree.parse(early.path / "junit.xml")
    values = {p.get("name"): p.get("value") or "" for p in tree.iter("property")}
    text = values["ppl.llama/w50.wanda/tiny:16.token_perplexity.early"]
    assert text.startswith("within after ")
    assert "if no unseen window moved by more than 0.1 nats a token" in text
