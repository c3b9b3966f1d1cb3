"""How far a model is from a reference model, token by token, over the Wanda windows.

At every scored position both models give a distribution over the vocabulary; the
divergence is KL(P_reference || P_model) = sum_v P_reference(v) log(P_reference(v) /
P_model(v)), in nats. llama.cpp's ``--kl-divergence`` averages the same quantity, over
windows of its own.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from msgspec import UNSET

from ..errors import MeasurementError
from ..values import MetricName, WindowScore
from .wanda import Wanda


class Kl(Wanda):
    """Mean divergence from a reference, and how often both agree on the top token."""

    name = "kl"
    metrics = ("kl_divergence", "top1_agreement")
    needs_reference = True

    def recompute(
        self, scores: Sequence[WindowScore], units: Mapping[str, int]
    ) -> dict[MetricName, float]:
        """Both are means over all scored positions.

        Raises:
            MeasurementError: the evidence is of a method without a reference.
        """
        divergence, agreeing = [], 0
        for score in scores:
            if score.kl_sum is UNSET or score.top1 is UNSET:
                raise MeasurementError("the evidence holds no divergence")
            divergence.append(score.kl_sum)
            agreeing += score.top1
        scored = sum(score.scored for score in scores)
        return {
            "kl_divergence": math.fsum(divergence) / scored,
            "top1_agreement": agreeing / scored,
        }
