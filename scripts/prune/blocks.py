"""Finds a decoder's blocks, and the matrices that they multiply their inputs by."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from msgspec import Struct
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from transformers import PreTrainedModel

from pytest_pplguard.errors import CheckpointError

_PROBE_TOKENS = 8


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

    Modules do not matter, so routers and the experts that transformers 5 keeps in one
    tensor are seen like any ``nn.Linear``, and GPT-2's ``Conv1D``, which stores its
    matrix the other way round.
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
        if func is nn.functional.linear:
            self._observe(args[1], args[0])
        elif func is torch.addmm:
            self._observe(args[2].T, args[1])
        return func(*args, **(kwargs or {}))


def identity(weight: Tensor) -> tuple[int, tuple[int, ...], tuple[int, ...]]:
    """What tells one matrix in memory from another: its place, shape and strides."""
    return weight.data_ptr(), tuple(weight.shape), weight.stride()


@torch.no_grad()
def matrices(model: PreTrainedModel) -> list[list[Matrix]]:
    """The matrices of each decoder block, as a few tokens show them.

    Raises:
        CheckpointError: no blocks were found, or a block has a parameter of two or more
            dimensions that it does not use as a matrix; it would stay dense unseen.
    """
    seen = set()
    with Multiplications(lambda weight, _input: seen.add(identity(weight))):
        device = next(model.parameters()).device
        ids = torch.arange(_PROBE_TOKENS, device=device).unsqueeze(0)
        model.base_model(input_ids=ids, use_cache=False)
    path, blocks = decoder_blocks(model)
    return [
        list(_matrices_of(block, f"{path}.{number}", seen))
        for number, block in enumerate(blocks)
    ]


def _matrices_of(
    block: nn.Module, path: str, seen: set[tuple[int, tuple[int, ...], tuple[int, ...]]]
) -> Iterator[Matrix]:
    for inside, parameter in block.named_parameters():
        if parameter.dim() < 2:
            continue
        name = f"{path}.{inside}"
        weight = parameter.detach()
        if identity(weight) in seen:
            yield Matrix(name, name, weight)
        elif weight.dim() == 2 and identity(weight.T) in seen:
            yield Matrix(name, name, weight.T)
        elif weight.dim() == 3 and any(identity(expert) in seen for expert in weight):
            for number, expert in enumerate(weight):
                yield Matrix(f"{name}[{number}]", name, expert)
        else:
            raise CheckpointError(
                f"{name} {tuple(weight.shape)} is not a matrix that its block "
                "multiplies by in a way that this tool knows (linear or addmm), so it "
                "cannot be pruned: llm-compressor knows more architectures"
            )
