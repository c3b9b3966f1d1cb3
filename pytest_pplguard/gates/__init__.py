"""The decision: a measurement held against its baseline becomes a verdict. Pure."""

from .bounds import Bounds, bounds, published_bounds
from .comparable import differences
from .defaults import default_sparsity
from .judge import (
    DEFAULT_MEASURED,
    DEFAULT_PUBLISHED,
    MetricGate,
    judge_metric,
    judge_relative,
    judge_sparsity,
    not_built,
)
from .paired import Paired, WindowChange, paired

__all__ = [
    "DEFAULT_MEASURED",
    "DEFAULT_PUBLISHED",
    "Bounds",
    "MetricGate",
    "Paired",
    "WindowChange",
    "bounds",
    "default_sparsity",
    "differences",
    "judge_metric",
    "judge_relative",
    "judge_sparsity",
    "not_built",
    "paired",
    "published_bounds",
]
