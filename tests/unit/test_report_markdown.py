"""The report for people, in full, and names that are Markdown or HTML themselves."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from pytest_pplguard.report import markdown_blocks
from pytest_pplguard.report.markdown import markdown
from pytest_pplguard.values import Outcome, Remark, Results, Verdict

WITHIN = Verdict(
    "llama/w50", "wanda/wikitext2:4096", "token_perplexity",
    Outcome.WITHIN, True, 6.3062154, 6.3062154, 0.0, (6.274841, 6.3377465),
)  # fmt: skip
REGRESSED = Verdict(
    "llama/w75", "wanda/wikitext2:4096", "token_perplexity",
    Outcome.REGRESSED, False, 6.3062154, 6.5017081, 0.031, (6.274841, 6.3377465),
    gate="rel 0.005, baselines/llama.yaml:7", source="measured",
    recorded_in="baselines/llama.yaml:12", command="pytest x --ppl-update",
    notes=("torch 2.14.0, baseline 2.13.0",),
)  # fmt: skip
RATIO = Verdict(
    "llama/w75", "wanda/wikitext2:4096", "token_perplexity / dense",
    Outcome.WITHIN, True, None, 1.25, None, (None, 1.3),
)  # fmt: skip
BROKEN = Verdict(
    "llama/w75", "sparsity", "fraction",
    Outcome.ERROR, False, reasons=("out/w75 does not exist",),
)  # fmt: skip


def test_a_red_run() -> None:
    results = Results(
        verdicts=(WITHIN, REGRESSED, BROKEN, RATIO),
        problems=(Remark("--ppl-model llama/x=y: no gate was measured (`why`)"),),
        warnings=(Remark("llama/w50 k m: published, no evidence: a paper"),),
        notices=("no accelerator found: running on the CPU",),
    )
    assert (
        markdown(results)
        == """\
## ❌ Perplexity: 1 regressed, 1 error, 2 within tolerance

### Problems of the run

```text
--ppl-model llama/x=y: no gate was measured (`why`)
```

### ❌ `llama/w75`

| key | metric | baseline | measured | change | allowed | outcome |
| --- | --- | ---: | ---: | ---: | --- | --- |
| `wanda/wikitext2:4096` | `token_perplexity` | 6.30622 | 6.50171 | +3.10 % \
| 6.27484 .. 6.33775 | ❌ **regressed** |
| `wanda/wikitext2:4096` | `token_perplexity / dense` | - | 1.25 | - \
| at most 1.3 | ✅ within |
| `sparsity` | `fraction` | - | - | - | - | ❌ **error** |

### ✅ `llama/w50`

| key | metric | baseline | measured | change | allowed | outcome |
| --- | --- | ---: | ---: | ---: | --- | --- |
| `wanda/wikitext2:4096` | `token_perplexity` | 6.30622 | 6.30622 | +0.00 % \
| 6.27484 .. 6.33775 | ✅ within |

### Not passed

```text
llama/w75 wanda/wikitext2:4096: token_perplexity regressed by 3.10 %
  baseline     6.3062154 (measured)
  measured     6.5017081
  allowed      6.274841 .. 6.3377465 (rel 0.005, baselines/llama.yaml:7)
  recorded in  baselines/llama.yaml:12
  note         torch 2.14.0, baseline 2.13.0
  to accept    pytest x --ppl-update
```

```text
llama/w75 sparsity: fraction could not be measured
  because      out/w75 does not exist
```

### Notes

```text
warning: llama/w50 k m: published, no evidence: a paper
note: no accelerator found: running on the CPU
```
"""
    )


def test_a_green_run() -> None:
    assert (
        markdown(Results(verdicts=(WITHIN,)))
        == """\
## ✅ Perplexity: 1 within tolerance

### ✅ `llama/w50`

| key | metric | baseline | measured | change | allowed | outcome |
| --- | --- | ---: | ---: | ---: | --- | --- |
| `wanda/wikitext2:4096` | `token_perplexity` | 6.30622 | 6.30622 | +0.00 % \
| 6.27484 .. 6.33775 | ✅ within |
"""
    )


def test_a_published_value_stands_beside_the_measured_one() -> None:
    verdict = replace(WITHIN, published=6.42, reference="a paper")
    assert "| 6.30622 (published: 6.42) | 6.30622 |" in markdown(Results((verdict,)))


def test_a_run_that_was_stopped_is_not_green() -> None:
    blocks = markdown_blocks(Results(verdicts=(WITHIN,), complete=False))
    assert blocks[:2] == [
        "## ❌ Perplexity: 1 within tolerance\n",
        "**The run was stopped before its end: what is not listed was not "
        "measured.**\n",
    ]


def test_nothing_was_judged() -> None:
    assert (
        markdown(Results(problems=(Remark("worker 'gw0' crashed"),)))
        == """\
## ❌ Perplexity: no gate reached a verdict

### Problems of the run

```text
worker 'gw0' crashed
```
"""
    )


def test_a_run_without_gates_is_neither_green_nor_red() -> None:
    headline = "## \N{MEDIUM WHITE CIRCLE} Perplexity: nothing was measured against a "
    assert markdown(Results()) == f"{headline}baseline\n"
    noted = Results(notices=("skipped",), warnings=(Remark("a paper"),))
    assert markdown_blocks(noted) == [
        f"{headline}baseline\n",
        "### Notes\n\n```text\nwarning: a paper\nnote: skipped\n```\n",
    ]
    stopped = markdown_blocks(Results(complete=False))
    assert stopped[0] == "## ❌ Perplexity: no gate reached a verdict\n"


@pytest.mark.parametrize(
    ("name", "cell"),
    [
        ("a|b", r"`a\|b`"),
        ("a`b", "``a`b``"),
        ("`a", "`` `a ``"),
        ("``", "``` `` ```"),
        ("a\nb\r\n c", "`a b c`"),
        ("<img src=x>", "`<img src=x>`"),
        ("*a* _b_ [c](d) ~e~ @f #1 &amp;", "`*a* _b_ [c](d) ~e~ @f #1 &amp;`"),
        ("wanda/x:100:first2", "`wanda/x:100:first2`"),
        ("", "` `"),
    ],
)
def test_names_are_shown_as_they_are(name: str, cell: str) -> None:
    (_, table) = markdown_blocks(Results(verdicts=(replace(WITHIN, key=name),)))
    assert table.splitlines()[-1].startswith(f"| {cell} | `token_perplexity` | ")


def test_no_text_closes_its_fence() -> None:
    text = "see\n```text\n<b>\n````\nend"
    blocks = markdown_blocks(Results(problems=(Remark(text),)))
    assert blocks[1] == f"### Problems of the run\n\n`````text\n{text}\n`````\n"


@pytest.mark.parametrize(
    ("measured", "low", "high", "cells"),
    [
        (6.33774651, 6.2, 6.3377465, "6.33774651 | +0.00 % | 6.2 .. 6.3377465"),
        (6.2748405, 6.274841, None, "6.2748405 | +0.00 % | at least 6.274841"),
        (6.3377465, 6.2, 6.3377465, "6.33775 | +0.00 % | 6.2 .. 6.33775"),
        (6.5, 6.2, 6.3377465, "6.5 | +0.00 % | 6.2 .. 6.33775"),
    ],
)
def test_rounding_never_makes_a_value_look_allowed(
    measured: float, low: float | None, high: float | None, cells: str
) -> None:
    verdict = replace(WITHIN, measured=measured, allowed=(low, high))
    (_, table) = markdown_blocks(Results(verdicts=(verdict,)))
    assert f" | {cells} | " in table
