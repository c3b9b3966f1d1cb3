"""Adapters that peft saved are merged as their papers say, and only into their base."""

from __future__ import annotations

import inspect
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file

from pytest_pplguard.baselines import read_baseline
from pytest_pplguard.checkpoints import (
    Loaded,
    load,
    locate,
    measure_sparsity,
    saved_dtype,
)
from pytest_pplguard.errors import CheckpointError
from pytest_pplguard.values import SparsityGate

from .commands import pplguard, run_pytest
from .originals import wanda_perplexity, wanda_window_losses
from .test_checkpoints_sparsity import prune, wanda_counts
from .tiny import build_model, build_tokenizer, save, save_tiny, save_tokenizer

Q, UP = "self_attn.q_proj", "mlp.up_proj"
Weights = dict[str, torch.Tensor]
ROWS = ["It was released in January 2011 in Japan .", "", " = Perplexity = "] * 40


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pruned model in bfloat16, half of its decoder's weights zero."""
    path = tmp_path_factory.mktemp("models") / "base"
    model = build_model("llama")
    prune(model.model.layers)
    save(model.to(torch.bfloat16), path)
    save_tokenizer(build_tokenizer(), path)
    return path


def adapted(base: Path, folder: Path, config: Any, seed: int = 1) -> Path:
    """An adapter with random weights for ``base``, as ``save_pretrained`` of peft."""
    from transformers import AutoModelForCausalLM

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = peft.get_peft_model(
            AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), config
        )
        for name, parameter in model.named_parameters():
            if "lora_" in name or "ia3" in name or "hada" in name:
                parameter.data.normal_(0, 0.3)
    model.save_pretrained(folder)
    return folder


def lora(**settings: Any) -> Any:
    chosen = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "up_proj"]}
    return peft.LoraConfig(**(chosen | {"task_type": "CAUSAL_LM"} | settings))


def load_cpu(spec: str | Path, **options: Any) -> Loaded:
    return load(locate(str(spec)), device="cpu", dtype="float32", **options)


def refused(spec: str | Path, **options: Any) -> str:
    with pytest.raises(CheckpointError) as caught:
        load_cpu(spec, **options)
    return str(caught.value)


def edit(folder: Path, change: Callable[[Weights], object]) -> None:
    file = folder / "adapter_model.safetensors"
    weights = load_file(file)
    change(weights)
    save_file(weights, file, metadata={"format": "pt"})


def edit_config(folder: Path, **settings: Any) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))


def merged_by_hand(base: Path, folder: Path, scaling: float) -> Weights:
    """W + scaling * B A for every pair of the adapter (Hu et al. 2021, section 4.1)."""
    weights = {k: v.float() for k, v in load_file(base / "model.safetensors").items()}
    pairs = load_file(folder / "adapter_model.safetensors")
    for name, a in pairs.items():
        if name.endswith("lora_A.weight"):
            b = pairs[name.replace("lora_A", "lora_B")]
            module = name.removeprefix("base_model.model.").removesuffix(
                ".lora_A.weight"
            )
            weights[f"{module}.weight"] += scaling * (b.float() @ a.float())
    return weights


def expected_model(base: Path, weights: Weights) -> Any:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).eval()
    model.load_state_dict(weights)
    return model


@pytest.mark.parametrize(
    ("settings", "scaling"),
    [({}, 8 / 4), ({"use_rslora": True}, 8 / 4**0.5)],
    ids=["lora", "rslora"],
)
def test_lora(
    base: Path, tmp_path: Path, settings: dict[str, Any], scaling: float
) -> None:
    folder = adapted(base, tmp_path / "lora", lora(**settings))
    weights = merged_by_hand(base, folder, scaling)
    loaded = load_cpu(folder)
    model: Any = loaded.model
    assert type(model).__name__ == "LlamaForCausalLM"
    assert model.state_dict().keys() == weights.keys()
    for name, weight in model.state_dict().items():
        torch.testing.assert_close(weight, weights[name], rtol=0, atol=1e-6)
    assert not model.training
    assert not any(p.requires_grad for p in model.parameters())
    assert loaded.notices == ()

    original = expected_model(base, weights)
    perplexities = [
        wanda_perplexity(wanda_window_losses(m, loaded.tokenizer, ROWS, 64), 64)
        for m in (model, original, expected_model(base, load_base(base)))
    ]
    assert perplexities[0] == pytest.approx(perplexities[1], rel=1e-6)
    assert perplexities[0] != pytest.approx(perplexities[2], rel=1e-2)


def load_base(base: Path) -> Weights:
    return {k: v.float() for k, v in load_file(base / "model.safetensors").items()}


def test_sparsity_is_that_after_the_merge(base: Path, tmp_path: Path) -> None:
    """Wanda #83: the merge fills the zeros of the layers that have an adapter."""
    folder = adapted(base, tmp_path / "lora", lora())
    located = locate(str(folder))
    model = expected_model(base, merged_by_hand(base, folder, 2.0))
    zeros, total = wanda_counts(model)
    measured = measure_sparsity(located, model=lambda: load_cpu(folder).model)
    assert (measured.zeros, measured.total) == (zeros, total)
    before = measure_sparsity(locate(str(base))).fraction
    assert measured.fraction < 0.8 * before
    with pytest.raises(CheckpointError) as caught:
        measure_sparsity(located)
    assert str(caught.value) == (
        f"{folder} is an adapter: its sparsity can only be counted in the loaded model"
    )


@pytest.mark.parametrize(
    "config",
    [
        lora(use_dora=True),
        lora(modules_to_save=["lm_head"]),
        lora(target_modules="all-linear", rank_pattern={"q_proj": 2}, bias="all"),
        peft.IA3Config(task_type="CAUSAL_LM"),
        peft.LoHaConfig(r=4, target_modules=["q_proj"]),
    ],
    ids=["dora", "modules_to_save", "patterns", "ia3", "loha"],
)
def test_other_kinds_give_what_peft_gives_unmerged(
    base: Path, tmp_path: Path, config: Any
) -> None:
    folder = adapted(base, tmp_path / "adapter", config)
    from transformers import AutoModelForCausalLM

    unmerged = peft.PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), folder
    ).eval()
    plain = expected_model(base, load_base(base))
    ids = torch.arange(3, 60)[None]
    with torch.inference_mode():
        logits = load_cpu(folder).model(ids).logits
        torch.testing.assert_close(
            logits, unmerged(input_ids=ids).logits, rtol=1e-4, atol=1e-4
        )
        assert not torch.allclose(logits, plain(ids).logits, atol=1e-2)


TIED = (
    [(lora(target_modules=["embed_tokens"], ensure_weight_tying=True), "both")]
    if "ensure_weight_tying" in inspect.signature(peft.LoraConfig).parameters
    else []  # before peft 0.18
)


@pytest.mark.parametrize(
    ("config", "moved"),
    [
        (lora(target_modules=["q_proj", "lm_head"]), "head"),
        (lora(target_modules=["q_proj", "embed_tokens"]), "embedding"),
        (lora(target_modules=["embed_tokens", "lm_head"]), "both"),
        (lora(target_modules=["lm_head"], use_dora=True), "head"),
        (lora(modules_to_save=["lm_head"]), "head as it was"),
        *TIED,
        (lora(trainable_token_indices=[5, 6]), "neither"),
    ],
    ids=[
        "lm_head", "embed_tokens", "both", "dora", "modules_to_save",
        *["tied_adapters" for _ in TIED], "trainable_tokens",
    ],
)  # fmt: skip
def test_tied_embeddings(tmp_path: Path, config: Any, moved: str) -> None:
    """The merge changes what the adapter changed while it was trained, no more.

    In float64, where the order of sums moves no digit that matters.
    """
    from transformers import AutoModelForCausalLM

    base = save_tiny(tmp_path / "base", tie_word_embeddings=True)
    folder = adapted(base, tmp_path / "adapter", config)
    before = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float64)
    shared = before.lm_head.weight
    assert before.model.embed_tokens.weight is shared
    unmerged = peft.PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(base, dtype=torch.float64), folder
    ).eval()
    model: Any = load(locate(str(folder)), device="cpu", dtype="float64").model
    ids = torch.arange(3, 60)[None]
    with torch.inference_mode():
        logits, expected = model(ids).logits, unmerged(input_ids=ids).logits
    torch.testing.assert_close(logits, expected, rtol=1e-9, atol=1e-9)
    embedding, head = model.model.embed_tokens.weight, model.lm_head.weight
    assert (torch.equal(embedding, shared), torch.equal(head, shared)) == {
        "head": (True, False),
        "embedding": (False, True),
        "both": (False, False),
    }.get(moved, (True, True))
    assert model.config.tie_word_embeddings is (embedding is head)


def test_base_that_was_named(base: Path, tmp_path: Path) -> None:
    folder = adapted(base, tmp_path / "lora", lora())
    edit_config(folder, base_model_name_or_path="/scratch/gone")
    other = shutil.copytree(base, tmp_path / "elsewhere")
    loaded = load_cpu(f"{folder}+{other}")
    weights = merged_by_hand(base, folder, 2.0)
    name = f"model.layers.0.{UP}.weight"
    torch.testing.assert_close(loaded.model.get_parameter(name), weights[name])


def test_tokenizer_of_the_adapter_comes_first(base: Path, tmp_path: Path) -> None:
    folder = adapted(base, tmp_path / "lora", lora())
    assert load_cpu(folder).tokenizer("ab")["input_ids"][0] == 0
    save_tokenizer(build_tokenizer(bos=False), folder)
    assert load_cpu(folder).tokenizer("ab")["input_ids"][0] != 0


def test_base_in_a_compressed_format(tmp_path: Path) -> None:
    """Its zeros are decoded first, then filled."""
    from .test_checkpoints_compressed import checkpoint

    base = checkpoint("sparse-24-bitmask", tmp_path / "base")
    dense = checkpoint("dense-unstructured", tmp_path / "dense")
    folder = adapted(dense, tmp_path / "lora", lora())
    name = "model.layers.1.self_attn.q_proj.weight"
    sparse = load_cpu(base).model.get_parameter(name)
    pair = load_file(folder / "adapter_model.safetensors")
    a, b = (
        pair[f"base_model.model.model.layers.1.{Q}.lora_{side}.weight"] for side in "AB"
    )
    merged = load_cpu(f"{folder}+{base}").model.get_parameter(name)
    torch.testing.assert_close(merged, sparse + 2.0 * b @ a)


def test_random_state_is_left_alone(base: Path, tmp_path: Path) -> None:
    folder = adapted(base, tmp_path / "lora", lora())
    torch.manual_seed(7)
    expected = torch.get_rng_state()
    load_cpu(folder)
    assert torch.equal(torch.get_rng_state(), expected)


def test_loading_says_nothing(
    base: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = adapted(base, tmp_path / "lora", lora())
    assert saved_dtype(locate(str(folder))) == "bfloat16"
    capfd.readouterr()
    load_cpu(folder)
    assert capfd.readouterr() == ("", "")


# -------------------------------------------------------------------- what does not fit


def misfit(folder: Path, base: Path, why: str) -> str:
    return (
        f"the adapter {folder} does not fit its base {base}: {why}. Name the model "
        f"that it was trained on: {folder}+BASE"
    )


def test_base_of_another_shape(base: Path, tmp_path: Path) -> None:
    folder = adapted(base, tmp_path / "lora", lora())
    wide = save_tiny(tmp_path / "wide", intermediate_size=96)
    assert refused(f"{folder}+{wide}") == misfit(
        folder,
        wide,
        "2 of its weights have another shape, like model.layers.0.mlp.up_proj.lora_B."
        "weight ([64, 4] in the adapter, [96, 4] for the base)",
    )


def test_base_with_fewer_layers(base: Path, tmp_path: Path) -> None:
    folder = adapted(base, tmp_path / "lora", lora())
    short = save_tiny(tmp_path / "short", num_hidden_layers=1)
    layer = "model.layers.1"
    assert refused(f"{folder}+{short}") == misfit(
        folder,
        short,
        "it has weights that no module of the base takes "
        f"({layer}.{UP}.lora_A.weight, {layer}.{UP}.lora_B.weight, "
        f"{layer}.{Q}.lora_A.weight, ...)",
    )


def test_base_with_more_layers(base: Path, tmp_path: Path) -> None:
    folder = adapted(base, tmp_path / "lora", lora(target_modules=["q_proj"]))
    deep = save_tiny(tmp_path / "deep", num_hidden_layers=3)
    module = f"model.layers.2.{Q}"
    assert refused(f"{folder}+{deep}") == misfit(
        folder,
        deep,
        "it lacks weights that its adapter_config.json asks for "
        f"({module}.lora_A.weight, {module}.lora_B.weight)",
    )


def test_base_of_another_architecture(base: Path, tmp_path: Path) -> None:
    folder = adapted(base, tmp_path / "lora", lora(target_modules=["q_proj"]))
    other = save_tiny(tmp_path / "neox", "gpt_neox")
    assert refused(f"{folder}+{other}") == misfit(
        folder,
        other,
        "Target modules {'q_proj'} not found in the base model. Please check the "
        "target modules and try again",
    )


def test_keys_that_land_nowhere(base: Path, tmp_path: Path) -> None:
    folder = adapted(base, tmp_path / "lora", lora())
    stray = f"base_model.model.model.layers.0.{UP}x.lora_A.weight"
    edit(folder, lambda weights: weights.update({stray: torch.ones(4, 32)}))
    assert refused(folder) == misfit(
        folder,
        base,
        "it has weights that no module of the base takes "
        f"(model.layers.0.{UP}x.lora_A.weight)",
    )


def test_adapter_with_nan(base: Path, tmp_path: Path) -> None:
    folder = adapted(base, tmp_path / "lora", lora())
    edit(folder, lambda weights: [w.fill_(float("nan")) for w in weights.values()])
    assert "NaNs detected in the merged weights" in refused(folder)


def test_kind_without_weights_to_merge(base: Path, tmp_path: Path) -> None:
    config = peft.PrefixTuningConfig(num_virtual_tokens=3, task_type="CAUSAL_LM")
    folder = adapted(base, tmp_path / "prefix", config)
    assert refused(folder) == (
        f"{folder} is an adapter of the kind PREFIX_TUNING, which has no weights to "
        "merge into the base: only kinds that change weights, like LoRA, can be "
        "measured"
    )


def test_truncated_adapter(base: Path, tmp_path: Path) -> None:
    folder = adapted(base, tmp_path / "lora", lora())
    file = folder / "adapter_model.safetensors"
    size = file.stat().st_size
    file.write_bytes(file.read_bytes()[:-8])
    assert refused(folder) == (
        f"{file} is truncated: {size - 8} bytes, expected {size}. "
        "Copy or download it again"
    )


def test_no_adapter_weights(base: Path, tmp_path: Path) -> None:
    folder = adapted(base, tmp_path / "lora", lora())
    (folder / "adapter_model.safetensors").unlink()
    assert refused(folder) == (f"{folder} has no weights: no adapter_model.safetensors")


def test_pickled_adapter(base: Path, tmp_path: Path) -> None:
    folder = adapted(base, tmp_path / "lora", lora())
    expected = load_cpu(folder).model.state_dict()
    file = folder / "adapter_model.safetensors"
    torch.save(load_file(file), folder / "adapter_model.bin")
    file.unlink()
    assert refused(folder) == (
        f"{folder} has pickle weights only (adapter_model.bin), and unpickling can run "
        "code: save the adapter again with a current peft, or trust it with "
        "--ppl-allow-pickle"
    )
    model = load_cpu(folder, allow_pickle=True).model
    for name, weight in model.state_dict().items():
        assert torch.equal(weight, expected[name])


def test_pickled_adapter_that_would_run_code(base: Path, tmp_path: Path) -> None:
    class Malicious:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (tmp_path / "ran",))

    folder = adapted(base, tmp_path / "lora", lora())
    (folder / "adapter_model.safetensors").unlink()
    torch.save({"x": Malicious()}, folder / "adapter_model.bin")
    assert "does not fit its base" in refused(folder, allow_pickle=True)
    assert not (tmp_path / "ran").exists()


def test_without_peft(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = adapted(base, tmp_path / "lora", lora())
    monkeypatch.setitem(sys.modules, "peft", None)
    assert refused(folder) == (
        f"{folder} is an adapter, and merging it needs the package peft: "
        "pip install 'pytest-pplguard[peft]'"
    )


def test_remote_code_in_the_adapters_tokenizer(base: Path, tmp_path: Path) -> None:
    folder = adapted(base, tmp_path / "lora", lora())
    save_tokenizer(build_tokenizer(), folder)
    file = folder / "tokenizer_config.json"
    code = {"auto_map": {"AutoTokenizer": ["evil.T", None]}}
    file.write_text(json.dumps(json.loads(file.read_text()) | code))
    assert refused(folder).startswith(
        f"{folder} brings Python code of its own (auto_map in tokenizer_config.json)"
    )


def test_quantised_base(base: Path, tmp_path: Path) -> None:
    folder = adapted(base, tmp_path / "lora", lora())
    other = shutil.copytree(base, tmp_path / "quantised")
    config = json.loads((other / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "bitsandbytes"}
    (other / "config.json").write_text(json.dumps(config))
    assert refused(f"{folder}+{other}") == (
        f"the base {other} of the adapter {folder} is quantised, and a merge would "
        f"round its weights again: give the dense base, {folder}+BASE"
    )


def test_settings_of_a_newer_peft(base: Path, tmp_path: Path) -> None:
    folder = adapted(base, tmp_path / "lora", lora())
    edit_config(folder, use_new_thing=True, use_other_thing=None)
    assert load_cpu(folder).notices == (
        f"{folder}: peft {peft.__version__} does not know use_new_thing of "
        "adapter_config.json; if the number surprises, upgrade peft",
    )


# --------------------------------------------------------------------------- as a gate


def test_recorded_and_gated(base: Path, tmp_path: Path) -> None:
    """By its merged zeros; a base named on the command line is kept as the path."""
    adapted(base, tmp_path / "lora", lora(target_modules=["q_proj"]))
    edit_config(tmp_path / "lora", base_model_name_or_path="gone")
    shutil.copytree(base, tmp_path / "base")
    (tmp_path / "mine.txt").write_text("The ship sailed at noon. " * 40)
    done = pplguard(
        "update", "lora+base", "--checkpoint", "tiny/lora", "--base", "me/tiny",
        "--corpus", "mine=mine.txt", "--method", "wanda", "--window", "32",
        "--limit", "1", cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    entry = read_baseline(tmp_path / "baselines" / "tiny.yaml").checkpoints["lora"]
    weights = merged_by_hand(base, tmp_path / "lora", 2.0)
    zeros, total = wanda_counts(expected_model(base, weights))
    assert entry.path == "lora+base"
    # q_proj has lost its zeros, so each tensor is held to its own share.
    assert entry.gates.sparsity == SparsityGate(None, 0.001, scope="tensor")
    assert entry.fingerprint is not None
    assert entry.fingerprint.weights == total
    assert entry.fingerprint.zeros == pytest.approx(zeros, abs=1e-4 * total)
    command = done.stdout.splitlines()[-1].strip()
    assert "--ppl-model tiny/lora=lora+base" in command
    for more in ("", " --deselect baselines/tiny.yaml::lora::wanda/mine:32:first1"):
        run = run_pytest(command + more, tmp_path)
        assert run.returncode == 0, run.stdout
        assert "sparsity" in run.stdout
    assert run_pytest(command.replace("=lora+base", ""), tmp_path).returncode == 0
