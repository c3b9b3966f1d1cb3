"""``pplguard plan``, held against the models themselves: counted, run and measured."""

from __future__ import annotations

import json
import shutil
import sys
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from pytest_pplguard.baselines import read_baseline
from pytest_pplguard.checkpoints import Hardware, locate
from pytest_pplguard.cli import main
from pytest_pplguard.cli.measure import Wanted
from pytest_pplguard.cli.plan import Machine, plan_measurement
from pytest_pplguard.errors import UsageError
from pytest_pplguard.measure.calibrate import calibrate
from pytest_pplguard.options import Options, parse_corpora
from pytest_pplguard.planning import (
    Shape,
    Skeleton,
    disk_of,
    empty_model,
    is_packed,
    pairs,
    shape_of,
    skeleton,
    stored_parameters,
)
from pytest_pplguard.scoring.head import losses
from tests.model.test_demo import ROOT
from tests.model.tiny import ARCHITECTURES, build_model, save_tiny
from tests.official import smollm2_gguf
from tests.published import CONFIGS, PARAMETERS, save_config

QUIET = Machine(calibrate=False)
H100S = Machine(gpus="8", gpu_memory="80GB")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("plan") / "tiny")


@pytest.fixture(autouse=True)
def no_accelerator(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """What is planned for is said by the test, not by the machine that runs it."""
    monkeypatch.setattr("pytest_pplguard.cli.plan.probe", Hardware)
    monkeypatch.setattr(
        "pytest_pplguard.scoring.memory.available", lambda: 16_000_000_000
    )
    monkeypatch.chdir(tmp_path)


def plan(
    spec: str | Path,
    machine: Machine = QUIET,
    *,
    options: Options | None = None,
    json_path: str | None = None,
    **wanted: Any,
) -> bool:
    corpora = wanted.pop("corpora", ["demo"])
    asked: dict[str, Any] = {"window": None, "limit": None} | wanted
    parsed = Wanted.parse(asked.pop("methods", None), corpora=corpora, **asked)
    given = options or Options(corpora=parse_corpora(parsed.files, option="--corpus"))
    return plan_measurement(
        str(spec), parsed, given, machine, folder=Path("baselines"), json_path=json_path
    )


def document(capsys: pytest.CaptureFixture[str], *args: Any, **more: Any) -> Any:
    plan(*args, json_path="-", **more)
    return json.loads(capsys.readouterr().out)


# ------------------------------------------------------- the shape, against the model


@pytest.mark.parametrize("name", CONFIGS)
def test_parameters_of_published_models(name: str, tmp_path: Path) -> None:
    """From their configs alone, on the meta device."""
    found = skeleton(locate(str(save_config(tmp_path, name)), config_only=True))
    assert found.shape.parameters / 1e9 == pytest.approx(PARAMETERS[name], abs=0.005)
    assert found.notices == ()


class Peak(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes of all tensors that live at once, but for a model's own."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        own = [*model.parameters(), *model.buffers()]
        self._known = {tensor.untyped_storage()._cdata for tensor in own}
        self._now = self.most = 0

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        out = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor):
                self._add(tensor.untyped_storage())
        return out

    def _add(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._known:
            return
        self._known.add(key)
        self._now += size
        self.most = max(self.most, self._now)
        weakref.finalize(storage, self._remove, key, size)

    def _remove(self, key: int, size: int) -> None:
        self._known.discard(key)
        self._now -= size


WINDOW = 256


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_parameters_and_flops_of_an_architecture(arch: str) -> None:
    """As torch counts both. It counts all pairs of positions; the plan, half of them.

    Of eager kernels, as it knows no FLOPs of those that are fused.
    """
    kernels: dict[str, Any] = {
        "attn_implementation": "eager",
        "experts_implementation": "eager",
    }
    model = build_model(arch, **kernels)
    shape = shape_of(model, model.config)
    assert shape.parameters == sum(p.numel() for p in model.parameters())
    ids = torch.zeros((1, WINDOW), dtype=torch.long)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(input_ids=ids, use_cache=False)
    others = sum(
        2 * (layer.queries + layer.values) * (WINDOW**2 - pairs(WINDOW, layer.reach))
        for layer in shape.layers
    )
    expected = shape.flops(WINDOW, WINDOW) + others
    assert counter.get_total_flops() == pytest.approx(expected, rel=0.02)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("arch", "middle"),
    [("llama", 688), ("llama", 64), ("mixtral", 512), ("opt", 1024), ("qwen3", 768)],
)
def test_activations_are_what_a_forward_pass_allocates(
    arch: str, middle: int, dtype: torch.dtype, attention: str
) -> None:
    """To a tenth, whether the attention or the MLP needs most."""
    sizes: dict[str, Any] = {
        "hidden_size": 256,
        "intermediate_size": middle,
        "ffn_dim": middle,
        "word_embed_proj_dim": 256,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 32,
        "attn_implementation": attention,
    }
    model = build_model(arch, **sizes).to(dtype)
    ids = torch.zeros((2, WINDOW), dtype=torch.long)
    peak = Peak(model)
    with torch.no_grad(), peak:
        model.base_model(input_ids=ids, use_cache=False)
    shape = shape_of(model, model.config)
    planned = shape.activations(2, WINDOW, dtype.itemsize, eager=attention == "eager")
    assert peak.most == pytest.approx(planned, rel=0.1)


def test_logits_are_what_the_head_allocates() -> None:
    vocabulary, width, rows = 60_000, 16, 400
    head = torch.nn.Linear(width, vocabulary, bias=False)
    states, targets = torch.randn(rows, width), torch.zeros(rows, dtype=torch.long)
    peak = Peak(head)
    with torch.no_grad(), peak:
        losses(states, torch.arange(rows), targets, head)
    shape = Shape("", width, vocabulary, (), 0, vocabulary * width, 0)
    planned = shape.logits(1, rows, 4, on_cpu=True)
    # Chunks are cut evenly, so that none need be as large as may be.
    assert 0.8 * planned < peak.most < 1.05 * planned


# ----------------------------------------------------------------------- what is said

TINY = """\
tiny: LlamaForCausalLM, 2 layers of width 32
parameters   39.1 k: layers 18.6 k, embedding 10.2 k, head 10.2 k
on disk      158 kB
in memory    316 MB in float32, windows of 256 tokens
             weights 156 kB, activations 328 kB
             logits 328 kB, margin 315 MB
fits         the memory of this machine, 15.7 GB of it to spare
time         not estimated

key                        windows  tokens    FLOP  time
wanda/demo:256                 197  50,432  4.54 G
lm-eval/wikitext+demo:256      194  49,555  4.41 G
all                                         8.95 G
"""


def test_a_plan_in_full(tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert plan(tiny, window=256)
    shown = capsys.readouterr()
    assert shown.out.replace(str(tiny), "tiny") == TINY
    assert shown.err == ""
    assert all(len(line) <= 80 for line in TINY.splitlines())


def test_windows_are_counted_as_they_are_measured(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Of the demo, by what its baseline has recorded: another count of the same."""
    baseline = read_baseline(ROOT / "baselines" / "demo.yaml").checkpoints["dense"]
    found = document(capsys, "demo/dense", window=256)
    for key in found["keys"]:
        assert key["counted"] == "exact"
        assert key["count"]["windows"] == baseline.recorded[key["key"]].windows
    wanda = found["keys"][0]["count"]
    assert wanda == {"windows": 64, "read": 64 * 256, "scored": 64 * 255}


def test_what_a_baseline_has_recorded(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """All its keys; and its counts where the text is not at hand."""
    (tmp_path / "baselines").mkdir()
    shutil.copy(ROOT / "baselines" / "demo.yaml", tmp_path / "baselines")
    found = document(capsys, "demo/dense", corpora=None)
    recorded = read_baseline(ROOT / "baselines" / "demo.yaml").checkpoints["dense"]
    assert [key["key"] for key in found["keys"]] == [*recorded.recorded]
    save_config(tmp_path / "big", "llama-2-7b")
    text = (
        "schema: 1\nmodel: org/llama\ncheckpoints:\n  dense:\n    path: big\n"
        "    recorded:\n      wanda/wikitext2:4096:\n"
        "        token_perplexity: 5.12\n        windows: 83\n"
        "        source: {kind: published, reference: a paper, digits: 2}\n"
    )
    (tmp_path / "baselines" / "llama.yaml").write_text(text)
    found = document(capsys, "llama/dense", H100S, corpora=None)
    (key,) = found["keys"]
    assert (key["counted"], key["count"]["windows"]) == ("recorded", 83)
    assert found["place"]["verdict"] == "one GPU"


def test_a_config_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = save_config(tmp_path / "big", "llama-2-70b")
    texts = "wikitext2=" + str(ROOT / "pytest_pplguard" / "demo" / "demo.txt")
    machine = Machine(gpus="2", gpu_memory="80GB", tflops=400.0)
    assert plan("big/config.json", machine, corpora=[texts], methods=["wanda"])
    assert capsys.readouterr() == (ON_TWO, ON_TWO_REMARKS)
    from_folder = document(capsys, folder, machine, corpora=[texts])
    assert from_folder["disk"] == {
        "size": 2 * 68_976_648_192, "known": "estimated",
    }  # fmt: skip
    assert from_folder["place"]["layers"] == [40, 40]


ON_TWO = """\
big: LlamaForCausalLM, 80 layers of width 8192
parameters   69 B: layers 68.5 B, embedding 262 M, head 262 M
on disk      138 GB, by its parameters: no weights are here
in memory    141 GB in float16, windows of 4,096 tokens
             weights 138 GB, activations 973 MB
             logits 268 MB, margin 1.38 GB
fits         2 of 2 GPUs with 80 GB each, 40 layers each, 8.4 GB to spare on the
             fullest
time         about 7.3 s of scoring, at 400 TFLOP/s, as given; the GPUs of one
             model work one after the other

key                   windows   tokens    FLOP   time
wanda/wikitext2:4096       ~3  ~12,288  1.75 P  7.3 s
"""
ON_TWO_REMARKS = (
    "pplguard: window 4096 (the model's maximum is 4096; --window changes it)\n"
    "pplguard: windows are estimated by 3.8 bytes of text a token, as there is no "
    "tokenizer: some 10 % more or less\n"
)


def test_gpus_that_are_too_small(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_config(tmp_path / "405b", "llama-3.1-405b")
    assert not plan("405b", H100S, window=4096)
    out = capsys.readouterr().out
    assert (
        "does not fit 236 GB too much for 8 GPUs with 80 GB each: 12 such GPUs" in out
    )
    assert plan("405b", Machine(gpus="2x8", gpu_memory="80GB"), window=4096)
    out = capsys.readouterr().out
    assert "layers: 8 on each of 14, 7 on" in out
    assert "--ppl-executor server --ppl-server http://HOST:8000/v1" in out


@pytest.mark.parametrize(
    ("machine", "options"),
    [
        (
            Machine(gpus="8", gpu_memory="80GB"),
            [
                "--ppl-executor ray --ppl-replicas 8 --ppl-gpus-per-replica 1",
            ],
        ),
        (
            Machine(gpus="8", gpu_memory="80GB", replicas=3),
            [
                "--ppl-executor ray --ppl-replicas 3 --ppl-gpus-per-replica 1",
            ],
        ),
        (
            Machine(gpus="2x8", gpu_memory="80GB", gpus_per_replica=1),
            [
                "--ppl-executor ray --ppl-replicas 16 --ppl-gpus-per-replica 1",
            ],
        ),
        (
            Machine(gpus="4", gpu_memory="10GB"),
            [
                "--ppl-max-memory 0=7GiB --ppl-max-memory 1=7GiB",
                "--ppl-executor ray --ppl-replicas 2 --ppl-gpus-per-replica 2",
            ],
        ),
        (
            Machine(gpus="1", gpu_memory="10GB", cpu_memory="64GB"),
            [
                "--ppl-max-memory 0=7GiB --ppl-max-memory cpu=53GiB",
            ],
        ),
        (
            Machine(gpus="1", gpu_memory="10GB"),
            [
                "or, slowly: --ppl-max-memory 0=7GiB --ppl-max-memory cpu=SIZE",
            ],
        ),
    ],
)
def test_what_to_type(
    machine: Machine,
    options: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    save_config(tmp_path / "7b", "llama-2-7b")
    assert document(capsys, "7b", machine, window=4096)["options"] == options


def test_files_that_say_otherwise(
    tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "grown"
    shutil.copytree(tiny, folder)
    config = json.loads((folder / "config.json").read_text())
    config["num_hidden_layers"] = 3
    config["layer_types"] = None
    (folder / "config.json").write_text(json.dumps(config))
    plan(folder, window=256)
    assert "the files hold 39," in capsys.readouterr().err


def test_shards_that_are_not_here_yet(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = save_tiny(tmp_path / "sharded", shard="50KB")
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    for shard in folder.glob("model-*.safetensors"):
        shard.unlink()
    found = document(capsys, folder, window=256)
    assert found["disk"]["known"] == "index"
    assert found["disk"]["size"] == index["metadata"]["total_size"]


def test_an_adapter_takes_what_its_base_does(
    tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "lora"
    folder.mkdir()
    (folder / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    (folder / "adapter_model.safetensors").write_bytes(bytes(100))
    base = document(capsys, tiny, window=256)
    found = document(capsys, f"{folder}+{tiny}", window=256)
    assert found["parameters"] == base["parameters"]
    assert found["keys"] == base["keys"]
    assert found["disk"]["size"] == base["disk"]["size"] + 100
    assert found["notices"] == [
        f"{folder} is an adapter: it is merged, and takes what its base does"
    ]


def test_quantised_weights_are_counted_unpacked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    packing = {"quant_method": "gptq", "bits": 4, "group_size": 128}
    save_config(tmp_path / "q", "llama-2-7b", quantization_config=packing)
    found = document(capsys, "q", H100S, window=256)
    assert found["parameters"]["total"] == 6_738_415_616
    assert found["memory"]["weights"] == 2 * 6_738_415_616
    assert found["notices"][-1] == (
        "q is quantised: its weights are counted as float16, which they take where "
        "they are unpacked; less where this device has kernels for them"
    )


def test_a_gguf_file() -> None:
    """SmolLM2-135M: its metadata alone says how large the unpacked model is."""
    located = locate(str(smollm2_gguf()), config_only=True)
    shape = skeleton(located).shape
    assert (shape.parameters, shape.tied) == (134_515_008, True)
    assert disk_of(located, shape, 4).size == smollm2_gguf().stat().st_size
    assert is_packed(located)
    assert stored_parameters(located) is None


def test_what_text_does_not_go_through_is_no_layer() -> None:
    """Gemma 3 sees images, too: 26 layers of text, and others for these."""
    from transformers import AutoConfig

    config = AutoConfig.for_model("gemma3")
    model = empty_model("gemma3", config, trust_remote_code=False)
    shape = shape_of(model, config)
    assert shape.parameters == sum(p.numel() for p in model.parameters())
    assert len(shape.layers) == config.text_config.num_hidden_layers
    assert {layer.reach for layer in shape.layers} == {None, 4096}


# ----------------------------------------------------------------------------- timing


def test_what_is_timed_is_what_the_machine_reaches(
    tiny: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """All of a model that takes no time; benchmarks/ hold it against real runs."""
    found = document(capsys, tiny, Machine(), window=64)
    timing = found["timing"]
    assert timing["how"] == "window"
    assert 1e6 < timing["rate"] < 1e15
    (wanda, lm_eval) = found["keys"]
    flops = wanda["flops"] / wanda["count"]["windows"]
    assert wanda["seconds"] == pytest.approx(
        flops * (wanda["count"]["windows"] + 2) / timing["rate"]
    )
    assert found["seconds"] == wanda["seconds"] + lm_eval["seconds"]


@pytest.mark.parametrize("arch", ["gemma2", "mixtral", "opt"])
def test_some_layers_stand_for_all(arch: str, monkeypatch: pytest.MonkeyPatch) -> None:
    made = skeleton_of(arch)
    monkeypatch.setattr(
        "pytest_pplguard.measure.calibrate.MOST_BYTES",
        4 * (made.shape.parameters - made.shape.layers[1].parameters),
    )
    timing = calibrate(made, 64, device="cpu", dtype="float32", room=10**9)
    assert (timing.how, timing.layers) == ("layers", 1)
    small = calibrate(made, 64, device="cpu", dtype="float32", room=1000)
    assert (small.how, small.layers) == ("products", 0)


def skeleton_of(arch: str) -> Skeleton:
    model = build_model(arch)
    return Skeleton(model.config, shape_of(model, model.config))


def test_no_time_is_claimed_for_gpus_that_nobody_timed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_config(tmp_path / "7b", "llama-2-7b")
    assert plan("7b", H100S, window=4096)
    assert (
        "time         not estimated: say what one of these GPUs reaches, --tflops X"
        in capsys.readouterr().out.splitlines()
    )


def test_replicas_share_the_windows(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_config(tmp_path / "7b", "llama-2-7b")

    def seconds(replicas: int) -> Any:
        machine = Machine(gpus="8", gpu_memory="80GB", tflops=400.0, replicas=replicas)
        found = document(capsys, "7b", machine, window=256, methods=["wanda"])
        (key,) = found["keys"]
        return key["seconds"], key["count"]["windows"]

    one, windows = seconds(1)
    eight, _ = seconds(8)
    assert eight / one == pytest.approx((-(-windows // 8) + 2) / (windows + 2))


# -------------------------------------------------------------------------- bad input


def broken(tmp_path: Path, **changes: Any) -> str:
    return str(save_config(tmp_path / "broken", "llama-2-7b", **changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"num_hidden_layers": ...},
            "config.json has no num_hidden_layers, and a default of LlamaConfig "
            "would be another model's: take the config.json that the model was "
            "published with",
        ),
        (
            {"model_type": ...},
            "config.json has no model_type, so nobody can tell what the model "
            "is: take the config.json that the model was published with",
        ),
        (
            {"model_type": "lama"},
            "transformers VERSION does not know the model_type 'lama' of its "
            "config.json: install a newer one, or look for a slip",
        ),
        (
            {"model_type": "vit"},
            "no model can be built: transformers has no causal language model "
            "for model_type 'vit'",
        ),
    ],
)
def test_configs_that_are_none(
    changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    import transformers

    spec = broken(tmp_path, **changes)
    with pytest.raises(UsageError) as caught:
        plan(spec)
    text = str(caught.value).replace(transformers.__version__, "VERSION")
    assert text == f"{spec}: {message}"


@pytest.mark.parametrize(
    ("machine", "wanted", "message"),
    [
        (
            Machine(gpus="8"),
            {},
            "--gpus is of GPUs that are not here: add --gpu-memory 80GiB",
        ),
        (
            Machine(gpu_memory="80GiB"),
            {},
            "--gpu-memory is of GPUs that are not here: add --gpus N",
        ),
        (
            Machine(gpus="0", gpu_memory="80GiB"),
            {},
            "--gpus: '0' is no number of GPUs; give 8, or 2x8 for two machines "
            "with 8 each",
        ),
        (
            Machine(gpus="-1", gpu_memory="80GiB"),
            {},
            "--gpus: '-1' is no number of GPUs; give 8, or 2x8 for two machines "
            "with 8 each",
        ),
        (
            Machine(gpus="8", gpu_memory="-80GiB"),
            {},
            "--gpu-memory: '-80GiB' is no size; give for example 80GiB",
        ),
        (
            Machine(gpus="8", gpu_memory="80"),
            {},
            "--gpu-memory: '80' is no size; give for example 80GiB",
        ),
        (
            Machine(gpus="8", gpu_memory="0GB"),
            {},
            "--gpu-memory: '0GB' is no size; give for example 80GiB",
        ),
        (
            Machine(cpu_memory="much"),
            {},
            "--cpu-memory: 'much' is no size; give for example 80GiB",
        ),
        (
            Machine(tflops=-1.0),
            {},
            "--tflops: -1 is no speed; give what a GPU reaches, above 0, in "
            "1e12 FLOPs a second",
        ),
        (
            Machine(tflops=float("nan")),
            {},
            "--tflops: nan is no speed; give what a GPU reaches, above 0, in "
            "1e12 FLOPs a second",
        ),
        (
            Machine(gpus="2x8", gpu_memory="80GB", gpus_per_replica=16),
            {},
            "--gpus-per-replica 16: a replica is on one machine, and each has 8",
        ),
        (
            Machine(gpus="8", gpu_memory="80GB", replicas=9),
            {},
            "--replicas 9: each takes 1 of 8 GPUs, so that at most 8 fit",
        ),
        (
            QUIET,
            {"window": 4096},
            "--window 4096: TINY was made for 2048 positions "
            "(max_position_embeddings); give a shorter window",
        ),
    ],
)
def test_words_that_are_none(
    machine: Machine, wanted: dict[str, Any], message: str, tiny: Path
) -> None:
    with pytest.raises(UsageError) as caught:
        plan(tiny, machine, **({"window": 64} | wanted))
    assert str(caught.value) == message.replace("TINY", str(tiny))


def test_exit_statuses(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """0, 1 where it fits nowhere, 2 for what cannot be planned."""
    save_config(tmp_path / "7b", "llama-2-7b")

    def status(*words: str) -> object:
        monkeypatch.setattr(sys, "argv", ["pplguard", "plan", *words])
        with pytest.raises(SystemExit) as caught:
            main()
        return caught.value.code

    given = ("7b", "--corpus", "demo", "--window", "512", "--gpus", "1")
    assert status(*given, "--gpu-memory", "24GB") == 0
    assert status(*given, "--gpu-memory", "12GB") == 1
    capsys.readouterr()
    assert status("nowhere") == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("pplguard: error: nowhere does not exist (looked at ")
    assert err.count("\n") == 1
    assert status("7b", "--replicas", "0") == 2  # by typer
