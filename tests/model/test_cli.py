"""The command ``pplguard`` as a user runs it: real processes on the demo."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from pytest_pplguard.baselines import read_baseline
from pytest_pplguard.values import SparsityGate
from tests.model.commands import pplguard, run_pytest
from tests.model.originals import wanda_perplexity, wanda_window_losses
from tests.model.tiny import save_tiny

ROOT = Path(__file__).parents[2]


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "mine.txt"
    path.write_text("The ship sailed at noon. " * 120, encoding="utf-8")
    return path


def test_measure_prints_a_table_and_writes_json(tmp_path: Path, text: Path) -> None:
    done = pplguard(
        "measure", "demo/dense", "--corpus", "mine=mine.txt", "--window", "32",
        "--limit", "1", "--json", "out.json", cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    document = json.loads((tmp_path / "out.json").read_text(encoding="utf-8"))
    assert set(document) == {"schema", "measurements"}
    assert document["schema"] == 1
    wanda, lm_eval = document["measurements"]
    assert wanda["key"] == "wanda/mine:32:first1"
    assert lm_eval["key"] == "lm-eval/wikitext+mine:32:first1"
    assert set(wanda) >= {
        "key", "metrics", "units", "windows", "windows_digest", "evidence",
        "environment", "seconds",
    }  # fmt: skip
    assert set(wanda["evidence"][0]) == {"nll_sum", "scored", "page"}
    assert re.sub(r"[\d.]+ s\b", "T s", done.stdout) == (
        "demo/dense\n"
        "  wanda/mine:32:first1: 1 window, 31 tokens, T s\n"
        f"    token_perplexity     {wanda['metrics']['token_perplexity']:>12.6g}\n"
        f"  lm-eval/wikitext+mine:32:first1: {lm_eval['windows']} windows, 601 words, "
        "3000 bytes, T s\n"
        f"    word_perplexity      {lm_eval['metrics']['word_perplexity']:>12.6g}\n"
        f"    byte_perplexity      {lm_eval['metrics']['byte_perplexity']:>12.6g}\n"
        f"    bits_per_byte        {lm_eval['metrics']['bits_per_byte']:>12.6g}\n"
    )


def test_a_model_too_bad_for_a_number(tmp_path: Path, text: Path) -> None:
    """One line from the command, a verdict from each gate."""
    file = save_tiny(tmp_path / "m") / "model.safetensors"
    options = ("--corpus", "mine=mine.txt", "--window", "32", "--limit", "1")
    recorded = pplguard(
        "update", "m", "--checkpoint", "tiny/m", "--base", "org/tiny", *options,
        cwd=tmp_path,
    )  # fmt: skip
    assert recorded.returncode == 0, recorded.stderr
    weights = load_file(file)
    weights["lm_head.weight"] *= 3000
    save_file(weights, file, metadata={"format": "pt"})

    done = pplguard("measure", "m", "--method", "lm-eval", *options, cwd=tmp_path)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    said = r"a mean loss of \S+ nats per {} has no finite perplexity"
    error = done.stderr.splitlines()[-1]
    assert re.fullmatch(f"pplguard: error: {said.format('word')}", error)

    command = recorded.stdout.splitlines()[-1].strip()
    run = run_pytest(f"{command} --ppl-report report.json", tmp_path)
    assert run.returncode == 1, run.stdout
    report = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    units = {"wanda/mine:32:first1": "token", "lm-eval/wikitext+mine:32:first1": "word"}
    assert {verdict["key"] for verdict in report["verdicts"]} == units.keys()
    for verdict in report["verdicts"]:
        assert verdict["outcome"] == "invalid"
        (reason,) = verdict["reasons"]
        assert re.fullmatch(said.format(units[verdict["key"]]), reason)


def test_json_to_stdout_is_only_json_and_the_window_is_said(
    tmp_path: Path, text: Path
) -> None:
    done = pplguard(
        "measure", "demo/dense", "--corpus", "mine=mine.txt", "--method", "wanda",
        "--json", "-", cwd=tmp_path,
    )  # fmt: skip
    assert json.loads(done.stdout)["measurements"][0]["key"] == "wanda/mine:512"
    assert (
        "pplguard: window 512 (the model's maximum is 512; --window changes it)"
        in done.stderr.splitlines()
    )


def test_the_life_of_a_baseline(tmp_path: Path, text: Path) -> None:
    """Recorded, gated green, another checkpoint red, recorded again beside it."""
    save_tiny(tmp_path / "out" / "one", seed=1)
    save_tiny(tmp_path / "out" / "two", seed=2)
    corpus = ("--corpus", "mine=mine.txt")
    first = pplguard(
        "update", "out/one", "--checkpoint", "tiny/one", "--base", "me/tiny", *corpus,
        "--window", "32", "--limit", "1", cwd=tmp_path,
    )  # fmt: skip
    assert first.returncode == 0, first.stderr
    command = first.stdout.splitlines()[-1].strip()
    assert command == (
        "pytest baselines/tiny.yaml --ppl-model tiny/one=out/one "
        "--ppl-corpus mine=mine.txt"
    )
    file = tmp_path / "baselines" / "tiny.yaml"
    entry = read_baseline(file).checkpoints["one"]
    assert entry.path == "out/one"
    assert list(entry.gates.metrics) == [
        "wanda/mine:32:first1",
        "lm-eval/wikitext+mine:32:first1",
    ]
    assert entry.gates.sparsity is None
    assert entry.fingerprint is not None
    digest = entry.fingerprint.digest
    assert {at.weights_digest for at in entry.recorded.values()} == {digest}
    assert first.stdout.splitlines()[-3] == (
        f"fingerprint (21 tensors, 0.00 % zeros, recorded {entry.fingerprint.date})"
    )
    assert run_pytest(command, tmp_path).returncode == 0
    red = run_pytest(command.replace("=out/one", "=out/two"), tmp_path)
    assert red.returncode == 1
    assert "3 regressed" in red.stdout or "improved" in red.stdout.lower()
    before = file.read_text(encoding="utf-8")
    again = pplguard(
        "update", "out/two", "--checkpoint", "tiny/two", *corpus, "--window", "32",
        "--limit", "1", "--method", "wanda", cwd=tmp_path,
    )  # fmt: skip
    assert again.returncode == 0, again.stderr
    assert file.read_text(encoding="utf-8").startswith(before)
    known = pplguard(
        "update", "out/two", "--checkpoint", "tiny/two", *corpus, cwd=tmp_path
    )
    assert (
        "pplguard: measuring what tiny/two gates or records: wanda/mine:32:first1"
        in known.stderr.splitlines()
    )
    entry = read_baseline(file).checkpoints["two"]
    assert list(entry.recorded) == ["wanda/mine:32:first1"]
    assert entry.fingerprint is not None
    assert entry.fingerprint.digest != digest
    assert run_pytest(f"{command} --ppl-model tiny/two", tmp_path).returncode == 0


PUBLISHED = """\
# Written by people.
schema: 1
model: me/tiny
checkpoints:
  d:
    gates:
      wanda/mine:32:first2: {{token_perplexity: {{rel: 0.03}}}}   # theirs, too
    recorded:
      # Of the paper's appendix.
      wanda/mine:32:first2:
        token_perplexity: {value}  # table 2
        source: {{kind: published, reference: "paper #7, table 2", digits: 2}}
  other:
    path: 'out/other'
"""


def test_a_published_value_becomes_a_measured_one(tmp_path: Path, text: Path) -> None:
    """Plausible; measured and kept beside it; shown by every text from then on."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = save_tiny(tmp_path / "out" / "one", seed=1)
    losses = wanda_window_losses(
        AutoModelForCausalLM.from_pretrained(folder),
        AutoTokenizer.from_pretrained(folder),
        [text.read_text(encoding="utf-8")],
        32,
        limit=2,
    )
    measured = wanda_perplexity(losses, 32)
    printed = f"{measured * 1.01:.2f}"
    file = tmp_path / "baselines" / "tiny.yaml"
    file.parent.mkdir()
    before = PUBLISHED.format(value=printed)
    file.write_text(before, encoding="utf-8")
    gate = "pytest baselines --ppl-model tiny/d=out/one --ppl-corpus mine=mine.txt"
    done = run_pytest(gate, tmp_path)
    assert "1 plausible (published, no evidence)" in done.stdout.splitlines()
    done = pplguard(
        "update", "out/one", "--checkpoint", "tiny/d", "--corpus", "mine=mine.txt",
        cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    after = file.read_text(encoding="utf-8")
    head, tail = before.split(printed)
    assert after.startswith(head)
    assert after.endswith(tail.partition("digits: 2}\n")[2])
    assert "  # table 2\n" in after
    recorded = read_baseline(file).checkpoints["d"].recorded["wanda/mine:32:first2"]
    assert recorded.source.kind == "measured"
    assert recorded.first == {**recorded.metrics, "date": recorded.first["date"]}
    assert recorded.published == {
        "token_perplexity": float(printed),
        "reference": "paper #7, table 2",
        "digits": 2,
    }
    value = recorded.metrics["token_perplexity"]
    assert value == pytest.approx(measured, rel=1e-6)
    assert pplguard("show", "tiny/d", cwd=tmp_path).stdout == (
        "tiny/d                                          value  gate\n"
        "  fingerprint (21 tensors, 0.00 % zeros, recorded "
        f"{recorded.first['date']})\n"
        f"  wanda/mine:32:first2 (2 windows, first recorded {recorded.first['date']})\n"
        f"    token_perplexity                     {value:>12.6g}  gated\n"
        f"      published                          {float(printed):>12.6g}"
        "  paper #7, table 2\n"
    )
    moved = (value / float(printed) - 1) * 100
    assert (
        f"    token_perplexity         {value:>10.6g} {value:>10.6g}    +0.00 %"
        "  within\n"
        f"      published              {float(printed):>10.6g} {value:>10.6g}    "
        f"{moved:+.2f} %\n"
    ) in run_pytest(gate, tmp_path).stdout


def test_a_pruned_checkpoint_gets_a_sparsity_gate(tmp_path: Path, text: Path) -> None:
    done = pplguard(
        "update", "demo/wanda-50", "--checkpoint", "x/w", "--base", "me/x",
        "--corpus", "mine=mine.txt", "--method", "wanda", "--window", "32", "--limit",
        "1", cwd=tmp_path,
    )  # fmt: skip
    assert (
        "added the default gate sparsity: {fraction: 0.5, abs: 0.001, scope: tensor}"
        in done.stdout.splitlines()
    )
    gates = read_baseline(tmp_path / "baselines" / "x.yaml").checkpoints["w"].gates
    assert gates.sparsity == SparsityGate(0.5, 0.001, scope="tensor")


def test_the_sparsity_gate_is_the_strictest_that_holds(tmp_path: Path) -> None:
    """2:4 in every group; then a share of its own for every tensor."""
    file = save_tiny(tmp_path / "m") / "model.safetensors"
    weights = load_file(file)
    linear = [name for name in weights if re.search(r"layers\..*_proj", name)]
    for name in linear:
        weights[name].view(-1, 4)[:, ::2] = 0
    save_file(weights, file, metadata={"format": "pt"})
    assert _default_sparsity(tmp_path, "pattern") == SparsityGate(
        0.5, 0.001, "2:4", "tensor"
    )
    for index, name in enumerate(linear):
        weights[name].view(-1, 4)[: 4 * index, 1] = 0
    save_file(weights, file, metadata={"format": "pt"})
    gate = _default_sparsity(tmp_path, "uneven")
    assert gate == SparsityGate(None, 0.001, gate.pattern if gate else "", "tensor")


def _default_sparsity(folder: Path, name: str) -> SparsityGate | None:
    (folder / "mine.txt").write_text("The ship sailed at noon. " * 120)
    done = pplguard(
        "update", "m", "--checkpoint", f"x/{name}", "--base", "me/x", "--corpus",
        "mine=mine.txt", "--method", "wanda", "--window", "32", "--limit", "1",
        cwd=folder,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return (
        read_baseline(folder / "baselines" / "x.yaml").checkpoints[name].gates.sparsity
    )


def test_only_the_fingerprint_of_a_re_saved_checkpoint(
    tmp_path: Path, text: Path
) -> None:
    """Another dtype holds the same weights; other weights name the keys of the old."""
    file = save_tiny(tmp_path / "m", dtype="bfloat16") / "model.safetensors"
    update = ("update", "m", "--checkpoint", "x/m")
    first = pplguard(
        *update, "--base", "me/x", "--corpus", "mine=mine.txt", "--method", "wanda",
        "--window", "32", "--limit", "1", cwd=tmp_path,
    )  # fmt: skip
    assert first.returncode == 0, first.stderr
    path = tmp_path / "baselines" / "x.yaml"
    before = path.read_bytes()
    evidence = set(path.parent.rglob("*.json"))
    same = pplguard(*update, "--fingerprint", cwd=tmp_path)
    assert same.returncode == 0, same.stderr
    assert path.read_bytes() == before
    assert set(path.parent.rglob("*.json")) == evidence

    old = read_baseline(path).checkpoints["m"].fingerprint
    weights = {name: weight.float() for name, weight in load_file(file).items()}
    save_file(weights, file, metadata={"format": "pt"})
    assert pplguard(*update, "--fingerprint", cwd=tmp_path).stderr == ""
    new = read_baseline(path).checkpoints["m"].fingerprint
    assert old is not None
    assert new is not None
    assert (new.digest, new.date) == (old.digest, old.date)

    weights["model.norm.weight"][0] += 1
    save_file(weights, file, metadata={"format": "pt"})
    other = pplguard(*update, "--fingerprint", cwd=tmp_path)
    assert other.stderr == (
        "pplguard: x/m: other weights than those that are recorded now were measured "
        "for wanda/mine:32:first1: record these keys again too\n"
    )
    entry = read_baseline(path).checkpoints["m"]
    assert entry.fingerprint is not None
    assert other.stdout == (
        f"fingerprint (21 tensors, 0.00 % zeros, recorded {entry.fingerprint.date})\n"
        "recorded in baselines/x.yaml; review it\n"
    )
    assert entry.fingerprint.digest != old.digest
    assert entry.recorded["wanda/mine:32:first1"].weights_digest == old.digest


def test_a_broken_checkpoint_is_not_recorded(tmp_path: Path) -> None:
    file = save_tiny(tmp_path / "m") / "model.safetensors"
    weights = load_file(file)
    weights["model.layers.0.mlp.up_proj.weight"][0, 0] = float("inf")
    save_file(weights, file, metadata={"format": "pt"})
    done = pplguard(
        "update", "m", "--checkpoint", "x/m", "--base", "me/x", "--fingerprint",
        cwd=tmp_path,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == (
        "pplguard: error: 1 tensor of m holds NaN or infinity "
        "(model.layers.0.mlp.up_proj.weight), so its fingerprint is not recorded; see "
        "`pplguard doctor m`\n"
    )
    assert not (tmp_path / "baselines").exists()


def test_update_leaves_keys_of_later_versions_alone(tmp_path: Path, text: Path) -> None:
    folder = tmp_path / "baselines"
    folder.mkdir()
    (folder / "x.yaml").write_text(
        "schema: 1\nmodel: x\ncheckpoints:\n  d:\n    gates:\n"
        "      later/mine:32: {metric_of_it: {max: 0.1}}\n"
        "      wanda/mine:32:first1: {token_perplexity: {}}\n"
    )
    done = pplguard(
        "update", "demo/dense", "--checkpoint", "x/d", "--corpus", "mine=mine.txt",
        cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stderr.splitlines()[:2] == [
        "pplguard: left alone, this version cannot measure it: later/mine:32",
        "pplguard: measuring what x/d gates or records: wanda/mine:32:first1",
    ]
    entry = read_baseline(folder / "x.yaml").checkpoints["d"]
    assert list(entry.recorded) == ["wanda/mine:32:first1"]
    assert list(entry.gates.metrics) == ["later/mine:32", "wanda/mine:32:first1"]


def test_demo_then_the_line_that_it_prints(tmp_path: Path) -> None:
    done = pplguard("demo", "try it", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    first, second = done.stdout.splitlines()
    assert first == "wrote try it/baselines/demo.yaml; now run:"
    assert second == "  cd 'try it' && pytest baselines/demo.yaml --ppl-model demo"
    green = run_pytest(second.partition("&& ")[2], tmp_path / "try it")
    assert green.returncode == 0, green.stdout
    assert "11 within tolerance" in green.stdout.splitlines()
    assert pplguard("demo", "try it", cwd=tmp_path).returncode == 0
    (tmp_path / "try it" / "baselines" / "demo.yaml").write_text("schema: 1\n")
    assert pplguard("demo", "try it", cwd=tmp_path).stderr == (
        "pplguard: error: try it/baselines/demo.yaml is already there and differs from "
        "the demo's; give another folder, or remove it\n"
    )


def test_show_lists_what_is_recorded() -> None:
    done = pplguard("show", "demo/dense", cwd=ROOT)
    entry = read_baseline(ROOT / "baselines" / "demo.yaml").checkpoints["dense"]
    values = {
        metric: value
        for recorded in entry.recorded.values()
        for metric, value in recorded.metrics.items()
    }
    date = entry.recorded["wanda/demo:256"].first["date"]
    assert entry.fingerprint is not None
    assert done.stdout == (
        f"demo/dense                                      value  gate\n"
        "  fingerprint (38 tensors, 0.00 % zeros, recorded "
        f"{entry.fingerprint.date})\n"
        f"  wanda/demo:256 (64 windows, first recorded {date})\n"
        f"    token_perplexity                     "
        f"{values['token_perplexity']:>12.6g}  gated\n"
        f"  lm-eval/wikitext+demo:256 (72 windows, first recorded {date})\n"
        f"    word_perplexity                      "
        f"{values['word_perplexity']:>12.6g}  gated\n"
        f"    byte_perplexity                      "
        f"{values['byte_perplexity']:>12.6g}  gated\n"
        f"    bits_per_byte                        "
        f"{values['bits_per_byte']:>12.6g}  -\n"
    )


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (
            ["measure", "no/such/place", "--window", "32"],
            1,
            "no/such/place does not exist (looked at {cwd}/no/such/place). Give a "
            "folder, a .gguf file, demo/dense, demo/wanda-50, or a Hub id like "
            "org/name",
        ),
        (
            ["measure", "demo/dense", "--method", "wnada"],
            2,
            "unknown method 'wnada' (did you mean 'wanda'?): this version measures "
            "wanda, lm-eval, kl, strided, llama-cpp, lora-ft, gptq and vllm",
        ),
        (
            ["measure", "demo/dense", "--batch-size", "0"],
            2,
            "--batch-size: '0' is not a batch size; give a whole number from 1, or "
            "auto",
        ),
        (
            ["update", "demo/dense", "--checkpoint", "x/y"],
            2,
            "baselines/x.yaml does not exist; for a new file say what the base model "
            "is: --checkpoint x/y --base MODEL",
        ),
        (
            [
                "update",
                "demo/dense",
                "--checkpoint",
                "x/y",
                "--base",
                "me/x",
                "--fingerprint",
                "--window",
                "32",
            ],
            2,
            "--fingerprint measures nothing: leave out --method, --reference, "
            "--window, --stride, --limit, --corpus and --task",
        ),
        (
            ["noise", "demo/dense", "--method", "kl"],
            2,
            "--method kl compares two checkpoints, and noise is that of one: leave it "
            "out (docs/divergence.md says what moves a divergence)",
        ),
        (
            ["show"],
            2,
            "baselines is no folder; give --baselines DIR, or record a first baseline "
            "with `pplguard update MODEL --checkpoint FILE/NAME --base BASE`",
        ),
        (
            ["measure", "demo/dense", "--device", "cuda:7", "--corpus", "demo"],
            1,
            "no CUDA GPU here for --device cuda:7 (torch sees: nothing). Way out: "
            "--device auto or cpu",
        ),
        (
            ["measure", "demo/dense", "--window", "4096", "--corpus", "demo"],
            1,
            "key wanda/demo:4096: the window is longer than the 512 positions that the "
            "model was made for (max_position_embeddings); measure at a shorter window",
        ),
    ],
)
def test_errors_are_one_line(
    tmp_path: Path,
    arguments: list[str],
    status: int,
    message: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    done = pplguard(*arguments, cwd=tmp_path)
    assert done.returncode == status
    errors = [line for line in done.stderr.splitlines() if "error:" in line]
    assert errors == [f"pplguard: error: {message.format(cwd=tmp_path)}"]
    assert "Traceback" not in done.stderr


def test_a_file_may_end_in_yml_but_not_stand_beside_its_twin(tmp_path: Path) -> None:
    file = tmp_path / "baselines" / "m.yml"
    file.parent.mkdir()
    file.write_text("schema: 1\nmodel: m\ncheckpoints: {}\n", encoding="utf-8")
    words = ("update", "demo/dense", "--checkpoint", "m/dense")
    done = pplguard(*words, "--fingerprint", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("recorded in baselines/m.yml; review it\n")
    done = pplguard("diff", "demo/dense", "m/dense", cwd=tmp_path)
    assert done.returncode == 0, done.stderr

    file.with_suffix(".yaml").write_text("schema: 1\nmodel: m\ncheckpoints: {}\n")
    text = (
        "baselines: m.yaml and m.yml would both name their checkpoints m/...: rename "
        "one of the two"
    )
    for command in (
        words,
        (*words, "--fingerprint"),
        ("diff", "demo/dense", "m/dense"),
        ("compare", "demo/dense", "m/dense"),
        ("plan", "m/dense"),
        ("explain", "m/dense"),
        ("show",),
        ("check",),
        ("check", "baselines/m.yml"),
    ):
        done = pplguard(*command, cwd=tmp_path)
        assert done.returncode in (1, 2), command
        assert done.stderr == f"pplguard: error: {text}\n", command
    run = run_pytest("pytest --ppl-model m/dense=x", tmp_path)
    assert run.returncode == 4
    assert text.replace("baselines:", f"{file.parent}:") in run.stderr


def test_help_in_full(tmp_path: Path) -> None:
    done = pplguard("--help", cwd=tmp_path)
    assert done.stdout == (
        "Usage: pplguard [OPTIONS] COMMAND [ARGS]...\n"
        "\n"
        "  Perplexity baselines of pruned language models: measure, record, compare.\n"
        "\n"
        "Options:\n"
        "  --version  Show the versions of pytest-pplguard, Python and what measures.\n"
        "  --help     Show this message and exit.\n"
        "\n"
        "Commands:\n"
        "  demo     Put the demo's baseline file into DIR and say how to run it.\n"
        "  measure  Measure a checkpoint; no baseline is read or written.\n"
        "  plan     Say what a measurement takes, before anything large is loaded.\n"
        "  compare  Compare models by both methods, and say whose the gap is.\n"
        "  update   Measure a checkpoint and record it as a baseline.\n"
        "  diff     Say what differs between two checkpoints, or from a baseline.\n"
        "  explain  Say why two methods give two numbers, one change at a time.\n"
        "  inspect  Say what lm-eval will really do with a task; nothing is measured.\n"
        "  doctor   Look a checkpoint over without running it.\n"
        "  show     List recorded baselines.\n"
        "  check    Check baseline files and their evidence; needs no model.\n"
        "  review   Show what a commit did to baselines and gates.\n"
        "  card     Write recorded numbers into the model card, each with its method.\n"
        "  history  Show perplexity and sparsity over time and commits.\n"
        "  noise    Measure how numbers move without any change; propose a tolerance.\n"
        "  cache    Look at the results that --ppl-cache keeps, or remove them.\n"
    )


def options_of(help_text: str) -> set[str]:
    return set(re.findall(r"^  (--[\w-]+)", help_text, flags=re.MULTILINE))


def test_update_takes_what_measure_takes(tmp_path: Path) -> None:
    shared = options_of(pplguard("measure", "--help", cwd=tmp_path).stdout) - {"--json"}
    update: Any = options_of(pplguard("update", "--help", cwd=tmp_path).stdout)
    own = {"--checkpoint", "--base", "--baselines", "--fingerprint"}
    assert update - shared == own


def test_noise_takes_what_measure_takes(tmp_path: Path) -> None:
    """But no journal: a run that goes on would hide what has changed meanwhile.

    And no second checkpoint, and no tasks: what moves is their losses. And in this
    process, as threads and kernels are varied.
    """
    measure = options_of(pplguard("measure", "--help", cwd=tmp_path).stdout)
    noise = pplguard("noise", "--help", cwd=tmp_path).stdout
    tasks = {"--task", "--shots", "--include-path"}
    elsewhere = {
        "--executor",
        "--replicas",
        "--gpus-per-replica",
        "--ray-address",
        "--portion-timeout",
        "--server",
        "--server-model",
    }
    own = {"--journal", "--reference"}
    assert options_of(noise) == measure - own - tasks - elsewhere
    assert "  -n N  " in noise
