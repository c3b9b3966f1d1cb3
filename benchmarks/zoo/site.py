"""A copied checkpoint folder that a case may change, and what it has to know of it."""

from __future__ import annotations

import json
import os
import re
import shutil
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

Tensors = dict[str, Tensor]
Names = tuple[str, ...]
"""Patterns that a text must all contain to have named the culprit."""

MASK_LOST = r"mask lost"
MASK_MOVED = r"zeros elsewhere"
VALUES = r"values moved|other values"
ANOTHER = r"tensors all over the model differ"
ROUNDED = (
    r"(?:linear weights|projections|layers? \d[^\n]*): [^\n]*(?:values moved|rounded)"
)
TOKENIZER = r"tokenizer|token ids|BOS"
"""Words by which a text names what has no place of its own. A gate that only says what
may have happened ("a mask was lost, or weights were merged") has named nothing."""

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"


@dataclass(frozen=True)
class Family:
    """Where an architecture keeps its weights.

    ``layer`` is a format of one number, the other names but ``embedding``, ``head`` and
    ``final_norm`` are relative to it. ``biases`` is empty where there are none.
    ``flipped`` says that matrices are stored as ``(in, out)``.
    """

    layer: str
    matrices: tuple[str, ...]
    attention_in: tuple[str, ...]
    attention_out: str
    up: str
    down: str
    norm: str
    final_norm: str
    embedding: str
    head: str
    biases: tuple[str, ...] = ()
    flipped: bool = False


FAMILIES = {
    "llama": Family(
        layer="model.layers.{}.",
        matrices=(
            *(f"self_attn.{name}_proj.weight" for name in "qkvo"),
            *(f"mlp.{name}_proj.weight" for name in ("gate", "up", "down")),
        ),
        attention_in=tuple(f"self_attn.{name}_proj.weight" for name in "qkv"),
        attention_out="self_attn.o_proj.weight",
        up="mlp.up_proj.weight",
        down="mlp.down_proj.weight",
        norm="input_layernorm.weight",
        final_norm="model.norm.weight",
        embedding="model.embed_tokens.weight",
        head="lm_head.weight",
    ),
    "gpt_neox": Family(
        layer="gpt_neox.layers.{}.",
        matrices=(
            "attention.query_key_value.weight",
            "attention.dense.weight",
            "mlp.dense_h_to_4h.weight",
            "mlp.dense_4h_to_h.weight",
        ),
        attention_in=("attention.query_key_value.weight",),
        attention_out="attention.dense.weight",
        up="mlp.dense_h_to_4h.weight",
        down="mlp.dense_4h_to_h.weight",
        norm="input_layernorm.weight",
        final_norm="gpt_neox.final_layer_norm.weight",
        embedding="gpt_neox.embed_in.weight",
        head="embed_out.weight",
        biases=(
            "attention.query_key_value.bias",
            "attention.dense.bias",
            "mlp.dense_h_to_4h.bias",
            "mlp.dense_4h_to_h.bias",
        ),
    ),
    "gpt2": Family(
        layer="transformer.h.{}.",
        matrices=(
            "attn.c_attn.weight",
            "attn.c_proj.weight",
            "mlp.c_fc.weight",
            "mlp.c_proj.weight",
        ),
        attention_in=("attn.c_attn.weight",),
        attention_out="attn.c_proj.weight",
        up="mlp.c_fc.weight",
        down="mlp.c_proj.weight",
        norm="ln_1.weight",
        final_norm="transformer.ln_f.weight",
        embedding="transformer.wte.weight",
        head="lm_head.weight",
        biases=(
            "attn.c_attn.bias",
            "attn.c_proj.bias",
            "mlp.c_fc.bias",
            "mlp.c_proj.bias",
        ),
        flipped=True,
    ),
}


@dataclass(frozen=True)
class Text:
    """The text that gates measure: a corpus name, its file, windows of tokens."""

    name: str
    path: Path
    window: int
    windows: int
    pages: int


@dataclass(frozen=True)
class Base:
    """An undamaged checkpoint, and what belongs to it.

    ``dense`` is what it was pruned from, itself if it was not. ``other`` is a
    checkpoint of the same config from another training run, None where there is none.
    ``heldout`` is text that neither the training nor the gates have seen;
    ``training`` is some that the model was, or may be, trained on.
    """

    name: str
    folder: Path
    dense: Path
    text: Text
    heldout: str
    training: str
    pattern: str | None = None
    other: Path | None = None

    @property
    def pruned(self) -> bool:
        """Whether it has a mask to lose."""
        return self.folder != self.dense

    @property
    def config(self) -> dict[str, Any]:
        """Its ``config.json``."""
        return read_json(self.folder / "config.json")

    @property
    def kind(self) -> str:
        """Its architecture, as transformers calls it."""
        return str(self.config["model_type"])

    @property
    def family(self) -> Family:
        """Where it keeps its weights."""
        return FAMILIES[self.kind]

    @property
    def tied(self) -> bool:
        """Whether head and embedding are one."""
        return bool(self.config.get("tie_word_embeddings", True))

    @property
    def layers(self) -> int:
        """How many decoder blocks there are."""
        config = self.config
        return int(config.get("num_hidden_layers") or config["n_layer"])

    @property
    def heads(self) -> int:
        """How many heads the queries have."""
        config = self.config
        return int(config.get("num_attention_heads") or config["n_head"])


@dataclass
class Site:
    """A copy of ``base.folder`` at ``folder``, free to be changed.

    What :meth:`tensors` gives is only written by :meth:`save`. ``spec`` is what the
    gate gets, the folder unless a case says otherwise; ``options`` are more words of
    its command line, ``threads`` torch's.
    """

    base: Base
    folder: Path
    seed: str
    spec: str = ""
    options: tuple[str, ...] = ()
    threads: int = 1
    random: torch.Generator = field(init=False)

    def __post_init__(self) -> None:
        """Copy by hard links: what is written anew no longer shares its bytes."""
        shutil.copytree(self.base.folder, self.folder, copy_function=_link)
        self.spec = self.spec or str(self.folder)
        seed = zlib.crc32(f"{self.base.name} {self.seed}".encode())
        self.random = torch.Generator().manual_seed(seed)

    @property
    def family(self) -> Family:
        """Where the base keeps its weights."""
        return self.base.family

    def name(self, layer: int, suffix: str) -> str:
        """The full name of a tensor of a layer."""
        return self.family.layer.format(layer) + suffix

    def all_matrices(self) -> list[str]:
        """The names of all matrices that pruning touches."""
        return [
            self.name(layer, suffix)
            for layer in range(self.base.layers)
            for suffix in self.family.matrices
        ]

    def out_in(self, tensor: Tensor) -> Tensor:
        """A matrix as ``(out, in)``; shares its memory."""
        return tensor.T if self.family.flipped else tensor

    # ------------------------------------------------------------------------ weights

    def tensors(self) -> Tensors:
        """All weights, copied."""
        return read_weights(self.folder)

    def save(
        self, tensors: Mapping[str, Tensor], metadata: dict[str, str] | None = None
    ) -> None:
        """Write ``tensors`` as the folder's only weights."""
        self.remove_weights()
        save_shard(self.folder / SINGLE, tensors, metadata)

    def save_shards(self, shards: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Write several files, by name, and their index."""
        self.remove_weights()
        where: dict[str, str] = {}
        size = 0
        for name, tensors in shards.items():
            save_shard(self.folder / name, tensors)
            where |= dict.fromkeys(tensors, name)
            size += sum(one.numel() * one.element_size() for one in tensors.values())
        index = {"metadata": {"total_size": size}, "weight_map": where}
        self.write_json(INDEX, index)

    def remove_weights(self) -> None:
        """Take all weight files and indexes away."""
        for file in [*self.folder.glob("*.safetensors*")]:
            file.unlink()

    def change(self, edit: Callable[[Tensors], None]) -> None:
        """Load the weights, let ``edit`` change them, save."""
        tensors = self.tensors()
        edit(tensors)
        self.save(tensors)

    # -------------------------------------------------------------------------- files

    def write(self, name: str, content: bytes | str) -> None:
        """Replace a file, leaving what it was linked to as it is."""
        data = content.encode() if isinstance(content, str) else content
        path = self.folder / name
        path.unlink(missing_ok=True)
        path.write_bytes(data)

    def write_json(self, name: str, content: object) -> None:
        """Replace a JSON file."""
        self.write(name, json.dumps(content, indent=2) + "\n")

    def edit_json(self, name: str, edit: Callable[[dict[str, Any]], None]) -> None:
        """Change a JSON file."""
        content = read_json(self.folder / name)
        edit(content)
        self.write_json(name, content)

    def set_config(self, **fields: Any) -> None:
        """Change fields of ``config.json``."""
        self.edit_json("config.json", lambda config: config.update(fields))


def read_json(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return content


def read_weights(folder: Path) -> Tensors:
    """All tensors of a folder's safetensors files."""
    tensors: Tensors = {}
    for file in sorted(folder.glob("*.safetensors")):
        tensors |= load_file(file)
    return tensors


def save_shard(
    path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str] | None = None
) -> None:
    whole = {name: tensor.contiguous().clone() for name, tensor in tensors.items()}
    path.unlink(missing_ok=True)
    save_file(whole, path, metadata={"format": "pt"} if metadata is None else metadata)


def numbered(count: int) -> list[str]:
    """The names that transformers gives to ``count`` shards."""
    return [f"model-{n + 1:05}-of-{count:05}.safetensors" for n in range(count)]


def split(tensors: Mapping[str, Tensor], count: int) -> list[Tensors]:
    """``tensors`` in ``count`` parts, in the order of their names."""
    names = sorted(tensors)
    step = -(-len(names) // count)
    return [
        {name: tensors[name] for name in names[begin : begin + step]}
        for begin in range(0, len(names), step)
    ]


def of_layer(number: int) -> str:
    """A pattern for a text that names a layer, alone or in a range."""
    return rf"(?:\blayers?|\bh)[. ](?:\d+-)?{number}\b"


def of_layers(first: int, last: int) -> str:
    """A pattern for a text that names a range of layers, or its first one."""
    return rf"layers {first}-{last}\b|{of_layer(first)}"


def of_tensor(name: str) -> str:
    """A pattern for a tensor's name, whole or as ``layer 3 ... q_proj``.

    A matrix is one of ``layer 3, all projections``, too.
    """
    match = re.search(r"[.](\d+)[.](.+)[.](?:weight|bias)$", name)
    if match is None:
        return re.escape(name)
    layer, module = of_layer(int(match[1])), re.escape(match[2].rpartition(".")[2])
    among = rf"(?:{module}|all projections)" if name.endswith(".weight") else module
    return rf"{re.escape(name)}|{layer}[^\n]*{among}|{module}[^\n]*{layer}"


def _link(source: str, target: str) -> str:
    try:
        os.link(source, target)
    except OSError:  # another file system
        shutil.copyfile(source, target)
    return target
