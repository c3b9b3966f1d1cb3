"""Refuses configs by which transformers would silently load something else."""

from __future__ import annotations

import importlib.metadata
import json
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

from ..errors import CheckpointError
from .files import read_config
from .jsonfiles import read_json, section
from .locate import Located

_PACKINGS = ("quantization_config", "compression_config")
_DECODED = ("sparse-bitmask", "sparse-24-bitmask")
_IMPLEMENTATIONS = (
    "attn_implementation",
    "_attn_implementation",
    "experts_implementation",
    "_experts_implementation",
)
"""Fields by which transformers also takes a kernel from the Hub."""
_FUSED = ("marlin-24",)
"""Sparse and quantised in one layout, made for one kernel of vLLM."""


def check_config(located: Located, *, trust_remote_code: bool) -> None:
    """Look at a folder's JSON files before transformers does.

    Raises:
        CheckpointError: it brings code that was not allowed, names weights elsewhere,
            contradicts itself, or is packed as nothing here can unpack.
    """
    if located.gguf:
        return
    for _, check in config_checks(located, trust_remote_code=trust_remote_code):
        check()


def config_checks(
    located: Located, *, trust_remote_code: bool
) -> Iterator[tuple[str, Callable[[], None]]]:
    """The checks of :func:`check_config` one by one, each with a name."""
    config, spec = read_config(located), located.spec
    if not trust_remote_code:
        yield "remote-code", partial(refuse_remote_code, located)
    yield "weights-elsewhere", partial(_check_place, spec, config)
    yield "packing", partial(_check_packing, spec, config)
    for settings in (config, section(config, "text_config")):
        yield "rope", partial(_check_rope, spec, settings)


def _check_place(spec: str, config: Mapping[str, Any]) -> None:
    if "transformers_weights" in config:
        raise CheckpointError(
            f"{spec}: config.json names its own weight file "
            "(transformers_weights), which is not supported: use model.safetensors"
        )


def refuse_remote_code(located: Located) -> None:
    """Refuse a folder whose config or tokenizer names Python code of its own.

    Raises:
        CheckpointError: it does.
    """
    for name in ("config.json", "tokenizer_config.json"):
        path = located.folder / name
        if path.is_file() and "auto_map" in read_json(path):
            raise CheckpointError(
                f"{located.spec} brings Python code of its own (auto_map in {name}): "
                "trust and run it with --ppl-trust-remote-code, or delete auto_map if "
                "transformers knows the architecture"
            )
    path = located.folder / "config.json"
    for name, kernel in _kernels(read_json(path) if path.is_file() else {}):
        raise CheckpointError(
            f"{located.spec} asks for code from the Hub ({name}: {kernel!r} in "
            "config.json): trust and run it with --ppl-trust-remote-code, or delete "
            "the field and choose with --ppl-attention"
        )


def _kernels(config: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Fields that name a repository of kernels, also those of parts of the model."""
    for name, value in config.items():
        if isinstance(value, dict):
            yield from _kernels(value)
        elif name in _IMPLEMENTATIONS and isinstance(value, str) and "/" in value:
            yield name, value


# ----------------------------------------------------------------------------- packing


def _check_packing(spec: str, config: Mapping[str, Any]) -> None:
    way_out = (
        "decompress it with the llm-compressor that wrote it (save_pretrained(..., "
        "save_compressed=False)) and give that folder"
    )
    for packing in (section(config, name) for name in _PACKINGS):
        sparse = section(packing, "sparsity_config").get("format")
        if sparse not in (None, "dense", *_DECODED):
            raise CheckpointError(
                f"{spec} is stored in the compressed format {sparse}, which nothing "
                f"here unpacks: {way_out}"
            )
        for form in _formats(packing):
            if form in _FUSED:
                raise CheckpointError(
                    f"{spec} is stored in the format {form}, which only vLLM's kernel "
                    f"reads: {way_out}"
                )
        if section(packing, "transform_config").get("config_groups"):
            raise CheckpointError(
                f"{spec} rotates its activations (transform_config in config.json), "
                "which transformers would silently leave out: measure the checkpoint "
                "as it was before the transform"
            )


def _formats(packing: Mapping[str, Any]) -> Iterator[object]:
    yield packing.get("format")
    for group in section(packing, "config_groups").values():
        if isinstance(group, dict):
            yield group.get("format")


def is_quantised(config: Mapping[str, Any]) -> bool:
    """Whether weights or activations are quantised, by the config's word.

    llm-compressor writes a ``quantization_config`` for every pruned model; one that
    names no scheme (``format: dense``) only describes the sparsity.
    """
    packing = section(config, "quantization_config")
    if packing.get("quant_method") == "compressed-tensors" or (
        "sparsity_config" in packing
    ):
        return bool(packing.get("config_groups") or packing.get("kv_cache_scheme"))
    return bool(packing)


# -------------------------------------------------------------------------------- RoPE


def _check_rope(spec: str, settings: Mapping[str, Any]) -> None:
    """Refuse positions that transformers 4 and 5 would read differently.

    Version 4 reads ``rope_theta`` and ``rope_scaling`` and keeps version 5's
    ``rope_parameters`` as something unknown; when it saves again it puts its own
    defaults beside them. Version 5 prefers ``rope_parameters`` for the one and
    ``rope_scaling`` for the other.
    """
    new = section(settings, "rope_parameters")
    if not new:
        return
    # One for all layers, or one for each type of layer.
    layers = [value for value in new.values() if isinstance(value, dict)] or [new]
    for name in ("rope_theta", "partial_rotary_factor"):
        old = settings.get(name)
        values = [layer[name] for layer in layers if layer.get(name) is not None]
        if old is not None and values and old not in values:
            raise _rope_error(spec, f"{name} is {old}", f"{values[0]}")
    if "rope_scaling" in settings:
        scaling = section(settings, "rope_scaling")
        if not any(_same_scaling(scaling, layer) for layer in layers):
            raise _rope_error(spec, f"rope_scaling is {_brief(scaling)}", _brief(new))
    if (
        "rope_theta" not in settings
        and _version().startswith("4.")
        and not _is_default_of_version_4(new, settings.get("model_type"))
    ):
        raise CheckpointError(
            f"{spec} was saved by transformers 5 (rope_parameters in config.json), and "
            f"transformers {_version()}, which is installed, would take its default "
            "rope_theta instead: install transformers 5"
        )


def _is_default_of_version_4(new: Mapping[str, Any], model_type: object) -> bool:
    """Whether transformers 4 does by itself what it does not read."""
    if (
        model_type is None
        or not new.keys() <= {"rope_theta", "rope_type"}
        or new.get("rope_type", "default") != "default"
        or new.get("rope_theta") is None
    ):
        return False
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    return model_type in CONFIG_MAPPING and new["rope_theta"] == getattr(
        CONFIG_MAPPING[model_type](), "rope_theta", None
    )


def _rope_error(spec: str, old: str, new: str) -> CheckpointError:
    return CheckpointError(
        f"{spec}: config.json contradicts itself: {old}, but rope_parameters (of "
        f"transformers 5) says {new}; a transformers 4 that saves a checkpoint of "
        "version 5 leaves this behind, and pruned with the former. Keep the right one "
        "in config.json (the base model's config has it) and delete the other"
    )


def _same_scaling(old: Mapping[str, Any], new: Mapping[str, Any]) -> bool:
    """Whether two scalings agree in their type and in all that both name."""
    one, other = (
        {
            **{key: value for key, value in scaling.items() if key != "type"},
            "rope_type": scaling.get("rope_type", scaling.get("type", "default")),
        }
        for scaling in (old, new)
    )
    return all(other[key] == one[key] for key in one.keys() & other.keys())


def _brief(scaling: Mapping[str, Any]) -> str:
    return json.dumps(scaling) if scaling else "null"


def _version() -> str:
    return importlib.metadata.version("transformers")
