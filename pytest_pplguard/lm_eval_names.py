"""Finds lm-eval's tasks by the text of their YAML files, and keeps lm-eval quiet.

lm-eval's own ``TaskManager`` parses all of them, which takes a dozen seconds. Importing
this module imports no torch, no transformers and no datasets.
"""

from __future__ import annotations

import contextlib
import logging
import re
from collections.abc import Iterator
from pathlib import Path

import lm_eval

TASKS = Path(lm_eval.__file__).parent / "tasks"
"""The folder of lm-eval's own tasks."""


def yaml_files(folder: Path = TASKS) -> Iterator[Path]:
    """Every YAML file below a folder, in order."""
    yield from sorted([*folder.rglob("*.yaml"), *folder.rglob("*.yml")])


def folders_of(name: str) -> list[Path]:
    """The folder of lm-eval's with a YAML that defines a task or group, if any."""
    defines = re.compile(
        rb"^[ ]*(?:task|group)[ ]*:[ ]*[\"']?" + re.escape(name.encode()) + rb"\b",
        re.MULTILINE,
    )
    own = [folder for folder in TASKS.iterdir() if folder.is_dir()]
    own.sort(key=lambda folder: (not name.startswith(folder.name), folder.name))
    for folder in own:
        if any(defines.search(file.read_bytes()) for file in yaml_files(folder)):
            return [folder]
    return []


def is_mentioned(name: str) -> bool:
    """Whether any YAML of lm-eval's has the word: the name of a tag, for example."""
    word = re.compile(rb"(?<![\w.-])" + re.escape(name.encode()) + rb"(?![\w.-])")
    return any(word.search(file.read_bytes()) for file in yaml_files())


def defined_names() -> Iterator[str]:
    """Names of tasks and groups, as the first column of a YAML defines them."""
    defines = re.compile(rb"^(?:task|group): *[\"']?([\w.-]+)", re.MULTILINE)
    for file in yaml_files():
        for name in defines.findall(file.read_bytes()):
            yield name.decode()


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep lm-eval's remarks on its own tasks' defaults off the screen."""
    logger = logging.getLogger("lm_eval")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
