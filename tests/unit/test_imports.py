"""The rooms' order of imports, and what a run that measures nothing must not import."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import pytest_pplguard

PACKAGE = Path(pytest_pplguard.__file__).parent

LEVELS = (
    ("safetext",),
    ("errors", "startup"),
    ("tensornames",),
    ("values",),
    (
        "baselines",
        "cache",
        "checkpoints",
        "corpora",
        "diff",
        "gates",
        "history",
        "journal",
        "options",
        "protocols",
    ),
    ("lm_eval_names", "planning"),
    ("scoring", "lm_eval_bridge"),
    ("audit", "comparison", "divergence", "inspection", "lm_eval_tasks", "review"),
    ("measure",),
    ("executors",),
    ("report",),
    ("session",),
    ("hooks", "items", "fixtures", "cli"),
    ("lifetime",),
    ("plugin",),
)
"""Rooms from left to right; a room imports only from rooms on its left."""

HEAVY = ("torch", "transformers", "lm_eval", "datasets")
NOT_AT_IMPORT = (*HEAVY, "yaml", "msgspec", "rich", "numpy")


def level(room: str) -> int:
    return next(i for i, rooms in enumerate(LEVELS) if room in rooms)


def rooms_imported(path: Path) -> Iterator[str]:
    """Rooms of this package that a module imports, also inside functions."""
    package = ("pytest_pplguard", *path.relative_to(PACKAGE).parent.parts)
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            start = ".".join([*base, *([node.module] if node.module else [])])
            names = [start]
            if start == "pytest_pplguard":
                names = [f"{start}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            parts = name.split(".")
            if parts[0] == "pytest_pplguard" and len(parts) > 1:
                yield parts[1]


MODULES = sorted(PACKAGE.rglob("*.py"))


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


@pytest.mark.parametrize(
    "path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE))
)
def test_a_room_imports_from_its_left_only(path: Path) -> None:
    room = room_of(path)
    if room == "__init__":
        assert list(rooms_imported(path)) == []
        return
    wrong = {
        other
        for other in rooms_imported(path)
        if other != room and level(other) >= level(room)
    }
    assert wrong == set()


def module_of(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def files_imported(path: Path, known: set[str]) -> Iterator[str]:
    """Modules of ``known`` that a file imports, also inside functions and for types."""
    package = ("pytest_pplguard", *path.relative_to(PACKAGE).parent.parts)
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = package[: len(package) - node.level + 1]
            start = ".".join([*base, *([node.module] if node.module else [])])
            for alias in node.names:
                name = f"{start}.{alias.name}"
                yield from {name if name in known else start} & known


def test_no_files_import_each_other() -> None:
    """Not even for types: what both need has a place of its own."""
    # What a room's `__init__` gathers is for other rooms.
    files = {module_of(path): path for path in MODULES if path.stem != "__init__"}
    graph = {name: set(files_imported(files[name], {*files})) for name in files}
    assert "pytest_pplguard.measure.facts" in graph["pytest_pplguard.measure.subject"]
    TopologicalSorter(graph).prepare()  # raises CycleError, which names the circle


def test_the_walk_sees_imports() -> None:
    assert set(rooms_imported(PACKAGE / "plugin.py")) >= {"fixtures", "session"}
    assert "baselines" in set(rooms_imported(PACKAGE / "session" / "guard.py"))


def imported(code: str, folder: Path) -> set[str]:
    """Top-level modules that a fresh process has after ``code``."""
    script = f"import sys\n{code}\nprint('\\n' + ' '.join(sys.modules))"
    result = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        check=True,
        cwd=folder,
        env=os.environ | {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
    )
    return set(result.stdout.splitlines()[-1].split())


def test_importing_the_plugin_is_cheap(tmp_path: Path) -> None:
    modules = imported("import pytest\nimport pytest_pplguard.plugin", tmp_path)
    assert "pytest_pplguard.plugin" in modules
    assert modules.isdisjoint(NOT_AT_IMPORT)


RUN = (
    "import pytest\n"
    "status = pytest.main(['-p', 'pytest_pplguard.plugin', '-q'])\n"
    "assert status == 0, status"
)


def test_a_run_without_checkpoints_loads_nothing_heavy(tmp_path: Path) -> None:
    (tmp_path / "test_it.py").write_text("def test_it():\n    pass\n")
    (tmp_path / "other.yaml").write_text("jobs: {}\n")
    modules = imported(RUN, tmp_path)
    assert modules.isdisjoint(HEAVY)


def test_gates_that_are_deselected_load_nothing_heavy(tmp_path: Path) -> None:
    (tmp_path / "test_it.py").write_text(
        "import pytest\n\n"
        "def test_it():\n    pass\n\n"
        "@pytest.mark.ppl('wanda')\ndef test_skipped(ppl_model):\n    pass\n"
    )
    folder = tmp_path / "baselines"
    folder.mkdir()
    (folder / "llama.yaml").write_text(
        "schema: 1\nmodel: org/llama\ncheckpoints:\n  w50:\n    gates:\n"
        "      wanda/wikitext2:4096: {token_perplexity: {rel: 0.005}}\n"
    )
    modules = imported(RUN, tmp_path)
    assert "pytest_pplguard.session.setup" in modules
    assert modules.isdisjoint(HEAVY)


def test_checking_baselines_loads_nothing_heavy(tmp_path: Path) -> None:
    code = (
        "from pathlib import Path\n"
        "from pytest_pplguard.cli.check import check_baselines\n"
        f"assert check_baselines([Path({str(PACKAGE.parent / 'baselines')!r})])"
    )
    modules = imported(code, tmp_path)
    assert "pytest_pplguard.audit" in modules
    assert modules.isdisjoint({*HEAVY, "numpy", "rich", "jinja2", "plotly"})


def test_a_local_run_imports_nothing_of_ray(tmp_path: Path) -> None:
    code = (
        "from pytest_pplguard.executors import make_executor\n"
        "from pytest_pplguard.options import Options\n"
        "assert make_executor(Options(), tell=print) is None"
    )
    modules = imported(code, tmp_path)
    assert "pytest_pplguard.executors" in modules
    assert modules.isdisjoint({"ray", "grpc"})
