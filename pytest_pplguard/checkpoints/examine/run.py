"""Examines a checkpoint: calls every check, whatever the others found."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from ...errors import CheckpointError
from ...values import TensorFacts
from ..adapter import check_adapter
from ..config import is_quantised
from ..files import read_config, read_header, weight_files
from ..fingerprint import tensor_facts
from ..gguf import gguf_fields
from ..jsonfiles import section
from ..load import check_method
from ..locate import (
    ADAPTER_CONFIG,
    ADAPTER_WEIGHTS,
    SAFETENSORS,
    SAFETENSORS_INDEX,
    Located,
    locate,
)
from ..sparsity import linear_weights, packed_weights
from ..streams import Stream, file_streams, state_streams, stored_streams
from .config import check_config_file, check_dtype, check_packing_of
from .files import check_files, file_sizes, readable_tensors
from .model import check_head, check_keys, check_tokenizer
from .places import named
from .result import Examination, Findings
from .rows import Inside, check_rows, look_inside, pattern_of
from .table import zero_table
from .weights import check_weights

_EMBEDDINGS = (
    "embed_tokens.weight",
    "embed_in.weight",
    "wte.weight",
    "word_embeddings.weight",
    "token_embd.weight",
)


def examine(
    spec: str,
    *,
    window: int | None = None,
    allow_pickle: bool = False,
    trust_remote_code: bool = False,
) -> Examination:
    """Look a checkpoint over; nothing is run, and no more than a chunk is in memory.

    Args:
        spec: as of :func:`~..locate.locate`.
        window: in tokens, if the user has one in mind.
        allow_pickle: read pickle weights, all of them at once, as tensors only.
        trust_remote_code: run Python code that the checkpoint brings along.

    Raises:
        CheckpointError: there is nothing to examine.
    """
    found = Findings()
    located = _locate(
        spec, found, allow_pickle=allow_pickle, trust_remote_code=trust_remote_code
    )
    whole = located.model
    config: dict[str, Any] = {}
    if (whole.folder / "config.json").is_file():
        with found.collect("config", "config.json"):
            config = read_config(whole)
    streams = _streams(whole, config, found, allow_pickle=allow_pickle)
    linear = linear_weights(streams, config)
    with ThreadPoolExecutor(1) as pool:
        # Reading goes on while torch and transformers are imported.
        weighing = pool.submit(_weigh, streams, linear, config)
        model = None
        if config:
            check_config_file(
                whole, config, found, window=window, trust_remote_code=trust_remote_code
            )
            if not found.has("remote-code", "packing", "rope", "weights-elsewhere"):
                model = _check_model(
                    whole, config, streams, found, trust_remote_code=trust_remote_code
                )
        if (config or whole.gguf) and not found.has("remote-code", "no-tokenizer"):
            check_tokenizer(
                located, config, _rows(streams), found, window=window,
                trust_remote_code=trust_remote_code,
            )  # fmt: skip
        _check_adapter_files(
            located, found, allow_pickle=allow_pickle,
            trust_remote_code=trust_remote_code,
        )  # fmt: skip
        facts: dict[str, TensorFacts] = {}
        insides: list[Inside] = []
        with found.collect("file", whole.folder.name):
            facts, insides = weighing.result()
    check_files(whole, found)
    check_packing_of(whole, config, streams, packed_weights(streams, config), found)
    dtypes = Counter[str]()
    for each in facts.values():
        dtypes[each.dtype] += each.size
    dtype = check_dtype(whole.spec, config, dtypes, found)
    linear = [name for name in linear if name in facts]
    check_weights(whole.spec, facts, linear, found, dtype=dtype)
    if model is not None:
        check_head(whole.spec, model, facts, found)
    check_rows(whole.spec, insides, config, found)
    zeros = zero_table(facts, linear, pattern_of(insides, facts, linear))
    return Examination(
        model=spec,
        form=_form(located, config, streams),
        architecture=_architecture(located, config),
        layers=len(zeros.cells) if zeros else 0,
        parameters=sum(dtypes.values()),
        dtypes=dict(dtypes.most_common()),
        files=file_sizes(located),
        findings=found.sorted(),
        zeros=zeros,
    )


def _locate(
    spec: str, found: Findings, *, allow_pickle: bool, trust_remote_code: bool
) -> Located:
    """Where it is; a folder that is no whole checkpoint is examined all the same."""
    try:
        return locate(
            spec, allow_pickle=allow_pickle, trust_remote_code=trust_remote_code
        )
    except CheckpointError as error:
        folder = _folder(spec)
        if folder is None or not any(path.is_file() for path in folder.iterdir()):
            raise
        code = "base" if _is_adapter(Located(spec, folder)) else "incomplete"
        if (folder / "config.json").is_file() and code == "incomplete":
            code = "no-tokenizer"
        found.error(code, folder.name, str(error))
        return Located(spec, folder)


def _folder(spec: str) -> Path | None:
    """The folder that was meant, also that of an adapter before its base."""
    for end in (len(spec), *(i for i, letter in enumerate(spec) if letter == "+")):
        path = Path(os.path.expanduser(spec[:end]))
        if spec[:end].strip() and path.is_dir():
            return path
    return None


def _is_adapter(located: Located) -> bool:
    return located.gguf is None and (located.folder / ADAPTER_CONFIG).is_file()


def _streams(
    whole: Located, config: Mapping[str, Any], found: Findings, *, allow_pickle: bool
) -> list[Stream]:
    """All tensors that can be read."""
    streams: list[Stream] = []
    if whole.base is None and _is_adapter(whole):
        pass  # its base was not found
    elif whole.gguf:
        with found.collect("file", whole.gguf):
            streams = stored_streams(whole)
    elif tensors := readable_tensors(whole.folder, found, allow_pickle=allow_pickle):
        with found.collect("compressed", "weights"):
            streams = file_streams(tensors, whole.spec, quantised=is_quantised(config))
    elif not found.has("file", "index", "missing-shard"):
        with found.collect("weights", whole.folder.name):
            streams = _pickled(weight_files(whole.folder, allow_pickle=allow_pickle))
    return streams


def _pickled(files: list[Path]) -> list[Stream]:
    """The tensors of pickles, which are mapped."""
    if files[0].suffix == ".safetensors":
        return []  # without a tensor in it
    import torch

    streams = []
    for file in files:
        try:
            state = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
        # Whatever a pickle makes torch say, it is the file that is wrong.
        except Exception as error:
            first = str(error).partition("\n")[0]
            raise CheckpointError(
                f"{file} cannot be read as tensors only: {first}"
            ) from error
        streams += state_streams(state)
    return streams


def _weigh(
    streams: list[Stream], linear: list[str], config: Mapping[str, Any]
) -> tuple[dict[str, TensorFacts], list[Inside]]:
    facts = tensor_facts(streams)
    chosen = [stream for stream in streams if stream.name in set(linear)]
    return facts, look_inside(chosen, facts, config)


def _rows(streams: list[Stream]) -> int | None:
    """Rows of the embedding, in the files."""
    rows = [
        stream.shape[0]
        for stream in streams
        if stream.name.endswith(_EMBEDDINGS) and len(stream.shape) == 2
    ]
    return rows[0] if len(rows) == 1 else None


def _check_model(
    whole: Located,
    config: Mapping[str, Any],
    streams: list[Stream],
    found: Findings,
    *,
    trust_remote_code: bool,
) -> Any:
    if is_quantised(config):
        with found.collect("quantisation", "config.json: quantization_config"):
            check_method(whole.spec, config["quantization_config"])
        return None
    if not streams:
        return None
    return check_keys(whole, streams, found, trust_remote_code=trust_remote_code)


def _check_adapter_files(
    located: Located, found: Findings, *, allow_pickle: bool, trust_remote_code: bool
) -> None:
    """The adapter's own files and numbers; how it fits its base shows in a merge."""
    if not _is_adapter(located):
        return
    if located.base is not None:
        with found.collect("adapter", located.folder.name):
            check_adapter(
                located, allow_pickle=allow_pickle, trust_remote_code=trust_remote_code
            )
    file = located.folder / ADAPTER_WEIGHTS
    if not file.is_file():
        return
    with found.collect("adapter", file.name):
        facts = tensor_facts(
            file_streams(read_header(file), located.spec, quantised=False)
        )
        if bad := [name for name, each in facts.items() if each.bad]:
            found.error(
                "not-finite",
                named(bad),
                f"{located.spec}: {len(bad)} tensors of the adapter like {bad[0]} hold "
                "NaN or infinity: merged, every loss would be NaN",
            )
        second = [name for name in facts if ".lora_B." in name]
        if second and all(facts[name].zeros == facts[name].size for name in second):
            found.warning(
                "untrained",
                file.name,
                f"{located.spec}: all lora_B of the adapter are zeros, so it changes "
                "nothing: was it saved before training?",
            )


def _architecture(located: Located, config: Mapping[str, Any]) -> str:
    if located.gguf:
        try:
            name = gguf_fields(located, "general.architecture")
        except CheckpointError:
            return ""
        return str(name.get("general.architecture", ""))
    named_ = config.get("architectures")
    if isinstance(named_, list) and named_:
        return str(named_[0])
    return str(config.get("model_type") or "")


def _form(located: Located, config: Mapping[str, Any], streams: list[Stream]) -> str:
    if located.base is not None:
        return f"adapter of {located.base.spec}; the weights are its base's"
    if located.gguf:
        return "GGUF, dequantised"
    if is_quantised(config):
        method = section(config, "quantization_config").get("quant_method")
        return f"quantised ({method or 'unknown'}); keys are not compared"
    if not streams:
        return "no weights that can be read"
    for name in ("quantization_config", "compression_config"):
        sparse = section(section(config, name), "sparsity_config").get("format")
        if isinstance(sparse, str) and sparse != "dense":
            return f"sparse-compressed ({sparse}), decoded"
    if (located.folder / SAFETENSORS).is_file():
        return "safetensors, one file"
    sharded = (located.folder / SAFETENSORS_INDEX).is_file()
    return "safetensors, in shards" if sharded else "pickle"
