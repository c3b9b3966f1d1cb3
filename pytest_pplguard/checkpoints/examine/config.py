"""Checks the config: what is refused, positions, dtype, packing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from importlib.metadata import version
from typing import Any

from ..config import config_checks, is_quantised
from ..jsonfiles import section
from ..locate import Located
from ..streams import Stream
from .result import Findings

_SMALLEST_THETA = 1000
"""No known model has a RoPE base below 10,000; a small one is a slip of the pen."""
_NAMES = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
}
_SCALES = ("scale", "scales", "scale_inv", "zero_point", "qzeros", "absmax")


def check_config_file(
    located: Located,
    config: Mapping[str, Any],
    found: Findings,
    *,
    window: int | None,
    trust_remote_code: bool,
) -> None:
    """What the config says by itself."""
    for code, check in config_checks(located, trust_remote_code=trust_remote_code):
        with found.collect(code, "config.json"):
            check()
    text = {**config, **section(config, "text_config")}
    _check_theta(located.spec, text, found)
    _check_window(located.spec, text, found, window)
    saved_by = config.get("transformers_version")
    if isinstance(saved_by, str) and _major(saved_by) > _major(version("transformers")):
        found.note(
            "newer-transformers",
            "config.json: transformers_version",
            f"{located.spec} was saved by transformers {saved_by}, and "
            f"{version('transformers')} is installed: fields that it does not know are "
            "left out",
        )


def _major(text: str) -> int:
    first = text.partition(".")[0]
    return int(first) if first.isdecimal() else 0


def _check_theta(spec: str, text: Mapping[str, Any], found: Findings) -> None:
    new = section(text, "rope_parameters")
    layers = [value for value in new.values() if isinstance(value, dict)] or [new]
    for settings in (text, *layers):
        theta = settings.get("rope_theta")
        if isinstance(theta, int | float) and not theta >= _SMALLEST_THETA:
            found.warning(
                "rope-theta",
                "config.json: rope_theta",
                f"{spec}: rope_theta is {theta}, below any known model's (10000 and "
                "more): compare it with the base model's config",
            )


def _check_window(
    spec: str, text: Mapping[str, Any], found: Findings, window: int | None
) -> None:
    limit = text.get("max_position_embeddings")
    if window is None or not isinstance(limit, int) or window <= limit:
        return
    found.error(
        "window",
        "config.json: max_position_embeddings",
        f"{spec}: a window of {window} tokens is longer than the {limit} positions "
        f"that the model was made for: measure with --window {limit} or less",
    )


def check_packing_of(
    located: Located,
    config: Mapping[str, Any],
    streams: Iterable[Stream],
    packed: Iterable[str],
    found: Findings,
) -> None:
    """Whether the weights are packed where the config says so, and only there."""
    streams, packed = list(streams), sorted(packed)
    if located.gguf or not streams:
        return
    packing = section(config, "quantization_config")
    if packed and not packing:
        found.error(
            "packed",
            packed[0],
            f"{located.spec}: weights are packed ({len(packed)}, like {packed[0]}), "
            "but config.json has no quantization_config that says how: bring it back "
            "from the folder that the quantiser wrote",
        )
    dense = all(
        stream.dtype in _NAMES and stream.name.rpartition(".")[2] not in _SCALES
        for stream in streams
        if not stream.name.endswith(_SCALES)
    ) and not any(stream.name.endswith(_SCALES) for stream in streams)
    if is_quantised(config) and dense and not packed:
        method = packing.get("quant_method") or "a quantiser"
        found.warning(
            "not-packed",
            "config.json: quantization_config",
            f"{located.spec}: quantization_config names {method}, but all weights are "
            "plain floats without scales: delete it if they were dequantised",
        )


def check_dtype(
    spec: str, config: Mapping[str, Any], dtypes: Counter[str], found: Findings
) -> str | None:
    """The dtype in which the model runs by its config; whether most weights have it."""
    named = None
    for settings in (section(config, "text_config"), config):
        named = settings.get("dtype") or settings.get("torch_dtype") or named
    if not isinstance(named, str):
        return None
    named = named.removeprefix("torch.")
    stored = _NAMES.get(dtypes.most_common(1)[0][0]) if dtypes else None
    if stored is not None and stored != named:
        found.note(
            "dtype",
            "config.json: dtype",
            f"{spec}: config.json says {named}, most weights are stored as {stored}: "
            f"by default it is measured in {named}",
        )
    return named
