"""Every command of README, CONTRIBUTING and docs runs, and prints what is shown."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.zygote import Zygote

from .blocks import PAGES, ROOT, Block, matches, shell_blocks
from .sandbox import Sandbox, build, environment, prepare, rows, seed_wikitext2


@pytest.fixture(scope="session")
def template(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sandbox]:
    """What every page's folder is a copy of, and a process to run commands in."""
    folder = tmp_path_factory.mktemp("docs")
    own = environment(folder)
    seed_wikitext2(Path(own["HF_DATASETS_CACHE"]), rows())
    zygote = Zygote(own)
    own["PATH"] = os.pathsep.join([str(zygote.programs), own["PATH"]])
    try:
        yield build(folder / "template", own)
    finally:
        zygote.close()


@pytest.fixture
def sandbox(template: Sandbox, tmp_path: Path) -> Sandbox:
    for name in ("project", "checkout"):
        shutil.copytree(template.project.parent / name, tmp_path / name, symlinks=True)
    return Sandbox(tmp_path / "project", tmp_path / "checkout", template.environment)


def runs(block: Block) -> bool:
    return block.says("not run") is None


PAGES_THAT_RUN = [
    page for page in PAGES if any(runs(block) for block in shell_blocks(page))
]


@pytest.mark.parametrize(
    "page", PAGES_THAT_RUN, ids=lambda page: page.relative_to(ROOT).as_posix()
)
def test_the_commands_of_a_page(page: Path, sandbox: Sandbox) -> None:
    prepare(page.relative_to(ROOT).as_posix(), sandbox)
    for block in filter(runs, shell_blocks(page)):
        for command in block.commands():
            done = sandbox.run(
                command.text, checkout=block.says("in a checkout") is not None
            )
            said = f"{block.place}: {command.text}\n{done.stdout}"
            assert done.returncode == command.status, said
            if command.output is not None:
                assert matches(command.output, done.stdout.splitlines()), said
