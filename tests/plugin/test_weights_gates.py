"""Gates of the weights themselves, from command line to failure text and reports."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from pytest_pplguard.baselines import read_baseline

from .project import Project, failure, section

if TYPE_CHECKING:
    from torch import Tensor

LAYERS = 4
KINDS = ("self_attn.q_proj", "mlp.up_proj")
NAMES = [f"model.layers.{n}.{kind}.weight" for n in range(LAYERS) for kind in KINDS]
NORM = "model.norm.weight"
ALONE = ("-p", "no:pytest_github_actions_annotate_failures")
ITEM = "baselines/llama.yaml::w50"
Change = Callable[["dict[str, Tensor]"], None]


def dense() -> dict[str, Tensor]:
    """Eight linear weights of 4 x 8, and a norm: whole numbers from 1 to 256."""
    import torch

    weights = {
        name: torch.arange(1.0, 33.0).reshape(4, 8) + 32 * place
        for place, name in enumerate(NAMES)
    }
    return weights | {NORM: torch.ones(8)}


def pruned() -> dict[str, Tensor]:
    """Every second weight of each row is zero, some of them negative: half, and 2:4."""
    weights = dense()
    for name in NAMES:
        weights[name][:, ::2] = 0.0
        weights[name][0, ::2] = -0.0
    return weights


def save(project: Project, folder: str, weights: Mapping[str, Tensor]) -> None:
    from safetensors.torch import save_file

    path = project.path / folder
    path.mkdir(exist_ok=True)
    save_file(dict(weights), path / "model.safetensors")
    config = {"model_type": "llama", "num_hidden_layers": LAYERS, "hidden_size": 8}
    (path / "config.json").write_text(json.dumps(config))
    (path / "tokenizer.json").write_text("{}")


def change(project: Project, folder: str, how: Change) -> None:
    """Save what :func:`pruned` gives with a change."""
    weights = pruned()
    how(weights)
    save(project, folder, weights)


def lose_masks(*layers: int) -> Change:
    def how(weights: dict[str, Tensor]) -> None:
        for name in NAMES:
            if int(name.split(".")[2]) in layers:
                weights[name][:] = dense()[name]

    return how


def gates(project: Project, *lines: str, dense_at: str | None = None) -> Path:
    """Checkpoints: dense, which has no gate, and w50, which has these."""
    path = f"dense: {{path: {dense_at}}}" if dense_at else "dense: {}"
    return project.baseline(
        "\n".join([path, "w50:", "  gates:", *(f"    {line}" for line in lines), ""])
    )


def run(project: Project, *args: str) -> pytest.RunResult:
    return project.run("--ppl-model=llama/w50=out", *args)


def command_in(text: str) -> list[str]:
    """The arguments of the pytest command that a failure text prints."""
    (line,) = (line for line in text.splitlines() if " pytest " in line)
    return shlex.split(line.partition(" pytest ")[2])


# --------------------------------------------------------------------------- sparsity


def test_a_mask_lost_in_one_layer_though_the_total_is_within(
    project: Project, plugin_args: tuple[str, ...]
) -> None:
    project.baseline(
        """
        total: {gates: {sparsity: {fraction: 0.5, abs: 0.13}}}
        layer: {gates: {sparsity: {fraction: 0.5, abs: 0.13, scope: layer}}}
        tensor: {gates: {sparsity: {fraction: 0.5, abs: 0.13, scope: tensor}}}
        """
    )
    change(project, "out", lose_masks(2))
    given = project.give(total="out", layer="out", tensor="out")
    result = project.run(*given, *plugin_args)
    result.assert_outcomes(passed=1, failed=2)
    for scope, line, worst, wrong in (
        ("layer", 6, "", "1 of 4 layers"),
        ("tensor", 7, ".mlp.up_proj.weight", "2 of 8 tensors"),
    ):
        text = failure(result, f"llama/{scope} sparsity fraction")
        assert text.splitlines()[-7:] == [
            f"llama/{scope} sparsity: fraction regressed by 100.00 %",
            "  baseline     0.5",
            "  measured     0.0",
            f"  allowed      0.37 .. 0.63 (abs 0.13 in every {scope}, "
            f"baselines/llama.yaml:{line})",
            "  because      layer 2, all projections: 0 of 0.5 (mask lost)",
            f"  note         the share is that of model.layers.2{worst}",
            f"  note         {wrong} out of bounds; all together: 0.375",
        ]
    assert section(result) == (
        "llama/layer  baseline  measured  change  outcome\n"
        "  sparsity\n"
        "  fraction  0.5  0  -100.00 %  REGRESSED\n"
        "llama/tensor  baseline  measured  change  outcome\n"
        "  sparsity\n"
        "  fraction  0.5  0  -100.00 %  REGRESSED\n"
        "llama/total  baseline  measured  change  outcome\n"
        "  sparsity\n"
        "  fraction  0.5  0.375  -25.00 %  within\n"
        "2 regressed, 1 within tolerance\n"
    )
    assert project.loads() == []
    save(project, "out", pruned())
    project.run(*given).assert_outcomes(passed=3)


def test_pattern(project: Project, plugin_args: tuple[str, ...]) -> None:
    gates(project, 'sparsity: {fraction: 0.5, abs: 0.2, pattern: "2:4"}')

    def fill(weights: dict[str, Tensor]) -> None:
        weights[NAMES[3]][1, 0] = weights[NAMES[3]][1, 4] = 1.0
        weights[NAMES[0]][0] = 1.0

    change(project, "out", fill)
    result = run(project, *plugin_args)
    result.assert_outcomes(passed=1, failed=1)
    assert failure(result, "llama/w50 sparsity pattern").splitlines()[-6:] == [
        "llama/w50 sparsity: 2:4 is broken in 4 groups",
        "  measured     4",
        "  allowed      at most 0 (groups that break 2:4, baselines/llama.yaml:7)",
        "  because      layer 0, self_attn.q_proj: 2 of 8 groups have more weights "
        "than 2:4 allows",
        "  because      layer 1, mlp.up_proj: 2 of 8 groups have more weights than 2:4 "
        "allows",
        "  note         64 groups looked at",
    ]
    assert section(result) == (
        "llama/w50  baseline  measured  change  outcome\n"
        "  sparsity\n"
        "  2:4  -  4  -  REGRESSED\n"
        "  fraction  0.5  0.476562  -4.69 %  within\n"
        "1 regressed, 1 within tolerance\n"
    )


def test_a_pattern_that_is_kept(project: Project) -> None:
    gates(project, 'sparsity: {pattern: "2:4"}')
    save(project, "out", pruned())
    result = run(project)
    result.assert_outcomes(passed=1)
    assert "  2:4  -  0  -  within\n" in section(result)


def test_a_width_that_is_no_multiple_of_the_group(project: Project) -> None:
    gates(project, 'sparsity: {fraction: 0.5, pattern: "1:3"}')
    save(project, "out", pruned())
    result = run(project)
    result.assert_outcomes(passed=1, errors=1)
    assert failure(result, "ERROR at setup of llama/w50 sparsity pattern") == (
        "llama/w50 sparsity: 1:3 could not be measured\n"
        "  because      out: model.layers.0.mlp.up_proj.weight is [4, 8]: 3 does not "
        "divide its input dimension of 8, so it has no pattern 1:3; gate the fraction "
        "instead\n"
    )


def test_recorded_shares(project: Project) -> None:
    path = gates(project, "sparsity: {scope: tensor}")
    save(project, "out", pruned())
    before = path.read_bytes()
    result = run(project)
    result.assert_outcomes(failed=1)
    text = failure(result, "llama/w50 sparsity fraction")
    command = f"{ITEM}::sparsity --ppl-model llama/w50=out --ppl-update"
    assert text == (
        "llama/w50 sparsity: fraction has no baseline\n"
        "  gate         abs 0.001 in every tensor, baselines/llama.yaml:7\n"
        "  because      no fingerprint is recorded for llama/w50\n"
        f"  to record    pytest {command}\n"
    )
    assert path.read_bytes() == before
    project.run(*command_in(text)).assert_outcomes(passed=1)
    result = run(project)
    result.assert_outcomes(passed=1)
    change(project, "out", lose_masks(1))
    text = failure(run(project), "llama/w50 sparsity fraction")
    assert "because      layer 1, all projections: 0 of 0.5 (mask lost)\n" in text
    assert f"  to accept    pytest {command}\n" in text
    project.run(*command_in(text)).assert_outcomes(passed=1)
    run(project).assert_outcomes(passed=1)


@pytest.mark.parametrize("scope", ["layer", "tensor"])
def test_recorded_shares_under_other_names(project: Project, scope: str) -> None:
    """As in a checkpoint that was saved without its head."""
    gates(project, f"sparsity: {{scope: {scope}}}")
    save(project, "out", pruned())
    run(project, "--ppl-update").assert_outcomes(passed=1)

    def renamed(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {name.removeprefix("model."): one for name, one in weights.items()}

    save(project, "out", renamed(pruned()))
    run(project).assert_outcomes(passed=1)
    save(project, "out", renamed(pruned() | {NAMES[2]: dense()[NAMES[2]]}))
    result = run(project)
    result.assert_outcomes(failed=1)
    assert "layer 1, " in failure(result, "llama/w50 sparsity fraction")


def test_update_leaves_a_fraction_to_people(project: Project) -> None:
    path = gates(project, "sparsity: {fraction: 0.25}")
    save(project, "out", pruned())
    before = path.read_bytes()
    result = run(project, "--ppl-update")
    result.assert_outcomes(failed=1)
    assert "--ppl-update" not in failure(result, "llama/w50 sparsity fraction")
    assert path.read_bytes() == before


# --------------------------------------------------------------------------- weights


@pytest.mark.parametrize("kind", ["same", "mask"])
def test_no_fingerprint_and_the_command_that_records(
    project: Project, kind: str
) -> None:
    path = gates(project, f"weights: {kind}")
    save(project, "out", pruned())
    before = path.read_bytes()
    result = run(project)
    result.assert_outcomes(failed=1)
    text = failure(result, f"llama/w50 weights {kind}")
    assert text == (
        f"llama/w50 weights: {kind} has no baseline\n"
        "  gate         baselines/llama.yaml:7\n"
        "  because      no fingerprint is recorded for llama/w50\n"
        f"  to record    pytest {ITEM}::weights --ppl-model llama/w50=out "
        "--ppl-update\n"
    )
    assert path.read_bytes() == before
    result = project.run(*command_in(text))
    result.assert_outcomes(passed=1)
    assert section(result).endswith("  -  recorded\n1 recorded\n")
    recorded = read_baseline(path).checkpoints["w50"].fingerprint
    assert recorded is not None
    assert (recorded.tensors, recorded.linear, recorded.zeros) == (9, 8, 128)
    run(project).assert_outcomes(passed=1)


def record(project: Project, *lines: str) -> Path:
    """As :func:`gates`, with the fingerprint of :func:`pruned`."""
    path = gates(project, *lines)
    save(project, "out", pruned())
    run(project, "--ppl-update-new").assert_outcomes(passed=len(lines))
    return path


def test_same(project: Project, plugin_args: tuple[str, ...]) -> None:
    path = record(project, "weights: same")
    change(project, "out", lose_masks(1, 2))
    before = path.read_bytes()
    result = run(project, *plugin_args)
    result.assert_outcomes(failed=1)
    command = f"pytest {ITEM}::weights --ppl-model llama/w50=out --ppl-update"
    assert failure(result, "llama/w50 weights same").splitlines()[-7:] == [
        "llama/w50 weights: same: weights are not the recorded ones, in 4 tensors",
        "  measured     4",
        "  allowed      at most 0 (baselines/llama.yaml:7)",
        "  recorded in  baselines/llama.yaml:9",
        "  checkpoint   layers 1-2, all projections: mask lost, 50.0 % -> 0.0 %",
        "  checkpoint   all other weights (5 tensors), the config and the tokenizer "
        "are the same",
        f"  to accept    {command}",
    ]
    assert section(result) == (
        "llama/w50  baseline  measured  change  outcome\n"
        "  weights\n"
        "  same  -  4  -  CHANGED\n"
        "1 changed\n"
    )
    # What is recorded is not new: only the printed command accepts it.
    run(project, "--ppl-update-new").assert_outcomes(failed=1)
    assert path.read_bytes() == before
    run(project, *plugin_args, "--ppl-update").assert_outcomes(passed=1)
    assert path.read_bytes() != before
    run(project).assert_outcomes(passed=1)


def test_the_same_weights_in_another_dtype(project: Project) -> None:
    record(project, "weights: same")
    save(project, "out", {name: w.bfloat16() for name, w in pruned().items()})
    result = run(project, "-v")
    result.assert_outcomes(passed=1)
    assert section(result) == (
        "llama/w50  baseline  measured  change  outcome\n"
        "  weights\n"
        "  same  -  0  -  within\n"
        "1 within tolerance\n"
        "note: llama/w50 weights: stored as BF16, recorded F32: 9 tensors\n"
    )


@pytest.mark.parametrize("kind", ["same", "mask"])
def test_the_same_weights_under_other_names(project: Project, kind: str) -> None:
    """As in a checkpoint that was saved without its head."""
    record(project, f"weights: {kind}")

    def renamed(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {name.removeprefix("model."): one for name, one in weights.items()}

    save(project, "out", renamed(pruned()))
    run(project).assert_outcomes(passed=1)
    save(project, "out", renamed(dense()))
    result = run(project)
    result.assert_outcomes(failed=1)
    assert "in 8 tensors" in failure(result, f"llama/w50 weights {kind}")


def test_mask(project: Project) -> None:
    record(project, "weights: mask")
    save(project, "out", {name: 3 * weight for name, weight in pruned().items()})
    run(project).assert_outcomes(passed=1)

    def reseed(weights: dict[str, Tensor]) -> None:
        weights[NAMES[5]][:] = dense()[NAMES[5]]
        weights[NAMES[5]][:, 1::2] = 0.0

    change(project, "out", reseed)
    result = run(project)
    result.assert_outcomes(failed=1)
    assert failure(result, "llama/w50 weights mask") == (
        "llama/w50 weights: mask: zeros are not where they were recorded, in 1 tensor\n"
        "  measured     1\n"
        "  allowed      at most 0 (baselines/llama.yaml:7)\n"
        "  recorded in  baselines/llama.yaml:9\n"
        "  checkpoint   layer 2, mlp.up_proj: zeros elsewhere, 50.0 % as before\n"
        "  checkpoint   all other weights (8 tensors), the config and the tokenizer "
        "are the same\n"
        f"  to accept    pytest {ITEM}::weights --ppl-model llama/w50=out "
        "--ppl-update\n"
    )


# --------------------------------------------------------------------------- against


def test_against(project: Project, plugin_args: tuple[str, ...]) -> None:
    gates(project, "against: dense")
    save(project, "dense", dense())

    def tune(weights: dict[str, Tensor]) -> None:
        weights[NAMES[2]][0, 1] += 1.0
        weights[NAMES[2]][1, 0] = 1.0
        weights[NORM][3] = 0.0

    change(project, "out", tune)
    given = project.give(w50="out", dense="dense")
    result = project.run(*given, *plugin_args)
    result.assert_outcomes(failed=1)
    assert failure(result, "llama/w50 against dense").splitlines()[-6:] == [
        "llama/w50 against: dense: weights that survived are not those of dense, in 2 "
        "tensors",
        "  measured     2",
        "  allowed      at most 0 (baselines/llama.yaml:7)",
        "  because      layer 1, self_attn.q_proj: 2 of 17 surviving weights moved",
        "  because      model.norm.weight: 1 of 8 surviving weights moved",
        "  note         9 tensors compared, weight by weight",
    ]
    assert section(result) == (
        "llama/w50  baseline  measured  change  outcome\n"
        "  against\n"
        "  dense  -  2  -  CHANGED\n"
        "1 changed\n"
    )
    save(project, "out", pruned())
    result = project.run(*given)
    # The dense one has no gate of its own, and was read.
    assert result.ret == 0
    result.assert_outcomes(passed=1)
    assert project.loads() == []


def test_against_under_other_names(project: Project) -> None:
    gates(project, "against: dense")
    bare = {name.removeprefix("model."): one for name, one in dense().items()}
    save(project, "dense", bare)
    save(project, "out", pruned())
    given = project.give(w50="out", dense="dense")
    project.run(*given).assert_outcomes(passed=1)
    save(project, "out", pruned() | {NORM: 2 * dense()[NORM]})
    result = project.run(*given)
    result.assert_outcomes(failed=1)
    text = failure(result, "llama/w50 against dense")
    assert "because      model.norm.weight: 8 of 8 surviving weights moved" in text


def test_the_dense_one_is_where_its_path_says(project: Project) -> None:
    gates(project, "against: dense", dense_at="models/dense")
    save(project, "out", pruned())
    result = run(project)
    result.assert_outcomes(errors=1)
    text = failure(result, "ERROR at setup of llama/w50 against dense")
    assert "which was not given and is not at its `path:` (" in text
    (project.path / "models").mkdir()
    save(project, "models/dense", dense())
    run(project).assert_outcomes(passed=1)


def test_the_dense_one_is_nowhere(project: Project) -> None:
    gates(project, "against: dense")
    save(project, "out", pruned())
    save(project, "dense", dense())
    result = run(project)
    result.assert_outcomes(errors=1)
    text = failure(result, "ERROR at setup of llama/w50 against dense")
    assert text == (
        "llama/w50 against: dense could not be measured\n"
        "  because      the gate against of llama/w50 compares with llama/dense, which "
        "was not given and has no `path:`: run pytest "
        f"{ITEM}::against --ppl-model llama/w50=out --ppl-model llama/dense=PATH\n"
    )
    command = [word.replace("PATH", "dense") for word in command_in(text)]
    result = project.run(*command)
    result.assert_outcomes(passed=1)
    assert result.ret == 0


# --------------------------------------------------------------------------- reports


def test_reports(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    record(project, "weights: same")
    text = (project.path / "baselines/llama.yaml").read_text()
    (project.path / "baselines/llama.yaml").write_text(
        text.replace("weights: same", 'weights: same\n      sparsity: {pattern: "2:4"}')
    )
    change(project, "out", lose_masks(1))
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    reports = [f"--ppl-report=r{suffix}" for suffix in (".json", ".md", ".csv")]
    result = run(project, *reports, "--junitxml=r.xml", *ALONE)
    result.assert_outcomes(failed=2)
    verdicts = json.loads((project.path / "r.json").read_text())["verdicts"]
    shown = (
        *("key", "metric", "outcome", "baseline", "measured", "allowed"),
        *("reasons", "changes"),
    )
    pattern = (
        "layer 1, all projections: 16 of 16 groups have more weights than 2:4 allows"
    )
    lost = "layer 1, all projections: mask lost, 50.0 % -> 0.0 %"
    changes = [
        lost,
        "all other weights (7 tensors), the config and the tokenizer are the same",
    ]
    assert [[verdict[name] for name in shown] for verdict in verdicts] == [
        ["sparsity", "2:4", "regressed", None, 16, [None, 0], [pattern], changes],
        ["weights", "same", "changed", None, 2, [None, 0], [], changes],
    ]
    markdown = (project.path / "r.md").read_text()
    assert (
        "## \N{CROSS MARK} Perplexity: 1 regressed, 1 changed\n\n"
        "### \N{CROSS MARK} `llama/w50` = `out`\n\n"
        "| key | metric | baseline | measured | change | allowed | outcome |\n"
        "| --- | --- | ---: | ---: | ---: | --- | --- |\n"
        "| `sparsity` | `2:4` | - | 16 | - | at most 0 "
        "| \N{CROSS MARK} **regressed** |\n"
        "| `weights` | `same` | - | 2 | - | at most 0 | \N{CROSS MARK} **changed** |\n"
    ) in markdown
    rows = (project.path / "r.csv").read_text().splitlines()
    assert [row.split(",")[:10] for row in rows[1:]] == [
        [
            "llama/w50",
            "sparsity",
            "2:4",
            "regressed",
            "false",
            "",
            "16.0",
            "",
            "",
            "0.0",
        ],
        ["llama/w50", "weights", "same", "changed", "false", "", "2.0", "", "", "0.0"],
    ]
    xml = (project.path / "r.xml").read_text()
    assert '"ppl.llama/w50.weights.same.outcome" value="changed"' in xml
    assert '"ppl.llama/w50.sparsity.2:4.measured" value="16.0"' in xml
    result.stdout.fnmatch_lines(
        [
            "::error file=baselines/llama.yaml,line=8,title=perplexity::llama/w50 "
            "sparsity: 2:4 is broken in 16 groups: *",
            "::error file=baselines/llama.yaml,line=7,title=perplexity::llama/w50 "
            "weights: same: weights are not the recorded ones, in 2 tensors: "
            + lost.replace("%", "%25"),
        ]
    )


def test_nan_is_never_accepted(project: Project) -> None:
    path = gates(project, "weights: same")
    change(project, "out", lambda weights: None)
    run(project, "--ppl-update").assert_outcomes(passed=1)
    before = path.read_bytes()

    def break_one(weights: dict[str, Tensor]) -> None:
        weights[NAMES[0]][0, 1] = float("nan")

    change(project, "out", break_one)
    run(project, "--ppl-update").assert_outcomes(failed=1)
    assert path.read_bytes() == before
