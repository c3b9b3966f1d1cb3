"""Describes config and tokenizer: what decides a number, whoever saved the files."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from ..errors import CheckpointError
from .adapter import with_tokenizer
from .config import is_quantised
from .files import read_config
from .gguf import open_gguf
from .jsonfiles import read_json, section
from .locate import ADAPTER_CONFIG, TOKENIZER_PATTERNS, Located

_DIGITS = 16
_LONGEST = 300
"""Characters of a value that is kept as text; of longer ones a digest is kept."""
_DEEPEST = 6
"""Levels of a config that get names; what is deeper is one value."""

_SAVERS = re.compile(
    # Who saved it, and when.
    r"transformers_version|_name_or_path|_commit_hash|auto_map|.*unsloth.*|"
    r"_attn_implementation.*|_attn_implementation_autoset|model_name|"
    # Training, generation and other tasks.
    r".*dropout.*|.*pdrop|initializer_range|init_std|.*_init|use_cache|"
    r"gradient_checkpointing|pretraining_tp|output_attentions|output_hidden_states|"
    r"output_router_logits|router_aux_loss_coef|return_dict|torchscript|"
    r"use_return_dict|problem_type|finetuning_task|task_specific_params|"
    r"(id2label|label2id)(\..*)?|summary_.*|chunk_size_feed_forward|"
    r"is_encoder_decoder|is_decoder|pruned_heads(\..*)?|tokenizer_class|prefix|"
    r"temperature|top_k|top_p|typical_p|do_sample|num_beams|num_beam_groups|"
    r"max_length|min_length|length_penalty|early_stopping|repetition_penalty|"
    r"diversity_penalty|no_repeat_ngram_size|encoder_no_repeat_ngram_size|"
    r"bad_words_ids|num_return_sequences|output_scores|return_dict_in_generate|"
    r"forced_bos_token_id|forced_eos_token_id|remove_invalid_values|suppress_tokens|"
    r"begin_suppress_tokens|exponential_decay_length_penalty|tf_legacy_loss|"
    r"use_bfloat16|add_cross_attention|tie_encoder_decoder|cross_attention_hidden_size|"
    r"decoder_start_token_id|sep_token_id|bos_token_ids|eos_token_ids"
)
"""Last parts of config keys that change nothing in what a model computes."""

_NO_IDS = ("trim_offsets", "pair", "cls", "sep")
"""Settings of a tokenizer that change no token of a single text."""
_SPECIAL = ("bos_token", "eos_token", "unk_token", "pad_token")
_FLAGS = ("add_bos_token", "add_eos_token", "add_prefix_space", "legacy")
_ADAPTER = (
    "peft_type",
    "r",
    "lora_alpha",
    "target_modules",
    "rank_pattern",
    "alpha_pattern",
    "modules_to_save",
    "layers_to_transform",
    "use_rslora",
    "use_dora",
    "fan_in_fan_out",
    "bias",
)


# ---------------------------------------------------------------------------- config


def describe_config(located: Located) -> dict[str, Any]:
    """The settings that decide what the model computes, by dotted names.

    The same whichever version of transformers saved them: version 5's
    ``rope_parameters`` are ``rope_theta`` and ``rope_scaling``; what says nothing
    (null, a number of heads that follows from others) is left out. An adapter adds its
    own settings and its base as ``adapter.*``. Values are JSON data; long ones are
    digests.

    Raises:
        CheckpointError: a file cannot be read.
    """
    if located.gguf:
        return _gguf_config(located)
    try:
        config = _normal(read_config(located))
        return dict(sorted(_flat(config | _adapter(located))))
    except RecursionError as error:
        raise CheckpointError(
            f"{located.spec}: config.json is nested too deeply"
        ) from error


def _adapter(located: Located) -> dict[str, Any]:
    """The settings of an adapter that decide what it adds, and to what."""
    if located.base is None:
        return {}
    adapter = read_json(located.folder / ADAPTER_CONFIG)
    kept = {key: _sorted(adapter[key]) for key in _ADAPTER if key in adapter}
    return {"adapter": {"base": located.base.spec, **kept}}


def _normal(config: Mapping[str, Any]) -> dict[str, Any]:
    """One form for what transformers 4 and 5 write differently."""
    settings = {
        key: _normal(value) if key.endswith("_config") and _is_model(value) else value
        for key, value in config.items()
    }
    if "quantization_config" in settings and not is_quantised(config):
        del settings["quantization_config"]  # only says how sparse it is
    if "torch_dtype" in settings:
        settings.setdefault("dtype", settings["torch_dtype"])
        del settings["torch_dtype"]
    dtype = settings.get("dtype")
    if isinstance(dtype, str):
        settings["dtype"] = dtype.removeprefix("torch.")
    for key in _implied(settings):
        settings.pop(key, None)
    if isinstance(settings.get("architectures"), list):
        settings["architectures"] = _sorted(settings["architectures"])
    _normalise_rope(settings)
    return settings


def _implied(settings: Mapping[str, Any]) -> Iterator[str]:
    """Keys that say what others say already, or that those switch off."""
    heads, hidden = settings.get("num_attention_heads"), settings.get("hidden_size")
    if settings.get("num_key_value_heads") == heads:
        yield "num_key_value_heads"
    if (
        isinstance(heads, int)
        and isinstance(hidden, int)
        and settings.get("head_dim") == hidden // max(1, heads)
    ):
        yield "head_dim"
    if settings.get("use_sliding_window") is False:
        yield from ("sliding_window", "max_window_layers")
    kinds = settings.get("layer_types")
    if isinstance(kinds, list) and set(map(str, kinds)) == {"full_attention"}:
        yield "layer_types"


def _is_model(value: object) -> bool:
    """Whether a section describes a model inside the model."""
    return isinstance(value, dict) and ("model_type" in value or "hidden_size" in value)


def _normalise_rope(settings: dict[str, Any]) -> None:
    """``rope_parameters`` of transformers 5 as ``rope_theta`` and ``rope_scaling``."""
    new = section(settings, "rope_parameters")
    if new:
        del settings["rope_parameters"]
        full = new.get("full_attention")
        if isinstance(full, dict):
            sliding = section(new, "sliding_attention")
            new = dict(full)
            if sliding.get("rope_theta") is not None:
                _put(settings, "rope_local_base_freq", sliding.pop("rope_theta"))
            if sliding.get("rope_type") == "default":
                del sliding["rope_type"]
            if sliding:
                settings["rope_scaling_sliding"] = sliding
        for key in ("rope_theta", "partial_rotary_factor"):
            if new.get(key) is not None:
                _put(settings, key, new[key])
        rest = {
            key: value
            for key, value in new.items()
            if key not in ("rope_theta", "partial_rotary_factor")
        }
        _put(settings, "rope_scaling", _scaling(rest))
    if isinstance(settings.get("rope_scaling"), dict):
        settings["rope_scaling"] = _scaling(settings["rope_scaling"])


def _put(settings: dict[str, Any], key: str, value: Any) -> None:
    """Set a key that version 4 has, beside it if the file says both and they differ."""
    old = settings.get(key)
    if key == "rope_scaling" and isinstance(old, dict):
        old = _scaling(old)
    if old in (None, {}) or old == value:
        settings[key] = value
    elif value not in (None, {}):
        settings[f"rope_parameters.{key}"] = value


def _scaling(scaling: Mapping[str, Any]) -> dict[str, Any]:
    """A RoPE scaling with its type called ``rope_type``; the default one is empty."""
    normal = {key: value for key, value in scaling.items() if key != "type"}
    kind = normal.get("rope_type", scaling.get("type"))
    if kind in (None, "default"):
        normal.pop("rope_type", None)
    else:
        normal["rope_type"] = kind
    return normal


def _flat(
    settings: Mapping[str, Any], before: str = "", depth: int = 1
) -> Iterator[tuple[str, Any]]:
    """The settings that say something, nested ones by dotted names."""
    for key, value in settings.items():
        if value is None or _SAVERS.fullmatch(str(key)):
            continue
        if isinstance(value, dict) and depth < _DEEPEST:
            yield from _flat(value, f"{before}{key}.", depth + 1)
        elif value not in ({}, []):
            yield f"{before}{key}", _value(value)


def _value(value: Any) -> Any:
    """JSON data that strict JSON can hold; a digest of what is long."""
    value = _strict(value)
    if isinstance(value, (str, list, dict)):
        text = _canonical(value)
        if len(text) > _LONGEST:
            return f"{len(value)} items, {_sha(text)}"
    return value


def _sorted(value: Any) -> Any:
    """A list of names in order."""
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        return sorted(value)
    return value


def _canonical(value: Any) -> str:
    """JSON that depends neither on the order of keys nor on spaces."""
    return json.dumps(
        _strict(value), sort_keys=True, ensure_ascii=False, separators=(",", ":")
    )


def _strict(value: Any) -> Any:
    """The same data without NaN and infinities, which strict JSON has not."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, dict):
        return {str(key): _strict(item) for key, item in value.items()}
    return [_strict(item) for item in value] if isinstance(value, list) else value


def _sha(data: str | bytes) -> str:
    raw = data.encode("utf-8", "surrogatepass") if isinstance(data, str) else data
    return hashlib.sha256(raw).hexdigest()[:_DIGITS]


# ------------------------------------------------------------------------- tokenizer


def describe_tokenizer(located: Located) -> dict[str, str]:
    """What decides a text's tokens, part by part: short things as text, else digests.

    From ``tokenizer.json``, or from the vocabulary files where there is none, and the
    special tokens and flags of ``tokenizer_config.json``. Independent of the files'
    formatting. What changes no token of a text (padding, truncation, chat templates)
    is left out.

    Raises:
        CheckpointError: a file cannot be read.
    """
    if located.gguf:
        return _gguf_tokenizer(located)
    folder = with_tokenizer(located).folder
    path = folder / "tokenizer.json"
    whole = read_json(path) if path.is_file() else {}
    parts = dict(_whole(whole)) if whole else dict(_files(folder))
    parts |= _settings(folder, section(whole, "post_processor") if whole else None)
    return dict(sorted(parts.items()))


def _whole(tokenizer: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """The parts of a ``tokenizer.json``."""
    model = section(tokenizer, "model")
    yield from _vocabulary(model.get("vocab"))
    if isinstance(merges := model.get("merges"), list):
        yield "merges", _merges(merges)
    rest = {
        key: value
        for key, value in model.items()
        if key not in ("vocab", "merges") and value not in (None, False, "")
    }
    yield "model", _text(rest)
    if isinstance(added := tokenizer.get("added_tokens"), list) and added:
        yield "added tokens", _added(added)
    for part in ("normalizer", "pre_tokenizer", "post_processor", "decoder"):
        if tokenizer.get(part):
            yield part, _text(_without(tokenizer[part]))


def _vocabulary(vocabulary: Any) -> Iterator[tuple[str, str]]:
    """Two parts: which tokens there are, and which ids (or scores) they have."""
    if isinstance(vocabulary, list):
        vocabulary = {
            str(item[0]): [place, *item[1:]] if isinstance(item, list) else place
            for place, item in enumerate(vocabulary)
            if item
        }
    if not isinstance(vocabulary, dict):
        return
    tokens = sorted(vocabulary)
    yield "vocabulary", f"{len(tokens)} tokens, {_sha(_canonical(tokens))}"
    yield "token ids", f"{len(tokens)} ids, {_sha(_canonical(vocabulary))}"


def _merges(merges: Iterable[Any]) -> str:
    # A pair is two strings, or one with a space between them.
    lines = [
        merge if isinstance(merge, str) else " ".join(map(str, merge))
        for merge in merges
    ]
    return f"{len(lines)} merges, {_sha(chr(10).join(lines))}"


def _added(added: Iterable[Any]) -> str:
    tokens = [token for token in added if isinstance(token, dict)]
    tokens.sort(key=lambda token: str(token.get("id")).zfill(12))
    text = " ".join(
        f"{token.get('content')}={token.get('id')}"
        + "".join(
            f"[{flag}]"
            for flag in ("lstrip", "rstrip", "single_word", "normalized")
            if token.get(flag)
        )
        for token in tokens
    )
    return text if len(text) <= _LONGEST else f"{len(tokens)} tokens, {_sha(text)}"


def _without(part: Any) -> Any:
    """A part without what changes no token of a text."""
    if isinstance(part, list):
        return [_without(item) for item in part]
    if isinstance(part, dict):
        return {
            key: _without(value)
            for key, value in part.items()
            if key not in _NO_IDS or not isinstance(part.get("type"), str)
        }
    return part


def _text(value: Any) -> str:
    text = _canonical(value)
    if len(text) <= _LONGEST:
        return text
    kind = value.get("type", "") if isinstance(value, dict) else ""
    return f"{kind} {_sha(text)}".lstrip()


def _files(folder: Path) -> Iterator[tuple[str, str]]:
    """The vocabulary files of a folder without a ``tokenizer.json``."""
    for path in sorted({p for name in TOKENIZER_PATTERNS for p in folder.glob(name)}):
        if path.name == "vocab.json":
            yield from _vocabulary(read_json(path))
        else:
            yield path.name, f"sha256 {_sha(path.read_bytes())}"
    merges = folder / "merges.txt"
    if merges.is_file():
        lines = merges.read_text(encoding="utf-8", errors="replace").splitlines()
        yield (
            "merges",
            _merges(line for line in lines if line and not line.startswith("#version")),
        )
    added = folder / "added_tokens.json"
    if added.is_file():
        yield (
            "added tokens",
            _added([{"content": k, "id": v} for k, v in read_json(added).items()]),
        )


def _settings(folder: Path, post_processor: Mapping[str, Any] | None) -> dict[str, str]:
    """Special tokens and flags; whether BOS is added if only the template says so."""
    settings: dict[str, Any] = {}
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        if (folder / name).is_file():
            settings |= {
                key: value
                for key, value in read_json(folder / name).items()
                if value is not None
            }
    found = {
        key: str(value.get("content") if isinstance(value, dict) else value)
        for key in _SPECIAL
        if (value := settings.get(key)) is not None
    }
    found |= {
        key: str(settings[key]).lower()
        for key in _FLAGS
        if isinstance(settings.get(key), bool)
    }
    kind = str(settings.get("tokenizer_class", "")).removesuffix("Fast")
    if kind not in ("", "PreTrainedTokenizer", "TokenizersBackend"):
        found["tokenizer_class"] = kind
    if post_processor is not None:
        first, last = _template(post_processor)
        found.setdefault("add_bos_token", str(first).lower())
        found.setdefault("add_eos_token", str(last).lower())
    return found


def _template(post_processor: Mapping[str, Any]) -> tuple[bool, bool]:
    """Whether special tokens are put before and behind a text."""
    parts = post_processor.get("processors")
    for part in parts if isinstance(parts, list) else [post_processor]:
        single = part.get("single") if isinstance(part, dict) else None
        if isinstance(single, list) and single:
            return "SpecialToken" in single[0], "SpecialToken" in single[-1]
    return False, False


# ------------------------------------------------------------------------------ GGUF


def _gguf_config(located: Located) -> dict[str, Any]:
    """The file's own settings, without its tokenizer and what describes its origin."""
    fields = open_gguf(located).fields
    kept = {}
    for name, field in fields.items():
        room = name.partition(".")[0]
        if room in ("tokenizer", "GGUF", "split", "quantize") or (
            room == "general" and name != "general.architecture"
        ):
            continue
        kept[name] = _value(field.contents())
    return dict(sorted(kept.items()))


def _gguf_tokenizer(located: Located) -> dict[str, str]:
    found: dict[str, str] = {}
    for name, field in open_gguf(located).fields.items():
        if not name.startswith("tokenizer.ggml."):
            continue
        value = field.contents()
        if isinstance(value, list):
            text = f"{len(value)} items, {_sha(_canonical(value))}"
        else:
            text = str(value).lower() if isinstance(value, bool) else str(value)
        found[name.removeprefix("tokenizer.ggml.")] = text
    return dict(sorted(found.items()))
