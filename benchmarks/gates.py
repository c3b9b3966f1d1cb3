"""Whole gates as commands, beside the originals' commands; again, resumed, and idle."""

from __future__ import annotations

import json
import shutil
import statistics
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from .figures import Account, Figure
from .processes import HERE, ROOT, must_be_killed, smollm2_file, timed
from .scoring import EQUAL, why_not
from .settings import Settings, say

Raw = dict[str, Any]

GATE, CACHED, OWN = 0.35, 0.05, 3
WINDOW = 256
_DEMO = ROOT / "pytest_pplguard" / "demo"
_PLAIN = {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
"""Only this plugin: another one of a developer's may import much."""
_TASK = """\
task: wikitext_pages
dataset_path: json
dataset_kwargs:
  data_files:
    test: {pages}
output_type: loglikelihood_rolling
test_split: test
doc_to_text: ""
doc_to_target: !function preprocess_wikitext.wikitext_detokenizer
process_results: !function preprocess_wikitext.process_results
should_decontaminate: true
doc_to_decontamination_query: "{{{{page}}}}"
metric_list:
  - metric: word_perplexity
  - metric: byte_perplexity
  - metric: bits_per_byte
metadata:
  version: 2.0
"""
_SMOLLM2 = """\
schema: 1
model: smollm2
checkpoints:
  dense:
    gates:
      {key}: {{token_perplexity: {{rel: 0.005}}}}
"""


def pytest_command(*arguments: str) -> list[str]:
    """``pytest`` with this plugin only."""
    options = ("-q", "-p", "no:cacheprovider", "-p", "pytest_pplguard.plugin")
    return [sys.executable, "-m", "pytest", *options, *arguments]


def measure_gate(settings: Settings) -> Raw:
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        (folder / "pytest.ini").write_text("[pytest]\n")
        raw = {
            "account": _account(1 if settings.quick else 3),
            "originals": _beside_originals(folder, 1 if settings.quick else 2),
            "idle": _idle(folder, 2 if settings.quick else 7),
        }
        absent = why_not("smollm2")
        raw["again"] = {"absent": absent} if absent else _again(folder, settings)
    return raw


# ---------------------------------------------------------------------- the originals


def _beside_originals(folder: Path, rounds: int) -> Raw:
    """Rounds of: the demo's gates, one checkpoint's, and both originals' on each."""
    from pytest_pplguard.corpora import open_corpus

    corpus = open_corpus("demo", {})
    baselines = folder / "baselines"
    baselines.mkdir()
    shutil.copy(ROOT / "baselines" / "demo.yaml", baselines)
    shutil.copytree(ROOT / "baselines" / "demo", baselines / "demo")
    rows, pages, tasks = folder / "rows.json", folder / "pages.jsonl", folder / "tasks"
    rows.write_text(json.dumps(corpus.rows), encoding="utf-8")
    pages.write_text(
        "".join(json.dumps({"page": page}) + "\n" for page in corpus.pages),
        encoding="utf-8",
    )
    _write_task(tasks, pages)
    seconds: dict[str, list[float]] = {}
    values: dict[tuple[str, str], float] = {}

    def run(name: str, command: Sequence[str]) -> str:
        took, output = timed(command, folder, _PLAIN)
        seconds.setdefault(name, []).append(took)
        say(f"{name}: {took:.1f} s")
        return output

    for _ in range(rounds):
        report = folder / "report.json"
        arguments = ("baselines/demo.yaml", f"--ppl-journal={folder / 'journal'}")
        for name in ("demo", "demo/dense"):
            report.unlink(missing_ok=True)
            run(
                f"pytest {name}",
                pytest_command(
                    *arguments, f"--ppl-model={name}", f"--ppl-report={report}"
                ),
            )
            if name == "demo":
                measured = json.loads(report.read_text(encoding="utf-8"))
        for name in ("dense", "wanda-50"):
            model = str(_DEMO / name)
            out = folder / f"out-{name}"
            script = str(HERE / "wanda_process.py")
            text = run(
                f"original wanda {name}",
                [sys.executable, script, model, str(rows), str(WINDOW)],
            )
            values[f"demo/{name}", "wanda"] = float(text.split()[-1])
            run(
                f"original lm_eval {name}",
                _lm_eval(model, tasks, out),
            )
            values[f"demo/{name}", "lm-eval"] = _word_perplexity(out)
        _check_values(values, measured)
    return {"seconds": seconds}


def _write_task(folder: Path, pages: Path) -> None:
    import lm_eval

    folder.mkdir()
    stock = Path(lm_eval.__file__).parent / "tasks" / "wikitext"
    shutil.copy(stock / "preprocess_wikitext.py", folder)
    text = _TASK.format(pages=pages)
    (folder / "wikitext_pages.yaml").write_text(text, encoding="utf-8")


def _lm_eval(model: str, tasks: Path, out: Path) -> list[str]:
    return [
        *(sys.executable, "-m", "lm_eval", "--model", "hf", "--model_args"),
        f"pretrained={model},dtype=float32,max_length={WINDOW}",
        *("--tasks", "wikitext_pages", "--include_path", str(tasks)),
        *("--device", "cpu", "--batch_size", "1", "--output_path", str(out)),
    ]


def _word_perplexity(folder: Path) -> float:
    file = max(folder.rglob("results_*.json"), key=lambda path: path.stat().st_mtime_ns)
    results = json.loads(file.read_text(encoding="utf-8"))["results"]
    return float(results["wikitext_pages"]["word_perplexity,none"])


def _check_values(values: dict[tuple[str, str], float], report: Raw) -> None:
    """Both sides must have measured the same."""
    metrics = {"wanda": "token_perplexity", "lm-eval": "word_perplexity"}
    found = {
        (one["checkpoint"], one["key"].partition("/")[0]): one["measured"]
        for one in report["verdicts"]
        if one["metric"] == metrics.get(one["key"].partition("/")[0])
    }
    for (checkpoint, method), theirs in values.items():
        ours = found[checkpoint, method]
        if not abs(ours / theirs - 1) <= EQUAL:
            raise SystemExit(
                f"{checkpoint} {method}: the gate measures {ours!r}, the original "
                f"{theirs!r}"
            )


# -------------------------------------------------------------------- again, and idle


def _again(folder: Path, settings: Settings) -> Raw:
    """SmolLM2: a full run, one from the cache, and one that goes on from half."""
    windows, window = (4, 128) if settings.quick else (40, 512)
    key = f"wanda/text:{window}:first{windows}"
    project = folder / "smollm2"
    (project / "baselines").mkdir(parents=True)
    (project / "pytest.ini").write_text("[pytest]\n")
    text = (_DEMO / "demo.txt").read_text(encoding="utf-8")
    (project / "text.txt").write_text(text * 3, encoding="utf-8")
    gates = _SMOLLM2.format(key=key)
    (project / "baselines" / "smollm2.yaml").write_text(gates)
    cache = ("--ppl-cache", f"--ppl-cache-dir={project / 'cache'}")
    shared = (
        f"--ppl-model=smollm2/dense={smollm2_file()}",
        f"--ppl-corpus=text={project / 'text.txt'}",
        f"--ppl-journal={project / 'journal'}",
    )
    seconds: dict[str, list[float]] = {}

    def run(name: str, *arguments: str) -> None:
        took, _ = timed(pytest_command(*shared, *arguments), project, _PLAIN)
        seconds.setdefault(name, []).append(took)
        say(f"SmolLM2, {windows} windows of {window}, {name}: {took:.1f} s")

    run("full", *cache, "--ppl-update")  # records, and fills the cache
    for _ in range(1 if settings.quick else 3):
        run("cached", *cache)
    must_be_killed(
        pytest_command(*shared, "-p", "benchmarks.killed_process"),
        project,
        {**_PLAIN, "PPLGUARD_BENCHMARK_KILLED_AFTER": str(windows // 2)},
    )
    run("resumed")
    return {"seconds": seconds, "windows": windows, "window": window}


def _idle(folder: Path, rounds: int) -> Raw:
    """What the plugin costs a run that does not use it, and what collecting costs."""
    tests = folder / "tests"
    tests.mkdir()
    (tests / "test_one.py").write_text("def test_one():\n    pass\n")
    bare = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests"]
    commands = {
        "pytest without the plugin": bare,
        "pytest with the plugin": pytest_command("tests"),
        "pytest --collect-only of the demo": pytest_command(
            "--collect-only", "baselines/demo.yaml", "--ppl-model=demo"
        ),
    }
    seconds: dict[str, list[float]] = {name: [] for name in commands}
    for _ in range(rounds):
        for name, command in commands.items():
            seconds[name].append(timed(command, folder, _PLAIN)[0])
    return {"seconds": seconds}


def _account(runs: int) -> list[dict[str, float]]:
    found = []
    for _ in range(runs):
        found.append(_run_account())
        say(f"demo gate: {found[-1]}")
    return found


def _run_account() -> dict[str, float]:
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder, "seconds.json")
        took, _ = timed(
            [
                *(sys.executable, str(HERE / "gate_process.py"), str(out)),
                *("baselines/demo.yaml", "--ppl-model", "demo"),
                *("-p", "no:cacheprovider", "-p", "no:hypothesispytest"),
                f"--ppl-journal={folder}/journal",
            ],
            ROOT,
        )
        seconds = json.loads(out.read_text(encoding="utf-8"))
    if not all(seconds.values()):
        raise SystemExit(f"gate_process.py no longer sees everything: {seconds}")
    return {"total": took, **seconds}


# ----------------------------------------------------------------------------- figures


def gate_figures(raw: Raw) -> list[Figure]:
    accounts = sorted((Account(**one) for one in raw["account"]), key=_own)
    account = accounts[len(accounts) // 2]
    note = f"median of {len(accounts)} runs; the same run's parts:"
    figures = [
        Figure("demo gate, own time", account.own, "s", OWN, note),
        *(
            Figure(f"  {part}", getattr(account, part), "s")
            for part in ("total", "imports", "loading", "forward")
        ),
    ]
    seconds = raw["originals"]["seconds"]
    rounds = len(seconds["pytest demo"])
    median: Callable[[str], float] = lambda name: statistics.median(seconds[name])  # noqa: E731
    for ours, names in {
        "demo": ("dense", "wanda-50"),
        "demo/dense": ("dense",),
    }.items():
        theirs = [
            sum(
                seconds[f"original {method} {name}"][turn]
                for name in names
                for method in ("wanda", "lm_eval")
            )
            for turn in range(rounds)
        ]
        ratios = [
            one / other
            for one, other in zip(seconds[f"pytest {ours}"], theirs, strict=True)
        ]
        figures.append(
            Figure(
                f"gate {ours} / both originals",
                statistics.median(ratios),
                "x",
                GATE,
                f"{median(f'pytest {ours}'):.1f} s against "
                f"{statistics.median(theirs):.1f} s, {2 * len(names)} commands",
            )
        )
    figures += [
        Figure(f"  {name}", statistics.median(took), "s")
        for name, took in seconds.items()
    ]
    figures += _again_figures(raw["again"])
    idle = {n: statistics.median(took) for n, took in raw["idle"]["seconds"].items()}
    cost = idle["pytest with the plugin"] - idle["pytest without the plugin"]
    return [
        *figures,
        Figure("plugin that is not used, a run", 1e3 * cost, "ms"),
        Figure("collecting the demo", idle["pytest --collect-only of the demo"], "s"),
    ]


def _again_figures(again: Raw) -> list[Figure]:
    if "absent" in again:
        return [Figure("cached / full", None, "x", CACHED, again["absent"])]
    took = {name: statistics.median(s) for name, s in again["seconds"].items()}
    what = f"SmolLM2, {again['windows']} windows of {again['window']}"
    return [
        Figure(f"full run, {what}", took["full"], "s"),
        Figure("  cached / full", took["cached"] / took["full"], "x", CACHED),
        Figure("  resumed from half / full", took["resumed"] / took["full"], "x"),
    ]


def _own(account: Account) -> float:
    return account.own
