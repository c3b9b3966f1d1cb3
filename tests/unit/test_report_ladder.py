"""A ladder as people and programs read it: table, conclusion, JSON and picture."""

from __future__ import annotations

import json
import math
import xml.etree.ElementTree
from pathlib import Path

import pytest

from pytest_pplguard.errors import UsageError
from pytest_pplguard.protocols import Cut
from pytest_pplguard.report import (
    check_plot,
    ladder_document,
    ladder_lines,
    read_ladder,
    write_waterfall,
)
from pytest_pplguard.report.ladder import (
    change_words,
    conclusion_lines,
)
from pytest_pplguard.values import Ladder, Recipe, Rung, Scalar

SVG = "{http://www.w3.org/2000/svg}"
WORDS = 800
Step = tuple[str | None, Scalar, Scalar, float, int, int]
"""Property, before, after, perplexity, tokens scored, windows that are new."""

STEPS: list[Step] = [
    (None, None, None, 10.0, 990, 9),
    ("text", "rows", "detokenised pages", 12.5, 980, 9),
    ("tail", "dropped", "kept", 12.6, 1000, 1),
    ("per_page", False, True, 12.4, 990, 10),
    ("first", "as it is", "prefix", 12.4, 1000, 10),
    ("tail", "kept", "filled backwards", 12.0, 1000, 4),
    ("divisor", "tokens", "words", 12.0**1.25, 1000, 0),
]


def ladder(
    steps: list[Step] = STEPS,
    *,
    limit: int | None = None,
    goal: str = "lm-eval/wikitext:64",
    goal_metric: str = "word_perplexity",
) -> Ladder:
    values = [step[3] for step in steps]
    gap = math.log(values[-1] / values[0])
    rungs = []
    for index, (changed, before, after, value, scored, new) in enumerate(steps):
        change = math.log(value / values[index - 1]) if index else 0.0
        rungs.append(
            Rung(
                changed=changed,
                before=before,
                after=after,
                perplexity=value,
                log_change=change,
                share=change / gap if gap else None,
                windows=10,
                scored=scored,
                new_windows=new,
            )
        )
    return Ladder(
        start="wanda/wikitext2:64",
        start_metric="token_perplexity",
        goal=goal,
        goal_metric=goal_metric,
        rungs=tuple(rungs),
        corpus="wikitext2",
        corpus_digest="sha256:00",
        pages=62,
        words=WORDS,
        limit=limit,
        recipe=Recipe(),
        environment={"dtype": "float32"},
        seconds=1.5,
    )


def test_the_text_in_full() -> None:
    assert (
        ladder_lines("out/w50", ladder())
        == """\
out/w50 on wikitext2
step  what changes                                      perplexity  log change     share
      wanda/wikitext2:64 (token_perplexity)                     10
   1  text: rows, joined -> detokenised pages, joined         12.5     +0.2231   +27.8 %
   2  tail: dropped -> shorter window                         12.6     +0.0080    +1.0 %
   3  windows: across pages -> page by page                   12.4     -0.0160    -2.0 %
   4  first token: not scored -> scored after a prefix        12.4     +0.0000    +0.0 %
   5  tail: shorter window -> filled from text before           12     -0.0328    -4.1 %
   6  divided by: tokens -> words                          22.3345     +0.6212   +77.3 %
      lm-eval/wikitext:64 (word_perplexity)                22.3345     +0.8035  +100.0 %

The same model on the same text: 10 per token by wanda, 22.3345 per word by lm-eval:
+123.3 %.
The divisor alone explains 77.3 % of the gap: there are 1.250 tokens a word, so a
perplexity P per token is P ^ 1.250 per word.
The other steps, how the text is cut and read, add 22.7 % together; the largest is step
1 with +27.8 % (text: rows, joined -> detokenised pages, joined).
A negative share pulls the other way: steps 3 and 5. All shares add up to 100 %.
As a power: 22.3345 = 10 ^ 1.3490 (ln word perplexity / ln token perplexity).
Whether pruning has a part in the gap, two models tell: pplguard compare DENSE PRUNED.
""".splitlines()
    )


def test_a_text_cut_to_pages_and_one_step_back() -> None:
    steps = [STEPS[0], ("tail", "dropped", "kept", 9.0, 1000, 1)]
    climbed = ladder(steps, limit=3, goal="other/wikitext2:64",
                     goal_metric="token_perplexity")  # fmt: skip
    assert (
        ladder_lines("m", climbed)
        == """\
m on the first 3 pages of wikitext2
step  what changes                           perplexity  log change     share
      wanda/wikitext2:64 (token_perplexity)          10
   1  tail: dropped -> shorter window                 9     -0.1054  +100.0 %
      other/wikitext2:64 (token_perplexity)           9     -0.1054  +100.0 %

The same model on the same text: 10 per token by wanda, 9 per token by other: -10.0 %.
All of it is how the text is cut and read; the largest is step 1 with +100.0 % (tail:
dropped -> shorter window).
Both ends are of the first 3 pages alone: they are not the numbers of the whole text.
""".splitlines()
    )


def test_steps_against_the_gap() -> None:
    steps = [
        STEPS[0],
        ("tail", "dropped", "kept", 9.0, 1000, 1),
        ("mean", "tokens", "windows", 12.0, 1000, 0),
    ]
    climbed = ladder(steps, goal="other/wikitext2:64", goal_metric="token_perplexity")
    assert conclusion_lines(climbed) == [
        "The same model on the same text: 10 per token by wanda, 12 per token by "
        "other: +20.0 %.",
        "All of it is how the text is cut and read; the largest is step 2 with "
        "+157.8 % (mean: over tokens -> over windows).",
        "A negative share pulls the other way: step 1. All shares add up to 100 %.",
    ]


def test_from_words_to_tokens_and_against_the_gap() -> None:
    words = 12.0**1.25
    steps: list[Step] = [
        (None, None, None, words, 1000, 9),
        ("divisor", "words", "tokens", 12.0, 1000, 0),
        ("text", "detokenised pages", "rows", 30.0, 1000, 9),
    ]
    climbed = ladder(steps, goal="other/wikitext2:64", goal_metric="token_perplexity")
    assert conclusion_lines(climbed)[1:3] == [
        "The divisor alone makes -210.5 % of the gap: there are 1.250 tokens a word, "
        "so a perplexity P per word is P ^ 0.800 per token.",
        "The other steps, how the text is cut and read, add 310.5 % together; the "
        "largest is step 2 with +310.5 % (text: detokenised pages, joined -> rows, "
        "joined).",
    ]
    # By hand: ln(12 / 22.3345) / ln(30 / 22.3345) and ln(30 / 12) / ln(30 / 22.3345).
    assert math.log(12 / words) / math.log(30 / words) == pytest.approx(
        -2.1054, abs=1e-4
    )


def test_no_gap_has_no_shares() -> None:
    steps = [STEPS[0], ("tail", "dropped", "kept", 10.0, 990, 0)]
    climbed = ladder(steps, goal="other/wikitext2:64", goal_metric="token_perplexity")
    assert (
        ladder_lines("m", climbed)
        == """\
m on wikitext2
step  what changes                           perplexity  log change     share
      wanda/wikitext2:64 (token_perplexity)          10
   1  tail: dropped -> shorter window                10     +0.0000         -
      other/wikitext2:64 (token_perplexity)          10     +0.0000         -

The same model on the same text: 10 per token by wanda, 10 per token by other: the same
number.
There is no gap, and so no step has a share of it.
""".splitlines()
    )


def test_every_value_of_a_cut_has_words() -> None:
    """What has none is shown as it is; that must still be readable."""
    shown = {
        change_words(
            Rung(
                changed=name,
                before=before,
                after=after,
                perplexity=1.0,
                log_change=0.0,
                share=None,
                windows=1,
                scored=1,
                new_windows=0,
            ),
            ladder(),
        )
        for name, before, after in (
            ("window", 64, 128),
            ("stride", None, 32),
            ("first", "BOS in its place", "as it is"),
            ("scored", "second half", "all"),
            ("mean", "windows", "something new"),
            ("new_field", "old", "new"),
        )
    }
    assert shown == {
        "window: 64 -> 128",
        "stride: one window -> 32",
        "first token: not scored, BOS in its place -> not scored",
        "scored: the second half of each window -> every token once",
        "mean: over windows -> something new",
        "new field: old -> new",
    }
    assert Cut.__struct_fields__  # the names above are those of the cut


def test_the_json_document() -> None:
    climbed = ladder()
    document = json.loads(json.dumps(ladder_document("out/w50", climbed),
                                     allow_nan=False))  # fmt: skip
    steps = document.pop("steps")
    conclusion = document.pop("conclusion")
    last = climbed.rungs[-1].perplexity
    assert document == {
        "schema": 1,
        "model": "out/w50",
        "text": "wikitext2",
        "text_digest": "sha256:00",
        "pages": 62,
        "words": 800,
        "limit": None,
        "window": 64,
        "from": {
            "key": "wanda/wikitext2:64",
            "metric": "token_perplexity",
            "value": 10.0,
        },
        "to": {
            "key": "lm-eval/wikitext:64",
            "metric": "word_perplexity",
            "value": last,
        },
        "gap": math.log(last) - math.log(10.0),
        "exponent": math.log(last) / math.log(10.0),
        "tokens_per_word": 1.25,
        "environment": {"dtype": "float32"},
        "seconds": 1.5,
        "notices": [],
    }
    assert conclusion == conclusion_lines(climbed)
    assert steps[0] == {
        "change": "wanda itself",
        "perplexity": 10.0,
        "log_change": 0.0,
        "share": 0.0,
        "property": None,
        "before": None,
        "after": None,
        "windows": 10,
        "new_windows": 9,
        "scored": 990,
        "measured": True,
    }
    assert [step["measured"] for step in steps] == [*[True] * 6, False]
    assert {*steps[0]} == {*steps[-1]}


# ------------------------------------------------------------------------- read again


def test_a_document_is_read_again(tmp_path: Path) -> None:
    file = tmp_path / "ladder.json"
    document = ladder_document("caf\udce9/w50", ladder())
    file.write_text(json.dumps(document), "utf-8")
    found = read_ladder(file, option="--ppl-ladder")
    assert found.model == "caf\udce9/w50"
    kept = {name: document[name] for name in found.document if name != "steps"}
    assert {**found.document, "steps": None} == {**kept, "steps": None}
    assert {*kept} > {"from", "to", "text", "conclusion"}
    for step, written in zip(found.document["steps"], document["steps"], strict=True):
        assert step == {name: written[name] for name in step}
        assert {*step} == {"change", "perplexity", "log_change", "share"}


AS_IT_IS = json.dumps(ladder_document("m", ladder()))
NOT_A_LADDER = "is not a ladder of `pplguard explain --json`: "
ANEW = "; write it anew with `pplguard explain MODEL --json FILE`"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "Expecting value: line 1 column 1 (char 0)"),
        (AS_IT_IS[:200], None),
        ("[]", "Expected `object`, got `array`"),
        ("{}", "Object missing required field `schema`"),
        ('{"schema": "1"}', "Expected `int`, got `str` - at `$.schema`"),
        ('{"schema": 0}', "Expected `int` >= 1 - at `$.schema`"),
        ('{"schema": 1, "verdicts": []}', "Object missing required field `model`"),
        ('{"schema": NaN}', "NaN is not finite"),
        ("[" * 100_000, None),
        (AS_IT_IS.replace("12.5", "1e999"), "1e999 is not finite"),
        (
            AS_IT_IS.replace("12.5", "-12.5"),
            "Expected `float` > 0.0 - at `$.steps[1].perplexity`",
        ),
        (
            AS_IT_IS.replace('"wanda itself"', "7"),
            "Expected `str`, got `int` - at `$.steps[0].change`",
        ),
        (
            AS_IT_IS.replace('"notices": []', '"notices": [null]'),
            "Expected `str`, got `null` - at `$.notices[0]`",
        ),
    ],
)
def test_something_else_is_one_line(
    tmp_path: Path, text: str, message: str | None
) -> None:
    file = tmp_path / "ladder.json"
    file.write_text(text, "utf-8")
    with pytest.raises(UsageError) as caught:
        read_ladder(file, option="--ppl-ladder")
    said = str(caught.value)
    assert said.startswith(f"--ppl-ladder: {file} {NOT_A_LADDER}")
    assert said.endswith(ANEW)
    assert "\n" not in said
    if message is not None:
        assert said == f"--ppl-ladder: {file} {NOT_A_LADDER}{message}{ANEW}"


def test_a_ladder_that_is_newer_or_not_there(tmp_path: Path) -> None:
    file = tmp_path / "ladder.json"
    file.write_text('{"schema": 2}', "utf-8")
    with pytest.raises(UsageError) as caught:
        read_ladder(file, option="--ppl-ladder")
    assert str(caught.value) == (
        f"--ppl-ladder: {file} has schema 2, and this version reads up to 1: update "
        "pytest-pplguard, or write it anew with `pplguard explain MODEL --json FILE`"
    )
    with pytest.raises(UsageError) as caught:
        read_ladder(tmp_path, option="--ppl-ladder")
    assert str(caught.value) == (
        f"--ppl-ladder: {tmp_path} cannot be read: Is a directory"
    )
    with pytest.raises(UsageError) as caught:
        read_ladder(tmp_path / "no.json", option="--ppl-ladder")
    assert str(caught.value) == (
        f"--ppl-ladder: {tmp_path / 'no.json'} cannot be read: No such file or "
        "directory"
    )


# -------------------------------------------------------------------------- the picture


def texts(file: Path) -> list[str]:
    root = xml.etree.ElementTree.parse(file).getroot()
    return ["".join(node.itertext()) for node in root.iter(f"{SVG}text")]


def test_a_waterfall_has_every_step(tmp_path: Path) -> None:
    file = check_plot(str(tmp_path / "ladder.svg"), option="--plot")
    write_waterfall(file, ladder(), "out/w50")
    drawn = " ".join(texts(file))
    for rung in ladder().rungs[1:]:
        assert rung.share is not None
        assert f"{rung.perplexity:.6g} ({rung.share * 100:+.1f} %)" in drawn
    for end in ("wanda/wikitext2:64", "lm-eval/wikitext:64", "out/w50"):
        assert end in drawn
    # Up, down and the ends.
    svg = file.read_text(encoding="utf-8")
    assert all(colour in svg for colour in ("#d55e00", "#0072b2", "#4d4d4d"))
    write_waterfall(tmp_path / "again.svg", ladder(), "out/w50")
    assert (tmp_path / "again.svg").read_text(encoding="utf-8") == svg


def test_png_pdf_and_equal_ends(tmp_path: Path) -> None:
    flat = ladder([STEPS[0], ("tail", "dropped", "kept", 10.0, 990, 0)])
    for suffix, magic in ((".png", b"\x89PNG\r\n"), (".pdf", b"%PDF-")):
        file = tmp_path / f"ladder{suffix}"
        write_waterfall(file, flat, "m")
        assert file.read_bytes().startswith(magic)


def test_a_picture_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(UsageError) as caught:
        check_plot("ladder.jpg", option="--plot")
    assert str(caught.value) == (
        "--plot ladder.jpg: the suffix says what to write: .png, .svg, .pdf"
    )
    (tmp_path / "a.png").mkdir()
    with pytest.raises(UsageError, match=r"^--plot: .*a\.png cannot be written: "):
        write_waterfall(tmp_path / "a.png", ladder(), "m")
