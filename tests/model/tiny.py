"""Makes tiny random models with byte-level tokenizers, saved as real checkpoints."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedModel

ARCHITECTURES = (
    "llama",
    "gemma2",
    "cohere",
    "granite",
    "opt",
    "gpt_neox",
    "qwen3",
    "mixtral",
)
BOS, EOS, UNKNOWN = "<s>", "</s>", "<unk>"
TRANSFORMERS_4 = version("transformers").startswith("4.")
HIDDEN, LAYERS, POSITIONS = 32, 2, 2048
SMALLEST_VOCAB = 259
"""All 256 bytes and three special tokens."""

_SENTENCES = (
    "The quick brown fox jumps over the lazy dog.",
    "Perplexity is the exponential of the mean negative log-likelihood.",
    " = Valkyria Chronicles = \n It was released in January 2011 in Japan .",
    "She said that the pruned model was as good as the dense one.",
)


def save_tiny(
    path: Path,
    arch: str = "llama",
    *,
    bos: bool = True,
    vocab: int = 320,
    seed: int = 0,
    dtype: str = "float32",
    shard: str | None = None,
    **config: Any,
) -> Path:
    """Save a random two-layer model and its tokenizer; returns ``path``.

    Args:
        path: folder to make.
        arch: one of :data:`ARCHITECTURES`.
        bos: whether the tokenizer puts ``<s>`` before every text.
        vocab: rows of the embedding, at least :data:`SMALLEST_VOCAB`; the tokenizer
            has at most as many entries.
        seed: of the weights; torch's global random state is left as it was.
        dtype: of the saved weights.
        shard: largest shard, like ``"50KB"``; None writes one file.
        config: more fields of the model's configuration.
    """
    import torch

    tokenizer = build_tokenizer(vocab, bos=bos)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = build_model(arch, vocab, **config)
    save(model.to(getattr(torch, dtype)), path, shard)
    save_tokenizer(tokenizer, path)
    return path


def save(model: PreTrainedModel, path: Path, shard: str | None = None) -> None:
    """Save a model without its progress bars."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    try:
        if shard is None:
            model.save_pretrained(path)
        else:
            model.save_pretrained(path, max_shard_size=shard)
    finally:
        logging.enable_progress_bar()


def save_tokenizer(tokenizer: Tokenizer, path: Path) -> None:
    """Save a tokenizer the way that ``AutoTokenizer`` reads it, whatever the model."""
    from transformers import PreTrainedTokenizerFast

    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BOS,
        eos_token=EOS,
        unk_token=UNKNOWN,
        clean_up_tokenization_spaces=False,
    ).save_pretrained(path)


def build_tokenizer(vocab: int = 320, *, bos: bool = True) -> Tokenizer:
    """A byte-level BPE tokenizer, so any text encodes, with at most ``vocab`` ids."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from tokenizers.processors import TemplateProcessing

    if vocab < SMALLEST_VOCAB:
        raise ValueError(f"vocab must be at least {SMALLEST_VOCAB}, not {vocab}")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab,
        special_tokens=[BOS, EOS, UNKNOWN],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_SENTENCES, trainer)
    if bos:
        tokenizer.post_processor = TemplateProcessing(
            single=f"{BOS} $A", pair=f"{BOS} $A {BOS} $B", special_tokens=[(BOS, 0)]
        )
    return tokenizer


def build_model(arch: str, vocab: int = 320, **config: Any) -> PreTrainedModel:
    """A random model in float32, its logits of order 1 to 10."""
    from transformers import AutoConfig, AutoModelForCausalLM

    if arch not in ARCHITECTURES:
        raise ValueError(f"{arch!r} is none of {', '.join(ARCHITECTURES)}")
    settings = _common(vocab) | _special(arch) | config
    configuration = AutoConfig.for_model(arch, **settings)
    model: PreTrainedModel = AutoModelForCausalLM.from_config(configuration)
    return model.eval()


def _common(vocab: int) -> dict[str, Any]:
    return {
        "vocab_size": vocab,
        "hidden_size": HIDDEN,
        "intermediate_size": 2 * HIDDEN,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": HIDDEN // 4,
        "max_position_embeddings": POSITIONS,
        "initializer_range": 0.4,
        "bos_token_id": 0,
        "eos_token_id": 1,
        "pad_token_id": None,
    }


def _special(arch: str) -> dict[str, Any]:
    """What an architecture names differently, or does to the logits after the head."""
    settings: dict[str, dict[str, Any]] = {
        "gemma2": {"final_logit_softcapping": 5.0, "query_pre_attn_scalar": 8},
        "cohere": {"logit_scale": 0.5},
        "granite": {"logits_scaling": 2.0, "embedding_multiplier": 2.0},
        "opt": {
            "ffn_dim": 2 * HIDDEN,
            "init_std": 0.4,
            "word_embed_proj_dim": HIDDEN,
            "pad_token_id": 2,
            "dropout": 0.0,
        },
        "mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2},
    }
    return settings.get(arch, {})
