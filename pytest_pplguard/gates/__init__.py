"""The decision: a measurement held against its baseline becomes a verdict. Pure."""

from .bounds import Bounds, bounds, published_bounds
from .comparable import differences
from .defaults import default_sparsity
from .documents import PairedDocuments, mcnemar_p, paired_documents
from .early import EarlyPlan, EarlyTest, early_text, scoring_order
from .judge import (
    DEFAULT_MEASURED,
    DEFAULT_PUBLISHED,
    MetricGate,
    judge_metric,
    judge_relative,
    no_metric,
    window_bounds,
)
from .looser import loosens, relative_loosens, sparsity_loosens, tolerance_loosens
from .paired import Paired, Summed, WindowChange, paired
from .weights import (
    WeightsGate,
    holds_fingerprint,
    judge_against,
    judge_pattern,
    judge_sparsity,
    judge_weights,
)

__all__ = [
    "DEFAULT_MEASURED",
    "DEFAULT_PUBLISHED",
    "Bounds",
    "EarlyPlan",
    "EarlyTest",
    "MetricGate",
    "Paired",
    "PairedDocuments",
    "Summed",
    "WeightsGate",
    "WindowChange",
    "bounds",
    "default_sparsity",
    "differences",
    "early_text",
    "holds_fingerprint",
    "judge_against",
    "judge_metric",
    "judge_pattern",
    "judge_relative",
    "judge_sparsity",
    "judge_weights",
    "loosens",
    "mcnemar_p",
    "no_metric",
    "paired",
    "paired_documents",
    "published_bounds",
    "relative_loosens",
    "scoring_order",
    "sparsity_loosens",
    "tolerance_loosens",
    "window_bounds",
]
