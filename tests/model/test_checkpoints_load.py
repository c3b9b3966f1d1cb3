"""Real checkpoints load strictly: whole and fitting, or a clear error."""

from __future__ import annotations

import json
import logging
import shutil
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn.utils import prune

from pytest_pplguard.checkpoints import (
    Loaded,
    Located,
    load,
    locate,
    measure_sparsity,
    saved_dtype,
)
from pytest_pplguard.errors import CheckpointError, DeviceError

from .tiny import (
    ARCHITECTURES,
    TRANSFORMERS_4,
    build_model,
    build_tokenizer,
    save_tiny,
    save_tokenizer,
)

UP = "model.layers.1.mlp.up_proj.weight"
RANDOM = "(transformers would have filled in random numbers)"
Weights = dict[str, torch.Tensor]


def load_cpu(folder: Path, **options: Any) -> Loaded:
    located = locate(str(folder))
    return load(located, device="cpu", dtype="float32", **options)


def refused(folder: Path, **options: Any) -> str:
    with pytest.raises(CheckpointError) as caught:
        load_cpu(folder, **options)
    return str(caught.value)


def edit(folder: Path, change: Callable[[Weights], object]) -> None:
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def edit_config(folder: Path, **settings: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_loads_what_was_saved(tmp_path: Path, arch: str) -> None:
    path = save_tiny(tmp_path / arch, arch, dtype="bfloat16")
    assert saved_dtype(Located("m", path)) == "bfloat16"
    loaded = load_cpu(path)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        expected = build_model(arch)
    for parameter in expected.parameters():  # not buffers: nobody saves them
        parameter.data = parameter.bfloat16().float()
    ids = torch.tensor([loaded.tokenizer("Hello, wörld \n\n 😀")["input_ids"]])
    assert ids[0, 0] == 0
    with torch.inference_mode():
        logits = loaded.model(ids).logits
        assert torch.equal(logits, expected(ids).logits)
    assert 0.5 < float(logits.std()) < 10
    assert (loaded.device, loaded.dtype) == ("cpu", "float32")
    assert loaded.attention in ("sdpa", "eager")
    assert not loaded.model.training
    assert not any(p.requires_grad for p in loaded.model.parameters())


def test_shards_load_the_same(tmp_path: Path) -> None:
    whole = load_cpu(save_tiny(tmp_path / "whole", bos=False))
    shards = load_cpu(save_tiny(tmp_path / "shards", bos=False, shard="40KB"))
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 1
    for (name, a), (other, b) in zip(
        whole.model.named_parameters(), shards.model.named_parameters(), strict=True
    ):
        assert name == other
        assert torch.equal(a, b)
    assert whole.tokenizer("ab")["input_ids"][0] != 0


def test_attention_and_dtype_that_were_asked_for(tmp_path: Path) -> None:
    located = locate(str(save_tiny(tmp_path / "m")))
    loaded = load(located, device="cpu", dtype="bfloat16", attention="eager")
    assert (loaded.dtype, loaded.attention) == ("bfloat16", "eager")


def test_unknown_attention(tmp_path: Path) -> None:
    path = save_tiny(tmp_path / "m")
    assert refused(path, attention="eagr").startswith(
        f"{path} could not be loaded: ValueError: Specified "
        '`attn_implementation="eagr"` is not supported.'
    )


def test_missing_key(tmp_path: Path) -> None:
    path = save_tiny(tmp_path / "m")
    edit(path, lambda weights: weights.pop(UP))
    assert refused(path, allow_keys=["*"]) == (
        f"{path} does not fit its architecture LlamaForCausalLM: "
        f"1 weight ({UP}) missing from the files {RANDOM}"
    )


def test_many_missing_keys_are_counted(tmp_path: Path) -> None:
    path = save_tiny(tmp_path / "m")
    edit_config(path, num_hidden_layers=3)
    layer = "model.layers.2"
    assert refused(path) == (
        f"{path} does not fit its architecture LlamaForCausalLM: 9 weights "
        f"({layer}.input_layernorm.weight, {layer}.mlp.down_proj.weight, "
        f"{layer}.mlp.gate_proj.weight, {layer}.mlp.up_proj.weight, "
        f"{layer}.post_attention_layernorm.weight, ...) missing from the files {RANDOM}"
    )


def test_names_that_a_wrapper_left_are_told_from_others(tmp_path: Path) -> None:
    path = save_tiny(tmp_path / "m")

    def wrap(weights: dict[str, torch.Tensor]) -> None:
        weights[UP.replace("model.", "model._orig_mod.")] = weights.pop(UP)

    edit(path, wrap)
    wrapped = UP.replace("model.", "model._orig_mod.")
    assert refused(path) == (
        f"{path} does not fit its architecture LlamaForCausalLM: "
        f"1 weight ({UP}) missing from the files {RANDOM}; "
        f"1 weight ({wrapped}) in the files but not in the model (_orig_mod. in their "
        "names is left of torch.compile: save the model inside it)"
    )


def test_unexpected_key_and_the_list_that_allows_it(tmp_path: Path) -> None:
    path = save_tiny(tmp_path / "m")
    edit(path, lambda weights: weights.update({"value_head.weight": torch.ones(3)}))
    message = (
        f"{path} does not fit its architecture LlamaForCausalLM: "
        "1 weight (value_head.weight) in the files but not in the model (if that is "
        "right, list them under allow_keys of the checkpoint in its baseline file)"
    )
    assert refused(path) == message
    assert refused(path, allow_keys=["head.*"]) == message
    load_cpu(path, allow_keys=["value_head.*"])


def shapes(saved: str, wanted: str) -> str:
    if TRANSFORMERS_4:  # it gives the names alone
        return ""
    return f" ({saved} in the files, {wanted} in the model)"


def test_wrong_shape(tmp_path: Path) -> None:
    path = save_tiny(tmp_path / "m")
    edit(path, lambda weights: weights.update({UP: torch.ones(3, 4)}))
    assert refused(path) == (
        f"{path} does not fit its architecture LlamaForCausalLM: 1 weight "
        f"({UP}{shapes('3x4', '64x32')}) of another shape {RANDOM}"
    )


@pytest.mark.parametrize("lost", [["w1"], ["w1", "w2", "w3"]])
def test_lost_expert(tmp_path: Path, lost: list[str]) -> None:
    path = save_tiny(tmp_path / "m", "mixtral")
    expert = "model.layers.1.block_sparse_moe.experts.3"
    edit(path, lambda w: [w.pop(f"{expert}.{name}.weight") for name in lost])
    message = refused(path)
    assert message.startswith(str(path))
    # transformers 5 makes one parameter of all experts.
    first = f"{expert}.w1.weight" if TRANSFORMERS_4 else "mlp.experts.gate_up_proj"
    assert first in message


def test_tied_head_is_not_missing(tmp_path: Path) -> None:
    path = save_tiny(tmp_path / "m", tie_word_embeddings=True)
    assert "lm_head.weight" not in load_file(path / "model.safetensors")
    model = load_cpu(path).model
    assert model.lm_head.weight is model.get_input_embeddings().weight


def test_old_buffers_are_not_unexpected(tmp_path: Path) -> None:
    path = save_tiny(tmp_path / "m", "gpt_neox")
    attention = "gpt_neox.layers.0.attention"
    old = {
        f"{attention}.bias": torch.ones(1, 1, 4, 4, dtype=torch.bool),
        f"{attention}.masked_bias": torch.tensor(-1e9),
        f"{attention}.rotary_emb.inv_freq": torch.ones(2),
    }
    edit(path, lambda weights: weights.update(old))
    load_cpu(path)


def test_torch_prune_without_remove(tmp_path: Path) -> None:
    random_unstructured: Any = prune.random_unstructured
    model = build_model("llama")
    for layer in model.model.layers:
        random_unstructured(layer.mlp.up_proj, "weight", amount=0.5)
    model.save_pretrained(tmp_path / "m")
    save_tokenizer(build_tokenizer(), tmp_path / "m")
    assert refused(tmp_path / "m") == (
        f"{tmp_path / 'm'} was saved with its pruning masks (4 tensors like "
        "model.layers.0.mlp.up_proj.weight_mask): call "
        "torch.nn.utils.prune.remove(module, 'weight') on every pruned module, then "
        "save again"
    )


def test_torch_prune_without_remove_in_a_pickle(tmp_path: Path) -> None:
    random_unstructured: Any = prune.random_unstructured
    path = save_tiny(tmp_path / "m")
    model = build_model("llama")
    for layer in model.model.layers:
        random_unstructured(layer.mlp.up_proj, "weight", amount=0.5)
    torch.save(model.state_dict(), path / "pytorch_model.bin")
    (path / "model.safetensors").unlink()
    assert refused(path, allow_pickle=True) == (
        f"{path} was saved with its pruning masks (4 tensors like "
        "model.layers.0.mlp.up_proj.weight_mask): call "
        "torch.nn.utils.prune.remove(module, 'weight') on every pruned module, then "
        "save again"
    )


def test_torch_prune_with_remove(tmp_path: Path) -> None:
    random_unstructured: Any = prune.random_unstructured
    remove: Any = prune.remove
    model = build_model("llama")
    for layer in model.model.layers:
        random_unstructured(layer.mlp.up_proj, "weight", amount=0.5)
        remove(layer.mlp.up_proj, "weight")
    model.save_pretrained(tmp_path / "m")
    save_tokenizer(build_tokenizer(), tmp_path / "m")
    loaded = load_cpu(tmp_path / "m").model
    assert torch.equal(loaded.get_parameter(UP), model.get_parameter(UP))
    assert int((loaded.get_parameter(UP) == 0).sum()) == 64 * 32 // 2


def two_shards(path: Path, **options: Any) -> list[Path]:
    return sorted(save_tiny(path, shard="80KB", **options).glob("*.safetensors"))


def test_shard_of_a_checkpoint_of_another_shape(tmp_path: Path) -> None:
    shards = two_shards(tmp_path / "m")
    others = two_shards(tmp_path / "wide", intermediate_size=60)
    assert [shard.name for shard in shards] == [shard.name for shard in others]
    shutil.copy(others[-1], shards[-1])
    mlp = "model.layers.1.mlp"
    assert refused(tmp_path / "m") == (
        f"{tmp_path / 'm'} does not fit its architecture LlamaForCausalLM: 3 weights "
        f"({mlp}.down_proj.weight{shapes('32x60', '32x64')}, "
        f"{mlp}.gate_proj.weight{shapes('60x32', '64x32')}, "
        f"{mlp}.up_proj.weight{shapes('60x32', '64x32')}) of another shape {RANDOM}"
    )


def test_shard_of_a_checkpoint_with_other_layers(tmp_path: Path) -> None:
    shards = two_shards(tmp_path / "m")
    others = two_shards(tmp_path / "deep", num_hidden_layers=3)
    shutil.copy(others[-1], shards[-1])
    assert refused(tmp_path / "m") == (
        f"{tmp_path / 'm' / 'model.safetensors.index.json'} is stale: it says that "
        "model.layers.1.input_layernorm.weight is in model-00002-of-00002.safetensors, "
        "but no shard has it. Save the checkpoint again into an empty folder"
    )


def test_shard_of_a_checkpoint_in_another_dtype(tmp_path: Path) -> None:
    """Names and shapes fit: all that shows is the size."""
    shards = two_shards(tmp_path / "m")
    weights = load_file(shards[-1])
    half = {name: weight.half() for name, weight in weights.items()}
    save_file(half, shards[-1], metadata={"format": "pt"})
    bytes_of = [
        w.numel() * w.element_size() for s in shards for w in load_file(s).values()
    ]
    index = json.loads((tmp_path / "m" / "model.safetensors.index.json").read_text())
    assert load_cpu(tmp_path / "m").notices == (
        f"{tmp_path / 'm'}: the shards hold {sum(bytes_of)} bytes of weights, but "
        f"model.safetensors.index.json counts {index['metadata']['total_size']}: is a "
        "shard from another checkpoint?",
    )


@pytest.mark.parametrize(
    ("scaling", "factor"), [(None, 1.0), ({"type": "linear", "factor": 2.0}, 2.0)]
)
def test_positions_of_a_version_4_config(
    tmp_path: Path, scaling: dict[str, Any] | None, factor: float
) -> None:
    path = save_tiny(tmp_path / "m")
    file = path / "config.json"
    config = json.loads(file.read_text())
    config.pop("rope_parameters", None)
    file.write_text(
        json.dumps(config | {"rope_theta": 500000.0, "rope_scaling": scaling})
    )
    model: Any = load_cpu(path).model
    expected = 500000.0 ** (-torch.arange(0, 8, 2) / 8) / factor
    torch.testing.assert_close(model.model.rotary_emb.inv_freq, expected)


def test_positions_that_contradict_each_other(tmp_path: Path) -> None:
    path = save_tiny(tmp_path / "m")
    new = {"rope_theta": 500000.0, "rope_type": "default"}
    edit_config(path, rope_theta=10000.0, rope_parameters=new)
    message = refused(path)
    assert "rope_theta is 10000.0" in message
    assert "rope_parameters (of transformers 5) says 500000.0" in message


def test_truncated_shard(tmp_path: Path) -> None:
    path = save_tiny(tmp_path / "m", shard="40KB")
    shard = max(path.glob("*.safetensors"))
    size = shard.stat().st_size
    shard.write_bytes(shard.read_bytes()[:-100])
    assert refused(path) == (
        f"{shard} is truncated: {size - 100} bytes, expected {size}. "
        "Copy or download it again"
    )


def test_missing_shard(tmp_path: Path) -> None:
    path = save_tiny(tmp_path / "m", shard="40KB")
    shard = max(path.glob("*.safetensors"))
    shard.unlink()
    assert refused(path) == (
        f"{path} lacks the shard {shard.name} that model.safetensors.index.json "
        "names: copy or download it again"
    )


def test_pickle_weights(tmp_path: Path) -> None:
    path = save_tiny(tmp_path / "m")
    weights = load_file(path / "model.safetensors")
    torch.save(weights, path / "pytorch_model.bin")
    (path / "model.safetensors").unlink()
    assert "--ppl-allow-pickle" in refused(path)
    loaded = load_cpu(path, allow_pickle=True)
    assert torch.equal(loaded.model.get_parameter(UP), weights[UP])


def test_sparsity_of_pickle_weights(tmp_path: Path) -> None:
    path = save_tiny(tmp_path / "m")
    edit(path, lambda weights: weights[UP].zero_())
    weights = load_file(path / "model.safetensors")
    expected = measure_sparsity(locate(str(path)))
    assert expected.zeros == weights[UP].numel()
    torch.save(weights, path / "pytorch_model.bin")
    (path / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="--ppl-allow-pickle"):
        measure_sparsity(locate(str(path)))
    assert expected == measure_sparsity(
        locate(str(path)),
        model=lambda: load_cpu(path, allow_pickle=True).model,
        allow_pickle=True,
    )


def test_pickle_that_would_run_code(tmp_path: Path) -> None:
    class Malicious:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (tmp_path / "ran",))

    path = save_tiny(tmp_path / "m")
    (path / "model.safetensors").unlink()
    torch.save({UP: Malicious()}, path / "pytorch_model.bin")
    assert refused(path, allow_pickle=True).startswith(f"{path} could not be loaded: ")
    assert not (tmp_path / "ran").exists()


def test_tokenizer_larger_than_the_embedding(tmp_path: Path) -> None:
    path = save_tiny(tmp_path / "m", vocab=300)
    save_tokenizer(build_tokenizer(320), path)
    assert refused(path) == (
        f"{path}: its tokenizer has ids up to 319, but the model's embedding has 300 "
        "rows: tokenizer and weights do not belong together"
    )


def test_broken_tokenizer(tmp_path: Path) -> None:
    path = save_tiny(tmp_path / "m")
    (path / "tokenizer.json").write_text('{"version": "1.0"}')
    assert refused(path).startswith(f"{path}: its tokenizer could not be loaded: ")


@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json"])
def test_remote_code(tmp_path: Path, name: str) -> None:
    path = save_tiny(tmp_path / "m")
    (path / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    file = path / name
    code = {"AutoModelForCausalLM": "evil.Model", "AutoTokenizer": ["evil.T", None]}
    file.write_text(json.dumps(json.loads(file.read_text()) | {"auto_map": code}))
    assert refused(path) == (
        f"{path} brings Python code of its own (auto_map in {name}): trust and run it "
        "with --ppl-trust-remote-code, or delete auto_map if transformers knows the "
        "architecture"
    )
    assert not (tmp_path / "ran").exists()


def test_weight_file_named_by_the_config(tmp_path: Path) -> None:
    path = save_tiny(tmp_path / "m")
    edit_config(path, transformers_weights="other.safetensors")
    assert refused(path) == (
        f"{path}: config.json names its own weight file (transformers_weights), which "
        "is not supported: use model.safetensors"
    )


def test_unknown_architecture(tmp_path: Path) -> None:
    path = save_tiny(tmp_path / "m")
    edit_config(path, model_type="lama")
    assert "could not be loaded: " in refused(path)
    assert "`lama`" in refused(path)


def test_config_that_is_no_json(tmp_path: Path) -> None:
    path = save_tiny(tmp_path / "m")
    (path / "config.json").write_text("{")
    assert refused(path).startswith(f"{path / 'config.json'} is not valid JSON: ")


def test_out_of_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import transformers

    def exhausted(*args: object, **options: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate ...")

    path = save_tiny(tmp_path / "m")
    monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", exhausted)
    with pytest.raises(DeviceError) as caught:
        load(locate(str(path)), device="cuda:1", dtype="float16")
    assert str(caught.value) == (
        f"out of memory: {path} does not fit on cuda:1 in float16. Way out: free the "
        "device, --ppl-dtype bfloat16, or another --ppl-device"
    )


def test_loading_is_silent_and_leaves_logging_as_it_was(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    from transformers.utils import logging as transformers_logging

    path = save_tiny(tmp_path / "m")
    edit(path, lambda weights: weights.update({"extra": torch.ones(1)}))
    capfd.readouterr()
    logger = logging.getLogger("transformers")
    before = (list(logger.handlers), logger.level, logger.propagate)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        load_cpu(path, allow_keys=["extra"])
        assert "1 weight" in refused(path)
    assert not caught
    assert capfd.readouterr() == ("", "")
    assert (list(logger.handlers), logger.level, logger.propagate) == before
    assert transformers_logging.is_progress_bar_enabled()


def test_random_state_is_left_alone(tmp_path: Path) -> None:
    torch.manual_seed(7)
    expected = torch.get_rng_state()
    load_cpu(save_tiny(tmp_path / "m"))
    assert torch.equal(torch.get_rng_state(), expected)


def test_gguf_without_its_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "m.gguf").write_bytes(b"GGUF")
    monkeypatch.setitem(sys.modules, "gguf", None)
    assert refused(tmp_path / "m.gguf") == (
        "reading GGUF files needs the package gguf: pip install 'pytest-pplguard[gguf]'"
    )
