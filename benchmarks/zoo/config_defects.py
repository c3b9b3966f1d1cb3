"""Defects in config and tokenizer: the weights are right, and what runs is wrong."""

from __future__ import annotations

from typing import Any

from .cases import (
    defect,
    has_rope,
    is_kind,
    is_tied,
    is_untied,
)
from .site import TOKENIZER, Names, Site, read_json

FILE = "tokenizer.json"


# ------------------------------------------------------------------------------- config


@defect("config", has_rope)
def rope_theta_of_another_model(site: Site) -> Names:
    """The base of RoPE is 500,000, in the form of transformers 5."""
    _set_rope(site, rope_theta=500_000.0)
    return (r"rope_theta|rope_parameters",)


@defect("config", has_rope)
def rope_theta_in_the_old_form(site: Site) -> Names:
    """The base of RoPE is 500,000, as transformers 4 writes it."""
    name = "rotary_emb_base" if site.base.kind == "gpt_neox" else "rope_theta"

    def edit(config: dict[str, Any]) -> None:
        rope = config.pop("rope_parameters", {})
        if "partial_rotary_factor" in rope:
            config["rotary_pct"] = rope["partial_rotary_factor"]
        config[name] = 500_000.0

    site.edit_json("config.json", edit)
    return (r"rope_theta|rope_parameters|rotary_emb_base",)


@defect("config", has_rope)
def rope_stretched(site: Site) -> Names:
    """Linear RoPE scaling by 2, of a long-context variant."""
    _set_rope(site, rope_type="linear", factor=2.0)
    return (r"rope",)


@defect("config", is_kind("gpt_neox"))
def rotary_part_changed(site: Site) -> Names:
    """All of each head rotates, not half of it."""
    _set_rope(site, partial_rotary_factor=1.0)
    return (r"partial_rotary_factor|rope_parameters",)


@defect("config")
def norm_epsilon_changed(site: Site) -> Names:
    """The epsilon of the norms is 0.1."""
    names = ("rms_norm_eps", "layer_norm_eps", "layer_norm_epsilon")
    name = next(name for name in names if name in site.base.config)
    site.set_config(**{name: 0.1})
    return (name,)


@defect("config")
def activation_changed(site: Site) -> Names:
    """ReLU in place of the activation."""
    name = "activation_function" if site.base.kind == "gpt2" else "hidden_act"
    site.set_config(**{name: "relu"})
    return (name,)


@defect("config")
def twice_as_many_heads(site: Site) -> Names:
    """Heads of half the size: every matrix still fits."""

    def edit(config: dict[str, Any]) -> None:
        if "head_dim" in config:
            config["head_dim"] //= 2
            config["num_key_value_heads"] *= 2
        config["n_head" if site.base.kind == "gpt2" else "num_attention_heads"] *= 2

    site.edit_json("config.json", edit)
    return (r"num_attention_heads|n_head|head_dim",)


@defect("config", is_kind("llama"))
def wrong_number_of_key_heads(site: Site) -> Names:
    """One key head where there are more: the matrices no longer fit."""
    site.set_config(num_key_value_heads=1)
    return (r"k_proj|num_key_value_heads",)


@defect("config", is_kind("gpt_neox"))
def residuals_one_after_the_other(site: Site) -> Names:
    """Attention and MLP are no longer computed side by side."""
    site.set_config(use_parallel_residual=False)
    return (r"use_parallel_residual",)


@defect("config", is_kind("gpt2"))
def attention_not_scaled(site: Site) -> Names:
    """The scores of attention are not divided by the root of the head's size."""
    site.set_config(scale_attn_weights=False)
    return (r"scale_attn_weights",)


@defect("config")
def too_few_positions(site: Site) -> Names:
    """The config says that the model was made for 64 positions."""
    name = "n_positions" if site.base.kind == "gpt2" else "max_position_embeddings"
    site.set_config(**{name: 64})
    return (r"max_position_embeddings|n_positions|wpe",)


@defect("config", is_untied)
def head_tied_by_config(site: Site) -> Names:
    """``tie_word_embeddings`` is on, and the head in the file is not used."""
    site.set_config(tie_word_embeddings=True)
    return (r"tie_word_embeddings|embed_out|lm_head",)


@defect("config", is_tied)
def head_untied_by_config(site: Site) -> Names:
    """``tie_word_embeddings`` is off, and the file has no head."""
    site.set_config(tie_word_embeddings=False)
    return (r"tie_word_embeddings|lm_head",)


@defect("config")
def vocabulary_cut_in_config(site: Site) -> Names:
    """``vocab_size`` is a tenth too small."""
    site.set_config(vocab_size=int(site.base.config["vocab_size"]) * 9 // 10)
    return (r"vocab_size|embed|wte",)


@defect("config")
def last_layer_dropped(site: Site) -> Names:
    """One layer fewer, in config and files alike."""
    last = site.base.layers - 1
    name = "n_layer" if site.base.kind == "gpt2" else "num_hidden_layers"
    site.set_config(**{name: last})
    prefix = site.name(last, "")

    def edit(tensors: dict[str, Any]) -> None:
        for gone in [one for one in tensors if one.startswith(prefix)]:
            del tensors[gone]

    site.change(edit)
    return (rf"num_hidden_layers|n_layer|layers?[ .]{last}\b",)


# ---------------------------------------------------------------------------- tokenizer


@defect("tokenizer")
def token_ids_off_by_one(site: Site) -> Names:
    """Every id but those of special tokens is one lower, the lowest goes to the end."""

    def edit(tokenizer: dict[str, Any]) -> None:
        special = {token["content"] for token in tokenizer["added_tokens"]}
        vocabulary = tokenizer["model"]["vocab"]
        ids = sorted(id_ for token, id_ in vocabulary.items() if token not in special)
        moved = dict(zip(ids, [ids[-1], *ids[:-1]], strict=True))
        for token, id_ in vocabulary.items():
            if token not in special:
                vocabulary[token] = moved[id_]

    site.edit_json(FILE, edit)
    return (TOKENIZER,)


@defect("tokenizer")
def two_tokens_swapped(site: Site) -> Names:
    """Two common tokens have each other's id."""

    def edit(tokenizer: dict[str, Any]) -> None:
        vocabulary = tokenizer["model"]["vocab"]
        one, other = "Ġthe", "Ġof"
        vocabulary[one], vocabulary[other] = vocabulary[other], vocabulary[one]

    site.edit_json(FILE, edit)
    return (TOKENIZER,)


@defect("tokenizer", lambda base: _adds_bos(base.folder / FILE))
def bos_lost(site: Site) -> Names:
    """Nothing is put before a text any more."""
    site.edit_json(FILE, lambda tokenizer: tokenizer.update(post_processor=None))
    return (TOKENIZER,)


@defect("tokenizer", lambda base: _adds_bos(base.folder / FILE))
def bos_doubled(site: Site) -> Names:
    """Two BOS are put before a text."""

    def edit(tokenizer: dict[str, Any]) -> None:
        template = tokenizer["post_processor"]["single"]
        template.insert(0, template[0])

    site.edit_json(FILE, edit)
    return (TOKENIZER,)


@defect("tokenizer")
def merges_lost(site: Site) -> Names:
    """The last half of the merges is gone: words fall into more tokens."""

    def edit(tokenizer: dict[str, Any]) -> None:
        merges = tokenizer["model"]["merges"]
        del merges[len(merges) // 2 :]

    site.edit_json(FILE, edit)
    return (TOKENIZER,)


@defect("tokenizer")
def merges_sorted(site: Site) -> Names:
    """A tool put the merges in alphabetical order; their order is their rank."""

    def edit(tokenizer: dict[str, Any]) -> None:
        tokenizer["model"]["merges"].sort()

    site.edit_json(FILE, edit)
    return (TOKENIZER,)


@defect("tokenizer")
def text_lower_cased(site: Site) -> Names:
    """A normaliser for uncased models."""
    lower = {"type": "Lowercase"}
    site.edit_json(FILE, lambda tokenizer: tokenizer.update(normalizer=lower))
    return (TOKENIZER,)


@defect("tokenizer", lambda base: base.text.name == "demo")
def digits_split_otherwise(site: Site) -> Names:
    """Numbers are cut digit by digit where they were not, as another converter does."""

    def edit(tokenizer: dict[str, Any]) -> None:
        before = tokenizer["pre_tokenizer"]
        digits = {"type": "Digits", "individual_digits": True}
        tokenizer["pre_tokenizer"] = {
            "type": "Sequence",
            "pretokenizers": [digits, before],
        }

    site.edit_json(FILE, edit)
    return (TOKENIZER,)


# ------------------------------------------------------------------------------ helpers


def _set_rope(site: Site, **fields: Any) -> None:
    def edit(config: dict[str, Any]) -> None:
        config["rope_parameters"] = {**config["rope_parameters"], **fields}

    site.edit_json("config.json", edit)


def _adds_bos(path: Any) -> bool:
    processor = read_json(path).get("post_processor") or {}
    return processor.get("type") == "TemplateProcessing"
