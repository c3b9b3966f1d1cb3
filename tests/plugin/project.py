"""Projects for pytester: a corpus, baseline files, the stub, and ways to read runs."""

from __future__ import annotations

import datetime
import re
import textwrap
from collections.abc import Sequence
from pathlib import Path

import pytest

from pytest_pplguard.baselines import record
from pytest_pplguard.checkpoints import Loaded
from pytest_pplguard.corpora import open_corpus
from pytest_pplguard.measure import measure_loaded
from pytest_pplguard.values import Key, Recording
from tests.zygote import forked, forked_workers

from . import stub

TEXT = "the quick brown fox jumps over the lazy dog " * 4
WANDA = "wanda/tiny:16"
LM_EVAL = "lm-eval/wikitext+tiny:64"

_LONG = re.compile(r"\d+\.\d{7,}")
# -o: pytest-asyncio before 0.24 does not know the option, later ones ask for it.
_INI = """\
[pytest]
addopts =
  -p no:cacheprovider --strict-markers
  -o asyncio_default_fixture_loop_scope=function
filterwarnings = error::pytest.PytestWarning
ppl_corpus = tiny=text.txt
"""


class Project:
    """A user's project in a folder of its own."""

    def __init__(self, pytester: pytest.Pytester) -> None:
        self.pytester = pytester
        self.path = pytester.path
        (self.path / "text.txt").write_text(TEXT)
        self.ini("")
        pytester.makeconftest(
            "from tests.plugin.stub import pytest_pplguard_load_model as _load\n"
            "pytest_pplguard_load_model = _load\n"
        )

    def ini(self, more: str) -> None:
        """Add lines to pytest.ini."""
        (self.path / "pytest.ini").write_text(_INI + textwrap.dedent(more))

    def baseline(
        self, body: str, *, file: str = "baselines/llama.yaml", **recorded: str
    ) -> Path:
        """Write a baseline file and record ``NAME="SPEC"`` for all gated keys."""
        path = self.path / file
        path.parent.mkdir(exist_ok=True)
        body = textwrap.indent(textwrap.dedent(body), "  ")
        path.write_text(f"schema: 1\nmodel: org/llama\ncheckpoints:\n{body}")
        for name, spec in recorded.items():
            keys = re.findall(r"(?:wanda|lm-eval)/[\w+]+:\d+", body)
            self.record(path, name, spec, sorted(set(keys)))
        return path

    def record(self, path: Path, name: str, spec: str, keys: Sequence[str]) -> None:
        """Record what ``spec`` measures as the baseline of ``name``."""
        corpus = {"tiny": str(self.path / "text.txt")}
        recordings = [
            Recording(
                file=str(path),
                checkpoint=name,
                measurement=measure_loaded(
                    Loaded.of(*stub.make(spec)),
                    Key.parse(key),
                    lambda name: open_corpus(name, corpus),
                ),
            )
            for key in keys
        ]
        record(recordings, today=datetime.date(2026, 11, 23))

    def test(self, body: str, *, file: str = "test_it.py") -> Path:
        """Write a test module; ``pytest`` is imported in it."""
        path = self.path / file
        path.parent.mkdir(exist_ok=True)
        path.write_text("import pytest\n\n" + textwrap.dedent(body))
        return path

    def run(self, *args: str) -> pytest.RunResult:
        """Run pytest in this process; its workers are forks."""
        # A Ctrl-C in there is no Ctrl-C out here.
        with forked_workers(args):
            return self.pytester.runpytest_inprocess(*args, no_reraise_ctrlc=True)

    def run_apart(self, *args: str) -> pytest.RunResult:
        """Run pytest in a process of its own, without other plugins.

        Pytester, and pytest-rerunfailures, hold on to what tests have raised.
        """
        with forked(), pytest.MonkeyPatch.context() as patch:
            patch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
            patch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
            plugin = ("-p", "pytest_pplguard.plugin")
            ini = ("-W", "ignore::pytest.PytestConfigWarning")  # of other plugins' keys
            return self.pytester.runpytest_subprocess(*plugin, *ini, *args)

    def give(self, **checkpoints: str) -> list[str]:
        """``--ppl-model`` for checkpoints of ``llama.yaml``: ``NAME="SPEC"``."""
        return [
            f"--ppl-model=llama/{name}={spec}" for name, spec in checkpoints.items()
        ]

    def loads(self) -> list[str]:
        """What the stub was asked to load, and how many models were in memory."""
        log = self.path / stub.LOADS
        return log.read_text().splitlines() if log.exists() else []


def section(result: pytest.RunResult) -> str:
    """The summary section ``perplexity``: numbers shortened, columns two apart."""
    lines = result.stdout.lines
    titles = [i for i, line in enumerate(lines) if re.match(r"=+ perplexity =+$", line)]
    if not titles:
        return ""
    rest = lines[titles[0] + 1 :]
    rule = re.compile(r"=+ .* =+$|\d+ \w+.* in [\d.]+s")  # the latter under -q
    end = next(i for i, line in enumerate(rest) if rule.match(line))
    text = "".join(re.sub(" {2,}", "  ", line) + "\n" for line in rest[:end])
    return shorten(text)


def failure(result: pytest.RunResult, title: str) -> str:
    """The text below ``____ title ____``; numbers shortened."""
    lines = result.stdout.lines
    start = next(
        i
        for i, line in enumerate(lines)
        if re.match(rf"_+ {re.escape(title)} _+$", line)
    )
    rest = lines[start + 1 :]
    rule = re.compile(r"[_=]{2,} .* [_=]{2,}$")
    end = next(i for i, line in enumerate(rest) if rule.match(line))
    return shorten("\n".join(rest[:end]).strip("\n") + "\n")


def shorten(text: str) -> str:
    """Long decimals with six significant digits."""
    return _LONG.sub(lambda match: f"{float(match[0]):.6g}", text)
