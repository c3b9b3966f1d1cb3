"""Merges a PEFT adapter into its base model, in memory."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection
from typing import TYPE_CHECKING, Any

from ..errors import CheckpointError
from .config import is_quantised, refuse_remote_code
from .device import is_out_of_memory
from .files import read_config, read_header
from .jsonfiles import read_json
from .locate import (
    ADAPTER_CONFIG,
    ADAPTER_PICKLE,
    ADAPTER_WEIGHTS,
    Located,
    has_tokenizer,
)

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_MISMATCH = re.compile(
    r"size mismatch for (\S+): copying a param with shape torch\.Size\(\[(.*?)\]\) "
    r"from checkpoint, the shape in current model is torch\.Size\(\[(.*?)\]\)"
)
_SHOWN = 3


def check_adapter(
    located: Located, *, allow_pickle: bool, trust_remote_code: bool
) -> None:
    """Look at an adapter's files, and for peft, before the base is loaded.

    Raises:
        CheckpointError: it has no weights, its base is quantised, something is needed
            that was not allowed, or peft is not installed.
    """
    if not trust_remote_code:
        refuse_remote_code(located)
        if read_json(located.folder / ADAPTER_CONFIG).get("megatron_config"):
            raise CheckpointError(
                f"{located.spec} names a Python module to import (megatron_core beside "
                f"megatron_config in {ADAPTER_CONFIG}): trust it with "
                "--ppl-trust-remote-code, or delete megatron_config"
            )
    if is_quantised(read_config(located)):
        raise CheckpointError(
            f"the base {located.model.spec} of the adapter {located.spec} is "
            "quantised, and a merge would round its weights again: give the dense "
            f"base, {located.spec}+BASE"
        )
    if (located.folder / ADAPTER_WEIGHTS).is_file():
        read_header(located.folder / ADAPTER_WEIGHTS)
    elif not (located.folder / ADAPTER_PICKLE).is_file():
        raise CheckpointError(f"{located.spec} has no weights: no {ADAPTER_WEIGHTS}")
    elif not allow_pickle:
        raise CheckpointError(
            f"{located.spec} has pickle weights only ({ADAPTER_PICKLE}), and "
            "unpickling can run code: save the adapter again with a current peft, or "
            "trust it with --ppl-allow-pickle"
        )
    try:
        import peft  # noqa: F401
    except ImportError as error:
        raise CheckpointError(
            f"{located.spec} is an adapter, and merging it needs the package peft: "
            "pip install 'pytest-pplguard[peft]'"
        ) from error


def with_tokenizer(located: Located) -> Located:
    """The folder that the tokenizer comes from: the adapter's, else its base's."""
    return located if has_tokenizer(located.folder) else located.model


def merge_adapter(
    model: PreTrainedModel, located: Located
) -> tuple[PreTrainedModel, tuple[str, ...]]:
    """The base model with the adapter in its weights, and lines for the user.

    Merged by peft's ``merge_and_unload`` in the dtype of ``model``, which is changed:
    tied embeddings of which the adapter changes one are no longer tied then.

    Raises:
        CheckpointError: the adapter cannot be merged, or does not belong to the base.
    """
    import torch
    from peft import PeftConfig, PeftModel

    folder = str(located.folder)
    spec, base = located.spec, located.model.spec
    # peft would spread a model with this attribute over devices again; it is on one.
    vars(model).pop("hf_device_map", None)
    try:
        config = PeftConfig.from_pretrained(folder)
        # Adapters start out random, some by changing the base; then they are loaded.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            adapted = PeftModel(model, config)
            _check_mergeable(spec, adapted, config)
            result = adapted.load_adapter(
                folder, "default", torch_device=str(model.device)
            )
        _check_landed(spec, base, result.missing_keys, result.unexpected_keys)
        _untie(adapted)
        merged: PreTrainedModel = adapted.merge_and_unload(safe_merge=True)
        _settle_ties(merged)
    except CheckpointError:
        raise
    # Every kind of adapter finds its own words for a base that does not fit.
    except Exception as error:
        if is_out_of_memory(error):
            raise
        raise _misfit(spec, base, _said(error)) from error
    return merged, _notices(located, config)


def _check_mergeable(spec: str, adapted: Any, config: Any) -> None:
    if config.is_prompt_learning or not hasattr(adapted.base_model, "merge_and_unload"):
        raise CheckpointError(
            f"{spec} is an adapter of the kind {config.peft_type.value}, which has no "
            "weights to merge into the base: only kinds that change weights, like "
            "LoRA, can be measured"
        )


def _untie(adapted: Any) -> None:
    """Give each adapted module its own copy of a weight that another module shares.

    Unmerged, an adapter on the head of tied embeddings leaves the embedding as it is,
    and the other way round; merged into the one tensor it would change both.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer
    from torch.nn import Parameter

    uses = Counter(
        id(weight) for _, weight in adapted.named_parameters(remove_duplicate=False)
    )
    for layer in adapted.modules():
        if not isinstance(layer, BaseTunerLayer):
            continue
        module = layer.get_base_layer()
        for name, weight in list(module.named_parameters(recurse=False)):
            if uses[id(weight)] > 1:
                setattr(module, name, Parameter(weight.detach().clone()))


def _settle_ties(model: PreTrainedModel) -> None:
    """Let the config say that the embeddings are untied, where they are."""
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    if head is not None and head.weight is not embedding.weight:
        model.config.tie_word_embeddings = False


def _check_landed(
    spec: str, base: str, missing: Collection[str], unexpected: Collection[str]
) -> None:
    for keys, what in (
        (unexpected, "has weights that no module of the base takes"),
        (missing, "lacks weights that its adapter_config.json asks for"),
    ):
        if keys:
            names = sorted(map(_plain, keys))
            more = ", ..." if len(names) > _SHOWN else ""
            raise _misfit(spec, base, f"it {what} ({', '.join(names[:_SHOWN])}{more})")


def _misfit(spec: str, base: str, why: str) -> CheckpointError:
    return CheckpointError(
        f"the adapter {spec} does not fit its base {base}: {why}. Name the model that "
        f"it was trained on: {spec}+BASE"
    )


def _said(error: Exception) -> str:
    """What peft or torch said, in one line."""
    text = " ".join(str(error).split())
    if mismatches := _MISMATCH.findall(text):
        name, saved, wanted = mismatches[0]
        return (
            f"{len(mismatches)} of its weights have another shape, like "
            f"{_plain(name)} ([{saved}] in the adapter, [{wanted}] for the base)"
        )
    return text.rstrip(".") or type(error).__name__


def _plain(key: str) -> str:
    """A weight's name without what peft puts around it while loading."""
    return key.removeprefix("base_model.model.").replace(".default.", ".")


def _notices(located: Located, config: Any) -> tuple[str, ...]:
    """Settings of a newer peft, which the installed one leaves out."""
    settings = read_json(located.folder / ADAPTER_CONFIG)
    unknown = sorted(
        name for name, value in settings.items() if value and not hasattr(config, name)
    )
    if not unknown:
        return ()
    import peft

    return (
        f"{located.spec}: peft {peft.__version__} does not know "
        f"{', '.join(unknown)} of adapter_config.json; if the number surprises, "
        "upgrade peft",
    )
