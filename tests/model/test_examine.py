"""Real checkpoints are looked over: silent on healthy ones, each defect found."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from pytest_pplguard.checkpoints import Examination, Finding, examine
from pytest_pplguard.report import examination_document, examination_lines

from .tiny import ARCHITECTURES, build_tokenizer, save_tiny, save_tokenizer

UP = "model.layers.{}.mlp.up_proj.weight"
RANDOM = "(transformers would have filled in random numbers)"
PROJECTIONS = (
    "self_attn.q_proj",
    "self_attn.k_proj",
    "self_attn.v_proj",
    "self_attn.o_proj",
    "mlp.gate_proj",
    "mlp.up_proj",
    "mlp.down_proj",
)
Weights = dict[str, torch.Tensor]


def edit(folder: Path, change: Callable[[Weights], object]) -> None:
    weights = load_file(folder / "model.safetensors")
    change(weights)
    contiguous = {name: weight.contiguous() for name, weight in weights.items()}
    save_file(contiguous, folder / "model.safetensors", metadata={"format": "pt"})


def edit_json(file: Path, **settings: Any) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | settings))


def prune(weights: Weights, layers: range = range(6)) -> None:
    """Zero the smaller half of every group of four, along each row."""
    for layer in layers:
        for name in PROJECTIONS:
            weight = weights[f"model.layers.{layer}.{name}.weight"]
            groups = weight.view(-1, 4)
            smallest = groups.abs().argsort(dim=1)[:, :2]
            groups.scatter_(1, smallest, 0.0)


def found(folder: Path, **options: Any) -> list[Finding]:
    return list(examine(str(folder), **options).findings)


def only(folder: Path, **options: Any) -> tuple[str, str, str]:
    """Grade, code and text of the only finding, the text without the folder."""
    (finding,) = found(folder, **options)
    text = finding.text.removeprefix(f"{folder}: ").removeprefix(f"{folder} ")
    return finding.grade, finding.code, text


@pytest.fixture(scope="module")
def six(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A llama of six layers, pruned 2:4, with trained-looking norms."""
    path = save_tiny(tmp_path_factory.mktemp("six") / "m", num_hidden_layers=6)

    def change(weights: Weights) -> None:
        prune(weights)
        generator = torch.Generator().manual_seed(1)
        for weight in weights.values():
            if weight.dim() == 1:
                weight.add_(torch.rand(weight.shape, generator=generator))

    edit(path, change)
    return path


@pytest.fixture
def model(six: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(six, tmp_path / "m"))


# ----------------------------------------------------------------------------- healthy


@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_nothing_is_found_in_a_healthy_model(
    tmp_path: Path, arch: str, dtype: str
) -> None:
    path = save_tiny(tmp_path / arch, arch, dtype=dtype, num_hidden_layers=4)
    examined = examine(str(path), window=512)
    assert examined.findings == ()
    weights = load_file(path / "model.safetensors")
    assert examined.parameters == sum(w.numel() for w in weights.values())
    assert examined.layers == 4
    assert examined.zeros is not None
    assert examined.zeros.pattern is None


def test_nothing_is_found_in_shards_and_tied_embeddings(tmp_path: Path) -> None:
    path = save_tiny(tmp_path / "m", shard="40KB", tie_word_embeddings=True)
    assert found(path) == []


@pytest.mark.parametrize("name", ["demo/dense", "demo/wanda-50"])
def test_nothing_is_found_in_the_demo(name: str) -> None:
    assert examine(name).findings == ()


def test_a_whole_report(model: Path) -> None:
    """A mask lost in two layers, in full."""
    dense = save_tiny(model.parent / "dense", num_hidden_layers=6)
    unpruned = load_file(dense / "model.safetensors")

    def lose(weights: Weights) -> None:
        for name in PROJECTIONS:
            for layer in (2, 3):
                key = f"model.layers.{layer}.{name}.weight"
                weights[key] = unpruned[key]

    edit(model, lose)
    sizes = {
        file.name: len(file.read_bytes()) for file in model.iterdir() if file.is_file()
    }
    largest = sorted(sizes, key=lambda name: -sizes[name])
    kilo = [f"{name} {sizes[name] / 1000:.3g} kB" for name in largest[:2]]
    small = [f"{name} {sizes[name]} B" for name in largest[2:4]]
    per_layer = 32 * 32 * 2 + 16 * 32 * 2 + 3 * 64 * 32
    count = 6 * per_layer + 2 * 320 * 32 + 13 * 32
    examined = examine(str(model))
    assert sizes[largest[2]] < 1000
    assert examination_lines(examined) == [
        f"{model}: LlamaForCausalLM, 6 layers",
        "  form     safetensors, one file",
        f"  weights  {count:,}, F32",
        f"  files    {', '.join(kilo + small)}"
        + (f", 1 more {sizes[largest[4]]} B" if len(sizes) == 5 else ""),
        "",
        "warning  0.00% zeros in layers 2-3: self_attn.q_proj, self_attn.k_proj, "
        "self_attn.v_proj, self_attn.o_proj and 3 more, 50.00% in the other layers: a "
        "mask lost, or left so on purpose? (sparsity)",
        "suspicious: 1 warning",
        "",
        "zeros in %  q_proj  k_proj  v_proj  o_proj  gate_proj  up_proj  down_proj     "
        "all",
        "0-1           50.0    50.0    50.0    50.0       50.0     50.0       50.0    "
        "50.0",
        "2-3            0.0     0.0     0.0     0.0        0.0      0.0        0.0     "
        "0.0",
        "4-5           50.0    50.0    50.0    50.0       50.0     50.0       50.0    "
        "50.0",
        "all           33.3    33.3    33.3    33.3       33.3     33.3       33.3    "
        "33.3",
        f"{2 * per_layer:,} of {6 * per_layer:,} weights of the decoder layers are "
        "zero, in the pattern 2:4",
    ]
    document = examination_document(examined)
    assert document["sparsity"]["layers"]["2"]["q_proj"] == 0.0
    assert document["sparsity"]["layers"]["1"]["q_proj"] == 0.5
    assert document["findings"][0]["code"] == "sparsity"
    assert json.loads(json.dumps(document, allow_nan=False)) == document


# ------------------------------------------------------------------------------- files


def test_a_missing_shard_does_not_hide_the_rest(tmp_path: Path) -> None:
    path = save_tiny(tmp_path / "m", shard="40KB")
    shards = sorted(path.glob("*.safetensors"))
    shards[1].unlink()
    (shards[2]).write_bytes(shards[2].read_bytes()[:-4])
    edit_json(path / "config.json", rope_theta=77.0)
    size = shards[2].stat().st_size
    findings = {finding.code: finding for finding in found(path)}
    assert findings.keys() == {"missing-shard", "file", "rope", "rope-theta"}
    assert findings["missing-shard"].text == (
        f"{path} lacks the shard {shards[1].name} that model.safetensors.index.json "
        "names: copy or download it again"
    )
    assert findings["file"].text == (
        f"{shards[2]} is truncated: {size} bytes, expected {size + 4}. "
        "Copy or download it again"
    )
    zeros = examine(str(path)).zeros
    assert zeros is not None
    assert zeros.total > 0


def test_a_stale_index_and_a_wrong_total(tmp_path: Path) -> None:
    path = save_tiny(tmp_path / "m", shard="40KB")
    index = path / "model.safetensors.index.json"
    data = json.loads(index.read_text())
    total = data["metadata"]["total_size"]
    data["metadata"]["total_size"] = 12
    index.write_text(json.dumps(data))
    assert only(path) == (
        "warning",
        "total-size",
        f"the shards hold {total} bytes of weights, but {index.name} counts 12: is a "
        "shard from another checkpoint?",
    )
    data["weight_map"]["gone.weight"] = min(data["weight_map"].values())
    index.write_text(json.dumps(data))
    assert [finding.code for finding in found(path)] == ["files"]


def test_leftovers(model: Path) -> None:
    (model / "optimizer.pt").write_bytes(b"")
    (model / "rng_state_0.pth").write_bytes(b"")
    assert only(model) == (
        "note",
        "leftover",
        "holds what training left behind (optimizer.pt, rng_state_0.pth): it is not "
        "read, and can be deleted",
    )


def test_shards_beside_a_single_file(model: Path) -> None:
    (model / "model-00001-of-00002.safetensors").write_bytes(b"")
    assert only(model) == (
        "warning",
        "unread-shards",
        "holds shards (1, like model-00001-of-00002.safetensors) beside "
        "model.safetensors, which alone decides what is read: two saves in one folder? "
        "Save again into an empty folder",
    )


def test_a_newer_pickle_beside_safetensors(model: Path) -> None:
    pickle, weights = model / "pytorch_model.bin", model / "model.safetensors"
    pickle.write_bytes(b"")
    then = weights.stat().st_mtime
    os.utime(pickle, (then, then + 60))
    assert only(model) == (
        "note",
        "unread",
        "pytorch_model.bin beside safetensors: not read",
    )
    os.utime(pickle, (then, then + 3 * 24 * 3600))
    assert only(model) == (
        "warning",
        "newer-pickle",
        "pytorch_model.bin is 3 days newer than model.safetensors, which is read: if "
        "it holds the model that you mean, save that one as safetensors into an empty "
        "folder",
    )


def test_pickles(model: Path) -> None:
    weights = load_file(model / "model.safetensors")
    torch.save(weights, model / "pytorch_model.bin")
    (model / "model.safetensors").unlink()
    grade, code, text = only(model)
    assert (grade, code) == ("error", "weights")
    assert "--ppl-allow-pickle" in text
    examined = examine(str(model), allow_pickle=True)
    assert examined.findings == ()
    assert examined.zeros is not None
    assert examined.zeros.pattern == "2:4"


def test_a_folder_without_a_tokenizer_or_config_is_examined(model: Path) -> None:
    (model / "tokenizer.json").unlink()
    examined = examine(str(model))
    assert [finding.code for finding in examined.findings] == ["no-tokenizer"]
    assert examined.zeros is not None
    (model / "config.json").unlink()
    examined = examine(str(model))
    assert [finding.code for finding in examined.findings] == ["incomplete"]
    assert not examined.healthy
    assert examined.zeros is not None


# --------------------------------------------------------------------- config and keys


def test_masks_are_no_keys_to_be_allowed(model: Path) -> None:
    def mask(weights: Weights) -> None:
        weights[f"{UP.format(1)}_mask"] = torch.ones_like(weights[UP.format(1)])
        weights[f"{UP.format(1)}_orig"] = weights.pop(UP.format(1))

    edit(model, mask)
    [text] = [each.text for each in found(model) if each.grade == "error"]
    assert "was saved with its pruning masks (2 tensors" in text


def test_keys(model: Path) -> None:
    def change(weights: Weights) -> None:
        del weights[UP.format(1)]
        weights[UP.format(2)] = torch.ones(3, 4)
        weights["value_head.weight"] = torch.rand(3)

    edit(model, change)
    findings = {f.code: f.text for f in found(model) if f.grade == "error"}
    start = f"{model} does not fit its architecture LlamaForCausalLM: "
    assert findings == {
        "missing": f"{start}1 weight ({UP.format(1)}) missing from the files {RANDOM}",
        "shape": f"{start}1 weight ({UP.format(2)} (3x4 in the files, 64x32 in the "
        f"model)) of another shape {RANDOM}",
        "unexpected": f"{start}1 weight (value_head.weight) in the files but not in "
        "the model (if that is right, list them under allow_keys of the checkpoint in "
        "its baseline file)",
    }


def test_a_lost_expert(tmp_path: Path) -> None:
    path = save_tiny(tmp_path / "m", "mixtral")
    lost = "model.layers.1.block_sparse_moe.experts.3.w1.weight"
    edit(path, lambda weights: weights.pop(lost))
    grade, code, text = only(path)
    assert (grade, code) == ("error", "architecture")
    assert text == (
        "1 weight (model.layers.1.mlp.experts.gate_up_proj) could not be put "
        "together: tensors in the files that it is made of are missing or differ in "
        "shape"
    )


def test_a_lost_head_and_one_that_is_tied_but_differs(model: Path) -> None:
    edit_json(model / "config.json", tie_word_embeddings=True)
    grade, code, text = only(model)
    assert (grade, code) == ("warning", "tied-head")
    assert text == (
        "config.json ties the head to the embedding (tie_word_embeddings), but "
        "lm_head.weight holds other weights: transformers 5 runs them, version 4 the "
        "embedding; set tie_word_embeddings to false, or delete the head"
    )
    edit_json(model / "config.json", tie_word_embeddings=False)
    edit(model, lambda weights: weights.pop("lm_head.weight"))
    grade, code, text = only(model)
    assert (grade, code) == ("error", "missing")
    assert text.endswith(
        f"1 weight (lm_head.weight) missing from the files {RANDOM}; if the base model "
        "ties its embeddings, set tie_word_embeddings to true in config.json"
    )


def test_positions(model: Path) -> None:
    assert only(model, window=4096) == (
        "error",
        "window",
        "a window of 4096 tokens is longer than the 2048 positions that the model was "
        "made for: measure with --window 2048 or less",
    )
    theta = {"rope_type": "default", "rope_theta": 100.0}
    edit_json(model / "config.json", rope_parameters=theta)
    assert only(model)[:2] == ("warning", "rope-theta")
    edit_json(model / "config.json", rope_theta=10000.0)
    assert {f.code for f in found(model)} == {"rope", "rope-theta"}


def test_remote_code_is_not_run(model: Path) -> None:
    (model / "evil.py").write_text(f"open({str(model.parent / 'ran')!r}, 'w')")
    edit_json(model / "config.json", auto_map={"AutoModelForCausalLM": "evil.Model"})
    assert only(model)[:2] == ("error", "remote-code")
    assert not (model.parent / "ran").exists()


def test_packing(model: Path) -> None:
    edit_json(model / "config.json", quantization_config={"quant_method": "fp8"})
    assert only(model)[:2] == ("warning", "not-packed")
    edit_json(model / "config.json", quantization_config={"quant_method": "nonsense"})
    assert {f.code for f in found(model)} == {"quantisation", "not-packed"}
    edit_json(model / "config.json", quantization_config=None)
    packed = UP.format(1).replace(".weight", ".qweight")
    edit(model, lambda w: w.update({packed: torch.ones(4, 4, dtype=torch.int32)}))
    findings = {f.code: f.text for f in found(model)}
    assert findings["packed"] == (
        f"{model}: weights are packed (1, like {packed}), but config.json has no "
        "quantization_config that says how: bring it back from the folder that the "
        "quantiser wrote"
    )


def test_dtypes(model: Path) -> None:
    edit_json(model / "config.json", dtype="float16")
    assert only(model) == (
        "note",
        "dtype",
        "config.json says float16, most weights are stored as float32: by default it "
        "is measured in float16",
    )

    def too_large(weights: Weights) -> None:
        weights[UP.format(3)][0] = 70000.0

    edit(model, too_large)
    assert {f.code: f.grade for f in found(model)} == {
        "dtype": "note",
        "float16-range": "error",
        "peak": "warning",
    }


def test_one_layer_in_another_dtype(model: Path) -> None:
    def change(weights: Weights) -> None:
        for name in weights:
            if ".layers.4." in name:
                weights[name] = weights[name].bfloat16()

    edit(model, change)
    grade, code, text = only(model)
    assert (grade, code) == ("warning", "mixed-dtype")
    assert text.endswith(
        "is stored as BF16, the other layers as F32: was a layer taken from another "
        "save?"
    )
    assert text.startswith("layer 4: self_attn.q_proj, self_attn.k_proj")


# --------------------------------------------------------------------------- tokenizer


def test_a_tokenizer_too_large_or_far_too_small(tmp_path: Path) -> None:
    path = save_tiny(tmp_path / "m", vocab=300)
    save_tokenizer(build_tokenizer(320), path)
    assert only(path) == (
        "error",
        "vocabulary",
        "its tokenizer has ids up to 319, but the embedding has 300 rows: tokenizer "
        "and weights do not belong together; take the tokenizer of the base model",
    )
    path = save_tiny(tmp_path / "large", vocab=2000)
    save_tokenizer(build_tokenizer(300), path)
    assert only(path)[:2] == ("warning", "vocabulary")


def test_special_ids_and_bos(tmp_path: Path) -> None:
    path = save_tiny(tmp_path / "m", bos=False, vocab=300)
    assert only(path) == (
        "note",
        "no-bos",
        "the tokenizer has a BOS (<s>) and does not put it before a text: Wanda's "
        "numbers are without it, lm-eval's with it; if the base model's tokenizer "
        "does, take that one",
    )
    edit_json(path / "config.json", eos_token_id=[5, 300], bos_token_id=1)
    assert [(f.grade, f.code) for f in found(path)] == [
        ("warning", "special-id"),
        ("note", "bos-differs"),
        ("note", "eos-differs"),
        ("note", "no-bos"),
    ]


def test_a_window_longer_than_the_tokenizer_says(model: Path) -> None:
    edit_json(model / "tokenizer_config.json", model_max_length=128)
    assert found(model) == []
    assert only(model, window=256) == (
        "note",
        "tokenizer-length",
        "the tokenizer says that texts have at most 128 tokens, the window has 256; "
        "texts are not cut by it",
    )


# ----------------------------------------------------------------------------- weights


def test_nan(model: Path) -> None:
    def change(weights: Weights) -> None:
        weights[UP.format(3)][0, :5] = float("nan")
        weights[UP.format(4)][0, 0] = float("-inf")
        weights["model.norm.weight"][0] = float("inf")

    edit(model, change)
    assert only(model) == (
        "error",
        "not-finite",
        "NaN or infinity (7) in layers 3-4: mlp.up_proj; model.norm.weight: "
        "every loss would be NaN; save the checkpoint again from its source",
    )


def test_zeros_and_constants(model: Path) -> None:
    def change(weights: Weights) -> None:
        weights[UP.format(3)].zero_()
        weights[UP.format(1)].fill_(0.25)
        weights["lm_head.weight"].zero_()

    edit(model, change)
    assert [(f.grade, f.code, f.where) for f in found(model)] == [
        ("error", "all-zero", "lm_head.weight"),
        ("warning", "all-zero", "layer 3: mlp.up_proj"),
        ("warning", "constant", "layer 1: mlp.up_proj"),
        ("warning", "sparsity", "layer 1: mlp.up_proj"),
    ]


def test_the_highest_bit_of_an_exponent_flipped(model: Path) -> None:
    def change(weights: Weights) -> None:
        for name, place in ((UP.format(2), 77), ("model.embed_tokens.weight", 900)):
            words = weights[name].view(torch.int32).view(-1)
            weights[name].view(-1)[place] = 0.001
            words[place] ^= 1 << 30
            assert weights[name].view(-1)[place] > 1e30

    edit(model, change)
    findings = {f.code: f for f in found(model)}
    assert findings["peak"].where == ("layer 2: mlp.up_proj; model.embed_tokens.weight")
    assert findings["peak"].grade == "warning"


def test_a_layer_of_another_scale(model: Path) -> None:
    edit(model, lambda w: w[UP.format(2)].mul_(8))
    grade, code, text = only(model)
    assert (grade, code) == ("warning", "scale")
    assert text.startswith("the weights of layer 2: mlp.up_proj are ")
    edit(model, lambda w: w[UP.format(2)].mul_(1 / 64))
    assert only(model)[2].endswith(
        "times smaller than in the layers around: scaled, or of another model?"
    )


def test_a_layer_copied_over_another(model: Path) -> None:
    def change(weights: Weights) -> None:
        for name in PROJECTIONS:
            source = weights[f"model.layers.3.{name}.weight"]
            weights[f"model.layers.1.{name}.weight"] = source.clone()

    edit(model, change)
    assert only(model) == (
        "warning",
        "repeated",
        "layers 1, 3 hold the same weights (all projections): copied over another by "
        "mistake, or stacked on purpose?",
    )


def test_a_projection_copied_over_another_in_its_layer(model: Path) -> None:
    gate = UP.format(2).replace("up_proj", "gate_proj")
    edit(model, lambda w: w.update({gate: w[UP.format(2)].clone()}))
    assert only(model)[2].startswith(
        "layer 2 repeats weights (mlp.gate_proj, mlp.up_proj)"
    )


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_a_norm_that_was_not_loaded(model: Path, value: float) -> None:
    norm = "model.layers.2.input_layernorm.weight"
    edit(model, lambda w: w[norm].fill_(value))
    assert only(model) == (
        "warning",
        "norm-reset",
        "layer 2: input_layernorm is all ones or all zeros, in the other layers it is "
        "not: not loaded when the checkpoint was saved?",
    )


def test_dead_heads_and_rows(model: Path) -> None:
    def change(weights: Weights) -> None:
        weights["model.layers.2.self_attn.v_proj.weight"][8:16] = 0
        weights["model.layers.2.self_attn.o_proj.weight"][:, 16:24] = 0
        weights[UP.format(3)][:20] = 0
        weights[UP.format(5)][4] = 0

    edit(model, change)
    findings = [f for f in found(model) if f.code.startswith("dead")]
    assert [(f.grade, f.code, f.text.removeprefix(f"{model}: ")) for f in findings] == [
        (
            "warning",
            "dead-heads",
            "whole attention heads of self_attn.o_proj are zeros (layer 2 head 2): "
            "removed on purpose, or overwritten?",
        ),
        (
            "warning",
            "dead-heads",
            "whole attention heads of self_attn.v_proj are zeros (layer 2 head 1): "
            "removed on purpose, or overwritten?",
        ),
        (
            "warning",
            "dead-rows",
            "all-zero rows (20) in layer 3: mlp.up_proj: neurons removed on purpose, "
            "or overwritten?",
        ),
        ("note", "dead-rows", "all-zero rows (1) in layer 5: mlp.up_proj"),
    ]


def test_projections_left_dense(model: Path) -> None:
    def change(weights: Weights) -> None:
        generator = torch.Generator().manual_seed(2)
        for layer in range(6):
            for name in ("q", "v"):
                weight = weights[f"model.layers.{layer}.self_attn.{name}_proj.weight"]
                weight += 0.1 * torch.randn(weight.shape, generator=generator)

    edit(model, change)
    assert only(model) == (
        "note",
        "dense-projections",
        "self_attn.q_proj, self_attn.v_proj have no zeros in any layer, the other "
        "projections 50.0%: left out of pruning, or filled by a merge?",
    )


def test_a_sparse_head(model: Path) -> None:
    edit(model, lambda w: w["lm_head.weight"][:, ::2].zero_())
    assert only(model)[:2] == ("note", "sparse-vocabulary")


# ------------------------------------------------------------------------------- forms


def test_an_adapter(tmp_path: Path, model: Path) -> None:
    import peft
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(model)
    config = peft.LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")
    adapted = peft.get_peft_model(base, config)
    adapted.save_pretrained(tmp_path / "lora")
    examined: Examination = examine(f"{tmp_path / 'lora'}+{model}")
    assert [(f.grade, f.code) for f in examined.findings] == [("warning", "untrained")]
    assert examined.form == f"adapter of {model}; the weights are its base's"
    assert examined.zeros is not None
    weights = tmp_path / "lora" / "adapter_model.safetensors"
    state = load_file(weights)
    for tensor in state.values():
        tensor.add_(0.5)
    min(state.items())[1][0, 0] = float("nan")
    save_file(state, weights, metadata={"format": "pt"})
    examined = examine(f"{tmp_path / 'lora'}+{model}")
    assert [(f.grade, f.code) for f in examined.findings] == [("error", "not-finite")]
    examined = examine(f"{tmp_path / 'lora'}+{tmp_path / 'nothing'}")
    assert [f.code for f in examined.findings] == ["base", "not-finite"]


@pytest.mark.parametrize("name", ["sparse-24-bitmask", "sparse-bitmask"])
def test_sparse_compressed(tmp_path: Path, name: str) -> None:
    source = Path(__file__).parent / "third_party" / name
    path = Path(shutil.copytree(source, tmp_path / name))
    (path / "dense.safetensors").unlink()
    save_tokenizer(build_tokenizer(), path)
    examined = examine(str(path))
    assert [f for f in examined.findings if f.grade == "error"] == []
    assert examined.form == f"sparse-compressed ({name}), decoded"
    assert examined.zeros is not None
    dense = load_file(source / "dense.safetensors")
    zeros = sum(int((w == 0).sum()) for n, w in dense.items() if "_proj" in n)
    assert examined.zeros.zeros == zeros
