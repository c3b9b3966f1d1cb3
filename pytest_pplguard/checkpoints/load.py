"""Loads a checkpoint strictly: every weight comes from the files, or it is an error."""

from __future__ import annotations

import errno
import gc
import io
import logging
import os
import re
import shutil
import tempfile
import warnings
import weakref
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, redirect_stderr
from fnmatch import fnmatchcase
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from msgspec import Struct
from msgspec.structs import replace

from ..errors import CheckpointError, DeviceError
from ..safetext import printable
from ..startup import importing
from .adapter import check_adapter, merge_adapter, with_tokenizer
from .compressed import decoded_state, split_compressed
from .config import check_config, is_quantised
from .device import is_out_of_memory
from .files import (
    TensorInfo,
    index_notices,
    read_config,
    refuse_prune_masks,
    tensor_index,
    weight_files,
)
from .gguf import gguf_fields, open_gguf
from .gguf_tokenizer import set_pre_tokenizer
from .locate import Located
from .offloaded import device_of, loader_of
from .placement import CPU, DISK, Placement, placed
from .streams import Stream

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_ALLOW = (
    "if that is right, list them under allow_keys of the checkpoint in its baseline "
    "file"
)
_WRAPPERS = {
    "_orig_mod.": "torch.compile",
    "_fsdp_wrapped_module.": "FSDP",
    "_checkpoint_wrapped_module.": "activation checkpointing",
    "module.": "DataParallel",
}
_LISTED = 5
_RANDOM = "transformers would have filled in random numbers"
# What transformers 4 makes of the device "disk" where no part is elsewhere.
_NO_DEVICE = re.compile(r"device disk is invalid|device string: disk$", re.M)
_CONVERSION = re.compile(r"^(\S+)\s*\|\s*\S*CONVERSION", re.MULTILINE)


class Loaded(Struct, frozen=True, eq=False, weakref=True):
    """A model that is ready to be measured, with its tokenizer.

    ``device``, ``dtype`` and ``attention`` are what the model really has; its first
    weights are on ``device`` if it is on several. ``notices`` are lines for the user.
    ``from_files`` says that :func:`load` made it, so that nothing but its files and
    config decides what it computes.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    device: str
    dtype: str
    attention: str
    notices: tuple[str, ...] = ()
    from_files: bool = False

    @classmethod
    def of(cls, model: Any, tokenizer: Any, notices: tuple[str, ...] = ()) -> Loaded:
        """Describe a model that is already in memory.

        Args:
            model: a ``PreTrainedModel``, or a module that behaves like one.
            tokenizer: that belongs to it.
            notices: lines for the user.
        """
        weight = next(p for p in model.parameters() if p.is_floating_point())
        config = getattr(model, "config", None)
        return cls(
            model=model,
            tokenizer=tokenizer,
            device=str(device_of(model)),
            dtype=str(weight.dtype).removeprefix("torch."),
            attention=str(getattr(config, "_attn_implementation", None)),
            notices=notices,
        )


def load(
    located: Located,
    *,
    device: str | Placement,
    dtype: str,
    attention: str | None = None,
    allow_pickle: bool = False,
    trust_remote_code: bool = False,
    allow_keys: Sequence[str] = (),
) -> Loaded:
    """Load model and tokenizer, in evaluation mode and without gradients.

    Args:
        located: from :func:`locate`.
        device: torch device, or a placement on several.
        dtype: torch dtype by name.
        attention: attention implementation (``sdpa``, ``eager``, ...); None lets
            transformers choose.
        allow_pickle: load ``pytorch_model*.bin`` where there is no safetensors file.
        trust_remote_code: run Python code that the checkpoint brings along.
        allow_keys: globs of tensors in the files that the model need not have.

    Raises:
        CheckpointError: files, weights, config and tokenizer do not fit together, or
            something is needed that was not allowed.
        DeviceError: the device ran out of memory.
    """
    place = device if isinstance(device, Placement) else Placement(device)
    whole = located.model
    check_config(whole, trust_remote_code=trust_remote_code)
    if located.base is not None:
        check_adapter(
            located, allow_pickle=allow_pickle, trust_remote_code=trust_remote_code
        )
    quantised = is_quantised(read_config(whole))
    options = _options(whole, trust_remote_code=trust_remote_code)
    settings = dict(options)
    if attention is not None:
        settings["attn_implementation"] = attention
    tensors: dict[str, TensorInfo] = {}
    if whole.gguf:
        open_gguf(whole)  # what is broken is refused before transformers reads it
    else:
        files = weight_files(whole.folder, allow_pickle=allow_pickle)
        tensors = tensor_index(whole.folder, allow_pickle=allow_pickle)
        settings["use_safetensors"] = files[0].suffix == ".safetensors"
    tokenized = with_tokenizer(located)
    _import_transformers()
    with (
        quiet(bars=whole.gguf is not None or quantised) as log,
        _memory(located.spec, place.device, dtype),
        _nothing_at_random() if quantised else nullcontext(),
        _offloading(located.spec, place) as settle,
    ):
        tokenizer = _tokenizer(tokenized, options)
        model, info = _model(
            whole,
            partial(_from_pretrained, whole, settings, tensors),
            settle.options,
            dtype,
            log,
        )
        notices = settle(model)
        _check_keys(whole.spec, type(model).__name__, info, allow_keys)
        if located.base is not None:
            model, merged = merge_adapter(model, located)
            notices += merged
        if quantised:
            _run_once(whole.spec, model)
            notices += _dequantised(whole.spec, log)
    rule = _set_gguf_rule(tokenized, tokenizer)
    _check_vocabulary(located, model, tokenizer)
    model.eval()
    model.requires_grad_(False)
    notices = (*index_notices(whole), *notices, *((rule,) if rule else ()))
    notices = tuple(map(printable, notices))
    return replace(Loaded.of(model, tokenizer, notices), from_files=True)


def _import_transformers() -> None:
    """At once what ``from_pretrained`` would import bit by bit, of any architecture."""
    with importing():
        import transformers.modeling_utils  # noqa: F401
        from transformers import AutoModelForCausalLM, AutoTokenizer  # noqa: F401


def _options(located: Located, *, trust_remote_code: bool) -> dict[str, Any]:
    """What ``from_pretrained`` of model, config and tokenizer all take."""
    options: dict[str, Any] = {
        "local_files_only": True,
        "trust_remote_code": trust_remote_code,
    }
    if located.gguf:
        options["gguf_file"] = located.gguf
    return options


# ----------------------------------------------------------------------------- loading


@contextmanager
def quiet(*, bars: bool) -> Iterator[list[str]]:
    """No progress bars and warnings while loading; what is logged is yielded.

    Args:
        bars: there are some that only stderr can silence: of GGUF, of quantisers.
    """
    from transformers.utils import logging as transformers_logging

    loggers = [logging.getLogger(name) for name in ("transformers", "accelerate")]
    shown = transformers_logging.is_progress_bar_enabled()
    lines: list[str] = []
    saved = [(each, each.handlers, each.level, each.propagate) for each in loggers]
    for logger in loggers:
        logger.handlers, logger.propagate = [_Lines(lines)], False
        logger.setLevel(logging.WARNING)
    transformers_logging.disable_progress_bar()
    try:
        with (
            warnings.catch_warnings(),
            redirect_stderr(io.StringIO()) if bars else nullcontext(),
        ):
            warnings.simplefilter("ignore")
            yield lines
    finally:
        for logger, handlers, level, propagate in saved:
            logger.handlers, logger.propagate = handlers, propagate
            logger.setLevel(level)
        if shown:
            transformers_logging.enable_progress_bar()


class _Lines(logging.Handler):
    """Collects messages."""

    def __init__(self, lines: list[str]) -> None:
        super().__init__()
        self._lines = lines

    def emit(self, record: logging.LogRecord) -> None:
        self._lines.append(record.getMessage())


def load_tokenizer(
    located: Located, *, trust_remote_code: bool
) -> PreTrainedTokenizerBase:
    """The tokenizer alone, as :func:`load` gives it.

    Raises:
        CheckpointError: transformers cannot read it.
    """
    tokenized = with_tokenizer(located)
    with quiet(bars=located.model.gguf is not None):
        tokenizer = _tokenizer(
            tokenized, _options(located.model, trust_remote_code=trust_remote_code)
        )
    _set_gguf_rule(tokenized, tokenizer)
    return tokenizer


def _tokenizer(located: Located, options: Mapping[str, Any]) -> PreTrainedTokenizerBase:
    from transformers import AutoTokenizer

    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            located.folder, **options
        )
    # Tokenizer backends raise bare Exceptions for files that they cannot parse.
    except Exception as error:
        raise CheckpointError(
            f"{located.spec}: its tokenizer could not be loaded: {_first_line(error)}"
        ) from error
    return tokenizer


def _set_gguf_rule(located: Located, tokenizer: PreTrainedTokenizerBase) -> str | None:
    if located.gguf is None:
        return None
    fields = gguf_fields(located, "tokenizer.ggml.model", "tokenizer.ggml.pre")
    return set_pre_tokenizer(
        tokenizer,
        kind=fields.get("tokenizer.ggml.model"),
        rule=fields.get("tokenizer.ggml.pre"),
    )


def fit(
    located: Located, tensors: Iterable[Stream], *, trust_remote_code: bool
) -> tuple[PreTrainedModel, dict[str, str]]:
    """The model without its weights, and in what its tensors do not fit it.

    transformers does all that it does with weights, on tensors that have a dtype and a
    shape but no data: nothing is read, and next to no memory is needed.

    Args:
        located: a folder; its ``config.json`` decides what the model is.
        tensors: everything that the files hold.
        trust_remote_code: run Python code that the checkpoint brings along.

    Returns:
        The model on torch's ``meta`` device, and sentences by what they are about:
        ``missing``, ``shape``, ``unexpected``.

    Raises:
        CheckpointError: transformers cannot build the model, or put the weights
            together.
    """
    import torch

    def make() -> Callable[..., Any]:
        state = {
            tensor.name: torch.empty(
                tensor.shape,
                dtype=torch.float32 if tensor.is_float else torch.uint8,
                device="meta",
            )
            for tensor in tensors
        }
        return _of_state(_config(located, trust), state, trust)

    trust = {"trust_remote_code": trust_remote_code}
    with quiet(bars=False) as log:
        model, info = _model(
            located, make, {"device_map": {"": "meta"}}, "float32", log
        )
    return model, _key_problems(info, ())


def _model(
    located: Located,
    make: Callable[[], Callable[..., Any]],
    places: Mapping[str, Any],
    dtype: str,
    log: list[str],
) -> tuple[PreTrainedModel, dict[str, Any]]:
    """The model and transformers' account of its weights.

    ``places`` are the options of ``from_pretrained`` that say where weights go.
    """
    import torch

    try:
        model, info = make()(
            dtype=getattr(torch, dtype),
            **places,
            # Only so that all of them are reported: _check_keys refuses them.
            ignore_mismatched_sizes=True,
            output_loading_info=True,
            weights_only=True,
        )
    except ImportError as error:
        raise CheckpointError(
            f"{located.spec} needs a package that is not installed: "
            f"{str(error).partition(chr(10))[0]}"
        ) from error
    except CheckpointError:
        raise
    # Architectures check their config and files in their own ways.
    except Exception as error:
        if is_out_of_memory(error):
            raise
        if "offload_folder" in places and _is_full(error):
            raise CheckpointError(
                f"{located.spec}: no room in {tempfile.gettempdir()} for weights that "
                "go to disk: set TMPDIR to a folder with room, or give "
                "--ppl-max-memory more"
            ) from error
        if "offload_folder" in places and _NO_DEVICE.search(str(error)):
            raise CheckpointError(
                f"{located.spec}: transformers {version('transformers')} cannot put a "
                "whole model on disk: give --ppl-max-memory cpu more, or install "
                "transformers 5"
            ) from error
        if broken := sorted(set(_CONVERSION.findall("\n".join(log)))):
            raise CheckpointError(
                f"{located.spec}: {_named(broken)} could not be put together: tensors "
                "in the files that it is made of are missing or differ in shape"
            ) from error
        raise CheckpointError(
            f"{located.spec} could not be loaded: {_first_line(error)}"
        ) from error
    return model, info


@contextmanager
def _nothing_at_random() -> Iterator[None]:
    """Leave out how transformers 4 initialises modules before it reads their weights.

    It cannot where they are quantised: there is no ``weight``, or one of integers.
    Weights that are not in the files are refused anyway.
    """
    if int(version("transformers").partition(".")[0]) >= 5:
        yield
        return
    from transformers import PreTrainedModel

    initialise = PreTrainedModel._initialize_missing_keys
    PreTrainedModel._initialize_missing_keys = lambda *_, **__: None
    try:
        yield
    finally:
        PreTrainedModel._initialize_missing_keys = initialise


class _Settle:
    """Where ``from_pretrained`` puts weights, and what is left to do behind it.

    ``folder`` is for weights that accelerate cannot read from the checkpoint's files.
    """

    def __init__(self, spec: str, place: Placement, folder: Path | None) -> None:
        self._spec = spec
        self._place = place
        self._folder = folder
        self.options: dict[str, Any] = {"device_map": {"": place.device}}
        if place.max_memory:
            self.options = {
                "device_map": "auto",
                "max_memory": dict(place.max_memory),
                "offload_folder": str(folder),
            }

    def __call__(self, model: PreTrainedModel) -> tuple[str, ...]:
        """Keep the folder as long as the model reads it; where the layers are.

        Raises:
            DeviceError: layers are on disk that were to be on GPUs.
        """
        found: dict[str, object] = getattr(model, "hf_device_map", {})
        if len(found) < 2 and DISK not in found.values():
            return ()
        if self._place.spread and {CPU, DISK} & {*found.values()}:
            raise DeviceError(
                f"{self._spec}: accelerate does not find room on the GPUs here for all "
                "layers; give CPU memory with --ppl-max-memory, or free the GPUs"
            )
        loader = loader_of(model)
        if loader is not None and self._folder is not None:
            # Its last user may be an output head that outlives the model.
            weakref.finalize(loader, shutil.rmtree, self._folder, ignore_errors=True)
            if any(self._folder.iterdir()):
                self._folder = None
        return (f"where the layers of {self._spec} are: {placed(found)}",)

    def clean(self) -> None:
        """Remove a folder that nobody reads."""
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)


@contextmanager
def _offloading(spec: str, place: Placement) -> Iterator[_Settle]:
    """A folder for weights that are offloaded, gone with the model that reads it."""
    folder = None
    if place.max_memory:
        gc.collect()  # accelerate's hooks keep a model that is not used any more
        folder = Path(tempfile.mkdtemp(prefix="pplguard-offload-"))
    settle = _Settle(spec, place, folder)
    try:
        yield settle
    finally:
        settle.clean()


def _from_pretrained(
    located: Located, settings: Mapping[str, Any], tensors: Mapping[str, TensorInfo]
) -> Callable[..., Any]:
    """``from_pretrained`` of the folder, or of what had to be decoded from it."""
    from transformers import AutoModelForCausalLM

    of_folder = partial(
        AutoModelForCausalLM.from_pretrained, located.folder, **settings
    )
    saved = read_config(located)
    quantised = is_quantised(saved)
    compressed, others = split_compressed(tensors, located.spec, quantised=quantised)
    if quantised:
        check_method(located.spec, saved["quantization_config"])
    dense = "quantization_config" in saved and not quantised
    if not compressed and not dense:
        return of_folder
    trust = {"trust_remote_code": settings["trust_remote_code"]}
    config = _config(located, trust)
    if not compressed:
        return partial(of_folder, config=config)
    if quantised:
        config.quantization_config.pop("sparsity_config", None)
    return _of_state(config, decoded_state(compressed, others), trust, **settings)


def _config(located: Located, trust: Mapping[str, bool]) -> Any:
    """The config of a folder as transformers reads it."""
    from transformers import AutoConfig

    saved = read_config(located)
    options: dict[str, Any] = {"local_files_only": True, **trust}
    if saved.get("quantization_config", {}) is None:
        options["quantization_config"] = {}  # transformers 4 cannot print a null
    config = AutoConfig.from_pretrained(located.folder, **options)
    if not is_quantised(saved):
        # All that it may say is how sparse the weights are.
        vars(config).pop("quantization_config", None)
    return config


def _of_state(
    config: Any, state: Mapping[str, Tensor], trust: Mapping[str, bool], **settings: Any
) -> Callable[..., Any]:
    """``from_pretrained`` of tensors instead of a folder."""
    import torch
    from transformers import AutoModelForCausalLM

    # Given tensors, transformers wants the class by name.
    with torch.device("meta"):
        empty = AutoModelForCausalLM.from_config(config, **trust)
    return partial(
        type(empty).from_pretrained,
        None,
        config=empty.config,
        state_dict=state,
        **settings,
    )


def check_method(spec: str, packing: dict[str, Any]) -> None:
    """Refuse a quantisation that transformers would only warn of, and skip.

    Raises:
        CheckpointError: the installed transformers does not know it.
    """
    import transformers
    from transformers.quantizers.auto import AutoHfQuantizer

    if not AutoHfQuantizer.supports_quant_method(packing):
        raise CheckpointError(
            f"{spec} is quantised by {packing.get('quant_method')!r}, which "
            f"transformers {transformers.__version__} does not know: measure the "
            "checkpoint as it was before quantising"
        )


def _run_once(spec: str, model: PreTrainedModel) -> None:
    """Read one token: some quantisers unpack their weights at the first forward pass.

    Raises:
        CheckpointError: the quantised weights cannot be used on this device.
    """
    import torch

    ids = torch.zeros((1, 1), dtype=torch.long, device=model.device)
    try:
        with torch.no_grad():
            model(input_ids=ids)
    # Kernels that are missing, or only there for another device, raise anything.
    except Exception as error:
        if is_out_of_memory(error):
            raise
        dtype = str(model.dtype).removeprefix("torch.")
        raise CheckpointError(
            f"{spec} is quantised and does not run on {model.device} in {dtype}: "
            f"{_first_line(error)}. Way out: --ppl-dtype bfloat16, or another "
            "--ppl-device"
        ) from error


def _dequantised(spec: str, log: Iterable[str]) -> tuple[str, ...]:
    """What transformers says where this device cannot run the quantised form."""
    lines = dict.fromkeys(line for line in log if "dequantiz" in line)
    return tuple(f"{spec}: {line}" for line in lines)


@contextmanager
def _memory(spec: str, device: str, dtype: str) -> Iterator[None]:
    """Turn the lack of memory, wherever it shows, into a way out."""
    try:
        yield
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        raise DeviceError(
            f"out of memory: {spec} does not fit on {device} in {dtype}. Way out: "
            "free the device, --ppl-dtype bfloat16, or another --ppl-device"
        ) from error


def _is_full(error: BaseException) -> bool:
    """Whether there is no room on a disk; safetensors says so in words alone."""
    return getattr(error, "errno", None) == errno.ENOSPC or (
        os.strerror(errno.ENOSPC) in str(error)
    )


def _first_line(error: BaseException) -> str:
    text = str(error).strip().partition("\n")[0].rstrip()
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


# ----------------------------------------------------------------------- after loading


def _check_keys(
    spec: str, model: str, info: Mapping[str, Any], allow_keys: Sequence[str]
) -> None:
    """Refuse a model whose weights do not all come from the files, and all of them."""
    refuse_prune_masks(spec, _unexpected(info, allow_keys))
    problems = _key_problems(info, allow_keys)
    if problems:
        raise CheckpointError(
            f"{spec} does not fit its architecture {model}: "
            + "; ".join(problems.values())
        )


def _key_problems(info: Mapping[str, Any], allow_keys: Sequence[str]) -> dict[str, str]:
    """What is wrong with a model's weights, by what it is about."""
    problems = {}
    if missing := info["missing_keys"]:
        problems["missing"] = f"{_named(missing)} missing from the files ({_RANDOM})"
    if mismatched := info["mismatched_keys"]:
        shapes = set(map(_mismatch, mismatched))
        problems["shape"] = f"{_named(shapes)} of another shape ({_RANDOM})"
    if unexpected := _unexpected(info, allow_keys):
        problems["unexpected"] = (
            f"{_named(unexpected)} in the files but not in the model "
            f"({_wrapped(missing, unexpected) or _ALLOW})"
        )
    return problems


def _wrapped(missing: Collection[str], unexpected: Iterable[str]) -> str:
    """How the names came about if they are those of missing weights in a wrapper."""
    for part, wrapper in _WRAPPERS.items():
        if all(part in key and key.replace(part, "") in missing for key in unexpected):
            return (
                f"{part} in their names is left of {wrapper}: save the model inside it"
            )
    return ""


def _unexpected(info: Mapping[str, Any], allow_keys: Sequence[str]) -> set[str]:
    return {
        key
        for key in info["unexpected_keys"]
        if not any(fnmatchcase(key, glob) for glob in allow_keys)
    }


def _mismatch(entry: str | tuple[str, Sequence[int], Sequence[int]]) -> str:
    if isinstance(entry, str):  # transformers 4 gives the name alone
        return entry
    key, saved, wanted = entry
    return f"{key} ({_shape(saved)} in the files, {_shape(wanted)} in the model)"


def _named(keys: Collection[str]) -> str:
    """``2 weights (a, b)``, at most a few of them by name."""
    names = ", ".join(sorted(keys)[:_LISTED])
    more = ", ..." if len(keys) > _LISTED else ""
    return f"{len(keys)} weight{'' if len(keys) == 1 else 's'} ({names}{more})"


def _shape(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape)) or "a number"


def _check_vocabulary(
    located: Located, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    rows = int(model.get_input_embeddings().weight.shape[0])
    largest = max(tokenizer.get_vocab().values(), default=-1)
    if largest < 0:
        raise CheckpointError(f"{located.spec}: its tokenizer has no vocabulary")
    if largest >= rows:
        raise CheckpointError(
            f"{located.spec}: its tokenizer has ids up to {largest}, but the model's "
            f"embedding has {rows} rows: tokenizer and weights do not belong together"
        )
