"""Which weights go: the scores of Wanda and magnitude, and who is compared with whom.

Wanda: Sun et al. 2023, "A Simple and Effective Pruning Approach for Large Language
Models", arXiv 2306.11695, section 3. All functions are pure; a weight is ``(out, in)``.
"""

from __future__ import annotations

from fractions import Fraction
from typing import Literal

import torch
from msgspec import Struct
from torch import Tensor

from pytest_pplguard.errors import UsageError

Scope = Literal["row", "layer"]


def magnitude_score(weight: Tensor) -> Tensor:
    """``|W_ij|``, ``(out, in)``."""
    return weight.abs()


def wanda_score(weight: Tensor, input_norm: Tensor) -> Tensor:
    """``|W_ij| * ||X_j||_2`` in float64, ``(out, in)``; ``input_norm`` is ``(in,)``."""
    return weight.abs().double() * input_norm.double()


class Unstructured(Struct, frozen=True):
    """A share of the weights goes: of each output row, or of the whole matrix.

    Of n weights that are compared, ``floor(n * sparsity)`` go. ``sparsity`` is exact:
    0.29 of 100 are 29, where ``int(100 * 0.29)`` is 28. The field calls the scopes "per
    output" and "per layer".
    """

    sparsity: Fraction
    scope: Scope

    def check_width(self, name: str, width: int) -> None:
        """Every width will do."""

    def mask(self, score: Tensor) -> Tensor:
        """True where ``score`` is among the lowest of its row, or of the matrix."""
        compared = score if self.scope == "row" else score.reshape(1, -1)
        count = int(compared.shape[1] * self.sparsity)
        return _lowest(compared, count).view_as(score)


class Pattern(Struct, frozen=True):
    """N:M sparsity: of every ``group`` weights side by side in a row, ``kept`` stay.

    2:4 and 4:8 read the same everywhere. Where they differ, N is what stays, as the
    hardware's and most papers' N:M has it (the Wanda code counts what goes).
    """

    kept: int
    group: int

    def check_width(self, name: str, width: int) -> None:
        """Refuse a matrix whose rows cannot be cut into whole groups.

        Raises:
            UsageError: ``group`` does not divide ``width``.
        """
        if width % self.group:
            raise UsageError(
                f"{self.kept}:{self.group} does not fit {name}: its rows are {width} "
                f"weights wide, which {self.group} does not divide. Choose another "
                "pattern, or --sparsity"
            )

    def mask(self, score: Tensor) -> Tensor:
        """True where ``score`` is among the lowest of its group."""
        groups = score.reshape(-1, self.group)
        return _lowest(groups, self.group - self.kept).view_as(score)


def _lowest(score: Tensor, count: int) -> Tensor:
    """True at exactly ``count`` lowest scores of each row; of equals the first goes.

    A threshold would take every weight that equals it, and weights saved in half
    precision have many equals.
    """
    places = score.sort(dim=1, stable=True).indices[:, :count]
    return torch.zeros_like(score, dtype=torch.bool).scatter_(1, places, True)
