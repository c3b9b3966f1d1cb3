"""Finds a decoder's blocks, and the matrices that they multiply their inputs by."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from msgspec import Struct
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from transformers import PreTrainedModel

from pytest_pplguard.errors import CheckpointError

_PROBE_TOKENS = 8
_PRODUCTS = (torch.matmul, Tensor.matmul, Tensor.__matmul__)


class Matrix(Struct, frozen=True, eq=False):
    """Weights that a block multiplies its input by.

    ``weight`` is ``(out, in)`` and shares memory with the parameter; ``parameter`` is
    that parameter's name in the model, ``name`` adds the number of the expert where it
    holds many matrices.
    """

    name: str
    parameter: str
    weight: Tensor


def decoder_blocks(model: PreTrainedModel) -> tuple[str, list[nn.Module]]:
    """The name of the list of decoder blocks, and the blocks.

    It is the outermost ``ModuleList`` that is as long as the config says.

    Raises:
        CheckpointError: there is none, or more than one.
    """
    count = getattr(model.config.get_text_config(), "num_hidden_layers", None)
    lists: dict[str, Any] = {}
    for name, module in model.named_modules():
        inside = any(name.startswith(f"{outer}.") for outer in lists)
        if isinstance(module, nn.ModuleList) and len(module) == count and not inside:
            lists[name] = module
    if len(lists) != 1:
        found = " and ".join(lists) or "none"
        raise CheckpointError(
            f"{type(model).__name__} is no decoder that this tool knows: it looks for "
            f"one list of num_hidden_layers={count} blocks and found {found}"
        )
    [(name, blocks)] = lists.items()
    return name, list(blocks)


class Multiplications(TorchFunctionMode):
    """While active, reports the input of every matrix multiplied by, as ``(n, in)``.

    Modules do not matter: routers and the experts that transformers 5 keeps in one
    tensor are seen like any ``nn.Linear``, and so is GPT-2's ``Conv1D``, which stores
    its matrix the other way round.
    """

    def __init__(self, observe: Callable[[Tensor, Tensor], None]) -> None:
        """``observe`` is called with the weight as ``(out, in)`` and the input."""
        super().__init__()
        self._observe = observe

    def __torch_function__(
        self,
        func: Any,
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Look at the operands, then compute."""
        # Operands given by name stay unseen; their matrix is refused then.
        if func is nn.functional.linear and len(args) > 1:
            self._observe(args[1], args[0])
        elif func is torch.addmm and len(args) > 2:
            self._observe(args[2].T, args[1])
        elif func in _PRODUCTS and len(args) > 1 and args[1].dim() == 2:
            self._observe(args[1].T, args[0])
        return func(*args, **(kwargs or {}))


Identity = tuple[int, tuple[int, ...], tuple[int, ...]]


def identity(weight: Tensor) -> Identity:
    """What tells one matrix in memory from another: its place, shape and strides."""
    return weight.data_ptr(), tuple(weight.shape), weight.stride()


@contextmanager
def single_experts(model: PreTrainedModel) -> Iterator[None]:
    """While open, experts multiply one by one, not all in one grouped product."""
    switch = getattr(model, "set_experts_implementation", None)
    if switch is None:  # transformers 4 has an nn.Linear for each
        yield
        return
    usual = model.config._experts_implementation
    switch("eager")
    try:
        yield
    finally:
        switch(usual)


@torch.no_grad()
def matrices(model: PreTrainedModel) -> list[list[Matrix]]:
    """The matrices of each decoder block, as a few tokens show them.

    Raises:
        CheckpointError: no blocks were found, or a block has a parameter of two or more
            dimensions that it does not use as a matrix; it would stay dense unseen.
    """
    path, blocks = decoder_blocks(model)
    seen: set[Identity] = set()
    ids = torch.arange(_PROBE_TOKENS, device=next(model.parameters()).device)
    with (
        single_experts(model),
        Multiplications(lambda weight, _input: seen.add(identity(weight))),
    ):
        model.base_model(input_ids=ids.unsqueeze(0), use_cache=False)
    return [
        list(_matrices_of(block, f"{path}.{number}", seen))
        for number, block in enumerate(blocks)
    ]


def _matrices_of(block: nn.Module, path: str, seen: set[Identity]) -> Iterator[Matrix]:
    for inside, parameter in block.named_parameters():
        if parameter.dim() < 2 or inside.endswith("bias"):  # experts' are 2-D
            continue
        name = f"{path}.{inside}"
        weight = parameter.detach()
        single = [weight] if weight.dim() == 2 else list(weight)
        if any(identity(matrix) in seen for matrix in single):
            found = single
        elif any(identity(matrix.mT) in seen for matrix in single):
            found = [matrix.mT for matrix in single]
        else:
            raise CheckpointError(
                f"{name} {tuple(weight.shape)} is no matrix that its block multiplies "
                "by in a way that this tool knows (linear, addmm, matmul): it cannot "
                "prune this architecture; llm-compressor may"
            )
        for number, matrix in enumerate(found):
            suffix = "" if weight.dim() == 2 else f"[{number}]"
            yield Matrix(f"{name}{suffix}", name, matrix)
