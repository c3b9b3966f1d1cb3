"""Gates and commands through a server, as a user runs them."""

from __future__ import annotations

import json
import re
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from pytest_pplguard.baselines import read_baseline
from pytest_pplguard.checkpoints import Loaded
from pytest_pplguard.lm_eval_tasks import TaskSource
from pytest_pplguard.measure import measure_loaded
from pytest_pplguard.values import Key

from .commands import pplguard, run_pytest
from .completions_server import Served
from .local_tasks import write_task
from .test_server import assert_same, corpus_of, measured, opened

REPOSITORY = Path(__file__).parents[2]

pytestmark = pytest.mark.usefixtures("as_it_was")


def by_server(server: Served, *more: str) -> tuple[str, ...]:
    return ("--executor", "server", "--server", server.url, *more)


def windows_by_model(server: Served) -> dict[str, Counter[tuple[int, ...]]]:
    """How often each window was asked for, without how the server speaks."""
    found: dict[str, Counter[tuple[int, ...]]] = {}
    for payload in server.completions():
        of = found.setdefault(payload["model"], Counter())
        if len(payload["prompt"]) > 16:
            of[tuple(payload["prompt"])] += 1
    return found


def test_gates_of_recorded_baselines_pass_by_a_server(
    server: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two workers, each with a checkpoint; no window is asked for twice."""
    secret = "sk-very-secret"
    monkeypatch.setenv("PPL_SERVER_API_KEY", secret)
    server.switch(key=secret)
    report = tmp_path / "report.json"
    result = run_pytest(
        f"pytest {REPOSITORY}/baselines/demo.yaml --ppl-model demo -n 2 "
        f"-k not(first16) --ppl-executor server --ppl-server {server.url} "
        f"--ppl-replicas 2 --ppl-report {report}",
        REPOSITORY,
    )
    assert result.returncode == 0, result.stdout
    asked = windows_by_model(server)
    assert asked.keys() == {"dense", "pruned"}
    for windows in asked.values():
        # The first window is asked for again at the end of both keys.
        assert len(windows) == 64 + 72
        assert sorted(windows.values())[-2:] == [1, 3]
    output = " ".join(result.stdout.split())
    assert "demo/dense: its losses are those of vllm 0.32.0" in output
    assert (
        "demo/wanda-50: gates of weights are about the files of demo/wanda-50, "
        "whatever the server runs"
    ) in output
    document = json.loads(report.read_text())
    notes = [note for verdict in document["verdicts"] for note in verdict["notes"]]
    assert (
        "measured by a server (vllm 0.32.0, its model dense), baseline on cpu "
        "(float32, torch 2.13.0+cpu)"
    ) in notes
    assert secret not in result.stdout + result.stderr + report.read_text()


def test_kl_gates_are_errors_in_words(server: Served) -> None:
    server.switch()
    result = run_pytest(
        f"pytest {REPOSITORY}/baselines/demo.yaml --ppl-model demo "
        f"-k first16 --ppl-executor server --ppl-server {server.url}",
        REPOSITORY,
    )
    assert result.returncode == 1
    output = " ".join(result.stdout.split())
    assert "key kl/demo:256:first16: a server tells of the text's own" in output
    assert server.requests() == []


def test_kl_is_refused_before_other_methods_are_measured(
    server: Served, tmp_path: Path
) -> None:
    server.switch()
    result = pplguard(
        "measure", "demo/dense", "--method", "wanda", "--method", "kl", "--reference",
        "demo/dense", "--corpus", "demo", "--executor", "server",
        "--server", server.url,
        cwd=tmp_path,
    )  # fmt: skip
    assert result.returncode == 2
    assert "a server tells of the text's own tokens" in result.stderr
    assert server.requests() == []


def test_update_records_the_servers_environment(
    server: Served, dense: Loaded, tmp_path: Path
) -> None:
    result = pplguard(
        "update", "demo/dense", "--checkpoint", "served/dense", "--base", "demo",
        "--method", "wanda", "--corpus", "demo", "--window", "256", "--limit", "4",
        "--executor", "server", "--server", server.url,
        cwd=tmp_path,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert (
        "recorded without a fingerprint and a gate of sparsity: nobody here sees the "
        "server's weights"
    ) in " ".join(result.stderr.split())
    entry = read_baseline(tmp_path / "baselines/served.yaml").checkpoints["dense"]
    assert entry.fingerprint is None
    assert entry.gates.sparsity is None
    recorded = entry.recorded["wanda/demo:256:first4"]
    assert recorded.environment["device_name"] == "vllm 0.32.0"
    assert "torch" not in recorded.environment
    here = measured(dense, "wanda/demo:256:first4")
    assert recorded.metrics == pytest.approx(here.metrics, rel=1e-6)


@pytest.mark.parametrize("dialect", ["vllm", "echo"])
def test_a_task_of_lm_eval_gives_the_local_numbers(
    server: Served, dense: Loaded, dialect: str, tmp_path: Path
) -> None:
    """Answers, their greediness, accuracies and standard errors."""
    write_task(tmp_path, "arc_easy")
    write_task(tmp_path, "lambada_openai")
    server.switch(offered=["dense"], dialect=dialect)
    subject = opened(server, replicas=2)
    source = TaskSource((str(tmp_path),))
    for key in ("lm-eval/arc_easy:256", "lm-eval/lambada_openai:256"):
        there, here = (
            measure_loaded(model, Key.parse(key), corpus_of, tasks=source)
            for model in (subject, dense)
        )
        assert there.environment["executor"] == "server"
        assert there.windows == len(there.evidence) > 5
        assert there.stderr == pytest.approx(here.stderr, rel=1e-5)
        for one, other in zip(there.documents, here.documents, strict=True):
            assert (one.task, one.document) == (other.task, other.document)
            assert one.values == pytest.approx(other.values, rel=1e-6)
        assert_same(there, here)


def test_compare_and_explain_give_the_local_numbers(
    server: Served, tmp_path: Path
) -> None:
    how = ("--corpus", "demo", "--window", "256", "--limit", "2", "--json", "-")
    for command, models in (
        (("compare", "demo/dense", "demo/wanda-50"), {"dense", "pruned"}),
        (("explain", "demo/dense"), {"dense"}),
    ):
        server.switch()
        here = pplguard(*command, *how, cwd=tmp_path)
        there = pplguard(*command, *how, *by_server(server), cwd=tmp_path)
        assert here.returncode == there.returncode == 0, there.stderr
        asked = windows_by_model(server)
        assert asked.keys() == models
        assert all(len(windows) > 4 for windows in asked.values())
        assert_near(json.loads(there.stdout), json.loads(here.stdout))


def assert_near(there: Any, here: Any, where: str = "") -> None:
    """Two documents with the same numbers, but for what they say of where it ran."""
    if isinstance(here, dict):
        ours = here.keys() - {"environment", "seconds"}
        assert ours == there.keys() - {"environment", "seconds"}, where
        for name in ours:
            assert_near(there[name], here[name], f"{where}.{name}")
    elif isinstance(here, list):
        assert len(there) == len(here), where
        for index, (one, other) in enumerate(zip(there, here, strict=True)):
            assert_near(one, other, f"{where}[{index}]")
    elif isinstance(here, float):
        assert there == pytest.approx(here, rel=1e-4, abs=1e-6), where
    else:
        assert there == here, where


def test_a_gate_that_is_decided_early_asks_for_fewer_windows(
    server: Served, tmp_path: Path
) -> None:
    done = pplguard(
        "update", "demo/wanda-50", "--checkpoint", "mine/w50", "--base", "demo",
        "--method", "wanda", "--corpus", "demo", "--window", "128",
        cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    path = tmp_path / "baselines/mine.yaml"
    path.write_text(path.read_text().replace("rel: 0.005, drift: 0.002", "rel: 0.02"))
    server.switch(offered=["pruned"])
    command = (
        "pytest baselines --ppl-model mine/w50=demo/wanda-50 -k wanda "
        f"--ppl-executor server --ppl-server {server.url}"
    )
    done = run_pytest(f"{command} --ppl-early --ppl-early-cap 0.1", tmp_path)
    assert done.returncode == 0, done.stdout
    early = re.search(r"early: within after (\d+) of 128 windows", done.stdout)
    assert early is not None, done.stdout
    asked = windows_by_model(server)["pruned"]
    # Four are asked for ahead, and one of them again.
    assert int(early[1]) <= sum(asked.values()) <= int(early[1]) + 6 < 128


def test_a_run_of_gates_outlives_its_server(server: Served, tmp_path: Path) -> None:
    server.switch(offered=["dense"], delay=0.03)

    def disturb() -> None:
        while len(server.completions()) < 20:
            time.sleep(0.1)
        server.kill()
        time.sleep(2)
        server.start(offered=["dense"])

    disturbing = threading.Thread(target=disturb)
    disturbing.start()
    result = run_pytest(
        f"pytest {REPOSITORY}/baselines/demo.yaml --ppl-model demo/dense "
        f"-k wanda --ppl-executor server --ppl-server {server.url}",
        tmp_path,
    )
    disturbing.join()
    assert result.returncode == 0, result.stdout
    output = " ".join(result.stdout.split())
    assert re.search(
        "pplguard: demo/dense wanda/demo:256: "
        + re.escape(f"the server at {server.url} does not answer (it cannot be reached")
        + r": connection refused\); trying again for (600|59\d) s",
        output,
    )
    assert re.search(
        re.escape(f"note: the server at {server.url} was ")
        + r"away for \d s \(it cannot be reached: connection refused\), and came back "
        "as it was",
        output,
    ), output


@pytest.mark.parametrize(
    "command",
    [
        ("measure", "demo/dense", "--method", "wanda"),
        ("compare", "demo/dense", "demo/wanda-50"),
        ("explain", "demo/dense"),
        ("update", "demo/dense", "--checkpoint", "mine/dense", "--base", "demo"),
    ],
)
def test_a_text_that_is_not_there_is_found_before_the_server_is_asked(
    server: Served, tmp_path: Path, command: tuple[str, ...]
) -> None:
    """No window is typed: it would be the server's model that says which."""
    server.switch(offered=["dense"])
    more = ("--corpus", "own=lost.txt", *by_server(server))
    result = pplguard(*command, *more, cwd=tmp_path)
    assert result.returncode == 1
    lost = tmp_path / "lost.txt"
    assert result.stderr.splitlines()[-1] == (
        f"pplguard: error: corpus own: lost.txt does not exist (looked at {lost})"
    )
    assert server.requests() == []


def test_a_gate_without_its_text_is_an_error_before_the_server_is_asked(
    server: Served, tmp_path: Path
) -> None:
    (tmp_path / "baselines").mkdir()
    (tmp_path / "baselines/mine.yaml").write_text(
        "schema: 1\nmodel: demo\ncheckpoints:\n  dense:\n    path: demo/dense\n"
        "    gates:\n      wanda/own:256: {token_perplexity: {max: 9}}\n"
    )
    server.switch(offered=["dense"])
    result = run_pytest(
        "pytest baselines --ppl-model mine/dense --ppl-executor server "
        f"--ppl-server {server.url}",
        tmp_path,
    )
    assert result.returncode == 1, result.stdout
    assert (
        "because unknown corpus 'own': built in are wikitext2, demo, c4, ptb; give "
        "your own text with --ppl-corpus own=PATH"
    ) in " ".join(result.stdout.split())
    assert server.requests() == []


@pytest.mark.parametrize(
    ("options", "status", "words"),
    [
        (
            ("--server", "x"),
            2,
            "--server: 'x' is no address; give http://HOST:PORT/v1",
        ),
        (
            ("--server", "http://127.0.0.1:9/v1", "--dtype", "float16"),
            2,
            "--dtype is for models that are loaded here, and the executor is a server, "
            "which was started with its own: leave it out",
        ),
        (
            ("--server", "http://127.0.0.1:9/v1"),
            1,
            "the server at http://127.0.0.1:9/v1: it cannot be reached: connection "
            "refused; start it, or mend --server",
        ),
        (
            ("--server", "{url}", "--server-model", "denes"),
            2,
            "--server-model: the server has no model 'denes' (did you mean 'dense'?); "
            "it offers dense",
        ),
    ],
)
def test_the_command_names_its_own_options(
    server: Served, tmp_path: Path, options: tuple[str, ...], status: int, words: str
) -> None:
    """And a server that was never there is not waited for."""
    given = [option.format(url=server.url) for option in options]
    command = ("measure", "demo/dense", "--corpus", "demo", "--executor", "server")
    result = pplguard(*command, *given, cwd=tmp_path)
    assert result.returncode == status
    assert result.stderr.splitlines()[-1] == f"pplguard: error: {words}"


@pytest.mark.parametrize(
    ("ini", "words"),
    [
        (
            "ppl_server = http://127.0.0.1:9/v1",
            "the server at http://127.0.0.1:9/v1: it cannot be reached: connection "
            "refused; start it, or mend ini ppl_server",
        ),
        (
            "ppl_server = {url}\nppl_server_model = denes",
            "ini ppl_server_model: the server has no model 'denes' (did you mean "
            "'dense'?); it offers dense",
        ),
    ],
)
def test_gates_name_the_ini_file(
    server: Served, tmp_path: Path, ini: str, words: str
) -> None:
    (tmp_path / "pytest.ini").write_text(
        f"[pytest]\nppl_executor = server\n{ini.format(url=server.url)}\n"
    )
    result = run_pytest(
        f"pytest {REPOSITORY}/baselines/demo.yaml -c pytest.ini --rootdir . "
        f"--ppl-model demo/dense -k wanda",
        tmp_path,
    )
    assert result.returncode == 1, result.stdout
    assert f"because {words}" in " ".join(result.stdout.split())
