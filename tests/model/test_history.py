"""The trend from real runs: commands, a real MLflow server, and a real browser."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import mlflow
import pytest
from safetensors.numpy import load_file, save_file

from pytest_pplguard.errors import PplguardError
from pytest_pplguard.history import HistoryRun, export, export_runs, read_runs
from scripts.browser import chromium, why_no_browser

from .commands import pplguard, run_pytest_anew

ROOT = Path(__file__).parents[2]
DEMO = ROOT / "pytest_pplguard" / "demo"
KEY = "wanda/demo:256"
URL = "sqlite:///runs.db"
UP = "model.layers.1.mlp.up_proj.weight"

GONE = """
import sys

def pytest_unconfigure():
    with open("modules.txt", "w") as stream:
        stream.write("\\n".join(sys.modules))
"""


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two commits of a project with the demo's baselines, each gated, and one worse."""
    path = tmp_path_factory.mktemp("project")
    shutil.copytree(ROOT / "baselines/demo", path / "baselines/demo")
    shutil.copy(ROOT / "baselines/demo.yaml", path / "baselines")
    (path / "conftest.py").write_text(GONE)
    shutil.copytree(DEMO / "wanda-50", path / "model")
    git(path, "init", "-q", "-b", "trunk")
    command = (
        f"pytest baselines/demo.yaml::wanda-50::{KEY} --ppl-history {URL} --ppl-cache "
        "--ppl-cache-dir cache --ppl-model demo/wanda-50=model --ppl-journal off"
    )
    for number, scale in enumerate((1, 1, 4)):
        if scale != 1:
            tensors = load_file(path / "model" / "model.safetensors")
            tensors[UP] *= scale
            save_file(
                tensors, path / "model/model.safetensors", metadata={"format": "pt"}
            )
        git(path, "add", "baselines", "model")
        git(path, "commit", "-q", "--allow-empty", "-m", f"Number {number}")
        done = run_pytest_anew(command, path)
        assert done.returncode == int(scale != 1), done.stdout + done.stderr
        (path / "modules.txt").rename(path / f"modules{number}.txt")
    return path


def git(folder: Path, *words: str) -> str:
    command = ["git", "-c", "user.name=A", "-c", "user.email=a@b", *words]
    return subprocess.run(
        command, cwd=folder, capture_output=True, text=True, check=True
    ).stdout.strip()


def commits(project: Path) -> list[str]:
    return git(project, "log", "--reverse", "--format=%H").split()


@pytest.fixture
def runs(project: Path) -> tuple[HistoryRun, ...]:
    return read_runs(project / "runs.db")


def test_what_runs_have_left(project: Path, runs: tuple[HistoryRun, ...]) -> None:
    assert [run.commit for run in runs] == commits(project)
    assert [(run.branch, run.dirty, run.passed) for run in runs] == [
        ("trunk", False, True), ("trunk", False, True), ("trunk", False, False)
    ]  # fmt: skip
    evidence = next((project / "baselines/demo/wanda-50").glob("wanda-demo-256-*"))
    recorded = json.loads(evidence.read_text())
    points = [run.points[0] for run in runs]
    assert all(len(run.points) == 1 for run in runs)
    assert {point.windows_digest for point in points} == {recorded["windows_digest"]}
    assert {point.baseline for point in points} == {recorded["metrics"][
        "token_perplexity"
    ]}  # fmt: skip
    assert points[0].measured == points[1].measured
    assert [bool(point.cached) for point in points] == [False, True, False]
    assert [point.outcome for point in points] == ["within", "within", "regressed"]
    assert {run.sparsity("demo/wanda-50") for run in runs} == {0.5}
    digests = [run.weights[0].digest for run in runs]
    assert digests[0] == digests[1] != digests[2]


def test_a_run_from_the_cache_imports_no_torch_for_a_history(project: Path) -> None:
    first, second = (
        (project / f"modules{number}.txt").read_text().splitlines() for number in (0, 1)
    )
    assert "torch" in first
    assert {"torch", "transformers"}.isdisjoint(second)


def test_the_command(project: Path, runs: tuple[HistoryRun, ...]) -> None:
    done = pplguard(
        "history", URL, "--plot", "trend.svg", "--json", "trend.json", cwd=project
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == "pplguard: the trend is in trend.svg\n"
    times = [run.time[:16].replace("T", " ") for run in runs]
    short = [commit[:7] for commit in commits(project)]
    values: list[Any] = [run.points[0].measured for run in runs]
    base: Any = runs[0].points[0].baseline
    last, change = values[2] / values[1] - 1, values[2] / base - 1
    first = f"{values[0]:>10.6g}"
    assert done.stdout.splitlines()[:6] == [
        "demo/wanda-50",
        "  UTC              commit     measured  to last  to base   zeros  outcome",
        " wanda/demo:256 token_perplexity",
        f"  {times[0]} {short[0]}  {first}        -  +0.00 % 50.00 %  within",
        f"  {times[1]} {short[1]}  {first}  +0.00 %  +0.00 % 50.00 %  within",
        f"  {times[2]} {short[2]}  {values[2]:>10.6g} {100 * last:>+6.2f} % "
        f"{100 * change:>+6.2f} % 50.00 %  REGRESSED",
    ]
    (series,) = json.loads((project / "trend.json").read_text())["series"]
    assert [point["measured"] for point in series["points"]] == values
    assert "wanda/demo:256 token_perplexity" in (project / "trend.svg").read_text()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ["demo/wanda-5"],
            "no checkpoint 'demo/wanda-5' in this history (did you mean "
            "'demo/wanda-50'?); there is demo/wanda-50",
        ),
        (
            ["--metric", "word_perplexity"],
            "no metric 'word_perplexity' in this history (did you mean "
            "'token_perplexity'?); there is token_perplexity",
        ),
        (["--key", "x"], "no key 'x' in this history; there is wanda/demo:256"),
        (
            ["--plot", "x.gif"],
            "--plot x.gif: the suffix says what to write: .html, .png, .svg, .pdf",
        ),
    ],
)
def test_mistakes(project: Path, words: list[str], said: str) -> None:
    done = pplguard("history", URL, *words, cwd=project)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"pplguard: error: {said}\n"


def test_histories_without_runs(tmp_path: Path) -> None:
    done = pplguard("history", URL, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        f"pplguard: error: there is no history at {tmp_path}/runs.db: add runs with "
        "`pytest --ppl-history=sqlite:///runs.db`\n"
    )
    (tmp_path / "runs.db").touch()
    done = pplguard("history", URL, cwd=tmp_path)
    assert done.stderr == (
        f"pplguard: error: there is no run in {tmp_path}/runs.db yet: add runs with "
        "`pytest --ppl-history=sqlite:///runs.db`\n"
    )


# ------------------------------------------------------------------------------ MLflow


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a real tracking server, which ends with the tests."""
    folder = tmp_path_factory.mktemp("mlflow")
    address = f"http://127.0.0.1:{_free_port()}"
    quiet = {
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # of another use of it
    }
    with (folder / "log.txt").open("wb") as log:
        process = subprocess.Popen(
            [
                sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1",
                "--port", address.rpartition(":")[2], "--workers", "1",
                "--backend-store-uri", f"sqlite:///{folder / 'mlflow.db'}",
                "--default-artifact-root", str(folder / "artifacts"),
            ],
            cwd=folder, stdout=log, stderr=subprocess.STDOUT,
            env=os.environ | quiet, start_new_session=True,
        )  # fmt: skip
    try:
        _wait_for(f"{address}/health", process, folder / "log.txt")
        yield address
    finally:
        # The server and the workers that it started.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(30)


def _wait_for(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    for _ in range(600):
        if process.poll() is not None:
            break
        with contextlib.suppress(OSError), urllib.request.urlopen(url, timeout=5):
            return
        time.sleep(0.2)
    raise AssertionError(f"no MLflow server:\n{log.read_text()}")


def _sent(client: Any, experiment: str) -> list[Any]:
    known = client.get_experiment_by_name(experiment)
    found = client.search_runs([known.experiment_id], order_by=["start_time ASC"])
    return list(found)


@pytest.mark.slow
def test_a_history_in_mlflow(
    server: str, project: Path, runs: tuple[HistoryRun, ...]
) -> None:
    words = ("history", URL, "--mlflow", server, "--experiment", "demo")
    for sent, there in ((3, 0), (0, 3)):
        done = pplguard(*words, cwd=project)
        assert done.returncode == 0, done.stderr
        assert done.stderr.splitlines()[-1] == (
            f"pplguard: sent {sent} runs to the experiment demo of {server}; {there} "
            "were there already"
        )
    client = mlflow.MlflowClient(tracking_uri=server)
    found = _sent(client, "demo")
    assert len(found) == 3
    for run, exported in zip(runs, found, strict=True):
        (point,) = run.points
        metrics, tags = exported.data.metrics, exported.data.tags
        assert metrics == {
            "wanda/demo_256/token_perplexity": point.measured,
            "wanda/demo_256/token_perplexity.baseline": point.baseline,
            "wanda/demo_256/token_perplexity.change": point.change,
            "sparsity.total": 0.5,
        }
        params = exported.data.params
        assert params["checkpoint"] == "demo/wanda-50"
        assert params["keys"] == KEY
        assert params["spec"] == "model"
        assert params["wanda/demo_256/window"] == "256"
        assert params["wanda/demo_256/windows_digest"] == point.windows_digest
        environment = run.environment["demo/wanda-50"][KEY]
        assert params["environment/torch"] == environment["torch"]
        assert tags["commit"] == run.commit
        assert tags["branch"] == "trunk"
        assert tags["outcome"] == ("passed" if run.passed else "regressed")
        assert tags["mlflow.runName"] == f"demo/wanda-50 @ {run.commit[:8]}"
        assert exported.info.status == "FINISHED"
        started = time.strftime(
            "%Y-%m-%dT%H:%M:%S", time.gmtime(exported.info.start_time / 1000)
        )
        assert started == run.time[:19]


@pytest.mark.slow
def test_an_export_that_was_interrupted_is_completed(
    server: str,
    runs: tuple[HistoryRun, ...],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whatever the request at which it ends, the next one sends the rest."""
    client = mlflow.MlflowClient(tracking_uri=server)
    steps = ("create_run", "log_batch", "set_terminated")
    for step in steps:
        with monkeypatch.context() as patch:
            real = getattr(mlflow.MlflowClient, step)

            def failing(
                self: Any, *args: Any, _real: Any = real, **options: Any
            ) -> Any:
                if len(self.search_runs([_id(self)])) > 1:
                    raise ConnectionError("the line went dead")
                return _real(self, *args, **options)

            patch.setattr(mlflow.MlflowClient, step, failing)
            with pytest.raises(PplguardError, match="the line went dead"):
                export_runs(runs, server, experiment="halves")
    assert len(_sent(client, "halves")) >= 2
    done = export_runs(runs, server, experiment="halves")
    assert sum(done) == 3
    assert export_runs(runs, server, experiment="halves") == (0, 3)
    found = _sent(client, "halves")
    assert len({run.data.tags[export.ID_TAG] for run in found}) == len(found) == 3
    for run, exported in zip(runs, found, strict=True):
        measured = exported.data.metrics["wanda/demo_256/token_perplexity"]
        assert measured == run.points[0].measured
        assert exported.data.params["checkpoint"] == "demo/wanda-50"
        assert exported.info.status == "FINISHED"

    # What somebody has deleted there stays away.
    client.delete_run(found[0].info.run_id)
    assert export_runs(runs, server, experiment="halves") == (0, 3)
    client.delete_experiment(_id(client))
    with pytest.raises(PplguardError, match="--experiment halves: it was deleted"):
        export_runs(runs, server, experiment="halves")


def _id(client: Any) -> str:
    return str(client.get_experiment_by_name("halves").experiment_id)


# ----------------------------------------------------------------------------- browser


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_in_a_browser(project: Path, scheme: Literal["light", "dark"]) -> None:
    if why := why_no_browser():
        pytest.skip(why)
    done = pplguard("history", URL, "--plot", "trend.html", cwd=project)
    assert done.returncode == 0, done.stderr
    said: list[str] = []
    fetched: list[str] = []
    with chromium() as browser:
        page = browser.new_page(color_scheme=scheme)
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("request", lambda request: fetched.append(request.url))
        page.goto((project / "trend.html").as_uri())
        page.wait_for_selector("#plot1 .main-svg")
        assert page.locator("#plot0 .scatterlayer .points path").count() >= 3
        assert page.locator("#plot0 .legendtext").all_text_contents() == [
            "baseline", "measured", "not passed"
        ]  # fmt: skip
        page.locator("#plot0").scroll_into_view_if_needed()
        point = page.locator("#plot0 .points path").nth(1).bounding_box()
        assert point is not None
        page.mouse.move(point["x"] + 3, point["y"] + 3)
        page.wait_for_selector("#plot0 .hovertext")
        shown = page.locator("#plot0 .hovertext").text_content()
        assert shown is not None
        assert f"commit {commits(project)[1][:7]} of trunk" in shown
        page.locator("summary").press("Enter")
        cells = page.locator("td").all_inner_texts()
        assert "regressed" in cells
        background = page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert (background == "rgb(255, 255, 255)") is (scheme == "light")
        assert page.evaluate("document.body.scrollWidth <= window.innerWidth")
        browser.close()
    assert said == []
    assert [url.partition(":")[0] for url in fetched] == ["file"]
