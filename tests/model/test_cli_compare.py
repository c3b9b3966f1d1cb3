"""``pplguard compare``: models, baselines and both, as a user runs it."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from pytest_pplguard.cli.compare import Asked, compare_models
from pytest_pplguard.errors import CheckpointError, UsageError
from pytest_pplguard.options import Options, parse_corpora
from tests.model.originals import (
    stock_hflm,
    wanda_perplexity,
    wanda_window_losses,
)
from tests.model.test_demo import rows_and_pages
from tests.model.tiny import save_tiny
from tests.zygote import programs

from .commands import run as run_command

ROOT = Path(__file__).parents[2]
BASELINES = ROOT / "baselines"
DEMO = ROOT / "pytest_pplguard" / "demo"
MAIN = "from pytest_pplguard.cli import main\nmain()\n"


def run(
    *arguments: str, cwd: Path = ROOT, python: str | None = None, code: str = MAIN
) -> subprocess.CompletedProcess[str]:
    command = [python or str(programs() / "python"), "-c", code, "compare", *arguments]
    return run_command(command, cwd, {"PYTHONPATH": str(ROOT)})


DEMO_TEXT = """\
model          per token  per word per byte bits/byte      gap exponent   zeros
demo/dense       2.97294   4.73346  1.34983  0.432778  +59.2 %    1.427  0.00 %
demo/wanda-50    3.13273    5.5577  1.39229  0.477464  +77.4 %    1.502 50.00 %

per token: the Wanda code, wanda/demo:256: measured now
per word and byte: lm-eval, lm-eval/wikitext+demo:256: measured now
zeros, in the linear weights of the decoder layers: counted now

The Wanda code gives a perplexity per token, lm-eval one per word; both are right. A
word is about 1.4 tokens here, so the number per word is higher, and the higher both
are, the wider is the gap in percent. Two models with the same exponent, ln(per word) /
ln(per token), have gaps that are the methods' own; it counts as the same if it leaves
less than a tenth of a gap (in logarithms) unexplained.
wanda-50 has a larger exponent than dense (1.502, 1.427). With the exponent of dense it
would read 5.101 per word; it reads 5.558, 9.0 % more. So most of its gap of 77 % is the
methods' (85 % of its logarithm); the rest came with the pruning. Against dense it costs
+5.4 % per token, +17.4 % per word and +0.0447 bits per byte.
"""


def test_the_demo(tmp_path: Path) -> None:
    """The text in full; every number against the originals' own computations."""
    done = run("demo", "--json", "out.json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout == DEMO_TEXT
    said = "pplguard: the demo's own text, as with --corpus demo --window 256"
    assert said in done.stderr.splitlines()
    document = json.loads((tmp_path / "out.json").read_text(encoding="utf-8"))
    rows, pages = rows_and_pages()
    for model in document["models"]:
        folder = DEMO / model["name"].removeprefix("demo/")
        loaded = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        tokenizer = AutoTokenizer.from_pretrained(folder)
        losses = wanda_window_losses(loaded.eval(), tokenizer, rows, 256)
        token = wanda_perplexity(losses, 256)
        pages_of = stock_hflm(loaded, tokenizer, pages, 256)
        word = pages_of["word_perplexity"]
        assert model["token_perplexity"] == pytest.approx(token, rel=1e-6)
        for metric, value in pages_of.items():
            assert model[metric] == pytest.approx(value, rel=1e-6)
        assert model["gap"] == pytest.approx(word / token - 1, rel=1e-5)
        exponent = math.log(word) / math.log(token)
        assert model["exponent"] == pytest.approx(exponent, rel=1e-6)
        zeros = [
            weight == 0
            for name, weight in load_file(folder / "model.safetensors").items()
            if re.search(r"layers\.\d+\..*_proj\.weight$", name)
        ]
        share = sum(int(zero.sum()) for zero in zeros) / sum(z.numel() for z in zeros)
        assert model["sparsity"] == share
    dense, pruned = document["models"]
    (against,) = document["against"]
    predicted = pruned["token_perplexity"] ** dense["exponent"]
    assert against["predicted"] == pytest.approx(predicted, rel=1e-12)
    off = pruned["word_perplexity"] / predicted - 1
    assert against["off"] == pytest.approx(off, rel=1e-9)


NO_TORCH = MAIN.replace(
    "main()\n",
    "import sys\n"
    "try:\n    main()\n"
    "finally:\n"
    "    heavy = {'torch', 'transformers', 'lm_eval', 'datasets'} & set(sys.modules)\n"
    "    print(sorted(heavy), file=sys.stderr)\n",
)

LLAMA_TEXT = """\
model                       per token  per word per byte bits/byte      gap exponent   zeros
llama-2-7b/dense                 5.12      8.71        -         -  +70.1 %    1.325       -
llama-2-7b/wanda-50              6.42         -        -         -        -        -       -
llama-2-7b/wanda-50-origin      6.306     11.22        -         -  +77.9 %    1.313       -
llama-2-7b/sparsegpt-50          6.51         -        -         -        -        -       -
llama-2-7b/magnitude-50         14.89         -        -         -        -        -       -
llama-2-7b/wanda-4of8            7.97         -        -         -        -        -       -
llama-2-7b/sparsegpt-4of8        8.12         -        -         -        -        -       -
llama-2-7b/magnitude-4of8       16.48         -        -         -        -        -       -
llama-2-7b/wanda-2of4           11.02         -        -         -        -        -       -
llama-2-7b/sparsegpt-2of4       10.17         -        -         -        -        -       -
llama-2-7b/magnitude-2of4       54.59         -        -         -        -        -       -

per token: the Wanda code, wanda/wikitext2:4096
  published (locuslab/wanda README): llama-2-7b/dense, llama-2-7b/wanda-50,
    llama-2-7b/sparsegpt-50, llama-2-7b/magnitude-50, llama-2-7b/wanda-4of8,
    llama-2-7b/sparsegpt-4of8, llama-2-7b/magnitude-4of8, llama-2-7b/wanda-2of4,
    llama-2-7b/sparsegpt-2of4, llama-2-7b/magnitude-2of4
  published (one run of the Wanda code, fp16, printed as 6.31 (reported)):
    llama-2-7b/wanda-50-origin
per word and byte: lm-eval, lm-eval/wikitext:4096
  published (lm-evaluation-harness #2301, a BOS before each page): llama-2-7b/dense
  published (the same run by lm-eval, fp16 (reported)): llama-2-7b/wanda-50-origin

The Wanda code gives a perplexity per token, lm-eval one per word; both are right. A
word is longer than a token, so the number per word is higher, and the higher both are,
the wider is the gap in percent. Two models with the same exponent, ln(per word) /
ln(per token), have gaps that are the methods' own; it counts as the same if it leaves
less than a tenth of a gap (in logarithms) unexplained.
wanda-50-origin has nearly the exponent of dense (1.313, 1.325): its gap of 78 % is the
methods', not the pruning's. With the exponent of dense it would read 11.48 per word; it
reads 11.22, 2.3 % less. Against dense it costs +23.2 % per token and +28.8 % per word.
Against dense, per token: wanda-50 +25.4 %, sparsegpt-50 +27.1 %, magnitude-50 +190.8 %,
wanda-4of8 +55.7 %, sparsegpt-4of8 +58.6 %, magnitude-4of8 +221.9 %, wanda-2of4
+115.2 %, sparsegpt-2of4 +98.6 %, magnitude-2of4 +966.2 %.
These have no number by lm-eval, so nothing can be said of their gaps.
Published numbers come without their windows; that these were cut alike is assumed.
"""  # noqa: E501


def test_a_file_alone_needs_no_torch() -> None:
    done = run("llama-2-7b", python=sys.executable, code=NO_TORCH)
    assert done.returncode == 0, done.stderr
    assert done.stdout == LLAMA_TEXT
    assert done.stderr == "[]\n"


def test_another_window_of_a_file() -> None:
    done = run("llama-2-7b", "--window", "2048")
    assert done.returncode == 0, done.stderr
    rows = [line for line in done.stdout.splitlines() if line.startswith("llama")]
    assert [row.split()[0:2] for row in rows] == [
        ["llama-2-7b/dense", "5.47"],
        ["llama-2-7b/wanda-50", "6.92"],
        ["llama-2-7b/sparsegpt-50", "6.99"],
    ]


def test_a_file_of_several_sizes_has_no_dense_model_for_all() -> None:
    done = run("opt")
    assert (done.returncode, done.stdout) == (2, "")
    command = "pplguard compare opt/125m-dense opt/125m-sparsegpt-50"
    assert done.stderr == (
        "pplguard: error: baselines/opt.yaml has several dense models, 125m-dense, "
        "1.3b-dense, 6.7b-dense, and models are compared with one: name those of one "
        f"size, `{command}`\n"
    )
    done = run(*command.split()[2:])
    assert done.returncode == 0, done.stderr
    assert "125m-sparsegpt-50 +33.2 %" in done.stdout


MIXED_TEXT = """\
model          per token  per word per byte bits/byte      gap exponent   zeros
demo/dense       2.97294   4.73346  1.34983  0.432778  +59.2 %    1.427  0.00 %
demo/wanda-50    3.13273    5.5577  1.39229  0.477464  +77.4 %    1.502 50.00 %

per token: the Wanda code, wanda/demo:256
  measured now: demo/dense
  measured, recorded 2026-11-23: demo/wanda-50
per word and byte: lm-eval, lm-eval/wikitext+demo:256
  measured now: demo/dense
  measured, recorded 2026-11-23: demo/wanda-50
zeros, in the linear weights of the decoder layers
  counted now: demo/dense
  recorded 2026-11-25: demo/wanda-50
"""


def test_a_model_beside_a_baseline() -> None:
    """Measured as the baseline was recorded; the conclusion is that of two models."""
    done = run("demo/dense", "baselines/demo.yaml/wanda-50")
    assert done.returncode == 0, done.stderr
    assert (
        "pplguard: as the baselines were recorded: wanda/demo:256 and "
        "lm-eval/wikitext+demo:256 (--window and --corpus change it)"
    ) in done.stderr.splitlines()
    table, _, words = done.stdout.rpartition("\n\n")
    assert f"{table}\n" == MIXED_TEXT
    assert words == DEMO_TEXT.rpartition("\n\n")[2]


def test_each_model_is_loaded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    import pytest_pplguard.measure as room

    loads: list[str] = []
    original = room.load_target

    def load_target(target: Any, *arguments: Any, **options: Any) -> Any:
        loads.append(target.spec)
        return original(target, *arguments, **options)

    monkeypatch.setattr(room, "load_target", load_target)
    compare(["demo/dense", "demo/wanda-50"], Asked("demo", 64, 2))
    assert loads == ["demo/dense", "demo/wanda-50"]


def compare(
    specs: list[str],
    asked: Asked,
    *,
    folder: Path = BASELINES,
    options: Options | None = None,
) -> bool:
    return compare_models(
        specs, options or Options(), asked, folder=folder, json_path=None
    )


@pytest.fixture
def mine(tmp_path: Path) -> Options:
    path = tmp_path / "mine.txt"
    path.write_text("The ship sailed at noon. " * 120, encoding="utf-8")
    return Options(corpora=parse_corpora([f"mine={path}"], option="--corpus"))


def test_a_run_that_is_stopped_goes_on(
    tmp_path: Path,
    mine: Options,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Stopped while the second model loads: the first one's windows are not lost."""
    import msgspec

    import pytest_pplguard.measure as room

    specs = [str(save_tiny(tmp_path / name, seed=len(name))) for name in ("a", "bb")]
    options = msgspec.structs.replace(mine, journal=str(tmp_path / "journal"))
    asked = Asked("mine", 32)
    original = room.load_target

    def stop(target: Any, *arguments: Any, **others: Any) -> Any:
        if target.spec == specs[1]:
            raise KeyboardInterrupt
        return original(target, *arguments, **others)

    with monkeypatch.context() as patch:
        patch.setattr(room, "load_target", stop)
        with pytest.raises(KeyboardInterrupt):
            compare(specs, asked, options=options)
    assert len(list((tmp_path / "journal").rglob("*.jsonl"))) == 2
    capsys.readouterr()
    assert compare(specs, asked, options=options)
    said = capsys.readouterr().err
    for key in ("wanda/mine:32", "lm-eval/wikitext+mine:32"):
        again = f"{re.escape(specs[0])} {re.escape(key)}: .*were scored already"
        (line,) = re.findall(f"{again}.*", said)
        count, total = re.findall(r"(\d+) of (\d+) windows", line)[0]
        assert count == total
    assert list((tmp_path / "journal").rglob("*.jsonl")) == []


@pytest.mark.parametrize("damage", ["nan", "huge"])
def test_a_model_that_cannot_be_measured(tmp_path: Path, damage: str) -> None:
    """Its row says so, the others are there, and the exit status is 1."""
    (tmp_path / "mine.txt").write_text("The ship sailed at noon. " * 60)
    for seed, name in enumerate(("dense", "broken", "fine")):
        save_tiny(tmp_path / name, seed=seed)
    file = tmp_path / "broken" / "model.safetensors"
    weights = load_file(file)
    factor = float("nan") if damage == "nan" else 3000
    weights["lm_head.weight"] *= factor
    save_file(weights, file, metadata={"format": "pt"})
    done = run(
        "dense", "broken", "fine", "--corpus", "mine=mine.txt", "--window", "32",
        "--limit", "1", "--json", "out.json", cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    rows = {line.split()[0]: line.split()[1:] for line in done.stdout.splitlines()[1:4]}
    assert rows["broken"][:7] == ["-"] * 7
    assert all(cell != "-" for name in ("dense", "fine") for cell in rows[name])
    failures = [
        line
        for line in done.stdout.splitlines()
        if line.startswith("broken: not measured: ")
    ]
    keys = ("wanda/mine:32:first1", "lm-eval/wikitext+mine:32:first1")
    assert [line.split()[3].rstrip(":") for line in failures] == list(keys)
    assert (
        "broken could not be measured by both methods, so whose its gap is cannot be "
        "said."
    ) in " ".join(done.stdout.split())
    document = json.loads((tmp_path / "out.json").read_text(encoding="utf-8"))
    broken = document["models"][1]
    assert broken["token_perplexity"] is broken["word_perplexity"] is None
    assert len(broken["failures"]) == 2


def test_a_model_that_cannot_be_loaded(
    tmp_path: Path, mine: Options, capsys: pytest.CaptureFixture[str]
) -> None:
    specs = [str(save_tiny(tmp_path / name)) for name in ("a", "b")]
    file = tmp_path / "b" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    assert not compare(specs, Asked("mine", 32, 1), options=mine)
    lines = capsys.readouterr().out.splitlines()
    assert sum(line.startswith(f"{specs[1]}: not measured: ") for line in lines) == 2


def test_two_tokenizers(
    tmp_path: Path, mine: Options, capsys: pytest.CaptureFixture[str]
) -> None:
    one = save_tiny(tmp_path / "one", vocab=320)
    other = save_tiny(tmp_path / "other", vocab=270)
    assert compare([str(one), str(other)], Asked("mine", 32), options=mine)
    out = " ".join(capsys.readouterr().out.split())
    assert (
        "other has another tokenizer than one: what a token is differs, so their "
        "perplexities per token are not comparable"
    ) in out


def test_the_window_is_the_shortest_maximum(
    tmp_path: Path, mine: Options, capsys: pytest.CaptureFixture[str]
) -> None:
    short = save_tiny(tmp_path / "short", max_position_embeddings=48)
    long = save_tiny(tmp_path / "long", max_position_embeddings=96)
    compare([str(long), str(short)], Asked("mine", None, 1), options=mine)
    captured = capsys.readouterr()
    assert (
        "pplguard: window 48 for all models (the shortest maximum is 48; --window "
        "changes it)"
    ) in captured.err.splitlines()
    assert "wanda/mine:48:first1" in captured.out


# --------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("specs", "asked", "message"),
    [
        (
            ["demo/dense"],
            Asked("demo", 64),
            "only demo/dense is given: compare needs two models or more, the dense "
            "one first, or baselines in place of them: FILE, or FILE/NAME",
        ),
        (
            ["demo/dense", "demo/dense"],
            Asked("demo", 64),
            "demo/dense is given twice; give each model once",
        ),
        (
            ["llama-2-7b/dense", "llama-2-7b/wanda-5"],
            Asked(),
            f"{BASELINES}/llama-2-7b.yaml has no wanda-5 (did you mean 'wanda-50' or "
            "'wanda-4of8'?); it has: dense, wanda-50, wanda-50-origin, sparsegpt-50, "
            "magnitude-50, wanda-4of8, sparsegpt-4of8, magnitude-4of8, wanda-2of4, "
            "sparsegpt-2of4, magnitude-2of4",
        ),
        (
            ["llama-2-7"],
            Asked(),
            f"llama-2-7 is no model and no file of {BASELINES} (did you mean "
            "'llama-2-7b' or 'llama-2-70b'?)",
        ),
        (
            ["llama-2-7b/dense", "llama-2-7b/wanda-50-origin"],
            Asked(window=2048),
            "no baseline that all of these models could be compared by (asked for: "
            "window 2048); recorded are llama-2-7b/dense: "
            "wanda/wikitext2:4096, wanda/wikitext2:2048, lm-eval/wikitext:4096; "
            "llama-2-7b/wanda-50-origin: wanda/wikitext2:4096, lm-eval/wikitext:4096",
        ),
        (
            ["demo/dense", "llama-2-7b/dense"],
            Asked(),
            "no baseline that all of these models could be compared by (asked for: "
            "no window beyond the model's 512); recorded are "
            "llama-2-7b/dense: wanda/wikitext2:4096, wanda/wikitext2:2048, "
            "lm-eval/wikitext:4096",
        ),
    ],
)
def test_bad_input(specs: list[str], asked: Asked, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        compare(specs, asked)
    assert str(caught.value) == message


def test_a_path_with_a_slip_is_found_before_anything_is_measured() -> None:
    with pytest.raises(CheckpointError, match="no/such/model"):
        compare(["demo/dense", "no/such/model"], Asked("demo", 64))
