"""What is never taken from the cache, nor kept in it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pytest_pplguard.cache import Cache
from pytest_pplguard.measure.results import Results
from pytest_pplguard.options import Options, Target
from pytest_pplguard.protocols import PROTOCOLS, Wanda
from pytest_pplguard.values import Key

IT = Target("llama/it", "out/it")


class Other(Wanda):
    """A method that another package brings."""

    name = "other"


Other.__module__ = "another.package"


def refuse(*_: object) -> Any:
    raise AssertionError("nothing is to be looked at")


def told(folder: Path, key: str, options: Options) -> list[str]:
    """What is told of a key of which nothing may be kept."""
    notes: list[str] = []
    results = Results(
        Cache(folder / "cache", tell=notes.append),
        options,
        locate=refuse,
        allow_keys=refuse,
        tell=notes.append,
    )
    assert results.recall(IT, Key.parse(key), refuse) is None
    assert results.cut(IT, Key.parse(key)) is None
    assert not (folder / "cache").exists()
    return notes


@pytest.mark.parametrize(
    ("key", "options", "why"),
    [
        ("kl/wikitext2:512", Options(), "for kl, which compares two checkpoints"),
        (
            "lm-eval/hellaswag:2048",
            Options(),
            "for tasks of lm-eval, whose data and code cannot be told beforehand",
        ),
        (
            "wanda/wikitext2:512",
            Options(trust_remote_code=True),
            "with --ppl-trust-remote-code: such code may do anything",
        ),
        (
            "wanda/wikitext2:512",
            Options(attention="kernels-community/flash-attn"),
            "with attention kernels-community/flash-attn, which is from the Hub",
        ),
    ],
)
def test_what_is_left_out(tmp_path: Path, key: str, options: Options, why: str) -> None:
    assert told(tmp_path, key, options) == [f"results are not cached {why}"]


def test_methods_of_others_are_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(PROTOCOLS._own, "other", Other())
    assert told(tmp_path, "other/wikitext2:512", Options()) == [
        "results are not cached for the method other, which another package brings"
    ]
