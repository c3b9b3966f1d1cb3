"""A review as people and programs read it, in full."""

from __future__ import annotations

import json
from textwrap import dedent

from pytest_pplguard.report.review import (
    review_document,
    review_headline,
    review_lines,
    review_markdown,
)
from pytest_pplguard.review import Fact, GateChange, Review, Row

KEY = "wanda/wikitext2:4096"
FULL = Review(
    loosened=(
        GateChange(
            checkpoint="llama-2-7b/w50", gate=f"{KEY} token_perplexity",
            old="rel 0.005", new="rel 0.05", file="baselines/llama-2-7b.yaml", line=7,
        ),
        GateChange(checkpoint="opt", gate="file", old="opt-old", new="opt"),
    ),
    tightened=(
        GateChange(
            checkpoint="llama-2-7b/w50", gate="weights", old="any", new="same",
            file="baselines/llama-2-7b.yaml", line=9,
        ),
    ),
    suspect=(Fact("llama-2-7b/w50", KEY, "edited by hand"),),
    incomparable=(Fact("llama-2-7b/w50", KEY, "another text"),),
    rows=(
        Row(checkpoint="llama-2-7b/w50", key=KEY, metric="token_perplexity",
            old=6.3062154, new=6.5017081, change=0.031, first=6.0, drift=0.0836),
        Row(checkpoint="llama-2-7b/w50", key=KEY, metric="other", old=5.0,
            new=5.0000000001, change=2e-11, note="was published"),
        Row(checkpoint="llama-2-7b/w60", key=KEY, metric="token_perplexity",
            old=None, new=7.0, note="new"),
        Row(checkpoint="llama-2-7b/w70", key=KEY, metric="token_perplexity",
            old=8.0, new=None, note="removed"),
    ),
    entries=(Fact("llama-2-7b/w60", "", "new checkpoint"),),
    environment=(Fact("llama-2-7b/w50", KEY, "dtype: float16 -> float32"),),
    unread=("1a2b3c:baselines/old.yaml:3: the key 'a' is already on line 2",),
)  # fmt: skip


def test_for_a_terminal() -> None:
    text = "\n".join(review_lines(FULL, "baselines: HEAD against its parent")) + "\n"
    assert text == dedent("""\
        baselines: HEAD against its parent

        LOOSENED: 2 gates
          llama-2-7b/w50  wanda/wikitext2:4096 token_perplexity
              rel 0.005 -> rel 0.05 (baselines/llama-2-7b.yaml:7)
          opt  file
              opt-old -> opt

        NOT WHAT RECORDING DOES
          llama-2-7b/w50  wanda/wikitext2:4096
              edited by hand

        NOT COMPARABLE WITH WHAT WAS RECORDED BEFORE
          llama-2-7b/w50  wanda/wikitext2:4096
              another text

        llama-2-7b/w50                      old        new     change  since first
          wanda/wikitext2:4096
            token_perplexity            6.30622    6.50171    +3.10 %      +8.36 %
            other                             5          5    +0.00 %            -
              was published
              5.0 -> 5.0000000001
        llama-2-7b/w60                      old        new     change  since first
          wanda/wikitext2:4096
            token_perplexity                  -          7          -            -
        llama-2-7b/w70                      old        new     change  since first
          wanda/wikitext2:4096
            token_perplexity                  8          -          -            -

        New and gone
          llama-2-7b/w60
              new checkpoint

        Measured with
          llama-2-7b/w50  wanda/wikitext2:4096
              dtype: float16 -> float32

        Tightened
          llama-2-7b/w50  weights
              any -> same (baselines/llama-2-7b.yaml:9)

        Cannot be read, and was left out
          1a2b3c:baselines/old.yaml:3: the key 'a' is already on line 2

        2 gates loosened, 1 record to look at, 1 record not comparable, 2 values
          changed, 1 value new, 1 value removed, 1 gate tightened, 1 file not read
        """)


def test_for_a_pull_request() -> None:
    warning = "\N{WARNING SIGN}\N{VARIATION SELECTOR-16}"
    text = review_markdown(FULL, "baselines: HEAD against its parent") + "\n"
    assert text.replace(warning, "!") == dedent("""\
        ## ! Baselines: 2 gates loosened, 1 record to look at, 1 record not comparable, 2 values changed, 1 value new, 1 value removed, 1 gate tightened, 1 file not read

        `baselines: HEAD against its parent`

        ### ! Loosened gates

        | checkpoint | gate | old | new | line |
        | --- | --- | --- | --- | --- |
        | `llama-2-7b/w50` | `wanda/wikitext2:4096 token_perplexity` | `rel 0.005` | `rel 0.05` | `baselines/llama-2-7b.yaml:7` |
        | `opt` | `file` | `opt-old` | `opt` |  |

        ### ! Not what recording does

        - `llama-2-7b/w50` `wanda/wikitext2:4096`: `edited by hand`

        ### ! Not comparable with what was recorded before

        - `llama-2-7b/w50` `wanda/wikitext2:4096`: `another text`

        ### Values

        | checkpoint | key | metric | old | new | change | since first |  |
        | --- | --- | --- | ---: | ---: | ---: | ---: | --- |
        | `llama-2-7b/w50` | `wanda/wikitext2:4096` | `token_perplexity` | 6.30622 | 6.50171 | +3.10 % | +8.36 % |  |
        | `llama-2-7b/w50` | `wanda/wikitext2:4096` | `other` | 5 | 5 | +0.00 % | - | was published, 5.0 -> 5.0000000001 |
        | `llama-2-7b/w60` | `wanda/wikitext2:4096` | `token_perplexity` | - | 7 | - | - | new |
        | `llama-2-7b/w70` | `wanda/wikitext2:4096` | `token_perplexity` | 8 | - | - | - | removed |

        ### New and gone

        - `llama-2-7b/w60`: `new checkpoint`

        ### Measured with

        - `llama-2-7b/w50` `wanda/wikitext2:4096`: `dtype: float16 -> float32`

        <details><summary>Tightened gates</summary>

        | checkpoint | gate | old | new | line |
        | --- | --- | --- | --- | --- |
        | `llama-2-7b/w50` | `weights` | `any` | `same` | `baselines/llama-2-7b.yaml:9` |

        </details>

        ### Cannot be read, and was left out

        ```text
        1a2b3c:baselines/old.yaml:3: the key 'a' is already on line 2
        ```
        """)  # noqa: E501


def test_nothing() -> None:
    assert review_lines(Review(), "x") == ["x", "", "nothing changed"]
    assert review_markdown(Review(), "x") == "## Baselines: nothing changed\n\n`x`"
    environment = Review(environment=(Fact("a/b", "k", "torch: 1 -> 2"),))
    assert review_headline(environment) == "no gate and no value changed"


def test_for_programs() -> None:
    document = review_document(FULL, "x")
    assert list(document) == ["schema", "title", *Review.__struct_fields__]
    assert json.loads(json.dumps(document, allow_nan=False)) == document
    assert document["rows"][0]["new"] == 6.5017081
    assert document["loosened"][0]["line"] == 7


HOSTILE = "<script>alert(1)</script> \x1b[31m| `` ` ``` \u202e\n# x " + "w" * 4096


def test_what_others_wrote_is_no_markup_and_breaks_no_layout() -> None:
    review = Review(
        loosened=(GateChange(checkpoint=HOSTILE, gate=HOSTILE, old=HOSTILE, new="x"),),
        suspect=(Fact("a/b", HOSTILE, HOSTILE),),
        rows=(Row(checkpoint=HOSTILE, key=HOSTILE, metric="m", old=1.0, new=2.0),),
        unread=(HOSTILE,),
    )
    lines = review_lines(review, HOSTILE)
    assert all(len(line) <= 80 for line in lines)
    assert not any(set(line) & {"\x1b", "\u202e", "\n"} for line in lines)
    text = review_markdown(review, HOSTILE)
    assert "\x1b" not in text
    assert "\u202e" not in text
    rows = [line for line in text.splitlines() if line.startswith("| ")]
    # Five cells and eight: every pipe of the text is escaped.
    assert [line.replace(r"\|", "").count("|") for line in rows] == [6, 6, 6, 9, 9, 9]
    for line in text.splitlines():
        if "<script>" in line:
            assert line.startswith(("| ````<", "- `a/b` ````<", "````<", "<script>"))
    assert text.endswith("w\n````")
