"""What the terminal shows: how much, in which colours, whatever is in the names."""

from __future__ import annotations

import csv
import json
import os
import re
import subprocess
import sys
import unicodedata
from pathlib import Path
from xml.etree import ElementTree

import pytest

from tests.zygote import programs

from .project import WANDA, Project, failure, section

GATES = """
w50:
  gates:
    wanda/tiny:16: {token_perplexity: {}}
    lm-eval/wikitext+tiny:64: {word_perplexity: {rel: 10}, byte_perplexity: {}}
dense:
  gates:
    wanda/tiny:16: {token_perplexity: {}}
"""
COUNTS = "2 regressed, 2 within tolerance\n"
FAILED = """\
llama/w50  baseline  measured  change  outcome
  wanda/tiny:16
  token_perplexity  8  9  +12.50 %  REGRESSED
  lm-eval/wikitext+tiny:64
  byte_perplexity  8  9  +12.50 %  REGRESSED
"""


def recorded(project: Project) -> None:
    """Both checkpoints have the baselines that their gates need."""
    path = project.baseline(GATES, w50="ppl:8")
    project.record(path, "dense", "ppl:7", [WANDA])


@pytest.fixture
def red(project: Project) -> list[str]:
    """Two gates of four fail."""
    recorded(project)
    return project.give(w50="ppl:9", dense="ppl:7")


# ----------------------------------------------------------------------------- how much


def test_quiet_is_what_failed_and_the_counts(
    project: Project, red: list[str], plugin_args: tuple[str, ...]
) -> None:
    result = project.run("-q", *red, *plugin_args)
    assert section(result) == FAILED + COUNTS
    assert "pplguard: " not in result.stdout.str()
    assert failure(result, "llama/w50 wanda/tiny:16 token_perplexity")


def test_quiet_and_green_is_the_counts(project: Project) -> None:
    recorded(project)
    result = project.run("-q", *project.give(w50="ppl:8", dense="ppl:7"))
    assert section(result) == "4 within tolerance\n"


def test_quiet_recording_says_what_and_where(project: Project) -> None:
    recorded(project)
    given = project.give(w50="ppl:9")
    result = project.run("-q", "--ppl-update", *given)
    assert section(result) == "3 recorded\nrecorded 4 values in baselines/llama.yaml\n"


def test_quieter_is_what_pytest_says_of_failures(
    project: Project, red: list[str]
) -> None:
    result = project.run("-qq", *red)
    lines = result.stdout.lines
    assert not any("perplexity ===" in line for line in lines)
    assert COUNTS.strip() not in lines
    shown = [line for line in lines if line.startswith("FAILED ")]
    assert len(shown) == 2
    assert shown[0].startswith(
        "FAILED baselines/llama.yaml::w50::wanda/tiny:16::token_perplexity - llama/w50"
    )


def test_what_makes_a_run_red_is_never_silent(project: Project) -> None:
    project.baseline("w50:\n  gates: {}\n")
    project.test("def test_it():\n    pass\n")
    result = project.run("-qq", *project.give(w50="ppl:8"))
    assert result.ret == 1
    (line,) = (line for line in result.stdout.lines if line.startswith("FAILED"))
    assert line.startswith("FAILED --ppl-model llama/w50=ppl:8: no gate was measured")


def test_verbose_says_what_was_loaded_how_long_it_took_and_where(
    project: Project, red: list[str], plugin_args: tuple[str, ...]
) -> None:
    result = project.run("-v", *red, *plugin_args)
    text = re.sub(r"\d+\.\d s", "0.0 s", section(result))
    dense, w50 = text.index("llama/dense "), text.index("llama/w50 ")
    assert dense < w50
    assert "  wanda/tiny:16: 11 windows, 0.0 s\n" in text
    assert "  lm-eval/wikitext+tiny:64: 3 windows, 0.0 s\n" in text
    assert "\nloaded llama/w50 (ppl:9) in 0.0 s: float64 on cpu\n" in text
    assert text.count("loaded ") == 2
    # The same for all: nobody needs to be told whose it is.
    (environment,) = re.findall(r"^environment.*$", text, re.MULTILINE)
    assert environment.startswith("environment: dtype float64, device cpu, ")
    assert f"python {sys.version.partition(' ')[0]}" in environment


# ------------------------------------------------------------------------------- colour

BOLD, RED, GREEN, OFF = "\x1b[1m", "\x1b[31m", "\x1b[32m", "\x1b[0m"
COLOURS = re.compile(r"\x1b\[\d+m")


def test_colours_and_nothing_that_only_colours_say(
    project: Project, red: list[str]
) -> None:
    # Pytest cuts lines of its own by their length, colours included.
    plain = project.run(*red, "-rN", "--color=no").stdout.str()
    colour = project.run(*red, "-rN", "--color=yes").stdout.str()
    assert f"{BOLD}{RED}REGRESSED{OFF}" in colour
    assert f"{RED}  +12.50 %{OFF}" in colour
    assert f"{GREEN}within{OFF}" in colour
    assert f"{BOLD}{RED}2 regressed{OFF}, {GREEN}2 within tolerance{OFF}" in colour
    headline = "llama/w50 wanda/tiny:16: token_perplexity regressed by 12.50 %"
    assert f"{BOLD}{RED}{headline}{OFF}\n" in colour
    assert f"{BOLD}llama/w50                      baseline" in colour
    assert "\x1b" not in plain
    told = COLOURS.sub("", colour)
    seconds = re.compile(r"\d+\.\d\d?s?\b|=+")
    assert seconds.sub("", told) == seconds.sub("", plain)


# ----------------------------------------------------------------------- whatever it is

EVIL = (
    "<script>alert(1)</script> \"'`|$(x) \x1b[31mred\x1b]8;;x\x1b\\link\x07 \r\b\x00"
    "\x9b32m \u202edlrow\u2066 \u2028 \ud83d \udcff ] \x85 é\u6587 =1+1 \n::error::x"
)
UNSEEN = {"Cc", "Cf", "Cs", "Zl", "Zp"}


def unseen(text: str) -> str:
    """What no reader would see in a text of several lines."""
    return "".join(c for c in text if unicodedata.category(c) in UNSEEN and c != "\n")


def evil_project(project: Project) -> list[str]:
    """One checkpoint cannot be loaded, one regresses; both say what they should not."""
    word = "w" * 4096
    (project.path / "text.txt").write_text(
        f" \n = {EVIL[:40]} = \n \n" + "the quick brown fox jumps " * 8,
        encoding="utf-8",
    )
    project.baseline(GATES, w50="ppl:8")
    project.pytester.makeconftest(
        "from pytest_pplguard.errors import CheckpointError\n"
        "from tests.plugin import stub\n"
        f"EVIL, WORD = {EVIL!r}, {word!r}\n"
        "stub.StubTokenizer.decode = lambda self, ids, **_: EVIL + WORD\n"
        "def pytest_pplguard_load_model(checkpoint):\n"
        "    if checkpoint.name == 'llama/dense':\n"
        "        raise CheckpointError(f'{EVIL}: no tensor {WORD}')\n"
        "    return stub.pytest_pplguard_load_model(checkpoint)\n"
    )
    # A command line holds no NUL, and this one is split at colons and commas.
    path = EVIL.translate({0: None, ord(":"): None}).replace("\ud83d", "") + word
    return project.give(w50=f"ppl:9,{path}:1", dense=f"{path}")


def run_real(
    project: Project, *words: str, **environment: str
) -> subprocess.CompletedProcess[bytes]:
    """Pytest in a process of its own, as bytes: what it writes may be no text."""
    command = [str(programs() / "pytest"), "-p", "pytest_pplguard.plugin", *words]
    clean = {
        name: value
        for name, value in os.environ.items()
        if name not in ("CI", "LC_ALL", "PYTHONIOENCODING", "PYTHONUTF8", "COLUMNS")
    }
    return subprocess.run(
        [*command, "-W", "ignore::pytest.PytestConfigWarning"],
        cwd=project.path,
        env=clean
        | {"PYTHONPATH": str(Path(__file__).parents[2])}
        | {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
        | environment,
        capture_output=True,
        timeout=300,
        check=False,
    )


def test_evil_names_and_texts_in_every_output(project: Project) -> None:
    given = evil_project(project)
    reports = [f"--ppl-report=report.{suffix}" for suffix in ("json", "md", "csv")]
    result = run_real(
        project,
        *given,
        *reports,
        "--junitxml=junit.xml",
        GITHUB_ACTIONS="true",
        GITHUB_STEP_SUMMARY=str(project.path / "summary.md"),
    )
    assert result.returncode == 1
    out = result.stdout.decode("utf-8")
    # Terminal: all of it is there, written out, and no line is one of the text's own.
    assert unseen(out) == ""
    assert "\\x1b[31mred\\x1b]8;;x" in out
    assert "\\u202edlrow" in out
    commands = [line for line in out.splitlines() if line.startswith("::")]
    assert len(commands) == 3  # annotations: ours, of three red gates
    assert all(
        line.startswith("::error file=baselines/llama.yaml") for line in commands
    )
    assert "REGRESSED" in out
    assert max(map(len, re.findall(r"  where .*", out))) < 200  # snippets are short
    # JSON: the very data.
    document = json.loads((project.path / "report.json").read_text(encoding="utf-8"))
    given_path = given[0].partition("=")[2].partition("=")[2]
    paths = {verdict["path"] for verdict in document["verdicts"]}
    assert os.fsencode(given_path) in {os.fsencode(path) for path in paths}
    # Markdown, also of the job's summary, and CSV: nothing that cannot be seen.
    for name in ("report.md", "summary.md", "report.csv"):
        text = (project.path / name).read_bytes().decode("utf-8")
        assert unseen(text) == "", name
        assert "\\x1b[31m" in text, name
    markdown = (project.path / "report.md").read_text(encoding="utf-8")
    fenced = re.sub(r"^(`{3,})text\n.*?^\1$", "", markdown, flags=re.M | re.S)
    outside = re.sub(r"(?<!`)(`+)(?!`).*?(?<!`)\1(?!`)", "", fenced)
    assert "<script>" not in outside
    with (project.path / "report.csv").open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert len(rows) == 4
    texts = ("checkpoint", "key", "reasons", "notes", "command", "path", "reference")
    assert not any(
        row[name].startswith(("=", "+", "-", "@")) for row in rows for name in texts
    )
    # JUnit: XML that parses, with its figures.
    tree = ElementTree.parse(project.path / "junit.xml")
    properties = {p.get("name"): p.get("value") for p in tree.iter("property")}
    outcome = properties["ppl.llama/w50.wanda/tiny:16.token_perplexity.outcome"]
    assert outcome == "regressed"
    assert "\\x1b[31mred" in "".join(tree.getroot().itertext())


TOWN = "Gj\xf8vik \u2026 \u6587"


@pytest.mark.parametrize(
    "environment",
    [
        {"PYTHONIOENCODING": "ascii"},
        {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
        {"PYTHONIOENCODING": "cp1252"},
    ],
    ids=["ascii", "C", "cp1252"],
)
def test_a_console_without_unicode(
    project: Project, environment: dict[str, str]
) -> None:
    project.baseline(GATES, w50="ppl:8")
    project.pytester.makeconftest(
        "from tests.plugin import stub\n"
        "from tests.plugin.stub import pytest_pplguard_load_model as _load\n"
        f"stub.StubTokenizer.decode = lambda self, ids, **_: {TOWN!r}\n"
        "pytest_pplguard_load_model = _load\n"
    )
    result = run_real(project, "-k", "w50", *project.give(w50="ppl:9"), **environment)
    encoding = "cp1252" if "cp1252" in environment.values() else "ascii"
    out = result.stdout.decode(encoding)
    assert result.returncode == 1
    assert result.stderr == b""
    town = "Gjøvik …" if encoding == "cp1252" else "Gj\\xf8vik ..."
    lines = out.splitlines()
    where = [line for line in lines if line.startswith("  where        window 1 of")]
    assert where
    assert all(f'at "{town} \\u6587' in line for line in where)
    # Lines are still lines, which pytest alone would have written as \n.
    start = lines.index(
        "llama/w50 wanda/tiny:16: token_perplexity regressed by 12.50 %"
    )
    assert lines[start + 1].startswith("  baseline     ")
    assert "2 regressed, 1 within tolerance" in lines


# --------------------------------------------------------------------- errors told once


def test_a_checkpoint_that_cannot_be_loaded_is_told_in_full_once(
    project: Project, plugin_args: tuple[str, ...]
) -> None:
    recorded(project)
    long = "its weights lack " + ", ".join(f"layers.{n}.weight" for n in range(40))
    project.pytester.makeconftest(
        "from pytest_pplguard.errors import CheckpointError\n"
        "def pytest_pplguard_load_model(checkpoint):\n"
        f"    raise CheckpointError({long!r})\n"
    )
    given = project.give(w50="ppl:9")
    result = project.run(*given, "--junitxml=junit.xml", "-rN", *plugin_args)
    result.assert_outcomes(errors=3, deselected=0 if "-n2" in plugin_args else 1)
    because = [line for line in result.stdout.lines if line.startswith("  because")]
    short = f"{long[:80].rstrip()} ... (in full further up)"
    assert because == [
        f"  because      {long}",
        f"  because      {short}",
        f"  because      {short}",
    ]
    # Whoever reads one test of the XML needs all of it there.
    tree = ElementTree.parse(project.path / "junit.xml")
    assert [long in (error.text or "") for error in tree.iter("error")] == [True] * 3


def test_a_slip_in_a_baseline_file_is_all_that_is_told(project: Project) -> None:
    project.baseline("w50:\n  gate: {}\n")
    result = project.run(*project.give(w50="ppl:9"))
    assert result.ret == 4
    (line,) = (line for line in result.stderr.lines if line.startswith("ERROR"))
    assert "baselines/llama.yaml:5" in line
    assert "gate" in line
    assert "--ppl-model" not in "".join(result.stderr.lines)


def test_a_slip_in_another_file_does_not_hide_ones_own(project: Project) -> None:
    project.baseline(GATES, w50="ppl:8")
    project.baseline("w50:\n  gate: {}\n", file="baselines/opt.yaml")
    result = project.run("--ppl-model=llama/w60=ppl:9")
    assert result.ret == 4
    text = "\n".join(result.stderr.lines)
    assert "baselines/opt.yaml:5" in text
    assert "'llama/w60' is no recorded checkpoint" in text


def test_a_failure_that_somebody_else_has_reworded(
    project: Project, red: list[str], plugin_args: tuple[str, ...]
) -> None:
    conftest = project.path / "conftest.py"
    conftest.write_text(
        f"{conftest.read_text()}\n"
        "import pytest\n"
        "@pytest.hookimpl(wrapper=True, tryfirst=True)\n"
        "def pytest_runtest_makereport():\n"
        "    report = yield\n"
        "    if report.failed:\n"
        "        report.longrepr = f'IN OTHER WORDS {report.longrepr}'\n"
        "    return report\n"
    )
    result = project.run(*red, *plugin_args)
    assert result.ret == 1
    result.stdout.fnmatch_lines(
        [
            "IN OTHER WORDS llama/w50 wanda/tiny:16: token_perplexity regressed by*",
            "* perplexity *",
            COUNTS.strip(),
        ]
    )


def test_a_home_that_nobody_has(project: Project) -> None:
    project.baseline(GATES, w50="ppl:8")
    (project.path / "conftest.py").write_text("")  # the checkpoint is read from files
    result = project.run("--ppl-model=llama/w50=~no-such-user/x")
    assert result.ret == 1
    assert "no-such-user/x does not exist" in result.stdout.str()
    assert "RuntimeError" not in result.stdout.str()
