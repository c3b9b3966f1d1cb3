"""Prune the linear layers of a decoder by Wanda's criterion or by magnitude.

Wanda: Sun et al. 2023, "A Simple and Effective Pruning Approach for Large Language
Models", arXiv 2306.11695. Written anew after the paper's section 3 and the way its code
calibrates, for any Hugging Face model whose decoder blocks are ``model.model.layers``.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel


def wanda_mask(weight: Tensor, input_norm: Tensor, sparsity: float) -> Tensor:
    """True where Wanda prunes: the lowest ``|W_ij| * ||X_j||_2`` of each output row.

    ``weight`` and the result are ``(out, in)``, ``input_norm`` is ``(in,)``. Each row
    loses exactly ``int(in * sparsity)`` entries; of equal scores the first goes.
    """
    score = weight.abs().double() * input_norm.double()
    pruned = int(weight.shape[1] * sparsity)
    lowest = score.sort(dim=1, stable=True).indices[:, :pruned]
    return torch.zeros_like(weight, dtype=torch.bool).scatter_(1, lowest, True)


def magnitude_mask(weight: Tensor, sparsity: float) -> Tensor:
    """True where magnitude pruning prunes: the lowest ``|W_ij|`` of the whole matrix.

    Both are ``(out, in)``. Exactly ``int(out * in * sparsity)`` entries go; a threshold
    would take every entry that equals it, and float16 weights have many such ties.
    """
    pruned = int(weight.numel() * sparsity)
    lowest = weight.abs().flatten().sort(stable=True).indices[:pruned]
    mask = torch.zeros(weight.numel(), dtype=torch.bool, device=weight.device)
    mask[lowest] = True
    return mask.view_as(weight)


def decoder_blocks(model: PreTrainedModel) -> Iterator[dict[str, nn.Linear]]:
    """The linear layers of each decoder block, by their name inside the block."""
    blocks: Any = model.get_submodule("model.layers")
    for block in blocks:
        yield {
            name: module
            for name, module in block.named_modules()
            if isinstance(module, nn.Linear)
        }


@torch.no_grad()
def prune_magnitude(model: PreTrainedModel, sparsity: float) -> None:
    """Zero the smallest weights of every decoder linear, in place."""
    for linears in decoder_blocks(model):
        for linear in linears.values():
            linear.weight[magnitude_mask(linear.weight, sparsity)] = 0


@torch.no_grad()
def prune_wanda(
    model: PreTrainedModel, windows: Iterable[Tensor], sparsity: float
) -> None:
    """Zero the decoder linears by Wanda, block by block, in place.

    ``windows`` are token ids ``(batch, length)``. A block is calibrated on what comes
    out of the blocks before it as they are *after* pruning. The whole model runs once
    for each block, which a small one affords and which needs no knowledge of how an
    architecture calls its blocks.
    """
    model.eval()
    windows = list(windows)
    for linears in decoder_blocks(model):
        norms = input_norms(model, linears, windows)
        for name, linear in linears.items():
            linear.weight[wanda_mask(linear.weight, norms[name], sparsity)] = 0


@torch.no_grad()
def input_norms(
    model: PreTrainedModel,
    linears: Mapping[str, nn.Linear],
    windows: Iterable[Tensor],
) -> dict[str, Tensor]:
    """The 2-norm over all tokens of every input feature of each linear, ``(in,)``.

    Wanda's code divides the squares by the number of samples, which leaves the order
    inside a row as it is. They are summed in float64, so that the order of the windows
    does not decide a near tie.
    """
    squares = {
        name: torch.zeros(linear.in_features, dtype=torch.float64)
        for name, linear in linears.items()
    }
    with _observed_inputs(linears, squares):
        for window in windows:
            model(input_ids=window, use_cache=False)
    return {name: square.sqrt() for name, square in squares.items()}


@contextmanager
def _observed_inputs(
    linears: Mapping[str, nn.Linear], squares: Mapping[str, Tensor]
) -> Iterator[None]:
    """While open, add the squares of every linear's inputs to ``squares``."""

    def observer(name: str) -> Any:
        def observe(_module: nn.Module, args: tuple[Tensor, ...]) -> None:
            features = args[0].detach().flatten(0, -2).double()
            squares[name].add_(features.square().sum(dim=0).cpu())

        return observe

    handles = [
        linear.register_forward_pre_hook(observer(name))
        for name, linear in linears.items()
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
