"""Compares configs and tokenizers, setting by setting."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

from msgspec import Struct

_DECIDES = re.compile(
    r"model_type|vocab_size|tie_word_embeddings|.*rope.*|.*rotary.*|.*yarn.*|"
    r"num_.*|n_(embd|head|layer|inner|positions|ctx)|.*hidden_size.*|"
    r"intermediate_size|ffn_dim|d_model|head_dim|.*eps(ilon)?|.*norm.*|hidden_act.*|"
    r".*activation.*|.*bias|.*softcap.*|.*sliding.*|.*window.*|.*scal(e|ing|ar).*|"
    r".*multiplier.*|max_position_embeddings|layer_types|.*expert.*|.*moe.*|"
    r"quant_method|bits|group_size|format|config_groups.*|quantization.*|"
    r"bos_token_id|.*parallel.*|alibi.*|.*attention.*|attn_.*|"
    r"general\.architecture|adapter\..*"
)
"""Config keys that decide what a model computes, by whole name or last part."""
_MINOR = re.compile(r"dtype|architectures|pad_token_id|eos_token_id|adapter\.base")
"""Config keys that change no number, or one that is told of elsewhere."""
_USUAL: dict[str, Any] = {
    "rope_theta": 10000.0,
    "partial_rotary_factor": 1.0,
    "hidden_act": "silu",
    "logits_scaling": 1.0,
    "embedding_multiplier": 1.0,
    "residual_multiplier": 1.0,
}
"""What a model does where its config does not say it."""
_FROM_WEIGHTS = ("tie_word_embeddings",)
"""Keys whose absence has another meaning for each model; the weights show it."""
_NO_TOKENS = ("decoder", "pad_token", "tokenizer_class", "legacy")
"""Parts of a tokenizer that change no token of a text, or only through others."""
_LONGEST = 70


class SettingChange(Struct, frozen=True):
    """A setting that differs; None where there is none.

    ``decides`` says how it bears on the number: ``yes``, ``perhaps`` or ``no``.
    """

    name: str
    before: Any
    now: Any
    decides: Literal["yes", "perhaps", "no"]


def compare_config(
    before: Mapping[str, Any], now: Mapping[str, Any]
) -> list[SettingChange]:
    """The config keys that differ, in the order of their weight."""
    found = []
    for name in sorted(before.keys() | now.keys()):
        old, new = _said(name, before), _said(name, now)
        if _equal(old, new) or _means_the_same(name, old, new):
            continue
        found.append(SettingChange(name, old, new, _weight(name, old, new)))
    return sorted(
        found, key=lambda change: ("yes", "perhaps", "no").index(change.decides)
    )


def compare_tokenizers(
    before: Mapping[str, str], now: Mapping[str, str]
) -> list[SettingChange]:
    """The parts of the tokenizer that differ, in the order of their weight."""
    found = [
        SettingChange(
            name, before.get(name), now.get(name), "no" if name in _NO_TOKENS else "yes"
        )
        for name in sorted(before.keys() | now.keys())
        if before.get(name) != now.get(name)
    ]
    return sorted(
        found, key=lambda change: (change.decides == "no", _place(change.name))
    )


def _place(part: str) -> int:
    first = ("vocabulary", "token ids", "merges", "add_bos_token", "bos_token")
    return first.index(part) if part in first else len(first)


def _said(name: str, config: Mapping[str, Any]) -> Any:
    """A setting, or what it is where it follows from others and was left out."""
    if name in config:
        return config[name]
    section, dot, last = name.rpartition(".")
    heads = config.get(f"{section}{dot}num_attention_heads")
    hidden = config.get(f"{section}{dot}hidden_size")
    if last == "num_key_value_heads":
        return heads
    if last == "head_dim" and isinstance(hidden, int) and isinstance(heads, int):
        return hidden // max(1, heads)
    return None


def _equal(old: Any, new: Any) -> bool:
    """Whether two JSON values are equal; true is not 1, but 1 is 1.0."""
    if isinstance(old, bool) or isinstance(new, bool):
        return old is new
    return bool(old == new)


def _means_the_same(name: str, old: Any, new: Any) -> bool:
    """Whether one side leaves out what the other says, and it is what is usual."""
    if old is not None and new is not None:
        return False
    said = new if old is None else old
    last = name.rpartition(".")[2]
    if last in _FROM_WEIGHTS:
        return True
    if last in _USUAL:
        return _equal(said, _USUAL[last])
    return said in (False, "", 0) or said in ([], {})


def _weight(name: str, old: Any, new: Any) -> Literal["yes", "perhaps", "no"]:
    last = name.rpartition(".")[2]
    if _MINOR.fullmatch(name) or _MINOR.fullmatch(last):
        return "no"
    if _DECIDES.fullmatch(name) or any(map(_DECIDES.fullmatch, name.split("."))):
        return "yes"
    # Versions of transformers add fields of their own.
    return "perhaps" if old is not None and new is not None else "no"


# -------------------------------------------------------------------------- in words


def config_lines(
    changes: Sequence[SettingChange],
) -> Iterator[tuple[SettingChange, str]]:
    """A line for each change of the config; an adapter that came or went has one."""
    adapter = [one for one in changes if one.name.startswith("adapter.")]
    came = all(one.before is None for one in adapter)
    if came or all(one.now is None for one in adapter):
        changes = [one for one in changes if one not in adapter]
        if adapter:
            settings = ", ".join(
                f"{one.name.removeprefix('adapter.')} "
                f"{_shown(one.now if came else one.before)}"
                for one in adapter
            )
            what = "an adapter is merged in" if came else "no adapter is merged in now"
            first = min(adapter, key=lambda one: one.decides != "yes")
            yield first, f"config: {what} ({settings})"
    yield from ((change, config_line(change)) for change in changes)


def config_line(change: SettingChange) -> str:
    """``config: rope_theta 10000.0 -> 500000.0``."""
    return f"config: {change.name} {_shown(change.before)} -> {_shown(change.now)}"


def tokenizer_line(change: SettingChange, others: Mapping[str, SettingChange]) -> str:
    """One part of the tokenizer that differs, ``others`` by name."""
    name, before, now = change.name, change.before, change.now
    if name == "token ids" and before and now and "vocabulary" not in others:
        return f"tokenizer: the same {_count(now)} tokens have other ids"
    if not (before and now):
        return f"tokenizer: {name} {_shown(before)} -> {_shown(now)}"
    counts = _count(before), _count(now)
    if None not in counts:
        what = f"{before.split(',')[0]} -> {now.split(',')[0]}"
        if counts[0] == counts[1]:
            what = f"{now.split(',')[0]} before and now, but not the same"
        return f"tokenizer: {name} differ: {what}"
    return f"tokenizer: {name} {_shown(before)} -> {_shown(now)}"


def _count(value: str) -> str | None:
    match = re.match(r"([0-9]+) (?:tokens|ids|merges|items), [0-9a-f]{16}$", value)
    return None if match is None else match[1]


def _shown(value: Any) -> str:
    if value is None:
        return "absent"
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 3]}..."
