"""Harmless changes: nothing that a checkpoint computes is different."""

from __future__ import annotations

import json
import os
import struct
from pathlib import Path
from typing import Any

import torch

from .cases import (
    harmless,
    has_rope,
    is_kind,
    is_pruned,
    is_tied,
)
from .file_defects import has_peft, make_adapter
from .site import SINGLE, Site, Tensors, numbered, read_json, split

# ------------------------------------------------------------------------------- files


@harmless("files")
def saved_in_three_shards(site: Site) -> None:
    """One file became three."""
    site.save_shards(dict(zip(numbered(3), split(site.tensors(), 3), strict=True)))


@harmless("files")
def shards_joined_again(site: Site) -> None:
    """Three shards, and back into one file."""
    site.save_shards(dict(zip(numbered(3), split(site.tensors(), 3), strict=True)))
    site.save(site.tensors())


@harmless("files")
def shard_under_another_name(site: Site) -> None:
    """Shards with names of one's own, and an index that knows them."""
    names = ("first.safetensors", "weights-b.safetensors")
    site.save_shards(dict(zip(names, split(site.tensors(), 2), strict=True)))


@harmless("files")
def shards_by_kind(site: Site) -> None:
    """Norms, embeddings and matrices in files of their own."""
    parts: dict[str, Tensors] = {"a.safetensors": {}, "b.safetensors": {}}
    for name, tensor in site.tensors().items():
        parts["a.safetensors" if tensor.dim() == 1 else "b.safetensors"][name] = tensor
    site.save_shards(parts)


@harmless("files")
def header_metadata_added(site: Site) -> None:
    """Notes in the header of the safetensors file."""
    site.save(site.tensors(), {"format": "pt", "made_by": "someone", "step": "1000"})


@harmless("files")
def tensors_in_another_order(site: Site) -> None:
    """The bytes of the tensors lie in the file from the last name to the first."""
    site.save(site.tensors())
    path = site.folder / SINGLE
    content = path.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    header, data = json.loads(content[8 : 8 + length]), content[8 + length :]
    body, entries = b"", {"__metadata__": header.pop("__metadata__", {"format": "pt"})}
    for name in sorted(header, reverse=True):
        begin, end = header[name]["data_offsets"]
        place = [len(body), len(body) + end - begin]
        entries[name] = {**header[name], "data_offsets": place}
        body += data[begin:end]
    text = json.dumps(entries).encode()
    text += b" " * (-len(text) % 8)
    site.write(SINGLE, struct.pack("<Q", len(text)) + text + body)


@harmless("files")
def saved_again_by_transformers(site: Site) -> None:
    """Loaded and saved, weights, config and tokenizer."""
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    logging.disable_progress_bar()
    model = AutoModelForCausalLM.from_pretrained(site.base.folder)
    site.remove_weights()
    for file in list(site.folder.iterdir()):
        file.unlink()
    model.save_pretrained(site.folder)
    AutoTokenizer.from_pretrained(site.base.folder).save_pretrained(site.folder)


@harmless("files")
def saved_again_in_small_shards(site: Site) -> None:
    """Loaded and saved with a small ``max_shard_size``."""
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    model = AutoModelForCausalLM.from_pretrained(site.base.folder)
    site.remove_weights()
    size = sum(one.numel() * one.element_size() for one in model.parameters())
    model.save_pretrained(site.folder, max_shard_size=size // 3)


@harmless("files")
def files_added(site: Site) -> None:
    """A README, a picture, a training state, a git folder."""
    site.write("README.md", "# A model\n")
    site.write("loss.png", b"\x89PNG\r\n")
    site.write_json("trainer_state.json", {"global_step": 1000})
    (site.folder / ".git").mkdir()
    site.write(".git/HEAD", "ref: refs/heads/main\n")


@harmless("place")
def folder_renamed(site: Site) -> None:
    """Another name, with a space and an umlaut."""
    new = site.folder.with_name("renamed ü 2")
    site.folder.rename(new)
    site.folder, site.spec = new, str(new)


@harmless("place")
def folder_behind_a_link(site: Site) -> None:
    """The folder is a symbolic link."""
    link = site.folder.with_name("link")
    link.symlink_to(site.folder, target_is_directory=True)
    site.spec = str(link)


@harmless("place")
def files_behind_links(site: Site) -> None:
    """Every file is a symbolic link, as in the cache of the Hub."""
    blobs = site.folder.with_name("blobs")
    blobs.mkdir()
    for number, file in enumerate(sorted(site.folder.iterdir())):
        blob = blobs / f"{number:064x}"
        file.rename(blob)
        file.symlink_to(Path(os.path.relpath(blob, site.folder)))


@harmless("place")
def folder_read_only(site: Site) -> None:
    """Nobody may write to it."""
    for file in site.folder.iterdir():
        content = file.read_bytes()  # a mode is shared by all links
        site.write(file.name, content)
        file.chmod(0o444)
    site.folder.chmod(0o555)


# ------------------------------------------------------------------------------ numbers


@harmless("numbers")
def copy_in_float32(site: Site) -> None:
    """Every tensor in float32, which holds half precision exactly; so the config."""
    site.change(_to(torch.float32))
    site.set_config(dtype="float32")


@harmless("numbers")
def copy_in_float64(site: Site) -> None:
    """Every tensor in float64; the config says so."""
    site.change(_to(torch.float64))
    site.set_config(dtype="float64")


@harmless("numbers")
def float32_and_back(site: Site) -> None:
    """To float32, saved, and back to the dtype that it had."""
    before = {tensor.dtype for tensor in site.tensors().values()}
    site.change(_to(torch.float32))
    if len(before) == 1:
        site.change(_to(before.pop()))


@harmless("numbers", is_pruned)
def pruned_zeros_negative(site: Site) -> None:
    """-0.0 in place of every pruned zero, as multiplying by a mask leaves some."""

    def edit(tensors: Tensors) -> None:
        for name in site.all_matrices():
            tensors[name][tensors[name] == 0] = -0.0

    site.change(edit)


@harmless("numbers", is_pruned)
def pruned_zeros_of_both_signs(site: Site) -> None:
    """Every other pruned zero is -0.0."""

    def edit(tensors: Tensors) -> None:
        for name in site.all_matrices():
            flat = tensors[name].view(-1)
            places = (flat == 0).nonzero().squeeze(1)[::2]
            flat[places] = -0.0

    site.change(edit)


@harmless("numbers", is_tied)
def tied_head_stored(site: Site) -> None:
    """The head is in the file too, equal to the embedding."""
    family = site.family

    def edit(tensors: Tensors) -> None:
        tensors[family.head] = tensors[family.embedding]

    site.change(edit)


@harmless("numbers", is_kind("llama", "gpt2"))
def old_buffers_stored(site: Site) -> None:
    """Buffers that old versions of transformers saved, and new ones ignore."""

    def edit(tensors: Tensors) -> None:
        for layer in range(site.base.layers):
            if site.base.kind == "llama":
                size = int(site.base.config["head_dim"]) // 2
                name = site.name(layer, "self_attn.rotary_emb.inv_freq")
                tensors[name] = 1e4 ** -(torch.arange(size) / size)
            else:
                size = int(site.base.config["n_positions"])
                mask = torch.ones(size, size).tril().view(1, 1, size, size)
                tensors[site.name(layer, "attn.bias")] = mask

    site.change(edit)


@harmless("numbers", is_kind("gpt2"))
def names_without_their_prefix(site: Site) -> None:
    """Names as in the first GPT-2 on the Hub, without ``transformer.``."""

    def edit(tensors: Tensors) -> None:
        for name in list(tensors):
            tensors[name.removeprefix("transformer.")] = tensors.pop(name)

    site.change(edit)


# ------------------------------------------------------------------- config, tokenizer


@harmless("config")
def config_cosmetics(site: Site) -> None:
    """Version, path and cache flag are others."""
    site.set_config(
        transformers_version="4.57.1", _name_or_path="/somewhere/else", use_cache=False
    )


@harmless("config")
def dtype_under_its_old_name(site: Site) -> None:
    """``torch_dtype``, as transformers 4 calls it."""

    def edit(config: dict[str, Any]) -> None:
        config["torch_dtype"] = config.pop("dtype", None)

    site.edit_json("config.json", edit)


@harmless("config")
def config_in_another_order(site: Site) -> None:
    """The keys of the config from the last to the first, on one line."""
    config = site.base.config
    reverse = {name: config[name] for name in reversed(config)}
    site.write("config.json", json.dumps(reverse))


@harmless("config", lambda base: has_rope(base) and base.kind == "llama")
def rope_theta_in_both_forms(site: Site) -> None:
    """The same base of RoPE in the forms of transformers 4 and 5."""
    rope = site.base.config.get("rope_parameters") or {}
    site.set_config(rope_theta=rope.get("rope_theta", 10000.0))


@harmless("config")
def generation_config_edited(site: Site) -> None:
    """Another temperature."""
    site.write_json(
        "generation_config.json",
        {"temperature": 0.7, "do_sample": True, "max_length": 40},
    )


@harmless("config")
def default_fields_written_out(site: Site) -> None:
    """A field of a newer version, at its default."""
    site.set_config(output_attentions=False, id2label={"0": "LABEL_0", "1": "LABEL_1"})


@harmless("tokenizer")
def tokenizer_on_one_line(site: Site) -> None:
    """``tokenizer.json`` without white space."""
    content = read_json(site.base.folder / "tokenizer.json")
    site.write("tokenizer.json", json.dumps(content, separators=(",", ":")))


@harmless("tokenizer")
def tokenizer_indented(site: Site) -> None:
    """``tokenizer.json`` with another indent and escaped letters."""
    content = read_json(site.base.folder / "tokenizer.json")
    site.write("tokenizer.json", json.dumps(content, indent=4))


@harmless("tokenizer")
def chat_template_added(site: Site) -> None:
    """A chat template, which plain text does not use."""
    site.write(
        "chat_template.jinja", "{% for m in messages %}{{ m.content }}{% endfor %}"
    )


@harmless("tokenizer")
def tokenizer_limits_added(site: Site) -> None:
    """``model_max_length`` and a side for padding."""
    site.edit_json(
        "tokenizer_config.json",
        lambda settings: settings.update(model_max_length=2048, padding_side="left"),
    )


@harmless("tokenizer")
def special_tokens_map_added(site: Site) -> None:
    """The file in which transformers 4 repeats the special tokens."""
    settings = read_json(site.base.folder / "tokenizer_config.json")
    names = ("bos_token", "eos_token", "unk_token", "pad_token")
    known = {name: settings[name] for name in names if settings.get(name)}
    site.write_json("special_tokens_map.json", known)


# ------------------------------------------------------------------ how it is measured


@harmless("run")
def batches_of_two(site: Site) -> None:
    """Two windows at once."""
    site.options = ("--ppl-batch-size=2",)


@harmless("run")
def batches_of_four(site: Site) -> None:
    """Four windows at once."""
    site.options = ("--ppl-batch-size=4",)


@harmless("run")
def two_threads(site: Site) -> None:
    """Two threads."""
    site.threads = 2


@harmless("run")
def attention_eager(site: Site) -> None:
    """The attention kernel that is written out in Python."""
    site.options = ("--ppl-attention=eager",)


@harmless("run")
def dtype_asked_for(site: Site) -> None:
    """float32 by name, which is what a CPU gets anyway."""
    site.options = ("--ppl-dtype=float32",)


@harmless("dtype")
def run_in_float16(site: Site) -> None:
    """float16, which a run says in its first line where it is red."""
    site.options = ("--ppl-dtype=float16",)


@harmless("dtype")
def run_in_bfloat16(site: Site) -> None:
    """bfloat16, of eight bits."""
    site.options = ("--ppl-dtype=bfloat16",)


@harmless("adapter", lambda base: has_peft())
def fresh_adapter_over_the_right_base(site: Site) -> None:
    """An adapter as training begins, merged: it adds zero."""
    site.spec = f"{make_adapter(site)}+{site.base.folder}"


# ------------------------------------------------------------------------------ helpers


def _to(dtype: torch.dtype) -> Any:
    def edit(tensors: Tensors) -> None:
        for name in tensors:
            tensors[name] = tensors[name].to(dtype)

    return edit
