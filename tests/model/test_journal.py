"""Runs that are killed go on: to the same bits, and without scoring a window twice."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from msgspec.structs import replace as change

from pytest_pplguard.checkpoints import Loaded, load, locate
from pytest_pplguard.corpora import open_corpus
from pytest_pplguard.errors import DeviceError
from pytest_pplguard.journal import Journals
from pytest_pplguard.measure import Store
from pytest_pplguard.options import Target
from pytest_pplguard.report import watch_lines
from pytest_pplguard.values import Key, Measurement
from tests.zygote import programs

from .commands import run
from .tiny import save_tiny

ROOT = Path(__file__).parents[2]
WANDA, LM_EVAL = Key.parse("wanda/demo:128"), Key.parse("lm-eval/wikitext+demo:128")
KILLS = 50
backends: Any = torch.backends


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> Loaded:
    path = save_tiny(tmp_path_factory.mktemp("tiny") / "tiny")
    return load(locate(str(path)), device="cpu", dtype="float32")


def measure(
    loaded: Loaded, key: Key, folder: Path | None, batch_size: int = 1
) -> Measurement:
    """Measured as the gate does it; ``folder`` is that of the journals."""
    store = Store(
        {"it": Target("it", "tiny")},
        load=lambda _: loaded,
        open_corpus=lambda name: open_corpus(name, {}),
        watch=lambda label, **_: watch_lines(label, lambda line: None),
        batch_size=batch_size,
        journals=None if folder is None else Journals(folder),
    )
    return store.measurement("it", key)


def recorded(folder: Path) -> list[int]:
    """Indices of all windows in the journals, in the order of their records.

    A record without its line's end is still being written, or never will be.
    """
    indices: list[int] = []
    for file in folder.glob("*.jsonl"):
        for line in file.read_text().split("\n")[1:-1]:
            indices += [window[0] for window in json.loads(line[9:])["windows"]]
    return indices


def in_child(work: Callable[[], Any]) -> int:
    """Do ``work`` in a copy of this process; the process id."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            torch.set_num_threads(1)
            work()
            status = 0
        finally:
            os._exit(status)
    return child


@pytest.mark.parametrize("key", [WANDA, LM_EVAL], ids=str)
@pytest.mark.parametrize("batch_size", [1, 3])
def test_killed_at_random_instants(
    loaded: Loaded, key: Key, batch_size: int, tmp_path: Path
) -> None:
    torch.set_num_threads(1)
    started = time.monotonic()
    expected = measure(loaded, key, None, batch_size)
    seconds = time.monotonic() - started
    folder, draw = tmp_path / "journal", random.Random(0)
    before, kills = b"", 0
    while kills < KILLS / 4:  # there are four sets of parameters
        child = in_child(lambda: measure(loaded, key, folder, batch_size))
        # Anywhere before the first window, or around the writing of a later one.
        new = draw.randint(0, 3)
        wanted = len(recorded(folder)) + new
        while len(recorded(folder)) < wanted:
            time.sleep(0.001)
        time.sleep(draw.uniform(0, 0.01 if new else seconds / 4))
        os.kill(child, signal.SIGKILL)
        assert os.WIFSIGNALED(os.waitpid(child, 0)[1])
        kills += 1
        files = list(folder.glob("*.jsonl"))
        assert len(files) <= 1
        data = files[0].read_bytes() if files else b""
        assert data.startswith(before)
        assert data == b"" or data.endswith(b"\n")
        before = data
    kept = recorded(folder)
    assert 0 < len(kept) < expected.windows

    result = measure(loaded, key, folder, batch_size)
    assert [score.nll_sum.hex() for score in result.evidence] == [
        score.nll_sum.hex() for score in expected.evidence
    ]
    assert result.metrics == expected.metrics
    # Each window has one record: none was scored again.
    assert sorted(recorded(folder)) == list(range(expected.windows))
    [notice] = result.notices
    assert notice.startswith(
        f"it {key}: {len(kept)} of {expected.windows} windows were scored already, "
        "the last at "
    )


def test_two_runs_at_once_and_both_killed(loaded: Loaded, tmp_path: Path) -> None:
    torch.set_num_threads(1)
    expected = measure(loaded, WANDA, None)
    folder = tmp_path / "journal"

    def written(files: int, characters: int) -> bool:
        records = [len(file.read_text()) for file in folder.glob("*.jsonl")]
        return len(records) == files and min(records) >= characters

    children = []
    for number in (1, 2):
        children.append(in_child(lambda: measure(loaded, WANDA, folder)))
        while not written(number, 1):
            time.sleep(0.001)
        os.kill(children[0], signal.SIGSTOP)  # it may not be done when the other starts
    os.kill(children[0], signal.SIGCONT)
    while not written(2, 2000):  # some ten windows in each
        time.sleep(0.001)
    for child in children:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    assert len(list(folder.glob("*.jsonl"))) == 2
    known = len(set(recorded(folder)))

    result = measure(loaded, WANDA, folder)
    assert result.evidence == expected.evidence
    assert (
        f": {known} of {expected.windows} windows were scored already"
        in result.notices[0]
    )


def test_two_whole_runs_at_once(loaded: Loaded, tmp_path: Path) -> None:
    expected = measure(loaded, WANDA, None)

    def check() -> None:
        assert measure(loaded, WANDA, tmp_path).evidence == expected.evidence

    for child in [in_child(check) for _ in range(2)]:
        assert os.waitpid(child, 0)[1] == 0


def test_an_error_leaves_the_windows_before_it(
    loaded: Loaded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = measure(loaded, WANDA, None)
    calls = 0
    forward = loaded.model.base_model.forward

    def full(*args: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 8:
            raise torch.OutOfMemoryError
        return forward(*args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(type(loaded.model.base_model), "forward", staticmethod(full))
        with pytest.raises(DeviceError, match="out of memory"):
            measure(loaded, WANDA, tmp_path)
    # The first two calls prove the head; the eighth is the sixth window.
    assert recorded(tmp_path) == [0, 1, 2, 3, 4]
    assert measure(loaded, WANDA, tmp_path).evidence == expected.evidence


def test_another_model_does_not_go_on_with_it(loaded: Loaded, tmp_path: Path) -> None:
    measure(loaded, WANDA, tmp_path)
    weight = loaded.model.base_model.layers[1].mlp.down_proj.weight
    saved = weight.detach().clone()
    try:
        weight.data[0, 0] += 1e-3
        assert measure(loaded, WANDA, tmp_path).notices == ()
    finally:
        weight.data.copy_(saved)
    [notice] = measure(loaded, WANDA, tmp_path).notices
    assert "394 of 394 windows were scored already" in notice


@pytest.fixture
def switches() -> Iterator[None]:
    """What a conftest may set, put back."""
    legacy = torch.get_float32_matmul_precision()
    yield
    backends.fp32_precision = "none"
    torch.set_float32_matmul_precision(legacy)
    torch.backends.cuda.enable_flash_sdp(True)


@pytest.mark.usefixtures("switches")
@pytest.mark.parametrize("switch", ["autocast", "flash", "precision", "new precision"])
def test_other_switches_of_torch_do_not_go_on_with_it(
    loaded: Loaded, tmp_path: Path, switch: str
) -> None:
    measure(loaded, WANDA, tmp_path)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=switch == "autocast"):
        if switch == "flash":
            torch.backends.cuda.enable_flash_sdp(False)
        elif switch == "precision":
            torch.set_float32_matmul_precision("high")
        elif switch == "new precision":
            backends.fp32_precision = "tf32"
        assert measure(loaded, WANDA, tmp_path).notices == ()


@pytest.mark.parametrize("what", ["hook", "forward", "tensor"])
def test_a_model_that_is_more_than_its_files_has_no_journal(
    tmp_path: Path, what: str
) -> None:
    path = save_tiny(tmp_path / "model")
    loaded = load(locate(str(path)), device="cpu", dtype="float32")
    head: Any = loaded.model.get_output_embeddings()
    if what == "hook":
        head.register_forward_hook(lambda *_: None)
    elif what == "forward":
        head.forward = head.forward
    else:
        head.scale = torch.nn.Buffer(torch.ones(1).as_subclass(_Packed))
    measure(loaded, WANDA, tmp_path / "journal")
    assert not (tmp_path / "journal").exists()


class _Packed(torch.Tensor):
    """As of a library that keeps weights in a form of its own."""


def test_a_model_that_a_hook_has_brought_has_no_journal(
    loaded: Loaded, tmp_path: Path
) -> None:
    measure(change(loaded, from_files=False), WANDA, tmp_path)
    assert list(tmp_path.iterdir()) == []


# ------------------------------------------------------------------- as a user meets it


def wait_for_windows(folder: Path, count: int, process: subprocess.Popen[bytes]) -> int:
    """Wait until a running command has finished some windows, and kill it."""
    while len(recorded(folder)) < count:
        assert process.poll() is None, "it was done too soon to be killed"
        time.sleep(0.002)
    process.kill()
    process.wait()
    return len(recorded(folder))


def test_a_killed_command_goes_on(tmp_path: Path) -> None:
    def command(*more: str) -> list[str]:
        words = ["measure", "demo/dense", "--method=wanda", "--window=32"]
        corpus = ["--corpus=demo", "--device=cpu"]
        run = "from pytest_pplguard.cli import main; main()"
        return [sys.executable, "-c", run, *words, *corpus, *more]

    folder = tmp_path / "journal"
    journal = f"--journal={folder}"
    whole = subprocess.run(
        command("--json=-", "--journal=off"), check=True, capture_output=True, text=True
    )
    expected = json.loads(whole.stdout)["measurements"][0]

    process = subprocess.Popen(command(journal), stderr=subprocess.DEVNULL)
    kept = wait_for_windows(folder, 100, process)
    again = subprocess.run(
        command("--json=-", journal), check=True, capture_output=True, text=True
    )
    [found] = json.loads(again.stdout)["measurements"]
    assert found["evidence"] == expected["evidence"]
    assert found["metrics"] == expected["metrics"]
    assert (
        f"{kept} of {expected['windows']} windows were scored already" in again.stderr
    )
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize("workers", [[], ["-n2"]], ids=["plain", "n2"])
def test_a_killed_pytest_goes_on(
    tmp_path: Path, workers: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(ROOT / "baselines", tmp_path / "baselines")
    (tmp_path / "pytest.ini").write_text("[pytest]\naddopts = -p no:cacheprovider\n")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "journal"
    command = [
        sys.executable, "-m", "pytest", "baselines/demo.yaml", "--ppl-model=demo",
        "--ppl-device=cpu", f"--ppl-journal={folder}", *workers,
    ]  # fmt: skip
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    wait_for_windows(folder, 80, process)
    # Under xdist the workers end when their controller is gone, a moment later.
    before = -1
    while before != len(recorded(folder)):
        before = len(recorded(folder))
        time.sleep(0.5)

    again = run([str(programs() / "python"), *command[1:]], tmp_path)
    assert "11 within tolerance" in again.stdout
    assert "windows were scored already" in again.stdout
    assert again.returncode == 0
    assert [file for file in folder.iterdir() if file.suffix == ".jsonl"] == []
