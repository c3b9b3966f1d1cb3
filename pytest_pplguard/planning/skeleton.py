"""What a checkpoint's config makes of a model: its shape, without any weights.

transformers builds the model on torch's ``meta`` device, where tensors have a shape and
no data: a model of 405 billion parameters takes a second and no memory.
"""

from __future__ import annotations

import math
import re
from copy import deepcopy
from typing import TYPE_CHECKING, Any

from msgspec import Struct

from ..checkpoints.compressed import split_compressed
from ..checkpoints.config import check_config, is_quantised
from ..checkpoints.files import read_config, tensor_index, weight_files
from ..checkpoints.gguf import open_gguf
from ..checkpoints.jsonfiles import read_json, section
from ..checkpoints.load import quiet
from ..checkpoints.locate import (
    ADAPTER_PICKLE,
    ADAPTER_WEIGHTS,
    SAFETENSORS_INDEX,
    Located,
)
from ..errors import CheckpointError
from ..startup import importing
from ..tensornames import is_derived, layer_of
from .plan import Disk
from .shape import Layer, Shape

if TYPE_CHECKING:
    from torch import nn

_NEEDED = ("hidden_size", "num_hidden_layers")
_USUAL = ("vocab_size", "num_attention_heads")
_CHANGES_LOGITS = ("final_logit_softcapping", "logit_scale", "logits_scaling")
"""Fields of configs whose models do something to the head's output."""
_UNFUSED = ("gelu_new", "gelu_fast", "gelu_accurate")
"""Activations that transformers computes step by step."""
_SENSES = re.compile(r"(^|\.)(vision|visual|image|audio|speech)")
"""Parts of a model that text does not go through."""
_READ = ("num_experts_per_tok", "num_experts_per_token", "moe_topk", "top_k_experts")


class Skeleton(Struct, frozen=True, eq=False):
    """A config of transformers, the shape that it makes, and lines for the user."""

    config: Any
    shape: Shape
    notices: tuple[str, ...] = ()


def skeleton(located: Located, *, trust_remote_code: bool = False) -> Skeleton:
    """The shape of a checkpoint, from its config alone; of an adapter, its base's.

    Raises:
        CheckpointError: the config cannot be read, lacks what decides the shape, or is
            of no causal language model that the installed transformers knows.
    """
    whole = located.model
    notices: tuple[str, ...] = ()
    if whole.gguf:
        open_gguf(whole)  # what is broken is refused before transformers reads it
    else:
        check_config(whole, trust_remote_code=trust_remote_code)
    with importing():
        import transformers.modeling_utils  # noqa: F401
        from transformers import AutoConfig

    options: dict[str, Any] = {
        "local_files_only": True,
        "trust_remote_code": trust_remote_code,
    }
    if whole.gguf:
        options["gguf_file"] = whole.gguf
    else:
        _check_type(whole)
    with quiet(bars=whole.gguf is not None):
        try:
            config = AutoConfig.from_pretrained(whole.folder, **options)
        # Configs check their fields in their own ways.
        except Exception as error:
            raise CheckpointError(
                f"{located.spec}: {_no_config(whole, error)}"
            ) from error
        if not whole.gguf:
            notices = _check_fields(whole, config)
        model = empty_model(located.spec, config, trust_remote_code)
        try:
            shape = shape_of(model, config)
        # Code of others names the parts of its models as it likes.
        except (AttributeError, LookupError, TypeError, ValueError) as error:
            raise CheckpointError(
                f"{located.spec}: {type(model).__name__} does not say what it is made "
                f"of, as models of transformers do ({type(error).__name__}: {error})"
            ) from error
    return Skeleton(config, shape, notices)


def empty_model(
    spec: str, config: Any, trust_remote_code: bool, *, attention: str | None = None
) -> nn.Module:
    """The model of a config on the ``meta`` device.

    Raises:
        CheckpointError: transformers knows no causal language model for it, or its
            fields contradict each other.
    """
    import torch
    from transformers import AutoModelForCausalLM

    config = deepcopy(config)
    # Packed or not, the weights stand for as many numbers.
    vars(config).pop("quantization_config", None)
    settings = {} if attention is None else {"attn_implementation": attention}
    try:
        with torch.device("meta"):
            model: nn.Module = AutoModelForCausalLM.from_config(
                config, trust_remote_code=trust_remote_code, **settings
            )
    # Architectures check their config in their own ways.
    except Exception as error:
        first = str(error).strip().partition("\n")[0]
        if first.startswith("Unrecognized configuration class"):
            first = (
                f"transformers has no causal language model for model_type "
                f"{getattr(config, 'model_type', None)!r}"
            )
        raise CheckpointError(f"{spec}: no model can be built: {first}") from error
    return model


def with_layers(config: Any, count: int) -> Any:
    """A copy of a config for a model with the first ``count`` layers alone."""
    shorter = deepcopy(config)
    text = shorter.get_text_config()
    layers = text.num_hidden_layers
    for name, value in list(vars(text).items()):
        if isinstance(value, list) and len(value) == layers:
            setattr(text, name, value[:count])
    text.num_hidden_layers = count
    return shorter


# ------------------------------------------------------------------------- the config


def _check_type(located: Located) -> None:
    config = read_config(located)
    if not config.get("model_type") and "auto_map" not in config:
        raise CheckpointError(
            f"{located.spec}: config.json has no model_type, so nobody can tell what "
            "the model is: take the config.json that the model was published with"
        )


def _no_config(located: Located, error: Exception) -> str:
    first = str(error).strip().partition("\n")[0]
    if "does not recognize this architecture" in str(error):
        kind = read_config(located).get("model_type")
        import transformers

        return (
            f"transformers {transformers.__version__} does not know the model_type "
            f"{kind!r} of its config.json: install a newer one, or look for a slip"
        )
    return f"its config could not be read: {first or type(error).__name__}"


def _check_fields(located: Located, config: Any) -> tuple[str, ...]:
    """Refuse a config that leaves to defaults how large the model is.

    transformers would fill in the numbers of some model of the architecture.
    """
    written = read_config(located)
    text = config.get_text_config()
    names = getattr(type(text), "attribute_map", {})
    places = [
        written,
        *(section(written, key) for key in ("text_config", "llm_config")),
    ]

    def has(name: str) -> bool:
        spellings = {name, names.get(name, name)}
        return any(spellings & place.keys() for place in places)

    missing = [name for name in _NEEDED if not has(name)]
    if missing:
        raise CheckpointError(
            f"{located.spec}: config.json has no {' and no '.join(missing)}, and a "
            f"default of {type(text).__name__} would be another model's: take the "
            "config.json that the model was published with"
        )
    assumed = [
        f"{name} {getattr(text, name)}"
        for name in _USUAL
        if not has(name) and getattr(text, name, None) is not None
    ]
    if not assumed:
        return ()
    return (
        f"{located.spec}: config.json leaves to transformers' default: "
        + ", ".join(assumed),
    )


# -------------------------------------------------------------------------- the shape


def shape_of(model: nn.Module, config: Any) -> Shape:
    """The shape of a model; each parameter counts once, however often it is used."""
    text = config.get_text_config()
    getter: Any = model
    embedding = getter.get_input_embeddings().weight
    head_module = getter.get_output_embeddings()
    head = getattr(head_module, "weight", None)
    named = dict(model.named_parameters())  # those that are tied are named once
    tied = bool(getattr(text, "tie_word_embeddings", False)) or head is embedding
    groups: dict[str, dict[str, Any]] = {}
    others = 0
    for name, weight in named.items():
        layer = layer_of(name)
        if layer is not None and _SENSES.search(layer) is None:
            groups.setdefault(layer, {})[name[len(layer) + 1 :]] = weight
        elif weight is not embedding and weight is not head:
            others += weight.numel()
    layers = tuple(
        _layer(weights, text, index) for index, weights in enumerate(groups.values())
    )
    return Shape(
        architecture=type(model).__name__,
        hidden=text.hidden_size,
        vocabulary=int(embedding.shape[0] if head is None else head.shape[0]),
        layers=layers,
        embedding=embedding.numel(),
        head=0 if head is None or tied else head.numel(),
        others=others,
        tied=tied,
        whole_logits=head is None or _changes_logits(text),
    )


def _changes_logits(config: Any) -> bool:
    values = [getattr(config, name, None) for name in _CHANGES_LOGITS]
    return any(value not in (None, 1, 1.0, 0) for value in values)


def _layer(weights: dict[str, Any], config: Any, index: int) -> Layer:
    def of(name: str, usual: int = 0) -> int:
        value = getattr(config, name, None)
        return value if isinstance(value, int) and value > 0 else usual

    hidden = of("hidden_size")
    matrices = {name: w for name, w in weights.items() if w.ndim > 1}
    experts = {
        name: w
        for name, w in weights.items()
        if ".experts." in f".{name}." and "shared" not in name
    }
    attends = any("attn" in name or "attention" in name for name in matrices)
    heads = of("num_attention_heads") if attends else 0
    size = of("head_dim", hidden // heads if heads else 0)
    middle = _middle(experts or matrices, hidden)
    parts = of("qk_nope_head_dim") + of("qk_rope_head_dim")  # DeepSeek's
    return Layer(
        parameters=sum(w.numel() for w in weights.values()),
        products=sum(w.numel() for w in matrices.values()),
        middle=middle,
        copies=_copies(experts or matrices, config, hidden, middle),
        heads=heads,
        queries=heads * (parts or size),
        keys=of("num_key_value_heads", heads) * size if heads else 0,
        values=heads * of("v_head_dim", size),
        experts=sum(w.numel() for w in experts.values()),
        count=_experts(experts, config) if experts else 1,
        read=next(filter(None, map(of, _READ)), 1) if experts else 1,
        reach=_reach(config, index),
    )


def _middle(matrices: dict[str, Any], hidden: int) -> int:
    """The widest that a matrix takes back to the hidden size, attention's aside."""
    back = [into for into, out in _of_mlp(matrices) if out == hidden]
    return max(back, default=0)


def _copies(matrices: dict[str, Any], config: Any, hidden: int, middle: int) -> int:
    """How many tensors as wide as the MLP live at once."""
    names = ("hidden_act", "activation_function", "hidden_activation")
    activations = [getattr(config, name, None) for name in names]
    into = [out for size, out in _of_mlp(matrices) if size == hidden]
    if 2 * middle in into or {*activations} & {*_UNFUSED}:
        return 4
    return 3 if into.count(middle) > 1 else 2


def _of_mlp(matrices: dict[str, Any]) -> list[tuple[int, int]]:
    """From how many numbers to how many each matrix goes.

    Weights are [out x in], those of GPT-2 [in x out], experts' [count x out x in].
    """
    found = []
    for name, weight in matrices.items():
        if "attn" in name or "attention" in name or weight.ndim > 3:
            continue
        out, into = weight.shape[-2:]
        turned = "c_fc" in name or "c_proj" in name
        found.append((out, into) if turned else (into, out))
    return found


def _experts(experts: dict[str, Any], config: Any) -> int:
    """How many there are: one tensor for all, or each with tensors of its own."""
    stacked = [w.shape[0] for w in experts.values() if w.ndim == 3]
    if stacked:
        return int(max(stacked))
    numbers = {
        part
        for name in experts
        for part in name.partition("experts.")[2].split(".")[:1]
        if part.isdecimal()
    }
    return max(1, len(numbers))


def _reach(config: Any, index: int) -> int | None:
    """The sliding window of a layer, by what transformers calls its type."""
    width = getattr(config, "sliding_window", None)
    types = getattr(config, "layer_types", None)
    if not isinstance(width, int) or not getattr(config, "use_sliding_window", True):
        return None
    if isinstance(types, list) and index < len(types):
        return width if types[index] == "sliding_attention" else None
    return width


# ---------------------------------------------------------------------------- files


def disk_of(located: Located, shape: Shape, itemsize: int) -> Disk:
    """Bytes of the files that hold the weights; of an adapter, its base's too.

    Args:
        located: of a checkpoint, or of its config alone.
        shape: of the model.
        itemsize: bytes of a weight as it was saved, for files that are not here.
    """
    whole = located.model
    extra = sum(
        (located.folder / name).stat().st_size
        for name in (ADAPTER_WEIGHTS, ADAPTER_PICKLE)
        if located.base is not None and (located.folder / name).is_file()
    )
    if whole.gguf:
        return Disk((whole.folder / whole.gguf).stat().st_size + extra, "files")
    try:
        files = weight_files(whole.folder, allow_pickle=True)
    except CheckpointError:  # none, or not all of them yet
        index = whole.folder / SAFETENSORS_INDEX
        total = (
            section(read_json(index), "metadata").get("total_size")
            if (index.is_file())
            else None
        )
        if isinstance(total, int):
            return Disk(total + extra, "index")
        return Disk(shape.parameters * itemsize + extra, "estimated")
    return Disk(sum(file.stat().st_size for file in files) + extra, "files")


def stored_parameters(located: Located) -> int | None:
    """Numbers that the headers of safetensors files count, without any of the weights.

    None where there are no such files, or not all, or they are packed: quantised, or
    sparse in a format of their own.
    """
    whole = located.model
    if whole.gguf or is_quantised(read_config(whole)):
        return None
    try:
        tensors = tensor_index(whole.folder)
    except CheckpointError:  # whoever loads it will say so
        return None
    if not tensors or split_compressed(tensors, whole.spec, quantised=False)[0]:
        return None
    return sum(
        math.prod(tensor.shape)
        for name, tensor in tensors.items()
        if not is_derived(name)
    )


def is_packed(located: Located) -> bool:
    """Whether the files hold fewer bytes than the model has numbers: quantised."""
    return located.model.gguf is not None or is_quantised(read_config(located))
