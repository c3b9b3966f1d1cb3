"""Which options a message of the command names."""

from __future__ import annotations

import pytest

from pytest_pplguard.cli import own_options


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
