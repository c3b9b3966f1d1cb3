"""Gates of baseline files: every outcome from command line to failure text."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import pytest

from pytest_pplguard.baselines import read_baseline

from . import stub
from .project import LM_EVAL, TEXT, WANDA, Project, failure, section

ONE = """
w50:
  gates:
    wanda/tiny:16: {token_perplexity: {rel: 0.005}}
"""
TITLE = "llama/w50 wanda/tiny:16 token_perplexity"
ITEM = "baselines/llama.yaml::w50::wanda/tiny:16"


def test_both_methods_within(project: Project, plugin_args: tuple[str, ...]) -> None:
    project.baseline(
        """
        w50:
          gates:
            wanda/tiny:16: {token_perplexity: {rel: 0.005}}
            lm-eval/wikitext+tiny:64: {word_perplexity: {rel: 0.005}}
        """,
        w50="ppl:8",
    )
    result = project.run(*project.give(w50="ppl:8"), *plugin_args)
    result.assert_outcomes(passed=2)
    assert result.ret == 0
    assert section(result) == (
        "llama/w50  baseline  measured  change  outcome\n"
        "  wanda/tiny:16\n"
        "  token_perplexity  8  8  +0.00 %  within\n"
        "  lm-eval/wikitext+tiny:64\n"
        "  word_perplexity  19759.7  19759.7  +0.00 %  within\n"
        "2 within tolerance\n"
    )
    assert project.loads() == ["llama/w50 after 0"]


@pytest.mark.parametrize("update", [(), ("--ppl-update",)])
def test_a_metric_that_the_method_lacks_costs_no_loading(
    project: Project, update: tuple[str, ...]
) -> None:
    project.baseline(
        """
        w50:
          gates:
            wanda/tiny:16: {word_perplexity: {rel: 0.01}}
        """
    )
    result = project.run(*project.give(w50="ppl:8"), *update)
    result.assert_outcomes(errors=1)
    assert (
        "wanda/tiny:16 has no metric word_perplexity (did you mean "
        "'token_perplexity'?); it yields token_perplexity"
    ) in " ".join(str(result.stdout).split())
    assert project.loads() == []


def test_the_numbers_follow_from_the_text_alone(project: Project) -> None:
    project.baseline(
        """
        w50:
          gates:
            wanda/tiny:16: {token_perplexity: {}}
            lm-eval/wikitext+tiny:64: {word_perplexity: {}, byte_perplexity: {}}
        """
    )
    project.run(*project.give(w50="ppl:7.5"), "--ppl-report=r.json")
    verdicts = json.loads((project.path / "r.json").read_text())["verdicts"]
    nll = len(TEXT.encode()) * math.log(7.5)
    words = len(re.split(r"\s+", TEXT))
    assert [verdict["measured"] for verdict in verdicts] == pytest.approx(
        [7.5, math.exp(nll / words), 7.5], rel=1e-12
    )


def test_regressed(project: Project, local_args: tuple[str, ...]) -> None:
    project.baseline(ONE, w50="ppl:8")
    result = project.run(*project.give(w50="ppl:9"), *local_args)
    result.assert_outcomes(failed=1)
    assert result.ret == 1
    assert failure(result, TITLE).splitlines()[-8:] == [
        "llama/w50 wanda/tiny:16: token_perplexity regressed by 12.50 %",
        "  baseline     8 (measured)",
        "  measured     9",
        "  allowed      7.9602 .. 8.04 (rel 0.005, baselines/llama.yaml:7)",
        "  recorded in  baselines/llama.yaml:9",
        "  where        the whole text moved: 11 of 11 windows are worse, by 0.12 +- 0 "
        "nats a token",
        '  where        window 1 of 11 moved most: +0.12 nats a token, at "?"',
        f"  to accept    pytest {ITEM} --ppl-model llama/w50=ppl:9 --ppl-update",
    ]
    assert section(result) == (
        "llama/w50  baseline  measured  change  outcome\n"
        "  wanda/tiny:16\n"
        "  token_perplexity  8  9  +12.50 %"
        "  REGRESSED\n"
        "1 regressed\n"
    )


def test_improved_fails_where_it_should_stay_within(project: Project) -> None:
    project.baseline(ONE, w50="ppl:8")
    result = project.run(*project.give(w50="ppl:6"))
    result.assert_outcomes(failed=1)
    assert failure(result, TITLE) == (
        "llama/w50 wanda/tiny:16: token_perplexity improved by 25.00 %, more than "
        "is allowed\n"
        "  baseline     8 (measured)\n"
        "  measured     6\n"
        "  allowed      7.9602 .. 8.04 (rel 0.005, baselines/llama.yaml:7)\n"
        "  recorded in  baselines/llama.yaml:9\n"
        "  where        the whole text moved: 11 of 11 windows are better, by 0.29 +- "
        "0 nats a token\n"
        '  where        window 1 of 11 moved most: -0.29 nats a token, at "?"\n'
        "  look for     a lost mask, another model or text; if it really is better: "
        "accept, or gate with direction: no-worse\n"
        f"  to accept    pytest {ITEM} --ppl-model llama/w50=ppl:6 --ppl-update\n"
    )


def test_improved_passes_under_no_worse(project: Project) -> None:
    project.baseline(
        """
        w50:
          gates:
            wanda/tiny:16:
              token_perplexity: {rel: 0.005, direction: no-worse}
        """,
        w50="ppl:8",
    )
    result = project.run(*project.give(w50="ppl:6"))
    result.assert_outcomes(passed=1)
    assert section(result) == (
        "llama/w50  baseline  measured  change  outcome\n"
        "  wanda/tiny:16\n"
        "  token_perplexity  8  6  -25.00 %  improved\n"
        "1 improved\n"
    )


def test_missing_fails_writes_nothing_and_says_how_to_record(project: Project) -> None:
    path = project.baseline(ONE)
    before = path.read_bytes()
    result = project.run(*project.give(w50="ppl:6"), "--ppl-device", "cpu")
    result.assert_outcomes(failed=1)
    assert failure(result, TITLE) == (
        "llama/w50 wanda/tiny:16: token_perplexity has no baseline\n"
        "  measured     6\n"
        "  gate         rel 0.005, baselines/llama.yaml:7\n"
        "  because      no baseline is recorded for llama/w50 wanda/tiny:16\n"
        f"  to record    pytest {ITEM} --ppl-model llama/w50=ppl:6 --ppl-device cpu "
        "--ppl-update\n"
    )
    assert path.read_bytes() == before
    assert [child.name for child in path.parent.iterdir()] == ["llama.yaml"]


def test_the_printed_command_records(project: Project) -> None:
    project.baseline(ONE)
    text = failure(project.run(*project.give(w50="ppl:6")), TITLE)
    command = next(line for line in text.splitlines() if "to record" in line)
    result = project.run(*command.partition(" pytest ")[2].split())
    result.assert_outcomes(passed=1)
    assert project.run(*project.give(w50="ppl:6")).ret == 0


PUBLISHED = """
w50:
  gates:
    wanda/tiny:16: {token_perplexity: {rel: 0.03}}
  recorded:
    wanda/tiny:16:
      token_perplexity: 7.26
      source: {kind: published, reference: "Wanda, table 3", digits: 2}
"""


@pytest.mark.parametrize("policy", ["accept", "warn"])
def test_plausible_passes_and_is_counted_apart(project: Project, policy: str) -> None:
    project.baseline(PUBLISHED)
    project.ini(f"ppl_published = {policy}")
    result = project.run(*project.give(w50="ppl:7.3"))
    result.assert_outcomes(passed=1)
    warning = (
        "warning: llama/w50 wanda/tiny:16 token_perplexity: published, no evidence: "
        "Wanda, table 3\n"
    )
    assert section(result) == (
        "llama/w50  baseline  measured  change  outcome\n"
        "  wanda/tiny:16\n"
        "  token_perplexity  7.26  7.3  +0.55 %  plausible\n"
        "1 plausible (published, no evidence)\n" + (warning if policy == "warn" else "")
    )


def test_plausible_fails_where_the_ini_says_so(project: Project) -> None:
    project.baseline(PUBLISHED)
    project.ini("ppl_published = fail")
    result = project.run(*project.give(w50="ppl:7.3"))
    result.assert_outcomes(failed=1)
    assert failure(result, TITLE) == (
        "llama/w50 wanda/tiny:16: token_perplexity has only a published baseline\n"
        "  baseline     7.26 (published: Wanda, table 3)\n"
        "  measured     7.3\n"
        "  allowed      7.04369 .. 7.48295 (rel 0.03, baselines/llama.yaml:7)\n"
        "  recorded in  baselines/llama.yaml:9\n"
        "  because      published, no evidence: Wanda, table 3 (ppl_published = fail)\n"
        f"  to accept    pytest {ITEM} --ppl-model llama/w50=ppl:7.3 --ppl-update\n"
    )


def test_published_and_outside_its_band(project: Project) -> None:
    project.baseline(PUBLISHED)
    result = project.run(*project.give(w50="ppl:8"))
    result.assert_outcomes(failed=1)
    assert "token_perplexity regressed by 10.19 %" in failure(result, TITLE)


def test_a_published_value_stays_beside_the_measured_one(project: Project) -> None:
    path = project.baseline(PUBLISHED + "other:\n  path: x  # kept\n")
    before = path.read_text()
    project.run(*project.give(w50="ppl:7.3"), "--ppl-update-new")
    assert path.read_text() == before  # it has a baseline
    project.run(*project.give(w50="ppl:7.3"), "--ppl-update").assert_outcomes(passed=1)
    after = path.read_text()
    published = "published: {token_perplexity: 7.26, reference: "
    assert f'{published}"Wanda, table 3", digits: 2}}\n' in after
    assert "source: {kind: measured}\n" in after
    head, _, tail = before.partition("7.26\n")
    assert after.startswith(head)
    assert after.endswith(tail.partition("digits: 2}\n")[2])
    result = project.run(*project.give(w50="ppl:7.3"))
    result.assert_outcomes(passed=1)
    assert section(result) == (
        "llama/w50  baseline  measured  change  outcome\n"
        "  wanda/tiny:16\n"
        "  token_perplexity  7.3  7.3  +0.00 %  within\n"
        "  published  7.26  7.3  +0.55 %\n"
        "1 within tolerance\n"
    )
    project.run(*project.give(w50="ppl:7.4"), "--ppl-update").assert_outcomes(passed=1)
    assert f'{published}"Wanda, table 3", digits: 2}}\n' in path.read_text()
    result = project.run(*project.give(w50="ppl:8"))
    result.assert_outcomes(failed=1)
    assert failure(result, TITLE) == (
        "llama/w50 wanda/tiny:16: token_perplexity regressed by 8.11 %\n"
        "  baseline     7.4 (measured)\n"
        "  measured     8\n"
        "  allowed      7.18447 .. 7.622 (rel 0.03, baselines/llama.yaml:7)\n"
        "  first        7.3 (+9.59 % since)\n"
        "  published    7.26 (Wanda, table 3; +10.19 % here)\n"
        "  recorded in  baselines/llama.yaml:9\n"
        "  where        the whole text moved: 11 of 11 windows are worse, by 0.078 +- "
        "0 nats a token\n"
        '  where        window 1 of 11 moved most: +0.078 nats a token, at "?"\n'
        f"  to accept    pytest {ITEM} --ppl-model llama/w50=ppl:8 --ppl-update\n"
    )


def test_only_one_of_two_gated_metrics_was_published(project: Project) -> None:
    """What nobody has published has no baseline: red, until the key is recorded."""
    path = project.baseline(
        """
        w50:
          gates:
            lm-eval/wikitext+tiny:64:
              word_perplexity: {rel: 0.03}
              byte_perplexity: {rel: 0.03}
          recorded:
            lm-eval/wikitext+tiny:64:
              word_perplexity: 19760.0
              source: {kind: published, reference: a paper, digits: 0}
        """
    )
    given = project.give(w50="ppl:8")
    result = project.run(*given)
    result.assert_outcomes(passed=1, failed=1)
    item = f"baselines/llama.yaml::w50::{LM_EVAL}"
    assert failure(result, f"llama/w50 {LM_EVAL} byte_perplexity") == (
        f"llama/w50 {LM_EVAL}: byte_perplexity has no baseline\n"
        "  measured     8\n"
        "  gate         rel 0.03, baselines/llama.yaml:9\n"
        "  recorded in  baselines/llama.yaml:11\n"
        f"  because      the baseline of {LM_EVAL} has no byte_perplexity\n"
        f"  to record    pytest {item} --ppl-model llama/w50=ppl:8 --ppl-update\n"
    )
    assert section(result) == (
        "llama/w50  baseline  measured  change  outcome\n"
        f"  {LM_EVAL}\n"
        "  word_perplexity  19760  19759.7  +0.00 %  plausible\n"
        "  byte_perplexity  -  8  -  MISSING\n"
        "1 missing, 1 plausible (published, no evidence)\n"
    )
    project.run(*given, "--ppl-update").assert_outcomes(passed=2)
    result = project.run(*given)
    result.assert_outcomes(passed=2)
    assert section(result) == (
        "llama/w50  baseline  measured  change  outcome\n"
        f"  {LM_EVAL}\n"
        "  word_perplexity  19759.7  19759.7  +0.00 %  within\n"
        "  published  19760  19759.7  +0.00 %\n"
        "  byte_perplexity  8  8  +0.00 %  within\n"
        "2 within tolerance\n"
    )
    recorded = read_baseline(path).checkpoints["w50"].recorded[LM_EVAL]
    assert recorded.published == {
        "word_perplexity": 19760.0,
        "reference": "a paper",
        "digits": 0,
    }


NAMED = """
w50:
  gates:
    wanda/ptb:16: {token_perplexity: {}}
    lm-eval/wikitext+ptb:64: {word_perplexity: {}}
"""


def test_a_named_text_goes_round(project: Project) -> None:
    """Recorded, green again, and not comparable to the same words joined otherwise."""
    path = project.baseline(NAMED)
    (project.path / "ptb.test.txt").write_text(" no it was n't \n black monday \n" * 9)
    args = [*project.give(w50="ppl:8"), "--ppl-corpus", "ptb=ptb.test.txt"]
    project.run(*args, "--ppl-update").assert_outcomes(passed=2)
    project.run(*args).assert_outcomes(passed=2)
    title = "llama/w50 wanda/ptb:16 token_perplexity"
    evidence = next(path.parent.rglob("wanda-ptb-16-*.json"))
    _change_evidence(
        path, evidence, "all sentences joined by a space", "joined by a blank line"
    )
    result = project.run(*args)
    result.assert_outcomes(passed=1, failed=1)
    assert (
        "because      text all sentences joined by a space, baseline joined by a blank "
        "line\n"
    ) in failure(result, title)


def test_another_text_is_not_comparable(project: Project) -> None:
    project.baseline(ONE, w50="ppl:8")
    (project.path / "text.txt").write_text(TEXT.replace("quick", "slow!"))
    result = project.run(*project.give(w50="ppl:8"))
    result.assert_outcomes(failed=1)
    text = failure(result, TITLE)
    assert text.startswith(
        "llama/w50 wanda/tiny:16: token_perplexity is not comparable to its baseline\n"
    )
    assert re.search(r"because +text [0-9a-f]{12}, baseline [0-9a-f]{12}\n", text)
    assert re.search(r"because +token windows \w{12}, baseline \w{12}\n", text)


def test_more_windows_are_not_comparable(project: Project) -> None:
    project.baseline(ONE, w50="ppl:8")
    (project.path / "text.txt").write_text(TEXT * 2)
    text = failure(project.run(*project.give(w50="ppl:8")), TITLE)
    assert "because      tokens 330, baseline 165\n" in text
    assert "because      windows 22, baseline 11\n" in text


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ('"tail": "dropped"', '"tail": "kept"', "tail dropped, baseline kept"),
        ('"window": 16', '"window": 32', "window 16, baseline 32"),
    ],
)
def test_a_property_of_the_evidence_differs(
    project: Project, old: str, new: str, reason: str
) -> None:
    path = project.baseline(ONE, w50="ppl:8")
    (evidence,) = path.parent.rglob("*.json")
    _change_evidence(path, evidence, old, new)
    result = project.run(*project.give(w50="ppl:8"))
    result.assert_outcomes(failed=1)
    assert f"because      {reason}\n" in failure(result, TITLE)


def _change_evidence(path: Path, evidence: Path, old: str, new: str) -> None:
    """Rewrite evidence as another version would have written it, name included."""
    import hashlib

    content = evidence.read_text().replace(old, new)
    assert new in content
    digest = hashlib.sha256(content.encode()).hexdigest()[:12]
    name = re.sub(r"[0-9a-f]{12}(?=\.json)", digest, evidence.name)
    path.write_text(path.read_text().replace(evidence.name, name))
    evidence.with_name(name).write_text(content)


def test_a_value_edited_by_hand_is_red(project: Project) -> None:
    path = project.baseline(ONE, w50="ppl:8")
    text = path.read_text()
    value = re.findall(r"token_perplexity: (\d\.\d+)", text)[0]
    path.write_text(text.replace(value, "9.0"))
    result = project.run(*project.give(w50="ppl:9"))
    result.assert_outcomes(errors=1)
    assert result.ret == 1
    result.stdout.fnmatch_lines(["*token_perplexity could not be measured"])


def test_lost_evidence_is_red(project: Project) -> None:
    path = project.baseline(ONE, w50="ppl:8")
    (evidence,) = path.parent.rglob("*.json")
    evidence.unlink()
    result = project.run(*project.give(w50="ppl:8"))
    result.assert_outcomes(errors=1)


def test_nan_is_invalid_and_fails_instead_of_an_error(project: Project) -> None:
    project.baseline(ONE, w50="ppl:8")
    result = project.run(*project.give(w50="ppl:8,nan:3"))
    result.assert_outcomes(failed=1)
    assert failure(result, TITLE) == (
        "llama/w50 wanda/tiny:16: token_perplexity is invalid\n"
        "  recorded in  baselines/llama.yaml:9\n"
        "  because      the loss of window 3 of 11 is nan\n"
        '  where        window 3 of 11, at "...?"\n'
    )


def test_a_broken_checkpoint_is_an_error_and_is_tried_once(
    project: Project, plugin_args: tuple[str, ...]
) -> None:
    project.baseline(
        """
        w50:
          gates:
            wanda/tiny:16: {token_perplexity: {}}
            wanda/tiny:32: {token_perplexity: {}}
        """,
        w50="ppl:8",
    )
    result = project.run(*project.give(w50="broken"), *plugin_args)
    result.assert_outcomes(errors=2)
    assert result.ret == 1
    assert failure(result, f"ERROR at setup of {TITLE}").splitlines()[-2:] == [
        "llama/w50 wanda/tiny:16: token_perplexity could not be measured",
        "  because      llama/w50 is broken on purpose",
    ]
    assert project.loads() == ["llama/w50 after 0"]


def test_a_path_that_does_not_exist_is_an_error(project: Project) -> None:
    project.baseline(ONE, w50="ppl:8")
    result = project.run(*project.give(w50="out/nowhere/at/all"))
    result.assert_outcomes(errors=1)
    text = failure(result, f"ERROR at setup of {TITLE}")
    assert "because      out/nowhere/at/all does not exist (looked at " in text


def test_a_method_that_is_not_built_is_an_error(project: Project) -> None:
    project.baseline(
        """
        w50:
          gates:
            sliding/wikitext2:2048:stride512: {token_perplexity: {}}
        """
    )
    result = project.run(*project.give(w50="ppl:8"))
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(
        [
            "  because * unknown method 'sliding': this version measures wanda, "
            "lm-eval, kl, strided, llama-cpp, lora-ft, gptq and vllm"
        ]
    )


def test_weights_any_is_no_gate(project: Project) -> None:
    project.baseline(ONE + "    weights: any\n", w50="ppl:8")
    project.run(*project.give(w50="ppl:8")).assert_outcomes(passed=1)


RELATIVE = """
dense:
  gates:
    wanda/tiny:16: {token_perplexity: {rel: 0.5}}
w50:
  gates:
    wanda/tiny:16: {token_perplexity: {rel: 0.5}}
    relative: {to: dense, key: wanda/tiny:16, max_ratio: 1.30}
"""


def test_relative_to_another_checkpoint(
    project: Project, plugin_args: tuple[str, ...]
) -> None:
    file = project.baseline(RELATIVE, dense="ppl:5", w50="ppl:6")
    args = project.give(dense="ppl:5", w50="ppl:7")
    result = project.run(*args, *plugin_args)
    result.assert_outcomes(passed=2, failed=1)
    text = failure(result, "llama/w50 relative dense")
    lines = [line.strip() for line in file.read_text().splitlines()]
    line = 1 + lines.index("relative: {to: dense, key: wanda/tiny:16, max_ratio: 1.30}")
    assert text.splitlines()[-4:] == [
        "llama/w50 wanda/tiny:16: token_perplexity / dense regressed",
        "  measured     1.4",
        "  allowed      at most 1.3 (max_ratio 1.3 to dense, baselines/llama.yaml:"
        f"{line})",
        "  note         7 here, 5 for dense",
    ]
    loads = project.loads()
    assert sorted(load.split()[0] for load in loads) == ["llama/dense", "llama/w50"]
    assert all(load.endswith("after 0") for load in loads)


def test_relative_without_its_base_is_an_error(project: Project) -> None:
    project.baseline(RELATIVE, dense="ppl:5", w50="ppl:6")
    result = project.run(*project.give(w50="ppl:6"))
    result.assert_outcomes(passed=1, errors=1, deselected=1)
    text = failure(result, "ERROR at setup of llama/w50 relative dense")
    assert text == (
        "llama/w50 wanda/tiny:16: token_perplexity / dense could not be measured\n"
        "  because      the gate relative of llama/w50 divides by llama/dense, which "
        "is not measured in this run: add --ppl-model llama/dense=PATH\n"
    )


def test_sparsity_is_counted_without_loading(project: Project) -> None:
    import torch
    from safetensors.torch import save_file

    folder = project.path / "out"
    folder.mkdir()
    weight = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    save_file(
        {"model.layers.0.mlp.up_proj.weight": weight}, folder / "model.safetensors"
    )
    (folder / "config.json").write_text(
        '{"model_type": "llama", "num_hidden_layers": 1}'
    )
    (folder / "tokenizer.json").write_text("{}")
    project.baseline("w50:\n  gates:\n    sparsity: {fraction: 0.5}\n")
    project.run("--ppl-model=out").assert_outcomes(passed=1)
    project.baseline("w50:\n  gates:\n    sparsity: {fraction: 0.75}\n")
    result = project.run("--ppl-model=out")
    result.assert_outcomes(failed=1)
    assert failure(result, "llama/w50 sparsity fraction") == (
        "llama/w50 sparsity: fraction regressed by 33.33 %\n"
        "  baseline     0.75\n"
        "  measured     0.5\n"
        "  allowed      0.749 .. 0.751 (abs 0.001, baselines/llama.yaml:6)\n"
        "  because      zeros in the linear weights of the decoder layers: fewer than "
        "allowed; a mask was lost, or weights were merged or tuned\n"
    )


def test_another_dtype_is_the_first_line(project: Project) -> None:
    path = project.baseline(ONE, w50="ppl:8")
    path.write_text(path.read_text().replace("dtype: float64", "dtype: bfloat16"))
    text = failure(project.run(*project.give(w50="ppl:9")), TITLE)
    assert text.splitlines()[:2] == [
        "dtype float64, baseline bfloat16",
        "llama/w50 wanda/tiny:16: token_perplexity regressed by 12.50 %",
    ]


def test_the_stub_is_what_it_says() -> None:
    model, tokenizer = stub.make("ppl:7.5")
    assert math.exp(-model.weight.item()) == pytest.approx(7.5)
    assert set(tokenizer.encode(TEXT)) == {0, 1, 2, 3}
    assert WANDA != LM_EVAL
