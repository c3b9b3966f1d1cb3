"""The parts of a causal language model, and how they are run."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from ..checkpoints import device_of, is_out_of_memory
from ..errors import MeasurementError

OWN_ERRORS = (
    AssertionError,
    AttributeError,
    LookupError,
    RuntimeError,
    TypeError,
    ValueError,
)
"""What models raise that cannot be run in some way."""

Forward = Callable[..., Any]
"""A module, or what torch.compile makes of it."""


class Compiler:
    """Runs modules through torch.compile; the modules stay as they are."""

    def __init__(self) -> None:
        self._compiled: dict[torch.nn.Module, Forward] = {}

    def __call__(self, module: torch.nn.Module) -> Forward:
        """What gives the module's outputs, compiled at its first call.

        To be made and called while :meth:`failing`.
        """
        if module not in self._compiled:
            if not self._compiled:
                # Code of models that were measured before counts against a limit,
                # beyond which nothing is compiled any more, without a word.
                torch.compiler.reset()
            self._compiled[module] = torch.compile(module)
        return self._compiled[module]

    @contextmanager
    def failing(self) -> Iterator[None]:
        """Say of an error that the compiler was at fault, and the way out.

        Raises:
            MeasurementError: there is no compiler here, or not for this model.
        """
        try:
            with warnings.catch_warnings():
                # Of the compiler's own code; an error where the user's tests say so.
                warnings.simplefilter("ignore", DeprecationWarning)
                yield
        except Exception as error:
            if is_out_of_memory(error) or not _is_compilers(error):
                raise
            raise MeasurementError(
                f"torch.compile fails here: {_first_line(error)}; leave --ppl-compile "
                "out (the measurement is the same, and may be slower)"
            ) from error


def _is_compilers(error: BaseException) -> bool:
    """Whether an error is torch.compile's own, and not the model's."""
    from torch._dynamo import exc

    # An error of the model that is met while it is traced keeps its cause.
    if isinstance(error, (exc.TorchRuntimeError, exc.ObservedException)):
        return False
    modules = {kind.__module__ for kind in type(error).__mro__}
    if any(
        name.startswith(("torch._dynamo", "torch._inductor", "triton"))
        for name in modules
    ):
        return True
    text = str(error)
    return "torch.compile" in text or "Dynamo is not supported" in text


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if len(lines) > 1 and lines[0].endswith(":"):  # the cause is on the next line
        return " ".join(lines[:2])
    return lines[0] if lines else type(error).__name__


def hidden(
    body: torch.nn.Module, ids: torch.Tensor, run: Forward | None = None
) -> torch.Tensor:
    """Final hidden states: [batch x tokens x width]; ``run`` is what to call."""
    output = (body if run is None else run)(input_ids=ids, use_cache=False)
    states: torch.Tensor = output.last_hidden_state
    return states


def logits(
    model: torch.nn.Module,
    ids: torch.Tensor,
    positions: torch.Tensor | None = None,
    run: Forward | None = None,
) -> torch.Tensor:
    """Logits of ``ids``: [batch x tokens x vocabulary]; of some positions: [n x v].

    ``run`` is what to call, the model where it is None.
    """
    options: dict[str, Any] = {}
    accepted = inspect.signature(model.forward).parameters
    if "use_cache" in accepted:
        options["use_cache"] = False
    called = model if run is None else run
    if positions is not None and "logits_to_keep" in accepted:
        some = _of_positions(called, ids, positions, options)
        if some is not None:
            return some
    found: torch.Tensor = called(input_ids=ids, **options).logits
    return found if positions is None else found[0, positions.to(found.device)]


def _of_positions(
    called: Forward, ids: torch.Tensor, positions: torch.Tensor, options: dict[str, Any]
) -> torch.Tensor | None:
    """Logits of some positions [n x vocabulary]; None where a model gives others.

    Some take a number only, and some take it and give them all.
    """
    try:
        found = called(input_ids=ids, logits_to_keep=positions, **options).logits
    except OWN_ERRORS as error:
        if is_out_of_memory(error):
            raise
        return None
    kept: torch.Tensor = found[0]
    return kept if len(kept) == len(positions) < ids.shape[1] else None


def output_head(model: torch.nn.Module) -> torch.nn.Module | None:
    """What makes logits of hidden states, as transformers names it."""
    get = getattr(model, "get_output_embeddings", None)
    head = get() if get is not None else None
    return head if isinstance(head, torch.nn.Module) else None


def to_logits(rows: torch.Tensor, head: torch.nn.Module | None) -> torch.Tensor:
    """Logits of some hidden states, on the head's device; without head, they are."""
    if head is None:
        return rows
    found: torch.Tensor = head(rows.to(device_of(head) or rows.device))
    return found


def body(model: torch.nn.Module) -> torch.nn.Module | None:
    """What makes hidden states of ids, as transformers names it."""
    found = getattr(model, "base_model", None)
    return found if isinstance(found, torch.nn.Module) and found is not model else None


def device(model: torch.nn.Module) -> torch.device:
    """Where ids go."""
    embeddings = getattr(model, "get_input_embeddings", lambda: None)()
    source = embeddings if isinstance(embeddings, torch.nn.Module) else model
    return device_of(source) or device_of(model) or torch.device("cpu")


def dtype(model: torch.nn.Module) -> torch.dtype:
    """What the model computes in."""
    first = next((p for p in model.parameters() if p.is_floating_point()), None)
    return torch.float32 if first is None else first.dtype


def rotates_by_length(model: torch.nn.Module) -> bool:
    """Whether a longer input turns its first tokens otherwise, too.

    Of transformers' rotary embeddings ``longrope`` (Phi-3 with 128k) takes other
    factors beyond a length and ``dynamic`` another base. What is read of a short
    context is not what a longer input has there, and a proof on a short one shows none
    of it. Code that comes with a checkpoint has modules of its own, but its config
    mostly says so by the same words.
    """
    types = _rope_types(getattr(model, "config", None))
    for module in model.modules():
        kind = getattr(module, "rope_type", None)  # a layer type's each, or one
        types |= {*kind.values()} if isinstance(kind, dict) else {str(kind)}
    return _by_length(types)


def rotates_by_config(config: Any) -> bool:
    """As :func:`rotates_by_length`, by the word of a config alone."""
    return _by_length(_rope_types(config))


def _by_length(types: set[str]) -> bool:
    return any(kind == "longrope" or "dynamic" in kind for kind in types)


def _rope_types(config: Any) -> set[str]:
    """Of a config: of what it is called, now and before, and Qwen's own switch."""
    types = {"dynamic"} if getattr(config, "use_dynamic_ntk", None) is True else set()
    for name in ("rope_scaling", "rope_parameters"):
        found = getattr(config, name, None)
        if isinstance(found, dict):
            for each in (found, *found.values()):  # one, or a layer type's each
                if isinstance(each, dict):
                    types |= {str(each.get(key)) for key in ("type", "rope_type")}
    return types
