"""Which options a message of the command names, and what it says of itself."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec

import pytest

from pytest_pplguard.cli import main, own_options
from pytest_pplguard.cli.version import show_versions


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "Give the raw test file instead: --ppl-corpus wikitext2=PATH (pplguard: "
            "--corpus wikitext2=PATH)",
            "Give the raw test file instead: --corpus wikitext2=PATH",
        ),
        (
            "a run starts again: /x: denied (another folder: --ppl-journal=DIR, "
            "pplguard: --journal DIR)",
            "a run starts again: /x: denied (another folder: --journal DIR)",
        ),
        (
            "--ppl-dtype bfloat16, or another --ppl-device",
            "--dtype bfloat16, or another --device",
        ),
        (
            "give --ppl-dtype float32, or --ppl-corpus my=PATH (pplguard: --corpus "
            "my=PATH)",
            "give --dtype float32, or --corpus my=PATH",
        ),
    ],
)
def test_the_command_names_its_own_options(text: str, expected: str) -> None:
    assert own_options(text) == expected


@pytest.mark.parametrize(
    ("arguments", "option"),
    [
        (["cache", "info", "--cache-dir="], "--cache-dir"),
        (["cache", "clear", "--cache-dir", ""], "--cache-dir"),
        (["show", "--baselines="], "--baselines"),
        (["measure", "no/such/model", "--journal="], "--journal"),
    ],
)
def test_an_empty_folder_is_not_where_the_command_runs(
    arguments: list[str],
    option: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(sys, "argv", ["pplguard", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    said = f"pplguard: error: {option}: empty; give DIR, or leave it out\n"
    assert capsys.readouterr() == ("", said)


def test_versions_are_found_without_importing() -> None:
    """Also where torch cannot be imported, which is when somebody asks."""
    program = (
        "import sys\n"
        "sys.modules.update(dict.fromkeys(['torch', 'transformers', 'lm_eval']))\n"
        "from pytest_pplguard.cli import main\n"
        "main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, "--version"],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
    )
    assert done.stdout.splitlines() == [
        f"pytest-pplguard {version('pytest-pplguard')}",
        f"Python {platform.python_version()}",
        f"torch {version('torch')}",
        f"transformers {version('transformers')}",
        f"tokenizers {version('tokenizers')}",
        f"lm-eval {version('lm-eval')}",
        *([f"ray {version('ray')}"] if find_spec("ray") else []),
    ]


def test_what_is_not_installed_is_said(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def found(name: str) -> str:
        if name in ("torch", "ray"):
            raise PackageNotFoundError(name)
        return "1.2"

    monkeypatch.setattr("pytest_pplguard.cli.version.version", found)
    show_versions()
    assert capsys.readouterr().out == (
        "pytest-pplguard 1.2\n"
        f"Python {platform.python_version()}\n"
        "torch is not installed\n"
        "transformers 1.2\n"
        "tokenizers 1.2\n"
        "lm-eval 1.2\n"
    )
