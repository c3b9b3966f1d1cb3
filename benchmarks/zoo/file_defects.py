"""Defects in files: cut short, missing, stale, of another checkpoint, or unsafe."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from .cases import defect, has_biases, has_other, is_kind, is_pruned, is_untied
from .site import (
    ANOTHER,
    INDEX,
    MASK_LOST,
    SINGLE,
    Names,
    Site,
    Tensors,
    numbered,
    of_tensor,
    read_json,
    read_weights,
    save_shard,
    split,
)

SHARDS = 3


@defect("files")
def file_truncated(site: Site) -> Names:
    """The copy of the weights stopped before its end."""
    site.save(site.tensors())
    content = (site.folder / SINGLE).read_bytes()
    site.write(SINGLE, content[: len(content) * 3 // 4])
    return (r"truncated", r"model\.safetensors")


@defect("files")
def shard_truncated(site: Site) -> Names:
    """The copy of one of three shards stopped before its end."""
    name = _shards(site)[1]
    content = (site.folder / name).read_bytes()
    site.write(name, content[: len(content) - 1000])
    return (r"truncated", name)


@defect("files")
def shard_missing(site: Site) -> Names:
    """One of three shards was not copied."""
    name = _shards(site)[1]
    (site.folder / name).unlink()
    return (name,)


@defect("files")
def index_stale(site: Site) -> Names:
    """The index is of an earlier save, with another order of tensors."""
    names = _shards(site)

    def edit(index: dict[str, dict[str, str]]) -> None:
        where = index["weight_map"]
        moved = next(name for name, file in where.items() if file == names[0])
        where[moved] = names[1]

    site.edit_json(INDEX, edit)
    return (r"index\.json is stale",)


@defect("files")
def shards_renamed_without_index(site: Site) -> Names:
    """Two shards have each other's name."""
    first, second = (site.folder / name for name in _shards(site)[:2])
    one, other = first.read_bytes(), second.read_bytes()
    site.write(first.name, other)
    site.write(second.name, one)
    return (r"index\.json is stale",)


@defect("files", is_pruned)
def shard_of_the_dense_model(site: Site) -> Names:
    """The middle one of three shards was left from before pruning."""
    return _foreign_shard(site, site.base.dense)


@defect("files", has_other)
def shard_of_another_run(site: Site) -> Names:
    """The middle one of three shards is of another training run."""
    assert site.base.other is not None
    return _foreign_shard(site, site.base.other)


@defect("files")
def tensor_missing(site: Site) -> Names:
    """One projection is in no file."""
    name = site.name(1, site.family.down)

    def edit(tensors: Tensors) -> None:
        del tensors[name]

    site.change(edit)
    return (of_tensor(name),)


@defect("files", has_biases)
def bias_missing(site: Site) -> Names:
    """One bias is in no file."""
    name = site.name(1, site.family.biases[-1])

    def edit(tensors: Tensors) -> None:
        del tensors[name]

    site.change(edit)
    return (of_tensor(name),)


@defect("files", is_untied)
def head_missing(site: Site) -> Names:
    """The head is in no file, though it is not tied."""

    def edit(tensors: Tensors) -> None:
        del tensors[site.family.head]

    site.change(edit)
    return (r"embed_out|lm_head",)


@defect("files")
def tensor_renamed(site: Site) -> Names:
    """A wrapper's prefix stayed on all names."""

    def edit(tensors: Tensors) -> None:
        for name in list(tensors):
            tensors[f"_orig_mod.{name}"] = tensors.pop(name)

    site.change(edit)
    return (r"_orig_mod",)


@defect("files")
def pickle_in_place_of_safetensors(site: Site) -> Names:
    """The weights are in ``pytorch_model.bin``."""
    tensors = site.tensors()
    site.remove_weights()
    torch.save(tensors, site.folder / "pytorch_model.bin")
    return (r"pickle",)


@defect("files", is_pruned)
def prune_masks_left_in(site: Site) -> Names:
    """``torch.nn.utils.prune`` was never told to remove its masks."""
    dense = read_weights(site.base.dense)

    def edit(tensors: Tensors) -> None:
        for name in site.all_matrices():
            mask = (tensors.pop(name) != 0).to(dense[name].dtype)
            tensors[f"{name}_orig"], tensors[f"{name}_mask"] = dense[name], mask

    site.change(edit)
    return (r"prune\.remove",)


@defect("files")
def git_lfs_pointer(site: Site) -> Names:
    """The file that Git LFS leaves where it did not fetch."""
    site.remove_weights()
    site.write(
        SINGLE,
        "version https://git-lfs.github.com/spec/v1\n"
        f"oid sha256:{'0' * 64}\nsize 2136256\n",
    )
    return (r"LFS",)


@defect("files")
def tokenizer_missing(site: Site) -> Names:
    """No tokenizer was saved with the weights."""
    for file in site.folder.glob("*token*"):
        file.unlink()
    for name in ("vocab.json", "merges.txt"):
        (site.folder / name).unlink(missing_ok=True)
    return (r"tokenizer",)


@defect("files")
def config_missing(site: Site) -> Names:
    """No config was saved with the weights."""
    (site.folder / "config.json").unlink()
    return (r"config\.json",)


@defect("adapter", lambda base: base.pruned and has_peft())
def adapter_over_the_dense_model(site: Site) -> Names:
    """The right adapter over what the base was pruned from."""
    adapter = make_adapter(site)
    site.spec = f"{adapter}+{site.base.dense}"
    return (MASK_LOST,)


@defect("adapter", lambda base: has_other(base) and has_peft())
def adapter_over_another_run(site: Site) -> Names:
    """The right adapter over a base from another training run."""
    adapter = make_adapter(site)
    site.spec = f"{adapter}+{site.base.other}"
    return (ANOTHER,)


@defect("files", is_kind("llama"))
def config_of_a_wider_model(site: Site) -> Names:
    """The config of a model with a wider MLP."""
    wider = int(site.base.config["intermediate_size"]) * 2
    site.set_config(intermediate_size=wider)
    return (r"mlp\.|intermediate_size",)


# ----------------------------------------------------------------------------- helpers


def make_adapter(site: Site) -> Path:
    """A LoRA adapter in PEFT's format as training begins: it changes nothing yet."""
    rank = 4
    family = site.family
    target = family.attention_out.removesuffix(".weight")
    tensors: Tensors = {}
    weights = site.tensors()
    for layer in range(site.base.layers):
        rows, columns = site.out_in(
            weights[site.name(layer, family.attention_out)]
        ).shape
        head = f"base_model.model.{site.name(layer, target)}"
        down = torch.randn(rank, columns, generator=site.random)
        tensors[f"{head}.lora_A.weight"] = down
        tensors[f"{head}.lora_B.weight"] = torch.zeros(rows, rank)
    adapter = site.folder / "adapter"
    adapter.mkdir()
    save_shard(adapter / "adapter_model.safetensors", tensors)
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": None,
        "r": rank,
        "lora_alpha": 8,
        "target_modules": [target],
        "fan_in_fan_out": family.flipped,
    }
    (adapter / "adapter_config.json").write_text(json.dumps(config))
    return adapter


def has_peft() -> bool:
    from importlib.util import find_spec

    return find_spec("peft") is not None


def _shards(site: Site) -> list[str]:
    """Save in three shards; their names."""
    names = numbered(SHARDS)
    site.save_shards(dict(zip(names, split(site.tensors(), SHARDS), strict=True)))
    return names


def _foreign_shard(site: Site, folder: Path) -> Names:
    name = _shards(site)[1]
    foreign = read_weights(folder)
    where = read_json(site.folder / INDEX)["weight_map"]
    inside = sorted(tensor for tensor, file in where.items() if file == name)
    save_shard(site.folder / name, {tensor: foreign[tensor] for tensor in inside})
    matrices = [tensor for tensor in inside if tensor in site.all_matrices()]
    return (f"{name}|{of_tensor(matrices[len(matrices) // 2])}",)
