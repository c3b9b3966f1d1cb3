"""Prunes a model in place, block by block in the way of the Wanda code.

A block is calibrated on what comes out of the blocks before it as they are *after*
pruning; see ``prune_wanda`` in ``lib/prune.py`` of https://github.com/locuslab/wanda.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

import torch
from msgspec import Struct
from torch import Tensor, nn
from transformers import PreTrainedModel

from pytest_pplguard.errors import CheckpointError

from .blocks import (
    Matrix,
    Multiplications,
    decoder_blocks,
    identity,
    matrices,
    single_experts,
)
from .criteria import Pattern, Unstructured, magnitude_score, wanda_score

Rule = Unstructured | Pattern
Progress = Callable[[int, int], None]
"""Called after each block with its number, from 1, and how many there are."""

_TOLERANCE = 1e-3
"""Of the largest value; kernels may differ in rounding, not in what they compute."""


@torch.no_grad()
def prune_magnitude(
    model: PreTrainedModel, rule: Rule, *, progress: Progress | None = None
) -> None:
    """Zero the smallest weights of every matrix of the decoder blocks, in place.

    Raises:
        CheckpointError: the model's blocks or matrices are not known.
        UsageError: ``rule`` does not fit a matrix.
    """
    found = _fitting_matrices(model, rule)
    for number, inside in enumerate(found, 1):
        for matrix in inside:
            _zero(matrix, rule, magnitude_score(matrix.weight))
        if progress:
            progress(number, len(found))


@torch.no_grad()
def prune_wanda(
    model: PreTrainedModel,
    batches: Sequence[Tensor],
    rule: Rule,
    *,
    progress: Progress | None = None,
) -> None:
    """Zero what Wanda's score ranks lowest in every decoder block, in place.

    Args:
        model: in evaluation mode, on one device.
        batches: token ids, each ``(batch, length)`` and all of one shape.
        rule: how much goes, and what is compared.
        progress: told of every finished block.

    Raises:
        CheckpointError: the model's blocks or matrices are not known, its blocks give
            something else when they run one by one, or an input is not finite.
        UsageError: ``rule`` does not fit a matrix.
    """
    found = _fitting_matrices(model, rule)
    _, blocks = decoder_blocks(model)
    device = next(model.parameters()).device
    batches = [batch.to(device) for batch in batches]
    with single_experts(model):
        calls = _record_calls(model, blocks, batches[0])
        _prove(model, blocks, calls, batches[-1])
        states = [_first_state(model, blocks[0], batch) for batch in batches]
        for number, inside in enumerate(found, 1):
            block, call = blocks[number - 1], calls[number - 1]
            norms = _input_norms(block, call, inside, states)
            for matrix, norm in zip(inside, norms, strict=True):
                _zero(matrix, rule, wanda_score(matrix.weight.to(norm.device), norm))
            if number < len(blocks):
                for place, state in enumerate(states):
                    states[place] = call.run(block, state)
            if progress:
                progress(number, len(blocks))


def _fitting_matrices(model: PreTrainedModel, rule: Rule) -> list[list[Matrix]]:
    found = matrices(model)
    for inside in found:
        for matrix in inside:
            rule.check_width(matrix.parameter, matrix.weight.shape[1])
    return found


def _zero(matrix: Matrix, rule: Rule, score: Tensor) -> None:
    if not score.isfinite().all():
        raise CheckpointError(
            f"{matrix.name} has weights or inputs that are not finite numbers"
        )
    matrix.weight[rule.mask(score).to(matrix.weight.device)] = 0


# ---------------------------------------------------------------- running single blocks


class _Call(Struct, frozen=True, eq=False):
    """What the model gives to a block besides the hidden state: masks, positions.

    It may differ from block to block (Gemma-2's sliding windows), but not between
    batches of one shape.
    """

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    by_name: bool
    """Whether the hidden state is a keyword argument."""

    def run(self, block: nn.Module, state: Tensor) -> Tensor:
        """The hidden state behind ``block``."""
        if self.by_name:
            return _hidden(block(*self.args, **self.kwargs, hidden_states=state))
        return _hidden(block(state, *self.args, **self.kwargs))


def _hidden(output: Any) -> Tensor:
    hidden: Tensor = output[0] if isinstance(output, tuple) else output
    return hidden


def _split(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Tensor, _Call]:
    """A block's arguments as the hidden state and the rest."""
    if args:
        return args[0], _Call(args[1:], kwargs, by_name=False)
    rest = {name: value for name, value in kwargs.items() if name != "hidden_states"}
    return kwargs["hidden_states"], _Call((), rest, by_name=True)


@contextmanager
def _before(block: nn.Module, look: Callable[[Tensor, _Call], None]) -> Iterator[None]:
    """While open, ``look`` sees the hidden state and the rest of each call."""

    def hook(_block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        look(*_split(args, kwargs))

    handle = block.register_forward_pre_hook(hook, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


def _run_body(model: PreTrainedModel, batch: Tensor) -> None:
    """Run the model without its head, which would cost much and tell nothing."""
    model.base_model(input_ids=batch, use_cache=False)


def _record_calls(
    model: PreTrainedModel, blocks: Sequence[nn.Module], batch: Tensor
) -> list[_Call]:
    calls: list[_Call] = []
    with ExitStack() as stack:
        for block in blocks:
            stack.enter_context(_before(block, lambda _state, call: calls.append(call)))
        _run_body(model, batch)
    return calls


class _Reached(Exception):
    """No error: it ends a forward pass where nothing more is needed of it."""


def _first_state(model: PreTrainedModel, block: nn.Module, batch: Tensor) -> Tensor:
    """The hidden state that reaches the first block."""
    states: list[Tensor] = []

    def stop(state: Tensor, _call: _Call) -> None:
        states.append(state)
        raise _Reached

    with _before(block, stop), suppress(_Reached):
        _run_body(model, batch)
    return states[0]


def _prove(
    model: PreTrainedModel,
    blocks: Sequence[nn.Module],
    calls: Sequence[_Call],
    batch: Tensor,
) -> None:
    """Check that the blocks, run one by one, do what the model does.

    Some models do more between their blocks than to hand on the hidden state. ``calls``
    were recorded on another batch, so arguments that depend on the text show as well.
    """
    state = _first_state(model, blocks[0], batch)
    for block, call in zip(blocks, calls, strict=True):
        state = call.run(block, state)
    outputs: list[Tensor] = []
    handle = blocks[-1].register_forward_hook(
        lambda _block, _args, output: outputs.append(_hidden(output))
    )
    try:
        _run_body(model, batch)
    finally:
        handle.remove()
    [expected] = outputs
    if not expected.isfinite().all():
        raise CheckpointError(
            f"{type(model).__name__} computes numbers that are not finite from the "
            "calibration text"
        )
    tolerance = _TOLERANCE * float(expected.abs().max())
    if not torch.allclose(state, expected, rtol=0, atol=tolerance):
        raise CheckpointError(
            f"the blocks of {type(model).__name__}, run one by one, do not give what "
            "the model gives: it does more between them than this tool knows"
        )


def _input_norms(
    block: nn.Module, call: _Call, inside: Sequence[Matrix], states: Sequence[Tensor]
) -> list[Tensor]:
    """The 2-norm over all tokens of every input feature of each matrix, ``(in,)``.

    The Wanda code keeps the mean of the squares over the samples, which ranks the same.
    Here they are summed in float64, so that the order of the samples does not decide a
    near tie.
    """
    places = {identity(matrix.weight): n for n, matrix in enumerate(inside)}
    squares: dict[int, Tensor] = {}

    def observe(weight: Tensor, features: Tensor) -> None:
        place = places.get(identity(weight.detach()))
        if place is None or not features.numel():
            return
        if features.device.type == "mps":  # has no float64
            features = features.cpu()
        total = features.flatten(0, -2).double().square().sum(dim=0)
        squares[place] = squares[place] + total if place in squares else total

    with Multiplications(observe):
        for state in states:
            call.run(block, state)
    for place, matrix in enumerate(inside):
        if place not in squares:
            raise CheckpointError(
                f"{matrix.name} saw no token of the calibration text: give more samples"
            )
    return [squares[place].sqrt() for place in range(len(inside))]
