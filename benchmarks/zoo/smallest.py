"""How small a defect each measure sees: ``python -m benchmarks.zoo.smallest``.

The queries of one layer are scaled by ``1 + e``. For each measure ``e`` grows until its
default tolerance is left, and is then narrowed by bisection. Everything is measured by
the package itself, as a gate would; weights are kept in float32, so that no rounding
hides a small ``e``.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import math
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from transformers.utils import logging

from pytest_pplguard.cli.measure import Checkpoint
from pytest_pplguard.gates import DEFAULT_MEASURED, bounds, paired
from pytest_pplguard.options import Options, Target
from pytest_pplguard.values import (
    HIGHER_IS_BETTER,
    Key,
    Measurement,
    divergence_tolerance,
)

from .bases import LENGTH, NAMES, USUAL, Maker
from .site import Base, Site, Tensors
from .weight_defects import MIDDLE

DRIFT = 0.003
FIRST, GROWTH, LARGEST, HALVINGS = 0.001, 2.0, 8.0, 6
"""Where ``e`` begins, how it grows and how far; then it is known to one per cent."""


@dataclass(frozen=True)
class Numbers:
    """One checkpoint as all measures see it."""

    wanda: Measurement
    lm_eval: Measurement
    to_dense: Measurement
    to_base: Measurement

    @property
    def damage(self) -> float:
        """KL from the unscaled base, over the text of the gates."""
        return self.to_base.metrics["kl_divergence"]


Sees = Callable[[Numbers, Numbers], bool]


def _leaves(kind: str, metric: str) -> Sees:
    """Whether a metric leaves its default tolerance."""

    def sees(now: Numbers, before: Numbers) -> bool:
        old = getattr(before, kind).metrics[metric]
        tolerance = divergence_tolerance(metric, old) or DEFAULT_MEASURED
        allowed = bounds(old, tolerance, higher_is_better=metric in HIGHER_IS_BETTER)
        new = getattr(now, kind).metrics[metric]
        return allowed.above(new) or allowed.below(new)

    return sees


def _drifts(now: Numbers, before: Numbers) -> bool:
    divergence = paired(now.wanda.evidence, before.wanda.evidence).divergence
    return divergence is not None and divergence > DRIFT


MEASURES: dict[str, Sees] = {
    "perplexity": _leaves("wanda", "token_perplexity"),
    "lm-eval": _leaves("lm_eval", "word_perplexity"),
    "KL to the dense": _leaves("to_dense", "kl_divergence"),
    "top-1 with the dense": _leaves("to_dense", "top1_agreement"),
    "estimated drift": _drifts,
    "KL to itself": _leaves("to_base", "kl_divergence"),
}


@dataclass
class Scaled:
    """A base with the queries of one layer scaled, measured once for each factor."""

    base: Base
    folder: Path
    _known: dict[float, Numbers] = field(default_factory=dict)

    def at(self, e: float) -> Numbers:
        """All measures of the checkpoint scaled by ``1 + e``."""
        if e not in self._known:
            site = Site(self.base, self.folder / f"{e}", "scaled")
            site.change(lambda tensors: _scale_queries(site, tensors, 1 + e))
            site.set_config(dtype="float32")
            self._known[e] = self._measure(site.folder)
        return self._known[e]

    def smallest(self, sees: Sees) -> float:
        """The smallest ``e`` that a measure sees; infinite if there is none."""
        before = self.at(0.0)
        low, high = 0.0, FIRST
        while not sees(self.at(high), before):
            low, high = high, high * GROWTH
            if high > LARGEST:
                return math.inf
        for _ in range(HALVINGS):
            middle = (low + high) / 2
            if sees(self.at(middle), before):
                high = middle
            else:
                low = middle
        return high

    def _measure(self, folder: Path) -> Numbers:
        text = self.base.text
        options = Options(
            corpora={text.name: str(text.path)}, journal="off", batch_size=8
        )
        place = f"{text.name}:{text.window}"
        with contextlib.redirect_stderr(io.StringIO()):
            here = Checkpoint(str(folder), options, reference=_target(self.base.dense))
            itself = Checkpoint(
                str(folder), options, reference=_target(self.base.folder)
            )
            return Numbers(
                here.measure(Key.parse(f"wanda/{place}:first{text.windows}")),
                here.measure(Key.parse(f"lm-eval/wikitext+{place}:first{text.pages}")),
                here.measure(Key.parse(f"kl/{place}:first{text.windows}")),
                itself.measure(Key.parse(f"kl/{place}:first{text.windows}")),
            )


def main(argv: Sequence[str] | None = None) -> int:
    """Print a row for each base: the smallest factor, and what damage that is."""
    parser = argparse.ArgumentParser("python -m benchmarks.zoo.smallest")
    parser.add_argument("--bases", nargs="*", choices=NAMES, default=USUAL)
    parser.add_argument(
        "--cache", type=Path, default=Path(tempfile.gettempdir(), "pplguard-zoo")
    )
    parser.add_argument("--window", type=int, default=LENGTH)
    parser.add_argument("--limit", type=int, default=40)
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    maker = Maker(options.cache, windows=options.limit, window=options.window)
    rows = [["base", *MEASURES], ["---"] * (1 + len(MEASURES))]
    for name in options.bases:
        with tempfile.TemporaryDirectory() as folder:
            scaled = Scaled(maker.make(name), Path(folder))
            found = [scaled.smallest(sees) for sees in MEASURES.values()]
            rows.append([name, *(_cell(scaled, e) for e in found)])
        print(f"| {' | '.join(rows[-1])} |", file=sys.stderr, flush=True)
    print("\n".join(f"| {' | '.join(row)} |" for row in rows))
    return 0


def _cell(scaled: Scaled, e: float) -> str:
    if math.isinf(e):
        return "-"
    return f"x {1 + e:.3g} ({scaled.at(e).damage:.2g})"


def _scale_queries(site: Site, tensors: Tensors, factor: float) -> None:
    """Also where one matrix holds queries, keys and values."""
    for name in tensors:
        tensors[name] = tensors[name].float()
    matrix = site.out_in(tensors[site.name(MIDDLE, site.family.attention_in[0])])
    if site.base.kind == "gpt_neox":
        matrix.view(site.base.heads, 3, -1, matrix.shape[1])[:, 0].mul_(factor)
    elif site.base.kind == "gpt2":
        matrix[: len(matrix) // 3].mul_(factor)
    else:
        matrix.mul_(factor)


def _target(folder: Path) -> Target:
    return Target(name=str(folder), spec=str(folder))


if __name__ == "__main__":
    sys.exit(main())
