"""What a run of gates has in memory, and when: libraries are imported when due."""

from __future__ import annotations

import sys
from pathlib import Path

from tests.model.commands import run

ROOT = Path(__file__).parents[2]

_RUN = """
import sys, pytest

class Listing:
    def pytest_runtest_setup(self, item):
        loaded = [name for name in {watched} if name in sys.modules]
        print("\\nbefore", item.nodeid, *loaded, file=sys.__stdout__)

status = pytest.main([*{arguments}, "-q", "-s", "-p", "no:cacheprovider"], [Listing()])
print("\\nafter", *[name for name in {watched} if name in sys.modules])
sys.exit(status)
"""

_LM_EVAL = (
    "lm_eval.api.task",
    "lm_eval.evaluator",
    "datasets",
    "pandas",
    "sacrebleu",
    "requests",
)
_NEVER = (
    "lm_eval.models.huggingface",
    "matplotlib",
    "sklearn",
    "evaluate",
    "peft",
    "gguf",
    "compressed_tensors",
)
_WATCHED = ("torch", "transformers", *_LM_EVAL, *_NEVER)


def states(tmp_path: Path, *arguments: str) -> list[list[str]]:
    """Lines ``before NODEID MODULE...`` and ``after MODULE...``."""
    folder = str(ROOT / "baselines" / "demo.yaml")
    script = _RUN.format(
        watched=repr(_WATCHED),
        arguments=repr([folder, f"--rootdir={ROOT}", *arguments]),
    )
    done = run([sys.executable, "-c", script], cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    lines = [line.split() for line in done.stdout.splitlines()]
    return [line for line in lines if line[:1] in (["before"], ["after"])]


def test_lm_eval_is_imported_for_its_own_number_only(tmp_path: Path) -> None:
    listed = states(tmp_path, "--ppl-model=demo", "-k", "dense and wanda")
    assert listed[0][2:] == []  # collecting imported nothing large
    assert listed[-1] == ["after", "torch", "transformers"]


def test_lm_eval_is_imported_when_its_gate_is_due(tmp_path: Path) -> None:
    listed = states(tmp_path, "--ppl-model=demo/dense")
    assert [line[2:] for line in listed[:-1]] == [
        [],  # wanda
        ["torch", "transformers"],  # lm-eval's two
        ["torch", "transformers", *_LM_EVAL],
    ]
    assert listed[-1] == ["after", "torch", "transformers", *_LM_EVAL]


def test_collecting_imports_nothing_large(tmp_path: Path) -> None:
    assert states(tmp_path, "--ppl-model=demo", "--collect-only") == [["after"]]


def test_a_checkpoint_that_is_not_there_costs_no_transformers(tmp_path: Path) -> None:
    code = (
        "import sys\n"
        "from pytest_pplguard.checkpoints import load, locate\n"
        "from pytest_pplguard.errors import CheckpointError\n"
        "try:\n"
        "    load(locate('nowhere'), device='cpu', dtype='float32')\n"
        "except CheckpointError:\n"
        "    print(*{'torch', 'transformers'} & {*sys.modules})\n"
    )
    done = run([sys.executable, "-c", code], cwd=tmp_path)
    assert (done.returncode, done.stdout) == (0, "\n")
